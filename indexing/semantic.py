"""Semantic identifiers: an item is named by its place in the tree of categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from genrec.core.errors import IndexingError
from genrec.data_prep import ItemCatalog, ItemId
from genrec.indexing.codes import Code
from genrec.indexing.index import ItemIndex
from genrec.indexing.indexer import Indexer, IndexInputs
from genrec.indexing.words import counted, name_symbol

FLAT_LABELS, FLAT_FEWEST = 5, 10  # Hua et al.'s for Yelp


class Semantic(Indexer):
    """The path of an item's categories, general first, then a count within the path.

    ``settings.categories=tree`` takes the item's list of categories (the first, of a list of lists) as a path,
    without the top level that all items share. ``flat`` takes it as labels: those of more than 10 items, the most
    frequent first, at most five. Missing and empty levels are passed over; an item without a category has only
    the count. Items of one path are counted in random order, so that the catalogue's order, which may follow the
    log, says nothing. New items take the next counts of their path; a category that no item had is a new token.

    Source: SemID in Hua et al., "How to Index Item IDs", SIGIR-AP 2023. A category has the same token wherever it
    occurs at a level.
    """

    def build(self, inputs: IndexInputs) -> ItemIndex:
        """Returns the index of every item of the catalogue.

        Raises:
            IndexingError: If the catalogue has no categories at all.
        """
        items, settings = inputs.items, inputs.settings
        labels = category_names(items)
        if not any(labels):
            raise IndexingError(
                "semantic names items by their categories, and no item has one: the catalogue needs a column "
                f"'categories' of lists of names. It has: {', '.join(items.table.column_names)}."
            )
        shared = _shared_top(labels) if settings.categories == "tree" else None
        frequent = Counter(label for row in labels for label in set(row))
        state = {"top": np.array([shared or ""]), **_frequencies(frequent, settings.categories)}
        rows = _paths(labels, state)
        order = np.random.default_rng(settings.seed).permutation(len(items))
        codes, touched = counted([rows[row] for row in order], settings.codebook_size)
        by_row = dict(zip(order.tolist(), codes, strict=True))
        report = {
            "collision_policy": "suffix",
            "num_items_touched": touched,
            "num_without_category": sum(not row for row in rows),
        }
        named = {item: by_row[row] for row, item in enumerate(items.item_ids)}
        return ItemIndex("semantic", named, report, settings, state)

    def extend(self, index: ItemIndex, items: ItemCatalog) -> dict[ItemId, Code]:
        """Returns codes by the same rule, counted on from the items that are there."""
        settings = index.settings
        assert settings is not None
        rows = _paths(category_names(items), index.state)
        codes, _ = counted(rows, settings.codebook_size, index.codes.values())
        return dict(zip(items.item_ids, codes, strict=True))


def category_names(items: ItemCatalog) -> list[list[str]]:
    """Returns the categories of each item in catalogue order, empty and missing ones left out."""
    if "categories" not in items.table.column_names:
        return [[] for _ in items.item_ids]
    return [_names(value) for value in items.table["categories"].to_pylist()]


def _names(value: Any) -> list[str]:
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    names = value if isinstance(value, list) else [value]
    return [str(name).strip() for name in names if name is not None and str(name).strip()]


def _shared_top(labels: Sequence[Sequence[str]]) -> str | None:
    tops = {row[0] for row in labels if row}
    return tops.pop() if len(tops) == 1 and any(len(row) > 1 for row in labels) else None


def _frequencies(frequent: Counter[str], kind: str) -> dict[str, np.ndarray]:
    if kind == "tree":
        return {}
    kept = [(label, count) for label, count in frequent.most_common() if count > FLAT_FEWEST]
    return {
        "labels": np.array([label for label, _ in kept], str),
        "label_counts": np.array([count for _, count in kept], np.int64),
    }


def _paths(labels: Sequence[Sequence[str]], state: dict[str, np.ndarray]) -> list[list[str]]:
    if "labels" in state:
        known = dict(zip(state["labels"].tolist(), state["label_counts"].tolist(), strict=True))
        chosen = [
            sorted({label for label in row if label in known}, key=lambda label: (-known[label], label))
            for row in labels
        ]
        return [[name_symbol(label) for label in row[:FLAT_LABELS]] for row in chosen]
    top = str(state["top"][0])
    return [[name_symbol(label) for label in (row[1:] if row[:1] == [top] else row)] for row in labels]
