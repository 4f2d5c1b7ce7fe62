"""What every result says of where it was measured: the commit, the machine and the memory."""

import os
import platform
import resource
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import genrec
import genrec.data_prep
import genrec.indexing
from genrec.core.errors import RunError, require
from genrec.core.progress import say
from genrec.data_prep import InteractionLog, ItemCatalog, load_dataset
from genrec.runs import versions

ROOT = Path(__file__).resolve().parents[1]
RESULT_FOLDERS = tuple(
    f"benchmarks{room}/results"
    for room in ("", "/data", "/decoding", "/indexing", "/serving", "/tasks", "/training")
)


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Returns what git says in the repository; raises RunError where git is not installed."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RunError(
            "A result names its commit, so benchmarks need git, which is not installed."
        ) from error


def working_tree() -> tuple[str, bool]:
    """Returns the commit of the repository, and whether anything but results differs from it.

    Raises:
        RunError: If this is not a git repository, or another copy of genrec would be measured.
    """
    for module in (genrec, genrec.data_prep, genrec.indexing):
        if ROOT not in Path(str(module.__file__)).resolve().parents:
            raise RunError(
                f"{module.__name__} is imported from {module.__file__}, not from {ROOT}, whose commit the result "
                f"would name. Install it from here first: pip install -e '{ROOT}[train]'"
            )
    head = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "--", ".", *(f":!{folder}" for folder in RESULT_FOLDERS))
    if head.returncode or status.returncode:
        raise RunError(f"{ROOT} is no git repository with a commit: {(head.stderr or status.stderr).strip()}")
    return head.stdout.strip(), bool(status.stdout.strip())


def begin_result(
    folder: Path, name: str, script: str, arguments: Sequence[str], *, changed: bool, allow_dirty: bool
) -> tuple[Path, dict[str, Any]]:
    """Returns the file that a result will be, and what every result says of how it was made.

    Args:
        folder: Of results.
        name: Of the measurement.
        script: Path of the script below the repository.
        arguments: What it was called with.
        changed: Whether sizes are not those of the script, so that it is only tried.
        allow_dirty: Whether uncommitted changes may be measured.

    Raises:
        RunError: If there are uncommitted changes, or the result is there already.
    """
    commit, dirty = working_tree()
    if dirty and not allow_dirty:
        raise RunError("The working tree has changes that are not committed: commit or stash them.")
    path = folder / f"{name}-{commit[:8]}{'-changed' if changed else ''}{'-dirty' if dirty else ''}.json"
    if path.exists():
        raise RunError(f"{path} is there already, and results are added, never edited.")
    return path, {
        "name": name,
        "commit": commit,
        "dirty": dirty,
        "command": shlex.join(["python", script, *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
    }


def datasets() -> Iterator[tuple[str, InteractionLog, ItemCatalog]]:
    """Yields name, log and catalogue of MovieLens-100K, and of Beauty where it is at hand."""
    yield "movielens-100k", *load_dataset("movielens-100k")
    beauty = Path(os.environ.get("GENREC_TEST_DATA") or ROOT.parent / "shared" / "data") / "beauty"
    if beauty.is_dir():
        yield "beauty", *load_dataset(str(beauty))
    else:
        say(f"{beauty} is not there: MovieLens-100K alone is measured (benchmarks/README.md)")


def hardware() -> dict[str, Any]:
    """Returns what the machine is and how busy it is."""
    torch = require("torch", "train")
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2] for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": round(os.getloadavg()[0], 2),
    }


def peak_memory() -> dict[str, float]:
    """Returns the most memory in GB that the process, its largest child and the GPU's tensors took so far."""
    torch = require("torch", "train")
    kilobytes = {
        "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "largest_child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
    }
    peaks = {name: round(value * 1024 / 1e9, 2) for name, value in kilobytes.items()}
    if torch.cuda.is_available():
        peaks["gpu"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return peaks
