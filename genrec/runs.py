"""The run directory: which stages are finished, on which inputs, with which outputs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from genrec._version import __version__
from genrec.core.errors import RunError
from genrec.core.files import hash_file, hash_folder, hash_value, read_json, write_json
from genrec.core.processes import is_main_process
from genrec.core.progress import say

MANIFEST = "manifest.json"


class RunDir:
    """A folder whose finished stages are recorded with a hash of their inputs and of their outputs.

    A stage whose record fits is not done again. One that was cut has no record: what it left is removed
    before it is done again.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def stages(self) -> dict[str, Any]:
        """Records of the finished stages by name."""
        file = self.path / MANIFEST
        return read_json(file)["stages"] if file.exists() else {}

    def is_done(self, name: str, inputs: Any) -> bool:
        """Returns whether a stage is finished on these inputs and its outputs are as it left them."""
        record = self.stages.get(name)
        if record is None or record["inputs"] != hash_value(inputs):
            return False
        changed = [
            out
            for out, found in self._hashes(list(record["outputs"])).items()
            if found != record["outputs"][out]
        ]
        if changed:
            say(f"- {name}: {', '.join(changed)} changed since it was written; the stage is done again")
        return not changed

    @contextlib.contextmanager
    def stage(
        self, name: str, inputs: Any, outputs: list[str], optional: Sequence[str] = ()
    ) -> Iterator[None]:
        """Runs a stage in the block and records it when the block ends without an error.

        Only the main process touches the folder.

        Args:
            name: Name of the stage.
            inputs: JSON-able value of everything that the outputs depend on.
            outputs: Files and folders, relative to the run, that the stage writes.
            optional: Those that it writes on some inputs only.

        Raises:
            RunError: If the stage ends without having written its outputs.
        """
        digest = hash_value(inputs)
        if is_main_process():
            self._forget(name)
            for output in (*outputs, *optional):
                _remove(self.path / output)
        start = time.perf_counter()
        yield
        if not is_main_process():
            return
        missing = [output for output in outputs if not (self.path / output).exists()]
        if missing:
            raise RunError(f"The stage {name} ended without writing {', '.join(missing)}.")
        record = {
            "inputs": digest,
            "outputs": self._hashes([*outputs, *optional]),
            "seconds": round(time.perf_counter() - start, 1),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }
        write_json(self.path / MANIFEST, {"stages": self.stages | {name: record}})

    def _forget(self, name: str) -> None:
        stages = self.stages
        if stages.pop(name, None) is not None:
            write_json(self.path / MANIFEST, {"stages": stages})

    def _hashes(self, outputs: list[str]) -> dict[str, str | None]:
        hashes: dict[str, str | None] = {}
        for output in outputs:
            path = self.path / output
            if path.is_dir():
                hashes[output] = hash_value(hash_folder(path))
            else:
                hashes[output] = hash_file(path) if path.exists() else None
        return hashes


def versions() -> dict[str, str]:
    """Returns the versions of genrec, Python and the libraries a result depends on, where installed."""
    found = {"genrec": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "scikit-learn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
