"""Rows into Arrow: in memory, in a file that is mapped, by one process or several, in one order."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from genrec.core.errors import require
from genrec.core.files import atomic_path
from genrec.core.progress import progress

if TYPE_CHECKING:
    from datasets import Dataset

Job = TypeVar("Job")
Result = TypeVar("Result")

# Jobs from which on a progress bar is worth its lines.
_MANY = 20

_work: Callable[[Any], Any]


def in_order(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, label: str
) -> Iterator[Result]:
    """Yields the result of every job, in the order of the jobs, behind a progress bar where there are many.

    Args:
        work: A function of the job alone.
        jobs: What is to be done.
        workers: Processes that work; 1 is this one.
        label: What the bar says.
    """
    workers, shown = min(workers, len(jobs)), len(jobs) if len(jobs) >= _MANY else 0
    if workers <= 1:
        yield from progress(map(work, jobs), shown, label)
        return
    # A forked process has the data already; another system's must be sent them once.
    kind = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(kind)
    with ProcessPoolExecutor(workers, context, _begin, (work,)) as pool:
        yield from progress(pool.map(_do, jobs), shown, label)


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work


def _do(job: Any) -> Any:
    return _work(job)


def arrow_dataset(tables: Iterable[pa.Table], schema: pa.Schema, file: Path | None) -> Dataset:
    """Returns tables one behind the other as a ``datasets.Dataset``: mapped from a file, or in memory.

    Args:
        tables: Taken one at a time.
        schema: Of all of them.
        file: Where it is written, whole or not at all; None keeps it in memory.

    Raises:
        MissingExtraError: If ``datasets`` is not installed.
        RunError: If the disk refuses.
    """
    datasets = require("datasets", "train")
    if file is None:
        return datasets.Dataset(pa.concat_tables([schema.empty_table(), *tables]).combine_chunks())
    with (
        atomic_path(file) as part,
        pa.OSFile(str(part), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as out,
    ):
        for table in tables:
            out.write_table(table, max_chunksize=1000)
    return datasets.Dataset.from_file(str(file))
