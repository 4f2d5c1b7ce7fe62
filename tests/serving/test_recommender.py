import asyncio
import json
import math
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from genrec.cli import main
from genrec.core.errors import DataError, GenrecError, IndexingError, RunError, UnknownItemError
from genrec.data_prep import DataSettings, ItemCatalog, SplitSettings, check_manifest, prepare
from genrec.indexing import ItemIndex
from genrec.pipeline import Pipeline
from genrec.recipe import parse_recipe
from genrec.serving import Ask, Recommender

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def run(tiny_backbone, log, items, tmp_path_factory):
    """A whole run of the pipeline on the planted log."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "data").mkdir()
    log.write(folder / "data" / "interactions.parquet")
    items.write(folder / "data" / "items.parquet")
    recipe = parse_recipe(
        {
            "name": "planted",
            "run_dir": str(folder / "run"),
            "data": {"source": str(folder / "data"), "item_core": 1},
            "index": {"method": "rq_kmeans", "levels": 2, "codebook_size": 6, "text_encoder": "words"},
            "model": {"backbone": tiny_backbone, "dtype": "float32"},
            "train": {
                "epochs": 30,
                "learning_rate": 5e-3,
                "rows_learning_rate": 1e-2,
                "exclude_history": False,
            },
            "sasrec": {"exclude_history": False},
            "gru4rec": {"exclude_history": False},
            "evaluate": {"exclude_history": False, "ks": [1, 5], "baselines": ["popularity"]},
        }
    )
    return Pipeline(recipe).run_until("evaluate")


@pytest.fixture(scope="module")
def recommender(run):
    return Recommender.from_pretrained(run)


def test_a_run_directory_carries_everything(run):
    names = {p.name for p in run.iterdir()}
    assert names >= {
        "recipe.yaml", "manifest.json", "data", "index", "model", "items.parquet", "histories.parquet",
        "rankings.parquet", "metrics.json", "training.json", "serving.json", "README.md",
    }  # fmt: skip
    assert not {".pt", ".pkl", ".bin"} & {p.suffix for p in run.rglob("*")}
    report = json.loads((run / "metrics.json").read_text())
    assert report["model"]["metrics"]["HR@1"] > 0.9 > report["baselines"]["popularity"]["metrics"]["HR@1"]
    assert (
        report["model"]["metrics"]["valid_item_rate"] == report["model"]["metrics"]["distinct_item_rate"] == 1
    )
    assert report["model"]["metrics"]["num_users"] == 60


def test_recommendations_are_what_evaluation_saw(run, recommender):
    saved = pq.read_table(run / "rankings.parquet").to_pylist()
    found = recommender.recommend(user_ids=[row["user_id"] for row in saved], k=5, exclude_history=False)
    for row, ranking in zip(saved, found, strict=True):
        assert [r.item_id for r in ranking] == row["item_ids"]
        assert [r.score for r in ranking] == pytest.approx(row["scores"], abs=1e-4)


def test_a_fresh_process_says_the_same(run):
    row = pq.read_table(run / "rankings.parquet").to_pylist()[7]
    command = [sys.executable, "-m", "genrec", "recommend", str(run), "--allow-seen", "-k", "5", "--json"]
    by_user = subprocess.run([*command, "--user", row["user_id"]], capture_output=True, text=True, check=True)
    history = Recommender.from_pretrained(run).history(row["user_id"])
    by_history = subprocess.run([*command, "--history", *history], capture_output=True, text=True, check=True)
    assert by_user.stdout == by_history.stdout
    found = json.loads(by_user.stdout)
    assert [r["item_id"] for r in found] == row["item_ids"]
    assert [r["score"] for r in found] == pytest.approx(row["scores"], abs=1e-4)


def test_items_are_real_distinct_unseen_and_k_of_them(recommender):
    history = ["i1", "i18", "i23"]
    (found,) = recommender.recommend([history], k=10, exclude=["i0"])
    names = [r.item_id for r in found]
    assert len(set(names)) == 10
    assert not set(names) & {*history, "i0"}
    assert all(r.title == recommender.items.title(r.item_id) and r.score <= 0 for r in found)


def test_a_catalogue_smaller_than_k_gives_all_it_has(recommender):
    (found,) = recommender.recommend([["i3"]], k=1000)
    assert len(found) == 23
    assert sum(
        math.exp(r.score) for r in recommender.recommend([["i3"]], k=99, exclude_history=False)[0]
    ) == (pytest.approx(1, abs=0.5))


def test_wrong_calls_say_what_is_wrong(recommender):
    with pytest.raises(UnknownItemError, match="'i99' is not in the index"):
        recommender.recommend([["i99"]])
    with pytest.raises(DataError, match="k must be 1 or more"):
        recommender.recommend([["i1"]], k=0)
    with pytest.raises(DataError, match="Give histories or user_ids"):
        recommender.recommend()
    with pytest.raises(DataError, match="list of item ids"):
        recommender.recommend(["i1"])
    with pytest.raises(DataError, match="'nobody' is not among the 60"):
        recommender.recommend(user_ids=["nobody"])


def test_a_model_knows_the_data_it_was_trained_on(run, recommender, tmp_path):
    recommender.check_data(run / "data")
    # The same log split in another way holds out what the model has learned.
    other = DataSettings(
        source=str(run / "data"), user_core=1, item_core=1, split=SplitSettings(rule="global_temporal")
    )
    report = prepare(other, tmp_path / "other")
    assert report["log_sha256"] == check_manifest(run / "data")["log_sha256"]
    with pytest.raises(DataError, match="what is held out here may have been learned"):
        recommender.check_data(tmp_path / "other")
    with pytest.raises(DataError, match="is no prepared data set"):
        recommender.check_data(tmp_path)


def test_save_pretrained_writes_what_is_needed_and_no_user(run, recommender, tmp_path, capsys):
    recommender.save_pretrained(tmp_path / "shared")
    assert "MB" in capsys.readouterr().err
    again = Recommender.from_pretrained(tmp_path / "shared")
    histories = [["i1", "i18"], ["i5"]]
    assert again.recommend(histories) == recommender.recommend(histories)
    names = {p.name for p in (tmp_path / "shared").rglob("*")}
    assert not names & {"histories.parquet", "rankings.parquet", "interactions.parquet", "checkpoints"}
    with pytest.raises(RunError, match="no user histories"):
        again.history("u1")


def test_a_catalogue_that_was_changed_is_saved_as_it_is(recommender, tmp_path):
    new = ItemCatalog.from_titles({"n1": "red lamp", "n2": "quiet radio"})
    changed = recommender.extend(new).remove(["i3", "n1"])
    asked = {"k": 26, "exclude_history": False, "beams": 40}
    again = Recommender.from_pretrained(changed.save_pretrained(tmp_path / "changed"))
    assert set(again.items.item_ids) == {*recommender.items.item_ids, "n2"} - {"i3"}
    assert again.recommend([["i1", "n2"]], **asked) == changed.recommend([["i1", "n2"]], **asked)
    card = (tmp_path / "changed" / "README.md").read_text()
    assert "1 item was added and 1 removed" in card
    back = again.remove(["n2"]).save_pretrained(tmp_path / "back")
    assert set(Recommender.from_pretrained(back).items.item_ids) == set(recommender.items.item_ids) - {"i3"}
    titled = changed.extend(ItemCatalog.from_titles({"n3": "old book"}), titles_only=True)
    assert "n3" in Recommender.from_pretrained(titled.save_pretrained(tmp_path / "titled")).items


def test_new_items_are_recommended_without_training_and_others_leave(recommender):
    new = ItemCatalog.from_titles({"n1": "red lamp", "n2": "quiet radio"})
    longer = recommender.extend(new)
    (found,) = longer.recommend([["i0", "n1"]], k=26, exclude_history=False)
    assert {item.item_id for item in found} == {*recommender.items.item_ids, "n1", "n2"}
    assert next(item.title for item in found if item.item_id == "n2") == "quiet radio"
    (old,) = recommender.recommend([["i0"]], k=24)
    scores = {item.item_id: item.score for item in longer.recommend([["i0"]], k=26)[0]}
    assert all(scores[item.item_id] == pytest.approx(item.score, abs=1e-5) for item in old)
    less = longer.remove(["i3", "n1"])
    (found,) = less.recommend([["i0"]], k=30, exclude_history=False)
    assert {item.item_id for item in found} == {*recommender.items.item_ids, "n2"} - {"i3"}
    with pytest.raises(UnknownItemError, match="'i3'"):
        less.recommend([["i3"]])


def test_a_new_item_with_tokens_never_learned_is_refused(run):
    recommender = Recommender.from_pretrained(run)
    index = recommender._decoder.index
    recommender._decoder.index = ItemIndex(
        "independent", {i: (f"<a_{n}>",) for n, i in enumerate(index.codes)}
    )
    recommender._decoder.index.settings = index.settings
    with pytest.raises(
        IndexingError, match="1 of the 1 new items, first 'n1', have tokens that the model never"
    ):
        recommender.extend(ItemCatalog.from_titles({"n1": "red lamp"}))


def test_the_card_is_true_and_loadable(run):
    import yaml

    text = (run / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    report = json.loads((run / "metrics.json").read_text())
    values = {m["name"]: m["value"] for m in front["model-index"][0]["results"][0]["metrics"]}
    assert values == {name: round(report["model"]["metrics"][name], 4) for name in ("HR@1", "HR@5", "NDCG@5")}
    assert "| Popularity |" in text
    assert "Recommender.from_pretrained" in text


def test_a_damaged_run_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    weights = tmp_path / "run" / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RunError, match="incomplete or broken"):
        Recommender.from_pretrained(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    with pytest.raises(RunError, match="no trained model"):
        Recommender.from_pretrained(tmp_path / "run")
    with pytest.raises(RunError, match="neither a folder nor a Hub repository"):
        Recommender.from_pretrained(str(tmp_path / "nowhere"))


def test_a_run_whose_files_were_changed_is_refused(run, recommender, tmp_path, capsys):
    for saved in (run, recommender.save_pretrained(tmp_path / "saved")):
        for name in (
            "model/identifier_rows.safetensors",
            "items.parquet",
            "index/index.json",
            "serving.json",
        ):
            folder = shutil.copytree(saved, tmp_path / "run")
            changed = folder / name
            changed.write_bytes(changed.read_bytes()[:-1] + b"?")
            with pytest.raises(RunError, match=f"{name} in .* not what sha256.json says"):
                Recommender.from_pretrained(folder)
            shutil.rmtree(folder)
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "README.md").write_text("A card of my own")  # from which nothing is recommended
    (folder / "model" / "more.json").write_text("{}")
    with pytest.raises(RunError, match="model/more.json"):
        Recommender.from_pretrained(folder)
    (folder / "model" / "more.json").unlink()
    Recommender.from_pretrained(folder)
    seal = json.loads((folder / "sha256.json").read_text())
    (folder / "sha256.json").write_text(json.dumps(seal | {"names": ["../other"]}))
    with pytest.raises(RunError, match="outside the run"):
        Recommender.from_pretrained(folder)
    (folder / "sha256.json").write_text("[]")
    with pytest.raises(RunError, match="no files and names"):
        Recommender.from_pretrained(folder)
    (folder / "sha256.json").unlink()
    capsys.readouterr()
    Recommender.from_pretrained(folder)
    assert "before runs had sha256.json" in capsys.readouterr().err


def test_a_score_is_that_of_exact_search(recommender):
    items, history = recommender.items.item_ids, ["i1", "i18", "i23"]
    for options in ({}, {"exclude_history": False}, {"exclude": ["i2"]}, {"allow": ["i4", "i5", "i1"]}):
        (exact,) = recommender.recommend([history], k=len(items), exact=True, **options)
        expected = {item.item_id: item.score for item in exact}
        found = recommender.score(history, items, **options)
        assert found == pytest.approx([expected.get(item, -math.inf) for item in items], abs=1e-4)
        assert recommender.score([history, []], items, **options)[0] == pytest.approx(found, abs=1e-4)
    with pytest.raises(UnknownItemError, match="'i99'"):
        recommender.score(history, ["i99"])
    with pytest.raises(DataError, match="single items have none"):
        recommender.score(history, ["i1"], method="fused")
    with pytest.raises(RunError, match="writes titles"):
        recommender.score(history, ["i1"], method="grounded")


def test_different_requests_are_answered_together_as_alone(recommender):
    asked = [
        Ask(["i1"], k=3),
        Ask(["i99"]),
        Ask([], k=5, exclude=["i3"]),
        Ask(["i2", "i4"], k=3, allow=["i5", "i2", "i7"]),
        Ask(["i2"], allow=["no such"]),
        Ask(["i2"], exclude=["no such"]),
        Ask(["i2"], k=3, exclude_history=False, beams=30),
        Ask(["i2"], k=0),
        Ask(["i2"], method="grounded"),
        Ask(["i2", "nothing"], unknown="skip"),
    ]
    for ask, found in zip(asked, recommender.recommend_each(asked), strict=True):
        options = {key: value for key, value in vars(ask).items() if key not in ("history", "user_id")}
        if isinstance(found, GenrecError):
            with pytest.raises(type(found)) as refused:
                recommender.recommend([ask.history], **options)
            assert str(found).replace("in the catalogue", "in the index") == str(refused.value)
            continue
        (alone,) = recommender.recommend([ask.history], **options)
        assert [r.item_id for r in found] == [r.item_id for r in alone]
        assert [r.score for r in found] == pytest.approx([r.score for r in alone], abs=1e-4)


def test_several_may_be_awaited_at_once(recommender):
    histories = [[item] for item in recommender.items.item_ids[:12]]

    async def ask():
        return await asyncio.gather(*(recommender.arecommend([history], k=4) for history in histories))

    assert asyncio.run(ask()) == [recommender.recommend([history], k=4) for history in histories]


def test_the_command_line_prints_titles_and_errors(run, capsys):
    assert main(["recommend", str(run), "--user", "u3", "-k", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("[i") == 5 + 3
    assert main(["recommend", str(run), "--history", "i99"]) == 1
    assert "genrec: Item 'i99' is not in the index" in capsys.readouterr().err
    assert main(["push", str(run), "me/planted", "--dry-run"]) == 0
    assert "model/adapter_model.safetensors" in capsys.readouterr().out
