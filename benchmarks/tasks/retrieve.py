"""Measures the retriever of past behaviours: ``python benchmarks/tasks/retrieve.py [--histories N --events N]``.

Histories of random items, one target each, the 60 most alike of each in time order; beside a plain loop over histories in numpy that
scores every event and sorts. With a catalogue so small that scores of all items are made, and with one so large that they are not.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from genrec.core.errors import GenrecError
from genrec.core.files import write_json
from genrec.core.progress import say
from genrec.tasks.retrieve import Retriever

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, begin_result, peak_memory

RESULTS = ROOT / "benchmarks" / "tasks" / "results"
HISTORIES, EVENTS, WIDTH, K = 10_000, 5_000, 512, 60
CATALOGUES = (10_000, 1_000_000)
# Histories that the plain loop does, whose time is multiplied.
PLAIN = 200


def plain(vectors: np.ndarray, histories: list[np.ndarray], targets: np.ndarray, k: int) -> list[np.ndarray]:
    """Returns the places of the best k events by scoring every event and sorting, in order of time."""
    found = []
    for history, target in zip(histories, targets, strict=True):
        scores = vectors[history] @ vectors[target]
        found.append(np.sort(np.argsort(scores, kind="stable")[::-1][:k]))
    return found


def measure(num_items: int, num: int, events: int) -> dict[str, Any]:
    """Returns seconds of both ways for one size of the catalogue."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((num_items, WIDTH), dtype=np.float32)
    # As unequal as popularity is.
    draws = np.minimum(
        (num_items * rng.random((num, events), np.float32) ** 3).astype(np.int64), num_items - 1
    )
    histories, targets = list(draws), rng.integers(num_items, size=num)
    retriever = Retriever(vectors)
    began = time.perf_counter()
    found = retriever.find(histories, targets, K)
    seconds = time.perf_counter() - began
    few = min(PLAIN, num)
    began = time.perf_counter()
    wanted = plain(retriever.vectors, histories[:few], targets[:few], K)
    loop = (time.perf_counter() - began) * num / few
    same = float(np.mean([np.array_equal(a, b) for a, b in zip(found[:few], wanted, strict=True)]))
    say(
        f"  {num_items:,} items: {seconds:.1f} s, plain loop {loop:.1f} s, {same:.1%} of {few} lists the same"
    )
    return {"items": num_items, "seconds": round(seconds, 2), "plain_loop_s": round(loop, 2), "same": same}


def main() -> int:
    """Measures, prints, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=HISTORIES)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--allow-dirty", action="store_true")
    options = parser.parse_args()
    try:
        path, result = begin_result(
            RESULTS,
            "retrieve",
            "benchmarks/tasks/retrieve.py",
            sys.argv[1:],
            changed=(options.histories, options.events) != (HISTORIES, EVENTS),
            allow_dirty=options.allow_dirty,
        )
        sizes = {"histories": options.histories, "events": options.events, "width": WIDTH, "k": K}
        found = [measure(num_items, options.histories, options.events) for num_items in CATALOGUES]
        write_json(path, result | {"sizes": sizes, "catalogues": found, "peak_gb": peak_memory()})
    except GenrecError as error:
        print(f"retrieve.py: {error}", file=sys.stderr)
        return error.exit_status
    say(f"  wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
