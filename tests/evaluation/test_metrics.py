import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    log_loss,
    mean_absolute_error,
    ndcg_score,
    roc_auc_score,
    root_mean_squared_error,
)

from genrec.core.errors import DataError, RecipeError
from genrec.evaluation import ranking_metrics
from genrec.evaluation.lists import RankedLists, top_columns
from genrec.evaluation.metrics import RANKING_METRICS, click_metrics, rating_metrics, user_metrics

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
    with pytest.raises(DataError, match="there must be a user"):
        ranking_metrics([], [])
    with pytest.raises(DataError, match="relevant twice for user 1"):
        ranking_metrics([["a"], ["b"]], [["a"], ["b", "b"]])
    with pytest.raises(DataError, match="Nothing is relevant"):
        ranking_metrics([["a"]], [[]])
    with pytest.raises(
        DataError, match=r"1 listed items are not in the catalogue of 2 items, first 'z' in ranking 0"
    ):
        RankedLists.from_items([["a", "z"]], ["a"], ["a", "b"])
    with pytest.raises(DataError, match="1 scores are NaN, first that of item 1 for user 0"):
        top_columns(np.array([[0.5, np.nan]]), 1)


@pytest.mark.parametrize("name", ["NDGC@10", "NDCG", "NDCG@0", "HR@ten"])
def test_an_unknown_metric_names_what_is_allowed(name):
    lists = RankedLists.from_items([["a"]], ["a"])
    with pytest.raises(RecipeError, match=r"Unknown ranking metric .* Allowed: one of HR, Recall"):
        user_metrics(lists, [name])


def random_cases(num_users, seed):
    """Lists of 0 to 12 items and 1 to 12 relevant ones of the same 12, every combination likely."""
    rng = np.random.default_rng(seed)
    cases = [
        (rng.permutation(ITEMS), rng.permutation(ITEMS), *rng.integers(13, size=2)) for _ in range(num_users)
    ]
    rankings = [listed[:length].tolist() for listed, _, length, _ in cases]
    relevant = [wanted[: max(1, size)].tolist() for _, wanted, _, size in cases]
    return rankings, relevant


def by_hand(metric, k, ranking, relevant):
    hits = [item in relevant for item in ranking[:k]]
    precisions = [sum(hits[: r + 1]) / (r + 1) for r, hit in enumerate(hits) if hit]
    ideal = min(k, len(relevant))
    return {
        "HR": float(any(hits)),
        "Recall": sum(hits) / len(relevant),
        "Precision": sum(hits) / k,
        "MRR": 1 / (hits.index(True) + 1) if any(hits) else 0.0,
        "MAP": sum(precisions) / ideal,
        "NDCG": sum(1 / math.log2(r + 2) for r, hit in enumerate(hits) if hit)
        / sum(1 / math.log2(r + 2) for r in range(ideal)),
    }[metric]


@given(st.integers(0, 10**6), st.integers(1, 15))
def test_metrics_equal_their_formulas(seed, k):
    rankings, relevant = random_cases(6, seed)
    found = user_metrics(
        RankedLists.from_items(rankings, relevant, ITEMS), [f"{metric}@{k}" for metric in RANKING_METRICS]
    )
    for metric in RANKING_METRICS:
        expected = [by_hand(metric, k, r, t) for r, t in zip(rankings, relevant, strict=True)]
        assert found[f"{metric}@{k}"] == pytest.approx(expected, abs=1e-9), metric


@pytest.mark.model  # ranx compiles for some seconds
def test_metrics_equal_ranxs():
    """Several relevant items, lists shorter than the cut-off; each user's value."""
    from ranx import Qrels, Run, evaluate

    theirs = {
        "HR": "hit_rate",
        "Recall": "recall",
        "Precision": "precision",
        "NDCG": "ndcg",
        "MRR": "mrr",
        "MAP": "map",
    }
    rankings, relevant = random_cases(3_000, 0)
    kept = [user for user, ranking in enumerate(rankings) if ranking]  # ranx takes no empty list
    rankings, relevant = [rankings[user] for user in kept], [relevant[user] for user in kept]
    names = [f"{metric}@{k}" for metric in RANKING_METRICS for k in (1, 3, 10, 20)]
    found = user_metrics(RankedLists.from_items(rankings, relevant, ITEMS), names)
    users = [f"{user:05}" for user in range(len(kept))]
    qrels = Qrels({user: dict.fromkeys(items, 1) for user, items in zip(users, relevant, strict=True)})
    run = Run(
        {
            user: {item: 100.0 - place for place, item in enumerate(items)}
            for user, items in zip(users, rankings, strict=True)
        }
    )
    other = evaluate(
        qrels, run, [f"{theirs[n.split('@')[0]]}@{n.split('@')[1]}" for n in names], return_mean=False
    )
    sizes = np.array([len(items) for items in relevant])
    for name, expected in zip(names, other.values(), strict=True):
        metric, k = name.split("@")
        # ranx divides MAP by all relevant items.
        scale = sizes / np.minimum(sizes, int(k)) if metric == "MAP" else 1.0
        assert found[name] == pytest.approx(expected * scale, abs=1e-9), name


def test_users_without_anything_relevant_have_no_value_and_leave_the_mean():
    lists = RankedLists.from_items([["a", "b"], ["a"], []], [["b"], [], ["c"]])
    values = user_metrics(lists, ["HR@2", "NDCG@2", "MAP@1", "Recall@5"])
    assert all(np.isnan(value[1]) and not np.isnan(value[[0, 2]]).any() for value in values.values())
    assert ranking_metrics([["a", "b"], ["a"], []], [["b"], [], ["c"]], (2,), ("HR",)) == {"HR@2": 0.5}


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 2)), min_size=2, max_size=40).filter(
        lambda rows: len({label for label, *_ in rows}) == 2
    )
)
def test_click_metrics_equal_scikit_learns(rows):
    """Scores of five values, so that there are ties."""
    labels = np.array([label for label, *_ in rows], float)
    probabilities = np.array([0.1 + 0.2 * score for _, score, _ in rows])
    users = np.array([user for *_, user in rows])
    found = click_metrics(labels, probabilities, users)
    assert found["AUC"] == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-9)
    assert found["LogLoss"] == pytest.approx(log_loss(labels, probabilities), abs=1e-9)
    assert found["Accuracy"] == pytest.approx(accuracy_score(labels, probabilities >= 0.5), abs=1e-9)
    both = [user for user in range(3) if len(set(labels[users == user])) == 2]
    if both:
        mine = [users == user for user in both]
        each = [roc_auc_score(labels[m], probabilities[m]) for m in mine]
        assert found["GAUC"] == pytest.approx(np.average(each, weights=[m.sum() for m in mine]), abs=1e-9)
    else:
        assert "GAUC" not in found


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1))
def test_rating_metrics_equal_scikit_learns(pairs):
    ratings, predictions = np.array(pairs).T
    found = rating_metrics(ratings, predictions)
    assert found["RMSE"] == pytest.approx(root_mean_squared_error(ratings, predictions), abs=1e-9)
    assert found["MAE"] == pytest.approx(mean_absolute_error(ratings, predictions), abs=1e-9)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([1, 1], [0.2, 0.3], "both of them"),
        ([0, 2], [0.2, 0.3], "must be 0 and 1"),
        ([0, 1], [0.2, 1.3], r"must lie in \[0, 1\]"),
        ([0, 1], [0.2, np.nan], "Prediction 1 is nan"),
        ([0, 1], [0.2], "must be as many"),
        ([], [], "at least one"),
    ],
)
def test_bad_predictions_are_refused(labels, probabilities, message):
    with pytest.raises(DataError, match=message):
        click_metrics(np.array(labels), np.array(probabilities))
