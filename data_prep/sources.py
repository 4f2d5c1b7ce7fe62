"""Where logs and catalogues come from: files of users, public sets in their raw formats, the Hub, databases."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from genrec.core.errors import DataError, RunError, nearest, require
from genrec.core.hub import is_repo_id, pull, source_name
from genrec.core.progress import say
from genrec.data_prep.engine import Source
from genrec.data_prep.manifest import MANIFEST, PUSHED, check_manifest

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

BATCH = 50_000
# What data.users says where the source's own profiles shall be left out.
NO_USERS = "none"


@dataclass(frozen=True)
class Reading:
    """How a log and its catalogue are read.

    Attributes:
        format: Name of the format, for reports.
        log: Files of the log.
        items: Files of the catalogue; None where there is none.
        users: Files of the users' profiles; None where there are none.
        columns: ``{genrec's name: name in the log}``.
        item_columns: ``{genrec's name: name in the catalogue}``.
        user_columns: ``{genrec's name: name in the profiles}``.
        time: What times are.
        shape_log: What turns the log as it stands into one whose columns can be mapped.
        shape_items: The same for the catalogue.
        shape_users: The same for the profiles.
        repeated_items: ``first`` where the source is known to name items twice.
        unknown_items: ``untitled`` where the source is known to lack items of its log: they get an entry without text.
        terms: Under which terms the data may be used; said when it is read.
        version: Which edition of the data it is, where that is known.
        origin: What the data were made from before they were prepared; empty where they are read as they came.
    """

    format: str
    log: Source
    items: Source | None = None
    users: Source | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    item_columns: Mapping[str, str] = field(default_factory=dict)
    user_columns: Mapping[str, str] = field(default_factory=dict)
    time: TimeKind = "auto"
    shape_log: Callable[[ibis.Table], ibis.Table] | None = None
    shape_items: Callable[[ibis.Table], ibis.Table] | None = None
    shape_users: Callable[[ibis.Table], ibis.Table] | None = None
    repeated_items: Literal["error", "first"] = "error"
    unknown_items: Literal["error", "untitled"] = "error"
    terms: str = ""
    version: str = ""
    origin: str = ""

    @property
    def files(self) -> list[Path]:
        """Every file that is read."""
        return [file for source in (self.log, self.items, self.users) if source for file in source.files]


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
    if name.endswith((".tsv", ".inter", ".item", ".user")):
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


def prepared_on_hub(name: str) -> Path | None:
    """Returns the folder in the cache with a prepared data set that ``push_dataset`` put on the Hub, None if it is none."""
    if not is_repo_id(name) or Path(name).exists():
        return None
    hub = require("huggingface_hub", "train")
    try:
        hub.hf_hub_download(name, MANIFEST, repo_type="dataset")
    except (OSError, ValueError):  # no such file, or no such set: datasets then says what is the matter
        return None
    try:
        return pull(name, "dataset", "a prepared data set", PUSHED)
    except RunError as error:
        raise DataError(str(error)) from error


def without_login(source: str) -> str:
    """Returns a source without the name and the password that the address of a database may have, for people."""
    return re.sub(r"(?<=://)[^/]*@", "", source)


def database_table(address: str, query: str | None, scratch: Path, what: str) -> Source:
    """Returns what a database answers, as Parquet in the scratch folder; it passes through memory in batches.

    Args:
        address: ``sqlite:///FILE``, ``duckdb:///FILE``, or any other that ``ibis.connect`` takes, such as
            ``postgres://user@host/db``. Files are opened for reading only; an absolute path has a fourth slash.
        query: SQL, or the name of a table.
        scratch: Folder for the Parquet file.
        what: ``log``, ``items`` or ``users``, which names the file.

    Raises:
        DataError: If there is no query, no such file, or the database refuses.
    """
    import duckdb
    import ibis

    shown = without_login(address)
    if not query:
        raise DataError(
            f"{shown} is a database: say what it is asked with data.query=TABLE or data.query='SELECT ...'."
        )
    query = query.strip().rstrip(";")
    kind, _, rest = address.partition("://")
    if kind in ("sqlite", "duckdb") and not Path(rest.removeprefix("/")).is_file():
        raise DataError(
            f"{shown}: there is no file {rest.removeprefix('/')}. A path follows three slashes ({kind}:///log.db), an "
            f"absolute one begins with a fourth ({kind}:////data/log.db)."
        )
    scratch.mkdir(parents=True, exist_ok=True)
    file = scratch / f"{what}_of_database.parquet"
    try:
        if kind == "sqlite":
            _copy_from_sqlite(Path(rest.removeprefix("/")), query, file)
        elif kind == "duckdb":
            asked = query if re.search(r"\s", query) else f"SELECT * FROM {query}"
            with duckdb.connect(rest.removeprefix("/"), read_only=True) as con:
                con.sql(asked).write_parquet(str(file))
        else:
            backend: Any = ibis.connect(address)
            table = backend.sql(query) if re.search(r"\s", query) else backend.table(query)
            batches = table.to_pyarrow_batches(chunk_size=BATCH)
            _write(batches, batches.schema, file)
            backend.disconnect()
    except Exception as error:
        raise DataError(
            f"{shown} did not answer {query!r}: {type(error).__name__}: {str(error).replace(address, shown)}. data.query (and data.items, data.users) is the name of "
            "a table or SQL; data.source is sqlite:///FILE, duckdb:///FILE or another address that Ibis knows, whose driver "
            "must be installed (pip install 'ibis-framework[postgres]')."
        ) from error
    return Source((file,), "parquet", name=f"{shown} ({query})")


def _write(batches: Iterable[pa.RecordBatch], schema: pa.Schema, file: Path) -> None:
    with pa_parquet.ParquetWriter(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _copy_from_sqlite(database: Path, query: str, file: Path) -> None:
    """Writes what SQLite answers as Parquet; Ibis would hold all of it in memory.

    A value of SQLite has a type, a column has none: one of whole numbers becomes int64, one of numbers float64, any
    other text, for which the answer is looked through once before.
    """
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as con:
        if not re.search(r"\s", query):
            tables = [name for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type <> 'index'")]
            if query not in tables:
                raise LookupError(
                    f"there is no table {query!r}; it has {', '.join(tables) or 'none'}.{nearest(query, tables)}"
                )
            query = f"SELECT * FROM {_named(query)}"
        names = [column[0] for column in con.execute(f"SELECT * FROM ({query}) LIMIT 0").description]
        kinds = ", ".join(f"group_concat(DISTINCT typeof({_named(name)}))" for name in names)
        (found,) = con.execute(f"SELECT {kinds} FROM ({query})")
        types = [_arrow_type(set((kind or "").split(",")) - {"null", ""}) for kind in found]
        chosen = ", ".join(
            f"CAST({_named(name)} AS TEXT)" if type == pa.string() else _named(name)
            for name, type in zip(names, types, strict=True)
        )
        schema = pa.schema(list(zip(names, types, strict=True)))
        rows = con.execute(f"SELECT {chosen} FROM ({query})")
        parts = iter(lambda: rows.fetchmany(BATCH), [])
        arrays = (map(pa.array, zip(*part, strict=True), types) for part in parts)
        _write((pa.record_batch(list(columns), schema=schema) for columns in arrays), schema, file)


def _arrow_type(kinds: set[str]) -> pa.DataType:
    if kinds == {"integer"}:
        return pa.int64()
    return pa.float64() if kinds and kinds <= {"integer", "real"} else pa.string()


def _named(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def find_reading(
    source: str,
    scratch: Path,
    format: str = "auto",
    items: str | None = None,
    query: str | None = None,
    encoding: Literal["utf-8", "latin-1"] = "utf-8",
    users: str | None = None,
) -> Reading:
    """Returns how a source is read; the arguments are the keys of the recipe's ``data``.

    Raises:
        DataError: If the source is nothing that genrec reads, or several formats fit a folder.
    """
    reading = _reading(source, scratch, format, items, query, encoding)
    if users is None:
        return reading
    database = source if _is_database(source) else None
    given = _table(users, scratch, database, encoding, "users") if users != NO_USERS else None
    return replace(reading, users=given, user_columns={}, shape_users=None)


def _is_database(source: str) -> bool:
    return re.match(r"[a-z][a-z0-9+]*://", source) is not None


def _reading(
    source: str,
    scratch: Path,
    format: str,
    items: str | None,
    query: str | None,
    encoding: Literal["utf-8", "latin-1"],
) -> Reading:
    """Returns how a source is read, with the profiles that it has itself."""
    from genrec.data_prep.readers import FORMATS, PUBLIC, recognise

    if format not in ("auto", "table", *FORMATS):
        raise DataError(
            f"Unknown data.format {format!r}. Allowed: auto, table, {', '.join(FORMATS)}.{nearest(format, FORMATS)}"
        )
    if source in PUBLIC:
        return PUBLIC[source]()
    if source.startswith("hub:") and (folder := prepared_on_hub(source[4:])) is not None:
        return _prepared(folder, folder.name)
    if source.startswith("hub:"):
        return Reading("Hub data set", hub_table(source[4:], scratch), _table(items, scratch, None, encoding))
    if _is_database(source):
        log = database_table(source, query, scratch, "log")
        return Reading("database", log, _table(items, scratch, source, encoding))
    path = Path(source)
    if not path.exists():
        raise DataError(
            f"{source!r} is neither a file, nor a folder, nor one of the public sets {', '.join(sorted(PUBLIC))}, nor "
            f"hub:NAME, nor the address of a database.{nearest(source, PUBLIC)}"
        )
    catalogue = Path(items) if items else None
    if format in FORMATS:
        return FORMATS[format].open(path, catalogue)
    if path.is_dir() and (log_path := table_in(path, "interactions")) is not None:
        if (path / MANIFEST).is_file() and not items:
            return _prepared(path)
        items = items or str(table_in(path, "items") or "")
        users = table_in(path, "users")
        return Reading(
            "table",
            table_file(log_path, encoding),
            _table(items, scratch, None, encoding),
            table_file(users, encoding) if users else None,
        )
    if format == "auto" and (found := recognise(path, catalogue)) is not None:
        if path.is_file():
            say(f"  {path.name} is read as {found.format} (data.format=table reads it as a plain table)")
        return found
    return Reading("table", table_file(path, encoding), _table(items, scratch, None, encoding))


def _prepared(folder: Path, version: str = "") -> Reading:
    """Returns how a prepared data set is read; DataError as ``check_manifest``."""
    about = check_manifest(folder)
    log, items, users = (table_in(folder, name) for name in ("interactions", "items", "users"))
    assert log is not None
    assert items is not None  # the manifest names both
    return Reading(
        "table",
        table_file(log),
        table_file(items),
        table_file(users) if users else None,
        terms=about.get("terms", ""),  # a set that an earlier version prepared has none
        version=version or about.get("version", ""),
        origin=about.get("origin") or source_name(about["settings"]["source"]),
    )


def _table(
    table: str | None,
    scratch: Path,
    database: str | None,
    encoding: Literal["utf-8", "latin-1"],
    what: str = "items",
) -> Source | None:
    """Returns the table beside a log that ``data.items`` or ``data.users`` names."""
    if not table:
        return None
    if table.startswith("hub:"):
        return hub_table(table[4:], scratch)
    if database and not Path(table).exists():
        return database_table(database, table, scratch, what)
    return table_file(table, encoding)
