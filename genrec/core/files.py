"""Files that are written whole or not at all, and the hashes that name their contents."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from genrec.core.errors import RunError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` and moves it there when the block ends without an error.

    The block may make a file or a folder. A reader sees the old content or the new, never a half.

    Raises:
        RunError: If the file system refuses (disk full, no permission). Nothing half-written stays.
    """
    target = Path(path)
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        part = scratch / target.name
        yield part
        if part.is_dir() and target.is_dir():
            os.replace(target, scratch / "previous")
        os.replace(part, target)
    except OSError as error:
        raise RunError(
            f"Could not write {target}: {error.strerror or error}. Nothing half-written was left there. "
            "Free some space or choose another folder with run_dir=..., then run the same command again: "
            "finished stages are kept."
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes ``value`` as JSON, whole or not at all. Raises RunError if the disk refuses."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns the JSON value of a file.

    Raises:
        RunError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not valid JSON: {error}.") from error


def hash_value(value: Any) -> str:
    """Returns a SHA-256 hex digest of any JSON-able value; equal values give equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_array(values: np.ndarray) -> str:
    """Returns the SHA-256 hex digest of an array's shape, type and values."""
    digest = hashlib.sha256(f"{values.dtype} {values.shape}".encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def hash_file(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Returns ``{relative path: SHA-256}`` of every file below a folder, in sorted order."""
    root = Path(folder)
    return {
        path.relative_to(root).as_posix(): hash_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def megabytes(path: str | os.PathLike[str]) -> float:
    """Returns the size of a file, or of all files below a folder, in 10^6 bytes."""
    root = Path(path)
    files = [root] if root.is_file() else [p for p in root.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6
