import json

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from genrec.cli import main
from genrec.core.errors import RunError
from genrec.evaluation.rankings import read_rankings
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


def test_an_index_of_a_sequence_recommenders_vectors_trains_it_first(recipe, tmp_path):
    changes = ["index.method=rq_kmeans", "index.collaborative_vectors=sasrec", "index.text_encoder=words"]
    changes += ["index.levels=2", "index.codebook_size=6", "sasrec.epochs=1", "sasrec.width=8"]
    assert main(["index", str(recipe), *changes]) == 0
    assert set(RunDir(tmp_path / "run").stages) == {"prepare", "sasrec", "index"}
    assert main(["index", str(recipe), *changes, "index.vectors=text", f"run_dir={tmp_path / 'other'}"]) == 0
    assert set(RunDir(tmp_path / "other").stages) == {"prepare", "index"}


def test_items_may_share_codes_from_end_to_end(recipe, tmp_path):
    changes = ["index.method=rq_kmeans", "index.collisions=allow", "index.text_encoder=words"]
    changes += ["index.levels=1", "index.codebook_size=6", "train.teacher=sasrec", "sasrec.epochs=1"]
    assert main(["run", str(recipe), *changes]) == 0
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert report["index"]["collision_rate"] == 1 - 6 / 24
    lists = read_rankings(tmp_path / "run" / "rankings.parquet")
    assert all(len(set(items)) == len(items) == 5 for items in lists.item_ids)


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


def test_quarantine_is_written_into_the_run(recipe, tmp_path, capsys, log):
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
        "data.time=number",
    ]
    assert main(arguments) == 1
    assert "2 bad rows" in capsys.readouterr().err
    assert main([*arguments, "data.on_bad_rows=quarantine"]) == 0
    assert "2 put aside" in capsys.readouterr().err
    assert len((tmp_path / "run" / "data" / "quarantine.jsonl").read_text().splitlines()) == 2


def test_check_prints_the_recipe_and_marked_rows_and_writes_nothing(recipe, tmp_path, capsys):
    assert main(["check", str(recipe), "tasks.form=prompt", "tasks.mixture=[next_item, item_to_text]"]) == 0
    out = capsys.readouterr().out
    assert "method: independent" in out
    assert out.count(" learned\n") == 6, "three of each family"
    assert "[<a_" in out
    assert "804 rows of 2 families" in out
    assert not (tmp_path / "run").exists()


def test_a_catalogue_smaller_than_the_cutoff_is_said(recipe, capsys):
    assert main(["run", str(recipe), "evaluate.ks=[1, 50]"]) == 0
    assert "the catalogue has 24 items" in capsys.readouterr().err


def test_every_key_survives_the_run_directory(recipe, tmp_path):
    assert main(["prepare", str(recipe), "train.lora_r=3"]) == 0
    again = load_recipe(tmp_path / "run")
    assert again.train.lora_r == 3
    assert again == load_recipe(recipe, ["train.lora_r=3"])


def evaluated(recipe, tmp_path):
    assert main(["run", str(recipe)]) == 0
    return json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_evaluation_leaves_a_page_values_of_every_row_and_every_models_lists(recipe, tmp_path, capsys):
    report = evaluated(recipe, tmp_path)
    shown = capsys.readouterr().out
    assert "95% interval" in shown
    assert "randomisation test over users" in shown
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<svg" in page
    assert "Popularity" in page
    values = pq.read_table(tmp_path / "run" / "values.parquet")
    assert values.num_rows == 2 * 60
    own = values.filter(pc.equal(values["model"], "model"))
    assert pc.mean(own["HR@5"]).as_py() == pytest.approx(report["model"]["metrics"]["HR@5"])
    assert report["baselines"]["popularity"]["tuning"]["metric"] == "NDCG@10"
    lists = read_rankings(tmp_path / "run" / "baselines" / "popularity.parquet")
    assert len(lists.user_ids) == 60
    assert {t["b"] for t in report["tests"]} == {"popularity"}


def test_lists_of_others_are_judged_beside_the_baselines_without_a_language_model(
    recipe, tmp_path, capsys, log
):
    from genrec.data_prep import leave_one_out

    test = leave_one_out(log).test
    perfect = tmp_path / "perfect.json"
    perfect.write_text(json.dumps(dict(zip(test.user_ids, test.targets, strict=True))))
    assert main(["evaluate", str(recipe), "--rankings", str(perfect), "--name", "oracle"]) == 0
    assert "oracle" in capsys.readouterr().out
    folder = tmp_path / "run" / "judged" / "oracle"
    report = json.loads((folder / "metrics.json").read_text())
    assert report["model"]["metrics"]["HR@1"] == 1
    assert report["judged"]["num_missing_users"] == 0
    assert (folder / "report.html").exists()
    assert not (tmp_path / "run" / "model").exists()

    few = tmp_path / "few.json"
    few.write_text(json.dumps({test.user_ids[0]: ["no such item", *test.targets[0]]}))
    assert main(["evaluate", str(recipe), "--rankings", str(few)]) == 1
    assert "59 of 60 users to be evaluated have no ranking" in capsys.readouterr().err
    lenient = ["--missing-users", "empty", "--unknown-items", "miss"]
    assert main(["evaluate", str(recipe), "--rankings", str(few), *lenient]) == 0
    assert "59 missing users, 0 extra users, 1 unknown items" in capsys.readouterr().err
    report = json.loads((tmp_path / "run" / "judged" / "few" / "metrics.json").read_text())
    assert report["model"]["metrics"]["HR@5"] == pytest.approx(1 / 60)

    page = tmp_path / "both.html"
    runs = [str(folder), str(folder.parent / "few")]
    assert main(["compare", *runs, "--html", str(page)]) == 0
    assert "ahead" in capsys.readouterr().out
    assert "oracle" in page.read_text()
    changed = ["evaluate", str(recipe), "evaluate.exclude_history=false", "train.exclude_history=false"]
    changed += ["sasrec.exclude_history=false", "gru4rec.exclude_history=false"]
    assert main([*changed, "--rankings", str(perfect), "--name", "other"]) == 0
    capsys.readouterr()
    assert main(["compare", runs[0], str(folder.parent / "other")]) == 1
    assert "exclude_history: True and False" in capsys.readouterr().err


def test_rankings_and_relevant_items_need_no_recipe(tmp_path, capsys):
    (tmp_path / "run.txt").write_text("u Q0 a 1 2.0 x\nu Q0 b 2 1.0 x\n")
    (tmp_path / "qrels.txt").write_text("u 0 b 1\n")
    files = ["--rankings", str(tmp_path / "run.txt"), "--relevant", str(tmp_path / "qrels.txt")]
    assert main(["evaluate", *files, "--ks", "1", "2"]) == 0
    assert "HR@2" in capsys.readouterr().out
    assert main(["evaluate", "--relevant", str(tmp_path / "qrels.txt")]) == 1
    assert main(["evaluate"]) == 1
    assert "Give a recipe" in capsys.readouterr().err


def test_a_searched_baseline_that_was_cut_goes_on_with_the_trials_it_has(
    recipe, tmp_path, capsys, monkeypatch
):
    from genrec.models import sequence

    arguments = ["evaluate.baselines=[sasrec]", "evaluate.search={sasrec: {dropout: [0.0, 0.2], width: [8]}}"]
    arguments += ["sasrec.epochs=5"]
    real, trained = sequence.train_sequence, []

    def train(split, item_ids, settings, checkpoint=None):
        trained.append(settings.dropout)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(split, item_ids, settings, checkpoint)

    monkeypatch.setattr(sequence, "train_sequence", train)
    command = ["evaluate", str(recipe), *arguments]
    rankings = tmp_path / "r.json"
    rankings.write_text(json.dumps({f"u{n}": [] for n in range(60)}))
    command += ["--rankings", str(rankings)]
    assert main(command) == 130
    assert main(command) == 0
    assert trained == [0.0, 0.2, 0.2], "the first trial is not trained again"
    report = json.loads((tmp_path / "run" / "judged" / "r" / "metrics.json").read_text())
    tuning = report["baselines"]["sasrec"]["tuning"]
    assert [trial["settings"] for trial in tuning["trials"]] == [
        {"dropout": 0.0, "width": 8},
        {"dropout": 0.2, "width": 8},
    ]
    assert tuning["settings"]["width"] == 8
    assert not (tmp_path / "run" / "search").exists()
    capsys.readouterr()
    bad = [*command, "evaluate.search={sasrec: {dropout: [7]}}"]
    assert main(bad) == 1
    assert "evaluate.search.sasrec" in capsys.readouterr().err


def test_a_global_temporal_split_runs_from_end_to_end(recipe, tmp_path):
    split = "data.split={rule: global_temporal, valid_share: 0.2, test_share: 0.2}"
    assert main(["run", str(recipe), split]) == 0
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert report["protocol"]["split"] == "global temporal, one row an interaction"
    assert report["protocol"]["num_rows"] > report["protocol"]["num_users"]
    assert report["model"]["metrics"]["num_rows"] == report["protocol"]["num_rows"]
