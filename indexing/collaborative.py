"""Collaborative identifiers: the path of an item in a tree of clusters of items taken by the same users."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genrec.core.errors import IndexingError
from genrec.data_prep import ItemCatalog, ItemId
from genrec.indexing.codes import Code, count_symbols, spell_symbols
from genrec.indexing.index import ItemIndex
from genrec.indexing.indexer import Indexer, IndexInputs
from genrec.indexing.settings import IndexSettings
from genrec.indexing.vectors import interactions

UNSEEN = "unseen"
MAX_DEPTH = 8  # Hua et al. nest as many loops
RESTARTS = 1000  # of the eigen-solver; splits of real and planted histories need some dozens


@dataclass
class _Cluster:
    """A node of the tree: its items as rows of the catalogue, its parts, and its path of symbols."""

    rows: np.ndarray
    parts: list[_Cluster] = field(default_factory=list)
    path: tuple[str, ...] = ()


class Collaborative(Indexer):
    """A token for each cluster on the way down, then a count inside the last one.

    Items are the nodes of a graph whose edges weigh how often one training history has both. It is split into
    ``settings.branching`` parts by normalised spectral clustering, and every part of more than
    ``settings.leaf_size`` items is split again. ``settings.cluster_tokens=path`` names every cluster by a token of
    its own; ``shared`` deals out ``leaf_size`` tokens in turn, breadth first.

    Items without a training interaction, and new items, are a part of the root, ``unseen``, and are counted there:
    in random order, and as they come. Parts of the graph that no history joins are never mixed by the spectrum:
    the largest is clustered, the others are put together whole, and those too small to be split fill parts of
    near equal size. A cluster that comes back undivided, or lies 8 deep, is cut by position along its second
    eigenvector, so that recursion ends. Where the eigen-solver does not find all eigenvectors, the cluster has as many
    parts as it found.

    Source: CID in Hua et al., "How to Index Item IDs", SIGIR-AP 2023, and its public code; ``shared`` as in OpenP5.
    Differs in memory: the graph is never written out (Hua et al. hold a dense matrix, 80 GB at 100,000 items), as
    its product with a vector is two sparse products; in the treatment of disconnected parts; and in the unseen
    items, which get a leaf token each without a cluster there.
    """

    def build(self, inputs: IndexInputs) -> ItemIndex:
        """Returns the index of every item of the catalogue.

        Raises:
            IndexingError: If ``cluster_tokens`` is shared and two parts of one cluster could get one token.
        """
        items, settings = inputs.items, inputs.settings
        if settings.cluster_tokens == "shared" and settings.branching > settings.leaf_size:
            raise IndexingError(
                f"index.cluster_tokens=shared deals out index.leaf_size={settings.leaf_size} tokens in turn, fewer "
                f"than the index.branching={settings.branching} parts of a cluster. Raise leaf_size."
            )
        taken = _taken(inputs)
        seen = np.flatnonzero(np.asarray(taken.sum(0)).ravel())
        unseen = np.setdiff1d(np.arange(len(items)), seen)
        np.random.default_rng(settings.seed).shuffle(unseen)
        leaves = _leaves(_tree(taken, seen, settings), settings)
        if len(unseen):
            leaves.append(_Cluster(unseen, path=(UNSEEN,)))
        codes: list[Code] = [()] * len(items)
        for leaf in leaves:
            rows = [(*leaf.path, *count_symbols(n, settings.leaf_size + 1)) for n in range(len(leaf.rows))]
            for row, code in zip(leaf.rows.tolist(), spell_symbols(rows), strict=True):
                codes[row] = code
        report = {"num_clusters": len(leaves), "num_unseen": len(unseen)}
        return ItemIndex(
            "collaborative", dict(zip(items.item_ids, codes, strict=True)), report, settings=settings
        )

    def extend(self, index: ItemIndex, items: ItemCatalog) -> dict[ItemId, Code]:
        """Returns counts in the part of unseen items."""
        settings = index.settings
        assert settings is not None
        used = set(index.codes.values())
        codes: list[Code] = []
        count = 0
        while len(codes) < len(items):
            (code,) = spell_symbols([(UNSEEN, *count_symbols(count, settings.leaf_size + 1))])
            count += 1
            if code not in used:
                codes.append(code)
        return dict(zip(items.item_ids, codes, strict=True))


def _taken(inputs: IndexInputs) -> Any:
    """Returns how often each user took each item in training, sparse ``(users, items)``."""
    from scipy.sparse import coo_matrix

    owner, flat = interactions(inputs.items, inputs.train)
    return coo_matrix(
        (np.ones(len(flat)), (owner, flat)), (max(1, len(inputs.train)), len(inputs.items))
    ).tocsc()


def _tree(taken: Any, rows: np.ndarray, settings: IndexSettings) -> _Cluster:
    root = _Cluster(rows)
    waiting = deque([(root, 0)])
    while waiting:
        cluster, depth = waiting.popleft()
        if len(cluster.rows) > settings.leaf_size:
            cluster.parts = [_Cluster(part) for part in _split(taken, cluster.rows, depth, settings)]
            waiting.extend((part, depth + 1) for part in cluster.parts)
    return root


def _leaves(root: _Cluster, settings: IndexSettings) -> list[_Cluster]:
    """Names every cluster, breadth first, and returns those without parts."""
    leaves = []
    number, waiting = 0, deque([root])
    while waiting:
        cluster = waiting.popleft()
        if not cluster.parts and len(cluster.rows):
            leaves.append(cluster)
        for part in cluster.parts:
            symbol = number if settings.cluster_tokens == "path" else number % settings.leaf_size
            part.path = (*cluster.path, str(symbol))
            number += 1
            waiting.append(part)
    return leaves


def _split(taken: Any, rows: np.ndarray, depth: int, settings: IndexSettings) -> list[np.ndarray]:
    """Returns at most ``branching`` parts of a cluster, each smaller than it."""
    parts, of = settings.branching, taken[:, rows].tocsr()
    of = of[np.diff(of.indptr) > 1]  # users of one item here join nothing
    components = _components(of)
    largest = np.flatnonzero(components == 0)
    if len(largest) <= settings.leaf_size:
        return [rows[part] for part in _packed(components, parts)]
    rest = np.flatnonzero(components > 0)
    wanted = parts - (len(rest) > 0)
    if wanted < 2:
        return [rows[largest], rows[rest]]
    inside = of[:, largest].tocsr() if len(rest) else of
    labels = _spectral_clusters(inside, wanted, settings.seed, by_position=depth >= MAX_DEPTH)
    found = [largest[labels == label] for label in range(wanted)] + [rest]
    return [rows[part] for part in found if len(part)]


def _components(of: Any) -> np.ndarray:
    """Returns the connected part of each item, ``(items,)``, numbered from the largest down."""
    from scipy.sparse import bmat
    from scipy.sparse.csgraph import connected_components

    graph = bmat([[None, of], [of.T, None]], format="csr")
    _, label = connected_components(graph, directed=False)
    label = label[of.shape[0] :]
    names, number, count = np.unique(label, return_inverse=True, return_counts=True)
    place = np.empty(len(names), np.int64)
    place[np.argsort(-count, kind="stable")] = np.arange(len(names))
    return place[number]


def _packed(components: np.ndarray, parts: int) -> list[np.ndarray]:
    """Returns ``parts`` groups of near equal size, connected parts kept whole (the largest first, each to the least)."""
    order = np.argsort(components, kind="stable")
    starts = np.flatnonzero(np.diff(components[order], prepend=-1))
    groups: list[list[np.ndarray]] = [[] for _ in range(parts)]
    sizes = np.zeros(parts, np.int64)
    for component in np.split(order, starts[1:]):
        least = int(np.argmin(sizes))
        groups[least].append(component)
        sizes[least] += len(component)
    return [np.sort(np.concatenate(group)) for group in groups if group]


def _spectral_clusters(of: Any, parts: int, seed: int, by_position: bool) -> np.ndarray:
    """Returns a label below ``parts`` for each item of a connected graph, ``(items,)``; at least two labels occur.

    Fewer than ``parts`` labels occur where the eigen-solver found fewer eigenvectors.

    The normalised Laplacian's lowest eigenvectors (Ng, Jordan and Weiss, NIPS 2001), divided by the roots of the
    degrees, then assigned by pivoted QR (Damle, Minden and Ying, 2019), as scikit-learn's SpectralClustering with
    ``assign_labels="cluster_qr"`` does on the dense matrix.

    Args:
        of: ``(users, items)`` sparse counts; two items are joined by the sum of their products.
        parts: Clusters.
        seed: Of the eigen-solver's start.
        by_position: Cut along the second eigenvector into equal parts instead.
    """
    from scipy.linalg import qr, svd
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

    n = of.shape[1]
    transposed = of.T.tocsr()
    own = np.asarray(of.multiply(of).sum(0)).ravel()
    degree = transposed @ np.asarray(of.sum(1)).ravel() - own
    root = np.sqrt(degree)

    def times(vector: np.ndarray) -> np.ndarray:
        scaled = vector.ravel() / root
        return (transposed @ (of @ scaled) - own * scaled) / root

    wanted = 2 if by_position else parts
    if wanted < n - 1:
        start = np.random.default_rng(seed).normal(size=n)
        operator = LinearOperator((n, n), matvec=times, dtype=np.float64)
        try:
            values, vectors = eigsh(operator, k=wanted, which="LA", v0=start, tol=1e-6, maxiter=RESTARTS)
        except ArpackNoConvergence as error:
            values, vectors = error.eigenvalues, error.eigenvectors
        except ArpackError:  # such as no factorisation from this start
            values, vectors = np.empty(0), np.empty((n, 0))
    else:  # ARPACK needs fewer eigenvectors than items
        values, vectors = np.linalg.eigh(np.column_stack([times(column) for column in np.eye(n)]))
    maps = vectors[:, np.argsort(-values, kind="stable")[:wanted]] / root[:, None]
    found = maps.shape[1]
    if not by_position and n > found > 1:
        _, _, pivots = qr(maps.T, pivoting=True)
        left, _, right = svd(maps[pivots[:found]].T)
        labels = np.abs(maps @ (left @ right)).argmax(1)
        if len(np.unique(labels)) > 1:
            return labels
    # The first eigenvector divided by the root is constant. Where there is no second one, popular items come first.
    along = maps[:, 1] if found > 1 else -degree
    labels = np.empty(n, np.int64)
    labels[np.argsort(along, kind="stable")] = np.arange(n) * parts // n
    return labels
