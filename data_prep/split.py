"""Which interactions train, which choose, and which are reported."""

from __future__ import annotations

from dataclasses import dataclass

from genrec.core.errors import DataError
from genrec.data_prep.log import InteractionLog, ItemId, UserId


@dataclass(frozen=True)
class HeldOut:
    """One held-out interaction a user.

    Attributes:
        user_ids: Evaluated users.
        histories: What each of them did before the target, oldest first.
        targets: The held-out item of each.
    """

    user_ids: list[UserId]
    histories: list[list[ItemId]]
    targets: list[ItemId]

    def __len__(self) -> int:
        return len(self.user_ids)


@dataclass(frozen=True)
class Split:
    """Training histories and two held-out sets.

    Attributes:
        train: ``{user_id: items, oldest first}``; nothing held out is in it.
        valid: What choices are made on.
        test: What is reported, once; its histories contain the validation item.
        num_short: Users with too few interactions to hold any out; they train and are not evaluated.
    """

    train: dict[UserId, list[ItemId]]
    valid: HeldOut
    test: HeldOut
    num_short: int


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
    for user, items in log.histories().items():
        if len(items) < 3:
            train[user] = items
            continue
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
    return Split(
        train=train,
        valid=HeldOut(users, before, valid),
        test=HeldOut(users, [[*h, v] for h, v in zip(before, valid, strict=True)], test),
        num_short=len(train) - len(users),
    )
