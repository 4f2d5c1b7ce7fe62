"""Many users offline, by one process and by two: ``python benchmarks/serving/batch.py RUN [--users 10000]``.

Writes that many histories (those of the run's users, cut at random places), asks ``genrec batch`` by one process and then by the two
of ``recipes/accelerate/cpu_2.yaml``, a thread each, and compares what they wrote: the same parts, item for item and score for score.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from genrec.core.files import write_json
from genrec.core.progress import say

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, begin_result

RESULTS = ROOT / "benchmarks" / "serving" / "results"
PART = 500


def histories(run: Path, num: int) -> pa.Table:
    """Returns histories of users that do not exist: those of the run's, cut at random places."""
    rng = random.Random(0)
    known = pa_parquet.read_table(run / "histories.parquet")["history"].to_pylist()
    chosen = [rng.choice(known) for _ in range(num)]
    cut = [history[: rng.randint(1, len(history))] for history in chosen]
    return pa.table({"user_id": [f"n{number}" for number in range(num)], "history": cut})


def seconds_of(launch: list[str], run: Path, file: Path, out: Path) -> float:
    """Returns how long a call took, its start included."""
    command = [
        *launch,
        "batch",
        str(run),
        "--histories",
        str(file),
        "--out",
        str(out),
        "--rows-per-part",
        str(PART),
    ]
    began = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--allow-dirty", action="store_true")
    options = parser.parse_args()
    out, result = begin_result(
        RESULTS, "batch", "benchmarks/serving/batch.py", sys.argv[1:],
        changed=options.users < 10_000, allow_dirty=options.allow_dirty,
    )  # fmt: skip
    binaries = Path(sys.executable).parent
    launches = {
        "one process": [sys.executable, "-m", "genrec"],
        "two processes": [
            str(binaries / "accelerate"), "launch", "--config_file", str(ROOT / "recipes/accelerate/cpu_2.yaml"), "-m", "genrec",
        ],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "histories.parquet"
        pa_parquet.write_table(histories(options.run, options.users), file)
        seconds, parts = {}, {}
        for name, launch in launches.items():
            written = Path(folder) / name.replace(" ", "-")
            seconds[name] = seconds_of(launch, options.run, file, written)
            parts[name] = {
                part.name: pa_parquet.read_table(part) for part in sorted(written.glob("part-*.parquet"))
            }
            say(f"  {name}: {seconds[name]:.0f} s, {options.users / seconds[name]:.1f} users a second")
    one, two = parts.values()
    same = one.keys() == two.keys() and all(one[name].equals(two[name]) for name in one)
    say(f"  {len(one)} parts, {'equal' if same else 'NOT EQUAL'}")
    result |= {
        "run": str(options.run),
        "users": options.users,
        "seconds": seconds,
        "parts": len(one),
        "equal": same,
    }
    write_json(out, result)
    print(out)


if __name__ == "__main__":
    main()
