"""Which interactions train, which choose, and which are reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from genrec.core.errors import DataError
from genrec.core.files import hash_value
from genrec.data_prep import rules
from genrec.data_prep.log import InteractionLog, ItemId, UserId
from genrec.data_prep.rules import run_in_memory


class SplitSettings(BaseModel):
    """Which interactions are held out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Literal["leave_one_out", "global_temporal", "sliding_windows", "user_disjoint", "cold_item"] = (
        Field(
            "leave_one_out",
            description="leave_one_out holds out each user's last item for test and the one before for validation. "
            "global_temporal holds out everything after two points in time. sliding_windows does so by the number of "
            "windows, cutting ties, as MiniOneRec and BIGRec. user_disjoint holds out users, cold_item items.",
        )
    )
    valid_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share for validation: of the interactions, windows, users or items (not leave_one_out).",
    )
    test_share: float = Field(
        0.1, gt=0, lt=1, description="Share for test, the latest where there is a time (not leave_one_out)."
    )
    cold: Literal["newest", "random"] = Field(
        "newest", description="Which items cold_item holds out: those that appear last, or drawn by chance."
    )
    seed: int = Field(0, ge=0, description="Seed of what user_disjoint and cold_item draw.")
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
            evaluated. Other rules: interactions that are ``context``.
        rule: How it was split, in words.
        table: The log, with ``part``: ``train``, ``valid`` and ``test`` are those asked for, ``context`` is neither
            trained on nor asked for and stands in histories only.
        users: ``user_id`` and what is known of users, a row each; None where nothing is.
    """

    train: dict[UserId, list[ItemId]]
    train_times: dict[UserId, list[float]]
    valid: HeldOut
    test: HeldOut
    num_short: int
    rule: str
    table: pa.Table
    users: pa.Table | None = None


def leave_one_out(log: InteractionLog) -> Split:
    """Returns the split with each user's last item for test, the one before for validation.

    Ties in time keep the log's own order. A user with fewer than three interactions trains only
    (counted in ``num_short``), since nothing would be left to predict from.

    Raises:
        DataError: If no user has three interactions.
    """
    return split_log(log, SplitSettings(rule="leave_one_out"))


def global_temporal(
    log: InteractionLog,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    targets: Literal["each", "all"] = "each",
) -> Split:
    """Returns the split at two points in time, the same for all users, so that no training is later than a test.

    The borders are the times of the interactions at which the given shares of the log begin; all of equal
    time fall on the later side. Held-out interactions without any earlier one of their user are not evaluated
    (``num_short``).

    Args:
        log: The log.
        valid_share: Share of the interactions for validation, in (0, 1).
        test_share: Share for test, in (0, 1); the two sum up to less than 1.
        targets: ``"each"``: a row an interaction, whose history has everything before it. ``"all"``: a row
            a user and window, whose relevant items are all those of the window.

    Raises:
        DataError: If the shares leave nothing for a part.
    """
    if not (0 < valid_share < 1 and 0 < test_share < 1):
        raise DataError(
            f"The shares of validation and test must lie in (0, 1), got {valid_share} and {test_share}."
        )
    settings = SplitSettings(
        rule="global_temporal", valid_share=valid_share, test_share=test_share, targets=targets
    )
    return split_log(log, settings)


def split_log(log: InteractionLog, settings: SplitSettings | None = None) -> Split:
    """Returns the split that the settings name.

    Raises:
        DataError: If the shares do not sum up to less than 1, or a part would have nothing.
    """
    s = settings or SplitSettings()
    rule, arguments = split_rule(s)
    found = run_in_memory(rule, log.narrow(), *arguments)  # in the order of the source
    parts = found["part"].take(pa.array(np.searchsorted(found["row"].to_numpy(), log.rows)))
    table = log.table.drop_columns("part") if "part" in log.table.column_names else log.table
    return read_split(table.append_column("part", parts), s)


def split_rule(settings: SplitSettings) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the rule of ``data_prep.rules`` and its arguments after the log.

    Raises:
        DataError: If the shares do not sum up to less than 1.
    """
    s = settings
    shares = (s.valid_share, s.test_share)
    if s.rule == "leave_one_out":
        return rules.leave_one_out, ()
    if sum(shares) >= 1:
        raise DataError(
            f"The shares of validation and test must sum up to less than 1, got {shares[0]} and {shares[1]}."
        )
    if s.rule == "global_temporal":
        return rules.global_temporal, (*shares, s.targets)
    if s.rule == "sliding_windows":
        return rules.sliding_windows, shares
    if s.rule == "user_disjoint":
        return rules.user_disjoint, (*shares, s.seed)
    return rules.cold_item, (*shares, s.seed, s.cold)


def read_split(table: pa.Table, settings: SplitSettings, users: pa.Table | None = None) -> Split:
    """Returns the split of a log that has its ``part`` in a column already.

    Args:
        table: Ordered by user and time, with ``part``.
        settings: The settings that ``part`` came from.
        users: ``user_id`` and what is known of users, a row each.

    Raises:
        DataError: If a part has nothing.
    """
    sizes = dict(zip(*(pc.value_counts(table["part"]).field(n).to_pylist() for n in (0, 1)), strict=True))
    short = 0
    train: dict[UserId, list[ItemId]] = {}
    train_times: dict[UserId, list[float]] = {}
    held: dict[str, tuple[list[UserId], list[list[ItemId]], list[list[ItemId]]]]
    held = {"valid": ([], [], []), "test": ([], [], [])}
    check_parts(sizes, table.num_rows, settings)
    owners = pc.dictionary_encode(table["user_id"].combine_chunks())
    borders = np.flatnonzero(np.diff(owners.indices.to_numpy(), prepend=-1))
    items, parts = table["item_id"].to_pylist(), table["part"].to_pylist()
    times = table["timestamp"].to_numpy()
    together = settings.rule == "global_temporal" and settings.targets == "all"
    for begin, end in pairwise([*borders.tolist(), len(items)]):
        user, own, part = owners[begin].as_py(), items[begin:end], parts[begin:end]
        size = part.count("train")
        if size:
            train[user], train_times[user] = own[:size], times[begin : begin + size].tolist()
        asked = [(place, name) for place, name in enumerate(part) if name in held]
        short += not asked
        for place, name in asked:
            user_ids, histories, targets = held[name]
            if together and part[place - 1] == name:
                if own[place] not in targets[-1]:
                    targets[-1].append(own[place])
                continue
            user_ids.append(user)
            histories.append(own[:place])
            targets.append([own[place]])
    valid, test = HeldOut(*held["valid"]), HeldOut(*held["test"])
    num_short = short if settings.rule == "leave_one_out" else sizes.get("context", 0)
    return Split(train, train_times, valid, test, num_short, rule_in_words(settings), table, users)


def check_parts(sizes: Mapping[str, int], total: int, settings: SplitSettings) -> None:
    """Raises DataError if a part has no interaction.

    Args:
        sizes: Interactions of each part.
        total: Interactions of the log.
        settings: What the parts came from.
    """
    have = {part: sizes.get(part, 0) for part in ("train", "valid", "test")}
    if all(have.values()):
        return
    what = "Give a longer log, or lower the core filters"
    if settings.rule == "leave_one_out":
        raise DataError(
            f"Leave-one-out needs users with at least 3 interactions; none of the log's {total:,} interactions is of "
            f"such a user. {what}."
        )
    found = ", ".join(f"{count:,} for {part}" for part, count in have.items())
    raise DataError(
        f"The split ({rule_in_words(settings)}) leaves {found} of {total:,} interactions; each part needs one, and what "
        f"is held out needs something before it. Choose other shares, or leave-one-out. {what}."
    )


def rule_in_words(settings: SplitSettings) -> str:
    """Returns how a log is split, for reports."""
    s = settings
    if s.rule == "leave_one_out":
        return "leave-one-out"
    if s.rule == "global_temporal":
        asked = "one row an interaction" if s.targets == "each" else "one row a user"
        return f"global temporal, {asked}"
    if s.rule == "sliding_windows":
        return "global temporal by number of windows"
    if s.rule == "user_disjoint":
        return f"user-disjoint, seed {s.seed}"
    return "cold items, the newest" if s.cold == "newest" else f"cold items, drawn with seed {s.seed}"
