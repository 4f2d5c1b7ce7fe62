"""Item -> identifier: one method a file, one line each in ``INDEXERS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from genrec.core.errors import lookup
from genrec.core.files import hash_value
from genrec.data_prep import ItemCatalog, ItemId, UserId
from genrec.indexing.codes import Code
from genrec.indexing.collisions import COLLISION_POLICIES
from genrec.indexing.independent import independent
from genrec.indexing.index import ItemIndex
from genrec.indexing.random_codes import random_codes
from genrec.indexing.rq_kmeans import rq_kmeans
from genrec.indexing.sequential import sequential
from genrec.indexing.settings import IndexSettings
from genrec.indexing.trie import ItemTrie, Restriction

Indexer = Callable[[ItemCatalog, Mapping[UserId, Sequence[ItemId]], IndexSettings], ItemIndex]

INDEXERS: dict[str, Indexer] = {
    "independent": independent,
    "random": random_codes,
    "rq_kmeans": rq_kmeans,
    "sequential": sequential,
}


def build_index(
    method: str,
    items: ItemCatalog,
    train: Mapping[UserId, Sequence[ItemId]],
    settings: IndexSettings | None = None,
) -> ItemIndex:
    """Returns the index of every item of the catalogue.

    Args:
        method: A name in ``INDEXERS``.
        items: The catalogue.
        train: Training histories, ``{user_id: items, oldest first}``; nothing held out belongs here.
        settings: Shared settings of the methods; the defaults fit a few thousand items.

    Raises:
        RecipeError: If the method is unknown.
        IndexingError: If the settings leave too few codes for the items.
    """
    settings = settings or IndexSettings()
    indexer = cast(Indexer, lookup(INDEXERS, method, "indexing method"))
    index = indexer(items, train, settings)
    index.report["settings_hash"] = hash_value(settings.model_dump())
    return index


__all__ = [
    "COLLISION_POLICIES",
    "INDEXERS",
    "Code",
    "IndexSettings",
    "ItemIndex",
    "ItemTrie",
    "Restriction",
    "build_index",
]
