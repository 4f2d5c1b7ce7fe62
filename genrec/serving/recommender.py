"""The one object for use: histories in, real items with titles and scores out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow.parquet as pa_parquet

from genrec.core.errors import DataError, IndexingError, RunError, nearest, require
from genrec.core.files import megabytes, read_json
from genrec.core.progress import say
from genrec.data_prep import ItemCatalog, ItemId, UserId, check_manifest
from genrec.decoding.settings import DecodingSettings, Method
from genrec.evaluation.baselines import sequence_scorer
from genrec.indexing import Code, ItemIndex
from genrec.tasks import Template, TitlePrompts
from genrec.training.finetune import HISTORIES, INDEX, ITEMS, MODEL, SERVING_FILE, load_trained

if TYPE_CHECKING:
    from genrec.decoding.beam import ConstrainedDecoder
    from genrec.decoding.grounding import Grounder

DECODING = "decoding"

# What another machine needs to recommend. User histories are not among it: they are nobody else's.
_SHARED = (MODEL, INDEX, ITEMS, SERVING_FILE, DECODING, "README.md", "recipe.yaml", "metrics.json")


@dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item_id: The item.
        title: Its title.
        score: Higher is better. Constrained: log-probability of its code, at most 0. Grounded: minus its (re-weighted)
            distance. Fused: the sum of what both lists give it.
        code: The tokens that name it; none for an item that has a title only.
    """

    item_id: ItemId
    title: str
    score: float
    code: Code


class Recommender:
    """A tuned model with its index and catalogue.

    Attributes:
        items: The catalogue.
        run_dir: The folder it was loaded from.
    """

    def __init__(self, decoder: ConstrainedDecoder, items: ItemCatalog, run_dir: Path) -> None:
        self._decoder, self.items, self.run_dir = decoder, items, run_dir
        file = run_dir / DECODING / "decoding.json"
        # Runs of before grounding have no such file.
        self._decoding: dict[str, Any] = read_json(file) if file.exists() else {}
        self._settings = DecodingSettings.model_validate(self._decoding.get("settings", {}))

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | Path, dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    ) -> Recommender:
        """Returns the recommender of a finished run, or of a Hub repository that one was pushed to.

        Raises:
            RunError: If it is neither, or its files do not belong together.
            ModelError: If the backbone cannot be loaded.
        """
        run = Path(path_or_hub_id)
        if not run.is_dir():
            run = _download(str(path_or_hub_id))
        model, renderer, _, items = load_trained(run, dtype)
        from genrec.decoding.beam import ConstrainedDecoder

        return cls(ConstrainedDecoder(model, renderer), items, run)

    def recommend(
        self,
        histories: Sequence[Sequence[ItemId]] | None = None,
        *,
        user_ids: Sequence[UserId] | None = None,
        k: int = 10,
        exclude_history: bool = True,
        exclude: Collection[ItemId] = (),
        beams: int | None = None,
        method: Method | None = None,
    ) -> list[list[Recommendation]]:
        """Returns, for each history or user, the k best items: real, distinct, best first.

        Fewer than k come only where fewer are allowed. An empty history gets what the model expects first.

        Args:
            histories: Items each user took, oldest first.
            user_ids: Users of the run instead, with the history that evaluation gave them (everything
                but the held-out last item).
            k: Items wanted.
            exclude_history: Whether items of the history are left out.
            exclude: Items that nobody shall get.
            beams: Beam width of the constrained search, default ``max(k, 20)``.
            method: ``"constrained"``, ``"grounded"`` or ``"fused"``; default is that of the run.

        Raises:
            UnknownItemError: If an item is not in the index, or in the catalogue for a method that reads titles.
            RunError: If the model was not trained to be asked in this way.
            DataError: If k is below 1, both or neither of histories and user_ids are given, or a user is
                unknown.
        """
        if k < 1:
            raise DataError(f"k must be 1 or more, got {k}.")
        if (histories is None) == (user_ids is None):
            raise DataError("Give either histories or user_ids.")
        if histories is None:
            assert user_ids is not None
            histories = [self.history(user) for user in user_ids]
        for history in histories:
            if isinstance(history, str):
                raise DataError(f"A history is a list of item ids, got the text {history!r}. Write [[...]].")
        left_out = [set(exclude) | (set(history) if exclude_history else set()) for history in histories]
        method = method or self._settings.method
        if method not in get_args(Method):
            raise DataError(f"method is {', '.join(get_args(Method))}, got {method!r}.")
        from genrec.decoding.fusion import Ranker

        constrained = self._decoder if self._decoding.get("writes_identifiers", True) else None
        grounder = self._grounder if method != "constrained" else None
        ranker = Ranker(self._settings, self.items, constrained, grounder)
        rankings = ranker.rank_all(histories, min(k, len(self.items)), left_out, beams, method=method)
        codes = self._decoder.index.codes
        return [
            [
                Recommendation(item, self.items.title(item), score, codes.get(item, ()))
                for item, score in ranking
            ]
            for ranking in rankings
        ]

    @cached_property
    def _grounder(self) -> Grounder | None:
        """What grounds the model's titles, as evaluation did; None where the model writes none."""
        texts, settings = self._decoding.get("template"), self._settings.grounding
        if not texts:
            return None
        from genrec.decoding.grounding import Grounder, Injection

        if self._settings.method == "constrained":
            # Evaluation chose no weight.
            settings = settings.model_copy(update={"inject": "none"})
        ids, injection = ItemCatalog.load(self.run_dir / ITEMS).item_ids, None
        if settings.inject == "popularity":
            injection = Injection.of_counts(ids, np.load(self.run_dir / DECODING / "popularity.npy"))
        elif settings.inject == "collaborative":
            from genrec.models.sequence import load_sequence_model

            teacher = load_sequence_model(self.run_dir / settings.collaborative, ids)
            injection = Injection(ids, sequence_scorer(teacher))
        needs = (("history", "title"), ("target", "title"))
        template = Template(texts["id"], texts["prompt"], texts["completion"], False, needs, False)
        prompts = TitlePrompts(self._decoder.renderer, template, self.items)
        return Grounder(
            self._decoder.model, prompts, self.items, settings, injection, self._decoding["gamma"]
        )

    def extend(self, items: ItemCatalog, titles_only: bool = False) -> Recommender:
        """Returns a recommender that knows these items too, by the codes that ``ItemIndex.extend`` gives them.

        Nothing is trained: an item can be recommended where the model knows all tokens of its code, as those of
        rq_kmeans and rq_vae made from text. The run's files stay as they are.

        Args:
            items: New ones.
            titles_only: Give them no codes: they are found by their titles alone, with the methods grounded and fused.

        Raises:
            IndexingError: If an item is known already, cannot be named, or has a token that the model never learned.
        """
        index = self._decoder.index
        if titles_only:
            return Recommender(self._decoder, self.items.append(items), self.run_dir)
        longer = index.extend(items)
        unknown = set(longer.tokens[len(index.tokens) :])
        if unknown:
            new = [item for item in items.item_ids if unknown & set(longer.code(item))]
            raise IndexingError(
                f"{len(new):,} of the {len(items):,} new items, first {new[0]!r}, have tokens that the model never "
                f"learned (method {index.method}). Train with an index of the whole catalogue, or name items by a "
                "method whose tokens stay, such as rq_kmeans or rq_vae from text."
            )
        return self._changed(longer, self.items.append(items))

    def remove(self, items: Collection[ItemId]) -> Recommender:
        """Returns a recommender without these items: it neither recommends them nor reads them in histories.

        Raises:
            UnknownItemError: If an item is not in the index.
        """
        for item in items:
            self.items.title(item)  # says what is wrong with an unknown one
        index, gone = self._decoder.index, set(items)
        index = index.remove([item for item in items if item in index.codes])
        return self._changed(index, self.items.select([i for i in self.items.item_ids if i not in gone]))

    def _changed(self, index: ItemIndex, items: ItemCatalog) -> Recommender:
        from genrec.decoding.beam import ConstrainedDecoder

        renderer = self._decoder.renderer.with_index(index)
        return Recommender(ConstrainedDecoder(self._decoder.model, renderer), items, self.run_dir)

    def check_data(self, folder: str | Path) -> None:
        """Does nothing where a prepared data set is whole, and the one that the model was trained on.

        Ask before measuring a model that came from elsewhere.

        Args:
            folder: What ``genrec prepare`` wrote.

        Raises:
            DataError: If it is no prepared data set, was changed since, or the model was trained on another or on
                another split of it, so that what it holds out may have been learned.
        """
        self._decoder.model.check_data(check_manifest(folder)["split_sha256"])

    def history(self, user_id: UserId, include_held_out: bool = False) -> list[ItemId]:
        """Returns a user's items, oldest first, as evaluation saw them, the longest where it saw several.

        Args:
            user_id: A user of the run.
            include_held_out: Whether what was held out is appended.

        Raises:
            RunError: If the run carries no histories (a run from the Hub).
            DataError: If the user is unknown, or too short to be evaluated.
        """
        path = self.run_dir / HISTORIES
        if not path.exists():
            raise RunError(f"{self.run_dir} carries no user histories; give the history itself.")
        table = pa_parquet.read_table(path, filters=[("user_id", "=", str(user_id))])
        if table.num_rows == 0:
            users = pa_parquet.read_table(path, columns=["user_id"])["user_id"].to_pylist()
            raise DataError(
                f"User {user_id!r} is not among the {len(users):,} evaluated users of this run."
                f"{nearest(str(user_id), users)} Give a history instead."
            )
        row = max(table.to_pylist(), key=lambda row: len(row["history"]))
        return row["history"] + (row["targets"] if include_held_out else [])

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes what another machine needs to recommend, and says how many MB it is.

        That is the adapter with its identifier rows, tokenizer, index, catalogue, card, recipe and metrics;
        the frozen backbone is named, not written, and user histories stay here.

        Raises:
            RunError: If the disk refuses.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            injected = (
                self._settings.method != "constrained" and self._settings.grounding.inject == "collaborative"
            )
            for name in (*_SHARED, *([self._settings.grounding.collaborative] if injected else [])):
                source = self.run_dir / name
                if source.is_dir():
                    shutil.copytree(source, folder / name, dirs_exist_ok=True)
                elif source.exists():
                    shutil.copyfile(source, folder / name)
        except OSError as error:
            raise RunError(f"Could not write {folder}: {error}") from error
        say(f"  saved {folder} ({megabytes(folder):.1f} MB)")
        return folder

    def merge_and_save(
        self, folder: str | Path, dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    ) -> Path:
        """Writes the model as an ordinary transformers folder, which opens without genrec, and says how many MB it is.

        It holds the backbone with the adapter added in, identifier tokens in embedding, output layer and tokenizer. Engines that
        know nothing of genrec run it; ranking by items, and the index that says which tokens name which, stay here.

        Args:
            folder: To write.
            dtype: Type of its weights; ``"auto"`` is that of the backbone in training.

        Raises:
            ModelError: If such a folder cannot hold the model (``model.whole_words``).
            RunError: If the disk refuses.
        """
        folder = Path(folder)
        self._decoder.model.merge_and_save(folder, dtype)
        say(f"  saved {folder} ({megabytes(folder):.1f} MB)")
        return folder

    def push_to_hub(self, repo_id: str, private: bool = True, dry_run: bool = False) -> list[str]:
        """Uploads what ``save_pretrained`` writes to the Hub and returns the names of the files.

        The catalogue goes along: see that its terms allow it.

        Args:
            repo_id: ``org/name``.
            private: Whether a new repository is private.
            dry_run: Only say what would go up.
        """
        hub = require("huggingface_hub", "train")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            names = sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())
            if not dry_run:
                api = hub.HfApi()
                api.create_repo(repo_id, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="genrec run")
        return names


def _download(repo_id: str) -> Path:
    hub = require("huggingface_hub", "train")
    try:
        return Path(hub.snapshot_download(repo_id))
    except Exception as error:  # the client raises many kinds, offline, missing and forbidden among them
        raise RunError(
            f"{repo_id!r} is neither a folder nor a Hub repository that can be read "
            f"({type(error).__name__}). Give the folder of a finished run, or org/name."
        ) from error
