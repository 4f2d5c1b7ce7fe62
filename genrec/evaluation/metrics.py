"""Ranking metrics of held-out items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec.core.errors import DataError
from genrec.data_prep import ItemId


def target_ranks(rankings: Sequence[Sequence[ItemId]], targets: Sequence[ItemId]) -> np.ndarray:
    """Returns ``(users,)`` ranks of each target in its list, from 1; 0 where the list does not have it.

    Raises:
        DataError: If there are not as many rankings as targets, or a ranking names an item twice.
    """
    if len(rankings) != len(targets):
        raise DataError(f"{len(rankings):,} rankings for {len(targets):,} targets; each user needs one.")
    ranks = np.zeros(len(targets), np.int64)
    for user, (ranking, target) in enumerate(zip(rankings, targets, strict=True)):
        if len(set(ranking)) < len(ranking):
            raise DataError(f"Ranking {user} names an item twice; each item may come once.")
        if target in ranking:
            ranks[user] = ranking.index(target) + 1
    return ranks


def ranking_metrics(
    rankings: Sequence[Sequence[ItemId]], targets: Sequence[ItemId], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Returns the means over users of ``HR@k`` and, for k > 1, ``NDCG@k``, all in [0, 1].

    With one relevant item a user, HR@k is 1 if it is among the first k, and NDCG@k is
    ``1 / log2(rank + 1)`` then, else 0 (Jarvelin and Kekalainen, 2002). A list shorter than k misses
    what it does not have. Hits are items, never strings.

    Args:
        rankings: Items of each user, best first.
        targets: The held-out item of each user.
        ks: Cut-offs.

    Raises:
        DataError: As ``target_ranks``, or if there is no user or a cut-off is below 1.
    """
    if not targets or min(ks) < 1:
        raise DataError(
            f"Metrics need at least one user and cut-offs of 1 or more, got {len(targets)}, {ks}."
        )
    ranks = target_ranks(rankings, targets)
    values: dict[str, float] = {}
    for name, gain in (("HR", lambda r: np.ones(len(r))), ("NDCG", lambda r: 1 / np.log2(r + 1.0))):
        for k in ks:
            if name == "NDCG" and k == 1:
                continue
            hit = (ranks > 0) & (ranks <= k)
            values[f"{name}@{k}"] = float(gain(ranks[hit]).sum() / len(ranks))
    return values
