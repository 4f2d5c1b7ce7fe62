"""Reading a table file as text columns with line numbers, and what happens to its bad rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pa_parquet

from genrec.core.errors import DataError, nearest

OnBadRows = Literal["error", "quarantine"]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: its position in the file (header not counted, from 1), column and reason."""

    row: int
    column: str
    reason: str


def read_table(path: str | Path) -> pa.Table:
    """Returns the columns of a CSV, TSV, JSON-lines or Parquet file; CSV and TSV values stay text.

    Raises:
        DataError: If the file is missing, empty, of another kind or broken.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file} does not exist. Give the path of a .csv, .tsv, .jsonl or .parquet file.")
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty. A log needs a header and at least one row.")
    try:
        if file.suffix in (".csv", ".tsv", ".inter", ".item"):
            delimiter = "," if file.suffix == ".csv" else "\t"
            header = file.open(encoding="utf-8").readline().rstrip("\r\n").split(delimiter)
            names = [name.strip().strip('"').split(":")[0] for name in header]
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
    table: pa.Table, columns: Mapping[str, str] | None, required: Sequence[str], source: str
) -> pa.Table:
    """Returns the table with its columns under genrec's names.

    Args:
        table: Any table.
        columns: ``{genrec's name: name in the file}`` for those that differ.
        required: Names that must be there afterwards.
        source: What to call the table in errors.

    Raises:
        DataError: If a mapped or required column is missing; the message lists what is there.
    """
    found = table.column_names
    for ours, theirs in (columns or {}).items():
        if theirs not in found:
            raise DataError(
                f"{source} has no column {theirs!r} (wanted for {ours!r}). "
                f"It has: {', '.join(found)}.{nearest(theirs, found)}"
            )
    back = {theirs: ours for ours, theirs in (columns or {}).items()}
    table = table.rename_columns([back.get(name, name) for name in found])
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise DataError(
            f"{source} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}. It has: "
            f"{', '.join(found)}. Rename them in the file, or map them with "
            f"data.columns.{missing[0]}=NAME_IN_THE_FILE."
        )
    return table


def settle_bad_rows(
    table: pa.Table, bad: list[BadRow], source: str, on_bad_rows: OnBadRows, quarantine: str | Path | None
) -> tuple[pa.Table, int]:
    """Returns the table without its bad rows and how many rows were put aside.

    With ``"error"`` any bad row stops. With ``"quarantine"`` they are written, with row number and
    reason, to the JSON-lines file ``quarantine``.

    Raises:
        DataError: As said above, naming the first five; or if every row is bad.
    """
    if not bad:
        return table, 0
    shown = "\n".join(f"  row {b.row}, column {b.column}: {b.reason}" for b in bad[:5])
    more = f"\n  ... and {len(bad) - 5:,} more" if len(bad) > 5 else ""
    if on_bad_rows == "error":
        raise DataError(
            f"{source} has {len(bad):,} bad value{'s' if len(bad) > 1 else ''}:\n{shown}{more}\n"
            "Mend the file, or put such rows aside with on_bad_rows=quarantine."
        )
    rows = sorted({b.row for b in bad})
    if quarantine is not None:
        reasons: dict[int, list[str]] = {}
        for b in bad:
            reasons.setdefault(b.row, []).append(f"{b.column}: {b.reason}")
        taken = table.take([row - 1 for row in rows]).to_pylist()
        with open(quarantine, "a", encoding="utf-8") as sink:
            for row, values in zip(rows, taken, strict=True):
                entry = {"source": source, "row": row, "reasons": reasons[row], "values": values}
                sink.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")
    aside = set(rows)
    keep = [i for i in range(table.num_rows) if i + 1 not in aside]
    if not keep:
        raise DataError(f"{source}: every row is bad, nothing is left.\n{shown}{more}")
    return table.take(keep), len(rows)
