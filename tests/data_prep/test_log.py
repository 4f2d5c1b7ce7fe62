import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.core.errors import DataError
from genrec.data_prep import InteractionLog

ROWS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("wxyz"), st.integers(0, 5)), min_size=1, max_size=40
)


def write(path, text):
    path.write_text(text)
    return path


def test_csv_jsonl_and_parquet_give_one_log(tmp_path):
    csv = write(tmp_path / "a.csv", 'user_id,item_id,timestamp,note\n1,x,2,"a, b"\n1,y,1,\n')
    jsonl = write(
        tmp_path / "a.jsonl",
        '{"user_id": 1, "item_id": "x", "timestamp": 2}\n{"user_id": 1, "item_id": "y", "timestamp": 1}\n',
    )
    table = pa.table({"user_id": [1, 1], "item_id": ["x", "y"], "timestamp": [2.0, 1.0]})
    pq.write_table(table, tmp_path / "a.parquet")
    for path in (csv, jsonl, tmp_path / "a.parquet"):
        assert InteractionLog.read(path).histories() == {"1": ["y", "x"]}


def test_a_log_written_is_the_log_read(tmp_path, log):
    log.write(tmp_path / "log.parquet")
    assert InteractionLog.read(tmp_path / "log.parquet").table.equals(log.table)


def test_missing_columns_are_named_with_what_is_there(tmp_path):
    path = write(tmp_path / "a.csv", "user,item_id,timestamp\n1,x,2\n")
    with pytest.raises(
        DataError, match=r"lacks the column user_id.*user, item_id, timestamp.*data\.columns\.user_id"
    ):
        InteractionLog.read(path)
    assert InteractionLog.read(path, {"user_id": "user"}).histories() == {"1": ["x"]}
    with pytest.raises(DataError, match="no column 'usr'.*Did you mean 'user'"):
        InteractionLog.read(path, {"user_id": "usr"})


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("user_id,item_id,timestamp\n", "header but no rows")],
)
def test_empty_files_are_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        InteractionLog.read(write(tmp_path / "a.csv", text))


def test_missing_file_and_unknown_ending(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        InteractionLog.read(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"allowed are \.csv"):
        InteractionLog.read(write(tmp_path / "a.xls", "x"))


def test_a_broken_parquet_or_ragged_csv_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="could not be read"):
        InteractionLog.read(write(tmp_path / "a.parquet", "not parquet"))
    with pytest.raises(DataError, match="could not be read"):
        InteractionLog.read(write(tmp_path / "a.csv", "user_id,item_id,timestamp\n1,x\n"))


BAD = "user_id,item_id,timestamp\n1,x,1\n1,,2\n2,y,yesterday\n2,y,nan\n3,z,4\n"


def test_bad_rows_stop_with_row_column_and_reason(tmp_path):
    with pytest.raises(DataError) as error:
        InteractionLog.read(write(tmp_path / "a.csv", BAD))
    assert "3 bad values" in str(error.value)
    assert "row 2, column item_id: is missing" in str(error.value)
    assert "row 3, column timestamp: 'yesterday' is not a finite number" in str(error.value)


def test_bad_rows_can_be_quarantined_and_are_counted(tmp_path):
    log = InteractionLog.read(write(tmp_path / "a.csv", BAD), None, "quarantine", tmp_path / "q.jsonl")
    assert (len(log), log.num_quarantined) == (2, 3)
    lines = (tmp_path / "q.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert '"row": 3' in lines[1]
    assert "yesterday" in lines[1]


def test_only_bad_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match="every row is bad"):
        InteractionLog.read(
            write(tmp_path / "a.csv", "user_id,item_id,timestamp\n1,x,soon\n"), None, "quarantine"
        )


def test_ties_keep_the_order_of_the_source():
    log = InteractionLog.from_rows([("u", "b", 1), ("u", "a", 1), ("u", "c", 0), ("u", "0", 1)])
    assert log.histories() == {"u": ["c", "b", "a", "0"]}
    assert log.num_ties == 2


@given(ROWS, st.integers(1, 3), st.integers(1, 3))
def test_core_is_the_largest_part_that_holds(rows, user, item):
    kept = list(rows)
    while True:
        users, items = [u for u, _, _ in kept], [i for _, i, _ in kept]
        smaller = [r for r in kept if users.count(r[0]) >= user and items.count(r[1]) >= item]
        if smaller == kept:
            break
        kept = smaller
    log = InteractionLog.from_rows(rows)
    if not kept:
        with pytest.raises(DataError, match=r"Lower data\.user_core"):
            log.k_core(user, item)
        return
    core = log.k_core(user, item).table
    found = zip(
        core["user_id"].to_pylist(), core["item_id"].to_pylist(), core["timestamp"].to_pylist(), strict=True
    )
    assert sorted(found) == sorted(kept)


@given(ROWS)
def test_histories_hold_every_row_in_time_order(rows):
    histories = InteractionLog.from_rows(rows).histories()
    for user in {u for u, _, _ in rows}:
        own = [(t, i) for u, i, t in rows if u == user]
        expected = [own[j][1] for j in np.argsort([t for t, _ in own], kind="stable")]
        assert histories[user] == expected
