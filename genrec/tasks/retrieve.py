"""The past behaviours of a user that are most like an item: the Long-Short Modality Retriever of RecLoRA and ReLLa.

Relevance is that of texts: item vectors of an encoder, reduced by PCA. The same retriever serves the long histories that a click
model reads and the short ones of a prompt; only k differs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec.core.errors import DataError
from genrec.data_prep import ItemCatalog
from genrec.indexing import IndexSettings
from genrec.indexing.encoders import text_vectors
from genrec.tasks.settings import RetrieveSettings
from genrec.tasks.source import Source

# Scores of targets against the catalogue, or against one history's items, that are held at once.
_SCORES_AT_ONCE = 2**25


class Retriever:
    """The k behaviours of each history that are most like a target.

    Of equal scores the later behaviour comes first, so that an item taken several times is taken from its last time on.

    Attributes:
        vectors: ``(items, width)`` float32, reduced and, for cosine, of length 1.
        order: ``"time"``: what was found, oldest first; ``"relevance"``: most like the target first.

    Args:
        vectors: ``(items, width)`` of the items, by their number in the samples' book.
        dimensions: Of the PCA, fitted on these vectors; None, or no fewer than there are, leaves them as they are.
        similarity: ``"cosine"`` or ``"inner"``.
        order: As the attribute.

    Raises:
        DataError: If a vector is not finite.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        dimensions: int | None = None,
        similarity: str = "cosine",
        order: str = "time",
    ) -> None:
        vectors = np.asarray(vectors, np.float32)
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
            raise DataError(f"The text vector of item {row} is not finite; all must be.")
        if dimensions is not None and dimensions < min(vectors.shape):
            from sklearn.decomposition import PCA

            vectors = PCA(dimensions, svd_solver="full").fit_transform(vectors).astype(np.float32)
        if similarity == "cosine":
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        self.vectors, self.order = np.ascontiguousarray(vectors), order

    @classmethod
    def of_catalog(cls, items: ItemCatalog, settings: RetrieveSettings) -> Retriever:
        """Returns the retriever over the texts of a catalogue, which comes in the order of the samples' book.

        Args:
            items: The catalogue.
            settings: Encoder, dimensions, similarity and order.
        """
        index = IndexSettings(text_encoder=settings.encoder, vector_size=settings.dimensions or 512)
        vectors, _ = text_vectors(items, index)
        return cls(vectors, settings.dimensions, settings.similarity, settings.order)

    def find(self, histories: Sequence[np.ndarray], targets: np.ndarray, k: int) -> np.ndarray:
        """Returns ``(histories, k)`` places in each history, -1 behind where it has fewer.

        Args:
            histories: Item numbers, oldest first.
            targets: ``(histories,)`` item numbers.
            k: Behaviours wanted, at least 1.
        """
        found = np.full((len(histories), k), -1, np.int64)
        long = [row for row, each in enumerate(histories) if len(each) > k or self.order == "relevance"]
        for row, each in enumerate(histories):
            if len(each) <= k:
                found[row, : len(each)] = np.arange(len(each))
        total = sum(len(histories[row]) for row in long)
        # One product with the whole catalogue where histories are long beside it, else one with the items of each.
        dense = len(self.vectors) <= 4 * total / max(1, len(long))
        size = max(1, _SCORES_AT_ONCE // len(self.vectors))
        for first in range(0, len(long), size):
            part = long[first : first + size]
            scores = self.vectors[targets[part]] @ self.vectors.T if dense else None
            for number, row in enumerate(part):
                history = histories[row]
                if scores is not None:
                    own = scores[number, history]
                else:
                    # Of an item taken twice both scores are one number, whatever the order of a product's sums.
                    items, which = np.unique(history, return_inverse=True)
                    own = (self.vectors[items] @ self.vectors[targets[row]])[which]
                chosen = _best(own, k, self.order == "relevance")
                found[row, : len(chosen)] = chosen
        return found

    def rows(self, source: Source, places: np.ndarray, k: int, items: np.ndarray | None = None) -> np.ndarray:
        """Returns ``(samples, k)`` rows of a source, strictly before each sample's time, -1 behind where there are fewer.

        Args:
            source: Whose rows.
            places: ``(samples,)`` rows at whose time is asked.
            k: Behaviours wanted.
            items: ``(samples,)`` numbers of the items that are asked for; default are those at the places.
        """
        places = np.asarray(places, np.int64)
        users = np.searchsorted(source.start, places, "right") - 1
        first = source.start[users]
        last = [source.before(place) for place in places.tolist()]
        histories = [source.item[a:b] for a, b in zip(first.tolist(), last, strict=True)]
        found = self.find(histories, source.item[places] if items is None else items, k)
        return np.where(found >= 0, found + first[:, None], -1)


def _best(scores: np.ndarray, k: int, by_score: bool) -> np.ndarray:
    """Returns the places of the k best scores, of equal ones the last, in order of place or of score."""
    if len(scores) > k:
        border = np.partition(scores, len(scores) - k)[len(scores) - k]
        above = np.flatnonzero(scores > border)
        equal = np.flatnonzero(scores == border)[len(above) - k :]
        chosen = np.sort(np.concatenate([above, equal]))
    else:
        chosen = np.arange(len(scores))
    if not by_score:
        return chosen
    return chosen[np.lexsort((-chosen, -scores[chosen]))]
