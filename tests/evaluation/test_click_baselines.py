import numpy as np
import pytest
import torch

from genrec.core.errors import MissingExtraError, RecipeError
from genrec.evaluation.click import measure_clicks
from genrec.evaluation.click_baselines import CLICK_BASELINES, ClickTask, check_click_baselines
from genrec.models.click import ClickFields
from genrec.models.settings import ClickSettings

from tastes import samples_of, taste_rows

SMALL = ClickSettings(hidden=32, layers=1, max_history=24, batch_size=64, epochs=8, patience=4)
CHOSEN = {"strength": 1.0, "learning_rate": 5e-3, "embedding": 8}


@pytest.fixture(scope="module")
def task():
    found = samples_of(taste_rows())
    fields = ClickFields.learn(found["train"].source)
    return ClickTask(found["train"], found["valid"], fields, SMALL), found["test"]


def settings(name):
    return {key: CHOSEN[key] for key in CLICK_BASELINES[name].grid}


@pytest.mark.model
@pytest.mark.parametrize("name", CLICK_BASELINES)
def test_every_baseline_gives_probabilities_and_reads_the_history_if_it_can(task, name):
    about, test = task
    predict = CLICK_BASELINES[name].fit(about, 0, **settings(name))
    found = predict(test)
    assert found.shape == test.label.shape
    assert found.dtype == np.float64
    metrics = measure_clicks(test.label, found)
    if name == "constant":
        assert metrics["AUC"] == 0.5
        assert np.unique(found) == pytest.approx(about.train.label.mean())
    else:  # a user whom training never saw is known by the history alone
        assert metrics["AUC"] > 0.7
    some = test.take(np.arange(5, 9))
    assert predict(some) == pytest.approx(found[5:9], abs=1e-6)


@pytest.mark.model
@pytest.mark.parametrize("name", ["logistic_regression", "deepfm"])
def test_a_baseline_is_the_same_twice_whatever_was_drawn_before(task, name):
    about, test = task
    found = []
    for _ in range(2):
        found.append(CLICK_BASELINES[name].fit(about, 0, **settings(name))(test))
        torch.rand(3)
    assert np.array_equal(*found)


def test_names_and_searches_are_checked():
    check_click_baselines(list(CLICK_BASELINES), {"deepfm": {"embedding": [8]}})
    with pytest.raises(RecipeError, match="Did you mean 'deepfm'"):
        check_click_baselines(["deepfn"], {})
    with pytest.raises(RecipeError, match="comes twice"):
        check_click_baselines(["constant", "constant"], {})
    with pytest.raises(RecipeError, match="Allowed: strength"):
        check_click_baselines([], {"logistic_regression": {"c": [1]}})
    with pytest.raises(RecipeError, match="no value"):
        check_click_baselines([], {"logistic_regression": {"strength": []}})


def test_a_missing_library_is_named(task, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_rechub.basic.features", None)
    with pytest.raises(MissingExtraError, match=r"genrec\[click\]"):
        CLICK_BASELINES["deepfm"].fit(task[0], 0, **settings("deepfm"))
