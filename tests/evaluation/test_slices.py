"""Groups of rows and of relevant items: known answers, and parts that add up to the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.core.errors import DataError, RecipeError
from genrec.evaluation.lists import RankedLists
from genrec.evaluation.metrics import user_metrics
from genrec.evaluation.significance import bootstrap_intervals
from genrec.evaluation.slices import (
    cold_slices,
    history_slices,
    item_slice_metrics,
    popularity_slices,
    restrict_relevant,
    share_slices,
    slice_metrics,
    user_slices,
)

whole = st.lists(st.integers(0, 40), min_size=1, max_size=30)


def named(slices):
    """The label of each row of the one slice."""
    ((labels, group),) = slices.values()
    return [labels[place] for place in group]


def test_known_groups():
    assert named(history_slices([0, 4, 5, 10, 11, 20, 21, 900])) == [
        *["< 5"] * 2,
        *["5-10"] * 2,
        *["11-20"] * 2,
        *["> 20"] * 2,
    ]
    counts = np.array([0, 1, 5, 6, 20, 21])
    every = np.arange(6)
    assert named(popularity_slices(counts, every)) == ["0 (cold)", "1-5", "1-5", "6-20", "6-20", "> 20"]
    assert named(popularity_slices(counts, [5, 0, 5])) == ["> 20", "0 (cold)", "> 20"]
    assert named(cold_slices(counts, every)) == ["cold", *["warm"] * 5]
    # 100 interactions: 40 make less than half, 40 + 20 more, 40 + 20 + 20 just 80%.
    counts = np.array([5, 40, 20, 0, 20, 10, 5])
    expected = ["tail", "head", "head", "tail", "head", "tail", "tail"]
    assert named(share_slices(counts, np.arange(7))) == expected
    assert named(share_slices(counts, np.arange(7), (0.4, 0.9))) == [
        *["tail", "head", "torso", "tail", "torso", "torso", "tail"]
    ]
    assert named(share_slices(counts, np.arange(7), (0.5, 1.0)))[3] == "tail"
    assert named(user_slices(["u", "v", "u", "w"], {"v": "new", "u": "old", "x": "other"})) == [
        *["old", "new", "old", "(no group)"]
    ]
    assert user_slices(["u"], {"u": "old"}, "age")["age"][0] == ["old"]


def test_quantiles_have_as_many_rows_each():
    assert named(history_slices([1, 2, 3, 4, 5, 6], quantiles=3)) == [
        "1-2",
        "1-2",
        "3-4",
        "3-4",
        "5-6",
        "5-6",
    ]
    assert named(history_slices([7, 7, 7, 7, 9], quantiles=2)) == ["7", "7", "7", "7", "9"]


@given(whole, st.one_of(st.none(), st.integers(1, 6)))
def test_each_row_is_in_one_group_and_none_is_missed(lengths, quantiles):
    ((labels, group),) = history_slices(lengths, quantiles).values()
    assert group.shape == (len(lengths),)
    assert ((group >= 0) & (group < len(labels))).all()
    order = np.argsort(lengths, kind="stable")
    assert (np.diff(group[order]) >= 0).all()
    assert all(len(set(group[np.array(lengths) == length])) == 1 for length in lengths)
    if quantiles is not None:
        assert len(set(labels)) == len(labels) == len(set(group.tolist())) <= quantiles


@given(whole.filter(any), st.sampled_from([(0.5, 0.8), (0.2, 0.9), (0.1, 1.0)]))
def test_head_torso_and_tail_are_shares_of_interactions(counts, shares):
    found = named(share_slices(counts, np.arange(len(counts)), shares))
    for count, label in zip(counts, found, strict=True):
        above = sum(other for other in counts if other > count)
        cuts = [share * sum(counts) for share in shares]
        expected = "head" if above < cuts[0] else "torso" if above < cuts[1] else "tail"
        assert label == (expected if count else "tail")
    head = sum(c for c, label in zip(counts, found, strict=True) if label == "head")
    assert head >= shares[0] * sum(counts) - 1e-9


@settings(deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_groups_add_up_to_the_whole(seed, clustered):
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 80))
    values = {"HR@10": rng.integers(2, size=rows).astype(float), "NDCG@10": rng.random(rows)}
    values["NDCG@10"][rng.random(rows) < 0.3] = np.nan
    users = rng.integers(10, size=rows) if clustered else None
    groups = history_slices(rng.integers(0, 30, rows))["history length"]
    found = slice_metrics(values, groups, users, resamples=5)
    for name, vector in values.items():
        sizes = [
            (~np.isnan(vector[groups[1] == groups[0].index(entry["group"])])).sum()
            for entry in found
            if name in entry["metrics"]
        ]
        means = [entry["metrics"][name] for entry in found if name in entry["metrics"]]
        assert np.dot(sizes, means) == pytest.approx(np.nansum(vector), abs=1e-9)
        assert sum(sizes) == (~np.isnan(vector)).sum()
    assert [entry["group"] for entry in found] == [
        label for place, label in enumerate(groups[0]) if (groups[1] == place).any()
    ]
    for entry in found:
        mine = groups[1] == groups[0].index(entry["group"])
        assert entry["num_users"] == (len(set(users[mine])) if clustered else mine.sum())
        assert ("few" in entry) == (entry["num_users"] < 30)
        assert set(entry["intervals"]) == set(entry["metrics"])


def test_a_groups_numbers_are_those_of_its_rows_alone():
    rng = np.random.default_rng(0)
    values, lengths = {"HR@10": rng.integers(2, size=200).astype(float)}, rng.integers(0, 15, 200)
    users = rng.integers(120, size=200)
    found = slice_metrics(values, history_slices(lengths)["history length"], users, 100, seed=4)
    assert [entry["group"] for entry in found] == ["< 5", "5-10", "11-20"]
    rows = (lengths >= 5) & (lengths <= 10)
    alone = bootstrap_intervals({"HR@10": values["HR@10"][rows]}, users[rows], 100, seed=4)
    assert found[1] == {
        "group": "5-10",
        "num_users": len(set(users[rows])),
        "metrics": {"HR@10": values["HR@10"][rows].mean()},
        "intervals": {"HR@10": list(alone["HR@10"])},
    }


LISTS = RankedLists.from_arrays(
    np.array([[0, 1, 2], [2, 1, 0], [3, 0, 1]]), np.array([0, 1, 1, 2, 3]), np.array([0, 2, 4, 5])
)


def test_relevant_items_of_a_group_are_measured_alone():
    """Items 0 and 1 are popular, 2 rare and 3 cold; a relevant item of another group keeps its rank."""
    kept = restrict_relevant(LISTS, [True, False, True, False, False])
    assert kept.relevant.tolist() == [0, 1]
    assert kept.start.tolist() == [0, 1, 2, 2]
    mrr = user_metrics(kept, ["MRR@3"])["MRR@3"]
    assert mrr == pytest.approx([1, 0.5, np.nan], nan_ok=True)
    groups = popularity_slices(np.array([30, 25, 2, 0]), LISTS.relevant)["item popularity"]
    found = item_slice_metrics(LISTS, groups, ["MRR@3", "Recall@1"], resamples=10)
    assert [(e["group"], e["num_users"], e["metrics"], e["few"]) for e in found] == [
        ("0 (cold)", 1, {"MRR@3": 1.0, "Recall@1": 1.0}, True),
        ("1-5", 1, {"MRR@3": 1.0, "Recall@1": 1.0}, True),
        ("> 20", 2, {"MRR@3": 0.75, "Recall@1": 0.25}, True),
    ]
    both = item_slice_metrics(LISTS, groups, ["MRR@3"], users=np.array([5, 5, 6]), resamples=10)
    assert [entry["num_users"] for entry in both] == [1, 1, 1]


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_hits_of_groups_of_items_add_up(seed):
    rng = np.random.default_rng(seed)
    items = np.array([rng.permutation(12)[:6] for _ in range(20)])
    sizes = rng.integers(0, 5, 20)
    relevant = np.concatenate([rng.permutation(12)[:size] for size in sizes]).astype(np.int64)
    lists = RankedLists.from_arrays(items, relevant, np.concatenate([[0], np.cumsum(sizes)]))
    _, group = popularity_slices(rng.integers(0, 30, 12), relevant)["item popularity"]
    parts = [restrict_relevant(lists, group == place) for place in range(4)]
    assert sum(part.hits(6).astype(int) for part in parts).tolist() == lists.hits(6).tolist()
    assert sum(part.num_relevant for part in parts).tolist() == lists.num_relevant.tolist()


def test_one_relevant_item_a_row_makes_slices_of_items_slices_of_rows():
    rng = np.random.default_rng(1)
    items, relevant = np.array([rng.permutation(50)[:10] for _ in range(300)]), rng.integers(50, size=300)
    lists = RankedLists.from_arrays(items, relevant, np.arange(301))
    groups = popularity_slices(rng.integers(0, 40, 50), relevant)["item popularity"]
    names = ["HR@5", "NDCG@10"]
    assert item_slice_metrics(lists, groups, names, resamples=20) == slice_metrics(
        user_metrics(lists, names), groups, resamples=20
    )


def test_bad_groups_are_refused():
    values = {"m": np.array([0.1, 0.2])}
    with pytest.raises(DataError, match=r"shape \(3,\); one for each row is needed, \(2,\)"):
        slice_metrics(values, (["a"], np.zeros(3, int)))
    with pytest.raises(DataError, match="1 of the groups are none of the 1 labels, first -1 of row 1"):
        slice_metrics(values, (["a"], np.array([0, -1])))
    with pytest.raises(DataError, match="one for each relevant item is needed"):
        item_slice_metrics(LISTS, (["a"], np.zeros(3, int)), ["HR@1"])
    with pytest.raises(DataError, match="one value for each of 5 relevant items"):
        restrict_relevant(LISTS, [True])
    with pytest.raises(DataError, match=r"history length of row 1 is 2.5; it must be a whole number"):
        history_slices([1, 2.5])
    with pytest.raises(DataError, match=r"got shape \(0,\)"):
        history_slices([])
    with pytest.raises(RecipeError, match="quantiles is 0"):
        history_slices([1], 0)
    with pytest.raises(DataError, match="count of item 0 is -1"):
        popularity_slices([-1], [0])
    with pytest.raises(DataError, match="Relevant item 2 has no count; counts are given for items 0 to 1"):
        cold_slices([1, 1], [0, 2])
    with pytest.raises(DataError, match="neither head nor tail"):
        share_slices([0, 0], [0])
    with pytest.raises(RecipeError, match="must rise"):
        share_slices([1, 2], [0], (0.8, 0.5))
    with pytest.raises(DataError, match="None of the 1 rows is of a user with a group"):
        user_slices(["u"], {"v": "new"})
