"""Recommendations for any number of users, in parts on disk: many processes, cut at any moment and gone on from."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from genrec.core.errors import DataError, RunError
from genrec.core.files import atomic_path, hash_file, hash_value, read_json, write_json
from genrec.core.processes import is_main_process, num_processes, rank, wait
from genrec.core.progress import progress, say
from genrec.data_prep import ItemId
from genrec.decoding.settings import Method
from genrec.serving.recommender import Recommender, Unknown
from genrec.training.finetune import HISTORIES

ABOUT = "about.json"
SCHEMA = pa.schema({"user_id": pa.string(), "items": pa.list_(pa.string()), "scores": pa.list_(pa.float32())})


def recommend_to(
    folder: str | Path,
    recommender: Recommender,
    histories: str | Path | None = None,
    *,
    k: int = 10,
    exclude_history: bool = True,
    exclude: Collection[ItemId] = (),
    allow: Collection[ItemId] | None = None,
    beams: int | None = None,
    method: Method | None = None,
    unknown: Unknown = "error",
    rows_per_part: int = 10_000,
) -> Path:
    """Writes recommendations for every row of a file, as ``part-NNNNNN.parquet`` (``user_id``, ``items``, ``scores``), best first.

    Part n holds the rows from n times ``rows_per_part`` on, in the file's order. Processes of ``accelerate launch`` take parts by
    turns; a part is there whole or not at all, so that a call that was cut goes on with those that are missing. Never more than
    a part is held in memory.

    Args:
        folder: Of the parts; new, empty, or begun with the same arguments.
        recommender: The model.
        histories: Parquet file with ``user_id`` (text) and ``history`` (list of item ids, oldest first); None takes the
            run's own.
        k: As ``Recommender.recommend``, as are the following.
        exclude_history: Whether items of the history are left out.
        exclude: Items that nobody shall get.
        allow: The only items that may come; None allows all.
        beams: Of the constrained search.
        method: Default is that of the run.
        unknown: What happens to unknown items of histories.
        rows_per_part: Rows of a part, at least 1.

    Raises:
        DataError: If the file is missing, has no such columns or a row without a history.
        RunError: If the folder was begun with other arguments or holds something else, or the disk refuses.
        UnknownItemError: As ``Recommender.recommend``.
    """
    folder, source = (
        Path(folder),
        Path(histories) if histories is not None else recommender.run_dir / HISTORIES,
    )
    if rows_per_part < 1:
        raise DataError(f"rows_per_part must be 1 or more, got {rows_per_part}.")
    file = _opened(source)
    asked: dict[str, Any] = {
        "k": k,
        "exclude_history": exclude_history,
        "exclude": sorted(exclude),
        "allow": None if allow is None else sorted(allow),
        "beams": beams,
        "method": method or recommender.method,
        "unknown": unknown,
    }
    about = {
        "histories": hash_file(source),
        "num_rows": file.metadata.num_rows,
        "rows_per_part": rows_per_part,
        "model": recommender.identity,
        "asked": asked | {name: hash_value(asked[name]) for name in ("exclude", "allow")},
    }
    if is_main_process():
        _begin(folder, about)
    wait()
    num_parts = -(-file.metadata.num_rows // rows_per_part)
    mine = [
        number for number in range(rank(), num_parts, num_processes()) if not _part(folder, number).exists()
    ]
    missing = set(mine)
    if is_main_process() and len(mine) < len(range(rank(), num_parts, num_processes())):
        say(
            f"  going on: {num_parts - sum(not _part(folder, n).exists() for n in range(num_parts)):,} parts are there"
        )
    shown = progress(_parts(file, rows_per_part, missing), len(mine), "parts")
    for number, table in shown:
        users, rows = table["user_id"].to_pylist(), table["history"].to_pylist()
        if None in rows:
            row = number * rows_per_part + rows.index(None)
            raise DataError(f"Row {row} of {source} has no history; an empty one is an empty list.")
        found = recommender.recommend(rows, user_ids=users, **asked)
        columns = {
            "user_id": users,
            "items": [[item.item_id for item in each] for each in found],
            "scores": [[item.score for item in each] for each in found],
        }
        with atomic_path(_part(folder, number)) as part:
            pa_parquet.write_table(pa.table(columns, SCHEMA), part)
    wait()
    return folder


def _opened(source: Path) -> pa_parquet.ParquetFile:
    try:
        file = pa_parquet.ParquetFile(source)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{source} must be a Parquet file with the columns user_id and history: {error}"
        ) from error
    if lacking := [name for name in ("user_id", "history") if name not in file.schema_arrow.names]:
        raise DataError(
            f"{source} has the columns {', '.join(file.schema_arrow.names)} and lacks {', '.join(lacking)}. Give user_id and "
            "history (a list of item ids, oldest first)."
        )
    return file


def _begin(folder: Path, about: dict[str, Any]) -> None:
    if (folder / ABOUT).exists():
        before = read_json(folder / ABOUT)
        if other := [key for key in about if before.get(key) != about[key]]:
            raise RunError(
                f"{folder} was begun with another {', '.join(other)}. Choose a new folder, or give what it was begun with."
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} holds something else. Choose a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ABOUT, about)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def _parts(
    file: pa_parquet.ParquetFile, rows_per_part: int, wanted: set[int]
) -> Iterator[tuple[int, pa.Table]]:
    """Yields the parts that are wanted with their numbers."""
    batches = file.iter_batches(batch_size=rows_per_part, columns=["user_id", "history"])
    # Batches of a file end with its row groups; parts do not.
    held: list[pa.RecordBatch] = []
    number, count = 0, 0
    for batch in batches:
        while batch.num_rows:
            taken = batch.slice(0, rows_per_part - count)
            held.append(taken)
            count, batch = count + taken.num_rows, batch.slice(taken.num_rows)
            if count == rows_per_part:
                if number in wanted:
                    yield number, pa.Table.from_batches(held)
                held, count, number = [], 0, number + 1
    if held and number in wanted:
        yield number, pa.Table.from_batches(held)
