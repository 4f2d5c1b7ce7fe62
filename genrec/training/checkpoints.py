"""Checkpoints that count only when they are whole, and what a signal leaves behind."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from genrec.core.errors import GenrecError
from genrec.core.files import atomic_path, hash_folder, write_json
from genrec.core.processes import any_of_them, from_main, is_main_process, wait
from genrec.core.progress import say

COMPLETE, BEGUN, WEIGHTS = "COMPLETE", "BEGUN", "weights"


class Stopped(GenrecError):
    """Raised where training was asked to stop and left a checkpoint; the same call goes on from there."""

    exit_status = 128 + signal.SIGTERM


class MarkComplete(TrainerCallback):
    """Marks a checkpoint with a hash of each of its files, once every process has written its part."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Writes the mark; a checkpoint that could not be written is not there to be marked."""
        wait()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.should_save and folder.is_dir():
            write_json(folder / COMPLETE, hash_folder(folder))


class StopOnSignal(TrainerCallback):
    """Turns SIGTERM into a checkpoint at the end of the step and an end of training, as cluster schedulers hope for.

    Attributes:
        stopped_at: The step after which training ended because of it, or None.
    """

    def __init__(self) -> None:
        self.asked = False
        self.stopped_at: int | None = None
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Listens."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Ends training where any process was asked to."""
        if any_of_them(self.asked) and state.global_step < state.max_steps:
            self.stopped_at = state.global_step
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Stops listening."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def last_checkpoint(folder: Path, begun: str) -> str | None:
    """Returns the newest whole checkpoint below a folder, or None.

    Checkpoints of a training begun on anything else than ``begun``, those cut while they were written, and those
    whose files are not as they were written are removed by the main process, and said so.
    """
    mark = folder / BEGUN
    ours = mark.exists() and mark.read_text() == begun
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    newest = None
    if is_main_process():
        for path in found:
            reason = _what_is_wrong(path) if ours else "is of another training"
            if reason:
                say(f"  {path.name} {reason}; it is removed")
                shutil.rmtree(path)
            elif newest is None:
                newest = str(path)
        if not ours:
            with atomic_path(mark) as part:
                part.write_text(begun)
    return from_main(newest)


def _what_is_wrong(checkpoint: Path) -> str:
    """Returns why a checkpoint cannot be gone on from, empty where it can."""
    mark = checkpoint / COMPLETE
    try:
        written = json.loads(mark.read_text())
    except (OSError, ValueError):
        return "was cut while it was written"
    there = hash_folder(checkpoint)
    changed = sorted(name for name, digest in written.items() if there.get(name) != digest)
    return f"is broken ({', '.join(changed)}: not as written)" if changed else ""
