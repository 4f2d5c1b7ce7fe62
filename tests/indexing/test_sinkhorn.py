import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from genrec.core.errors import IndexingError
from genrec.indexing.sinkhorn import balanced, sinkhorn

costs = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=st.floats(-1e3, 1e3))


def released(cost, epsilon, iterations):
    """Turns on the exponentials themselves, as the sheet on LC-Rec gives them."""
    scaled = (cost - (cost.max() + cost.min()) / 2) / ((cost.max() - cost.min()) / 2 + 1e-5)
    q = np.exp(-scaled / epsilon)
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True) * len(q)
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return q


@given(costs, st.floats(0.05, 10.0), st.integers(1, 60))
def test_it_is_sinkhorn_on_exponentials_where_those_can_be_taken(cost, epsilon, iterations):
    np.testing.assert_allclose(
        np.exp(sinkhorn(cost, epsilon, iterations)),
        released(cost, epsilon, iterations),
        rtol=1e-6,
        atol=1e-300,
    )


@given(costs, st.floats(0, 1e6, exclude_min=True))
@settings(deadline=None)
def test_nothing_is_nan_at_any_epsilon(cost, epsilon):
    log_q = sinkhorn(cost, epsilon)
    assert not np.isnan(log_q).any()
    # The last turn normalised columns: each code has its share, to what such large logarithms can tell.
    if epsilon > 1e-6:
        np.testing.assert_allclose(np.exp(log_q).sum(0), 1 / cost.shape[1], rtol=1e-6)


def test_items_that_agree_are_spread_over_the_codes():
    rng = np.random.default_rng(0)
    cost = np.arange(8.0)[None, :] + rng.normal(size=(64, 8)) * 0.1
    assert np.bincount(cost.argmin(1), minlength=8).max() == 64
    assert np.bincount(sinkhorn(cost, 0.003, 200).argmax(1), minlength=8).max() <= 16


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan")])
def test_an_epsilon_that_is_none_is_refused(epsilon):
    with pytest.raises(IndexingError, match="must be more than 0"):
        sinkhorn(np.eye(2), epsilon)


def test_costs_must_be_finite():
    with pytest.raises(IndexingError, match="must be finite"):
        sinkhorn(np.array([[0.0, np.nan]]), 1.0)


@given(costs)
@settings(deadline=None)
def test_balanced_codes_have_sizes_that_differ_by_one_at_most(cost):
    sizes = np.bincount(balanced(cost), minlength=cost.shape[1])
    assert sizes.sum() == len(cost)
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_balanced_codes_cost_little_more_than_the_cheapest(seed):
    rng = np.random.default_rng(seed)
    points, centres = rng.normal(size=(160, 4)) + 2, rng.normal(size=(8, 4))
    cost = ((points[:, None] - centres) ** 2).sum(2)
    rows, places = linear_sum_assignment(np.repeat(cost, 20, axis=1))
    cheapest = cost[rows, places // 20].sum()
    assert cost[np.arange(160), balanced(cost)].sum() <= 1.02 * cheapest
