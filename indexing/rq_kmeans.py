"""Residual k-means: identifiers whose first tokens say what kind of item it is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from genrec.core.errors import IndexingError
from genrec.data_prep import ItemCatalog, ItemId
from genrec.indexing.codes import Code
from genrec.indexing.collisions import Distances, settle
from genrec.indexing.index import ItemIndex
from genrec.indexing.indexer import Indexer, IndexInputs
from genrec.indexing.quality import group_sums
from genrec.indexing.settings import IndexSettings
from genrec.indexing.sinkhorn import balanced
from genrec.indexing.vectors import all_finite, item_vectors, new_item_vectors

SAMPLE_PER_CENTROID = 512  # where more items than this are there for each, k-means is fitted on a sample
STARTS_PER_CENTROID = (
    64  # its starts are chosen from a sample of that, which takes longer than all turns else
)
TURNS = (
    50  # at most; 131,072 x 384 converged after 36 to 106, the sum of squares then within .01 % of the end
)
ROWS_AT_ONCE = 65_536
BALANCED_TURNS = 20


class RQKMeans(Indexer):
    """``levels`` tokens by k-means on item vectors, then on what it left over.

    R_1 = X; the code at level l is the nearest centroid of k-means on R_l; R_(l+1) = R_l - centroid. With
    ``settings.balanced`` every cluster of a level has n/K items, rounded down or up, and an item's code is its
    cluster. Equal codes are settled by the collision policy. New items take the nearest centroids, and then the
    policy among the codes that are there.

    Source: RQ-KMeans of OneRec (arXiv 2502.18965) and of MiniOneRec (arXiv 2510.24431), whose balanced version
    solves min-cost flow. Differs in fitting on a sample of at most 512 items a centroid, and in the policies.
    """

    has_codebooks = True

    def build(self, inputs: IndexInputs) -> ItemIndex:
        """Returns the index of every item of the catalogue.

        Raises:
            IndexingError: If a vector is not finite, or the policy cannot settle the collisions.
        """
        settings = inputs.settings
        vectors, state = item_vectors(inputs)
        codes, centroids = quantize(
            vectors, settings.levels, settings.codebook_size, settings.seed, settings.balanced
        )
        distances = level_distances(vectors, codes, centroids)
        settled = settle(settings.collisions, codes, distances, settings.codebook_size)
        state |= {f"centroids_{level}": values.astype(np.float32) for level, values in enumerate(centroids)}
        return ItemIndex(
            "rq_kmeans",
            dict(zip(inputs.items.item_ids, settled.codes, strict=True)),
            settled.report(settings.collisions, codes),
            settings,
            state,
            shared=settings.collisions == "allow",
        )

    def takes_collaborative(self, settings: IndexSettings) -> bool:
        """Returns whether collaborative vectors are quantised."""
        return settings.vectors != "text"

    def extend(self, index: ItemIndex, items: ItemCatalog) -> dict[ItemId, Code]:
        """Returns the codes of the nearest centroids, settled among the codes that are there."""
        settings = index.settings
        assert settings is not None
        vectors = new_item_vectors(items, settings, index.state)
        centroids = [index.state[f"centroids_{level}"] for level in range(settings.levels)]
        codes = assign(vectors, centroids)
        distances = level_distances(vectors, codes, centroids)
        settled = settle(settings.collisions, codes, distances, settings.codebook_size, index.codes)
        return dict(zip(items.item_ids, settled.codes, strict=True))


def quantize(
    vectors: np.ndarray, levels: int, codebook_size: int, seed: int, equal_sizes: bool = False
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns residual k-means codes ``(items, levels)`` and each level's centroids, ``(at most codebook_size, width)``.

    Args:
        vectors: ``(items, width)``.
        levels: Number of levels.
        codebook_size: Centroids at a level; as many as items where there are fewer items.
        seed: Seed of the k-means starts.
        equal_sizes: Whether clusters have equal sizes.

    Raises:
        IndexingError: If a vector is not finite.
    """
    if not all_finite(vectors):
        row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise IndexingError(f"The item vector in row {row} is not finite; all must be.")
    residual = np.array(vectors, np.float32)
    codes = np.empty((len(vectors), levels), np.int64)
    centroids = []
    for level in range(levels):
        if equal_sizes:
            values, codes[:, level] = _balance(residual, _fit(residual, codebook_size, seed + level))
        else:
            values = _fit(residual, codebook_size, seed + level)
            codes[:, level] = nearest(residual, values)
        _subtract(residual, values, codes[:, level])
        centroids.append(values)
    return codes, centroids


def balanced_kmeans(vectors: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Returns a cluster of each vector, ``(items,)``, every cluster with n/K items, rounded down or up."""
    return _balance(vectors, _fit(vectors, clusters, seed))[1]


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns the row of the nearest centroid of each vector, the first of equals, ``(items,)``."""
    codes = np.empty(len(vectors), np.int64)
    for first in range(0, len(vectors), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        codes[part] = squared_distances(vectors[part], centroids).argmin(1)
    return codes


def squared_distances(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns squared Euclidean distances ``(items, centroids)``, less each vector's own squared length."""
    return (centroids**2).sum(1) - 2 * (vectors @ centroids.T)


def _fit(residual: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans, kmeans_plusplus  # half a second that most commands need not spend
    from sklearn.exceptions import ConvergenceWarning

    rng = np.random.default_rng(seed)
    rows = residual
    if len(rows) > clusters * SAMPLE_PER_CENTROID:
        rows = rows[np.sort(rng.choice(len(rows), clusters * SAMPLE_PER_CENTROID, replace=False))]
    starts: Any = "k-means++"
    if len(rows) > clusters * STARTS_PER_CENTROID:
        few = rows[rng.choice(len(rows), clusters * STARTS_PER_CENTROID, replace=False)]
        starts, _ = kmeans_plusplus(few, clusters, random_state=seed)
    with warnings.catch_warnings():
        # Fewer distinct rows than clusters give equal centroids, of which the first is taken.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # It may take the mean off a sample in place, which is ours alone.
        kmeans = KMeans(
            min(clusters, len(rows)),
            init=starts,
            n_init=1,
            max_iter=TURNS,
            random_state=seed,
            copy_x=rows is residual,
        )
        return kmeans.fit(rows).cluster_centers_


def _balance(residual: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns centroids and codes after turns of balanced assignment and means, from the given centroids on."""
    codes = None
    for _ in range(BALANCED_TURNS):
        found = balanced(squared_distances(residual, centroids) + (residual**2).sum(1, keepdims=True))
        if codes is not None and np.array_equal(found, codes):
            break
        codes = found
        count = np.bincount(codes, minlength=len(centroids))
        sums = group_sums(residual, codes, len(centroids))
        used = count > 0
        centroids = centroids.copy()
        centroids[used] = sums[used] / count[used, None]
    assert codes is not None
    return centroids, codes


def level_distances(
    vectors: np.ndarray, codes: np.ndarray, centroids: Sequence[np.ndarray] | np.ndarray
) -> Distances:
    """Returns what gives the squared distances of items, after the levels before, to a level's centroids."""

    def distances(rows: np.ndarray, level: int) -> np.ndarray:
        residual = np.array(vectors[rows], np.float32)
        for earlier in range(level):
            residual -= centroids[earlier][codes[rows, earlier]]
        own = (residual**2).sum(1, keepdims=True)
        return (squared_distances(residual, centroids[level]) + own).astype(np.float64)

    return distances


def assign(vectors: np.ndarray, centroids: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Returns the residual codes ``(items, levels)`` of vectors by the nearest centroids."""
    codes, residual = np.empty((len(vectors), len(centroids)), np.int64), np.array(vectors, np.float32)
    for level, values in enumerate(centroids):
        codes[:, level] = nearest(residual, values)
        _subtract(residual, values, codes[:, level])
    return codes


def _subtract(residual: np.ndarray, centroids: np.ndarray, codes: np.ndarray) -> None:
    """Takes each row's centroid off it, in place, some thousand rows at once."""
    for first in range(0, len(residual), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        residual[part] -= centroids[codes[part]]
