"""``genrec check``: what a recipe comes to, before anything is trained."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence

from genrec.data_prep import InteractionLog, ItemCatalog, prepare, read_split
from genrec.indexing import build_index
from genrec.models.vocabulary import add_identifier_tokens
from genrec.recipe import dump_recipe, load_recipe
from genrec.tasks import Renderer, build_dataset

TRAINED = ("rq_vae",)


def check(source: str, overrides: Sequence[str]) -> None:
    """Prints the resolved recipe and three rendered rows, learned tokens marked.

    No weight is read and no run directory written. A method whose
    codes would have to be trained first shows random ones of their form.
    """
    from genrec.models.backbone import load_tokenizer

    recipe = load_recipe(source, overrides)
    print(dump_recipe(recipe))
    with tempfile.TemporaryDirectory() as folder:
        prepare(recipe.data, folder)
        split = read_split(InteractionLog.load(f"{folder}/interactions.parquet").table, recipe.data.split)
        items = ItemCatalog.load(f"{folder}/items.parquet")
    method = recipe.index.method
    if method in TRAINED or recipe.index.teacher:
        print(f"# The codes below are random ones: those of {method} take training.\n")
        method = "random"
    index = build_index(method, items, split.train, recipe.index.plain)
    tokenizer = load_tokenizer(recipe.model.backbone)
    add_identifier_tokens(tokenizer, index.tokens)
    renderer = Renderer(tokenizer, index, recipe.tasks.form, recipe.tasks.max_history)
    rows = build_dataset(split, items, index, recipe.tasks)["train"]
    on, off = ("\033[32m", "\033[0m") if sys.stdout.isatty() else ("[", "]")
    print(f"{len(rows):,} training rows; three of them, learned tokens {on}marked{off}:\n")
    for number in (0, len(rows) // 2, len(rows) - 1):
        row = rows[number]
        ids, labels = renderer.row_ids(row["prompt"], row["completion"])
        learned = sum(label != -100 for label in labels)
        print(f"{row['task']} {row['key']}: {len(ids)} tokens, {learned} learned")
        tokens = [
            f"{on}{token}{off}" if label != -100 else token
            for token, label in zip(tokenizer.convert_ids_to_tokens(ids), labels, strict=True)
        ]
        if len(tokens) > 80:
            tokens[40:-40] = [f"... ({len(tokens) - 80} more) ..."]
        print("  " + " ".join(tokens) + "\n")
