"""Measures matching of written titles to a large catalogue: ``python benchmarks/decoding/grounding.py``.

A million vectors of 384, the 100 nearest of each for 1,000 queries, through ``Grounder.match``: exact, IVF and HNSW, beside
FAISS's exhaustive index and distances that numpy works out one query at a time. Each part has a process of its own.

The vectors are those of all-MiniLM-L6-v2 for the titles of a data set, each many times with Gaussian noise, whose length is half
the mean distance of a title to the nearest other one. So they are clustered as titles are; they are no titles of a million items.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genrec.core.errors import GenrecError, RunError, require
from genrec.core.files import megabytes, write_json
from genrec.core.progress import say
from genrec.data_prep import ItemCatalog

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, begin_result, datasets

RESULTS = ROOT / "benchmarks" / "decoding" / "results"
SIZE, QUERIES, K = 1_000_000, 1_000, 100
CHECKED = 10  # queries that numpy answers too
WIDTHS = {"ivf": (8, 32, 128), "hnsw": (100, 200, 400)}
Figures = dict[str, Any]


def make_data(size: int, seed: int, folder: Path) -> Figures:
    """Writes ``vectors.npy`` and ``queries.npy``, and returns what they are made of."""
    from genrec.indexing.encoders import encode

    name, _, items = list(datasets())[-1]
    titles = list(dict.fromkeys(items.title(item) for item in items.item_ids))
    real = encode(titles, "minilm")
    near = []
    for first in range(0, len(real), 1000):
        part = real[first : first + 1000]
        squared = 2 - 2 * part @ real.T
        squared[np.arange(len(part)), first + np.arange(len(part))] = np.inf
        near.append(np.sqrt(np.maximum(squared.min(1), 0)))
    spread = 0.5 * float(np.concatenate(near).mean()) / real.shape[1] ** 0.5
    rng = np.random.default_rng(seed)

    def noisy(number: int) -> np.ndarray:
        drawn = real[rng.integers(len(real), size=number)]
        return drawn + spread * rng.standard_normal(drawn.shape, dtype=np.float32)

    made = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (size, real.shape[1]))
    for first in range(0, size, 50_000):
        made[first : first + 50_000] = noisy(len(made[first : first + 50_000]))
    made.flush()
    np.save(folder / "queries.npy", noisy(QUERIES))
    return {
        "data": name,
        "titles": len(titles),
        "width": real.shape[1],
        "noise_length": spread * real.shape[1] ** 0.5,
    }


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "queries.npy")


def by_numpy(folder: Path) -> tuple[np.ndarray, Figures]:
    """Squared differences in float64, a stretch of vectors at a time, without any matrix product."""
    vectors, queries = load(folder)
    found, began = [], time.perf_counter()
    for query in queries[:CHECKED].astype(np.float64):
        stretches = [vectors[first : first + 20_000] for first in range(0, len(vectors), 20_000)]
        squared = np.concatenate([np.square(part - query).sum(1) for part in stretches])
        best = np.argpartition(squared, min(K, len(squared) - 1))[:K]
        found.append(best[np.argsort(squared[best])])
    return np.array(found), {"ms_per_query": 1e3 * (time.perf_counter() - began) / CHECKED}


def by_flat(folder: Path) -> tuple[np.ndarray, Figures]:
    faiss = require("faiss", "search")
    vectors, queries = load(folder)
    began = time.perf_counter()
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    built = time.perf_counter()
    _, found = index.search(queries, K)
    return found, {
        "build_s": built - began,
        "ms_per_query": 1e3 * (time.perf_counter() - built) / len(queries),
    }


def by_grounder(search: str) -> Callable[[Path], tuple[np.ndarray, Figures]]:
    def measure(folder: Path) -> tuple[np.ndarray, Figures]:
        from genrec.decoding.grounding import Grounder, Written
        from genrec.decoding.settings import GroundingSettings
        from genrec.decoding.titles import TitleEncoder, approximate_index

        vectors, queries = load(folder)

        def encode(texts: Sequence[str]) -> np.ndarray:
            numbers = [int(text[1:]) for text in texts]
            return vectors[numbers] if texts[0][0] == "t" else queries[numbers]

        catalog = ItemCatalog.from_titles({str(n): f"t{n}" for n in range(len(vectors))})
        own, made = folder / "titles", (folder / "titles").exists()
        model: Any = None  # nothing is written here
        began = time.perf_counter()

        def grounder(**settings: Any) -> Grounder:
            asked = GroundingSettings(search=search, candidates=K, **settings)
            return Grounder(
                model, model, catalog, asked, folder=own, encoder=TitleEncoder("benchmark", lambda: encode)
            )

        plain = grounder()
        opened = time.perf_counter()
        figures: Figures = {"open_s" if made else "make_vectors_s": opened - began}
        if search != "exact":
            approximate_index(plain.vectors.vectors, search, own)  # type: ignore[arg-type]
            figures["build_s"] = time.perf_counter() - opened
            figures["index_mb"] = megabytes(own / f"{search}.faiss")
        written = [Written([f"q{n}"], [0.0]) for n in range(len(queries))]
        histories: list[list[str]] = [[]] * len(written)
        found, widths = [], WIDTHS.get(search, (1,))
        for width in widths:
            plain = grounder(search_width=width)
            plain.match(histories[:2], written[:2], K)  # reads the index
            began = time.perf_counter()
            lists = plain.match(histories, written, K)
            figures[f"ms_per_query_{width}" if search != "exact" else "ms_per_query"] = (
                1e3 * (time.perf_counter() - began) / len(written)
            )
            found.append([[int(item) for item, _ in ranking] for ranking in lists])
        return np.array(found), figures

    return measure


PARTS: dict[str, Callable[[Path], tuple[np.ndarray, Figures]]] = {
    "numpy": by_numpy,
    "faiss flat": by_flat,
    "exact": by_grounder("exact"),
    "ivf": by_grounder("ivf"),
    "hnsw": by_grounder("hnsw"),
}


def recall(found: np.ndarray, right: np.ndarray) -> float:
    """Returns the mean share of the right items that were found, over the queries of the smaller of the two."""
    pairs = zip(found.tolist(), right.tolist(), strict=False)
    return float(np.mean([len(set(one) & set(two)) / len(two) for one, two in pairs]))


def run_part(name: str, folder: Path) -> Figures:
    """Returns the figures of a part, measured in a process of its own, with its peak memory."""
    command = [sys.executable, __file__, "--part", name, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"{name} ended with status {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_mb() -> float:
    """Returns the most resident memory of this process, pages of mapped files among it, in 10^6 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Takes the measurements, adds a result file and returns the exit status."""

    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python benchmarks/decoding/grounding.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=int, default=SIZE, help=f"vectors (default {SIZE:,})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--allow-dirty", action="store_true", help="measure uncommitted changes")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.part:
            found, figures = PARTS[options.part](options.folder)
            np.save(options.folder / f"{options.part}.npy", found)
            print(json.dumps(figures | {"peak_mb": peak_mb()}))
            return 0
        changed, script = options.size != SIZE, "benchmarks/decoding/grounding.py"
        path, head = begin_result(
            options.results, "grounding", script, arguments, changed=changed, allow_dirty=options.allow_dirty
        )
        began, rows = time.perf_counter(), {}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            data = make_data(options.size, options.seed, folder)
            for part in PARTS:
                rows[part] = run_part(part, folder)
                say(f"{part}: {', '.join(f'{key} {value:,.4g}' for key, value in rows[part].items())}")
            found = {part: np.load(folder / f"{part}.npy") for part in PARTS}
        rows["faiss flat"]["recall_of_numpy"] = recall(found["faiss flat"], found["numpy"])
        rows["exact"]["recall_of_numpy"] = recall(found["exact"][0], found["numpy"])
        rows["exact"]["recall_of_faiss_flat"] = recall(found["exact"][0], found["faiss flat"])
        for search, widths in WIDTHS.items():
            for width, lists in zip(widths, found[search], strict=True):
                rows[search][f"recall_of_exact_{width}"] = recall(lists, found["exact"][0])
        result = head | {
            "seed": options.seed,
            "data": data | {"vectors": options.size, "queries": QUERIES, "k": K},
            "parts": rows,
            "wall_seconds": round(time.perf_counter() - began, 1),
        }
        write_json(path, result)
        for part, figures in rows.items():
            print(f"{part:>10}  " + ", ".join(f"{key} {value:,.4g}" for key, value in figures.items()))
        print(f"Result: {path}")
    except GenrecError as error:
        print(f"grounding: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
