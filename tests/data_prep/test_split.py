import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.core.errors import DataError
from genrec.data_prep import InteractionLog, leave_one_out


def test_last_is_test_and_the_one_before_validation():
    split = leave_one_out(InteractionLog.from_rows([("u", f"i{t}", t) for t in range(5)]))
    assert split.train == {"u": ["i0", "i1", "i2"]}
    assert (split.valid.histories, split.valid.targets) == ([["i0", "i1", "i2"]], ["i3"])
    assert (split.test.histories, split.test.targets) == ([["i0", "i1", "i2", "i3"]], ["i4"])


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
    held = dict(
        zip(split.test.user_ids, zip(split.valid.targets, split.test.targets, strict=True), strict=True)
    )
    assert {user: split.train[user] + list(held.get(user, ())) for user in histories} == histories
    for user, valid, test in zip(
        split.valid.user_ids, split.valid.histories, split.test.histories, strict=True
    ):
        assert valid == split.train[user]
        assert test == [*valid, held[user][0]]
