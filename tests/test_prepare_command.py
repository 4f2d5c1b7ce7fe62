"""``genrec prepare``: of a recipe, and of a source as it is."""

import json

import pytest

from genrec.cli import main
from genrec.data_prep import check_manifest

ROWS = "who,what,when\n" + "".join(
    f"u{user},i{(user + place) % 6},{1_400_000_000 + place}\n" for user in range(8) for place in range(6)
)
COLUMNS = ["--columns", "user_id=who", "item_id=what", "timestamp=when"]


@pytest.fixture
def log_file(tmp_path):
    path = tmp_path / "my log.csv"
    path.write_text(ROWS)
    return path


def test_a_source_is_prepared_into_a_folder_of_its_own(log_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", str(log_file), *COLUMNS, "data.split.rule=leave_one_out"]) == 0
    out = capsys.readouterr().out
    assert "48" in out
    assert "Prepared: prepared/my-log-csv  (report: prepared/my-log-csv/report.html)" in out
    manifest = check_manifest(tmp_path / "prepared" / "my-log-csv")
    assert manifest["settings"]["columns"] == {"user_id": "who", "item_id": "what", "timestamp": "when"}
    assert main(["prepare", str(tmp_path / "prepared" / "my-log-csv"), "--out", "again"]) == 0
    assert check_manifest("again")["log_sha256"] == manifest["log_sha256"]


def test_bad_rows_stop_or_go_aside(log_file, tmp_path, capsys):
    log_file.write_text(ROWS + "u1,,1400000000\n")
    arguments = ["prepare", str(log_file), *COLUMNS, "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "my log.csv line 50: item_id: is missing" in capsys.readouterr().err
    assert main([*arguments, "--on-bad-rows=quarantine"]) == 0
    assert "1 row of the log could not be used; it is in quarantine.jsonl" in " ".join(
        capsys.readouterr().out.split()
    )
    (line,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give a recipe or a source"),
        (["nowhere.csv"], "is neither a file, nor a folder"),
        (["quickstart", "--out", "x"], "leave --out out"),
        (["LOG", "--columns", "user_id"], "takes OURS=THEIRS, got 'user_id'"),
        (["LOG", *COLUMNS, "data.user_coer=3"], "Did you mean 'data.user_core'"),
        (["LOG", "--columns", "user_id=whom"], "no column 'whom'.*Did you mean 'who'"),
    ],
)
def test_what_cannot_be_prepared_is_said(arguments, message, log_file, tmp_path, capsys, monkeypatch):
    import re

    monkeypatch.chdir(tmp_path)
    assert main(["prepare", *(str(log_file) if a == "LOG" else a for a in arguments)]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_recipes_data_are_prepared_into_its_run_and_only_once(log_file, tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"run_dir: {tmp_path / 'run'}\ndata:\n  source: {log_file}\n"
        "  columns: {user_id: who, item_id: what, timestamp: when}\n"
    )
    assert main(["prepare", str(recipe)]) == 0
    assert (tmp_path / "run" / "data" / "report.html").is_file()
    check_manifest(tmp_path / "run" / "data")
    assert "done already" not in capsys.readouterr().err
    assert main(["prepare", str(recipe)]) == 0
    assert "prepare: done already" in capsys.readouterr().err


def test_raw_formats_are_listed(capsys):
    assert main(["prepare", "--formats"]) == 0
    assert "amazon-2018" in capsys.readouterr().out
