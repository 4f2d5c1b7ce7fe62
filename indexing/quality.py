"""How good an index is, without a language model: how codes are used, and whether near items share them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genrec.data_prep import ItemCatalog, ItemId, UserId
from genrec.indexing.codes import Code


def code_quality(codes: Sequence[Code]) -> dict[str, Any]:
    """Returns counts of an index: lengths, collisions, and for each level its tokens, entropy and perplexity.

    ``collision_rate`` is 1 - distinct codes / items; entropies are in nats over items that have the level,
    perplexity is their exponential, and ``prefixes`` counts distinct beginnings of that length.

    Args:
        codes: One for each item.
    """
    levels = []
    longest = max(map(len, codes))
    for level in range(longest):
        used = Counter(code[level] for code in codes if len(code) > level)
        total = used.total()
        entropy = sum(n / total * math.log(total / n) for n in used.values())
        levels.append(
            {
                "tokens": len(used),
                "entropy": entropy,
                "perplexity": math.exp(entropy),
                "largest": max(used.values()),
                "prefixes": len({code[: level + 1] for code in codes if len(code) > level}),
            }
        )
    lengths = [len(code) for code in codes]
    shared = Counter(codes)
    return {
        "num_items": len(codes),
        "num_tokens": sum(level["tokens"] for level in levels),
        "mean_length": sum(lengths) / len(lengths),
        "max_length": longest,
        "collision_rate": 1 - len(shared) / len(codes),
        "max_items_per_code": max(shared.values()),
        "levels": levels,
    }


def finite(value: float) -> float | None:
    """Returns a figure as JSON has it: None for one that is not defined."""
    return float(value) if math.isfinite(value) else None


def groups_by_prefix(codes: Sequence[Code], length: int) -> np.ndarray:
    """Returns for each item the number of its beginning of that length, ``(items,)``; -1 where a code is shorter."""
    numbers: dict[Code, int] = {}
    return np.array(
        [numbers.setdefault(code[:length], len(numbers)) if len(code) >= length else -1 for code in codes],
        np.int64,
    )


def group_sums(values: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
    """Returns the sum of the rows of each group, ``(num_groups, width)``.

    Args:
        values: ``(items, width)``.
        groups: ``(items,)`` below ``num_groups``.
        num_groups: Number of groups.
    """
    from scipy.sparse import csr_matrix

    member = (np.ones(len(groups), values.dtype), (groups, np.arange(len(groups))))
    return csr_matrix(member, (num_groups, len(groups))) @ values


def semantic_purity(vectors: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Returns the mean cosine of pairs of items in one group, and that of all pairs.

    Every pair counts, by the squared length of a group's sum. NaN where there is no pair. Zero vectors have
    cosine 0 with all.

    Args:
        vectors: ``(items, width)``.
        groups: ``(items,)``; items of group -1 are left out of the first figure.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    own = (unit**2).sum(1)

    def mean(total: float, pairs: float) -> float:
        return total / pairs if pairs else float("nan")

    inside = groups >= 0
    sums = group_sums(unit[inside], groups[inside], int(groups.max(initial=-1)) + 1)
    counts = np.bincount(groups[inside], minlength=len(sums)).astype(float)
    within = mean(float((sums**2).sum() - own[inside].sum()), float((counts * (counts - 1)).sum()))
    whole = unit.sum(0)
    n = len(vectors)
    return within, mean(float(whole @ whole - own.sum()), float(n * (n - 1)))


def collaborative_purity(counts: Any, groups: np.ndarray) -> tuple[float, float]:
    """Returns the mean co-occurrence of pairs of items in one group, and that of all pairs.

    Args:
        counts: ``(items, items)`` sparse symmetric co-occurrence, its diagonal ignored.
        groups: ``(items,)``; items of group -1 are left out of the first figure.
    """
    counts = counts.tocoo()
    apart = counts.row != counts.col
    row, column, value = counts.row[apart], counts.col[apart], counts.data[apart]
    same = (groups[row] == groups[column]) & (groups[row] >= 0)
    sizes = np.bincount(groups[groups >= 0]).astype(float)
    pairs, n = float((sizes * (sizes - 1)).sum()), len(groups)
    within = float(value[same].sum()) / pairs if pairs else float("nan")
    return within, float(value.sum()) / (n * (n - 1)) if n > 1 else float("nan")


def purities(
    codes: Sequence[Code],
    items: ItemCatalog,
    train: Mapping[UserId, Sequence[ItemId]] | None,
    text: np.ndarray | None,
    window: int,
) -> list[dict[str, float]]:
    """Returns for each length of a beginning how alike the items are that share it.

    ``semantic`` is the mean cosine of text vectors, ``collaborative`` the mean co-occurrence in training
    histories, each of pairs that share the beginning; ``semantic_all`` and ``collaborative_all`` are those of all
    pairs. Lengths at which no two items share a beginning are left out.

    Args:
        codes: In catalogue order.
        items: The catalogue.
        train: Training histories; None leaves the collaborative figures out.
        text: ``(items, width)`` text vectors; None leaves the semantic figures out.
        window: Places apart up to which two items co-occur.
    """
    from genrec.indexing.vectors import cooccurrence

    counts = None if train is None else cooccurrence(items, train, window)
    found = []
    for length in range(1, max(map(len, codes)) + 1):
        groups = groups_by_prefix(codes, length)
        if np.bincount(groups[groups >= 0]).max(initial=0) < 2:
            break
        figures: dict[str, float] = {}
        if text is not None:
            figures["semantic"], figures["semantic_all"] = semantic_purity(text, groups)
        if counts is not None:
            figures["collaborative"], figures["collaborative_all"] = collaborative_purity(counts, groups)
        found.append(figures)
    return found
