"""The recipe: one typed tree that says everything of a run; its descriptions are help and documentation."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from genrec.core.errors import RecipeError, nearest
from genrec.data_prep import DataSettings
from genrec.decoding.settings import DecodingSettings
from genrec.evaluation.protocol import EvaluateSettings
from genrec.indexing import INDEXERS, IndexSettings
from genrec.models.settings import ClickSettings, GRU4RecSettings, SASRecSettings
from genrec.tasks.settings import TaskSettings
from genrec.training.settings import ModelSettings, TrainSettings


class IndexRecipe(IndexSettings):
    """How items are named."""

    method: str = Field("rq_kmeans", description=f"Indexing method: {', '.join(INDEXERS)}.")

    @property
    def plain(self) -> IndexSettings:
        """The settings without the method's name, as an index keeps them."""
        return IndexSettings.model_validate(self.model_dump(exclude={"method"}))

    @property
    def teacher(self) -> str | None:
        """The sequence recommender whose item vectors the method takes; None where it takes none."""
        indexer = INDEXERS.get(self.method)
        trained = self.collaborative_vectors in ("sasrec", "gru4rec")
        return (
            self.collaborative_vectors if trained and indexer and indexer.takes_collaborative(self) else None
        )


class Recipe(BaseModel):
    """A whole run: prepare, index, sasrec, gru4rec, train, baselines, evaluate; of clicks with a click model first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("my-run", min_length=1, description="Name of the run, used in its card.")
    run_dir: str = Field("runs/my-run", description="Folder of everything the run writes.")
    seed: int = Field(0, ge=0, description="Seed of every stage that does not give its own.")
    data: DataSettings = Field(default_factory=DataSettings, description="Log and catalogue.")
    index: IndexRecipe = Field(default_factory=IndexRecipe, description="Item identifiers.")
    tasks: TaskSettings = Field(default_factory=TaskSettings, description="Instruction data.")
    model: ModelSettings = Field(default_factory=ModelSettings, description="The language model.")
    train: TrainSettings = Field(default_factory=TrainSettings, description="Fine-tuning.")
    sasrec: SASRecSettings = Field(
        default_factory=SASRecSettings, description="SASRec, the baseline that may also teach."
    )
    gru4rec: GRU4RecSettings = Field(default_factory=GRU4RecSettings, description="GRU4Rec, a baseline.")
    click: ClickSettings = Field(
        default_factory=ClickSettings, description="The click model of evaluate.task=click."
    )
    decoding: DecodingSettings = Field(
        default_factory=DecodingSettings, description="How items are found for a history."
    )
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings, description="Measurement.")

    @model_validator(mode="after")
    def _history_is_one_rule(self) -> Recipe:
        learned = [name for name in ("train", "sasrec", "gru4rec") if getattr(self, name).exclude_history]
        if learned and not self.evaluate.exclude_history:
            raise ValueError(
                f"evaluate.exclude_history=false ranks items of the history, but {learned[0]}.exclude_history "
                "leaves them out of the loss. Set exclude_history of evaluate, train, sasrec and gru4rec to false where "
                "users take items again"
            )
        return self

    @model_validator(mode="after")
    def _the_base_is_there(self) -> Recipe:
        method, encoder = self.decoding.method, self.decoding.grounding.encoder
        if method != "constrained" and encoder == "base" and self.train.adapter == "full":
            raise ValueError(
                f"decoding.method={method} with decoding.grounding.encoder=base takes the backbone as it was before "
                "training, and train.adapter=full trains all of it. Set the encoder to tuned, minilm or words"
            )
        return self

    @model_validator(mode="after")
    def _clicks_are_told_by_a_click_model(self) -> Recipe:
        clicks, vectors = self.evaluate.task == "click", self.train.reclora.vectors
        if self.train.personal and (vectors == "click") != clicks:
            raise ValueError(
                f"train.reclora.vectors={vectors} with evaluate.task={self.evaluate.task}: a click model's vectors know the item that is "
                "asked for, and are for evaluate.task=click, which takes no others. Change one of the two"
            )
        if clicks and self.train.validate_steps:
            raise ValueError(
                "train.validate_steps ranks items, and evaluate.task=click ranks none. Leave it out"
            )
        return self


_SEEDED = ("index", "tasks", "train", "sasrec", "gru4rec", "click", "evaluate")


def shipped_recipes() -> list[str]:
    """Returns the names of the recipes that come with genrec."""
    return sorted(
        path.name.removesuffix(".yaml")
        for path in files("genrec.recipes").iterdir()
        if path.name.endswith(".yaml")
    )


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Returns the recipe of a YAML file, of a shipped name, or of a run directory.

    Args:
        source: Path of a ``.yaml`` file, name of a shipped recipe, or folder of a run.
        overrides: ``key.path=value`` pairs, values in YAML.

    Raises:
        RecipeError: If the source does not exist or is not YAML, a key is unknown (the message names the
            nearest valid one) or a value is not allowed.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "recipe.yaml"
    if not path.is_file():
        shipped = files("genrec.recipes").joinpath(f"{source}.yaml")
        if not shipped.is_file():
            known = shipped_recipes()
            raise RecipeError(
                f"There is no recipe {str(source)!r}: neither a file, nor a run directory, nor one of the "
                f"shipped recipes {', '.join(known)}.{nearest(str(source), known)}"
            )
        text = shipped.read_text(encoding="utf-8")
    else:
        text = path.read_text(encoding="utf-8")
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise RecipeError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{source} must be a mapping of keys to values, got {type(tree).__name__}.")
    for override in overrides:
        _override(tree, override)
    return _validate(tree, str(source))


def parse_recipe(tree: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Returns the recipe of a plain dictionary; errors as ``load_recipe``."""
    tree = copy.deepcopy(tree)  # seeds and overrides go into it
    for override in overrides:
        _override(tree, override)
    return _validate(tree, "the recipe")


def dump_recipe(recipe: Recipe) -> str:
    """Returns a recipe as YAML with every key, so that nothing is left to a default."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def recipe_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields ``(dotted key, default, description)`` of every key of a recipe."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from recipe_keys(kind, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            shown = yaml.safe_dump(
                list(default) if isinstance(default, tuple) else default, default_flow_style=True
            )
            yield (
                prefix + name,
                shown.removesuffix("...\n").strip(),
                f"{field.description} {_allowed(kind)}".strip(),
            )


def _allowed(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " ".join(filter(None, map(_allowed, get_args(kind))))
    return f"[{' | '.join(map(str, get_args(kind)))}]" if get_origin(kind) is Literal else ""


def _override(tree: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"An override is written key.path=value, got {override!r}.")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise RecipeError(f"Unknown key {key!r}: {parent!r} is a value, not a group of keys.")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"The value of {override!r} is not valid YAML: {error}") from error


def _validate(tree: dict[str, Any], source: str) -> Recipe:
    seed = tree.get("seed", 0)
    for section in _SEEDED:
        if isinstance(tree.setdefault(section, {}), dict):
            tree[section].setdefault("seed", seed)
    if isinstance(tree["tasks"], dict) and isinstance(texts := tree["tasks"].setdefault("texts", {}), dict):
        texts.setdefault("seed", tree["tasks"]["seed"])
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        keys = [key for key, _, _ in recipe_keys()]
        groups = sorted({key.split(".")[0] for key in keys if "." in key})
        lines = []
        for problem in error.errors():
            where = ".".join(map(str, problem["loc"]))
            if problem["type"] == "extra_forbidden":
                parent = where.rpartition(".")[0]
                siblings = [key for key in keys if key.rpartition(".")[0] == parent]
                # A key in the wrong group is found by its last part, in the groups themselves first.
                last = where.rpartition(".")[2]
                elsewhere = sorted(
                    (key for key in keys if key.rpartition(".")[2] == last), key=lambda key: key.count(".")
                )
                hint = f" Did you mean {elsewhere[0]!r}?" if elsewhere else nearest(where, siblings + groups)
                lines.append(f"Unknown key {where!r}.{hint or nearest(where, keys)}")
            elif not where:
                lines.append(problem["msg"].removeprefix("Value error, ") + ".")
            else:
                lines.append(f"{where}: {problem['msg']}, got {problem['input']!r}.")
        raise RecipeError(f"{source} is not valid:\n  " + "\n  ".join(lines)) from None
