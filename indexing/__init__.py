"""Item -> identifier: one method a file, one line each in ``INDEXERS``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from genrec.core.errors import lookup
from genrec.core.files import hash_value
from genrec.data_prep import ItemCatalog, ItemId, UserId
from genrec.indexing.codes import Code
from genrec.indexing.collaborative import Collaborative
from genrec.indexing.collisions import COLLISION_POLICIES
from genrec.indexing.hybrid import Hybrid
from genrec.indexing.independent import Independent
from genrec.indexing.index import ItemIndex
from genrec.indexing.indexer import Indexer, IndexInputs
from genrec.indexing.random_codes import Random
from genrec.indexing.rq_kmeans import RQKMeans
from genrec.indexing.rq_vae import RQVAE
from genrec.indexing.semantic import Semantic
from genrec.indexing.sequential import Sequential
from genrec.indexing.settings import IndexSettings
from genrec.indexing.text_id import TextId
from genrec.indexing.title import Title
from genrec.indexing.trie import ItemTrie, Restriction

INDEXERS: dict[str, Indexer] = {
    "collaborative": Collaborative(),
    "hybrid": Hybrid(),
    "independent": Independent(),
    "random": Random(),
    "rq_kmeans": RQKMeans(),
    "rq_vae": RQVAE(),
    "semantic": Semantic(),
    "sequential": Sequential(),
    "text_id": TextId(),
    "title": Title(),
}


def build_index(
    method: str,
    items: ItemCatalog,
    train: Mapping[UserId, Sequence[ItemId]],
    settings: IndexSettings | None = None,
    *,
    collaborative: np.ndarray | None = None,
    state: Path | None = None,
) -> ItemIndex:
    """Returns the index of every item of the catalogue.

    Args:
        method: A name in ``INDEXERS``.
        items: The catalogue.
        train: Training histories, ``{user_id: items, oldest first}``; nothing held out belongs here.
        settings: Shared settings of the methods; the defaults fit a few thousand items.
        collaborative: ``(items, width)`` item vectors of a sequence recommender trained on ``train``, for
            ``settings.collaborative_vectors`` of that name.
        state: File in which long training keeps where it is; given again, it goes on from there.

    Raises:
        RecipeError: If the method is unknown.
        IndexingError: If the settings leave too few codes for the items, or the items lack what the method needs.
    """
    settings = settings or IndexSettings()
    indexer = cast(Indexer, lookup(INDEXERS, method, "indexing method"))
    index = indexer.build(IndexInputs(items, train, settings, collaborative, state))
    index.report["settings_hash"] = hash_value(settings.model_dump(mode="json"))
    return index


__all__ = [
    "COLLISION_POLICIES",
    "INDEXERS",
    "Code",
    "IndexInputs",
    "IndexSettings",
    "Indexer",
    "ItemIndex",
    "ItemTrie",
    "Restriction",
    "build_index",
]
