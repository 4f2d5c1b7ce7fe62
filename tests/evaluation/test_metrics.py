import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from genrec.core.errors import DataError
from genrec.data_prep import leave_one_out
from genrec.evaluation import BASELINES, evaluate_rankings, ranking_metrics
from genrec.evaluation.protocol import top_items

ITEMS = [f"i{n}" for n in range(12)]


@given(st.lists(st.tuples(st.permutations(ITEMS), st.sampled_from(ITEMS)), min_size=1, max_size=6))
def test_metrics_equal_scikit_learns(cases):
    rankings, targets = [list(r) for r, _ in cases], [t for _, t in cases]
    found = ranking_metrics(rankings, targets, (1, 5, 10))
    truth = np.array([[item == t for item in ITEMS] for t in targets], float)
    scores = np.array([[-r.index(item) for item in ITEMS] for r in rankings], float)
    for k in (5, 10):
        assert found[f"NDCG@{k}"] == pytest.approx(ndcg_score(truth, scores, k=k), abs=1e-9)
    for k in (1, 5, 10):
        assert found[f"HR@{k}"] == pytest.approx(
            np.mean([t in r[:k] for r, t in zip(rankings, targets, strict=True)])
        )


def test_a_known_answer():
    found = ranking_metrics([["a", "b"], ["b", "a"], ["b"]], ["a", "a", "a"], (1, 2))
    assert found == {"HR@1": 1 / 3, "HR@2": 2 / 3, "NDCG@2": pytest.approx((1 + 1 / np.log2(3)) / 3)}


def test_bad_rankings_are_refused():
    with pytest.raises(DataError, match="names an item twice"):
        ranking_metrics([["a", "a"]], ["a"])
    with pytest.raises(DataError, match="2 rankings for 1 targets"):
        ranking_metrics([["a"], ["b"]], ["a"])
    with pytest.raises(DataError, match="at least one user"):
        ranking_metrics([], [])


def test_top_items_breaks_ties_by_catalogue_order_and_leaves_out():
    scores = np.array([[1.0, 2.0, 1.0, 0.0]])
    assert top_items(scores, list("abcd"), 3, None) == [["b", "a", "c"]]
    assert top_items(scores, list("abcd"), 9, [["b"]]) == [["a", "c", "d"]]


@pytest.mark.parametrize("name", BASELINES)
def test_held_out_items_change_no_baseline(name, log, items):
    """Same training, same histories to score, other held-out targets: same scores."""
    from dataclasses import replace

    split = leave_one_out(log)
    if name == "sasrec":
        # Its early stopping looks at validation, as a choice may; test targets must not matter.
        other = replace(split, test=replace(split.test, targets=["i0"] * len(split.test)))
    else:
        other = replace(split, valid=replace(split.valid, targets=["i0"] * 60))
    one = BASELINES[name](split, split.test, items.item_ids)
    two = BASELINES[name](other, split.test, items.item_ids)
    assert np.array_equal(one, two)


def test_sasrec_learns_the_planted_rule_and_popularity_cannot(log, items):
    split = leave_one_out(log)
    results = {}
    for name, baseline in BASELINES.items():
        scores = baseline(split, split.test, items.item_ids)
        ranked = top_items(scores, items.item_ids, 10, split.test.histories)
        results[name] = evaluate_rankings(ranked, split.test, items.item_ids, (1, 10))
    assert results["sasrec"]["HR@1"] > 0.95
    assert results["popularity"]["HR@1"] < 0.4, "chance is 1 in the 9 items left"
    assert results["sasrec"]["valid_item_rate"] == results["sasrec"]["distinct_item_rate"] == 1
