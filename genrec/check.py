"""``genrec check``: what a recipe comes to, before anything is trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from genrec.data_prep import ItemCatalog, Split, load_dataset, split_log
from genrec.indexing import ItemIndex, build_index
from genrec.models.vocabulary import add_identifier_tokens
from genrec.recipe import Recipe, dump_recipe, load_recipe
from genrec.tasks import Renderer, TaskRows, make_renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINED = ("rq_vae",)
ROWS = 3


def prepared(recipe: Recipe) -> tuple[Split, ItemCatalog, ItemIndex]:
    """Returns split, catalogue and index of a recipe, made in memory; no run directory is written.

    A method whose codes would have to be trained first has random ones of their form, which is said.
    """
    data = recipe.data
    log, items = load_dataset(data.source, data.items, data.columns, data.on_bad_rows)
    log = log.k_core(data.user_core, data.item_core)
    items, split = items.restrict_to_log(log), split_log(log, data.split)
    method = recipe.index.method
    if method in TRAINED or recipe.index.teacher:
        print(f"# The codes below are random ones: those of {method} take training.\n")
        method = "random"
    return split, items, build_index(method, items, split.train, recipe.index.plain)


def check(source: str, overrides: Sequence[str]) -> None:
    """Prints the resolved recipe and rendered rows of every family, learned tokens marked, and what is cut.

    Everything is done in memory; no weight is read and no run directory written.
    """
    from genrec.models.backbone import load_tokenizer

    recipe = load_recipe(source, overrides)
    print(dump_recipe(recipe))
    split, items, index = prepared(recipe)
    tokenizer = load_tokenizer(recipe.model.backbone)
    add_identifier_tokens(tokenizer, index.tokens)
    renderer = make_renderer(tokenizer, index, recipe.tasks)
    tasks = TaskRows(split, items, index, recipe.tasks, tokenizer)
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
