"""The interaction log: who took which item, when."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pa_parquet

from genrec.core.errors import DataError
from genrec.core.files import atomic_path
from genrec.data_prep.engine import Engine, Scan, in_memory, scan_table
from genrec.data_prep.rules import core_round, run_in_memory
from genrec.data_prep.sources import table_file
from genrec.data_prep.tables import TIME_KEY, OnBadRows, TimeKind, check_log

UserId = str
ItemId = str

REQUIRED = ("user_id", "item_id", "timestamp")


class InteractionLog:
    """A checked log, ordered by user and time.

    The rows of a user are in time order; rows of equal time keep the order of the source (the tie
    rule of genrec: a log's own order is the only information there is about a tie).

    Attributes:
        table: Arrow table with ``user_id`` and ``item_id`` (text), ``timestamp`` (float64, in seconds since 1970, or
            plain numbers whose order counts) and whatever other columns the source had.
        num_quarantined: Rows of the source that were put aside as bad.
        rows: Place in the source of each row of the table, which decides between equal times of different users.
        time: ``s`` where times are seconds since 1970, ``number`` where only their order counts.
    """

    def __init__(
        self, table: pa.Table, num_quarantined: int = 0, time: str = "number", rows: np.ndarray | None = None
    ) -> None:
        users = pc.dictionary_encode(table["user_id"].combine_chunks()).indices.to_numpy()
        order = np.lexsort((table["timestamp"].to_numpy(), users))
        self.table = table.take(order)
        self.rows = order if rows is None else rows[order]
        self.num_quarantined = num_quarantined
        self.time = time

    @classmethod
    def read(
        cls,
        path: str | Path,
        columns: Mapping[str, str] | None = None,
        on_bad_rows: OnBadRows = "error",
        quarantine: str | Path | None = None,
        time: TimeKind = "auto",
    ) -> InteractionLog:
        """Returns the log in a ``.csv``, ``.tsv``, ``.jsonl`` (all three may be gzipped) or ``.parquet`` file.

        Args:
            path: File with one interaction a row.
            columns: ``{"user_id" | "item_id" | "timestamp": name in the file}`` where they differ.
            on_bad_rows: ``"error"`` stops at bad rows; ``"quarantine"`` puts them aside, counted.
            quarantine: JSON-lines file that receives them.
            time: What times are, as in ``check_log``; they come back as seconds where that is known.

        Raises:
            DataError: If the file is missing, or as ``check_log``.
        """
        with in_memory() as engine:
            scan = engine.scan(table_file(path))
            return cls._checked(engine, scan, columns, on_bad_rows, quarantine, time)

    @classmethod
    def from_table(
        cls,
        table: pa.Table,
        columns: Mapping[str, str] | None = None,
        on_bad_rows: OnBadRows = "error",
        quarantine: str | Path | None = None,
        time: TimeKind = "auto",
        source: str = "the log",
    ) -> InteractionLog:
        """Returns the log held in an Arrow table; arguments and errors as in ``read``."""
        with in_memory() as engine:
            scan = scan_table(engine, table, source)
            return cls._checked(engine, scan, columns, on_bad_rows, quarantine, time)

    @classmethod
    def _checked(
        cls,
        engine: Engine,
        scan: Scan,
        columns: Mapping[str, str] | None,
        on_bad_rows: OnBadRows,
        quarantine: str | Path | None,
        time: TimeKind,
    ) -> InteractionLog:
        checked = check_log(engine, scan, columns, time, on_bad_rows, quarantine)
        return cls(checked.take(), checked.num_bad, checked.unit)

    @classmethod
    def load(cls, path: str | Path) -> InteractionLog:
        """Returns a log that ``write`` or ``prepare`` wrote, unchecked."""
        table = pa_parquet.read_table(path)
        said = (table.schema.metadata or {}).get(TIME_KEY.encode(), b"s")
        return cls(table.replace_schema_metadata(None), time=said.decode())

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[UserId, ItemId, float]]) -> InteractionLog:
        """Returns the log of ``(user_id, item_id, timestamp)`` rows; only the order of the times counts.

        Raises:
            DataError: If there is none, an id is empty or a time is no finite number.
        """
        rows = list(rows)
        for number, (user, item, time) in enumerate(rows, start=1):
            if not user or not item or not math.isfinite(time):
                raise DataError(
                    f"Row {number} of the log has an empty id or no finite time: {(user, item, time)}."
                )
        if not rows:
            raise DataError("The log has no rows.")
        users, items, times = zip(*rows, strict=True)
        columns = {
            "user_id": pa.array(map(str, users), pa.string()),
            "item_id": pa.array(map(str, items), pa.string()),
            "timestamp": pa.array(map(float, times), pa.float64()),
        }
        return cls(pa.table(columns))

    def write(self, path: str | Path) -> None:
        """Writes the log as Parquet, whole or not at all."""
        with atomic_path(path) as part:
            pa_parquet.write_table(self.table.replace_schema_metadata({TIME_KEY: self.time}), part)

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

    def k_core(self, user: int = 5, item: int = 5) -> InteractionLog:
        """Returns the largest part of the log in which every user and item has so many interactions.

        Args:
            user: Fewest interactions of a user; 1 keeps all.
            item: Fewest interactions of an item; 1 keeps all.

        Raises:
            DataError: If nothing is left.
        """
        rows, size = self.narrow(), -1
        while 0 < rows.num_rows != size:
            size = rows.num_rows
            rows = run_in_memory(core_round, rows, user, item)
        keep = np.flatnonzero(np.isin(self.rows, rows["row"].to_numpy()))
        if len(keep) == 0:
            raise DataError(
                f"No interaction is left after the core filter (user >= {user}, item >= {item}): the log has "
                f"{len(self):,} interactions of {self.num_users:,} users and {self.num_items:,} items. "
                "Lower data.user_core or data.item_core."
            )
        return InteractionLog(self.table.take(keep), self.num_quarantined, self.time, self.rows[keep])

    def narrow(self) -> pa.Table:
        """Returns what the rules of ``data_prep.rules`` read: numbers and names of users and items, times, rows."""
        users, items = (self.table[name].combine_chunks() for name in ("user_id", "item_id"))
        return pa.table(
            {
                "user": pc.cast(pc.dictionary_encode(users).indices, pa.int64()),
                "item": pc.cast(pc.dictionary_encode(items).indices, pa.int64()),
                "user_id": users,
                "item_id": items,
                "timestamp": self.table["timestamp"],
                "row": pa.array(self.rows, pa.int64()),
            }
        )

    def histories(self) -> dict[UserId, list[ItemId]]:
        """Returns each user's items, oldest first, users in order of first appearance in the source."""
        histories: dict[UserId, list[ItemId]] = {}
        pairs = zip(self.table["user_id"].to_pylist(), self.table["item_id"].to_pylist(), strict=True)
        for user, item in pairs:
            histories.setdefault(user, []).append(item)
        return histories
