import numpy as np
import pytest

from genrec.data_prep import leave_one_out
from genrec.evaluation import BASELINES, evaluate_rankings
from genrec.evaluation.protocol import top_items


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
