import pytest

from genrec.cli import main
from genrec.core.errors import RunError
from genrec.recipe import load_recipe
from genrec.runs import RunDir

pytestmark = pytest.mark.model


@pytest.fixture
def recipe(tiny_backbone, log, items, tmp_path):
    (tmp_path / "data").mkdir()
    log.write(tmp_path / "data" / "interactions.parquet")
    items.write(tmp_path / "data" / "items.parquet")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"run_dir: {tmp_path / 'run'}\n"
        f"data: {{source: {tmp_path / 'data'}, item_core: 1}}\n"
        "index: {method: independent}\n"
        f"model: {{backbone: {tiny_backbone}}}\n"
        "train: {epochs: 1}\n"
        "evaluate: {ks: [1, 5], baselines: [popularity]}\n"
    )
    return path


def stages_done(capsys):
    err = capsys.readouterr().err
    return {line.split("] ")[1].split(":")[0] for line in err.splitlines() if "done already" in line}


def test_finished_stages_are_not_done_again_and_changed_ones_are(recipe, tmp_path, capsys):
    assert main(["run", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert "Popularity" in out
    assert "recommended:" in out
    assert str(tmp_path / "run") in out
    assert main(["run", str(recipe)]) == 0
    assert stages_done(capsys) == {"prepare", "index", "train", "baselines", "evaluate"}
    assert main(["run", str(recipe), "evaluate.beams=30"]) == 0
    assert stages_done(capsys) == {"prepare", "index", "train", "baselines"}
    assert main(["run", str(tmp_path / "run"), "train.epochs=0.5"]) == 0
    assert stages_done(capsys) == {"prepare", "index", "baselines"}
    (tmp_path / "run" / "prepared_index" / "index.json").write_text("{}")
    assert main(["index", str(tmp_path / "run")]) == 0
    assert stages_done(capsys) == {"prepare"}
    (tmp_path / "data" / "interactions.parquet").touch()
    assert main(["prepare", str(recipe)]) == 0
    assert stages_done(capsys) == {"prepare"}


def test_new_data_under_the_same_name_are_seen(recipe, tmp_path, capsys, items):
    from planted import planted_log

    assert main(["prepare", str(recipe)]) == 0
    planted_log(seed=5).write(tmp_path / "data" / "interactions.parquet")
    assert main(["prepare", str(recipe)]) == 0
    assert not stages_done(capsys)


def test_single_commands_do_what_comes_before_them(recipe, tmp_path):
    assert main(["index", str(recipe)]) == 0
    assert set(RunDir(tmp_path / "run").stages) == {"prepare", "index"}


def test_a_cut_stage_leaves_nothing_that_is_used(tmp_path):
    run = RunDir(tmp_path)
    with pytest.raises(KeyboardInterrupt), run.stage("one", {"a": 1}, ["out.txt"]):
        (tmp_path / "out.txt").write_text("half")
        raise KeyboardInterrupt
    assert not run.is_done("one", {"a": 1})
    with run.stage("one", {"a": 1}, ["out.txt"]):
        assert not (tmp_path / "out.txt").exists()
        (tmp_path / "out.txt").write_text("whole")
    assert run.is_done("one", {"a": 1})
    assert not run.is_done("one", {"a": 2})
    (tmp_path / "out.txt").write_text("changed")
    assert not run.is_done("one", {"a": 1})


def test_a_stage_without_its_output_is_an_error(tmp_path):
    with (
        pytest.raises(RunError, match=r"ended without writing out\.txt"),
        RunDir(tmp_path).stage("one", 1, ["out.txt"]),
    ):
        pass


def test_quarantine_is_written_beside_the_run(recipe, tmp_path, capsys, log):
    csv = tmp_path / "log.csv"
    rows = zip(*(log.table[c].to_pylist() for c in ("user_id", "item_id", "timestamp")), strict=True)
    csv.write_text(
        "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows) + "u1,,3\nu1,i1,late\n"
    )
    arguments = [
        "prepare",
        str(recipe),
        f"data.source={csv}",
        f"data.items={tmp_path / 'data' / 'items.parquet'}",
    ]
    assert main(arguments) == 1
    assert "2 bad values" in capsys.readouterr().err
    assert main([*arguments, "data.on_bad_rows=quarantine"]) == 0
    assert "2 put aside" in capsys.readouterr().err
    assert len((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()) == 2


def test_check_prints_the_recipe_and_marked_rows_and_writes_nothing(recipe, tmp_path, capsys):
    assert main(["check", str(recipe), "tasks.form=prompt", "tasks.names=[next_item, item_to_text]"]) == 0
    out = capsys.readouterr().out
    assert "method: independent" in out
    assert out.count(" learned\n") == 3
    assert "[<a_" in out
    assert not (tmp_path / "run").exists()


def test_a_catalogue_smaller_than_the_cutoff_is_said(recipe, capsys):
    assert main(["run", str(recipe), "evaluate.ks=[1, 50]"]) == 0
    assert "the catalogue has 24 items" in capsys.readouterr().err


def test_every_key_survives_the_run_directory(recipe, tmp_path):
    assert main(["prepare", str(recipe), "train.lora_r=3"]) == 0
    again = load_recipe(tmp_path / "run")
    assert again.train.lora_r == 3
    assert again == load_recipe(recipe, ["train.lora_r=3"])
