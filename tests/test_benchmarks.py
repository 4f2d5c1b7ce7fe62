import copy
import importlib.util
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from genrec.core.errors import DataError, RecipeError, RunError
from genrec.recipe import Recipe, parse_recipe

import machine

ROOT = Path(__file__).parents[1]


def load(name):
    """A module of benchmarks/, which is no package."""
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bench, board, speed = load("run"), load("leaderboard"), load("indexing/speed")
COMMIT = "0123456789abcdef0123456789abcdef01234567"

SCHEMA = {
    "experiment": str,
    "about": str,
    "dataset": str,
    "until": str,
    "seed": int,
    "commit": str,
    "dirty": bool,
    "overrides": list,
    "command": str,
    "date": str,
    "hardware": dict,
    "versions": dict,
    "data_hash": str,
    "protocol": dict,
    "calls": int,
    "stage_seconds": dict,
    "wall_seconds": float,
    "peak_memory_gb": dict,
    "models": dict,
    "tests": list,
    "recipe": dict,
}


def check_result(path):
    """A result file has what the leaderboard and a reader need, and is named after its content."""
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {key: type(value) for key, value in result.items()} == SCHEMA
    assert re.fullmatch("[0-9a-f]{40}", result["commit"])
    suffix = ("-changed" if result["overrides"] else "") + ("-dirty" if result["dirty"] else "")
    assert path.name == f"{result['experiment']}-seed{result['seed']}-{result['commit'][:8]}{suffix}.json"
    assert set(result["hardware"]) == {"cpu", "cores", "threads", "memory_gb", "gpu", "load_average"}
    assert {"genrec", "python", "numpy", "torch"} <= set(result["versions"])
    assert result["protocol"]["data_hash"] == result["data_hash"]
    assert {*board.SAME_PROTOCOL, "split", "tie_rule", "num_users", "num_items"} <= set(result["protocol"])
    assert ("model" in result["models"]) == (result["until"] == "evaluate")
    for entry in result["models"].values():
        assert {"name", "metrics", "intervals", "seconds"} <= set(entry)
        assert "slices" not in entry
    assert parse_recipe(result["recipe"]).seed == result["seed"]
    assert result["recipe"]["name"] == result["experiment"]
    return result


def result_of(experiment, models, *, seed=0, commit=COMMIT, date="2026-01-01T00:00:00+00:00", **changes):
    """A result file's content as far as the leaderboard reads it."""
    protocol = {
        "split": "leave_one_out",
        "on": "test",
        "candidates": "all items",
        "exclude_history": True,
        "num_rows": 943,
        "num_users": 943,
        "num_items": 1682,
        "rows_hash": "r" * 64,
        "data_hash": "d" * 64,
    }
    until = changes.pop("until", "baselines")
    return {
        "experiment": experiment,
        "dataset": "movielens-100k",
        "until": until,
        "seed": seed,
        "commit": commit,
        "dirty": False,
        "overrides": [],
        "date": date,
        "calls": 1,
        "hardware": {"cpu": "AMD EPYC 7B13 64-Core Processor @ 2.5GHz", "gpu": None, "threads": 2},
        "protocol": protocol | changes.pop("protocol", {}),
        "models": {
            key: {
                "name": key.title(),
                "metrics": {"HR@10": 2 * ndcg, "NDCG@10": ndcg, "HR@20": 0.9},
                "seconds": 90.0,
            }
            for key, ndcg in models.items()
        },
        "recipe": Recipe(seed=seed, name=experiment).model_dump(mode="json"),
        **changes,
    }


def written(folder, *results):
    for number, result in enumerate(results):
        (folder / f"{number}.json").write_text(json.dumps(result), encoding="utf-8")
    return board.leaderboard(board.read_results(folder))


def rows_of(text):
    """The cells of each table's rows, bold kept."""
    tables = []
    for block in text.split("\n\n"):
        if block.startswith("| model"):
            tables.append([[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()])
    return [(table[0], table[2:]) for table in tables]


def test_the_leaderboard_in_the_readme_is_fresh():
    text = board.README.read_text(encoding="utf-8")
    assert board.renewed(text, board.read_results()) == text, "run: make leaderboard"


@pytest.mark.parametrize("path", sorted(bench.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_file_is_whole_and_named_after_its_content(path):
    assert check_result(path)["experiment"] in bench.experiment_names()


@pytest.mark.parametrize("name", bench.experiment_names())
def test_every_experiment_is_a_valid_recipe(name):
    experiment = bench.read_experiment(name)
    recipe = bench.experiment_recipe(name, 3)
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe
    assert (recipe.name, recipe.seed, recipe.run_dir) == (name, 3, f"runs/benchmarks/{name}-seed3")
    assert {recipe.train.seed, recipe.sasrec.seed, recipe.evaluate.seed} == {3}
    assert experiment.about.endswith(".")
    assert recipe.evaluate.on == "test"
    for key, value in experiment.recipe.get("evaluate", {}).items():
        found = recipe.evaluate.model_dump(mode="json")[key]
        if isinstance(value, dict):  # merged over the base's
            found = {name: found[name] for name in value}
        assert found == value


@pytest.fixture
def experiments(tmp_path, monkeypatch):
    """Writes experiments into a folder of their own: ``experiments(name, key=value, ...)``."""
    monkeypatch.setattr(bench, "EXPERIMENTS", tmp_path / "experiments")
    monkeypatch.setattr(bench, "working_tree", lambda: (COMMIT, False))

    def write(name, **keys):
        keys = {"about": "A trial.", "dataset": "planted", "base": None, "until": "baselines"} | keys
        folder = tmp_path / "experiments" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "experiment.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")

    return write


def test_an_experiment_holds_only_what_differs_from_its_base(experiments):
    first = {"sasrec": {"epochs": 7}, "evaluate": {"ks": [1, 20]}}
    experiments("first", base="quickstart", recipe=first)
    experiments("second", base="first", recipe={"sasrec": {"dropout": 0.1}})
    recipe = bench.experiment_recipe("second", 4, ["sasrec.heads=1", "run_dir=elsewhere"])
    assert recipe.sasrec.model_dump() | {"epochs": 7, "dropout": 0.1, "heads": 1, "seed": 4} == (
        recipe.sasrec.model_dump()
    )
    assert recipe.evaluate.ks == (1, 20)
    assert recipe.evaluate.baselines == ("popularity", "sasrec")
    assert (recipe.index.method, recipe.run_dir) == ("independent", "elsewhere")


@pytest.mark.parametrize(
    ("keys", "overrides", "message"),
    [
        ({"base": "quickstrat"}, [], "Did you mean 'quickstart'"),
        ({"base": "one"}, [], "based on itself: one -> one"),
        ({"recipe": {"sasrec": {"epoch": 1}}}, [], "Did you mean 'sasrec.epochs'"),
        ({"recipe": {"seed": 1}}, [], "gives 'seed', which benchmarks/run.py sets"),
        ({"until": "train"}, [], "'baselines' or 'evaluate'"),
        ({"seeds": 3}, [], "seeds"),
        ({}, ["seed=1"], "gives 'seed'"),
        ({}, ["sasrec.epoch=1"], "Did you mean 'sasrec.epochs'"),
    ],
)
def test_a_wrong_experiment_is_told_what_is_wrong(experiments, keys, overrides, message):
    experiments("one", **keys)
    with pytest.raises(RecipeError) as error:
        bench.experiment_recipe("one", 0, overrides)
    assert message in str(error.value)


def test_an_unknown_experiment_names_the_nearest(experiments, capsys):
    experiments("baselines")
    assert bench.main(["baseline"]) == 1
    assert "Did you mean 'baselines'" in capsys.readouterr().err


def test_a_missing_data_folder_says_what_to_do(experiments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GENREC_TEST_DATA", str(tmp_path / "data"))
    experiments("one", recipe={"data": {"source": "shared:beauty"}})
    assert bench.main(["one", "--results", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert str(tmp_path / "data" / "beauty") in message
    assert "set GENREC_TEST_DATA" in message
    assert not (tmp_path / "results").exists()
    (tmp_path / "data" / "beauty").mkdir(parents=True)
    assert bench.data_source("shared:beauty") == str(tmp_path / "data" / "beauty")
    assert bench.data_source("movielens-100k") == "movielens-100k"
    monkeypatch.setenv("GENREC_TEST_DATA", "")
    monkeypatch.setattr(bench, "DATA", tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere"):
        bench.data_source("shared:beauty")


def test_a_result_is_never_overwritten(experiments, tmp_path, capsys):
    experiments("one")
    path = tmp_path / f"one-seed2-{COMMIT[:8]}.json"
    path.write_text("mine")
    assert bench.main(["one", "--seed", "2", "--results", str(tmp_path)]) == 1
    assert "added, never edited" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_a_dirty_tree_is_refused(experiments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "working_tree", lambda: (COMMIT, True))
    experiments("one")
    assert bench.main(["one", "--results", str(tmp_path / "results")]) == 1
    assert "--allow-dirty" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_run_directory_begun_by_other_code_is_not_gone_on_with(tmp_path):
    other = "f" * 40
    assert bench.count_call(tmp_path / "a", COMMIT, False) == 1
    assert bench.count_call(tmp_path / "a", COMMIT, False) == 2
    with pytest.raises(RunError, match="begun at 01234567, whose code is not that of ffffffff"):
        bench.count_call(tmp_path / "a", other, False)
    assert bench.count_call(tmp_path / "b", COMMIT, True) == 1
    with pytest.raises(RunError, match="with uncommitted changes"):
        bench.count_call(tmp_path / "b", COMMIT, False)
    assert bench.count_call(tmp_path / "b", other, True) == 2


@pytest.mark.model
def test_an_experiment_from_data_to_leaderboard(experiments, tmp_path, monkeypatch, log, items, capsys):
    (tmp_path / "data" / "planted").mkdir(parents=True)
    log.write(tmp_path / "data" / "planted" / "interactions.parquet")
    items.write(tmp_path / "data" / "planted" / "items.parquet")
    monkeypatch.setenv("GENREC_TEST_DATA", str(tmp_path / "data"))
    small = {"width": 16, "epochs": 2}
    experiments(
        "planted-baselines",
        recipe={
            "data": {"source": "shared:planted", "item_core": 1},
            "sasrec": small,
            "evaluate": {"baselines": ["popularity", "item_knn", "sasrec"], "resamples": 10},
        },
    )
    results = tmp_path / "results"
    run_dir = tmp_path / "run"
    arguments = ["planted-baselines", f"run_dir={run_dir}", "--seed", "1", "--results", str(results)]
    assert bench.main(arguments) == 0
    (path,) = results.iterdir()
    assert path.name == f"planted-baselines-seed1-{COMMIT[:8]}.json"
    result = check_result(path)
    assert result["command"].startswith("python benchmarks/run.py planted-baselines run_dir=")
    assert list(result["models"]) == ["popularity", "item_knn", "sasrec"]
    assert list(result["stage_seconds"]) == ["prepare", "sasrec", "baselines"]
    assert result["recipe"]["data"]["source"] == "shared:planted"
    assert result["recipe"]["sasrec"]["seed"] == 1
    assert result["calls"] == 1
    assert result["peak_memory_gb"]["process"] > 0.1
    # After item i comes 13 i + 5, which its neighbours hold.
    assert (
        result["models"]["item_knn"]["metrics"]["HR@10"] > result["models"]["popularity"]["metrics"]["HR@1"]
    )

    text = board.leaderboard(board.read_results(results))
    ((_, rows),) = rows_of(text)
    assert {row[0] for row in rows} == {"Popularity", "Item-KNN", "SASRec (full cross-entropy)"}
    assert f"all {len(items)} items ranked for all {log.num_users} users" in text

    capsys.readouterr()
    assert bench.main([*arguments, "evaluate.resamples=20"]) == 0
    err = capsys.readouterr().err
    assert "sasrec: done already" in err
    changed = check_result(results / f"planted-baselines-seed1-{COMMIT[:8]}-changed.json")
    assert changed["overrides"] == ["evaluate.resamples=20"]
    monkeypatch.setattr(bench, "working_tree", lambda: (COMMIT, True))
    assert bench.main([*arguments, "--allow-dirty"]) == 0
    assert check_result(results / f"planted-baselines-seed1-{COMMIT[:8]}-dirty.json")["dirty"]
    assert len(list(results.iterdir())) == 3
    assert board.leaderboard(board.read_results(results)) == text


@pytest.mark.model
def test_a_language_model_is_measured_beside_its_baselines(
    experiments, tmp_path, monkeypatch, log, items, tiny_backbone
):
    (tmp_path / "data" / "planted").mkdir(parents=True)
    log.write(tmp_path / "data" / "planted" / "interactions.parquet")
    items.write(tmp_path / "data" / "planted" / "items.parquet")
    monkeypatch.setenv("GENREC_TEST_DATA", str(tmp_path / "data"))
    experiments(
        "planted-model",
        until="evaluate",
        recipe={
            "data": {"source": "shared:planted", "item_core": 1},
            "index": {"method": "independent"},
            "model": {"backbone": tiny_backbone},
            "train": {"epochs": 0.5, "teacher": "sasrec"},
            "sasrec": {"width": 16, "epochs": 2},
            "evaluate": {"baselines": ["popularity"], "resamples": 10, "test_resamples": 20},
        },
    )
    run_dir = tmp_path / "run"
    path = bench.run_experiment("planted-model", 0, [f"run_dir={run_dir}"], tmp_path / "results")
    result = check_result(path)
    report = json.loads((run_dir / "metrics.json").read_text())
    assert list(result["models"]) == ["model", "popularity"]
    assert result["models"]["model"]["metrics"] == report["model"]["metrics"]
    assert result["tests"] == report["tests"]
    assert result["protocol"] == report["protocol"]
    seconds = result["stage_seconds"]
    needed = seconds["index"] + seconds["sasrec"] + seconds["train"] + report["rank_s"]
    assert result["models"]["model"]["seconds"] == pytest.approx(needed, abs=0.06)
    ((_, rows),) = rows_of(board.leaderboard([result]))
    assert len(rows) == 1


def test_no_results_are_said_to_be_none(tmp_path):
    assert board.leaderboard(board.read_results(tmp_path)).startswith("No results yet")
    assert board.leaderboard(board.read_results(tmp_path / "nowhere")).startswith("No results yet")


def test_a_row_is_the_mean_over_seeds_and_the_best_is_bold(tmp_path):
    ndcg = [0.10, 0.12, 0.17]
    seeds = [result_of("b", {"sasrec": x, "ease": 0.11}, seed=s) for s, x in enumerate(ndcg)]
    text = written(tmp_path, *seeds, result_of("lm", {"model": 0.2}, until="evaluate", calls=2))
    assert "leave_one_out, test items; all 1,682 items ranked for all 943 users" in text
    assert "seed 0, 1, 2. Data dddddddd, rows rrrrrrrr." in text
    ((head, rows),) = rows_of(text)
    assert head == [
        "model",
        "HR@10",
        "NDCG@10",
        "seeds",
        "minutes",
        "experiment",
        "hardware",
        "commit",
    ]
    machine = "AMD EPYC 7B13, 2 threads"
    mean, deviation = statistics.mean(ndcg), statistics.stdev(ndcg)
    sasrec = [f"{2 * mean:.4f} ± {2 * deviation:.4f}", f"{mean:.4f} ± {deviation:.4f}"]
    assert rows == [
        ["Ease", "0.2200 ± 0.0000", "0.1100 ± 0.0000", "3", "1.5", "b", machine, COMMIT[:8]],
        ["Sasrec", *sasrec, "3", "1.5", "b", machine, COMMIT[:8]],
        ["Model", "**0.4000**", "**0.2000**", "1", "≥ 1.5", "lm", machine, COMMIT[:8]],
    ]


def test_a_language_models_own_baselines_are_not_shown_twice(tmp_path):
    model = result_of("lm", {"model": 0.2, "sasrec": 0.15, "popularity": 0.1}, until="evaluate")
    text = written(tmp_path, model)
    ((_, rows),) = rows_of(text)
    assert [row[0] for row in rows] == ["Model"]
    assert "No baselines were run under this protocol yet." in text
    text = written(tmp_path, model, result_of("b", {"sasrec": 0.16}))
    ((_, rows),) = rows_of(text)
    assert [row[0] for row in rows] == ["Sasrec", "Model"]
    assert "No baselines" not in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rows_hash", "x" * 64),
        ("data_hash", "x" * 64),
        ("exclude_history", False),
        ("candidates", "100 sampled (uniform, seed 0) and the relevant ones"),
        ("on", "valid"),
    ],
)
def test_results_of_different_protocols_are_kept_apart(tmp_path, key, value):
    text = written(
        tmp_path, result_of("a", {"sasrec": 0.1}), result_of("b", {"sasrec": 0.3}, protocol={key: value})
    )
    tables = rows_of(text)
    assert sorted(rows[0][2] for _, rows in tables) == ["**0.1000**", "**0.3000**"]
    sentences = [block for block in text.split("\n\n") if "leave_one_out" in block]
    assert len(set(sentences)) == 2
    assert text.count("**movielens-100k**") == 1


def test_data_sets_have_tables_of_their_own(tmp_path):
    text = written(tmp_path, result_of("a", {"ease": 0.1}), result_of("b", {"ease": 0.1}, dataset="beauty"))
    assert text.index("**beauty**") < text.index("**movielens-100k**")
    assert len(rows_of(text)) == 2


def test_the_latest_result_of_a_seed_wins_and_settings_are_not_mixed(tmp_path):
    newer = {"commit": "b" * 40, "date": "2026-02-01T00:00:00+00:00"}
    results = [
        result_of("a", {"sasrec": 0.5}, **newer),
        result_of("a", {"sasrec": 0.1}),
        result_of("a", {"sasrec": 0.3}, seed=1),
    ]
    ((_, rows),) = rows_of(written(tmp_path, *results))
    assert rows[0][2] == f"**0.4000 ± {statistics.stdev([0.5, 0.3]):.4f}**"
    assert rows[0][-1] == "bbbbbbbb, 01234567"
    results = copy.deepcopy(results)
    results[0]["recipe"]["sasrec"]["dropout"] = 0.9
    results[0]["recipe"]["sasrec"]["of_a_later_genrec"] = 1
    ((_, rows),) = rows_of(written(tmp_path, *results))
    assert rows[0][2:4] == ["**0.5000**", "1"]


@pytest.mark.parametrize(("until", "seeds"), [("baselines", "2"), ("evaluate", "1")])
def test_a_language_models_keys_are_none_of_the_baselines_settings(tmp_path, until, seeds):
    key = "sasrec" if until == "baselines" else "model"
    results = [result_of("a", {key: 0.5}, until=until), result_of("a", {key: 0.3}, seed=1, until=until)]
    results = copy.deepcopy(results)
    results[0]["recipe"]["model"] = {"layers": 8}
    results[1]["recipe"]["model"] = {"layers": 4}
    ((_, rows),) = rows_of(written(tmp_path, *results))
    assert rows[0][3] == seeds


def test_what_does_not_count_is_left_out(tmp_path):
    counted = result_of("a", {"ease": 0.1})
    left_out = [
        result_of("b", {"ease": 0.2}, dirty=True),
        result_of("c", {"ease": 0.2}, overrides=["sasrec.epochs=1"]),
    ]
    assert written(tmp_path, counted, *left_out) == board.leaderboard([counted])


def test_the_check_fails_until_the_readme_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(board, "README", tmp_path / "README.md")
    board.README.write_text("# a\n\n<!-- leaderboard -->\nold\n<!-- /leaderboard -->\n\nrest\n")
    assert board.main(["--check"]) == 1
    assert "make leaderboard" in capsys.readouterr().err
    assert "old" in board.README.read_text()
    assert board.main([]) == 0
    text = board.README.read_text()
    assert "old" not in text
    assert text.startswith("# a\n\n<!-- leaderboard -->\n")
    assert text.endswith("\n<!-- /leaderboard -->\n\nrest\n")
    assert board.main(["--check"]) == 0
    for broken in ("# a\n", "<!-- /leaderboard -->\n<!-- leaderboard -->\n", text + text):
        board.README.write_text(broken)
        assert board.main([]) == 1
        assert "once each" in capsys.readouterr().err
        assert board.README.read_text() == broken


def test_a_result_names_the_commit_of_the_code_that_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    with pytest.raises(RunError, match="whose commit the result would name"):
        machine.working_tree()
    monkeypatch.setattr(machine.genrec, "__file__", str(tmp_path / "genrec" / "__init__.py"))
    for module in (machine.genrec.data_prep, machine.genrec.indexing):
        monkeypatch.setattr(module, "__file__", str(tmp_path / "x" / "__init__.py"))

    def git(*arguments):
        who = [
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "-c",
            "commit.gpgsign=false",
            "-c",
            "core.hooksPath=/dev/null",
        ]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    with pytest.raises(RunError, match="no git repository with a commit"):
        machine.working_tree()
    (tmp_path / "genrec").mkdir()
    (tmp_path / "genrec" / "a.py").write_text("one = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    first, dirty = machine.working_tree()
    assert (len(first), dirty) == (40, False)
    for folder in machine.RESULT_FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "new.json").write_text("{}")
    assert machine.working_tree() == (first, False)
    (tmp_path / "notes.md").write_text("words\n")
    assert machine.working_tree() == (first, True)
    git("add", "notes.md")
    git("commit", "-m", "words only")
    second, _ = machine.working_tree()
    assert bench.count_call(tmp_path / "run", first, False) == 1
    assert bench.count_call(tmp_path / "run", second, False) == 2
    (tmp_path / "genrec" / "a.py").write_text("one = 2\n")
    assert machine.working_tree() == (second, True)
    git("commit", "-am", "code")
    with pytest.raises(RunError, match="whose code is not that of"):
        bench.count_call(tmp_path / "run", machine.working_tree()[0], False)


def check_speed(path):
    """A result file of the indexing room has every measurement of its name, and is named after its content."""
    result = json.loads(path.read_text(encoding="utf-8"))
    keys = {
        "name",
        "seed",
        "commit",
        "dirty",
        "command",
        "date",
        "hardware",
        "versions",
        "wall_seconds",
        "rows",
    }
    assert set(result) == keys
    assert re.fullmatch("[0-9a-f]{40}", result["commit"])
    assert re.fullmatch(
        f"{result['name']}-{result['commit'][:8]}(-changed)?{'-dirty' if result['dirty'] else ''}", path.stem
    )
    assert set(result["hardware"]) == {"cpu", "cores", "threads", "memory_gb", "gpu", "load_average"}
    assert {"genrec", "python", "numpy"} <= set(result["versions"])
    for row in result["rows"]:
        assert set(row) == {"measurement", "size", "figures", "growth"}
        assert row["figures"]["peak_mb"] >= row["figures"]["peak_mb_before"] > 0
        assert set(row["growth"]) <= set(row["figures"])
    return result


# What worth.py adds to the same folder is of another form.
SPEED_RESULTS = [path for path in sorted(speed.RESULTS.glob("*.json")) if not path.stem.startswith("worth-")]


@pytest.mark.parametrize("path", SPEED_RESULTS, ids=lambda path: path.stem)
def test_every_speed_result_is_whole_and_named_after_its_content(path):
    assert check_speed(path)["rows"]


@pytest.fixture
def one_start(monkeypatch):
    """Measurements in this process but the first, which has its own as all have outside tests: a start is seconds."""
    measure, calls = speed.measure, []

    def seldom(*arguments):
        calls.append(arguments)
        return (measure if len(calls) == 1 else speed.measure_here)(*arguments)

    monkeypatch.setattr(speed, "measure", seldom)


def test_every_measurement_of_the_trie_runs_and_finds_what_the_dict_trie_finds(
    tmp_path, monkeypatch, capsys, one_start
):
    monkeypatch.setattr(speed, "working_tree", lambda: (COMMIT, False))
    arguments = ["trie", "--sizes", "80", "--seed", "3", "--results", str(tmp_path)]
    assert speed.main(arguments) == 0
    path = tmp_path / f"trie-{COMMIT[:8]}-changed.json"
    result = check_speed(path)
    assert (result["seed"], result["command"]) == (
        3,
        f"python benchmarks/indexing/speed.py {' '.join(arguments)}",
    )
    found = {row["measurement"]: row["figures"] for row in result["rows"]}
    assert list(found) == list(speed.MEASUREMENTS["trie"])
    assert (
        found["step"]["found"] == found["step, dict of dicts"]["found"] >= 400
    )  # half of 800 are given codes
    assert found["restrict"]["allowed"] == found["restrict, dict of dicts"]["allowed"] == 8
    assert found["build"]["nodes"] > 80
    printed = capsys.readouterr().out
    assert all(part in printed for part in found)

    before = path.read_text()
    assert speed.main(arguments) == 1
    assert "added, never edited" in capsys.readouterr().err
    assert path.read_text() == before
    monkeypatch.setattr(speed, "working_tree", lambda: (COMMIT, True))
    assert speed.main(arguments) == 1
    assert "--allow-dirty" in capsys.readouterr().err


def here(name, size, seed=0):
    """The figures of all measurements of a name."""
    return {part: speed.measure_here(name, part, size, seed) for part in speed.MEASUREMENTS[name]}


def test_residual_kmeans_and_k_means_of_all_items_leave_as_much_over(monkeypatch):
    monkeypatch.setattr(speed.methods, "WIDTH", 12)
    monkeypatch.setattr(speed.methods, "CODES", 16)
    found = here("rq_kmeans", 600)
    ours, theirs = found["index"], found["index, k-means of all"]
    assert 0 < ours["left_share"] == pytest.approx(theirs["left_share"], rel=0.05)
    assert 0 < ours["collided_share"] == pytest.approx(theirs["collided_share"], abs=0.1)
    assert ours["collided_after"] == 0
    assert ours["input_mb"] == 600 * 12 * 4 / 1e6
    vectors = speed.methods.mixture(50, 0)
    assert speed.methods.left_over(vectors, [vectors]) == 0
    assert speed.methods.left_over(vectors, [vectors.mean(0, keepdims=True)]) == pytest.approx(1)


def test_the_sparse_tree_of_clusters_is_that_of_the_dense_matrix():
    found = here("collaborative", 1000)
    ours, theirs = found["index"], found["index, dense matrix"]
    assert theirs["first_with_ours"] > 0.95
    for figure in ("first_with_families", "leaves_with_communities"):
        assert ours[figure] == pytest.approx(theirs[figure], abs=0.05)
        assert ours[figure] > 0.3
    assert ours["largest_leaf"] <= 500
    assert 9_000 < ours["interactions"] < 11_000


def test_planted_users_keep_to_their_communities():
    train, community, family = speed.methods.planted(2000, 1)
    assert len(train) == 2000
    assert len(set(community)) == 20
    assert len(set(zip(community, family, strict=True))) == 20
    inside = [[community[int(item)] for item in history] for history in train.values()]
    same = sum(max(map(part.count, part)) for part in inside) / sum(map(len, inside))
    assert 0.65 < same < 0.85


def test_both_ways_of_an_rq_vae_are_measured_on_the_items_of_a_folder(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("GENREC_TEST_DATA", str(tmp_path))
    with pytest.raises(DataError, match="set GENREC_TEST_DATA to the folder"):
        speed.measure_here("rq_vae", "index", 10, 0)
    folder = tmp_path / "beauty"
    folder.mkdir()
    things = [
        f"{colour} {thing} {n}" for colour in ("red", "blue") for thing in ("lamp", "chair") for n in range(9)
    ]
    items = pa.table({"item_id": [str(n) for n in range(36)], "title": things})
    pq.write_table(items, folder / "items.parquet")
    rows = [
        {
            "user_id": f"u{user}",
            "item_id": str((9 * user + n) % 36),
            "order": n,
            "timestamp": 1_400_000_000 + n,
        }
        for user in range(12)
        for n in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "interactions.parquet")
    monkeypatch.setattr(speed.methods, "ENCODER", "words")
    monkeypatch.setattr(speed.methods, "CODES", 4)
    for way in (speed.methods.vae_index, speed.methods.vae_lcrec):
        found = way(30, 0, epochs=3)
        assert found["epochs"] == 3
        assert found["collided_share"] >= found["collided_least_share"] == 0
        assert 0 < found["used_1_share"] <= 1
        assert -1 <= found["semantic"] <= 1
    assert speed.methods.vae_index(30, 0, epochs=1)["collided_after"] == 0


def test_growth_is_a_figure_over_that_at_half_the_size():
    figures = {10: (2.0, 0), 20: (5.0, 3), 30: (9.0, 3), 40: (5.0, 6)}
    rows = [
        {"measurement": "build", "size": size, "figures": {"build_s": one, "nodes": two}}
        for size, (one, two) in figures.items()
    ]
    rows.append({"measurement": "other", "size": 40, "figures": {"load_ms": 0.125}})
    grown = speed.with_growth(rows)
    expected = [{}, {"build_s": 2.5}, {}, {"build_s": 1.0, "nodes": 2.0}, {}]
    assert [row["growth"] for row in grown] == expected
    lines = [line.split() for line in speed.table(grown).splitlines()]
    assert lines[2] == ["20", "5", "(x2.50)", "3"]
    assert lines[4] == ["40", "5", "(x1.00)", "6", "(x2.00)"]
    assert lines[5:] == [[], ["other", "load_ms"], ["40", "0.125"]]


def test_the_peers_are_measured_at_sizes_that_ours_is_measured_at():
    assert speed.sizes_of("trie", "build", None)[-1] == 10_000_000
    for parts in speed.MEASUREMENTS.values():
        for part, measurement in parts.items():
            name = next(name for name, other in speed.MEASUREMENTS.items() if other is parts)
            sizes, n = speed.sizes_of(name, part, None), measurement.largest
            assert {size for size in (n // 4, n // 2, n) if size >= measurement.smallest} <= set(sizes)
            assert max(sizes) == n
            if ", " in part:
                assert set(sizes) <= set(speed.sizes_of(name, part.split(",")[0], None))


def test_a_measurement_that_fails_says_which(monkeypatch):
    with pytest.raises(RunError, match="trie: build at -1 ended with status 2"):
        speed.measure("trie", "build", -1, 0)
