import zipfile
from pathlib import Path

import pytest

from genrec.core import packages
from genrec.core.errors import DataError
from genrec.core.files import hash_file
from genrec.core.packages import PackagedFiles, fetch


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel on disk, and a pip that copies it instead of asking an index."""
    path = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/data.txt", "hello")
    calls = []

    class Done:
        returncode, stderr = 0, ""

    def pip(command, **_):
        calls.append(command)
        target = Path(command[command.index("--dest") + 1])
        (target / path.name).write_bytes(path.read_bytes())
        return Done()

    monkeypatch.setenv("GENREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages.subprocess, "run", pip)
    return path, calls


def test_a_file_is_fetched_once_and_its_terms_are_printed(wheel, capsys):
    path, calls = wheel
    files = PackagedFiles("toy==1.0", hash_file(path), ("toy/data.txt",), "MIT (https://example.org)")
    assert fetch(files)[0].read_text() == "hello"
    assert fetch(files)[0].read_text() == "hello"
    assert len(calls) == 1
    assert "MIT (https://example.org)" in capsys.readouterr().err


def test_another_hash_is_refused(wheel):
    with pytest.raises(DataError, match="SHA-256"):
        fetch(PackagedFiles("toy==1.0", "0" * 64, ("toy/data.txt",), "MIT"))


def test_no_index_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(DataError, match="package index must be within reach"):
        fetch(PackagedFiles("no-such-package-at-all==1.0", "0" * 64, ("x",), "MIT"))
