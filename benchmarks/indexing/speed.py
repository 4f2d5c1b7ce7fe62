"""Measures the indexing room's speed and memory: ``python benchmarks/indexing/speed.py NAME [--sizes N ...]``."""

import argparse
import json
import multiprocessing
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genrec.core.errors import GenrecError, RunError
from genrec.core.files import megabytes, write_json
from genrec.core.progress import say
from genrec.indexing import ItemTrie

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import methods
from machine import ROOT, hardware, working_tree
from methods import Figures

RESULTS = ROOT / "benchmarks" / "indexing" / "results"
LEVELS, TOKENS = 4, 256
LOOKUPS, PER_CODE = 1_000_000, 10
ALLOWED = 0.1
REPEATS = 3


class Measurement(NamedTuple):
    """A row of the table: what is measured, and how large it gets unless ``--sizes`` says otherwise.

    ``run`` takes a size and a seed, and returns figures whose names end in their unit. It has a process of
    its own, whose peak memory is added to them. ``smallest`` leaves out smaller ones of the sizes.
    """

    run: Callable[[int, int], Figures]
    largest: int
    smallest: int = 1


def random_codes(size: int, seed: int) -> np.ndarray:
    """Returns ``(size, 4)`` int16 distinct codes over 256 tokens a level, drawn uniformly."""
    numbers = np.random.default_rng(seed).choice(TOKENS**LEVELS, size, replace=False)
    codes = np.empty((size, LEVELS), np.int16)
    for level in range(LEVELS):
        codes[:, level] = numbers // TOKENS ** (LEVELS - 1 - level) % TOKENS
    return codes


def lookups(codes: np.ndarray, seed: int) -> np.ndarray:
    """Returns ``(n, 4)`` int64: given codes, every other one with a random last token. One token is one step."""
    rng = np.random.default_rng([seed, 1])
    wanted = codes[rng.integers(len(codes), size=min(LOOKUPS, PER_CODE * len(codes)))].astype(np.int64)
    wanted[::2, -1] = rng.integers(TOKENS, size=len(wanted[::2]))
    return wanted


def allow_list(size: int, seed: int) -> np.ndarray:
    """Returns the row numbers of a tenth of the codes, at least one."""
    return np.random.default_rng([seed, 2]).choice(size, max(1, int(ALLOWED * size)), replace=False)


def seconds(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Returns the median of how long ``work`` takes."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


@contextmanager
def saved_trie(size: int, seed: int) -> Iterator[Path]:
    """Yields a folder with the trie of random codes, which another process built: its memory is not ours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trie"
        process = multiprocessing.get_context("fork").Process(
            target=lambda: ItemTrie(random_codes(size, seed)).save(path)
        )
        process.start()
        process.join()
        if process.exitcode:
            raise RunError(f"A trie of {size:,} codes could not be built: exit status {process.exitcode}.")
        yield path


def trie_build(size: int, seed: int) -> Figures:
    codes = random_codes(size, seed)
    began = time.perf_counter()
    trie = ItemTrie(codes)
    return {"build_s": time.perf_counter() - began, "input_mb": codes.nbytes / 1e6, "nodes": trie.num_nodes}


def trie_load(size: int, seed: int) -> Figures:
    """As measured right after the files were written: they are in the system's cache."""
    with saved_trie(size, seed) as path:
        began = time.perf_counter()
        trie = ItemTrie.load(path)
        loaded = time.perf_counter()
        trie.find([0, 0])
        found = time.perf_counter()
        return {
            "load_ms": 1e3 * (loaded - began),
            "first_find_ms": 1e3 * (found - loaded),
            "disk_mb": megabytes(path),
        }


def trie_restrict(size: int, seed: int) -> Figures:
    with saved_trie(size, seed) as path:
        trie, rows = ItemTrie.load(path), allow_list(size, seed)
        began = time.perf_counter()
        restricted = trie.restrict(rows)
        first = time.perf_counter() - began
        nodes = np.random.default_rng(seed).integers(trie.num_nodes, size=min(LOOKUPS, PER_CODE * size))
        return {
            "restrict_ms": 1e3 * seconds(lambda: trie.restrict(rows)),
            "first_restrict_ms": 1e3 * first,
            "count_ms_per_million": 1e3 * seconds(lambda: restricted.count_below(nodes)) * 1e6 / len(nodes),
            "allowed": restricted.num_items,
        }


def trie_step(size: int, seed: int) -> Figures:
    with saved_trie(size, seed) as path:
        trie, wanted = ItemTrie.load(path), lookups(random_codes(size, seed), seed)
        nodes = [np.zeros(len(wanted), np.int64)]
        for level in range(LEVELS):
            nodes.append(trie.step(nodes[-1], wanted[:, level]))
        taken = [
            seconds(partial(trie.step, nodes[level], wanted[:, level])) * 1e9 / len(wanted)
            for level in range(LEVELS)
        ]
        by_level = {f"level_{level}_ms_per_million": each for level, each in enumerate(taken, 1)}
        return {
            "step_ms_per_million": statistics.mean(taken),
            **by_level,
            "found": int((nodes[-1] >= 0).sum()),
        }


def dict_trie(codes: list[list[int]]) -> dict:
    """Returns a dict of dicts, as constrained decoding with transformers' prefix function commonly has it."""
    root: dict = {}
    for code in codes:
        node = root
        for token in code:
            child = node.get(token)
            if child is None:
                child = node[token] = {}
            node = child
    return root


def dict_build(size: int, seed: int) -> Figures:
    codes = random_codes(size, seed).tolist()
    began = time.perf_counter()
    root = dict_trie(codes)
    return {"build_s": time.perf_counter() - began, "children_of_root": len(root)}


def dict_restrict(size: int, seed: int) -> Figures:
    """A dict trie has no way to count: the peers build one of the allowed codes."""
    codes = random_codes(size, seed)[allow_list(size, seed)].tolist()
    return {"restrict_ms": 1e3 * seconds(lambda: dict_trie(codes)), "allowed": len(codes)}


def dict_step(size: int, seed: int) -> Figures:
    codes = random_codes(size, seed)
    root, wanted = dict_trie(codes.tolist()), lookups(codes, seed).tolist()

    def walk() -> int:
        found = 0
        for code in wanted:
            node: Any = root
            for token in code:
                node = node.get(token)
                if node is None:
                    break
            else:
                found += 1
        return found

    return {
        "step_ms_per_million": 1e9 * seconds(walk) / (LEVELS * len(wanted)),
        "found": walk(),
    }


MEASUREMENTS: dict[str, dict[str, Measurement]] = {
    "trie": {
        "build": Measurement(trie_build, 10_000_000),
        "load": Measurement(trie_load, 10_000_000),
        "restrict": Measurement(trie_restrict, 10_000_000),
        "step": Measurement(trie_step, 10_000_000),
        "build, dict of dicts": Measurement(dict_build, 1_000_000),
        "restrict, dict of dicts": Measurement(dict_restrict, 1_000_000),
        "step, dict of dicts": Measurement(dict_step, 1_000_000),
    },
    "rq_kmeans": {
        "index": Measurement(methods.kmeans_index, 1_000_000, 31_250),
        "index, k-means of all": Measurement(methods.kmeans_of_all, 62_500, 31_250),
    },
    "collaborative": {
        "index": Measurement(methods.collaborative_index, 100_000),
        "index, dense matrix": Measurement(methods.collaborative_dense, 6_000),
    },
    # All of Beauty and random halves of it.
    "rq_vae": {
        "index": Measurement(methods.vae_index, 12_101),
        "index, 50 epochs": Measurement(partial(methods.vae_index, epochs=50), 12_101, 12_101),
        "index, LC-Rec's way": Measurement(methods.vae_lcrec, 12_101, 12_101),
    },
}


def peak_mb() -> float:
    """Returns the most resident memory this process had so far, in 10^6 bytes.

    getrusage's figure starts, on Linux, at that of the process which started this one; the kernel's
    high-water mark of the address space does not.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    marks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return (marks or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0] * 1024 / 1e6


def measure_here(name: str, part: str, size: int, seed: int) -> Figures:
    """Returns the figures of one measurement, taken in this process."""
    before = peak_mb()
    figures = MEASUREMENTS[name][part].run(size, seed)
    # The kernel adds up a process's memory from counters of its threads, so that a later reading may be a page or two lower.
    return figures | {"peak_mb": max(peak_mb(), before), "peak_mb_before": before}


def measure(name: str, part: str, size: int, seed: int) -> Figures:
    """Returns the figures of one measurement, taken in a process of its own.

    Raises:
        RunError: If that process fails, such as for want of memory.
    """
    command = [sys.executable, __file__, name, "--part", part, "--sizes", str(size), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(
            f"{name}: {part} at {size:,} ended with status {done.returncode}: {done.stderr.strip()[-2000:]}"
        )
    return json.loads(done.stdout)


def sizes_of(name: str, part: str, sizes: Sequence[int] | None) -> list[int]:
    """Returns the sizes of a measurement: those asked for, or n/4, n/2 and n of all of the table up to its own.

    So the peers' way is measured at sizes that ours is measured at, too.
    """
    if sizes:
        return sorted(set(sizes))
    largest = {measurement.largest for measurement in MEASUREMENTS[name].values()}
    every = {n // divisor for n in largest for divisor in (4, 2, 1)}
    own = MEASUREMENTS[name][part]
    return sorted(size for size in every if own.smallest <= size <= own.largest)


def with_growth(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows with ``growth``: each figure divided by that at half the size, where it was measured."""
    known = {(row["measurement"], row["size"]): row["figures"] for row in rows}
    grown = []
    for row in rows:
        half = known.get((row["measurement"], row["size"] // 2), {})
        growth = {
            name: round(value / half[name], 3) for name, value in row["figures"].items() if half.get(name)
        }
        grown.append(row | {"growth": growth})
    return grown


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as text, a block for each measurement, growth over half the size in brackets."""
    blocks = []
    for name in dict.fromkeys(row["measurement"] for row in rows):
        own = [row for row in rows if row["measurement"] == name]
        lines = [[name, *own[0]["figures"]]]
        for row in own:
            cells = []
            for figure, value in row["figures"].items():
                grown = f" (x{row['growth'][figure]:.2f})" if figure in row["growth"] else ""
                cells.append((f"{value:,.4g}" if isinstance(value, float) else f"{value:,}") + grown)
            lines.append([f"{row['size']:,}", *cells])
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        blocks.append(
            "\n".join(
                "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
                for line in lines
            )
        )
    return "\n\n".join(blocks)


def run(
    name: str,
    sizes: Sequence[int] | None = None,
    seed: int = 0,
    results: Path = RESULTS,
    allow_dirty: bool = False,
    command: str = "",
) -> Path:
    """Takes all measurements of a name and returns the result file that it added.

    Args:
        name: A name in ``MEASUREMENTS``.
        sizes: For all of them, instead of the table's; such a result is for trying out.
        seed: Of whatever is random.
        results: Where the file goes.
        allow_dirty: Measure a tree with uncommitted changes, too.
        command: What was called, as the result file tells it.

    Raises:
        RunError: If the tree is dirty, the result is there already, a measurement fails, or as
            ``working_tree``.
    """
    from genrec.runs import versions

    commit, dirty = working_tree()
    if dirty and not allow_dirty:
        raise RunError(
            "The working tree has changes that are not committed, so no commit would stand for the result. Commit "
            "or stash them (git status), or try it out with --allow-dirty."
        )
    path = results / f"{name}-{commit[:8]}{'-changed' if sizes else ''}{'-dirty' if dirty else ''}.json"
    if path.exists():
        raise RunError(
            f"{path} is there already, and results are added, never edited. Commit what is new, or take another "
            "folder with --results."
        )
    machine, began, rows = hardware(), time.perf_counter(), []
    for part in MEASUREMENTS[name]:
        for size in sizes_of(name, part, sizes):
            figures = measure(name, part, size, seed)
            say(f"{part}, {size:,}: {', '.join(f'{key} {value:,.4g}' for key, value in figures.items())}")
            rows.append({"measurement": part, "size": size, "figures": figures})
    result = {
        "name": name,
        "seed": seed,
        "commit": commit,
        "dirty": dirty,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": machine,
        "versions": versions(),
        "wall_seconds": round(time.perf_counter() - began, 1),
        "rows": with_growth(rows),
    }
    write_json(path, result)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Takes measurements and returns the exit status: 0, or 1 with a message for an error genrec knows."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python benchmarks/indexing/speed.py", description=__doc__)
    parser.add_argument("name", choices=MEASUREMENTS, help="what to measure")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="instead of n/4, n/2 and n")
    parser.add_argument("--seed", type=int, default=0, help="seed of whatever is random (default 0)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the result goes")
    parser.add_argument("--allow-dirty", action="store_true", help="measure uncommitted changes")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.sizes and min(options.sizes) < 1:
        parser.error("--sizes are 1 or more")
    try:
        if options.part:
            print(json.dumps(measure_here(options.name, options.part, options.sizes[0], options.seed)))
            return 0
        path = run(
            options.name,
            options.sizes,
            options.seed,
            options.results,
            options.allow_dirty,
            shlex.join(["python", "benchmarks/indexing/speed.py", *arguments]),
        )
    except GenrecError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(table(json.loads(path.read_text(encoding="utf-8"))["rows"]))
    say(f"Result: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
