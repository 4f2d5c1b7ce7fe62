"""Measures data preparation as logs grow: ``python benchmarks/data/prepare.py [--rows N]``.

A log with the columns and the spread of MovieLens-20M is drawn (140,000 users per 20 million rows, log-normal; items
by Zipf's law), written as CSV, and prepared: read, checked, 5-core, ordered, leave-one-out, written, reported. It is
done for a quarter, a half and all of the rows, each in a process of its own. Beside it stands the usual way, pandas in
memory, on a quarter of the rows; it neither checks rows nor writes a report.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from genrec.core.errors import GenrecError, RunError
from genrec.core.files import megabytes, write_json
from genrec.core.progress import say

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, begin_result

RESULTS = ROOT / "benchmarks" / "data" / "results"
ROWS, THREADS, MEMORY_GB, CORE = 20_000_000, 2, 3.5, 5


def draw(path: Path, rows: int, seed: int) -> None:
    """Writes ``ratings.csv`` of so many rows, user by user, times in no order."""
    rng = np.random.default_rng(seed)
    users, items = max(50, rows // 143), 27_000
    activity = rng.lognormal(0, 1.1, users)
    user = np.sort(rng.choice(users, rows, p=activity / activity.sum()))
    popularity = 1 / (np.arange(items) + 20) ** 1.05
    item = rng.choice(items, rows, p=popularity / popularity.sum())
    table = pa.table(
        {
            "userId": user + 1,
            "movieId": item * 7 + 1,
            "rating": rng.integers(1, 11, rows) / 2,
            "timestamp": rng.integers(800_000_000, 1_430_000_000, rows),
        }
    )
    pa_csv.write_csv(table, path)


def with_genrec(source: Path, folder: Path) -> dict[str, Any]:
    """Prepares a log as ``genrec prepare`` does and returns counts."""
    from genrec.data_prep import DataSettings, prepare

    columns = {"user_id": "userId", "item_id": "movieId"}
    engine = {"threads": THREADS, "memory_gb": MEMORY_GB}
    settings = DataSettings.model_validate(
        {
            "source": str(source),
            "format": "table",
            "columns": columns,
            "user_core": CORE,
            "item_core": CORE,
            "engine": engine,
        }
    )
    report = prepare(settings, folder)
    return {"steps": report["steps"], "parts": report["parts"], "written_mb": megabytes(folder)}


def with_pandas(source: Path, folder: Path) -> dict[str, Any]:
    """Does the same in memory with pandas, without checks and report, and returns counts."""
    import pandas as pd

    log = pd.read_csv(source, dtype={"userId": str, "movieId": str})
    while True:
        users, items = (
            log["userId"].map(log["userId"].value_counts()),
            log["movieId"].map(log["movieId"].value_counts()),
        )
        kept = log[(users >= CORE) & (items >= CORE)]
        if len(kept) == len(log):
            break
        log = kept
    log = log.sort_values(["userId", "timestamp"], kind="stable")
    back = log.groupby("userId").cumcount(ascending=False)
    log["part"] = np.select([back == 0, back == 1], ["test", "valid"], "train")
    folder.mkdir(parents=True, exist_ok=True)
    log.to_parquet(folder / "interactions.parquet")
    return {"parts": {str(name): int(size) for name, size in log["part"].value_counts().items()}}


def measured(way: str, source: Path) -> dict[str, Any]:
    """Returns counts, seconds and peak memory of one way in a process of its own."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        command = [sys.executable, __file__, "--way", way, str(source), str(Path(folder) / "out")]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(THREADS)}
        )
    if done.returncode:
        raise RunError(f"{way} on {source} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, adds a result file, prints it and returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python benchmarks/data/prepare.py", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--way", nargs=3, metavar=("WAY", "SOURCE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way:
        way, source, folder = options.way
        began = time.perf_counter()
        counts = {"genrec": with_genrec, "pandas": with_pandas}[way](Path(source), Path(folder))
        used = resource.getrusage(resource.RUSAGE_SELF)
        figures = {
            "wall_s": round(time.perf_counter() - began, 1),
            "cpu_s": round(used.ru_utime + used.ru_stime, 1),
            "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
        }
        print(json.dumps(figures | counts))
        return 0
    try:
        script, name = "benchmarks/data/prepare.py", f"prepare-{options.rows}"
        path, head = begin_result(RESULTS, name, script, arguments, changed=False, allow_dirty=False)
        found = []
        with tempfile.TemporaryDirectory() as folder:
            for rows in (options.rows // 4, options.rows // 2, options.rows):
                source = Path(folder) / f"{rows}.csv"
                draw(source, rows, options.seed)
                for way in ("genrec", "pandas") if rows == options.rows // 4 else ("genrec",):
                    entry = {"way": way, "rows": rows, "csv_mb": megabytes(source)} | measured(way, source)
                    found.append(entry)
                    say(
                        f"{way}, {rows:,} rows: {entry['wall_s']} s, {entry['cpu_s']} s of CPU, {entry['peak_gb']} GB"
                    )
                source.unlink()
        one, two = (entry["parts"] for entry in found[:2])
        if one != two:
            raise RunError(f"The two ways do not keep the same interactions: {one} and {two}.")
        result = head | {
            "seed": options.seed,
            "settings": {"threads": THREADS, "memory_gb": MEMORY_GB, "core": CORE},
            "measured": found,
        }
        write_json(path, result)
        print(f"Result: {path}")
    except GenrecError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
