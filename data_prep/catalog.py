"""The item catalogue: what is known of every item."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pa_parquet

from genrec.core.errors import DataError, UnknownItemError, nearest
from genrec.core.files import atomic_path
from genrec.data_prep.engine import Engine, Scan, in_memory, scan_table
from genrec.data_prep.log import InteractionLog, ItemId
from genrec.data_prep.sources import table_file
from genrec.data_prep.tables import OnBadRows, check_items


class ItemCatalog:
    """Items in a fixed order, each with a title.

    An item without a title is called by its id (``Item 42``), counted in ``num_untitled``. Titles may
    repeat: items are told apart by id, never by title; ``num_shared_titles`` counts them.

    Attributes:
        table: Arrow table with ``item_id``, ``title`` and whatever else the source had.
        num_untitled: Items whose title was missing.
        num_shared_titles: Items whose title another item has too.
    """

    def __init__(self, table: pa.Table) -> None:
        ids = table["item_id"].to_pylist()
        given = table["title"].to_pylist() if "title" in table.column_names else [None] * len(ids)
        stripped = [title.strip() if isinstance(title, str) else "" for title in given]
        titles = [title or f"Item {item}" for item, title in zip(ids, stripped, strict=True)]
        # Counted by the stand-in: a catalogue that was written and read again has that for a title.
        self.num_untitled = sum(title == f"Item {item}" for item, title in zip(ids, titles, strict=True))
        column = pa.array(titles, pa.string())
        if "title" in table.column_names:
            table = table.set_column(table.column_names.index("title"), "title", column)
        else:
            table = table.append_column("title", column)
        self.table = table
        self.item_ids: list[ItemId] = ids
        self._titles = dict(zip(ids, titles, strict=True))
        counts: dict[str, int] = {}
        for title in titles:
            counts[title] = counts.get(title, 0) + 1
        self.num_shared_titles = sum(count for count in counts.values() if count > 1)

    @classmethod
    def read(
        cls,
        path: str | Path,
        columns: Mapping[str, str] | None = None,
        on_bad_rows: OnBadRows = "error",
        quarantine: str | Path | None = None,
    ) -> ItemCatalog:
        """Returns the catalogue in a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file.

        Raises:
            DataError: If ``item_id`` is missing as a column or in a row, or an item has two rows.
        """
        with in_memory() as engine:
            scan = engine.scan(table_file(path))
            return cls._checked(engine, scan, columns, on_bad_rows, quarantine)

    @classmethod
    def from_table(
        cls,
        table: pa.Table,
        columns: Mapping[str, str] | None = None,
        on_bad_rows: OnBadRows = "error",
        quarantine: str | Path | None = None,
        source: str = "the catalogue",
    ) -> ItemCatalog:
        """Returns the catalogue held in an Arrow table; errors as in ``read``."""
        with in_memory() as engine:
            scan = scan_table(engine, table, source)
            return cls._checked(engine, scan, columns, on_bad_rows, quarantine)

    @classmethod
    def _checked(
        cls,
        engine: Engine,
        scan: Scan,
        columns: Mapping[str, str] | None,
        on_bad_rows: OnBadRows,
        quarantine: str | Path | None,
    ) -> ItemCatalog:
        checked = check_items(engine, scan, columns, on_bad_rows, quarantine)
        table = checked.take()
        return cls(with_lists(table) if scan.source.format == "json" else table)

    @classmethod
    def load(cls, path: str | Path) -> ItemCatalog:
        """Returns a catalogue that ``write`` wrote, unchecked."""
        return cls(pa_parquet.read_table(path))

    @classmethod
    def from_titles(cls, titles: Mapping[ItemId, str | None]) -> ItemCatalog:
        """Returns the catalogue of ``{item_id: title}``."""
        return cls(
            pa.table(
                {
                    "item_id": pa.array(list(titles), pa.string()),
                    "title": pa.array(list(titles.values()), pa.string()),
                }
            )
        )

    @classmethod
    def from_log(cls, log: InteractionLog) -> ItemCatalog:
        """Returns a catalogue of the log's items for logs that come without one; no item has text."""
        ids = sorted(pc.unique(log.table["item_id"]).to_pylist())
        return cls.from_titles(dict.fromkeys(ids))

    def write(self, path: str | Path) -> None:
        """Writes the catalogue as Parquet, whole or not at all."""
        with atomic_path(path) as part:
            pa_parquet.write_table(self.table, part)

    def __len__(self) -> int:
        return len(self.item_ids)

    def __contains__(self, item: object) -> bool:
        return item in self._titles

    def title(self, item: ItemId) -> str:
        """Returns an item's title.

        Raises:
            UnknownItemError: If the item is not in the catalogue; the message has the nearest id.
        """
        if item not in self._titles:
            raise UnknownItemError(
                f"Item {item!r} is not in the catalogue of {len(self):,} items.{nearest(item, self._titles)}"
            )
        return self._titles[item]

    def texts(self, fields: Sequence[str] = ("title", "categories", "brand")) -> list[str]:
        """Returns each item's fields, joined by spaces, in catalogue order; what is missing is passed over.

        Args:
            fields: Columns of texts or of lists of texts; a column that the catalogue lacks is passed over.
        """
        parts: list[list[str]] = [[] for _ in self.item_ids]
        for name in fields:
            if name in self.table.column_names:
                for row, value in enumerate(self.table[name].to_pylist()):
                    words: Iterable[object] = value if isinstance(value, list) else [value]
                    parts[row] += [str(word) for word in words if word]
        return [" ".join(part) for part in parts]

    def append(self, items: ItemCatalog) -> ItemCatalog:
        """Returns the catalogue of these items and then those; a column that one of the two lacks is empty there.

        Raises:
            DataError: If an item is in both, or a column has different types.
        """
        if twice := [item for item in items.item_ids if item in self]:
            raise DataError(f"{len(twice):,} items are in both catalogues, first {twice[0]!r}.")
        empty = [name for name in items.table.column_names if items.table[name].null_count == len(items)]
        added = items.table.drop_columns([name for name in empty if name in self.table.column_names])
        try:
            return ItemCatalog(pa.concat_tables([self.table, added], promote_options="default"))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"The two catalogues do not fit together: {error}") from error

    def select(self, item_ids: Sequence[ItemId]) -> ItemCatalog:
        """Returns the catalogue of these items, in this order.

        Raises:
            UnknownItemError: If one is not in the catalogue.
        """
        row = {item: number for number, item in enumerate(self.item_ids)}
        for item in item_ids:
            self.title(item)
        return ItemCatalog(self.table.take([row[item] for item in item_ids]))

    def restrict_to_log(self, log: InteractionLog) -> ItemCatalog:
        """Returns the catalogue of exactly the items of the log, in catalogue order.

        Raises:
            DataError: If the log names items that the catalogue does not have.
        """
        used = set(pc.unique(log.table["item_id"]).to_pylist())
        unknown = sorted(used - self._titles.keys())
        if unknown:
            raise DataError(
                f"The log names {len(unknown):,} items that the catalogue lacks, first: "
                f"{', '.join(unknown[:5])}. Add them to the catalogue (a title may be empty)."
            )
        return self.select([item for item in self.item_ids if item in used])


def with_lists(table: pa.Table) -> pa.Table:
    """Returns a table from JSON whose columns of lists of texts are such again; elsewhere they are the lists' JSON."""
    for number, name in enumerate(table.column_names):
        values = table[name].to_pylist() if pa.types.is_string(table[name].type) else []
        if any(values) and all(value.startswith("[") for value in values if value):
            with suppress(ValueError):  # texts that begin with a bracket by chance
                lists = [None if value is None else [str(v) for v in json.loads(value)] for value in values]
                table = table.set_column(number, name, pa.array(lists, pa.list_(pa.string())))
    return table
