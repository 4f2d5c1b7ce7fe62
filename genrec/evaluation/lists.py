"""Ranked lists and what was relevant, as arrays: checked once, measured fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from genrec.core.errors import DataError
from genrec.data_prep import ItemId

NO_ITEM = -1


@dataclass(frozen=True)
class RankedLists:
    """One list of items a user, best first, beside what was relevant for that user.

    Attributes:
        items: ``(users, width)`` item numbers, ``NO_ITEM`` after the end of a shorter list.
        relevant: ``(all relevant items,)`` item numbers, user after user.
        start: ``(users + 1,)`` where each user's relevant items begin.
    """

    items: np.ndarray
    relevant: np.ndarray
    start: np.ndarray

    @classmethod
    def from_items(
        cls,
        rankings: Sequence[Sequence[ItemId]],
        targets: Sequence[ItemId] | Sequence[Sequence[ItemId]],
        item_ids: Sequence[ItemId] | None = None,
    ) -> RankedLists:
        """Returns the lists of item ids as numbers.

        Args:
            rankings: Items of each user, best first; may be empty or of different lengths.
            targets: What was relevant for each user: one item, or several, or none (an empty list).
            item_ids: The catalogue. A listed item outside it is an error; None takes whatever comes.

        Raises:
            DataError: If there is no user, rankings and targets are not as many, an item is listed or
                relevant twice, or a listed item is not in the catalogue. The first ones are named.
        """
        wanted = [[target] if isinstance(target, str) else list(target) for target in targets]
        if len(rankings) != len(wanted) or not wanted:
            raise DataError(
                f"{len(rankings):,} rankings for {len(wanted):,} targets; each user needs one of both, and there "
                "must be a user. One who got nothing has an empty ranking."
            )
        number = {item: place for place, item in enumerate(item_ids or ())}
        if item_ids is not None:
            unknown = [
                (user, item)
                for user, ranking in enumerate(rankings)
                for item in ranking
                if item not in number
            ]
            if unknown:
                raise DataError(
                    f"{len(unknown):,} listed items are not in the catalogue of {len(item_ids):,} items, first "
                    f"{unknown[0][1]!r} in ranking {unknown[0][0]}. Rank items of the catalogue only."
                )
        for item in chain.from_iterable(chain(rankings, wanted)):
            number.setdefault(item, len(number))
        width = max(1, *map(len, rankings))
        items = np.full((len(rankings), width), NO_ITEM, np.int64)
        for user, ranking in enumerate(rankings):
            items[user, : len(ranking)] = [number[item] for item in ranking]
        start = np.concatenate([[0], np.cumsum([len(targets) for targets in wanted])]).astype(np.int64)
        relevant = np.array([number[item] for item in chain.from_iterable(wanted)], np.int64)
        return cls.from_arrays(items, relevant, start)

    @classmethod
    def from_arrays(cls, items: np.ndarray, relevant: np.ndarray, start: np.ndarray) -> RankedLists:
        """Returns the lists after the checks of ``from_items``."""
        for user in _with_repeats(items):
            raise DataError(f"Ranking {user} names an item twice; each item may come once.")
        owner = np.repeat(np.arange(len(start) - 1), np.diff(start))
        order = np.lexsort((relevant, owner))
        same = (owner[order][1:] == owner[order][:-1]) & (relevant[order][1:] == relevant[order][:-1])
        if same.any():
            raise DataError(f"An item is relevant twice for user {owner[order][1:][same][0]}.")
        return cls(items, relevant, start)

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.items)

    @property
    def num_relevant(self) -> np.ndarray:
        """``(users,)`` number of relevant items."""
        return np.diff(self.start)

    def hits(self, k: int) -> np.ndarray:
        """Returns ``(users, min(k, width))`` bool: whether the item at each rank is relevant."""
        items = self.items[:, :k]
        found = np.zeros(items.shape, bool)
        for place in range(int(self.num_relevant.max(initial=0))):
            users = np.flatnonzero(self.num_relevant > place)
            if len(users) == self.num_users:
                found |= items == self.relevant[self.start[:-1] + place][:, None]
            else:
                found[users] |= items[users] == self.relevant[self.start[users] + place][:, None]
        return found


def top_columns(scores: np.ndarray, k: int) -> np.ndarray:
    """Returns ``(rows, min(k, columns))`` columns by falling score, equal scores by column.

    Columns at minus infinity are left out (``NO_ITEM`` fills up).

    Raises:
        DataError: If a score is NaN; the first is named.
    """
    wrong = np.isnan(scores)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(f"{wrong.sum():,} scores are NaN, first that of item {column} for user {row}.")
    width = scores.shape[1]
    if k < width:
        # All from the k-th score on, less the last columns of those equal to it: sorting k is cheaper than all.
        border = np.partition(scores, width - k, axis=1)[:, width - k, None]
        keep = scores >= border
        tied = np.flatnonzero(keep.sum(1) > k)
        part, value = scores[tied], border[tied]
        above, equal = part > value, part == value
        keep[tied] = above | (equal & (equal.cumsum(1, dtype=np.int32) <= k - above.sum(1, keepdims=True)))
        columns = np.nonzero(keep)[1].reshape(len(scores), k)
    else:
        columns = np.broadcast_to(np.arange(width), scores.shape)
    kept = np.take_along_axis(scores, columns, 1)
    order = np.argsort(-kept, axis=1, kind="stable")
    kept, columns = np.take_along_axis(kept, order, 1), np.take_along_axis(columns, order, 1)
    return np.where(kept == -np.inf, NO_ITEM, columns)


def _with_repeats(items: np.ndarray, rows_at_once: int = 50_000) -> np.ndarray:
    """Returns the numbers of rows in which an item comes twice."""
    found = []
    for first in range(0, len(items), rows_at_once):
        part = np.sort(items[first : first + rows_at_once], axis=1)
        twice = ((part[:, 1:] == part[:, :-1]) & (part[:, 1:] != NO_ITEM)).any(1)
        found.append(first + np.flatnonzero(twice))
    return np.concatenate(found) if found else np.zeros(0, np.int64)
