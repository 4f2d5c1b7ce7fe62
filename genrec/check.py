"""``genrec check`` and ``genrec tasks``: what a recipe and its tasks come to, before anything is trained."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Any, cast

from genrec.core.errors import lookup
from genrec.data_prep import InteractionLog, ItemCatalog, Split, prepare, read_split, read_users
from genrec.indexing import ItemIndex, build_index
from genrec.recipe import Recipe, dump_recipe, load_recipe
from genrec.tasks import SAMPLERS, Family, Renderer, TaskRows, load_families, make_renderer
from genrec.tasks.render import BARE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINED = ("rq_vae",)
ROWS = 3


def prepared(recipe: Recipe) -> tuple[Split, ItemCatalog, ItemIndex]:
    """Returns split, catalogue and index of a recipe; no run directory is written.

    A method whose codes would have to be trained first has random ones of their form, which is said.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepare(recipe.data, folder)
        log = InteractionLog.load(f"{folder}/interactions.parquet")
        split = read_split(log.table, recipe.data.split, read_users(folder))
        items = ItemCatalog.load(f"{folder}/items.parquet")
    method = recipe.index.method
    if method in TRAINED or recipe.index.teacher:
        print(f"# The codes below are random ones: those of {method} take training.\n")
        method = "random"
    return split, items, build_index(method, items, split.train, recipe.index.plain)


def check(source: str, overrides: Sequence[str]) -> None:
    """Prints the resolved recipe and rendered rows of every family, learned tokens marked, and what is cut.

    Everything is done in memory; no weight is read and no run directory written.
    """
    from genrec.models.backbone import is_encoder_decoder, load_tokenizer
    from genrec.models.vocabulary import add_identifier_tokens

    recipe = load_recipe(source, overrides)
    print(dump_recipe(recipe))
    split, items, index = prepared(recipe)
    tokenizer = load_tokenizer(recipe.model.backbone)
    add_identifier_tokens(tokenizer, index.tokens)
    seq2seq = is_encoder_decoder(recipe.model.backbone, recipe.model.new)
    renderer = make_renderer(tokenizer, index, recipe.tasks, seq2seq)
    tasks = TaskRows(split, items, index, recipe.tasks, tokenizer, text_to_text=seq2seq)
    rows = tasks.dataset()["train"]
    on, off = _marks()
    print(f"{tasks.summary()}. {ROWS} of each family, learned tokens {on}marked{off}:\n")
    first = 0
    for count in tasks.counts.values():
        for number in sorted(
            {first + count["rows"] * place // ROWS for place in range(min(ROWS, count["rows"]))}
        ):
            _print_row(rows[number], renderer, tokenizer)
        first += count["rows"]


def show_families(files: Sequence[str]) -> None:
    """Prints every family of tasks: sampler, templates, source and what it asks."""
    for family in load_families(files).values():
        held_out = f" + {len(family.held_out)} held out" if family.held_out else ""
        print(f"{family.name}  [{family.samples}; {len(family.seen)} templates{held_out}]")
        print(f"    {family.about}\n    {family.source}")


def show_family(name: str, files: Sequence[str]) -> None:
    """Prints a family's slots and templates.

    Raises:
        RecipeError: If there is no such family.
    """
    family = cast(Family, lookup(load_families(files), name, "family of tasks"))
    sampler = SAMPLERS[family.samples]
    print(f"{family.name}: {family.about}\n{family.source}\n\nA sample is {sampler.about}. Slots:")
    for slot, kind in family.slots.items():
        print(f"    {slot} ({kind}): {sampler.slots[slot].about}")
    for template in family.templates:
        print(f"\n{template.id}{' (held out)' if template.held_out else ''}")
        print(indent(f"{template.prompt}\n=> {template.completion}", "    "))


def preview_family(
    name: str,
    source: str,
    overrides: Sequence[str],
    num_rows: int,
    files: Sequence[str],
    every_template: bool,
) -> None:
    """Prints rows of a family as a recipe's data make them, in the recipe's form; nothing is written.

    Args:
        name: The family.
        source: As ``load_recipe``.
        overrides: As ``load_recipe``.
        num_rows: Rows shown.
        files: Family files beside those of the recipe.
        every_template: Whether a row in each template is shown instead, in the held-out ones too.

    Raises:
        RecipeError: If the family, or a key of the recipe, is unknown.
        DataError: If the recipe's log lacks what the family is drawn from.
    """
    recipe = load_recipe(source, overrides)
    files = (*recipe.tasks.files, *files)
    family = cast(Family, lookup(load_families(files), name, "family of tasks"))
    form = "prompt" if recipe.tasks.form in BARE else recipe.tasks.form
    # Without the budget, for which the backbone's tokenizer would be read.
    changes = {"mixture": {name: 1.0}, "files": files, "form": form, "max_tokens": None}
    rows = TaskRows(*prepared(recipe), recipe.tasks.model_copy(update=changes), evaluate=not family.seen)
    templates = family.templates if every_template or not family.seen else None
    if recipe.tasks.texts.writer != "template" and SAMPLERS[family.samples].written:
        print(f"# Texts below are the rule's: {recipe.tasks.texts.writer} writes them when rows are built.\n")
    found = rows.preview(name, num_rows, templates)
    for row in found:
        print(f"{row['template']} {row['key']}")
        for column in ("prompt", "completion"):
            text = row[column] if isinstance(row[column], str) else row[column][0]["content"]
            print(indent(text, "    " if column == "prompt" else " => ", lambda _: True))
        print()
    if templates and len(found) < len(templates):
        shown = {row["template"] for row in found}
        print(f"No sample has what these print: {', '.join(t.id for t in templates if t.id not in shown)}")


def _marks() -> tuple[str, str]:
    return ("\033[32m", "\033[0m") if sys.stdout.isatty() else ("[", "]")


def _print_row(row: dict[str, Any], renderer: Renderer, tokenizer: PreTrainedTokenizerBase) -> None:
    on, off = _marks()
    ids, labels = renderer.row_ids(row["prompt"], row["completion"])
    learned = sum(label != -100 for label in labels)
    print(f"{row['template'] or row['task']} {row['key']}: {len(ids)} tokens, {learned} learned")
    tokens = [
        f"{on}{token}{off}" if label != -100 else token
        for token, label in zip(tokenizer.convert_ids_to_tokens(ids), labels, strict=True)
    ]
    if len(tokens) > 80:
        tokens[40:-40] = [f"... ({len(tokens) - 80} more) ..."]
    print("  " + " ".join(tokens) + "\n")
