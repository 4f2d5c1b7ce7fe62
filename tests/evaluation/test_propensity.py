"""Weighted metrics beside their formulas, and estimators beside worlds whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.core.errors import DataError, RecipeError
from genrec.evaluation.lists import NO_ITEM, RankedLists, top_columns
from genrec.evaluation.metrics import user_metrics
from genrec.evaluation.propensity import (
    PROPENSITY_METRICS,
    ips_weights,
    popularity_propensities,
    propensity_metrics,
    unbiased_loss,
)

seeds = st.integers(0, 10**6)


def random_lists(rng, users=6, items=9):
    """Lists of 0 to all items and 0 to all relevant, every combination likely."""
    listed = np.array([rng.permutation(items) for _ in range(users)])
    listed[np.arange(items) >= rng.integers(items + 1, size=(users, 1))] = NO_ITEM
    sizes = rng.integers(items + 1, size=users)
    relevant = np.concatenate([rng.permutation(items)[:size] for size in sizes])
    return RankedLists.from_arrays(listed, relevant, np.concatenate([[0], np.cumsum(sizes)]))


def by_hand(metric, k, normalise, listed, relevant, weight):
    def discount(rank):
        return 1.0 if metric == "Recall" else 1 / math.log2(rank + 1)

    if not relevant:
        return math.nan
    found = sum(weight[item] * discount(rank) for rank, item in enumerate(listed[:k], 1) if item in relevant)
    best = sorted((weight[item] for item in relevant), reverse=True)
    if normalise == "none":
        best = [1.0] * len(best)
    if metric == "NDCG":
        return found / sum(w * discount(rank) for rank, w in enumerate(best[:k], 1))
    return found if metric == "DCG" and normalise == "none" else found / sum(best)


@given(seeds, st.integers(1, 12), st.sampled_from(["self", "none"]), st.sampled_from([0.0, 0.01, 0.4, 1.0]))
def test_weighted_metrics_equal_their_formulas(seed, k, normalise, clip):
    rng = np.random.default_rng(seed)
    lists = random_lists(rng)
    theta = rng.choice([0.001, 0.1, 0.3, 0.3, 1.0], 9)
    found = propensity_metrics(lists, theta, [f"{m}@{k}" for m in PROPENSITY_METRICS], clip, normalise)
    weight = [1 / max(t, clip) for t in theta]
    for metric in PROPENSITY_METRICS:
        expected = [
            by_hand(
                metric,
                k,
                normalise,
                [item for item in lists.items[user].tolist() if item != NO_ITEM],
                lists.relevant[lists.start[user] : lists.start[user + 1]].tolist(),
                weight,
            )
            for user in range(lists.num_users)
        ]
        values = found[f"{metric}@{k}"]
        assert values == pytest.approx(expected, abs=1e-9, rel=1e-9, nan_ok=True), metric
        if normalise == "self":
            known = values[~np.isnan(values)]
            assert ((known >= 0) & (known <= 1 + 1e-12)).all()


@given(seeds, st.sampled_from(["self", "none"]), st.booleans())
def test_where_everything_is_seen_values_are_the_plain_ones(seed, normalise, clipped):
    """Propensities of 1, or all of them clipped to 1."""
    lists = random_lists(np.random.default_rng(seed), users=20)
    theta, clip = (np.full(9, 0.2), 1.0) if clipped else (np.ones(9), 0.01)
    names = [f"{metric}@{k}" for metric in ("Recall", "NDCG") for k in (1, 3, 9, 20)]
    found, plain = propensity_metrics(lists, theta, names, clip, normalise), user_metrics(lists, names)
    for name in names:
        assert np.array_equal(found[name], plain[name], equal_nan=True), name


def test_stretches_of_users_are_one():
    """More users than are measured at once."""
    lists = random_lists(np.random.default_rng(0), users=40)
    many = RankedLists(
        np.tile(lists.items, (2_000, 1)),
        np.tile(lists.relevant, 2_000),
        np.concatenate([[0], np.cumsum(np.tile(lists.num_relevant, 2_000))]),
    )
    theta = np.linspace(0.1, 1, 9)
    names = ["Recall@3", "DCG@3", "NDCG@3"]
    few, found = propensity_metrics(lists, theta, names), propensity_metrics(many, theta, names)
    for name in names:
        np.testing.assert_allclose(found[name], np.tile(few[name], 2_000), atol=1e-12)


def test_nothing_listed_and_nothing_relevant():
    empty = np.zeros(0, np.int64)
    lists = RankedLists(np.full((2, 1), NO_ITEM), np.array([0]), np.array([0, 1, 1]))
    assert propensity_metrics(lists, [0.5], ["NDCG@5"])["NDCG@5"] == pytest.approx([0, np.nan], nan_ok=True)
    lists = RankedLists(np.zeros((2, 1), np.int64), empty, np.zeros(3, np.int64))
    assert np.isnan(propensity_metrics(lists, [0.5], ["Recall@5"])["Recall@5"]).all()


def test_a_known_answer():
    """Item 0 seen by all, items 1 and 2 by a quarter; the list has 0 first, then 1."""
    lists = RankedLists.from_arrays(np.array([[0, 1, 3]]), np.array([0, 1, 2]), np.array([0, 3]))
    theta = np.array([1.0, 0.25, 0.25, 0.5])
    second, third = 1 / math.log2(3), 0.5
    found = propensity_metrics(lists, theta, ["Recall@1", "Recall@2", "DCG@2", "NDCG@3"])
    assert found["Recall@1"] == pytest.approx([1 / 9])
    assert found["Recall@2"] == pytest.approx([5 / 9])
    assert found["DCG@2"] == pytest.approx([(1 + 4 * second) / 9])
    assert found["NDCG@3"] == pytest.approx([(1 + 4 * second) / (4 + 4 * second + third)])
    plain = propensity_metrics(lists, theta, ["Recall@2", "DCG@2", "NDCG@2"], normalise="none")
    assert plain["Recall@2"] == pytest.approx([5 / 3])
    assert plain["DCG@2"] == pytest.approx([1 + 4 * second])
    assert plain["NDCG@2"] == pytest.approx([(1 + 4 * second) / (1 + second)])


def biased_world(rng, users=4_000, items=40):
    """Everybody likes half of the items whatever their popularity; popular ones are seen far more often."""
    theta = np.linspace(1.0, 0.05, items)
    relevant = rng.random((users, items)) < 0.5
    seen = rng.random((users, items)) < theta
    return theta, relevant, relevant & seen


def as_lists(items, relevant):
    sizes = relevant.sum(1)
    return RankedLists.from_arrays(items, np.nonzero(relevant)[1], np.concatenate([[0], np.cumsum(sizes)]))


def test_self_normalised_recall_of_popular_items_is_that_of_full_sight():
    """A popularity ranker of ten items finds a quarter of what is liked; clicks alone say far more."""
    theta, relevant, clicked = biased_world(np.random.default_rng(0))
    ranked = top_columns(np.broadcast_to(theta, relevant.shape), 10)
    truth = np.nanmean(user_metrics(as_lists(ranked, relevant), ["Recall@10"])["Recall@10"])
    lists = as_lists(ranked, clicked)
    plain = np.nanmean(user_metrics(lists, ["Recall@10"])["Recall@10"])
    unbiased = np.nanmean(propensity_metrics(lists, theta, ["Recall@10"])["Recall@10"])
    assert truth == pytest.approx(0.25, abs=0.01)
    assert plain > truth + 0.12
    assert abs(unbiased - truth) < 0.25 * (plain - truth)


def test_plain_ips_dcg_is_that_of_full_sight():
    theta, relevant, clicked = biased_world(np.random.default_rng(1))
    ranked = np.array([np.random.default_rng(u).permutation(40)[:10] for u in range(len(relevant))])
    everything = np.ones(40)
    full = propensity_metrics(as_lists(ranked, relevant), everything, ["DCG@10"], normalise="none")["DCG@10"]
    lists = as_lists(ranked, clicked)
    estimate = propensity_metrics(lists, theta, ["DCG@10"], clip=0.0, normalise="none")["DCG@10"]
    naive = propensity_metrics(lists, everything, ["DCG@10"], normalise="none")["DCG@10"]
    clipped = propensity_metrics(lists, theta, ["DCG@10"], clip=0.4, normalise="none")["DCG@10"]
    noise = np.nanstd(estimate) / np.sqrt(len(estimate))
    assert abs(np.nanmean(estimate) - full.mean()) < 4 * noise
    assert np.nanmean(naive) < np.nanmean(clipped) < full.mean() - 4 * noise
    assert np.nanstd(clipped) < np.nanstd(estimate)


def test_the_mean_of_the_unbiased_loss_is_the_ideal_loss():
    rng = np.random.default_rng(0)
    theta, gamma = rng.uniform(0.05, 1, 30), rng.random((20, 30))
    predicted = np.clip(gamma + rng.normal(0, 0.2, gamma.shape), 0.05, 0.95)
    positive, negative = -np.log(predicted), -np.log1p(-predicted)
    ideal = np.mean(gamma * positive + (1 - gamma) * negative)
    clicks = rng.random((3_000, *gamma.shape)) < theta * gamma
    draws = {
        clip: np.array([unbiased_loss(y, theta, positive, negative, clip) for y in clicks])
        for clip in (0.0, 0.3, 1.0)
    }
    noise = {clip: values.std() / np.sqrt(len(values)) for clip, values in draws.items()}
    assert abs(draws[0.0].mean() - ideal) < 4 * noise[0.0]
    assert abs(draws[0.3].mean() - ideal) > 8 * noise[0.0]
    assert draws[1.0].std() < draws[0.3].std() < 0.8 * draws[0.0].std()
    assert abs(draws[1.0].mean() - ideal) > abs(draws[0.3].mean() - ideal)


@given(seeds)
def test_the_loss_of_seen_pairs_is_the_plain_one(seed):
    rng = np.random.default_rng(seed)
    clicks, (positive, negative) = rng.integers(2, size=12), rng.normal(size=(2, 12))
    plain = np.where(clicks == 1, positive, negative).mean()
    assert unbiased_loss(clicks, np.ones(12), positive, negative) == pytest.approx(plain, abs=1e-12)
    assert unbiased_loss(clicks, rng.random(12), positive, negative, clip=1.0) == pytest.approx(
        plain, abs=1e-12
    )


def test_a_clicked_pair_weighs_against_the_negative_loss():
    assert unbiased_loss([1, 0], [0.25, 0.5], [1.0, 9.0], [3.0, 2.0]) == pytest.approx(((4 - 9) + 2) / 2)


def test_propensities_and_weights_are_their_formulas():
    theta = popularity_propensities([0, 1, 25, 100])
    assert theta == pytest.approx([0, 0.1, 0.5, 1])
    assert ips_weights(theta) == pytest.approx([100, 10, 2, 1])
    assert ips_weights(theta, 0.25) == pytest.approx([4, 4, 2, 1])
    assert popularity_propensities([1, 4], power=1.0) == pytest.approx([0.25, 1])


def test_bad_input_is_refused():
    lists = RankedLists.from_arrays(np.array([[0, 2]]), np.array([1]), np.array([0, 1]))
    for wrong in (np.nan, -0.1, 1.5, np.inf):
        with pytest.raises(DataError, match=r"1 propensities are not in \[0, 1\], first that of item 1"):
            propensity_metrics(lists, [0.5, wrong, 1.0], ["Recall@1"])
    with pytest.raises(DataError, match=r"are not in \(0, 1\], first that of item 2: 0.0"):
        propensity_metrics(lists, [0.5, 0.5, 0.0], ["Recall@1"], clip=0.0)
    with pytest.raises(DataError, match=r"shape \(2,\), but items go up to number 2"):
        propensity_metrics(lists, [0.5, 0.5], ["Recall@1"])
    for name in ("HR@1", "NDCG", "DCG@0", "Recal@5"):
        with pytest.raises(RecipeError, match=r"Unknown propensity metric .* one of Recall, DCG, NDCG"):
            propensity_metrics(lists, np.ones(3), [name])
    with pytest.raises(RecipeError, match="Unknown normalisation 'all'"):
        propensity_metrics(lists, np.ones(3), ["Recall@1"], normalise="all")
    with pytest.raises(RecipeError, match=r"clip is 2; it must be in \[0, 1\]"):
        ips_weights(np.ones(3), 2)
    with pytest.raises(DataError, match="count of item 1 is -1"):
        popularity_propensities([3, -1])
    with pytest.raises(DataError, match="No item has a training interaction"):
        popularity_propensities([0, 0])
    with pytest.raises(RecipeError, match="power is 0"):
        popularity_propensities([1], power=0)
    with pytest.raises(DataError, match="Clicks must be 0 or 1"):
        unbiased_loss([0, 2], [1, 1], [1, 1], [1, 1])
    with pytest.raises(DataError, match="at least one pair"):
        unbiased_loss([], [], [], [])
    with pytest.raises(DataError, match=r"loss_negative has shape \(3,\), clicks \(2,\)"):
        unbiased_loss([0, 1], [1, 1], [1, 1], [1, 1, 1])
    with pytest.raises(DataError, match="loss_positive is not finite at 1"):
        unbiased_loss([0, 1], [1, 1], [1, np.nan], [1, 1])
