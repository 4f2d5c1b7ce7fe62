"""Metrics within groups: short and long histories, cold and popular items, and groups that are given.

A slice is ``{name: (labels, group of each row)}``, so that slices are put together with ``|``. Slices of items
have a group for each *relevant item* instead, since a row may have several: ``item_slice_metrics`` measures a
row once for each group, with only the items of that group as relevant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from genrec.core.errors import DataError, RecipeError
from genrec.data_prep import UserId
from genrec.evaluation.lists import RankedLists
from genrec.evaluation.metrics import user_metrics
from genrec.evaluation.significance import bootstrap_intervals

Groups = tuple[list[str], np.ndarray]

FEW_USERS = 30


def history_slices(lengths: np.ndarray, quantiles: int | None = None) -> dict[str, Groups]:
    """Returns the slice ``history length``: "< 5", "5-10", "11-20", "> 20" interactions before the target.

    Fixed groups can be compared between data sets. Quantiles are groups of about as many rows each, named by
    the lengths they hold; equal lengths stay together, so that there may be fewer.

    Args:
        lengths: ``(rows,)`` length of each row's history.
        quantiles: Number of groups, such as 5, or None for the fixed ones.

    Raises:
        DataError: If a length is not a whole number of 0 or more.
        RecipeError: If there is less than one quantile.
    """
    lengths = _whole(lengths, "history length of row")
    if quantiles is None:
        return {"history length": _ranges(lengths, (5, 11, 21))}
    if quantiles < 1:
        raise RecipeError(f"quantiles is {quantiles}; at least 1 group is needed, such as 5.")
    # The ends are lengths that come, so that no group is empty.
    ends = np.unique(np.quantile(lengths, np.arange(1, quantiles + 1) / quantiles, method="inverted_cdf"))
    group = np.searchsorted(ends, lengths)
    spans = [(lengths[group == place].min(), lengths[group == place].max()) for place in range(len(ends))]
    return {"history length": ([_span(low, high) for low, high in spans], group)}


def popularity_slices(counts: np.ndarray, relevant: np.ndarray) -> dict[str, Groups]:
    """Returns the slice ``item popularity``: items of "0 (cold)", "1-5", "6-20", "> 20" training interactions.

    Args:
        counts: ``(items,)`` training interactions of each item.
        relevant: ``(all relevant,)`` item numbers, as in ``RankedLists``.

    Raises:
        DataError: If a count is not a whole number of 0 or more, or an item has none.
    """
    labels, group = _ranges(_of_items(counts, relevant), (1, 6, 21))
    return {"item popularity": (["0 (cold)", *labels[1:]], group)}


def cold_slices(counts: np.ndarray, relevant: np.ndarray) -> dict[str, Groups]:
    """Returns the slice ``cold items``: items "cold", without a training interaction, or "warm".

    Args and errors are those of ``popularity_slices``.
    """
    return {"cold items": (["cold", "warm"], (_of_items(counts, relevant) > 0).astype(np.int64))}


def share_slices(
    counts: np.ndarray, relevant: np.ndarray, shares: tuple[float, float] = (0.5, 0.8)
) -> dict[str, Groups]:
    """Returns the slice ``head, torso, tail``: items by the share of interactions that more popular items make.

    Below the first share an item is of the head, below the second of the torso, else of the tail; items of
    equal count stay together and cold items are of the tail. With the defaults, which are ours, the head is
    the fewest items that make half of all training interactions, and the tail what lies outside the fewest
    that make 80%, each enlarged by items of equal count.

    Args:
        counts: ``(items,)`` training interactions of each item.
        relevant: ``(all relevant,)`` item numbers, as in ``RankedLists``.
        shares: Where head and torso end, rising, in (0, 1].

    Raises:
        DataError: As ``popularity_slices``, or if no item has an interaction.
        RecipeError: If shares do not rise or are outside (0, 1].
    """
    if not 0 < shares[0] < shares[1] <= 1:
        raise RecipeError(f"shares are {shares}; they must rise within (0, 1], such as (0.5, 0.8).")
    own = _of_items(counts, relevant)
    levels, items = np.unique(np.asarray(counts, np.int64), return_counts=True)
    made = levels * items
    if not made.any():
        raise DataError("No item has a training interaction, so that there is neither head nor tail.")
    above = made[::-1].cumsum()[::-1] - made
    group = np.searchsorted(np.array(shares) * made.sum(), above, side="right")
    # All interactions lie above cold items, also where the tail begins at a share of 1.
    group[levels == 0] = 2
    return {"head, torso, tail": (["head", "torso", "tail"], group[np.searchsorted(levels, own)])}


def user_slices(
    user_ids: Sequence[UserId], groups: Mapping[UserId, str], name: str = "user group"
) -> dict[str, Groups]:
    """Returns the slice of given groups, by label; rows of users without one are in "(no group)", the last.

    Args:
        user_ids: ``(rows,)`` whose row each is.
        groups: Group of each user; users without a row do no harm.
        name: Of the slice.

    Raises:
        DataError: If no row's user has a group.
    """
    of_row = [groups.get(user) for user in user_ids]
    labels = sorted({label for label in of_row if label is not None})
    if not labels:
        raise DataError(
            f"None of the {len(user_ids):,} rows is of a user with a group ({len(groups):,} users are given one); "
            "groups are given by user id."
        )
    place = {label: number for number, label in enumerate(labels)}
    if None in of_row:
        labels.append("(no group)")
    group = [len(place) if label is None else place[label] for label in of_row]
    return {name: (labels, np.array(group, np.int64))}


def restrict_relevant(lists: RankedLists, keep: np.ndarray) -> RankedLists:
    """Returns the lists with a part of the relevant items; rows left without any have no metric (NaN).

    Ranked items stay where they are: one that is relevant but not kept takes its rank and counts as a miss.

    Args:
        lists: Lists and what is relevant.
        keep: ``(all relevant,)`` bool.

    Raises:
        DataError: If there is not one value a relevant item.
    """
    keep = np.asarray(keep, bool)
    if keep.shape != lists.relevant.shape:
        raise DataError(
            f"keep has shape {keep.shape}; one value for each of {len(lists.relevant):,} relevant items is needed."
        )
    kept_before = np.concatenate([[0], np.cumsum(keep)])
    return RankedLists(lists.items, lists.relevant[keep], kept_before[lists.start])


def slice_metrics(
    values: Mapping[str, np.ndarray],
    groups: Groups,
    users: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Returns ``group``, ``num_users``, ``metrics`` and ``intervals`` of each group that has a value, in order.

    Metrics are means over the group's rows that have a value, intervals those of ``bootstrap_intervals``. A
    metric without a value in a group is left out there. A group of fewer than 30 users also has
    ``"few": True``: its interval stands, its mean alone should not be quoted.

    Args:
        values: ``(rows,)`` of each metric, NaN where a row has no value.
        groups: Labels, and ``(rows,)`` which of them each row has.
        users: ``(rows,)`` whose row each is, or None where every row is a user.
        resamples: As ``bootstrap_intervals``.
        seed: As ``bootstrap_intervals``.

    Raises:
        DataError: As ``bootstrap_intervals``, or if a row has no group.
        RecipeError: As ``bootstrap_intervals``.
    """
    labels, group = _checked(groups, len(next(iter(values.values()))) if values else 0, "row")
    found = []
    for place, label in enumerate(labels):
        rows = np.flatnonzero(group == place)
        part = {name: np.asarray(vector)[rows] for name, vector in values.items()}
        entry = _entry(label, part, None if users is None else np.asarray(users)[rows], resamples, seed)
        if entry:
            found.append(entry)
    return found


def item_slice_metrics(
    lists: RankedLists,
    groups: Groups,
    names: Sequence[str],
    users: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Returns the same as ``slice_metrics`` for groups of relevant items.

    In each group rows are measured on its relevant items alone (``restrict_relevant``), so that a row with
    items of several groups counts in each of them. With one relevant item a row, every row counts once.

    Args:
        lists: Lists and what is relevant.
        groups: Labels, and ``(all relevant,)`` which of them each relevant item has.
        names: As ``user_metrics``.
        users: ``(rows,)`` whose row each is, or None where every row is a user.
        resamples: As ``bootstrap_intervals``.
        seed: As ``bootstrap_intervals``.

    Raises:
        DataError: As ``bootstrap_intervals``, or if a relevant item has no group.
        RecipeError: As ``bootstrap_intervals`` or ``user_metrics``.
    """
    labels, group = _checked(groups, len(lists.relevant), "relevant item")
    found = []
    for place, label in enumerate(labels):
        values = user_metrics(restrict_relevant(lists, group == place), names)
        entry = _entry(label, values, users, resamples, seed)
        if entry:
            found.append(entry)
    return found


def _entry(
    label: str, values: Mapping[str, np.ndarray], users: np.ndarray | None, resamples: int, seed: int
) -> dict[str, object]:
    """Returns a group's entry of the report, empty where the group has no value."""
    valued = {name: ~np.isnan(vector) for name, vector in values.items()}
    values = {name: vector for name, vector in values.items() if valued[name].any()}
    if not values:
        return {}
    rows = np.logical_or.reduce(list(valued.values()))
    num_users = int(rows.sum()) if users is None else len(np.unique(np.asarray(users)[rows]))
    intervals = bootstrap_intervals(values, users, resamples, seed=seed)
    entry: dict[str, object] = {
        "group": label,
        "num_users": num_users,
        "metrics": {name: float(vector[valued[name]].mean()) for name, vector in values.items()},
        "intervals": {name: list(interval) for name, interval in intervals.items()},
    }
    return entry | {"few": True} if num_users < FEW_USERS else entry


def _checked(groups: Groups, wanted: int, what: str) -> Groups:
    """Returns the groups.

    Raises:
        DataError: If there is not one for each of ``wanted`` things, or one is no label's place.
    """
    labels, group = groups[0], np.asarray(groups[1])
    if group.shape != (wanted,):
        raise DataError(f"Groups have shape {group.shape}; one for each {what} is needed, ({wanted},).")
    outside = np.flatnonzero((group < 0) | (group >= len(labels)))
    if len(outside):
        raise DataError(
            f"{len(outside):,} of the groups are none of the {len(labels)} labels, first {group[outside[0]]} "
            f"of {what} {outside[0]}."
        )
    return labels, group


def _ranges(values: np.ndarray, starts: tuple[int, ...]) -> Groups:
    """Returns the group of each value, groups after the first beginning at ``starts``."""
    middle = [_span(low, high - 1) for low, high in pairwise(starts)]
    labels = [f"< {starts[0]}", *middle, f"> {starts[-1] - 1}"]
    return labels, np.searchsorted(starts, values, side="right")


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _of_items(counts: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    counts, relevant = _whole(counts, "count of item"), np.asarray(relevant)
    outside = np.flatnonzero((relevant < 0) | (relevant >= len(counts)))
    if len(outside):
        raise DataError(
            f"Relevant item {relevant[outside[0]]} has no count; counts are given for items 0 to {len(counts) - 1}."
        )
    return counts[relevant]


def _whole(values: np.ndarray, what: str) -> np.ndarray:
    given = np.asarray(values, np.float64)
    wrong = np.flatnonzero(~(np.isfinite(given) & (given >= 0) & (given == np.floor(given))))
    if given.ndim != 1 or not len(given):
        raise DataError(f"Each {what} must be given, as (n,) numbers; got shape {given.shape}.")
    if len(wrong):
        raise DataError(
            f"The {what} {wrong[0]} is {given[wrong[0]]}; it must be a whole number of 0 or more."
        )
    return given.astype(np.int64)
