from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.core.errors import DataError, RecipeError
from genrec.data_prep import InteractionLog, ItemCatalog, global_temporal, leave_one_out
from genrec.evaluation import BASELINES, EvaluateSettings, Judge
from genrec.evaluation.baselines import SEQUENCE_MODELS, TrainingLog, check_search, search, sequence_scorer
from genrec.evaluation.lists import NO_ITEM, top_columns
from genrec.evaluation.protocol import best_positions
from genrec.evaluation.slices import FEW_USERS


def scorer_of(name, split, item_ids, epochs=1):
    """A baseline with the first of the settings that it tries."""
    baseline = BASELINES[name]
    if baseline.fit is None:
        from genrec.models.sequence import train_sequence

        return sequence_scorer(train_sequence(split, item_ids, SEQUENCE_MODELS[name](epochs=epochs))[0])
    first = {key: values[0] for key, values in baseline.grid.items()}
    return baseline.fit(TrainingLog.of(split, item_ids), 0, **first)


@given(st.data())
def test_top_columns_are_those_of_a_stable_sort(data):
    """Ties, columns that are left out, more wanted than there are."""
    rows, width, k = (data.draw(st.integers(1, most)) for most in (4, 9, 11))
    values = st.sampled_from([-np.inf, 0.0, 1.0, 2.0])
    scores = np.array(data.draw(st.lists(values, min_size=rows * width, max_size=rows * width)))
    scores = scores.reshape(rows, width)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    expected = np.where(np.take_along_axis(scores, order, 1) == -np.inf, NO_ITEM, order)
    assert (top_columns(scores, k) == expected).all()


def test_best_positions_break_ties_by_catalogue_order_and_leave_out():
    def scorer(histories):
        return np.tile([1.0, 2.0, 1.0, 0.0], (len(histories), 1))

    assert best_positions(scorer, [[]], 3, None).tolist() == [[1, 0, 2]]
    assert best_positions(scorer, [[]], 9, [np.array([1])]).tolist() == [[0, 2, 3, NO_ITEM]]


@pytest.mark.parametrize("name", BASELINES)
def test_held_out_items_change_no_baseline(name, log, items):
    """Same training, same histories to score, other held-out targets: same scores."""
    split = leave_one_out(log)
    if BASELINES[name].fit is None:
        # Its early stopping looks at validation, as a choice may; test targets must not matter.
        other = replace(split, test=replace(split.test, targets=[["i0"]] * len(split.test)))
    else:
        other = replace(split, valid=replace(split.valid, targets=[["i0"]] * 60))
    rows = [[0, 5], [3], list(range(12))]
    one, two = (scorer_of(name, s, items.item_ids)(rows) for s in (split, other))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_scores_any_history_and_every_item(name, log, items):
    scores = scorer_of(name, leave_one_out(log), items.item_ids)([[], [0], [0, 1, 0]])
    assert scores.shape == (3, len(items))
    assert np.isfinite(scores).all()


@pytest.mark.model
def test_sequence_models_learn_the_planted_rule_and_popularity_cannot(log, items):
    split = leave_one_out(log)
    judge = Judge(split, items, EvaluateSettings(ks=(1, 10)))
    found = {}
    for name in ("popularity", "sasrec", "gru4rec"):
        found[name] = judge.measure(name, judge.rank(scorer_of(name, split, items.item_ids, 20)))[0][
            "metrics"
        ]
    assert found["sasrec"]["HR@1"] > 0.95
    assert found["gru4rec"]["HR@1"] > 0.95
    assert found["popularity"]["HR@1"] < 0.4, "chance is 1 in the 9 items left"
    assert found["sasrec"]["valid_item_rate"] == found["sasrec"]["distinct_item_rate"] == 1
    assert found["sasrec"]["history_repeat_rate"] == 0


def test_item_models_find_what_is_taken_together():
    """Three groups of items that nobody mixes: whoever took one of a group is given the rest of it."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(60):
        group = user % 3
        rows += [(f"u{user}", f"i{group * 8 + i}", t) for t, i in enumerate(rng.permutation(8)[:6])]
    log = InteractionLog.from_rows(rows)
    items = ItemCatalog.from_titles({f"i{n}": f"thing {n}" for n in range(24)})
    split = leave_one_out(log)
    for name in ("item_knn", "ease", "implicit_als"):
        best = best_positions(scorer_of(name, split, items.item_ids), [[0, 1, 2], [8, 9], [16, 20]], 3, None)
        for row, group in zip(best, range(3), strict=True):
            assert set(row.tolist()) <= set(range(8 * group, 8 * group + 8)), name


def test_ease_is_the_closed_form_of_its_paper():
    """Each column is a ridge regression on the other items, which numpy solves one by one."""
    rng = np.random.default_rng(1)
    taken = rng.random((30, 6)) < 0.4
    taken[:, 0] |= ~taken.any(1)
    histories = [np.flatnonzero(row) for row in taken]
    log = TrainingLog(histories, [np.arange(len(h)) for h in histories], 6)
    found = BASELINES["ease"].fit(log, 0, regularisation=2.0)([[item] for item in range(6)])
    x = taken.astype(float)
    for item in range(6):
        others = [i for i in range(6) if i != item]
        a = x[:, others]
        weights = np.linalg.solve(a.T @ a + 2.0 * np.eye(5), a.T @ x[:, item])
        assert found[others, item] == pytest.approx(weights, abs=1e-5)
        assert found[item, item] == 0


def test_recent_popularity_counts_the_latest_interactions_only():
    rows = [("a", "old", t) for t in range(10)] + [("b", "new", 90 + t) for t in range(5)]
    rows += [("b", "valid", 200), ("b", "test", 201), ("a", "valid", 200), ("a", "test", 201)]
    items = ["old", "new", "valid", "test"]
    log = TrainingLog.of(leave_one_out(InteractionLog.from_rows(rows)), items)
    scores = BASELINES["recent_popularity"].fit(log, 0, share=0.3)([[]])[0]
    assert scores[1] > scores[0] > scores[2]
    assert BASELINES["popularity"].fit(log, 0)([[]])[0].tolist() == [10, 5, 0, 0]


def test_the_search_tries_every_combination_and_keeps_the_best():
    seen = []

    def attempt(settings):
        seen.append(settings)
        return -abs(settings["a"] - 2) - settings["b"], f"model {len(seen)}"

    best, trials, made = search("x", {"a": [1, 2, 3], "b": [0, 1]}, attempt)
    assert (best, made) == ({"a": 2, "b": 0}, "model 3")
    assert len(seen) == len(trials) == 6
    assert search("x", {}, lambda settings: (0.5, "made")) == ({}, [{"settings": {}, "value": 0.5}], "made")


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ({"sasrek": {}}, r"Unknown baseline 'sasrek'\. .* Did you mean 'sasrec'"),
        ({"sasrec": {"dropuot": [0.1]}}, r"search\.sasrec\.dropuot .* Did you mean 'dropout'"),
        ({"ease": {"regularisation": []}}, "no value to try"),
        ({"popularity": {"share": [0.1]}}, "Allowed: none"),
    ],
)
def test_a_search_that_cannot_be_is_refused(grids, message):
    with pytest.raises(RecipeError, match=message):
        check_search(grids)


def test_an_entry_has_intervals_slices_and_unbiased_values(log, items):
    split = leave_one_out(log)
    judge = Judge(split, items, EvaluateSettings(ks=(1, 5), metrics=("HR", "NDCG", "MRR")))
    entry, _ = judge.measure("popular", judge.rank(scorer_of("popularity", split, items.item_ids)))
    assert [n for n in entry["metrics"] if "@" in n][:5] == ["HR@1", "HR@5", "NDCG@5", "MRR@1", "MRR@5"]
    for name, (low, high) in entry["intervals"].items():
        assert low <= entry["metrics"][name] <= high
    assert {"coverage@5", "gini@5", "novelty@5", "diversity@5"} <= entry["metrics"].keys()
    assert set(entry["slices"]) == {"history length", "item popularity", "cold items", "head, torso, tail"}
    for groups in entry["slices"].values():
        total = sum(group["num_users"] * group["metrics"]["HR@5"] for group in groups)
        assert total / 60 == pytest.approx(entry["metrics"]["HR@5"])
        assert all(("few" in group) == (group["num_users"] < FEW_USERS) for group in groups)
    # Every item of the planted log is about as popular, so that weights hardly differ.
    assert entry["unbiased"]["SNIPS Recall@5"] == pytest.approx(entry["metrics"]["HR@5"], abs=0.1)


def test_given_propensities_prices_and_user_groups_are_used_or_refused(log, items, tmp_path):
    split = leave_one_out(log)
    (tmp_path / "p.csv").write_text("item_id,propensity\n" + "".join(f"{i},0.5\n" for i in items.item_ids))
    (tmp_path / "g.csv").write_text("user_id,group\nu0,new\nu1,old\n")
    priced = ItemCatalog(items.table.append_column("price", [[2.0] * len(items)]))
    settings = EvaluateSettings(
        ks=(5,), propensities=str(tmp_path / "p.csv"), user_groups=str(tmp_path / "g.csv"), price="price"
    )
    judge = Judge(split, priced, settings)
    entry, _ = judge.measure("popular", judge.rank(scorer_of("popularity", split, items.item_ids)))
    rate = entry["metrics"]["HR@5"]
    assert entry["unbiased"]["IPS Recall@5"] == pytest.approx(2 * rate)
    assert entry["unbiased"]["SNIPS Recall@5"] == pytest.approx(rate)
    assert entry["metrics"]["value@5"] == pytest.approx(2 * rate)
    assert [g["group"] for g in entry["slices"]["user group"]] == ["new", "old", "(no group)"]
    with pytest.raises(RecipeError, match=r"price='prize' is no column .* Did you mean 'price'"):
        Judge(split, priced, EvaluateSettings(price="prize")).measure("x", [[]] * 60)
    (tmp_path / "p.csv").write_text("item_id,propensity\ni0,0.5\n")
    with pytest.raises(DataError, match=r"no propensity of 23 items"):
        Judge(split, priced, settings).measure("x", [[]] * 60)
    with pytest.raises(DataError, match=r"user_groups='.*' does not exist"):
        Judge(split, items, EvaluateSettings(user_groups="nowhere.csv")).measure("x", [[]] * 60)


def test_sampled_candidates_are_the_same_for_every_model_and_hold_the_relevant_one(log, items):
    split = leave_one_out(log)
    settings = EvaluateSettings(ks=(1, 5), candidates=4)
    judge = Judge(split, items, settings)
    for out, history, targets in zip(
        judge.left_out_ids, split.test.histories, split.test.targets, strict=True
    ):
        left = set(items.item_ids) - set(out)
        assert len(left) == 5
        assert set(targets) <= left
        assert not (left - set(targets)) & set(history)
    assert "4 sampled (uniform, seed 0)" in judge.protocol()["candidates"]
    again = Judge(split, items, settings)
    assert again.left_out_ids == judge.left_out_ids
    assert (
        Judge(split, items, EvaluateSettings(ks=(1, 5), candidates=4, seed=1)).left_out_ids
        != again.left_out_ids
    )
    ranked = judge.rank(scorer_of("popularity", split, items.item_ids))
    assert judge.measure("x", ranked)[0]["metrics"]["HR@5"] == 1, "5 of 5 candidates are listed"


def test_rows_of_one_user_are_one_user_for_intervals(log, items):
    split = global_temporal(log, 0.2, 0.3)
    judge = Judge(split, items, EvaluateSettings(ks=(1, 5)))
    protocol = judge.protocol()
    assert protocol["num_rows"] > protocol["num_users"]
    assert protocol["split"] == "global temporal, one row an interaction"
    entry, _ = judge.measure("x", judge.rank(scorer_of("popularity", split, items.item_ids)))
    assert entry["metrics"]["num_rows"] == len(split.test)
    many = Judge(
        global_temporal(log, 0.2, 0.3, "all"), items, EvaluateSettings(ks=(1, 5), metrics=("Recall",))
    )
    assert many.protocol()["relevant"] == "many"
    assert set(many.measure("x", [[]] * len(many.held_out))[0]["metrics"]) >= {"Recall@1", "Recall@5"}


def test_rankings_that_do_not_fit_are_refused_and_unknown_items_are_misses(log, items):
    split = leave_one_out(log)
    judge = Judge(split, items, EvaluateSettings(ks=(1, 2)))
    with pytest.raises(DataError, match="2 rankings for 60 rows"):
        judge.measure("x", [["i0"], ["i1"]])
    with pytest.raises(DataError, match="names an item twice"):
        judge.measure("x", [["i0", "i0"]] * 60)
    lists = [["not an item", targets[0]] for targets in split.test.targets]
    found = judge.measure("x", lists)[0]["metrics"]
    assert (found["HR@1"], found["HR@2"], found["valid_item_rate"]) == (0, 1, 0.5)
    with pytest.raises(DataError, match=r"held-out items are not in the catalogue of 1 items"):
        Judge(split, ItemCatalog.from_titles({"i0": "lamp"}), EvaluateSettings())
