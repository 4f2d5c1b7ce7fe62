"""From a table as it stands in its files to checked rows, and what happens to those that cannot be used."""

from __future__ import annotations

import json
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pa_parquet

from genrec.core.errors import DataError, nearest
from genrec.data_prep.engine import Engine, Reject, Scan, Source, line_numbers

if TYPE_CHECKING:
    import ibis

OnBadRows = Literal["error", "quarantine"]
TimeKind = Literal["auto", "s", "ms", "us", "iso", "number", "row"]

SECONDS = {"s": 1.0, "ms": 1e3, "us": 1e6}
# Numbers that are times of 1973 to 5138 in one unit lie a thousandfold away from those of the next.
BORDERS = {"s": (1e8, 1e11), "ms": (1e11, 1e14), "us": (1e14, 1e17)}
SHOWN = 5
TIME_KEY = "genrec.time"  # in the metadata of a Parquet file that genrec wrote: s or number


@dataclass
class Checked:
    """Rows that can be used.

    Attributes:
        table: Ids as text, ``timestamp`` and ``rating`` as float64, ``row``, which orders them as the source does, and
            the source's other columns.
        num_bad: Rows that were put aside.
        time: How times were read; for a catalogue ``row``.
        engine: Where the rows are.
    """

    table: ibis.Table
    num_bad: int
    time: TimeKind
    engine: Engine

    @property
    def unit(self) -> str:
        """``s`` where times are seconds since 1970, ``number`` where only their order counts."""
        return "number" if self.time in ("number", "row") else "s"

    def take(self) -> pa.Table:
        """Returns the rows in the order of the source."""
        return self.engine.fetch(self.table.order_by("row").drop("row"))


def read_table(path: str | Path) -> pa.Table:
    """Returns a small CSV, TSV, JSON-lines or Parquet file as an Arrow table; CSV and TSV values stay text.

    Lists in JSON lines become lists, which an engine leaves as text; logs and catalogues go through an engine.

    Raises:
        DataError: If the file is missing, empty, of another kind or broken.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file} does not exist. Give the path of a .csv, .tsv, .jsonl or .parquet file.")
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty. A log needs a header and at least one row.")
    try:
        if file.suffix in (".csv", ".tsv"):
            delimiter = "," if file.suffix == ".csv" else "\t"
            header = file.open(encoding="utf-8").readline().rstrip("\r\n").split(delimiter)
            names = [name.strip().strip('"') for name in header]
            return pa_csv.read_csv(
                file,
                read_options=pa_csv.ReadOptions(column_names=names, skip_rows=1),
                parse_options=pa_csv.ParseOptions(
                    delimiter=delimiter, quote_char='"' if file.suffix == ".csv" else False
                ),
                convert_options=pa_csv.ConvertOptions(
                    column_types={name: pa.string() for name in names},
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
        if file.suffix in (".jsonl", ".ndjson"):
            return pa_json.read_json(file)
        if file.suffix == ".parquet":
            return pa_parquet.read_table(file)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise DataError(f"{file} could not be read as {file.suffix}: {error}") from error
    raise DataError(f"{file} has the ending {file.suffix!r}; allowed are .csv, .tsv, .jsonl and .parquet.")


def rename_columns(
    found: Sequence[str],
    columns: Mapping[str, str] | None,
    required: Sequence[str],
    source: str,
    key: str = "data.columns",
) -> dict[str, str]:
    """Returns ``{genrec's name: name in the file}`` of every column.

    Args:
        found: The file's columns.
        columns: ``{genrec's name: name in the file}`` for those that differ.
        required: Names that must be there.
        source: What to call the table in errors.
        key: The recipe's key for ``columns``.

    Raises:
        DataError: If a mapped or required column is missing; the message lists what is there.
    """
    given = dict(columns or {})
    for ours, theirs in given.items():
        if theirs not in found:
            raise DataError(
                f"{source} has no column {theirs!r} (wanted for {ours!r}). "
                f"It has: {', '.join(found)}.{nearest(theirs, found)}"
            )
    names = given | {name: name for name in found if name not in given.values() and name not in given}
    missing = [name for name in required if name not in names]
    if missing:
        timeless = " If it has no times and its rows are in time order, say data.time=row."
        raise DataError(
            f"{source} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}. It has: "
            f"{', '.join(found)}. Rename them in the file, or map them with {key}.{missing[0]}=NAME_IN_THE_FILE."
            + (timeless if "timestamp" in missing else "")
        )
    return names


def check_log(
    engine: Engine,
    scan: Scan,
    columns: Mapping[str, str] | None = None,
    time: TimeKind = "auto",
    on_bad_rows: OnBadRows = "error",
    quarantine: str | Path | None = None,
) -> Checked:
    """Returns the interactions of a table that can be used.

    A row is bad where an id is missing or no plain value, the timestamp is not of the kind the log's times are of, is
    missing, not positive or later than tomorrow, or the rating is not a finite number.

    Args:
        engine: Where the table is.
        scan: The table.
        columns: ``{genrec's name: name in the file}`` where they differ.
        time: What times are. ``auto`` takes what most of them are, seconds, milliseconds or microseconds since 1970 or ISO
            text, and never plain numbers.
        on_bad_rows: ``error`` stops; ``quarantine`` puts bad rows aside, counted.
        quarantine: JSON-lines file that they are added to.

    Raises:
        DataError: If a column is missing, there is no row, rows are bad (the message has file, line and reason of the
            first five) or all of them are, or times cannot be told.
    """
    import ibis

    source = str(scan.source)
    required = ["user_id", "item_id"] + ([] if time == "row" else ["timestamp"])
    names = rename_columns(scan.columns, columns, required, source)
    raw = scan.table.select("_file", "_row", **{ours: scan.table[theirs] for ours, theirs in names.items()})
    if engine.one(raw.agg(size=raw.count()))["size"] == 0 and not scan.rejects:
        raise DataError(f"{source} has a header but no rows.")
    kind = _time_kind(engine, raw, time, scan.source)
    raw = raw.mutate(_order=_order(raw), **{name: _text(raw[name]) for name in ("user_id", "item_id")})
    raw = raw.mutate(_time=_seconds(raw, kind))
    problems = [*_id_problems(raw.user_id, "user_id"), *_id_problems(raw.item_id, "item_id")]
    problems += _time_problems(raw, kind)
    typed: dict[str, Any] = {"timestamp": raw._time}
    if "rating" in raw.columns:
        number, given = _number(raw.rating), _text(raw.rating)
        wrong = given.notnull() & (number.isnull() | number.isnan() | number.isinf())
        problems.append((wrong, ibis.literal("rating: '") + given + "' is not a finite number"))
        typed["rating"] = number
    return _settled(engine, scan, raw, problems, typed, on_bad_rows, quarantine, kind)


def check_items(
    engine: Engine,
    scan: Scan,
    columns: Mapping[str, str] | None = None,
    on_bad_rows: OnBadRows = "error",
    quarantine: str | Path | None = None,
    repeated: Literal["error", "first"] = "error",
) -> Checked:
    """Returns the rows of a catalogue that can be used; an id that is missing or stands twice is bad.

    Args:
        engine: As in ``check_log``.
        scan: As in ``check_log``.
        columns: As in ``check_log``.
        on_bad_rows: As in ``check_log``.
        quarantine: As in ``check_log``.
        repeated: ``first`` keeps the first row of an item, for sources that are known to repeat theirs.

    Raises:
        DataError: As ``check_log``.
    """
    return _check_once(engine, scan, "item_id", columns, on_bad_rows, quarantine, repeated)


def check_users(
    engine: Engine,
    scan: Scan,
    columns: Mapping[str, str] | None = None,
    on_bad_rows: OnBadRows = "error",
    quarantine: str | Path | None = None,
) -> Checked:
    """Returns the rows of users' profiles that can be used; an id that is missing or stands twice is bad.

    Arguments and errors as ``check_items``.
    """
    return _check_once(engine, scan, "user_id", columns, on_bad_rows, quarantine, "error")


def _check_once(
    engine: Engine,
    scan: Scan,
    key: Literal["item_id", "user_id"],
    columns: Mapping[str, str] | None,
    on_bad_rows: OnBadRows,
    quarantine: str | Path | None,
    repeated: Literal["error", "first"],
) -> Checked:
    """Returns the rows of a table that has one a key."""
    import ibis

    source = str(scan.source)
    setting = f"data.{key.removesuffix('_id')}_columns"
    names = rename_columns(scan.columns, columns, [key], source, setting)
    raw = scan.table.select("_file", "_row", **{ours: scan.table[theirs] for ours, theirs in names.items()})
    if engine.one(raw.agg(size=raw.count()))["size"] == 0 and not scan.rejects:
        raise DataError(f"{source} has a header but no rows.")
    raw = raw.mutate(**{key: _text(raw[key])}, _order=_order(raw))
    again = ibis.row_number().over(group_by=key, order_by="_order") > 0
    raw = raw.mutate(_again=again & raw[key].notnull())
    if repeated == "first":
        raw = raw.filter(~raw._again)
    raw = raw.mutate(_first=raw._row.first(order_by="_order").over(group_by=key).cast("string"))
    twice = ibis.literal(f"{key}: '") + raw[key] + "' already stands in row " + raw._first
    problems = [*_id_problems(raw[key], key), (raw._again, twice)]
    return _settled(engine, scan, raw, problems, {}, on_bad_rows, quarantine, "row")


def _order(raw: ibis.Table) -> Any:
    """Returns one number that orders the rows of several files; no file has a million million rows."""
    return raw._file * 2**42 + raw._row


def _text(column: Any) -> Any:
    """Returns a column as text without the white space around it; empty text is missing."""
    return column.cast("string").strip().nullif("")


def _number(column: Any) -> Any:
    return _text(column).try_cast("float64") if column.type().is_string() else column.cast("float64")


def _time_kind(engine: Engine, raw: ibis.Table, time: TimeKind, source: Source) -> TimeKind:
    """Returns what the times of a log are, if need be what most of them are."""
    if time == "row":
        return "row"
    column = raw.timestamp
    if column.type().is_temporal():
        return "iso"
    if time != "auto":
        return time
    if source.format == "parquet" and source.files[0].is_file():
        said = (pa_parquet.read_schema(source.files[0]).metadata or {}).get(TIME_KEY.encode())
        if said == b"number":
            return "number"
    number, text = _number(column), _text(column)
    counts = {kind: ((number >= low) & (number < high)).sum() for kind, (low, high) in BORDERS.items()}
    counts["number"] = (number.abs() < BORDERS["s"][0]).sum()
    if column.type().is_string():
        counts["iso"] = (number.isnull() & _moment(text)[0].notnull()).sum()
    found = engine.one(raw.agg(**counts, example=text.max()))
    example = found.pop("example")
    kind, most = max(found.items(), key=lambda entry: entry[1] or 0)
    if not most or kind == "number":
        what = "plain numbers" if most else "neither numbers nor ISO text"
        raise DataError(
            f"The times of {source} are {what}, such as {example!r}. Say what they are: data.time=s, ms or us (since "
            "1970), iso (such as 2014-05-01T10:00:00), number (only their order counts), or row (there are none, and the "
            "rows are in time order)."
        )
    return cast(TimeKind, kind)


def _moment(text: Any) -> tuple[Any, Any]:
    """Returns ISO text as a moment of its own time zone, and how many seconds that is ahead of UTC.

    The zone is read here, since engines do not agree on what a moment with a zone is.
    """
    zone = text.re_extract(r":\d\d(\.\d+)?\s*(Z|[+-]\d\d:?\d\d)$", 2).fill_null("")
    moment = text.left(text.length() - zone.length()).try_cast("timestamp")
    minutes = zone.substr(1, 2).try_cast("int64") * 60 + zone.right(2).try_cast("int64")
    ahead = (zone.left(1) == "-").ifelse(-minutes, minutes).fill_null(0) * 60
    return moment, ahead


def _seconds(raw: ibis.Table, kind: TimeKind) -> Any:
    if kind == "row":
        return raw._order.cast("float64")
    column = raw.timestamp
    if kind == "iso":
        temporal = column.type().is_temporal()
        moment, ahead = (column.cast("timestamp"), 0) if temporal else _moment(_text(column))
        whole = moment.truncate("s").epoch_seconds().cast("float64")
        return whole + moment.millisecond().cast("float64") / 1000 - ahead
    return _number(column) / SECONDS.get(kind, 1.0)


# What is wrong with a row where the condition holds, and how it is said.
Problem = tuple[Any, Any]


def _time_problems(raw: ibis.Table, kind: TimeKind) -> list[Problem]:
    import ibis

    if kind == "row":
        return []
    given, value = _text(raw.timestamp), raw._time
    expected = "an ISO time such as 2014-05-01T10:00:00" if kind == "iso" else "a finite number"
    unread = value.isnull() | value.isnan() | value.isinf()
    missing = unread & given.isnull()
    problems = [
        (missing, ibis.literal("timestamp: is missing")),
        (unread & ~missing, ibis.literal("timestamp: '") + given + f"' is not {expected}"),
    ]
    if kind != "number":
        tomorrow = clock.time() // 86400 * 86400 + 2 * 86400
        outside = ~unread & ((value <= 0) | (value > tomorrow))
        said = ibis.literal("timestamp: '") + given + f"' lies outside 1970 to tomorrow, read as {kind}"
        problems.append((outside, said))
    return problems


def _id_problems(text: Any, name: str) -> list[Problem]:
    import ibis

    unplain = text.startswith("{") | text.startswith("[")  # an object or a list comes from JSON as its text
    return [
        (text.isnull(), ibis.literal(f"{name}: is missing")),
        (text.contains("\ufffd"), ibis.literal(f"{name}: is not valid text of the file's encoding")),
        (unplain, ibis.literal(f"{name}: '") + text + "' is no plain value"),
    ]


def _settled(
    engine: Engine,
    scan: Scan,
    raw: ibis.Table,
    problems: Sequence[Problem],
    typed: Mapping[str, Any],
    on_bad_rows: OnBadRows,
    quarantine: str | Path | None,
    time: TimeKind,
) -> Checked:
    """Returns the rows that have no problem; the others stop or are put aside."""
    import ibis

    source = str(scan.source)
    is_bad = problems[0][0].fill_null(False)
    for condition, _ in problems[1:]:
        is_bad = is_bad | condition.fill_null(False)
    raw = raw.mutate(_bad=is_bad)
    own = [name for name in raw.columns if not name.startswith("_") or name == "_order"]
    values = {name: raw[name] for name in own} | dict(typed)
    table = engine.keep(raw.select("_bad", **values).rename(row="_order"))
    kept = table.filter(~table._bad).drop("_bad")
    num_rows_bad = engine.one(table.agg(size=table._bad.sum()))["size"] or 0
    num_bad = num_rows_bad + len(scan.rejects)
    if not num_bad:
        return Checked(kept, 0, time, engine)
    limit = None if on_bad_rows == "quarantine" and quarantine is not None else SHOWN
    said = ibis.cases((problems[0][0], problems[0][1] + "; "), else_="")
    for condition, reason in problems[1:]:
        said = said + ibis.cases((condition, reason + "; "), else_="")
    bad = raw.mutate(_reason=said).filter(raw._bad)
    places = bad.select("_file", "_row", "_reason").order_by("_file", "_row").limit(limit)
    values = scan.table.inner_join(places, ["_file", "_row"]).order_by("_file", "_row")
    entries = _entries(engine, scan, engine.fetch(values).to_pylist())
    shown = "\n".join(f"  {_where(entry)}: {'; '.join(entry['reasons'])}" for entry in entries[:SHOWN])
    more = f"\n  ... and {num_bad - SHOWN:,} more" if num_bad > SHOWN else ""
    if on_bad_rows == "error":
        raise DataError(
            f"{source} has {num_bad:,} bad row{'s' if num_bad > 1 else ''}:\n{shown}{more}\n"
            "Mend the file, or put such rows aside with --on-bad-rows=quarantine (data.on_bad_rows)."
        )
    if quarantine is not None:
        with open(quarantine, "a", encoding="utf-8") as sink:
            for entry in entries:
                sink.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")
    if engine.one(kept.agg(size=kept.count()))["size"] == 0:
        raise DataError(f"{source}: every row is bad, nothing is left.\n{shown}{more}")
    return Checked(kept, num_bad, time, engine)


def _entries(engine: Engine, scan: Scan, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what is said of each bad row and each rejected line, in the order of the files."""
    entries = [_rejected(reject) for reject in scan.rejects]
    for number, file in enumerate(scan.source.files):
        own = [row for row in rows if row["_file"] == number]
        lines: dict[int, int] = {}
        if scan.source.format != "parquet" and engine.counts_rows:
            lines = line_numbers(Path(file), scan.source, [row["_row"] for row in own], scan.rejects)
        for row in own:
            place = row.pop("_row")
            where = {"line": lines[place]} if place in lines else {"row": place} if engine.counts_rows else {}
            reasons = row.pop("_reason").removesuffix("; ").split("; ")
            del row["_file"]
            entries.append({"file": str(file), **where, "reasons": reasons, "values": row})
    number_of = {str(file): number for number, file in enumerate(scan.source.files)}
    return sorted(entries, key=lambda e: (number_of[e["file"]], e.get("line") or e.get("row") or 0))


def _rejected(reject: Reject) -> dict[str, Any]:
    return {"file": reject.file, "line": reject.line, "reasons": [reject.reason], "text": reject.text}


def _where(entry: Mapping[str, Any]) -> str:
    place = (
        f" line {entry['line']}" if entry.get("line") else f" row {entry['row']}" if "row" in entry else ""
    )
    return f"{Path(entry['file']).name}{place}" + (
        "" if place else f" {entry.get('values') or entry.get('text')}"
    )
