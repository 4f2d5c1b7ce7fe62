import errno
import os

import pytest

from genrec.core.errors import RunError
from genrec.core.files import atomic_path, hash_value, read_json, write_json


def test_a_file_appears_whole(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, "é"]})
    assert read_json(tmp_path / "a.json") == {"x": [1, "é"]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_cut_write_leaves_the_old_content(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a.json") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert read_json(tmp_path / "a.json") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_replaces_a_folder(tmp_path):
    for content in ("old", "new"):
        with atomic_path(tmp_path / "folder") as part:
            part.mkdir()
            (part / content).touch()
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["new"]


def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_json(tmp_path / "a.json", 1)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="No space left on device.*Free some space"):
        write_json(tmp_path / "a.json", 2)
    assert read_json(tmp_path / "a.json") == 1


def test_equal_values_have_equal_hashes():
    assert hash_value({"a": 1, "b": [2]}) == hash_value({"b": [2], "a": 1}) != hash_value({"a": 1, "b": [3]})


@pytest.mark.parametrize("content", ["", "{", "\x00"])
def test_broken_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(RunError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
