"""The interaction log: who took which item, when."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pa_parquet

from genrec.core.errors import DataError
from genrec.core.files import atomic_path
from genrec.data_prep.tables import BadRow, OnBadRows, read_table, rename_columns, settle_bad_rows

UserId = str
ItemId = str

REQUIRED = ("user_id", "item_id", "timestamp")


class InteractionLog:
    """A checked log, ordered by user and time.

    The rows of a user are in time order; rows of equal time keep the order of the source (the tie
    rule of genrec: a log's own order is the only information there is about a tie).

    Attributes:
        table: Arrow table with ``user_id`` and ``item_id`` (text), ``timestamp`` (float64, in the
            unit of the source) and whatever other columns the source had.
        num_quarantined: Rows of the source that were put aside as bad.
    """

    def __init__(self, table: pa.Table, num_quarantined: int = 0) -> None:
        users = pc.dictionary_encode(table["user_id"].combine_chunks()).indices.to_numpy()
        order = np.lexsort((table["timestamp"].to_numpy(), users))
        self.table = table.take(order)
        self.num_quarantined = num_quarantined

    @classmethod
    def read(
        cls,
        path: str | Path,
        columns: Mapping[str, str] | None = None,
        on_bad_rows: OnBadRows = "error",
        quarantine: str | Path | None = None,
    ) -> InteractionLog:
        """Returns the log in a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file.

        Args:
            path: File with one interaction a row.
            columns: ``{"user_id" | "item_id" | "timestamp": name in the file}`` where they differ.
            on_bad_rows: ``"error"`` stops at bad rows; ``"quarantine"`` puts them aside, counted.
            quarantine: JSON-lines file that receives them.

        Raises:
            DataError: If the file or a required column is missing, or rows are bad: an id is missing,
                or a timestamp is neither a finite number nor missing from the whole file.
        """
        source = str(path)
        return cls.from_table(read_table(path), columns, on_bad_rows, quarantine, source)

    @classmethod
    def from_table(
        cls,
        table: pa.Table,
        columns: Mapping[str, str] | None = None,
        on_bad_rows: OnBadRows = "error",
        quarantine: str | Path | None = None,
        source: str = "the log",
    ) -> InteractionLog:
        """Returns the log held in an Arrow table; arguments and errors as in ``read``."""
        table = rename_columns(table, columns, REQUIRED, source)
        if table.num_rows == 0:
            raise DataError(f"{source} has a header but no rows.")
        bad: list[BadRow] = []
        for name in ("user_id", "item_id"):
            column = pc.cast(table[name], pa.string())
            empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
            bad += [BadRow(int(row) + 1, name, "is missing") for row in np.flatnonzero(empty.to_numpy())]
            table = table.set_column(table.column_names.index(name), name, column)
        times, wrong = _timestamps(table["timestamp"])
        values = table["timestamp"]
        bad += [
            BadRow(int(row) + 1, "timestamp", f"{values[int(row)].as_py()!r} is not a finite number")
            for row in wrong
        ]
        table = table.set_column(table.column_names.index("timestamp"), "timestamp", pa.array(times))
        table, aside = settle_bad_rows(table, bad, source, on_bad_rows, quarantine)
        return cls(table, aside)

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[UserId, ItemId, float]]) -> InteractionLog:
        """Returns the log of ``(user_id, item_id, timestamp)`` rows."""
        users, items, times = zip(*rows, strict=True) if (rows := list(rows)) else ((), (), ())
        return cls.from_table(pa.table({"user_id": users, "item_id": items, "timestamp": times}))

    def write(self, path: str | Path) -> None:
        """Writes the log as Parquet, whole or not at all."""
        with atomic_path(path) as part:
            pa_parquet.write_table(self.table, part)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def num_users(self) -> int:
        """Number of distinct users."""
        return int(pc.count_distinct(self.table["user_id"]).as_py())

    @property
    def num_items(self) -> int:
        """Number of distinct items."""
        return int(pc.count_distinct(self.table["item_id"]).as_py())

    @property
    def num_ties(self) -> int:
        """Neighbouring rows of one user with the same time, whose order is the source's."""
        users, times = self.table["user_id"].combine_chunks(), self.table["timestamp"].to_numpy()
        codes = pc.dictionary_encode(users).indices.to_numpy()
        return int(((codes[1:] == codes[:-1]) & (times[1:] == times[:-1])).sum())

    @property
    def hash(self) -> str:
        """SHA-256 of who took what when, in this order, whatever file it came from."""
        digest = hashlib.sha256()
        for name in REQUIRED:
            column = self.table[name].combine_chunks()
            if name == "timestamp":
                digest.update(column.to_numpy().tobytes())
            else:
                digest.update("\0".join(column.to_pylist()).encode())
        return digest.hexdigest()

    def k_core(self, user: int = 5, item: int = 5) -> InteractionLog:
        """Returns the largest part of the log in which every user and item has so many interactions.

        Args:
            user: Fewest interactions of a user; 1 keeps all.
            item: Fewest interactions of an item; 1 keeps all.

        Raises:
            DataError: If nothing is left.
        """
        users = pc.dictionary_encode(self.table["user_id"].combine_chunks()).indices.to_numpy()
        items = pc.dictionary_encode(self.table["item_id"].combine_chunks()).indices.to_numpy()
        keep = np.arange(len(self))
        while True:
            enough = np.bincount(users[keep])[users[keep]] >= user if len(keep) else np.empty(0, bool)
            if len(keep):
                enough &= np.bincount(items[keep])[items[keep]] >= item
            if enough.all():
                break
            keep = keep[enough]
        if len(keep) == 0:
            raise DataError(
                f"No interaction is left after the core filter (user >= {user}, item >= {item}): the log has "
                f"{len(self):,} interactions of {self.num_users:,} users and {self.num_items:,} items. "
                "Lower data.user_core or data.item_core."
            )
        return InteractionLog(self.table.take(keep), self.num_quarantined)

    def histories(self) -> dict[UserId, list[ItemId]]:
        """Returns each user's items, oldest first, users in order of first appearance in the source."""
        histories: dict[UserId, list[ItemId]] = {}
        pairs = zip(self.table["user_id"].to_pylist(), self.table["item_id"].to_pylist(), strict=True)
        for user, item in pairs:
            histories.setdefault(user, []).append(item)
        return histories


def _timestamps(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns float64 times and the rows (from 0) that are not finite numbers."""
    if pa.types.is_timestamp(column.type):
        column = pc.cast(pc.cast(column, pa.timestamp("ms"), safe=False), pa.int64())
    if pa.types.is_string(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        number = pc.match_substring_regex(trimmed, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
        column = pc.if_else(number, trimmed, None)
    times = pc.cast(column, pa.float64()).to_numpy()
    return times, np.flatnonzero(~np.isfinite(times))
