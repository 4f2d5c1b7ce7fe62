"""Where the expressions of data preparation run: DuckDB, embedded and out of core, or Spark."""

from __future__ import annotations

import ast
import codecs
import csv
import gzip
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from genrec.core.errors import DataError, require
from genrec.core.files import atomic_path

if TYPE_CHECKING:
    import ibis

Format = Literal["csv", "json", "parquet"]


# What DuckDB says of a line, in our words.
REASONS = {
    "INVALID ENCODING": "is not valid UTF-8 (data.encoding=latin-1 reads Latin-1)",
    "MISSING COLUMNS": "has fewer values than there are columns",
    "TOO MANY COLUMNS": "has more values than there are columns",
    "UNQUOTED VALUE": "has a quote that is not closed, or more text behind a closed one",
}
# Why a line of JSON cannot be used, in DuckDB's words; NULL where it can.
NO_JSON = (
    "CASE WHEN NOT json_valid(line) THEN 'is no valid JSON' WHEN json_type(line) <> 'OBJECT' THEN 'is JSON, but no object' "
    "WHEN len(json_keys(line)) <> len(list_distinct(json_keys(line))) THEN 'has a key twice' END"
)


class EngineSettings(BaseModel):
    """What data preparation runs on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["duckdb", "spark"] = Field(
        "duckdb",
        description="duckdb: this machine, spilling to disk. spark: a Spark session, for logs that outgrow a machine "
        "(pip install 'genrec[spark]'; needs Java 17).",
    )
    memory_gb: float = Field(
        4, gt=0, description="Memory that the engine may take before it spills to disk, in GB."
    )
    threads: int | None = Field(
        None, ge=1, description="Threads of the engine; empty is one a processor core."
    )
    spark: dict[str, str] = Field(
        default_factory=dict,
        description="Settings of the Spark session, such as spark.master: spark://host:7077 (default local[*]).",
    )


@dataclass(frozen=True)
class Source:
    """Files that hold one table.

    Attributes:
        files: In this order, which is the order of their rows.
        format: ``csv`` is any delimited text, ``json`` is one object a line. Both may be gzipped.
        delimiter: Of ``csv``, one character or several.
        quote: Of ``csv``; empty where nothing is quoted.
        header: Names of the columns of a ``csv`` without a header line.
        encoding: ``utf-8`` or ``latin-1``.
        keys: Keys of ``json`` that are read; empty reads those of the first 10,000 lines.
        lists: Those of ``keys`` that become lists of texts: of lists in lists their texts in turn, of one text a list of one.
        literal: Whether lines of ``json`` are Python's dictionaries instead, as ``repr`` writes them; needs ``keys``.
        name: What to call a table that is no file.
    """

    files: tuple[Path, ...]
    format: Format
    delimiter: str = ","
    quote: str = '"'
    header: tuple[str, ...] = ()
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    keys: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    literal: bool = False
    name: str = ""

    def __str__(self) -> str:
        if self.name:
            return self.name
        return (
            str(self.files[0])
            if len(self.files) == 1
            else f"{self.files[0]} and {len(self.files) - 1:,} more"
        )


@dataclass(frozen=True)
class Reject:
    """A record that is no row.

    Attributes:
        file: Where it is.
        line: Line at which it begins, from 1, the header counted; 0 is unknown.
        reason: Why it is no row.
        text: What stands there.
        record: Its number among the records of the file, from 1, the header counted, where later rows do not count it;
            0 where they do.
    """

    file: str
    line: int
    reason: str
    text: str
    record: int = 0


@dataclass
class Scan:
    """A table as it stands in its files: every column of text files is text; ``file`` and ``row`` say where.

    ``row`` orders the rows as the source does. It counts from 1 in each file on DuckDB; on Spark it only grows.
    """

    table: ibis.Table
    source: Source
    rejects: list[Reject] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Names of the source's own columns."""
        return [name for name in self.table.columns if name not in ("_file", "_row")]


def open_text(path: Path, encoding: str = "utf-8") -> Any:
    """Returns a text file, gzipped or not, open for reading; what is not of the encoding is replaced."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding=encoding, errors="replace", newline="")


def csv_header(source: Source) -> list[str]:
    """Returns the names of a delimited file's columns; ``name:type`` headers (RecBole's) lose the type.

    Raises:
        DataError: If there is no header line, or a name stands twice.
    """
    if source.header:
        return list(source.header)
    with open_text(source.files[0], source.encoding) as file:
        first = file.readline().removeprefix(codecs.BOM_UTF8.decode()).rstrip("\r\n")
    if not first:
        raise DataError(f"{source.files[0]} is empty. A table needs a header and at least one row.")
    if len(source.delimiter) == 1:
        names = next(
            csv.reader(
                [first],
                delimiter=source.delimiter,
                quotechar=source.quote or None,
                quoting=csv.QUOTE_MINIMAL if source.quote else csv.QUOTE_NONE,
            )
        )
    else:
        names = first.split(source.delimiter)
    names = [
        name.strip().split(":")[0] if path_is_atomic(source.files[0]) else name.strip() for name in names
    ]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"{source.files[0]} has two columns named {twice[0]!r}. Rename one of them in its header."
        )
    return names


# A string of Python: of plain letters in single quotes, or any other in either kind of quotes.
STRING = re.compile(r"""'([^'"\\\x00-\x1f]*)'|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")


def parse_literal(text: str) -> Any:
    """Returns what ``ast.literal_eval`` does, for a dictionary of texts, numbers and lists in a third of its time.

    Raises:
        ValueError, SyntaxError, TypeError, MemoryError or RecursionError: As ``ast.literal_eval``.
    """

    def as_json(found: re.Match[str]) -> str:
        plain = found[1]
        return f'"{plain}"' if plain is not None else json.dumps(ast.literal_eval(found[0]))

    with suppress(ValueError, SyntaxError):
        return json.loads(STRING.sub(as_json, text))
    return ast.literal_eval(text)


def literal_to_json(file: Path, source: Source, target: Path) -> list[Reject]:
    """Returns the lines of a file that are no Python dictionary; the others are written as JSON, in a line each.

    Only ``source.keys`` are written, and line numbers stay: a line that is rejected is empty in the target.
    """
    rejects = []
    opener: Any = gzip.open if file.suffix == ".gz" else open
    with (
        opener(file, "rb") as lines,
        open(target, "w", encoding="utf-8", errors="replace") as sink,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", SyntaxWarning)  # of escapes that Python does not know
        for number, line in enumerate(lines, start=1):
            reason, found = "", None
            try:
                text = line.decode("utf-8")
                if text.strip():
                    found = parse_literal(text.strip())
                    reason = "" if isinstance(found, dict) else "is Python, but no dictionary"
            except UnicodeDecodeError:
                reason = REASONS["INVALID ENCODING"]
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                reason = "is no valid dictionary of Python"
            if reason:
                rejects.append(
                    Reject(str(file), number, reason, line.decode("utf-8", "replace").rstrip("\r\n"))
                )
            elif found is not None:
                kept = {key: found[key] for key in source.keys if key in found}
                sink.write(json.dumps(kept, ensure_ascii=False, default=str))
            sink.write("\n")
    return rejects


def path_is_atomic(path: Path) -> bool:
    """Returns whether a file is one of RecBole's atomic files, whose header gives types."""
    return path.suffix in (".inter", ".item", ".user")


def _check_file(file: Path) -> None:
    if not file.exists():
        raise DataError(f"{file} does not exist. Give the path of a .csv, .tsv, .jsonl or .parquet file.")
    if file.is_file() and file.stat().st_size == 0:
        raise DataError(f"{file} is empty. A table needs a header and at least one row.")


class Engine:
    """Runs Ibis expressions; made by ``open_engine``, closed by leaving a ``with`` block.

    Attributes:
        con: The Ibis backend.
        scratch: Folder of what is kept between steps, removed at the end; None keeps it in memory.
        counts_rows: Whether ``_row`` counts the rows of a file from 1.
    """

    con: Any
    counts_rows = True

    def __init__(self, scratch: Path | None) -> None:
        self.scratch = scratch
        self._count = 0
        self._stored: set[str] = set()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _name(self) -> str:
        self._count += 1
        name = f"step_{self._count}"
        self._stored.add(name)
        return name

    @contextmanager
    def freeing(self) -> Iterator[None]:
        """Frees what is stored within the block and not dropped there, however the block ends."""
        before = set(self._stored)
        try:
            yield
        finally:
            for name in self._stored - before:
                self.con.raw_sql(f"DROP TABLE IF EXISTS {name}")
            self._stored &= before

    @contextmanager
    def _read_from(self, file: Path, source: Source) -> Iterator[tuple[Path, list[Reject]]]:
        """Gives the file that the engine can read, and what of the source's own file is no row already."""
        if not source.literal:
            yield file, []
            return
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            target = Path(folder) / "lines.jsonl"
            yield target, literal_to_json(file, source, target)

    def keep(self, expression: ibis.Table) -> ibis.Table:
        """Returns a table that holds what an expression comes to now, so that it is not computed again."""
        name = self._name()
        self.con.raw_sql(f"CREATE TABLE {name} AS {self.sql(expression)}")
        return self.con.table(name)

    def drop(self, table: ibis.Table) -> None:
        """Frees a table that ``keep`` returned."""
        self.con.raw_sql(f"DROP TABLE {table.get_name()}")
        self._stored.discard(table.get_name())

    def sql(self, expression: ibis.Table) -> str:
        """Returns an expression in the engine's own words."""
        return self.con.compile(expression)

    def fetch(self, expression: ibis.Table) -> pa.Table:
        """Returns the rows of an expression as an Arrow table in memory."""
        return self.con.to_pyarrow(expression)

    def one(self, expression: ibis.Table) -> dict[str, Any]:
        """Returns the only row of an expression."""
        (row,) = self.fetch(expression).to_pylist()
        return row

    def scan(self, source: Source) -> Scan:
        """Returns a table as it stands in its files.

        Raises:
            DataError: If a file is missing, empty or broken as a whole.
        """
        raise NotImplementedError

    def write(
        self, expression: ibis.Table, path: Path, order: Sequence[str], about: Mapping[str, str]
    ) -> None:
        """Writes an expression as Parquet, ordered by columns that are not written, whole or not at all.

        Args:
            expression: What is written.
            path: File, or folder of several in order (Spark).
            order: Columns.
            about: Metadata of the file; Spark has no way to write them.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Ends the engine's session."""


class DuckDBEngine(Engine):
    """DuckDB in this process; tables lie in a file of the scratch folder, so that they may outgrow memory."""

    def __init__(self, settings: EngineSettings, scratch: Path | None) -> None:
        super().__init__(scratch)
        import ibis

        options: dict[str, Any] = {"memory_limit": f"{settings.memory_gb}GB"}
        if settings.threads:
            options["threads"] = settings.threads
        if scratch:
            scratch.mkdir(parents=True, exist_ok=True)
            options["temp_directory"] = str(scratch / "spill")
        self.con = ibis.duckdb.connect(scratch / "tables.duckdb" if scratch else ":memory:", **options)
        self.con.raw_sql("SET enable_progress_bar = false")
        self.con.raw_sql("SET TimeZone = 'UTC'")  # of ISO times without an offset

    def put(self, table: pa.Table) -> ibis.Table:
        """Returns an Arrow table as one of the engine's."""
        name = self._name()
        self.con.con.register(f"{name}_arrow", table)
        self.con.raw_sql(f"CREATE TABLE {name} AS SELECT * FROM {name}_arrow")
        self.con.con.unregister(f"{name}_arrow")
        return self.con.table(name)

    def scan(self, source: Source) -> Scan:
        """As ``Engine.scan``."""
        import duckdb

        name, rejects = self._name(), []
        for number, file in enumerate(source.files):
            _check_file(file)
            begin = f"CREATE TABLE {name} AS" if not number else f"INSERT INTO {name} BY NAME"
            try:
                with self._read_from(file, source) as (readable, found):
                    rows = self._select(source, readable)
                    self.con.raw_sql(f"{begin} SELECT *, {number}::BIGINT AS _file FROM ({rows})")
                    found += self._rejects(file, source)
                rejects += sorted(found, key=lambda reject: reject.line)
            except (duckdb.Error, OSError, EOFError) as error:
                raise DataError(f"{file} could not be read as {source.format}: {error}") from error
        return Scan(self.con.table(name), source, rejects)

    def _select(self, source: Source, file: Path) -> str:
        path = _quoted(str(file))
        if source.format == "parquet":
            return f"SELECT * EXCLUDE (file_row_number), file_row_number + 1 AS _row FROM read_parquet({path}, file_row_number = true)"
        common = (
            f"auto_detect = false, store_rejects = true, rejects_limit = 0, encoding = '{source.encoding}', "
            f"compression = '{'gzip' if file.suffix == '.gz' else 'none'}', max_line_size = 100000000"
        )
        if source.format == "csv":
            columns = ", ".join(f"{_quoted(name)}: 'VARCHAR'" for name in csv_header(source))
            quote = _quoted(source.quote)
            return (
                f"SELECT *, row_number() OVER () AS _row FROM read_csv({path}, columns = {{{columns}}}, "
                f"header = {str(not source.header).lower()}, delim = {_quoted(source.delimiter)}, quote = {quote}, "
                f"escape = {quote}, {common})"
            )
        lines = (
            f"SELECT line, row_number() OVER () AS _row FROM read_csv({path}, columns = {{'line': 'VARCHAR'}}, header = false, "
            f"delim = '\x01', quote = '', escape = '', {common})"
        )
        keys = source.keys or self._keys(lines)
        fields = ", ".join(
            f"{_json_texts(key) if key in source.lists else _json_text(key)} AS {_identifier(key)}"
            for key in keys
        )
        self.con.raw_sql(f"CREATE OR REPLACE TEMP TABLE lines AS {lines}")
        return f"SELECT {fields}, _row FROM lines WHERE trim(coalesce(line, '')) <> '' AND {NO_JSON} IS NULL"

    def _keys(self, lines: str) -> tuple[str, ...]:
        found = self.con.raw_sql(
            f"SELECT DISTINCT unnest(json_keys(line)) FROM (SELECT line FROM ({lines}) LIMIT 10000) "
            "WHERE json_valid(line) AND json_type(line) = 'OBJECT'"
        ).fetchall()
        return tuple(sorted(key for (key,) in found))

    def _rejects(self, file: Path, source: Source) -> list[Reject]:
        if source.format == "parquet":
            return []
        # A record may have several errors, and be read twice; the first says enough. DuckDB's line counts records.
        errors = self.con.raw_sql(
            "SELECT line, first(error_type ORDER BY column_idx), first(error_message ORDER BY column_idx), "
            "first(csv_line) FROM reject_errors GROUP BY line ORDER BY line"
        ).fetchall()
        lines = line_of_records(file, source, [record for record, *_ in errors])
        found = [
            Reject(str(file), lines[record], REASONS.get(kind, message.splitlines()[0]), text or "", record)
            for record, kind, message, text in errors
        ]
        self.con.raw_sql("DROP TABLE reject_errors")
        self.con.raw_sql("DROP TABLE reject_scans")
        if source.format == "json":
            wrong = self.con.raw_sql(
                f"SELECT _row, line, {NO_JSON} FROM lines WHERE trim(coalesce(line, '')) <> '' AND {NO_JSON} IS NOT NULL "
                "ORDER BY _row"
            ).fetchall()
            lines = line_numbers(file, source, [row for row, _, _ in wrong], found)
            found += [Reject(str(file), lines[row], reason, text) for row, text, reason in wrong]
            self.con.raw_sql("DROP TABLE lines")
        return found

    def write(
        self, expression: ibis.Table, path: Path, order: Sequence[str], about: Mapping[str, str]
    ) -> None:
        """As ``Engine.write``."""
        said = ", ".join(f"{_quoted(key)}: {_quoted(value)}" for key, value in about.items())
        ordered = expression.order_by(list(order)).drop(*order)
        with atomic_path(path) as part:
            self.con.raw_sql(
                f"COPY ({self.sql(ordered)}) TO {_quoted(str(part))} (FORMAT parquet, COMPRESSION zstd, KV_METADATA {{{said}}})"
            )

    def close(self) -> None:
        """As ``Engine.close``."""
        with suppress(Exception):
            self.con.disconnect()


def line_numbers(
    file: Path, source: Source, rows: Sequence[int], rejects: Sequence[Reject]
) -> dict[int, int]:
    """Returns the line (from 1) at which each row (from 1) of a text file begins.

    Args:
        file: One of the source's files.
        source: How it is read.
        rows: Rows as they are counted without the header and the records that were rejected.
        rejects: Those records.
    """
    records = sorted(reject.record for reject in rejects if reject.record and reject.file == str(file))
    record_of = {}
    for row in sorted(set(rows)):
        number = row + (source.format == "csv" and not source.header)
        for record in records:
            number += record <= number
        record_of[row] = number
    lines = line_of_records(file, source, list(record_of.values()))
    return {row: lines[record] for row, record in record_of.items()}


def line_of_records(file: Path, source: Source, records: Sequence[int]) -> dict[int, int]:
    """Returns the line at which each record (from 1, the header counted) begins; quoted values may hold line ends."""
    if source.format == "json" or not source.quote or len(source.delimiter) > 1 or not records:
        return {record: record for record in records}
    csv.field_size_limit(2**31 - 1)
    wanted, found, begin = set(records), {}, 1
    with open_text(file, source.encoding) as text:
        reader = csv.reader(text, delimiter=source.delimiter, quotechar=source.quote)
        for record, _ in enumerate(reader, start=1):
            if record in wanted:
                found[record] = begin
                if len(found) == len(wanted):
                    break
            begin = reader.line_num + 1
    return {record: found.get(record, record) for record in records}


class SparkEngine(Engine):
    """A Spark session of this process, or of the cluster that ``spark.master`` names."""

    counts_rows = False

    def __init__(self, settings: EngineSettings, scratch: Path) -> None:
        super().__init__(scratch)
        require("pyspark", "spark")
        # PySpark 4.3 says so at every step; nothing here passes through pandas but Arrow tables on their way out.
        warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
        import ibis
        from pyspark.sql import SparkSession

        scratch.mkdir(parents=True, exist_ok=True)
        options = {
            "spark.master": f"local[{settings.threads or '*'}]",
            "spark.driver.memory": f"{int(settings.memory_gb * 1024)}m",
            "spark.ui.enabled": "false",
            "spark.sql.session.timeZone": "UTC",  # as DuckDB reads times without an offset
            "spark.sql.ansi.enabled": "false",
            "spark.sql.shuffle.partitions": "8",  # for one machine; a cluster's own number goes into data.engine.spark
            "spark.sql.warehouse.dir": str(scratch / "warehouse"),
            "spark.sql.catalogImplementation": "in-memory",
            **settings.spark,
        }
        builder = SparkSession.builder.appName("genrec")
        for key, value in options.items():
            builder = builder.config(key, value)
        try:
            self.session = builder.getOrCreate()
        except Exception as error:
            raise DataError(
                f"Spark did not start: {error}. It needs Java 17 or later (java -version), and data.engine.spark must "
                "name a master that can be reached."
            ) from error
        self.session.sparkContext.setLogLevel("ERROR")
        self.con = ibis.pyspark.connect(self.session)

    def keep(self, expression: ibis.Table) -> ibis.Table:
        """As ``Engine.keep``."""
        name = self._name()
        self.con.raw_sql(f"CREATE TABLE {name} USING parquet AS {self.sql(expression)}")
        return self.con.table(name)

    def scan(self, source: Source) -> Scan:
        """As ``Engine.scan``."""
        from functools import reduce

        from pyspark.sql import functions as f

        parts, rejects = [], []
        with ExitStack() as open_until_kept:  # Spark reads files when a table is kept, not before
            for number, file in enumerate(source.files):
                _check_file(file)
                readable, found = open_until_kept.enter_context(self._read_from(file, source))
                if source.format == "parquet":
                    part = self.session.read.parquet(str(file))
                elif source.format == "csv":
                    part, wrong = self._csv(file, source)
                    found += wrong
                else:
                    part, wrong = self._json(file, str(readable), source)
                    found += wrong
                rejects += sorted(found, key=lambda reject: reject.line)
                parts.append(
                    part.withColumn("_row", f.monotonically_increasing_id()).withColumn(
                        "_file", f.lit(number).cast("long")
                    )
                )
            name = self._name()
            reduce(lambda one, two: one.unionByName(two), parts).createOrReplaceTempView(name)
            return Scan(self.keep(self.con.table(name)), source, rejects)

    def _csv(self, file: Path, source: Source) -> tuple[Any, list[Reject]]:
        names = csv_header(source)
        schema = ", ".join(f"`{name}` STRING" for name in [*names, "_wrong"])
        reader = self.session.read.schema(schema).option("columnNameOfCorruptRecord", "_wrong")
        options: dict[str, Any] = {
            "header": not source.header,
            "sep": source.delimiter,
            "quote": source.quote,
            "escape": source.quote,
            "encoding": "ISO-8859-1" if source.encoding == "latin-1" else "UTF-8",
            "mode": "PERMISSIVE",
            "multiLine": False,
            "enforceSchema": True,
        }
        part = reader.options(**options).csv(str(file)).cache()
        wrong = part.where("_wrong IS NOT NULL").select("_wrong")
        rejects = self._wrong(wrong, file, "has not as many values as there are columns", source.encoding)
        return part.where("_wrong IS NULL").drop("_wrong"), rejects

    def _json(self, file: Path, readable: str, source: Source) -> tuple[Any, list[Reject]]:
        from pyspark.sql import functions as f

        lines = self.session.read.text(readable).where("trim(value) <> ''")
        valid = f.coalesce(f.get_json_object("value", "$").startswith("{"), f.lit(False))
        keys_of = f.expr("json_object_keys(value)")
        twice = f.coalesce(f.size(keys_of) != f.size(f.array_distinct(keys_of)), f.lit(False))
        rejects = self._wrong(lines.where(~valid).select("value"), file, "is no valid JSON object")
        rejects += self._wrong(lines.where(valid & twice).select("value"), file, "has a key twice")
        lines = lines.where(valid & ~twice)
        keys = source.keys or tuple(
            sorted({key for (found,) in lines.limit(10_000).select(keys_of).collect() for key in found})
        )

        def texts(key: str) -> Any:
            value = f.get_json_object("value", f"$['{key}']")
            listed = f.coalesce(f.from_json(value, "array<string>"), f.array(value))
            flat = f.flatten(
                f.transform(listed, lambda v: f.coalesce(f.from_json(v, "array<string>"), f.array(v)))
            )
            return f.when(value.isNotNull(), flat)

        columns = [
            (texts(key) if key in source.lists else f.get_json_object("value", f"$['{key}']")).alias(key)
            for key in keys
        ]
        return lines.select(*columns), rejects

    def _wrong(self, lines: Any, file: Path, reason: str, encoding: str = "utf-8") -> list[Reject]:
        texts = [text for (text,) in lines.collect()]
        if not texts:
            return []
        wanted, found = set(texts), []
        # Spark does not say where a line stands; the file does, where this machine can read it.
        if file.is_file():
            with open_text(file, encoding) as text:
                found = [
                    Reject(str(file), n, reason, line.rstrip("\r\n"))
                    for n, line in enumerate(text, start=1)
                    if line.rstrip("\r\n") in wanted
                ]
        return found or [Reject(str(file), 0, reason, text) for text in texts]

    def write(
        self,
        expression: ibis.Table,
        path: Path,
        order: Sequence[str],
        about: Mapping[str, str],  # noqa: ARG002
    ) -> None:
        """As ``Engine.write``."""
        frame = self.session.sql(self.sql(expression)).orderBy(*order).drop(*order)
        with atomic_path(path) as part:
            frame.write.parquet(str(part))

    def drop(self, table: ibis.Table) -> None:
        """As ``Engine.drop``."""
        self.session.sql(f"DROP TABLE {table.get_name()}")
        self._stored.discard(table.get_name())

    def close(self) -> None:
        """As ``Engine.close``."""
        self.session.stop()


def open_engine(settings: EngineSettings, scratch: Path) -> Engine:
    """Returns the engine that the settings name, with a scratch folder of its own.

    Raises:
        MissingExtraError: If Spark is asked for and not installed.
        DataError: If Spark does not start.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    return SparkEngine(settings, scratch) if settings.name == "spark" else DuckDBEngine(settings, scratch)


@cache
def memory_engine() -> DuckDBEngine:
    """Returns the engine of small tables: one DuckDB for the whole process, in memory."""
    return DuckDBEngine(EngineSettings(), None)


@contextmanager
def in_memory() -> Iterator[DuckDBEngine]:
    """Gives the engine of small tables, and frees afterwards what was stored in it."""
    engine = memory_engine()
    with engine.freeing():
        yield engine


def scan_table(engine: DuckDBEngine, table: pa.Table, name: str) -> Scan:
    """Returns an Arrow table as ``Engine.scan`` would; ``name`` is what errors call it."""
    for place, (column, kind) in enumerate(zip(table.column_names, table.schema.types, strict=True)):
        if pa.types.is_list(kind) and pa.types.is_null(kind.value_type):  # which DuckDB has no type for
            table = table.set_column(place, column, table[place].cast(pa.list_(pa.string())))
    rows = pa.array(range(1, table.num_rows + 1), pa.int64())
    files = pa.array([0] * table.num_rows, pa.int64())
    put = engine.put(table.append_column("_row", rows).append_column("_file", files))
    return Scan(put, Source((Path(name),), "parquet", name=name))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _json_text(key: str, below: str = "") -> str:
    return f"json_extract_string(line, {_quoted('$.' + _json_name(key) + below)})"


def _json_texts(key: str) -> str:
    """Returns DuckDB's expression of a key's list of texts."""
    kind = f"json_type(line, {_quoted('$.' + _json_name(key))})"
    nested = f"json_type(line, {_quoted('$.' + _json_name(key) + '[0]')}) = 'ARRAY'"
    return (
        f"CASE {kind} WHEN 'VARCHAR' THEN [{_json_text(key)}] WHEN 'ARRAY' THEN "
        f"CASE WHEN {nested} THEN {_json_text(key, '[*][*]')} ELSE {_json_text(key, '[*]')} END END"
    )


def _json_name(key: str) -> str:
    return '"' + key.replace('"', '\\"') + '"'
