"""Which interactions train, which choose, and which are reported."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from genrec.core.errors import DataError
from genrec.core.files import hash_value
from genrec.data_prep.log import InteractionLog, ItemId, UserId


class SplitSettings(BaseModel):
    """Which interactions are held out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Literal["leave_one_out", "global_temporal"] = Field(
        "leave_one_out",
        description="leave_one_out holds out each user's last item for test and the one before for validation; "
        "global_temporal holds out everything after two points in time.",
    )
    valid_share: float = Field(
        0.1, gt=0, lt=1, description="Share of the interactions for validation (global_temporal)."
    )
    test_share: float = Field(
        0.1, gt=0, lt=1, description="Share of the interactions, the latest, for test (global_temporal)."
    )
    targets: Literal["each", "all"] = Field(
        "each",
        description="What a row asks for (global_temporal). each: a row for every held-out interaction, after "
        "everything before it. all: a row a user, with all that the user took in the window relevant.",
    )


@dataclass(frozen=True)
class HeldOut:
    """Held-out interactions, in rows that are ranked one by one.

    Attributes:
        user_ids: Whose row each is; a user may have several.
        histories: What the user did before, oldest first.
        targets: The relevant items of each row, at least one, each once.
    """

    user_ids: list[UserId]
    histories: list[list[ItemId]]
    targets: list[list[ItemId]]

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def row_ids(self) -> list[str]:
        """A name of each row: the user, and ``user/number`` where a user has several."""
        count, seen = Counter(self.user_ids), Counter[str]()
        names = []
        for user in self.user_ids:
            names.append(user if count[user] == 1 else f"{user}/{seen[user]}")
            seen[user] += 1
        return names

    @property
    def num_users(self) -> int:
        """Number of distinct users."""
        return len(set(self.user_ids))

    @property
    def hash(self) -> str:
        """Digest of rows, histories and targets: equal where the same is asked."""
        return hash_value([self.user_ids, self.histories, self.targets])


@dataclass(frozen=True)
class Split:
    """Training histories and two held-out sets.

    Attributes:
        train: ``{user_id: items, oldest first}``; nothing held out is in it.
        train_times: The times of the same interactions, in the unit of the log.
        valid: What choices are made on.
        test: What is reported, once; its histories contain what was held out for validation.
        num_short: Leave-one-out: users with too few interactions to hold any out, who train and are not
            evaluated. Global temporal: held-out interactions with nothing before them, which are not
            evaluated.
        rule: How it was split, in words.
        table: The log, ordered by user and time, with a column ``part``: ``"train"``, ``"valid"`` or ``"test"``.
    """

    train: dict[UserId, list[ItemId]]
    train_times: dict[UserId, list[float]]
    valid: HeldOut
    test: HeldOut
    num_short: int
    rule: str
    table: pa.Table


def leave_one_out(log: InteractionLog) -> Split:
    """Returns the split with each user's last item for test, the one before for validation.

    Ties in time keep the log's own order. A user with fewer than three interactions trains only
    (counted in ``num_short``), since nothing would be left to predict from.

    Raises:
        DataError: If no user has three interactions.
    """
    train: dict[UserId, list[ItemId]] = {}
    users: list[UserId] = []
    before: list[list[ItemId]] = []
    valid: list[ItemId] = []
    test: list[ItemId] = []
    parts: list[str] = []
    for user, items in log.histories().items():
        parts += ["train"] * len(items)
        if len(items) < 3:
            train[user] = items
            continue
        parts[-2:] = ["valid", "test"]
        train[user] = items[:-2]
        users.append(user)
        before.append(items[:-2])
        valid.append(items[-2])
        test.append(items[-1])
    if not users:
        raise DataError(
            f"Leave-one-out needs users with at least 3 interactions; none of the {log.num_users:,} users "
            "has that many. Give a longer log, or lower the core filters."
        )
    histories = [[*h, v] for h, v in zip(before, valid, strict=True)]
    return Split(
        train=train,
        train_times=_times(log, train),
        valid=HeldOut(users, before, [[item] for item in valid]),
        test=HeldOut(users, histories, [[item] for item in test]),
        num_short=len(train) - len(users),
        rule="leave-one-out",
        table=log.table.append_column("part", pa.array(parts)),
    )


def global_temporal(
    log: InteractionLog,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    targets: Literal["each", "all"] = "each",
) -> Split:
    """Returns the split at two points in time, the same for all users, so that no training is later than a test.

    The borders are the times of the interactions at which the given shares of the log begin; all of equal
    time fall on the later side. This is the split of BIGRec and MiniOneRec (8:1:1), which cut ties by
    position instead. Held-out interactions without any earlier one of their user are not evaluated
    (``num_short``).

    Args:
        log: The log.
        valid_share: Share of the interactions for validation, in (0, 1).
        test_share: Share for test, in (0, 1); the two sum up to less than 1.
        targets: ``"each"``: a row an interaction, whose history has everything before it. ``"all"``: a row
            a user and window, whose relevant items are all those of the window.

    Raises:
        DataError: If the shares leave nothing for a part, or there is no row to evaluate.
    """
    if not (0 < valid_share < 1 and 0 < test_share < 1 and valid_share + test_share < 1):
        raise DataError(
            f"The shares of validation and test must lie in (0, 1) and sum up to less than 1; got {valid_share} "
            f"and {test_share}."
        )
    times = log.table["timestamp"].to_numpy()
    ordered = np.sort(times)
    test_from = ordered[int(len(times) * (1 - test_share))]
    valid_from = ordered[int(len(times) * (1 - test_share - valid_share))]
    if not ordered[0] < valid_from < test_from:
        raise DataError(
            f"The times of the log do not tell three parts apart: it begins at {ordered[0]:g}, validation would "
            f"at {valid_from:g}, test at {test_from:g}. Choose other shares, or leave-one-out."
        )
    parts = np.where(times >= test_from, 2, np.where(times >= valid_from, 1, 0))
    train: dict[UserId, list[ItemId]] = {}
    rows: tuple[list[tuple[UserId, list[ItemId], list[ItemId]]], ...] = ([], [])
    num_short = begin = 0
    for user, items in log.histories().items():
        part = parts[begin : begin + len(items)]  # the log is ordered by user, as histories are
        begin += len(items)
        first, second = np.searchsorted(part, [1, 2])
        if first:
            train[user] = items[:first]
        for held, (start, end) in zip(rows, ((first, second), (second, len(items))), strict=True):
            if not start and end:  # nothing is before the first interaction
                start = end if targets == "all" else 1
                num_short += start
            if targets == "all" and end > start:
                held.append((user, items[:start], list(dict.fromkeys(items[start:end]))))
            elif targets == "each":
                held += [(user, items[:place], [items[place]]) for place in range(start, end)]
    if not rows[0] or not rows[1]:
        raise DataError(
            "No user with held-out interactions has any before them, so that there is nothing to evaluate. Choose "
            "other shares, or leave-one-out."
        )
    valid, test = (HeldOut(*map(list, zip(*held, strict=True))) for held in rows)
    asked = "one row an interaction" if targets == "each" else "one row a user"
    times_of = _times(log, train)
    table = log.table.append_column("part", pa.array(np.array(["train", "valid", "test"])[parts]))
    return Split(train, times_of, valid, test, int(num_short), f"global temporal, {asked}", table)


def _times(log: InteractionLog, train: dict[UserId, list[ItemId]]) -> dict[UserId, list[float]]:
    """Returns the time of each training interaction; they are the first of each user."""
    times, begin, found = log.table["timestamp"].to_numpy(), 0, {}
    for user, items in log.histories().items():
        if user in train:
            found[user] = times[begin : begin + len(train[user])].tolist()
        begin += len(items)
    return found


def split_log(log: InteractionLog, settings: SplitSettings | None = None) -> Split:
    """Returns the split that the settings name; errors as ``leave_one_out`` and ``global_temporal``."""
    s = settings or SplitSettings()
    if s.rule == "leave_one_out":
        return leave_one_out(log)
    return global_temporal(log, s.valid_share, s.test_share, s.targets)
