"""Item vectors without a language model: from training co-occurrence and from words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genrec.data_prep import ItemCatalog, ItemId, UserId
from genrec.indexing.settings import IndexSettings


def collaborative_vectors(
    items: ItemCatalog, train: Mapping[UserId, Sequence[ItemId]], size: int, window: int, seed: int
) -> np.ndarray:
    """Returns ``(items, size)`` vectors from which items occur near each other in training histories.

    Truncated SVD of the positive pointwise mutual information of co-occurrence within ``window`` places,
    rows scaled by the square roots of the singular values (Levy and Goldberg, NeurIPS 2014). An item
    without training interactions gets the zero vector.
    """
    from scipy.sparse import coo_matrix, csr_matrix

    position = {item: row for row, item in enumerate(items.item_ids)}
    flat = np.array([position[i] for h in train.values() for i in h if i in position], np.int64)
    owner = np.repeat(
        np.arange(len(train)), [sum(i in position for i in history) for history in train.values()]
    )
    rows, columns = [], []
    for gap in range(1, window + 1):
        same = owner[gap:] == owner[:-gap]
        rows.append(flat[:-gap][same])
        columns.append(flat[gap:][same])
    row, column = np.concatenate(rows), np.concatenate(columns)
    shape = (len(items), len(items))
    counts = coo_matrix((np.ones(len(row)), (row, column)), shape).tocsr()
    counts = (counts + counts.T).tocoo()
    totals = np.asarray(counts.sum(1)).ravel()
    with np.errstate(divide="ignore"):
        pmi = np.log(counts.data * totals.sum() / (totals[counts.row] * totals[counts.col]))
    keep = pmi > 0
    return _svd(csr_matrix((pmi[keep], (counts.row[keep], counts.col[keep])), shape), size, seed)


def text_vectors(items: ItemCatalog, size: int, seed: int) -> np.ndarray:
    """Returns ``(items, size)`` vectors of title, category and brand words.

    Latent semantic analysis: truncated SVD of TF-IDF weights (Deerwester et al., 1990). Items whose
    text has no word get the zero vector.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        weights = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True).fit_transform(
            items.texts()
        )
    except ValueError:  # no word in any text
        return np.zeros((len(items), size))
    return _svd(weights, size, seed)


def item_vectors(
    kind: str, items: ItemCatalog, train: Mapping[UserId, Sequence[ItemId]], settings: IndexSettings
) -> np.ndarray:
    """Returns the vectors that ``kind`` names: ``"collaborative"``, ``"text"`` or ``"both"``.

    Each kind is scaled to mean square length 1 before the two are put side by side.
    """
    parts = []
    if kind in ("collaborative", "both"):
        parts.append(
            collaborative_vectors(items, train, settings.vector_size, settings.window, settings.seed)
        )
    if kind in ("text", "both"):
        parts.append(text_vectors(items, settings.vector_size, settings.seed))
    scales = [np.sqrt((part**2).sum(1).mean()) or 1.0 for part in parts]
    return np.hstack([part / scale for part, scale in zip(parts, scales, strict=True)])


def _svd(matrix: Any, size: int, seed: int) -> np.ndarray:
    from sklearn.utils.extmath import randomized_svd

    rank = min(size, min(matrix.shape))
    vectors = np.zeros((matrix.shape[0], size))
    if matrix.nnz:
        left, values, _ = randomized_svd(matrix, rank, random_state=seed)
        vectors[:, :rank] = left * np.sqrt(values)
    return vectors
