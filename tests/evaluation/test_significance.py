"""Intervals, paired tests and corrections, beside scipy's and beside simulations whose truth is known."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, t, ttest_rel, wilcoxon

from genrec.core.errors import DataError, RecipeError
from genrec.evaluation.significance import bootstrap_intervals, compare_models, holm, paired_tests

GAINS = np.concatenate([[0.0], 1 / np.log2(np.arange(2, 12))])
vectors = st.integers(0, 10**6).map(np.random.default_rng)


def one_target(rng, users, miss=0.7):
    """NDCG@10 of lists with one relevant item: eleven values, most of them 0."""
    return GAINS[rng.integers(1, 11, users)] * (rng.random(users) > miss)


def compared(a, b, **settings):
    (found,) = paired_tests({"m": a}, {"m": b}, **settings)
    return found


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = 0.3 * GAINS[1:].mean()
    covered = [
        low <= truth <= high
        for low, high in (bootstrap_intervals({"m": one_target(rng, 150)})["m"] for _ in range(400))
    ]
    assert 0.91 <= np.mean(covered) <= 0.98


def test_the_interval_covers_the_mean_over_rows_where_users_have_many_alike():
    """Rows of a user are copies, so that an interval over rows would be half as wide and cover 68%."""
    rng = np.random.default_rng(1)
    covered, wrong = [], []
    for _ in range(300):
        rows = rng.integers(1, 9, 100)
        users = np.repeat(np.arange(100), rows)
        values = {"m": rng.random(100)[users]}
        for found, given_users in ((covered, users), (wrong, None)):
            low, high = bootstrap_intervals(values, given_users, resamples=400)["m"]
            found.append(low <= 0.5 <= high)
    assert 0.9 <= np.mean(covered) <= 0.98
    assert np.mean(wrong) < 0.8


@pytest.mark.parametrize("values", [one_target, lambda rng, users: rng.random(users)])
def test_the_interval_is_that_of_drawing_users_one_by_one(values):
    """Few kinds of users and many are drawn in different ways; both are the bootstrap."""
    rng = np.random.default_rng(2)
    vector = values(rng, 300)
    means = vector[rng.integers(300, size=(20_000, 300))].mean(1)
    found = bootstrap_intervals({"m": vector}, resamples=20_000, level=0.9)["m"]
    assert found == pytest.approx(np.quantile(means, [0.05, 0.95]), abs=0.08 * means.std())


@settings(deadline=None)
@given(vectors, st.booleans())
def test_an_interval_depends_on_nothing_but_its_values(rng, few):
    values = one_target(rng, 60) if few else rng.random(60)
    values[rng.random(60) < 0.1] = np.nan
    values[0] = 0.5
    alone = bootstrap_intervals({"m": values}, resamples=50, seed=3)["m"]
    order = rng.permutation(60)
    assert bootstrap_intervals({"x": rng.random(60), "m": values[order]}, resamples=50, seed=3)["m"] == alone
    twice, users = np.repeat(values, 2), np.repeat(np.arange(60), 2)
    assert bootstrap_intervals({"m": twice}, users, resamples=50, seed=3)["m"] == alone
    assert bootstrap_intervals({"m": values[~np.isnan(values)]}, resamples=50, seed=3)["m"] == alone
    low, high = alone
    assert np.nanmin(values) - 1e-12 <= low <= high <= np.nanmax(values) + 1e-12


@settings(deadline=None)
@given(vectors)
def test_whole_users_are_drawn(rng):
    """Two users: a mean can only be that of one, of the other, or of both together."""
    rows = rng.integers(1, 5, 2)
    users, values = np.repeat([7, -3], rows), rng.integers(0, 9, rows.sum()) / 8
    each = [values[users == user] for user in (7, -3)]
    possible = [np.concatenate(pair).mean() for pair in itertools.product(each, repeat=2)]
    for end in bootstrap_intervals({"m": values}, users, resamples=101, level=0.5)["m"]:
        assert min(abs(end - mean) for mean in possible) < 1e-12


@settings(deadline=None)
@given(vectors, st.integers(3, 60))
def test_tests_equal_scipys(rng, users):
    a, b = one_target(rng, users, 0.4), one_target(rng, users, 0.4)
    a[0], b[0], a[1], b[1] = 1.0, 0.0, 0.5, 0.5  # neither all alike nor all different by as much
    found = compared(a, b, resamples=100)
    assert found.difference == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    assert found.p_t == pytest.approx(ttest_rel(a, b).pvalue, abs=1e-9)
    assert found.p_wilcoxon == pytest.approx(
        wilcoxon(a, b, zero_method="pratt", method="asymptotic").pvalue, abs=1e-9
    )
    assert found.p_mcnemar is None
    assert found.num_users == users
    assert found.num_differing == (a != b).sum()
    turned = compared(b, a, resamples=100)
    assert (turned.difference, turned.p, turned.p_t) == (-found.difference, found.p, found.p_t)


@settings(deadline=None)
@given(vectors, st.integers(1, 80))
def test_mcnemar_is_binomial_over_those_who_differ(rng, users):
    a, b = rng.integers(2, size=(2, users)).astype(float)
    found = compared(a, b, resamples=20)
    better, worse = int((a > b).sum()), int((a < b).sum())
    expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert found.p_mcnemar == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(vectors, st.integers(1, 8))
def test_few_differences_are_gone_through_one_by_one(rng, users):
    """With zeros among them: here all users are turned, there only those who differ."""
    a, b = rng.integers(0, 4, (2, users)) / 4
    signs = np.array(list(itertools.product((1, -1), repeat=users)))
    expected = np.mean(np.abs(signs @ (a - b)) >= abs((a - b).sum()))
    assert compared(a, b, resamples=256).p == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("few", [True, False])
def test_drawn_signs_come_close_to_the_exact_answer(few):
    rng = np.random.default_rng(5)
    if few:  # 60 users of one size: the exact answer is McNemar's
        a = (np.arange(200) < 38).astype(float)
        b = ((np.arange(200) >= 38) & (np.arange(200) < 60)).astype(float)
        exact = compared(a, b).p_mcnemar
    else:
        a, b = rng.random((2, 15))
        a += 0.15
        exact = compared(a, b, resamples=2**15).p
    found = compared(a, b, resamples=20_000)
    assert 0.01 < exact < 0.5
    assert found.p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-4)
    assert compared(a, b, resamples=20_000).p == found.p


def test_identical_models_do_not_differ():
    values = one_target(np.random.default_rng(0), 100)
    found = compared(values, values)
    assert (found.difference, found.interval, found.p, found.num_differing) == (0.0, (0.0, 0.0), 1.0, 0)
    assert found.p_t is found.p_wilcoxon is found.p_mcnemar is None
    assert compared(np.full(30, 0.3), np.full(30, 0.2)).p_t is None


def test_a_plain_difference_is_found():
    rng = np.random.default_rng(0)
    b = one_target(rng, 2_000)
    a = np.where(rng.random(2_000) < 0.1, 1.0, b)
    found = compared(a, b, resamples=999)
    assert found.p == 1 / 1000
    assert 0 < found.interval[0] < found.difference < found.interval[1]
    assert max(found.p_t, found.p_wilcoxon) < 1e-9


@pytest.mark.parametrize("clustered", [False, True])
def test_models_alike_are_told_apart_at_the_level_only(clustered):
    """Users of several rows share a part of their difference, which a test over rows would take as proof."""
    rng = np.random.default_rng(8)
    p = []
    for seed in range(500):
        rows = rng.integers(1, 6, 60) if clustered else np.ones(60, int)
        users = np.repeat(np.arange(60), rows)
        shared = rng.normal(size=60) * (rng.random(60) < 0.4)  # many zeros
        differences = shared[users]
        base = rng.random(len(users))
        found = compared(base + differences, base, users=users, resamples=199, seed=seed)
        p.append((found.p, found.p_t))
    rejected = (np.array(p) <= 0.05).mean(0)
    assert 0.025 <= rejected[0] <= 0.08
    assert 0.02 <= rejected[1] <= 0.09


@settings(deadline=None)
@given(vectors)
def test_copies_of_a_users_rows_change_nothing(rng):
    a, b = rng.integers(0, 5, (2, 40)) / 4
    a[0], b[0] = 1.0, 0.0
    once, twice = (
        compared(
            np.repeat(a, times), np.repeat(b, times), users=np.repeat(np.arange(40), times), resamples=60
        )
        for times in (1, 2)
    )
    assert twice.difference == once.difference
    assert twice.interval == once.interval
    assert twice.p == once.p
    assert twice.p_t == pytest.approx(once.p_t, abs=1e-12)
    assert twice.p_wilcoxon == pytest.approx(once.p_wilcoxon, abs=1e-12)


def test_users_of_several_rows_have_the_variance_of_a_ratio():
    """The interval of the delta method and that of the bootstrap are of one width."""
    rng = np.random.default_rng(4)
    rows = rng.integers(1, 10, 800)
    users = np.repeat(np.arange(800), rows)
    a = rng.normal(size=800)[users] + rng.normal(size=len(users)) + 0.1
    found = compared(a, np.zeros(len(a)), users=users, resamples=4_000)
    error = abs(found.difference) / t.isf(found.p_t / 2, 799)
    width = found.interval[1] - found.interval[0]
    assert width == pytest.approx(2 * 1.96 * error, rel=0.06)


def by_hand_holm(p):
    """Rejected at level x, step by step: the corrected p is the smallest level at which each falls."""
    corrected = []
    for mine, value in enumerate(p):
        rank = sorted(range(len(p)), key=lambda i: (p[i], i))
        before = rank[: rank.index(mine) + 1]
        corrected.append(min(1.0, max((len(p) - step) * p[i] for step, i in enumerate(before))))
        assert corrected[-1] >= value
    return corrected


@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.02, 1.0])), max_size=8))
def test_holms_correction_equals_its_steps(p):
    found = holm(p)
    assert found == pytest.approx(by_hand_holm(p), abs=1e-12)
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(found)[order]) >= 0).all()


def test_holms_known_answer():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    for wrong in (1.2, float("nan"), -0.1):
        with pytest.raises(DataError, match=r"p-value 1 is .* \[0, 1\]"):
            holm([0.5, wrong])


def test_models_are_compared_as_one_family():
    rng = np.random.default_rng(3)
    values = {
        model: {"HR@10": (ndcg > 0).astype(float), "NDCG@10": ndcg, "unused": np.full(200, np.nan)}
        for model, ndcg in ((model, one_target(rng, 200)) for model in ("model", "sasrec", "popularity"))
    }
    pairs = [("model", "sasrec"), ("model", "popularity")]
    found = compare_models(values, None, pairs, ["HR@10", "NDCG@10"], resamples=500)
    assert [(e["a"], e["b"], e["metric"]) for e in found] == [
        (*pair, metric) for pair in pairs for metric in ("HR@10", "NDCG@10")
    ]
    assert [e["p_holm"] for e in found] == holm([e["p"] for e in found])
    first = compared(values["model"]["HR@10"], values["sasrec"]["HR@10"], resamples=500)
    assert found[0]["difference"] == first.difference
    assert found[0]["interval"] == list(first.interval)
    assert set(found[0]["other_p"]) == {"paired t-test", "McNemar, exact", "Wilcoxon signed-rank, Pratt"}
    assert set(found[1]["other_p"]) == {"paired t-test", "Wilcoxon signed-rank, Pratt"}
    assert compare_models(values, None, [], ["HR@10"]) == []
    assert compare_models(values, None, pairs, []) == []
    with pytest.raises(RecipeError, match=r"Unknown model 'sasrek'.*Did you mean 'sasrec'"):
        compare_models(values, None, [("model", "sasrek")], ["HR@10"])
    with pytest.raises(DataError, match="'model' is not measured in 'MRR@5'; it is in: HR@10"):
        compare_models(values, None, pairs, ["MRR@5"])


def test_rows_without_a_value_are_left_out_of_both():
    a, b = np.array([0.5, np.nan, 1.0, 0.0]), np.array([0.0, np.nan, 1.0, 0.5])
    assert compared(a, b).num_users == 3
    assert compared(a, b) == compared(a[[0, 2, 3]], b[[0, 2, 3]])


def test_bad_vectors_are_refused():
    good = np.array([0.1, 0.2, 0.3])
    with pytest.raises(DataError, match=r"'n' has shape \(2,\) where \(rows,\) = \(3,\)"):
        bootstrap_intervals({"m": good, "n": good[:2]})
    with pytest.raises(DataError, match=r"'m' of b has shape \(2,\)"):
        paired_tests({"m": good}, {"m": good[:2]})
    with pytest.raises(DataError, match=r"'m' has shape \(3,\) where \(rows,\) = \(4,\)"):
        bootstrap_intervals({"m": good}, np.arange(4))
    with pytest.raises(DataError, match="No row has a value of 'm'"):
        bootstrap_intervals({"m": np.full(3, np.nan)})
    with pytest.raises(DataError, match="No row has a value of 'm'"):
        bootstrap_intervals({"m": np.zeros(0)})
    with pytest.raises(DataError, match="No metric is given"):
        bootstrap_intervals({})
    with pytest.raises(DataError, match="Row 1 of 'm' is infinite"):
        bootstrap_intervals({"m": np.array([1.0, np.inf])})
    with pytest.raises(DataError, match="'n' is measured for one of the two only"):
        paired_tests({"m": good}, {"m": good, "n": good})
    with pytest.raises(DataError, match="1 rows have a value of 'm' for one of the two only, first row 2"):
        paired_tests({"m": good}, {"m": np.array([0.1, 0.2, np.nan])})
    with pytest.raises(RecipeError, match="resamples is 0"):
        bootstrap_intervals({"m": good}, resamples=0)
    with pytest.raises(RecipeError, match=r"level is 95; it must be in \(0, 1\)"):
        bootstrap_intervals({"m": good}, level=95)
