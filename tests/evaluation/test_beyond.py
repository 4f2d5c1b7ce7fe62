import math
from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import brier_score_loss
from sklearn.metrics.pairwise import cosine_similarity

from genrec.core.errors import DataError, RecipeError
from genrec.evaluation import beyond
from genrec.evaluation.beyond import ListContext, generated_rates, list_metrics, probability_metrics
from genrec.evaluation.lists import NO_ITEM, RankedLists

N = 12
SEEDS = st.integers(0, 10**6)
CUTS = st.integers(1, 15)


def random_lists(seed, num_users=7):
    """Lists of 0 to 12 items and 0 to 12 relevant ones of the same 12, as Python lists and as arrays."""
    rng = np.random.default_rng(seed)
    rankings = [rng.permutation(N)[: rng.integers(N + 1)].tolist() for _ in range(num_users)]
    relevant = [rng.permutation(N)[: rng.integers(N + 1)].tolist() for _ in range(num_users)]
    return rankings, relevant, as_arrays(rankings, relevant)


def as_arrays(rankings, relevant):
    items = np.full((len(rankings), max(1, *map(len, rankings))), NO_ITEM)
    for user, ranking in enumerate(rankings):
        items[user, : len(ranking)] = ranking
    start = np.cumsum([0, *map(len, relevant)])
    return RankedLists.from_arrays(items, np.array(list(chain.from_iterable(relevant)), np.int64), start)


def random_context(seed, num_users=7):
    """Popular, tied and untaken items; a zero vector; items of no and of several categories; free items."""
    rng = np.random.default_rng(seed + 1)
    counts = rng.integers(0, 5, N) * rng.integers(1, 4, N)
    counts[rng.integers(N)] += 1
    vectors = rng.normal(size=(N, 3))
    vectors[rng.integers(N)] = 0
    shares = rng.dirichlet(np.ones(4), num_users) * (rng.random((num_users, 1)) < 0.8)
    return ListContext(
        num_items=N,
        num_users=20,
        counts=counts,
        users_of_item=np.minimum(counts, 20),
        vectors=vectors,
        categories=rng.random((N, 4)) < 0.4,
        history_shares=shares,
        prices=np.round(rng.random(N) * 50, 2) * (rng.random(N) < 0.8),
    )


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def same(found, expected):
    assert np.asarray(found) == pytest.approx(np.array(expected, float), abs=1e-9, nan_ok=True)


def means_by_hand(rankings, relevant, k, c):
    """The list metrics user by user, item by item."""
    lists = [ranking[:k] for ranking in rankings]
    falling = sorted(c.counts, reverse=True)
    size = next(m for m in range(1, N + 1) if sum(falling[:m]) >= 0.8 * sum(falling))
    tail = {i for i in range(N) if c.counts[i] < falling[size - 1]}
    levels = sorted(set(c.counts), reverse=True)
    similar = cosine_similarity(c.vectors)

    def unexpected(place, item):
        rank = levels.index(c.counts[item]) + 1
        usual = (N + 1 - rank) / N if c.counts[item] else 0
        return max((N - place) / N - usual, 0)

    def divergence(ranking, wanted):
        voters = [c.categories[i] / c.categories[i].sum() for i in ranking if c.categories[i].any()]
        if not voters or not wanted.any():
            return math.nan
        listed = 0.99 * np.mean(voters, axis=0) + 0.01 * wanted
        return scipy_entropy(wanted, listed / listed.sum())

    found = {name: [] for name in ("novelty", "popularity", "tail_share", "serendipity", "diversity")}
    found |= {name: [] for name in ("calibration", "value", "value_share")}
    for user, ranking in enumerate(lists):
        taken = [max(c.users_of_item[i], 1) / c.num_users for i in ranking]
        found["novelty"].append(mean(-math.log2(share) for share in taken))
        found["popularity"].append(mean(c.counts[i] for i in ranking))
        found["tail_share"].append(mean(i in tail for i in ranking))
        found["diversity"].append(mean(1 - similar[i, j] for i, j in combinations(ranking, 2)))
        found["calibration"].append(divergence(ranking, c.history_shares[user]))
        hits = [(place, i) for place, i in enumerate(ranking) if i in relevant[user]]
        best = sum(sorted((c.prices[i] for i in relevant[user]), reverse=True)[:k])
        gain = sum(c.prices[i] for _, i in hits)
        some = bool(relevant[user])
        found["serendipity"].append(sum(unexpected(*hit) for hit in hits) / k if some else math.nan)
        found["value"].append(gain if some else math.nan)
        found["value_share"].append(gain / best if best else math.nan)
    return found


def catalogue_by_hand(rankings, k):
    """The catalogue metrics from their definitions: all pairs of items, all pairs of users."""
    lists = [set(ranking[:k]) for ranking in rankings]
    seen = [sum(item in ranking for ranking in lists) for item in range(N)]
    total = sum(seen)
    pairs = list(combinations([ranking for ranking in lists if ranking], 2))
    return {
        "coverage": len(set().union(*lists)) / N,
        "user_coverage": mean(bool(ranking) for ranking in lists),
        "gini": sum(abs(a - b) for a in seen for b in seen) / (2 * N * total) if total else math.nan,
        "entropy": scipy_entropy(seen) / math.log(N) if total else math.nan,
        "personalisation": 1 - mean(len(a & b) for a, b in pairs) / k if pairs else math.nan,
    }


@given(SEEDS, CUTS)
def test_metrics_of_lists_equal_their_definitions(seed, k):
    rankings, relevant, lists = random_lists(seed)
    context = random_context(seed)
    items, c = lists.items, context
    expected = means_by_hand(rankings, relevant, k, c)
    same(beyond.novelty(items, k, c.users_of_item, c.num_users), expected["novelty"])
    same(beyond.popularity(items, k, c.counts), expected["popularity"])
    same(beyond.tail_share(items, k, c.counts), expected["tail_share"])
    same(beyond.serendipity(lists, k, c.counts), expected["serendipity"])
    same(beyond.diversity(items, k, c.vectors), expected["diversity"])
    same(beyond.calibration(items, k, c.categories, c.history_shares), expected["calibration"])
    same(beyond.value(lists, k, c.prices), [expected["value"], expected["value_share"]])


@given(SEEDS, CUTS)
def test_metrics_of_catalogues_equal_their_definitions(seed, k):
    rankings, _, lists = random_lists(seed)
    expected = catalogue_by_hand(rankings, k)
    exposed = beyond.exposure(lists.items, k, N)
    for name in ("coverage", "gini", "entropy"):
        same(getattr(beyond, name)(exposed), expected[name])
    num_lists = sum(bool(ranking) for ranking in rankings)
    same(beyond.personalisation(exposed, num_lists, k), expected["personalisation"])
    same(beyond.user_coverage(lists.items), expected["user_coverage"])


@given(SEEDS, CUTS)
def test_the_one_entry_point_averages_over_the_users_who_have_a_value(seed, k):
    rankings, relevant, lists = random_lists(seed)
    context = random_context(seed)
    expected = catalogue_by_hand(rankings, k) | {
        name: mean(v for v in values if not math.isnan(v))
        for name, values in means_by_hand(rankings, relevant, k, context).items()
    }
    found = list_metrics(lists, k, context)
    assert found == pytest.approx(
        {f"{name}@{k}": value for name, value in expected.items() if not math.isnan(value)}, abs=1e-9
    )
    assert all(type(value) is float for value in found.values())


def test_the_context_decides_what_is_measured():
    _, _, lists = random_lists(3)
    full = random_context(3)
    always = list_metrics(lists, 5, ListContext(N, 20, full.counts, full.users_of_item))
    of_lists = {f"{name}@5" for name in ("novelty", "popularity", "tail_share", "serendipity")}
    of_catalogues = {"coverage@5", "user_coverage@5", "gini@5", "entropy@5", "personalisation@5"}
    assert set(always) == of_lists | of_catalogues
    assert set(list_metrics(lists, 5, full)) - set(always) == {
        f"{name}@5" for name in ("diversity", "calibration", "value", "value_share")
    }
    assert "calibration@5" not in list_metrics(lists, 5, replace(full, history_shares=None))


def test_the_cut_lists_of_many_users_are_measured_as_few_are():
    """More users than are handled at once."""
    rng = np.random.default_rng(0)
    items = rng.random((60_000, N)).argsort(1)[:, :9]
    items[rng.random(len(items)) < 0.1, 3:] = NO_ITEM
    c = random_context(0)
    users = rng.integers(len(items), size=300)
    for measure, args in (
        (beyond.novelty, (c.users_of_item, 20)),
        (beyond.diversity, (c.vectors,)),
        (beyond.category_shares, (c.categories,)),
    ):
        assert np.array_equal(
            measure(items, 7, *args)[users], measure(items[users], 7, *args), equal_nan=True
        )
    seen = [(items[:, :7] == item).sum() for item in range(N)]
    assert beyond.exposure(items, 7, N).tolist() == seen


def test_extremes_have_their_known_values():
    the_same, apart = np.array([3, 0, 0, 0]), np.array([1, 1, 1])
    assert beyond.gini(the_same) == 1 - 1 / 4
    assert beyond.entropy(the_same) == beyond.personalisation(the_same, 3, 1) == 0
    assert beyond.gini(apart) == 0
    assert beyond.entropy(apart) == pytest.approx(1)
    assert beyond.personalisation(apart, 3, 1) == beyond.coverage(apart) == 1
    assert (beyond.entropy(the_same[:1]), beyond.gini(the_same[:1])) == (1, 0)


def test_nobody_with_a_list_leaves_only_what_counts_that():
    lists = as_arrays([[], []], [[0], []])
    context = ListContext(2, 1, np.array([1, 0]), np.array([1, 0]), vectors=np.eye(2), prices=np.ones(2))
    assert list_metrics(lists, 3, context) == {
        "coverage@3": 0,
        "user_coverage@3": 0,
        "serendipity@3": 0,
        "value@3": 0,
        "value_share@3": 0,
    }
    assert math.isnan(beyond.gini(np.zeros(2, int)))
    assert math.isnan(beyond.entropy(np.zeros(2, int)))
    assert math.isnan(beyond.personalisation(np.array([1, 0]), 1, 1))


def test_the_documented_examples_of_rectools():
    """Numbers of the docstrings of RecTools' MeanInvUserFreq and Serendipity."""
    items = np.array([[2, NO_ITEM], [1, 2], [0, 1]])
    found = beyond.novelty(items, 3, np.array([3, 1, 0]), 3)
    assert found == pytest.approx([1.5849625, 1.5849625, 0.79248125])
    lists = as_arrays([[0, 1], [1, 2], [2], [1, 2]], [[0, 1], [1, 2], [1], [1]])
    assert beyond.serendipity(lists, 1, np.array([3, 2, 0, 0])) == pytest.approx([0, 0.25, 0, 0.25])
    assert beyond.serendipity(lists, 2, np.array([3, 2, 0, 0])) == pytest.approx([0, 0.5, 0, 0.125])


def test_a_tie_at_the_end_of_the_head_is_all_head():
    items = np.array([[0], [1], [2], [3]])
    assert beyond.tail_share(items, 1, np.array([6, 2, 2, 0])).tolist() == [0, 0, 0, 1]
    assert beyond.tail_share(items, 1, np.array([8, 1, 1, 0])).tolist() == [0, 1, 1, 1]
    assert beyond.tail_share(items, 1, np.array([1, 1, 1, 1])).tolist() == [0, 0, 0, 0]
    assert beyond.tail_share(items, 1, np.array([6, 2, 2, 0]), head=0.5).tolist() == [0, 1, 1, 1]


@given(SEEDS)
def test_item_numbers_mean_nothing(seed):
    """Another numbering of the items, another order of the users: the same metrics."""
    rankings, relevant, lists = random_lists(seed)
    c = random_context(seed)
    rng = np.random.default_rng(seed)
    new, users = rng.permutation(N), rng.permutation(len(rankings))
    old = np.argsort(new)
    moved = as_arrays(
        [[int(new[i]) for i in rankings[u]] for u in users],
        [[int(new[i]) for i in relevant[u]] for u in users],
    )
    other = ListContext(
        N,
        20,
        *(a[old] for a in (c.counts, c.users_of_item, c.vectors, c.categories)),
        c.history_shares[users],
        c.prices[old],
    )
    assert list_metrics(moved, 5, other) == pytest.approx(list_metrics(lists, 5, c), abs=1e-9)


def test_diversity_of_float32_vectors_and_of_parallel_ones():
    items = np.array([[0, 1, 2]])
    assert beyond.diversity(items, 3, np.full((3, 5), 0.3))[0] == pytest.approx(0, abs=1e-12)
    assert beyond.diversity(items, 2, np.array([[1.0], [-2.0], [0.0]]))[0] == pytest.approx(2)
    vectors = np.random.default_rng(0).normal(size=(3, 50))
    exact = beyond.diversity(items, 3, vectors)
    assert beyond.diversity(items, 3, vectors.astype(np.float32)) == pytest.approx(exact, abs=1e-6)


def test_a_calibrated_list_has_no_divergence_and_the_worst_is_bounded():
    categories = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], bool)
    items = np.array([[0, 1, 3], [2, 3, NO_ITEM], [0, NO_ITEM, NO_ITEM], [3, NO_ITEM, NO_ITEM]])
    assert beyond.category_shares(items, 3, categories).tolist() == [[0.5, 0.5], [0.5, 0.5], [1, 0], [0, 0]]
    history = np.array([[0.5, 0.5], [0.5, 0.5], [0, 1], [0, 1]])
    found = beyond.calibration(items, 3, categories, history)
    assert found == pytest.approx([0, 0, -math.log(0.01), math.nan], abs=1e-12, nan_ok=True)


def test_value_counts_what_was_bought():
    lists = as_arrays([[2, 1, 0], [3], []], [[1, 3, 0], [2], [3]])
    prices = np.array([5.0, 10.0, 0.0, 20.0])
    same(beyond.value(lists, 2, prices), [[10, 0, 0], [10 / 30, math.nan, 0]])
    same(beyond.value(as_arrays([[0]], [[]]), 2, prices), [[math.nan], [math.nan]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_items": 0}, "There must be an item"),
        ({"counts": np.zeros(3)}, "No item has a training interaction"),
        ({"counts": np.ones(2)}, r"counts must have 1 dimension\(s\), first one row for each of the 3 items"),
        ({"counts": np.array([1, -1, 2])}, "1 items have a count that is negative .* first item 1 with -1"),
        ({"users_of_item": np.array([1, 0, 9])}, "Item 2 has 9 users; there are only 4"),
        ({"prices": np.array([1, 2, np.nan])}, "a price that is negative or no finite number, first item 2"),
        ({"prices": np.array([1, -2, np.inf])}, "2 items have a price .* first item 1 with -2"),
        ({"vectors": np.ones(3)}, "vectors must have 2"),
        ({"history_shares": np.ones((2, 1))}, "history_shares without categories"),
    ],
)
def test_a_context_that_cannot_be_is_refused(change, message):
    sound = {"num_items": 3, "num_users": 4, "counts": np.ones(3), "users_of_item": np.ones(3)}
    with pytest.raises(DataError, match=message):
        ListContext(**(sound | change))


def test_what_cannot_be_measured_is_refused():
    lists = as_arrays([[0, 1]], [[0, 5]])
    ones = np.ones(3)
    with pytest.raises(RecipeError, match="1 or more; got 0"):
        beyond.popularity(lists.items, 0, ones)
    with pytest.raises(DataError, match=r"User 1 is given item 3, .* catalogue of 3 items"):
        beyond.exposure(np.array([[0], [3]]), 1, 3)
    with pytest.raises(DataError, match="User 0 is given item -2"):
        beyond.diversity(np.array([[-2]]), 1, np.eye(3))
    with pytest.raises(RecipeError, match="1 or more; got 0"):
        beyond.serendipity(lists, 0, ones)
    with pytest.raises(DataError, match="User 0 is given item 1"):
        beyond.serendipity(as_arrays([[0, 1]], [[1]]), 2, ones[:1])
    with pytest.raises(DataError, match="1 relevant items have no price, first item 5"):
        beyond.value(lists, 2, ones)
    with pytest.raises(DataError, match="1 item vectors have values .* item 1"):
        beyond.diversity(lists.items, 2, np.array([[1.0], [np.nan]]))
    with pytest.raises(DataError, match=r"must be \(users, categories\) \(1, 1\); got \(2, 1\)"):
        beyond.calibration(lists.items, 2, np.ones((3, 1)), np.ones((2, 1)))
    with pytest.raises(DataError, match="do not sum to 1 .* first those of user 0, which sum to 0.5"):
        beyond.calibration(lists.items, 2, np.ones((3, 1)), np.full((1, 1), 0.5))
    with pytest.raises(DataError, match="must be a matrix"):
        beyond.category_shares(lists.items, 2, ones)
    with pytest.raises(RecipeError, match=r"alpha must lie in \(0, 1\]; got 0"):
        beyond.calibration(lists.items, 2, np.ones((3, 1)), np.ones((1, 1)), 0)
    with pytest.raises(RecipeError, match=r"must lie in \(0, 1\]; got 1.5"):
        beyond.tail_share(lists.items, 2, ones, 1.5)


def test_generated_rates_count_before_anything_is_dropped():
    found = generated_rates([["a", "x", "a"], ["b"], [], ["x"]], "abc", [["a"], [], ["b"], ["x"]])
    assert found == {
        "valid_item_rate": 3 / 5,
        "distinct_item_rate": 4 / 5,
        "history_repeat_rate": 3 / 5,
        "empty_list_rate": 1 / 4,
    }
    assert generated_rates([[], []], ["a"]) == {
        "valid_item_rate": 0,
        "distinct_item_rate": 0,
        "empty_list_rate": 1,
    }
    with pytest.raises(DataError, match="0 generated lists and no histories"):
        generated_rates([], ["a"])
    with pytest.raises(DataError, match="1 generated lists and 2 histories"):
        generated_rates([["a"]], ["a"], [[], []])


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), min_size=1, unique_by=lambda row: row[1]),
    st.integers(1, 12),
)
def test_calibration_of_distinct_probabilities_has_equal_bins(rows, bins):
    labels = np.array([label for label, _ in rows], float)
    probabilities = np.array([p / 10**6 for _, p in rows])
    found = probability_metrics(labels, probabilities, bins)
    assert found["Brier"] == pytest.approx(brier_score_loss(labels, probabilities, pos_label=1), abs=1e-9)
    error, order = 0.0, sorted(range(len(rows)), key=lambda row: probabilities[row])
    sizes = []
    for b in range(bins):
        mine = [row for place, row in enumerate(order) if b / bins <= place / len(rows) < (b + 1) / bins]
        sizes.append(len(mine))
        if mine:
            gap = mean(labels[row] for row in mine) - mean(probabilities[row] for row in mine)
            error += abs(gap) * len(mine) / len(rows)
    assert max(sizes) - min(sizes) <= 1
    assert found["ECE"] == pytest.approx(error, abs=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1), SEEDS)
def test_calibration_of_tied_probabilities_does_not_depend_on_the_order(rows, seed):
    labels, probabilities = np.array(rows, float).T
    found = probability_metrics(labels, probabilities / 4, 3)
    order = np.random.default_rng(seed).permutation(len(rows))
    assert probability_metrics(labels[order], probabilities[order] / 4, 3) == pytest.approx(found, abs=1e-12)


def test_known_probabilities():
    """Half the coins fall heads: said with .5 it is calibrated, said with certainty not at all."""
    labels = np.array([0, 1] * 50)
    assert probability_metrics(labels, np.full(100, 0.5)) == {"Brier": 0.25, "ECE": 0}
    assert probability_metrics(labels, labels) == {"Brier": 0, "ECE": 0}
    assert probability_metrics(labels, 1 - labels) == {"Brier": 1, "ECE": 1}
    with pytest.raises(DataError, match="Labels must be 0 and 1"):
        probability_metrics(np.array([0, 2]), np.array([0.5, 0.5]))
    with pytest.raises(DataError, match=r"must lie in \[0, 1\]; got 0.5 to 1.5"):
        probability_metrics(np.array([0, 1]), np.array([0.5, 1.5]))
    with pytest.raises(DataError, match="Prediction 1 is nan"):
        probability_metrics(np.array([0, 1]), np.array([0.5, np.nan]))
    with pytest.raises(RecipeError, match="got 0 bins"):
        probability_metrics(np.array([0, 1]), np.array([0.5, 0.5]), 0)
