"""Runs whose lists are grounded or fused, from end to end."""

import json

import pytest

from genrec.core.errors import RecipeError, RunError, UnknownItemError
from genrec.data_prep import ItemCatalog
from genrec.evaluation.rankings import read_rankings
from genrec.evaluation.report import comparison_table
from genrec.pipeline import Pipeline
from genrec.recipe import parse_recipe
from genrec.serving import Recommender

pytestmark = pytest.mark.model


def recipe(folder, log, items, backbone, mixture, decoding, **changes):
    if not folder.exists():
        folder.mkdir()
        log.write(folder / "interactions.parquet")
        items.write(folder / "items.parquet")
    return parse_recipe(
        {
            "name": "planted",
            "run_dir": str(folder.parent / "run"),
            "data": {"source": str(folder), "item_core": 1},
            "index": {"method": "independent"},
            "tasks": {"mixture": mixture, "max_history": 2},
            "model": {"backbone": backbone, "dtype": "float32"},
            "train": {"max_steps": 3, "batch_size": 8, "exclude_history": False, **changes},
            "sasrec": {"exclude_history": False, "epochs": 1, "width": 8},
            "gru4rec": {"exclude_history": False},
            "decoding": decoding,
            "evaluate": {"exclude_history": False, "ks": [1, 5], "baselines": ["popularity"], "exact_rows": 4}
            | {"resamples": 10, "test_resamples": 10},
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENREC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


GROUNDING = {"beams": 2, "max_new_tokens": 6, "combine": "min"}


@pytest.fixture(scope="module")
def grounded(cache, tiny_backbone, log, items, tmp_path_factory):
    """A run of titles alone, re-weighted by SASRec."""
    folder = tmp_path_factory.mktemp("grounded") / "data"
    decoding = {"method": "grounded", "grounding": {**GROUNDING, "inject": "collaborative"}}
    changes = {"validate_steps": 2, "validate_users": 4}
    return Pipeline(recipe(folder, log, items, tiny_backbone, ["bigrec"], decoding, **changes)).run_until(
        "evaluate"
    )


@pytest.fixture(scope="module")
def fused(cache, tiny_backbone, log, items, tmp_path_factory):
    """A run of both, re-weighted by popularity."""
    folder = tmp_path_factory.mktemp("fused") / "data"
    decoding = {"method": "fused", "grounding": {**GROUNDING, "inject": "popularity", "encoder": "words"}}
    mixture = ["next_item", "bigrec"]
    return Pipeline(recipe(folder, log, items, tiny_backbone, mixture, decoding)).run_until("evaluate")


@pytest.mark.parametrize("which", ["grounded", "fused"])
def test_a_run_chooses_its_weight_on_validation_and_serving_ranks_as_it_did(which, request, tmp_path):
    run = request.getfixturevalue(which)
    metrics = json.loads((run / "metrics.json").read_text())
    decoding = json.loads((run / "decoding" / "decoding.json").read_text())
    assert metrics["decoding"] == which
    assert metrics["grounding"]["gamma"] == decoding["gamma"] == decoding["tuning"]["gamma"]
    tuning = decoding["tuning"]
    assert (tuning["on"], tuning["metric"], tuning["num_rows"]) == ("valid", "NDCG@10", 60)
    values = [trial["value"] for trial in tuning["trials"]]
    assert len(values) == {"grounded": 199, "fused": 100}[which]
    assert tuning["trials"][values.index(max(values))]["gamma"] == tuning["gamma"]
    assert 0 <= metrics["grounding"]["exact_match_rate"] <= metrics["grounding"]["any_match_rate"] <= 1
    assert ("beams" in metrics) == (which == "fused")
    rankings = read_rankings(run / "rankings.parquet")
    assert all(len(set(row)) == 5 for row in rankings.item_ids)
    users = Pipeline(load(run)).held_out.user_ids
    for place in (run, Recommender.from_pretrained(run).save_pretrained(tmp_path / "copy")):
        recommender = Recommender.from_pretrained(place)
        histories = [Recommender.from_pretrained(run).history(user) for user in users[:6]]
        found = recommender.recommend(histories, k=5, exclude_history=False)
        assert [[each.item_id for each in row] for row in found] == rankings.item_ids[:6]
        scores = [each.score for row in found for each in row]
        assert scores == pytest.approx([s for row in rankings.scores[:6] for s in row], abs=1e-4)
    assert "titles" in (run / "README.md").read_text()


def load(run):
    from genrec.recipe import load_recipe

    return load_recipe(run)


def test_another_method_is_asked_for_where_the_model_can(fused, grounded):
    recommender = Recommender.from_pretrained(fused)
    for method in ("constrained", "grounded", "fused"):
        (found,) = recommender.recommend([["i1", "i2"]], k=24, method=method)
        assert {each.item_id for each in found} == set(recommender.items.item_ids) - {"i1", "i2"}
    with pytest.raises(RunError, match="next_item"):
        Recommender.from_pretrained(grounded).recommend([["i1"]], method="constrained")


def test_a_run_says_what_its_beams_miss(fused, grounded):
    report = json.loads((fused / "metrics.json").read_text())
    # Codes of one token: beam search is exact.
    assert report["beam_search"]["users"] == 4
    assert report["beam_search"]["missed@20"] == 0.0
    for text in (comparison_table(report), (fused / "report.html").read_text()):
        assert "are missed: 0.0% by 20 beams, 0.0% by 50 beams, 0.0% by 100 beams" in text
    assert "beam_search" not in json.loads((grounded / "metrics.json").read_text())
    assert "Grounding" in (grounded / "report.html").read_text()


def test_items_with_a_title_only_are_found_by_it(fused):
    recommender = Recommender.from_pretrained(fused)
    later = recommender.extend(ItemCatalog.from_titles({"cold": "purple violin"}), titles_only=True)
    for method, cold in (("constrained", set()), ("grounded", {"cold"}), ("fused", {"cold"})):
        (found,) = later.recommend([["i1"]], k=25, method=method)
        assert {each.item_id for each in found} == set(recommender.items.item_ids) - {"i1"} | cold
        assert {each.code for each in found if each.item_id == "cold"} <= {()}
        (found,) = later.recommend([["i1", "cold"]], k=25, method=method)
        assert {each.item_id for each in found} == set(recommender.items.item_ids) - {"i1"}
    assert [
        each.item_id for each in later.remove(["cold", "i2"]).recommend([["i1"]], k=25, method="grounded")[0]
    ]
    with pytest.raises(UnknownItemError):
        recommender.recommend([["cold"]])
    with pytest.raises(UnknownItemError):
        later.remove(["nope"])


def test_a_constrained_run_that_also_learned_titles_can_be_grounded(
    cache, tiny_backbone, log, items, tmp_path
):
    made = recipe(
        tmp_path / "data", log, items, tiny_backbone, ["next_item", "bigrec"], {"grounding": GROUNDING}
    )
    run = Pipeline(made).run_until("evaluate")
    assert "grounding" not in json.loads((run / "metrics.json").read_text())
    recommender = Recommender.from_pretrained(run)
    (one,), (two,) = (recommender.recommend([["i1"]], k=3, method=m) for m in (None, "grounded"))
    assert one[0].score <= 0
    assert len({each.item_id for each in two}) == 3


def test_what_cannot_be_grounded_is_said_before_anything_long(cache, tiny_backbone, log, items, tmp_path):
    made = recipe(tmp_path / "data", log, items, tiny_backbone, ["next_item"], {"method": "grounded"})
    with pytest.raises(RecipeError, match="bigrec"):
        Pipeline(made).run_until("train")
    made = recipe(tmp_path / "data", log, items, tiny_backbone, ["bigrec"], {"method": "fused"})
    with pytest.raises(RecipeError, match="next item"):
        Pipeline(made).run_until("train")
    with pytest.raises(RecipeError, match=r"train\.adapter=full"):
        recipe(
            tmp_path / "data", log, items, tiny_backbone, ["bigrec"], {"method": "grounded"}, adapter="full"
        )
