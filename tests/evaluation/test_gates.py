"""What is said of gates, on gates whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.core.errors import DataError
from genrec.evaluation.gates import gate_lines, gate_report, gate_section

GROUPS = {"history length": (["short", "long", "nobody"], np.array([0, 0, 1, 1]))}


def report_of(*layers):
    return gate_report({f"layers.{n}.q_proj": np.array(each) for n, each in enumerate(layers)}, GROUPS)


def test_users_who_have_an_expert_each_differ():
    own = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    found = report_of(own, own)
    assert found["mean"] == [0.5, 0.5]
    assert found["between_users"] == 0.5
    assert (found["entropy"], found["mean_entropy"]) == (0.0, 1.0)
    assert (found["collapsed"], found["alike"]) == ([], False)
    assert found["groups"] == {
        "history length": {
            "short": {"users": 2, "mean": [1.0, 0.0]},
            "long": {"users": 2, "mean": [0.0, 1.0]},
        }
    }
    assert "Users differ" in gate_section(found)


def test_the_layer_that_tells_users_apart_is_shown():
    own = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    found = report_of([[0.5, 0.5]] * 4, own, [[0.0, 1.0]] * 4)
    assert found["layer"] == "layers.1.q_proj"
    assert list(found["between_by_layer"].values()) == [0.0, 0.5, 0.0]
    assert found["groups"]["history length"]["short"]["mean"] == [1.0, 0.0]
    assert "layers.1.q_proj" in gate_section(found)


def test_one_expert_for_everyone_is_a_collapse():
    found = report_of([[0.97, 0.03]] * 4, [[0.5, 0.5]] * 4)
    assert found["collapsed"] == ["layers.0.q_proj"]
    assert found["alike"]
    assert "Collapsed: in 1 of 2 layers" in gate_lines(found)[0]
    assert "hardly tell users apart" in gate_lines(found)[1]


def test_even_weights_are_no_collapse_and_no_difference():
    found = report_of([[0.25] * 4] * 4)
    assert (found["collapsed"], found["alike"], found["between_users"]) == ([], True, 0.0)
    assert found["entropy"] == pytest.approx(1.0)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
def test_any_weights_can_be_told_and_drawn(users, experts, layers, seed):
    rng = np.random.default_rng(seed)
    weights = {f"l{n}": rng.dirichlet(np.ones(experts), users) for n in range(layers)}
    found = gate_report(weights, {"<odd>": (["a & b", "c"], rng.integers(2, size=users))})
    assert sum(found["mean"]) == pytest.approx(1)
    assert 0 <= found["between_users"] <= 1
    assert 0 <= found["entropy"] <= 1 + 1e-9
    page = gate_section(found)
    assert "<odd>" not in page
    assert page.count("<rect") == experts * (1 + len(found["groups"]["<odd>"]))


@pytest.mark.parametrize(
    ("weights", "groups"),
    [
        ({}, {}),
        ({"a": np.zeros((0, 2))}, {}),
        ({"a": np.ones((3, 1)), "b": np.ones((2, 1))}, {}),
        ({"a": np.ones((3, 1))}, GROUPS),
    ],
)
def test_what_does_not_fit_is_refused(weights, groups):
    with pytest.raises(DataError, match="users"):
        gate_report(weights, groups)
