"""What a prepared data set was made from, and whether its files are still as they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genrec.core.errors import DataError
from genrec.core.files import hash_file, hash_folder, hash_value, read_json

MANIFEST = "manifest.json"
# What of a prepared data set goes to the Hub; rows that were put aside and the page stay.
PUSHED = (
    "interactions.parquet",
    "interactions.parquet/*",
    "items.parquet",
    "users.parquet",
    "report.json",
    MANIFEST,
    "README.md",
)


def hash_path(path: Path) -> str:
    """Returns the SHA-256 of a file, or of a folder's files with their names."""
    return hash_value(hash_folder(path)) if path.is_dir() else hash_file(path)


def check_manifest(folder: str | Path) -> dict[str, Any]:
    """Returns the manifest of a prepared data set whose files are as they were written.

    Raises:
        DataError: If there is none, or a file was changed since.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"{folder} is no prepared data set: it has no {MANIFEST}. Make one with genrec prepare."
        )
    manifest = read_json(folder / MANIFEST)
    changed = [
        n
        for n, found in manifest["files"].items()
        if not (folder / n).exists() or hash_path(folder / n) != found
    ]
    if changed:
        raise DataError(
            f"{', '.join(changed)} in {folder} is not what {MANIFEST} says was prepared. Prepare the data set again, or put "
            "the file back."
        )
    return dict(manifest)
