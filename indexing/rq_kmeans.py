"""Residual k-means: identifiers whose first tokens say what kind of item it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genrec.core.errors import IndexingError
from genrec.data_prep import ItemCatalog, ItemId, UserId
from genrec.indexing.codes import spell
from genrec.indexing.collisions import COLLISION_POLICIES
from genrec.indexing.index import ItemIndex
from genrec.indexing.settings import IndexSettings
from genrec.indexing.vectors import item_vectors


def rq_kmeans(
    items: ItemCatalog, train: Mapping[UserId, Sequence[ItemId]], settings: IndexSettings
) -> ItemIndex:
    """Returns an index of ``levels`` tokens by k-means on item vectors, then on what it left over.

    R_1 = X; code of level l = nearest centroid of k-means on R_l; R_(l+1) = R_l - centroid. Source:
    RQ-KMeans of OneRec (arXiv 2502.18965) and of MiniOneRec. Vectors come from training interactions
    and texts only. Equal codes are settled by the collision policy.

    Raises:
        IndexingError: If the vectors are not finite, or the policy cannot settle the collisions.
    """
    vectors = item_vectors(settings.vectors, items, train, settings)
    codes, distances = quantize(vectors, settings.levels, settings.codebook_size, settings.seed)
    unique = len(np.unique(codes, axis=0))
    codes, touched = COLLISION_POLICIES[settings.collisions](codes, distances)
    return ItemIndex(
        "rq_kmeans",
        dict(zip(items.item_ids, spell(codes), strict=True)),
        {
            "collision_policy": settings.collisions,
            "collision_rate_before": 1 - unique / len(items),
            "num_items_touched": touched,
        },
    )


def quantize(
    vectors: np.ndarray, levels: int, codebook_size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns residual k-means codes and the distances at the last level.

    Args:
        vectors: ``(items, width)``.
        levels: Number of levels.
        codebook_size: Centroids at a level; fewer where there are fewer distinct residuals.
        seed: Seed of the k-means starts.

    Returns:
        Codes ``(items, levels)`` and Euclidean distances ``(items, codebook_size)`` of each item to the
        last level's centroids, infinite-free: unused places come after all centroids.

    Raises:
        IndexingError: If a vector is not finite.
    """
    from sklearn.cluster import KMeans  # half a second that most commands need not spend

    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise IndexingError(f"The item vector in row {row} is not finite; all must be.")
    residual = np.asarray(vectors, np.float64)
    codes = np.empty((len(vectors), levels), np.int64)
    distances = np.zeros((len(vectors), codebook_size))
    for level in range(levels):
        clusters = min(codebook_size, len(np.unique(residual.round(9), axis=0)))
        kmeans = KMeans(clusters, n_init=1, random_state=seed + level).fit(residual)
        codes[:, level] = kmeans.labels_
        distances[:] = np.finfo(np.float64).max / 2
        distances[:, :clusters] = kmeans.transform(residual)
        residual = residual - kmeans.cluster_centers_[kmeans.labels_]
    return codes, distances
