"""Where logs and catalogues come from: files of users, public sets in their raw formats, the Hub, databases."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.parquet as pa_parquet

from genrec.core.errors import DataError, nearest, require
from genrec.core.progress import say
from genrec.data_prep.engine import Source

if TYPE_CHECKING:
    import ibis

    from genrec.data_prep.tables import TimeKind

TABLES = (
    ".parquet",
    ".csv",
    ".csv.gz",
    ".tsv",
    ".tsv.gz",
    ".jsonl",
    ".jsonl.gz",
    ".ndjson",
    ".json",
    ".json.gz",
)


@dataclass(frozen=True)
class Reading:
    """How a log and its catalogue are read.

    Attributes:
        format: Name of the format, for reports.
        log: Files of the log.
        items: Files of the catalogue; None where there is none.
        columns: ``{genrec's name: name in the log}``.
        item_columns: ``{genrec's name: name in the catalogue}``.
        time: What times are.
        shape_log: What turns the log as it stands into one whose columns can be mapped.
        shape_items: The same for the catalogue.
        repeated_items: ``first`` where the source is known to name items twice.
        terms: Under which terms the data may be used; said when it is read.
    """

    format: str
    log: Source
    items: Source | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    item_columns: Mapping[str, str] = field(default_factory=dict)
    time: TimeKind = "auto"
    shape_log: Callable[[ibis.Table], ibis.Table] | None = None
    shape_items: Callable[[ibis.Table], ibis.Table] | None = None
    repeated_items: Literal["error", "first"] = "error"
    terms: str = ""

    @property
    def files(self) -> list[Path]:
        """Every file that is read."""
        return [*self.log.files, *(self.items.files if self.items else ())]


def table_file(path: str | Path, encoding: Literal["utf-8", "latin-1"] = "utf-8") -> Source:
    """Returns how a file of one table is read, by its ending; a folder is Parquet in parts.

    Raises:
        DataError: If there is no such file, or its ending is another.
    """
    file = Path(path)
    if not file.exists():
        raise DataError(f"{file} does not exist. Give the path of a .csv, .tsv, .jsonl or .parquet file.")
    if file.is_dir():
        if parts := sorted(file.glob("*.parquet")):
            return Source(tuple(parts), "parquet")
        raise DataError(f"The folder {file} holds no .parquet files, so that it is no table.")
    name = file.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return Source((file,), "parquet")
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return Source((file,), "json", encoding=encoding)
    if name.endswith(".csv"):
        return Source((file,), "csv", encoding=encoding)
    if name.endswith((".tsv", ".inter", ".item")):
        return Source((file,), "csv", delimiter="\t", quote="", encoding=encoding)
    raise DataError(
        f"{file} has the ending {file.suffix!r}; allowed are .csv, .tsv, .jsonl (each also with .gz behind it) and .parquet."
    )


def table_in(folder: Path, name: str) -> Path | None:
    """Returns the table of this name in a folder, whatever its ending; None if there is none."""
    return next((folder / (name + ending) for ending in TABLES if (folder / (name + ending)).exists()), None)


def hub_table(name: str, scratch: Path) -> Source:
    """Returns a data set of the Hub, or of a local folder that ``datasets`` reads, as Parquet in the scratch folder.

    Args:
        name: ``ORG/NAME``, ``ORG/NAME:CONFIG`` or ``ORG/NAME:CONFIG:SPLIT``; the split is ``train`` unless said.
        scratch: Folder for the Parquet file.

    Raises:
        DataError: If it cannot be had.
        MissingExtraError: If ``datasets`` is not installed.
    """
    datasets = require("datasets", "train")
    path, config, split, *_ = [*name.split(":"), "", ""]
    try:
        data = datasets.load_dataset(path, config or None, split=split or "train")
    except Exception as error:
        raise DataError(
            f"The Hub data set {path!r} (configuration {config or 'default'}, split {split or 'train'}) could not be read: "
            f"{error}. Write data.source=hub:ORG/NAME:CONFIG:SPLIT."
        ) from error
    file = scratch / f"{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}.parquet"
    scratch.mkdir(parents=True, exist_ok=True)
    data.to_parquet(str(file))
    return Source((file,), "parquet", name=f"hub:{name}")


def database_table(address: str, query: str | None, scratch: Path, what: str) -> Source:
    """Returns what a database answers, as Parquet in the scratch folder; it passes through memory in batches.

    Args:
        address: Any that ``ibis.connect`` takes, such as ``sqlite:///log.db`` or ``postgres://user@host/db``.
        query: SQL, or the name of a table.
        scratch: Folder for the Parquet file.
        what: ``log`` or ``items``, which names the file.

    Raises:
        DataError: If there is no query, or the database refuses.
    """
    import ibis

    if not query:
        raise DataError(
            f"{address} is a database: say what it is asked with data.query=TABLE or data.query='SELECT ...'."
        )
    scratch.mkdir(parents=True, exist_ok=True)
    file = scratch / f"{what}_of_database.parquet"
    try:
        con: Any = ibis.connect(address)
        table = con.sql(query) if re.search(r"\s", query.strip()) else con.table(query.strip())
        batches = table.to_pyarrow_batches()
        with pa_parquet.ParquetWriter(file, batches.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
    except Exception as error:
        raise DataError(f"{address} did not answer {query!r}: {type(error).__name__}: {error}") from error
    return Source((file,), "parquet", name=f"{address} ({query})")


def find_reading(
    source: str,
    scratch: Path,
    format: str = "auto",
    items: str | None = None,
    query: str | None = None,
    encoding: Literal["utf-8", "latin-1"] = "utf-8",
) -> Reading:
    """Returns how a source is read; the arguments are the keys of the recipe's ``data``.

    Raises:
        DataError: If the source is nothing that genrec reads, or several formats fit a folder.
    """
    from genrec.data_prep.readers import FORMATS, PUBLIC, recognise

    if format != "auto" and format not in FORMATS:
        raise DataError(
            f"Unknown data.format {format!r}. Allowed: auto, {', '.join(FORMATS)}.{nearest(format, FORMATS)}"
        )
    if source in PUBLIC:
        return PUBLIC[source]()
    if source.startswith("hub:"):
        return Reading("Hub data set", hub_table(source[4:], scratch), _items(items, scratch, None, encoding))
    if re.match(r"[a-z][a-z0-9+]*://", source):
        log = database_table(source, query, scratch, "log")
        return Reading("database", log, _items(items, scratch, source, encoding))
    path = Path(source)
    if not path.exists():
        raise DataError(
            f"{source!r} is neither a file, nor a folder, nor one of the public sets {', '.join(sorted(PUBLIC))}, nor "
            f"hub:NAME, nor the address of a database.{nearest(source, PUBLIC)}"
        )
    if format != "auto":
        return FORMATS[format].read(path)
    if path.is_dir():
        if (log_path := table_in(path, "interactions")) is not None:
            beside = table_in(path, "items")
            catalogue = table_file(beside, encoding) if beside else None
            return Reading("table", table_file(log_path, encoding), catalogue)
        return recognise(path)
    found = recognise(path, sure=False)
    if found is not None:
        say(f"  {path.name} is read as {found.format} (data.format=table reads it as a plain table)")
        return found
    return Reading("table", table_file(path, encoding), _items(items, scratch, None, encoding))


def _items(
    items: str | None, scratch: Path, database: str | None, encoding: Literal["utf-8", "latin-1"]
) -> Source | None:
    if not items:
        return None
    if items.startswith("hub:"):
        return hub_table(items[4:], scratch)
    if database and not Path(items).exists():
        return database_table(database, items, scratch, "items")
    return table_file(items, encoding)
