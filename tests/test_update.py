"""Later interactions go into a finished run: who has none keeps what they got, and whoever has gets more history."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from genrec.cli import main
from genrec.core.errors import DataError, RecipeError, RunError, UnknownItemError
from genrec.core.files import read_json
from genrec.pipeline import Pipeline
from genrec.recipe import parse_recipe
from genrec.serving import Recommender
from genrec.update import update

from planted import planted_next

pytestmark = pytest.mark.model


def number(item):
    return int(item.removeprefix("i"))


@pytest.fixture(scope="module")
def data(tmp_path_factory, log, items):
    folder = tmp_path_factory.mktemp("data")
    log.write(folder / "interactions.parquet")
    items.write(folder / "items.parquet")
    return folder


def run_of(folder, data, backbone, **changes):
    recipe = {
        "name": "planted",
        "run_dir": str(folder / "run"),
        "data": {"source": str(data), "time": "number", "user_core": 1, "item_core": 1},
        "index": {
            "method": "rq_kmeans",
            "levels": 2,
            "codebook_size": 6,
            "vectors": "text",
            "text_encoder": "words",
        },
        "tasks": {"max_history": 8},
        "model": {"backbone": backbone, "dtype": "float32"},
        "train": {
            "adapter": "reclora",
            "lora_r": 4,
            "reclora": {"experts": 2},
            "epochs": 1,
            "learning_rate": 5e-3,
            "rows_learning_rate": 1e-2,
            "checkpoint_steps": 0,
            "report_to": "none",
        },
        "sasrec": {"width": 8, "epochs": 2, "max_history": 20},
        "evaluate": {"ks": [1], "baselines": ["popularity"]},
    }
    for key, value in changes.items():
        recipe[key] = recipe[key] | value
    return Pipeline(parse_recipe(recipe)).run_until("evaluate")


@pytest.fixture(scope="module")
def run(tmp_path_factory, data, tiny_backbone):
    return run_of(tmp_path_factory.mktemp("run"), data, tiny_backbone)


def later(path, rows):
    users, items, times = zip(*rows, strict=True)
    pa_parquet.write_table(
        pa.table({"user_id": users, "item_id": items, "timestamp": [float(t) for t in times]}), path
    )
    return path


def some_rows(log, users=("u0", "u1", "new"), num=3):
    """The items that follow, by the planted rule, the last of each user; a new user begins with the first item."""
    histories, rows = log.histories(), []
    for user in users:
        item = number(histories[user][-1]) if user in histories else 0
        for step in range(num):
            item = planted_next(item)
            rows.append((user, f"i{item}", 1000 + step))
    return rows


@pytest.fixture(scope="module")
def updated(run, log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("later")
    file = later(folder / "later.parquet", some_rows(log))
    return update(run, file, folder / "updated"), folder


def test_whoever_has_no_new_event_gets_what_they_got(run, log, updated):
    report, folder = updated
    before, now = Recommender.from_pretrained(run), Recommender.from_pretrained(folder / "updated")
    others = [user for user in log.histories() if user not in ("u0", "u1")]
    assert now.recommend(user_ids=others, k=5) == before.recommend(user_ids=others, k=5)
    assert report["lists"]["unchanged"]["same_list"] == 1.0
    assert report["users"] == {"changed": 2, "new": 1, "unchanged": len(others)}
    assert (folder / "updated" / "model" / "adapter_model.safetensors").read_bytes() == (
        run / "model" / "adapter_model.safetensors"
    ).read_bytes()


def test_whoever_has_gets_more_history_and_another_vector(run, log, updated):
    report, folder = updated
    now = Recommender.from_pretrained(folder / "updated")
    rows = some_rows(log)
    for user in ("u0", "new"):
        own = [item for name, item, _ in rows if name == user]
        assert now.history(user) == log.histories().get(user, []) + own
        assert now.recommend(user_ids=[user], k=3) == now.recommend([now.history(user)], k=3)
    assert report["vectors"]["users"] == 2
    assert report["vectors"]["least_cosine"] < 1
    assert report["interactions"] | {"new": 9, "known_already": 0, "late": 0} == report["interactions"]


def test_the_new_run_refuses_the_old_ones_held_out_items(run, updated):
    _, folder = updated
    Recommender.from_pretrained(run).check_data(run / "data")
    with pytest.raises(DataError, match="may have been learned"):
        Recommender.from_pretrained(folder / "updated").check_data(run / "data")


def test_an_update_of_an_update(run, log, updated, tmp_path):
    _, folder = updated
    again = later(tmp_path / "again.parquet", [*some_rows(log), ("u2", "i3", 2000), ("u0", "i4", 1.5)])
    report = update(folder / "updated", again, tmp_path / "third")
    assert report["interactions"]["new"] == 2
    assert report["interactions"]["known_already"] == 9
    assert report["interactions"]["late"] == 1
    now = Recommender.from_pretrained(tmp_path / "third")
    assert now.history("u0")[2] == "i4"  # in order of time
    assert now.history("new") == Recommender.from_pretrained(folder / "updated").history("new")


def test_new_items_are_named_or_told(run, items, log, tmp_path):
    file = later(tmp_path / "later.parquet", [("u0", "i1", 1000), ("u0", "fresh", 1001), ("u1", "odd", 1002)])
    with pytest.raises(UnknownItemError, match=r"2 items, first 'fresh', cannot be taken in.*--unknown skip"):
        update(run, file, tmp_path / "a")
    title = items.title("i3")  # the words of an item that is there, so that its tokens are known
    pa_parquet.write_table(pa.table({"item_id": ["fresh"], "title": [title]}), tmp_path / "items.parquet")
    report = update(run, file, tmp_path / "b", items=tmp_path / "items.parquet", unknown="skip")
    assert report["items"] == {"new": 1, "left_out": {"items": ["odd"], "interactions": 1}}
    now = Recommender.from_pretrained(tmp_path / "b")
    assert now.history("u0")[-1] == "fresh"
    assert "fresh" in {item.item_id for item in now.recommend([["i1"]], k=len(now.items))[0]}


def test_mistakes_are_told(run, log, tmp_path):
    file = later(tmp_path / "later.parquet", some_rows(log))
    known = later(tmp_path / "known.parquet", [(u, h[0], 0.0) for u, h in list(log.histories().items())[:2]])
    for call, error, said in (
        (lambda: update(tmp_path, file), RunError, "no log of its interactions"),
        (lambda: update(run, file, run), RunError, "holds something else"),
        (lambda: update(run, known, tmp_path / "a"), DataError, "no new interaction"),
        (
            lambda: update(run, file, tmp_path / "a", overrides=["tasks.cuts=1"]),
            RecipeError,
            "no key of train",
        ),
        (lambda: update(run, file, tmp_path / "a", vectors=file), DataError, "come from sasrec"),
        (lambda: update(run, file, tmp_path / "a", unknown="ignore"), DataError, "'error' or 'skip'"),
    ):
        with pytest.raises(error, match=said):
            call()


def test_learning_on_learns_what_is_new_and_keeps_what_was(tiny_backbone, data, log, tmp_path, capsys):
    """Two users begin to take one item again and again after another, which nobody did before."""
    run = run_of(
        tmp_path, data, tiny_backbone, train={"adapter": "lora", "epochs": 8}, index={"method": "independent"}
    )
    rows = [("u0", f"i{[2, 9][n % 2]}", 1000 + n) for n in range(2)] + [("late", "i2", 5), ("late", "i9", 6)]
    file = later(tmp_path / "later.parquet", rows)
    command = [
        "update",
        str(run),
        str(file),
        "--train",
        "train.epochs=6",
        "train.learning_rate=0.003",
        "--json",
    ]
    assert main([*command, "train.rows_learning_rate=0.006"]) == 0
    out = capsys.readouterr().out
    report = json.loads(out[out.index("{") :])
    target = tmp_path / "run-update-1"
    assert report["run"] == str(target)
    training = report["training"]
    assert training["rows_new"] > 0
    assert training["rows_again"] == training["rows_new"]
    assert training["losses"][-1][1] < training["losses"][0][1] if len(training["losses"]) > 1 else True
    before, now = Recommender.from_pretrained(run), Recommender.from_pretrained(target)

    def chance(recommender):
        (found,) = recommender.recommend([["i2"]], k=len(recommender.items))
        return next(r.score for r in found if r.item_id == "i9")

    assert chance(now) > chance(before) + 0.5
    assert read_json(target / "update.json")["lists"]["unchanged"]["overlap@10"] > 0.5
    assert main(["update", str(target), str(file)]) == 1  # nothing new
    assert "no new interaction" in capsys.readouterr().err


def test_vectors_of_a_file_are_replaced(tiny_backbone, data, log, tmp_path):
    def vectors(path, users, seed):
        rows = np.random.default_rng(seed).normal(size=(len(users), 4)).tolist()
        pa_parquet.write_table(pa.table({"user_id": users, "vector": rows}), path)
        return path

    file = vectors(tmp_path / "v.parquet", list(log.histories()), 0)
    train = {"reclora": {"experts": 2, "vectors": "file", "file": str(file)}}
    run = run_of(tmp_path, data, tiny_backbone, train=train)
    fresh = vectors(tmp_path / "w.parquet", ["u0", "new"], 1)
    report = update(run, later(tmp_path / "l.parquet", some_rows(log)), tmp_path / "b", vectors=fresh)
    assert report["lists"]["unchanged"]["same_list"] == 1.0
    now = Recommender.from_pretrained(tmp_path / "b")
    assert "new" in now._users.table
    assert report["vectors"]["users"] == 2
