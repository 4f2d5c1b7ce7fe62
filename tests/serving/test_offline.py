"""Recommendations in parts on disk are those that are asked for one by one, however they are cut and divided."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from trained import tuned

from genrec.cli import main
from genrec.core.errors import DataError, RunError
from genrec.serving import Recommender
from genrec.serving.offline import recommend_to

CONFIG = Path(__file__).parents[2] / "recipes" / "accelerate" / "cpu_2.yaml"
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def run(tmp_path_factory, log, items, tiny_backbone):
    return tuned(tiny_backbone, log, items, tmp_path_factory.mktemp("run"), max_steps=5)


@pytest.fixture(scope="module")
def file(tmp_path_factory, items):
    """Rows in row groups of another size than that of parts, one of them empty."""
    rng = np.random.default_rng(0)
    rows = [
        [str(i) for i in rng.choice(items.item_ids, rng.integers(0, 6), replace=False)] for _ in range(23)
    ]
    rows[4] = []
    path = tmp_path_factory.mktemp("histories") / "histories.parquet"
    table = pa.table(
        {"user_id": [f"u{n}" for n in range(23)], "history": pa.array(rows, pa.list_(pa.string()))}
    )
    pa_parquet.write_table(table, path, row_group_size=4)
    return path


def read(folder):
    names = sorted(folder.glob("part-*.parquet"))
    return pa.concat_tables([pa_parquet.read_table(name) for name in names]).to_pydict()


@pytest.fixture(scope="module")
def wanted(run, file):
    table = pa_parquet.read_table(file).to_pydict()
    found = Recommender.from_pretrained(run).recommend(table["history"], k=3)
    return {"user_id": table["user_id"], "items": [[r.item_id for r in each] for each in found]}


def test_parts_hold_what_recommend_gives(run, file, wanted, tmp_path):
    folder = recommend_to(tmp_path / "out", Recommender.from_pretrained(run), file, k=3, rows_per_part=5)
    found = read(folder)
    assert {name: found[name] for name in wanted} == wanted
    assert len(list(folder.glob("part-*"))) == 5
    assert all(scores == sorted(scores, reverse=True) for scores in found["scores"])


def test_a_cut_call_goes_on_with_the_parts_that_are_missing(run, file, wanted, tmp_path, capsys):
    recommender = Recommender.from_pretrained(run)
    folder = recommend_to(tmp_path / "out", recommender, file, k=3, rows_per_part=5)
    kept = (folder / "part-000001.parquet").stat().st_mtime_ns
    for number in (0, 3):
        (folder / f"part-{number:06d}.parquet").unlink()
    recommend_to(folder, recommender, file, k=3, rows_per_part=5)
    assert read(folder)["items"] == wanted["items"]
    assert (folder / "part-000001.parquet").stat().st_mtime_ns == kept
    assert "3 parts are there" in capsys.readouterr().err
    with pytest.raises(RunError, match="begun with another asked"):
        recommend_to(folder, recommender, file, k=4, rows_per_part=5)
    with pytest.raises(RunError, match="holds something else"):
        recommend_to(tmp_path, recommender, file)


def test_two_processes_divide_the_parts(run, file, wanted, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
    command += ["--main_process_port", "0", "-m", "genrec", "batch", str(run)]
    out = tmp_path / "out"
    command += ["--histories", str(file), "--out", str(out), "-k", "3", "--rows-per-part", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = read(out)
    assert {name: found[name] for name in wanted} == wanted
    assert done.stdout.count("Recommendations:") == 1


def test_the_command_takes_the_runs_own_users(run, log, tmp_path, capsys):
    assert main(["batch", str(run), "--out", str(tmp_path / "out"), "-k", "2"]) == 0
    found = read(tmp_path / "out")
    assert len(found["user_id"]) == len(log.histories())
    own = Recommender.from_pretrained(run).recommend(user_ids=found["user_id"][:3], k=2)
    assert found["items"][:3] == [[r.item_id for r in each] for each in own]
    assert json.loads((tmp_path / "out" / "about.json").read_text())["asked"]["k"] == 2


def test_wrong_files_are_told(run, tmp_path):
    recommender = Recommender.from_pretrained(run)
    with pytest.raises(DataError, match="must be a Parquet file"):
        recommend_to(tmp_path / "a", recommender, tmp_path / "nowhere.parquet")
    path = tmp_path / "wrong.parquet"
    pa_parquet.write_table(pa.table({"user": ["a"]}), path)
    with pytest.raises(DataError, match="lacks user_id, history"):
        recommend_to(tmp_path / "a", recommender, path)
    nothing = pa.table({"user_id": ["a"], "history": pa.array([None], pa.list_(pa.string()))})
    pa_parquet.write_table(nothing, path)
    with pytest.raises(DataError, match="Row 0 .* has no history"):
        recommend_to(tmp_path / "a", recommender, path)
