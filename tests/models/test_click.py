from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score

from genrec.core.errors import DataError, RunError
from genrec.data_prep import InteractionLog, ItemCatalog, SplitSettings, split_log
from genrec.evaluation.click_baselines import CLICK_BASELINES, ClickTask
from genrec.models import click
from genrec.models.click import (
    ClickFields,
    ClickModel,
    ClickSamples,
    load_click_model,
    recent,
    save_click_model,
    train_click,
)
from genrec.models.settings import ClickSettings

from tastes import NUM_ITEMS, samples_of, sources, split_of, taste_rows

SMALL = ClickSettings(
    embedding=16,
    hidden=32,
    layers=2,
    attention_hidden=16,
    max_history=24,
    batch_size=64,
    learning_rate=5e-3,
    epochs=12,
    patience=4,
)


@pytest.fixture(scope="module")
def taste():
    found = samples_of(taste_rows())
    return found, *train_click(found["train"], found["valid"], SMALL)


@pytest.mark.model
def test_a_taste_is_read_from_the_histories_of_users_that_training_never_saw(taste):
    samples, model, about = taste
    test = samples["test"]
    assert not set(test.user_ids) & set(samples["train"].user_ids)
    known = test.place - test.source.start[test.user] >= 16
    assert roc_auc_score(test.label[known], model.probabilities(test)[known]) > 0.98
    assert about["valid_auc"] == max(value for _, value in about["curve"])


@pytest.mark.model
def test_nothing_is_learned_from_answers_by_chance():
    rows = taste_rows()
    ratings = np.random.default_rng(1).permutation([row[3] for row in rows]).tolist()
    shuffled = [[*row[:3], rating] for row, rating in zip(rows, ratings, strict=True)]
    found = samples_of(shuffled)
    model, _ = train_click(found["train"], found["valid"], SMALL.model_copy(update={"epochs": 2}))
    assert roc_auc_score(found["test"].label, model.probabilities(found["test"])) == pytest.approx(
        0.5, abs=0.1
    )


@pytest.mark.model
def test_nothing_at_or_after_the_time_of_a_sample_changes_what_is_said_of_it(taste):
    _, model, _ = taste
    rng = np.random.default_rng(2)
    rows = taste_rows(num_users=6, length=10, seed=3)
    for row in rows:
        row[2] = float(row[2] // 3)  # three at a time

    def said(rows, place):
        source = sources(split_of(rows, "leave_one_out"))["test"]
        # All of a user, the last of them asked for; the sample is at any row.
        sample = ClickSamples.of(source, np.array([place]))
        return model.vectors(sample), model.probabilities(sample), model.user_vectors(sample)

    source = sources(split_of(rows, "leave_one_out"))["test"]
    touched = 0
    for place in range(4, len(rows), 7):
        changed = [list(row) for row in rows]
        user, time = rows[place][0], rows[place][2]
        for number, row in enumerate(changed):
            if row[0] == user and row[2] >= time:
                row[3] = 6 - row[3]
                if number != place:
                    row[1], touched = f"i{rng.integers(NUM_ITEMS)}", touched + 1
        before, after = said(rows, place), said(changed, place)
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        # And what was before does matter, where there is something.
        if place - int(source.start[int(user[1:])]) >= 3:
            earlier = [list(row) for row in rows]
            for row in earlier:
                if row[0] == user and row[2] < time:
                    row[3] = 6 - row[3]
            assert not np.array_equal(before[0], said(earlier, place)[0])
    assert touched > 10


def test_histories_are_the_latest_strictly_before_in_order():
    rows = [["u", f"i{n}", float(time), 5.0] for n, time in enumerate([0, 1, 1, 1, 2, 2, 3])]
    rows += [["v", "i0", 0.0, 1.0], ["v", "i1", 1.0, 1.0], ["v", "i2", 2.0, 1.0]]
    source = sources(split_of(rows, "leave_one_out"))["test"]
    samples = ClickSamples.of(source, np.arange(10))
    found = [[row for row in each if row >= 0] for each in recent(samples, 3).tolist()]
    assert found == [[], [0], [0], [0], [1, 2, 3], [1, 2, 3], [3, 4, 5], [], [7], [7, 8]]
    assert samples.keys[:2] == ["u/0", "u/1"]
    assert samples.label.tolist() == [1.0] * 7 + [0.0] * 3


def test_without_ratings_the_item_or_one_never_taken_is_asked_for():
    rows = taste_rows(num_users=30)
    table = pa.table(
        {"user_id": [r[0] for r in rows], "item_id": [r[1] for r in rows], "timestamp": [r[2] for r in rows]}
    )
    split = split_log(InteractionLog(table, 0, "number"), SplitSettings())
    source = sources(split)["train"]
    samples = ClickSamples.of(source)
    own = source.item[samples.place] == samples.item
    assert np.array_equal(own, samples.label == 1)
    assert 0.4 < own.mean() < 0.6
    taken = {(user, item) for user in range(30) for item in source.item[source.start[user] :][:22].tolist()}
    asked = zip(samples.user[~own].tolist(), samples.item[~own].tolist(), strict=True)
    assert not taken & set(asked)
    model = ClickModel(ClickFields.learn(source), SMALL)
    assert model.probabilities(samples).shape == samples.label.shape


@pytest.mark.model
def test_one_is_answered_as_in_a_batch_and_after_loading(taste, tmp_path):
    samples, model, _ = taste
    some = samples["test"].take(np.arange(3, 60, 9))
    together = model.vectors(some)
    assert together.shape == (len(some), 32)
    for row in range(len(some)):
        alone = some.take(np.array([row]))
        assert model.vectors(alone)[0] == pytest.approx(together[row], abs=1e-5)
    save_click_model(model, tmp_path / "click")
    again = load_click_model(tmp_path / "click", model.fields.item_ids)
    assert np.array_equal(again.vectors(some), together)
    assert np.array_equal(again.user_vectors(some), model.user_vectors(some))
    with pytest.raises(RunError, match="another catalogue"):
        load_click_model(tmp_path / "click", model.fields.item_ids[1:])
    fewer = ItemCatalog.from_titles({f"i{n}": f"Thing {n}" for n in range(NUM_ITEMS - 1)})
    with pytest.raises(RunError, match="Train it on this catalogue"):
        rows = [["u", f"i{n}", float(n), 5.0] for n in range(5)]
        model.probabilities(ClickSamples.of(sources(split_of(rows, "leave_one_out"), fewer)["test"]))


@pytest.mark.model
def test_a_users_vector_knows_no_target_and_unknown_ids_are_answered(taste):
    samples, model, _ = taste
    some = samples["test"].take(np.arange(5))
    other = click.ClickSamples(some.source, some.place, some.user, (some.item + 1) % NUM_ITEMS, some.label)
    assert np.array_equal(model.user_vectors(some), model.user_vectors(other))
    assert not np.array_equal(model.vectors(some), model.vectors(other))
    # The unknown's vectors moved in training, though no training sample has an unknown user or item.
    torch.manual_seed(SMALL.seed)
    start = ClickModel(model.fields, SMALL)
    assert (model.users.weight[0] != start.users.weight[0]).all()
    assert (model.items.weight[0] != start.items.weight[0]).all()


def test_retrieved_histories_feed_sim():
    split = split_of(taste_rows(num_users=8))
    source = sources(split)["train"]
    samples, fields = ClickSamples.of(source), ClickFields.learn(source)
    few = SMALL.model_copy(update={"max_history": 12})
    settings = few.model_copy(update={"kind": "sim"})
    with pytest.raises(RunError, match="reads retrieved behaviours"):
        ClickModel(fields, settings)
    asked = []

    def first(given, k):
        asked.append(k)
        rows = source.start[given.user][:, None] + np.arange(k)
        return np.where(rows < given.end[:, None], rows, -1)

    torch.manual_seed(0)
    sim = ClickModel(fields, settings, first)
    torch.manual_seed(0)
    din = ClickModel(fields, few)
    short = samples.end - source.start[samples.user] <= 12
    assert not short.all()
    # Where both read everything, they are the same network.
    assert sim.vectors(samples)[short] == pytest.approx(din.vectors(samples)[short], abs=1e-6)
    assert not np.allclose(sim.vectors(samples)[~short], din.vectors(samples)[~short])
    assert asked == [12, 12]


@pytest.mark.model
@pytest.mark.parametrize("cut_after", [1, 3])
def test_a_training_that_was_cut_ends_with_the_same_weights(tmp_path, cut_after):
    found = samples_of(taste_rows(40))
    settings = SMALL.model_copy(update={"epochs": 4, "patience": 4})
    whole, about = train_click(found["train"], found["valid"], settings)
    real, calls = click.roc_auc_score, []

    class CutError(Exception):
        pass

    def cut(*arguments):
        calls.append(1)
        if len(calls) > cut_after:
            raise CutError
        return real(*arguments)

    state = tmp_path / "state.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click, "roc_auc_score", cut)
        with pytest.raises(CutError):
            train_click(found["train"], found["valid"], settings, checkpoint=state)
    torch.rand(5), np.random.default_rng().random()
    again, about_again = train_click(found["train"], found["valid"], settings, checkpoint=state)
    assert about_again["curve"] == about["curve"]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_what_cannot_choose_an_epoch_is_refused():
    rows = [[*row[:3], 5.0] for row in taste_rows(10)]
    found = samples_of(rows)
    with pytest.raises(DataError, match="all have the same answer"):
        train_click(found["train"], found["valid"], SMALL)


def with_traits(split, job_of):
    """The split with a table of users whose job decides what they like."""
    users = sorted(set(split.table["user_id"].to_pylist()))
    ages = [20 + number % 30 for number in range(len(users))]
    table = pa.table({"user_id": users, "job": [job_of(user) for user in users], "age": ages})
    return replace(split, users=table)


@pytest.mark.model
def test_what_is_known_of_users_is_read(tmp_path):
    """Painters like things of even numbers, bakers of odd ones; users are asked for who have little history, and are new."""
    job = {f"u{n}": ("painter", "baker")[n % 2] for n in range(160)}
    rng = np.random.default_rng(0)
    rows = [
        [user, f"i{item}", float(time), 5.0 if (item % 2 == 0) == (job[user] == "painter") else 1.0]
        for user in job
        for time, item in enumerate(rng.integers(NUM_ITEMS, size=3).tolist())
    ]
    split = with_traits(split_of(rows), job.get)
    found = {}
    for part, source in sources(split).items():
        owner = np.searchsorted(source.start, np.arange(len(source)), "right") - 1
        mine = np.isin(owner, np.unique(owner[source.asked]))
        found[part] = ClickSamples.of(source, np.flatnonzero(mine))
    settings = SMALL.model_copy(update={"epochs": 30, "patience": 30})
    model, _ = train_click(found["train"], found["valid"], settings)
    assert model.fields.num_traits == 2 + 3  # two jobs, three decades
    test = found["test"]
    assert roc_auc_score(test.label, model.probabilities(test)) > 0.95
    save_click_model(model, tmp_path / "click")
    again = load_click_model(tmp_path / "click", model.fields.item_ids)
    np.testing.assert_allclose(again.vectors(test), model.vectors(test), atol=1e-6)
    assert model.user_vectors(test).shape[1] == 2 * 16 + 2 * 16
    task = ClickTask(found["train"], found["valid"], model.fields, settings)
    for name in ("logistic_regression", "deepfm"):
        assert np.isfinite(CLICK_BASELINES[name].fit(task, 0)(test)).all()
