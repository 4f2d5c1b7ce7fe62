"""Item vectors: who takes an item, what it is called, and both in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genrec.core.errors import IndexingError, require
from genrec.data_prep import ItemCatalog, ItemId, UserId
from genrec.indexing.encoders import State, new_text_vectors, text_vectors
from genrec.indexing.indexer import IndexInputs
from genrec.indexing.settings import IndexSettings


def item_vectors(inputs: IndexInputs) -> tuple[np.ndarray, State]:
    """Returns ``(items, width)`` float32 vectors as ``settings.vectors`` asks for them, and what new items need.

    Both kinds are scaled to mean square length 1 before they are put side by side, or mapped into one space
    (``_align``). An item without training interactions has a collaborative part of 0.

    Raises:
        IndexingError: If a vector is not finite, or a sequence recommender's vectors are asked for and missing.
    """
    settings = inputs.settings
    parts: dict[str, np.ndarray] = {}
    state: State = {}
    if settings.vectors in ("collaborative", "both"):
        parts["collaborative"] = collaborative_vectors(inputs)
        _check_finite(parts["collaborative"], "collaborative vector", inputs.items)
    if settings.vectors in ("text", "both"):
        parts["text"], state = text_vectors(inputs.items, settings)
        _check_finite(parts["text"], "text vector", inputs.items)
    for kind, values in parts.items():
        scale = _root_mean_square(values)
        parts[kind] = np.divide(values, scale, dtype=np.float32, casting="same_kind")
        state[f"{kind}_scale"] = np.array(scale)
        state[f"{kind}_width"] = np.array(values.shape[1])
    if len(parts) == 2 and settings.fusion == "aligned":
        maps = _align(parts["text"], parts["collaborative"], settings.vector_size, settings.seed)
        state["text_map"], state["collaborative_map"] = maps
        return _aligned(parts["text"], parts["collaborative"], *maps), state
    return _side_by_side(*parts.values()), state


def new_item_vectors(items: ItemCatalog, settings: IndexSettings, state: State) -> np.ndarray:
    """Returns ``(items, width)`` float32 vectors of items that came later, from their text alone.

    Raises:
        IndexingError: If the vectors of the index have no text in them.
    """
    if "text_scale" not in state:
        raise IndexingError(
            "The codes were made of collaborative vectors only, which new items do not have. Build an index with "
            "index.vectors=both or text to be able to extend it."
        )
    values = new_text_vectors(items, settings, state)
    text = np.divide(values, float(state["text_scale"]), dtype=np.float32, casting="same_kind")
    _check_finite(text, "text vector", items)
    if "collaborative_scale" not in state:
        return text
    nothing = np.zeros((len(items), int(state["collaborative_width"])), np.float32)
    if "text_map" in state:
        return _aligned(text, nothing, state["text_map"], state["collaborative_map"])
    return _side_by_side(nothing, text)


def _root_mean_square(vectors: np.ndarray) -> float:
    """Returns the root of the mean squared length, 1 where all are zero; float64 of some thousand rows at once."""
    total = sum(
        float((vectors[first : first + 4096].astype(np.float64) ** 2).sum())
        for first in range(0, len(vectors), 4096)
    )
    return (total / max(1, len(vectors))) ** 0.5 or 1.0


def _side_by_side(*parts: np.ndarray) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.hstack(parts)


def collaborative_vectors(inputs: IndexInputs) -> np.ndarray:
    """Returns ``(items, width)`` vectors of who takes an item, of the kind that the settings name.

    Raises:
        IndexingError: If a sequence recommender's vectors are asked for and missing, or of other items.
    """
    settings = inputs.settings
    if settings.collaborative_vectors == "cooccurrence":
        counts = cooccurrence(inputs.items, inputs.train, settings.window)
        return cooccurrence_vectors(counts, settings.vector_size, settings.seed)
    if settings.collaborative_vectors == "propagation":
        return propagation_vectors(inputs.items, inputs.train, settings.vector_size, settings.seed)
    if inputs.collaborative is None:
        raise IndexingError(
            f"index.collaborative_vectors={settings.collaborative_vectors} takes the item vectors of a trained "
            "sequence recommender: give them as build_index(..., collaborative=...), as 'genrec index' does."
        )
    if len(inputs.collaborative) != len(inputs.items):
        raise IndexingError(
            f"The collaborative vectors have {len(inputs.collaborative):,} rows for {len(inputs.items):,} items."
        )
    return np.asarray(inputs.collaborative)


def interactions(
    items: ItemCatalog, train: Mapping[UserId, Sequence[ItemId]]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns users and items of all training interactions as numbers, in the order of the histories."""
    position = {item: row for row, item in enumerate(items.item_ids)}
    flat = np.array([position[i] for h in train.values() for i in h if i in position], np.int64)
    lengths = [sum(i in position for i in history) for history in train.values()]
    return np.repeat(np.arange(len(train)), lengths), flat


def cooccurrence(items: ItemCatalog, train: Mapping[UserId, Sequence[ItemId]], window: int) -> Any:
    """Returns how often two items stand at most ``window`` places apart in a history.

    A sparse symmetric matrix ``(items, items)``; an item beside itself counts on the diagonal.
    """
    from scipy.sparse import coo_matrix

    owner, flat = interactions(items, train)
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for gap in range(1, window + 1):
        same = owner[gap:] == owner[:-gap]
        rows.append(flat[:-gap][same])
        columns.append(flat[gap:][same])
    row, column = np.concatenate(rows), np.concatenate(columns)
    counts = coo_matrix((np.ones(len(row)), (row, column)), (len(items), len(items))).tocsr()
    return counts + counts.T


def cooccurrence_vectors(counts: Any, size: int, seed: int) -> np.ndarray:
    """Returns ``(items, size)`` vectors from which items occur near each other.

    Truncated SVD of the positive pointwise mutual information of co-occurrence, rows scaled by the square roots
    of the singular values (Levy and Goldberg, NeurIPS 2014). An item without training interactions gets the zero
    vector.

    Args:
        counts: What ``cooccurrence`` returns.
        size: Width.
        seed: Of the randomised SVD.
    """
    from scipy.sparse import csr_matrix

    counts = counts.tocoo()
    totals = np.asarray(counts.sum(1)).ravel()
    pmi = np.log(counts.data * totals.sum() / (totals[counts.row] * totals[counts.col]))
    keep = pmi > 0
    left, values = _svd(
        csr_matrix((pmi[keep], (counts.row[keep], counts.col[keep])), counts.shape), size, seed
    )
    return left * np.sqrt(values)


def propagation_vectors(
    items: ItemCatalog, train: Mapping[UserId, Sequence[ItemId]], size: int, seed: int, layers: int = 3
) -> np.ndarray:
    """Returns ``(items, size)`` vectors smoothed over the graph of users and items, without training.

    LightGCN (He et al., SIGIR 2020) averages what 0 to ``layers`` steps over the normalised adjacency give. On
    the right singular vectors V of D_u^-1/2 R D_i^-1/2 two steps are a multiplication by the squared singular
    value s^2, so that the average is V times mean(s^0, s^2, ..., s^(2 layers)) (as Peng et al., SVD-GCN, CIKM
    2022, rewrite it); the vectors start from V s. An item without training interactions gets the zero vector.
    """
    from scipy.sparse import coo_matrix, diags

    owner, flat = interactions(items, train)
    taken = coo_matrix((np.ones(len(flat)), (owner, flat)), (max(1, len(train)), len(items))).tocsr()
    taken.data[:] = 1.0

    def inverse_root(degrees: np.ndarray) -> Any:
        return diags(1 / np.sqrt(np.maximum(degrees, 1.0)))

    users, columns = np.asarray(taken.sum(1)).ravel(), np.asarray(taken.sum(0)).ravel()
    normalised = inverse_root(users) @ taken @ inverse_root(columns)
    left, values = _svd(normalised.T.tocsr(), size, seed)
    return left * values * np.mean([values ** (2 * layer) for layer in range(layers + 1)], axis=0)


def _svd(matrix: Any, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns left singular vectors ``(rows, size)`` and values ``(size,)``, zeros where the rank is lower."""
    from sklearn.utils.extmath import randomized_svd

    rank = min(size, *matrix.shape)
    vectors, values = np.zeros((matrix.shape[0], size)), np.zeros(size)
    if matrix.nnz:
        vectors[:, :rank], values[:rank], _ = randomized_svd(matrix, rank, random_state=seed)
    return vectors, values


def _align(
    text: np.ndarray, collaborative: np.ndarray, size: int, seed: int, steps: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """Returns linear maps ``(width, size)`` of both kinds into one space, where an item's two vectors meet.

    Trained by the symmetric contrastive loss of CLIP (Radford et al., ICML 2021) over items that have both, in
    batches of 512 at temperature .07.
    """
    torch = require("torch", "train")
    known = np.flatnonzero((collaborative != 0).any(1) & (text != 0).any(1))
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.tensor(values, dtype=torch.float32) for values in (text, collaborative)]
    maps = [
        (torch.randn(side.shape[1], size, generator=generator) / side.shape[1] ** 0.5).requires_grad_()
        for side in sides
    ]
    if len(known) > 1:
        rows = torch.from_numpy(known)
        optimizer = torch.optim.Adam(maps, lr=1e-2)
        for _ in range(steps):
            batch = rows[torch.randperm(len(rows), generator=generator)[:512]]
            a, b = (
                torch.nn.functional.normalize(side[batch] @ weight, dim=1)
                for side, weight in zip(sides, maps, strict=True)
            )
            scores, here = a @ b.T / 0.07, torch.arange(len(batch))
            cross_entropy = torch.nn.functional.cross_entropy
            loss = (cross_entropy(scores, here) + cross_entropy(scores.T, here)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    text_map, collaborative_map = (weight.detach().numpy().astype(np.float64) for weight in maps)
    return text_map, collaborative_map


def _aligned(
    text: np.ndarray, collaborative: np.ndarray, text_map: np.ndarray, collaborative_map: np.ndarray
) -> np.ndarray:
    """Returns the mean of both unit vectors in the common space, float32; of an item with one kind only that one."""

    def unit(values: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(values, axis=1, keepdims=True)
        return np.divide(values, length, out=np.zeros_like(values), where=length > 0)

    a, b = unit(text @ text_map), unit(collaborative @ collaborative_map)
    kinds = (a != 0).any(1).astype(float) + (b != 0).any(1)
    return ((a + b) / np.maximum(kinds, 1)[:, None]).astype(np.float32)


def all_finite(vectors: np.ndarray) -> bool:
    """Returns whether every number is finite, without an array of the vectors' size."""
    return bool(np.isfinite([vectors.min(initial=0), vectors.max(initial=0)]).all())


def _check_finite(vectors: np.ndarray, what: str, items: ItemCatalog) -> None:
    if not all_finite(vectors):
        bad = np.flatnonzero(~np.isfinite(vectors).all(1))
        raise IndexingError(
            f"{len(bad):,} items have a {what} that is not finite, first {items.item_ids[bad[0]]!r} (row {bad[0]}); "
            "all must be."
        )
