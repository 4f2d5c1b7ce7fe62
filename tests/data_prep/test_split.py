import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.core.errors import DataError
from genrec.data_prep import InteractionLog, global_temporal, leave_one_out


def test_last_is_test_and_the_one_before_validation():
    split = leave_one_out(InteractionLog.from_rows([("u", f"i{t}", t) for t in range(5)]))
    assert split.train == {"u": ["i0", "i1", "i2"]}
    assert (split.valid.histories, split.valid.targets) == ([["i0", "i1", "i2"]], [["i3"]])
    assert (split.test.histories, split.test.targets) == ([["i0", "i1", "i2", "i3"]], [["i4"]])


def test_users_too_short_train_only_and_are_counted():
    rows = [
        ("one", "a", 0),
        ("two", "a", 0),
        ("two", "b", 1),
        ("three", "a", 0),
        ("three", "b", 1),
        ("three", "c", 2),
    ]
    split = leave_one_out(InteractionLog.from_rows(rows))
    assert split.train == {"one": ["a"], "two": ["a", "b"], "three": ["a"]}
    assert split.test.user_ids == ["three"]
    assert split.num_short == 2


def test_no_user_long_enough_is_an_error():
    with pytest.raises(DataError, match="at least 3 interactions"):
        leave_one_out(InteractionLog.from_rows([("u", "a", 0)]))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("wxyz"), st.integers(0, 3)), min_size=3))
def test_every_interaction_lies_in_exactly_one_part(rows):
    log = InteractionLog.from_rows(rows)
    histories = log.histories()
    if max(map(len, histories.values())) < 3:
        return
    split = leave_one_out(log)
    targets = [v + t for v, t in zip(split.valid.targets, split.test.targets, strict=True)]
    held = dict(zip(split.test.user_ids, targets, strict=True))
    assert {user: split.train[user] + list(held.get(user, ())) for user in histories} == histories
    for user, valid, test in zip(
        split.valid.user_ids, split.valid.histories, split.test.histories, strict=True
    ):
        assert valid == split.train[user]
        assert test == [*valid, held[user][0]]


def test_training_times_stand_beside_their_items():
    split = leave_one_out(
        InteractionLog.from_rows([("u", f"i{t}", 10 * t) for t in range(5)] + [("v", "a", 7)])
    )
    assert split.train_times == {"u": [0, 10, 20], "v": [7]}


ROWS = [("u", "a", 0), ("v", "b", 1), ("u", "c", 2), ("v", "d", 3), ("u", "e", 4), ("v", "f", 5)]


def test_a_global_temporal_split_asks_for_each_interaction_after_a_point_in_time():
    rows = [*ROWS, ("u", "g", 6), ("v", "h", 7), ("w", "a", 8), ("w", "b", 8), ("u", "b", 9)]
    split = global_temporal(InteractionLog.from_rows(rows), 0.2, 0.3)
    assert split.train == {"u": ["a", "c", "e"], "v": ["b", "d"]}
    assert split.train_times == {"u": [0, 2, 4], "v": [1, 3]}
    assert split.valid.user_ids == ["u", "v"]
    assert (split.valid.histories, split.valid.targets) == ([["a", "c", "e"], ["b", "d"]], [["g"], ["f"]])
    # w has nothing before "a", so that only "b" can be asked for.
    assert split.test.user_ids == ["u", "v", "w"]
    assert split.test.targets == [["b"], ["h"], ["b"]]
    assert split.test.histories == [["a", "c", "e", "g"], ["b", "d", "f"], ["a"]]
    assert split.num_short == 1
    assert split.test.row_ids == ["u", "v", "w"]


def test_all_that_a_user_took_in_the_window_may_be_relevant_at_once():
    rows = [*ROWS, ("u", "g", 6), ("u", "h", 7), ("u", "g", 8), ("w", "a", 8), ("w", "b", 8)]
    split = global_temporal(InteractionLog.from_rows(rows), 0.2, 0.4, "all")
    assert (split.test.user_ids, split.test.targets) == (["u"], [["g", "h"]])
    assert split.num_short == 2
    each = global_temporal(InteractionLog.from_rows(rows), 0.2, 0.4, "each").test
    assert each.row_ids == ["u/0", "u/1", "u/2", "w"]
    assert each.num_users == 2


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("wxyz"), st.integers(0, 20)),
        min_size=6,
        max_size=60,
    ),
    st.sampled_from(["each", "all"]),
)
def test_no_training_interaction_is_later_than_a_held_out_one_and_none_is_lost(rows, targets):
    log = InteractionLog.from_rows(rows)
    try:
        split = global_temporal(log, 0.2, 0.2, targets)
    except DataError:
        return
    latest = max(time for times in split.train_times.values() for time in times)
    held = sorted(float(time) for _, _, time in rows)[sum(map(len, split.train.values())) :]
    assert all(time > latest for time in held)
    if targets == "each":
        assert len(split.valid) + len(split.test) + split.num_short == len(held)
        for user, history, wanted in zip(
            split.test.user_ids, split.test.histories, split.test.targets, strict=True
        ):
            assert log.histories()[user][: len(history) + 1] == history + wanted
    assert all(split.valid.histories)
    assert all(split.test.histories)


@pytest.mark.parametrize(
    ("shares", "message"), [((0.5, 0.5), "sum up to less than 1"), ((0.0, 0.1), r"lie in \(0, 1\)")]
)
def test_shares_that_leave_nothing_are_refused(shares, message):
    with pytest.raises(DataError, match=message):
        global_temporal(InteractionLog.from_rows(ROWS), *shares)
    with pytest.raises(DataError, match=r"leaves 0 for train.* of 6 interactions"):
        global_temporal(InteractionLog.from_rows([(u, i, 0) for u, i, _ in ROWS]), 0.1, 0.1)
