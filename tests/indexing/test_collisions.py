from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.core.errors import IndexingError
from genrec.indexing.codes import count_symbols, spell
from genrec.indexing.collisions import COLLISION_POLICIES, settle


def fixed(*levels):
    """Distances that are the same for all items."""

    def distances(rows, level):
        return np.repeat([np.array(levels[level], float)], len(rows), axis=0)

    return distances


def code_rows(min_size=1, levels=2, size=3):
    row = st.tuples(*[st.integers(0, size - 1)] * levels)
    return st.lists(row, min_size=min_size, max_size=8).map(np.array)


def test_next_free_takes_the_nearest_free_last_token():
    codes = np.array([[0, 1], [0, 1], [0, 1], [1, 1]])
    settled = settle("next_free", codes, fixed([0, 1, 2, 3], [3, 0, 1, 2]), 4)
    assert settled.codes == spell(np.array([[0, 1], [0, 2], [0, 3], [1, 1]]))
    assert settled.touched == {"next_free": 2}


def test_next_free_goes_to_the_nearest_first_tokens_where_all_last_ones_are_taken():
    codes = np.array([[0, 0, 0]] * 7)
    settled = settle("next_free", codes, fixed([0, 1], [1, 0], [0, 1]), 2)
    assert settled.codes == spell(
        np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]])
    )


def test_next_free_says_so_where_nothing_is_free():
    with pytest.raises(IndexingError, match=r"All 4 codes of 2 levels of 2.*index\.collisions=suffix"):
        settle("next_free", np.array([[1, 0]] * 5), fixed([0, 0], [0, 0]), 2)


def test_suffix_counts_inside_a_code():
    settled = settle("suffix", np.array([[0, 1], [0, 1], [2, 2]]), fixed([], []), 4)
    assert settled.codes == [("<a_0>", "<b_1>", f"<c_#{n}>") for n in (0, 1)] + [("<a_2>", "<b_2>", "<c_#0>")]
    assert settled.touched == {"suffix": 1}


def test_sinkhorn_spreads_the_items_of_a_code_and_leaves_equal_ones_to_next_free():
    rng = np.random.default_rng(0)
    places = rng.normal(size=(6, 2))
    places[5] = places[4]
    centres = rng.normal(size=(8, 2))

    def distances(rows, level):
        return ((places[rows][:, None] - centres) ** 2).sum(2)

    codes = np.zeros((6, 2), int)
    settled = settle("sinkhorn", codes, distances, 8)
    assert len(set(settled.codes)) == 6
    assert settled.touched["next_free"] >= 1
    assert settled.touched["sinkhorn"] >= 3


def test_allow_leaves_codes_as_they_are():
    codes = np.array([[0, 1], [0, 1]])
    assert settle("allow", codes, fixed([], []), 2).codes == spell(codes)


@pytest.mark.parametrize("policy", sorted(set(COLLISION_POLICIES) - {"allow"}))
@given(code_rows(), code_rows())
def test_no_code_is_shared_and_taken_ones_are_kept(policy, old, new):
    distances = fixed([0.0, 1.0, 2.0], [2.0, 0.0, 1.0])
    try:
        first = settle(policy, old, distances, 3)
        taken = {str(row): code for row, code in enumerate(first.codes)}
        second = settle(policy, new, distances, 3, taken)
    except IndexingError:
        assert policy != "suffix"
        assert len(old) + len(new) > 9
        return
    assert len({*first.codes, *second.codes}) == len(old) + len(new)


@given(st.integers(2, 5), st.lists(st.integers(0, 500), min_size=2, max_size=12, unique=True))
def test_no_count_begins_another(base, numbers):
    rows = sorted(count_symbols(number, base) for number in numbers)
    assert all(b[: len(a)] != a for a, b in pairwise(rows))
    assert all(int(symbol[1:]) < base for row in rows for symbol in row)


def test_counts_take_one_symbol_at_first():
    assert [count_symbols(n, 4) for n in range(5)] == [
        ("#0",),
        ("#1",),
        ("#2",),
        ("#3", "#0", "#0"),
        ("#3", "#0", "#1"),
    ]
