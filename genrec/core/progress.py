"""Progress bars and messages on standard error, silent where nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from genrec.core.processes import is_main_process

T = TypeVar("T")


def say(message: str) -> None:
    """Prints a line to standard error from the main process, so that standard output stays data."""
    if is_main_process():
        print(message, file=sys.stderr, flush=True)


@contextmanager
def timed(label: str) -> Iterator[None]:
    """Says ``label`` at the start and its seconds at the end of the block."""
    say(f"- {label} ...")
    start = time.perf_counter()
    yield
    say(f"  {label}: {time.perf_counter() - start:.1f} s")


def progress(steps: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yields the steps behind a progress bar with the time left.

    Without a terminal it prints a line every tenth of the way instead of redrawing.
    """
    if not is_main_process() or total == 0:
        yield from steps
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(steps, description=label, total=total, console=Console(stderr=True))
        return
    start, shown = time.perf_counter(), 0
    for done, step in enumerate(steps, start=1):
        yield step
        if done * 10 // total > shown:
            shown = done * 10 // total
            say(f"  {label}: {done}/{total} ({time.perf_counter() - start:.0f} s)")
