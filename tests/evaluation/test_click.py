import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from genrec.core.errors import DataError, RecipeError
from genrec.evaluation.click import compare_clicks, measure_clicks


def made(rows=200, users=30, seed=0, steps=None):
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.4).astype(int)
    found = np.clip(0.4 + 0.3 * (labels - 0.4) + rng.normal(0, 0.3, rows), 0.01, 0.99)
    found = np.clip(np.round(found * steps) / steps, 0.01, 0.99) if steps else found
    return labels, found, rng.integers(users, size=rows)


@pytest.mark.parametrize("steps", [None, 7])
def test_intervals_are_those_of_rows_repeated_by_user(steps):
    labels, a, users = made(steps=steps)
    b = made(seed=1, steps=steps)[1]
    intervals, tests = compare_clicks(labels, {"a": a, "b": b}, users, [("a", "b")], 50, seed=3)
    drawn = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), 50)
    values = []
    for counts in drawn:
        rows = np.repeat(np.arange(len(labels)), counts[users])
        values.append(
            [
                [metric(labels[rows], model[rows]) for metric in (roc_auc_score, log_loss, _accuracy)]
                for model in (a, b)
            ]
        )
    values = np.array(values)
    for place, (metric, entry) in enumerate(zip(intervals["a"], tests, strict=True)):
        assert intervals["a"][metric] == pytest.approx(np.percentile(values[:, 0, place], [2.5, 97.5]))
        apart = values[:, 0, place] - values[:, 1, place]
        assert entry["interval"] == pytest.approx(np.percentile(apart, [2.5, 97.5]))
        assert entry["metric"] == metric
        assert entry["difference"] == pytest.approx(
            measure_clicks(labels, a)[metric] - measure_clicks(labels, b)[metric]
        )
    assert all(entry["p_holm"] >= entry["p"] for entry in tests)


def _accuracy(labels, found):
    return accuracy_score(labels, found >= 0.5)


def test_a_model_beside_itself_does_not_differ_and_a_better_one_does():
    labels, found, users = made(1000, 100)
    noise = np.random.default_rng(9).random(1000)
    models = {"model": found, "same": found.copy(), "noise": noise}
    _, tests = compare_clicks(labels, models, users, [("model", "same"), ("model", "noise")], 500)
    same, noise = tests[:3], tests[3:]
    assert all(entry["p"] == 1 and entry["difference"] == 0 for entry in same)
    assert all(entry["p_holm"] < 0.05 for entry in noise)
    assert [entry["difference"] > 0 for entry in noise] == [True, False, True]


def test_draws_without_both_answers_have_no_auc_and_the_rest_counts():
    labels, found = np.array([1, 0, 0, 0]), np.array([0.9, 0.1, 0.2, 0.3])
    intervals, tests = compare_clicks(labels, {"a": found, "b": found}, np.arange(4), [("a", "b")], 200)
    assert intervals["a"]["AUC"] == (1.0, 1.0)
    assert not np.isnan([entry["p"] for entry in tests]).any()


def test_users_and_draws_are_checked():
    labels, found, users = made()
    with pytest.raises(RecipeError, match="got 0"):
        compare_clicks(labels, {"a": found}, users, resamples=0)
    with pytest.raises(DataError, match="each row needs one"):
        compare_clicks(labels, {"a": found}, users[1:])
    with pytest.raises(DataError, match="both of them"):
        compare_clicks(np.ones(200), {"a": found}, users)
