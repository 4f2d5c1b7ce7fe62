import gzip
import json

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
        assert InteractionLog.read(path, time="number").histories() == {"1": ["y", "x"]}


def test_a_log_written_is_the_log_read(tmp_path, log):
    log.write(tmp_path / "log.parquet")
    assert InteractionLog.load(tmp_path / "log.parquet").table.equals(log.table)
    assert InteractionLog.read(tmp_path / "log.parquet", time="number").table.equals(log.table)


def test_missing_columns_are_named_with_what_is_there(tmp_path):
    path = write(tmp_path / "a.csv", "user,item_id,timestamp\n1,x,2\n")
    with pytest.raises(
        DataError, match=r"lacks the column user_id.*user, item_id, timestamp.*data\.columns\.user_id"
    ):
        InteractionLog.read(path)
    assert InteractionLog.read(path, {"user_id": "user"}, time="number").histories() == {"1": ["x"]}
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


def test_a_broken_parquet_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="could not be read"):
        InteractionLog.read(write(tmp_path / "a.parquet", "not parquet"))


BAD = "user_id,item_id,timestamp\n1,x,1\n1,,2\n2,y,yesterday\n2,y,nan\n3,z,4\n"


def test_bad_rows_stop_with_line_column_and_reason(tmp_path):
    with pytest.raises(DataError) as error:
        InteractionLog.read(write(tmp_path / "a.csv", BAD), time="number")
    assert "3 bad rows" in str(error.value)
    assert "a.csv line 3: item_id: is missing" in str(error.value)
    assert "a.csv line 4: timestamp: 'yesterday' is not a finite number" in str(error.value)
    assert "--on-bad-rows=quarantine" in str(error.value)


def test_bad_rows_can_be_quarantined_and_are_counted(tmp_path):
    path = write(tmp_path / "a.csv", BAD)
    log = InteractionLog.read(path, None, "quarantine", tmp_path / "q.jsonl", "number")
    assert (len(log), log.num_quarantined) == (2, 3)
    entries = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in entries] == [3, 4, 5]
    assert entries[1]["values"] == {"user_id": "2", "item_id": "y", "timestamp": "yesterday"}


def test_only_bad_rows_is_an_error(tmp_path):
    path = write(tmp_path / "a.csv", "user_id,item_id,timestamp\n1,x,soon\n")
    with pytest.raises(DataError, match="every row is bad"):
        InteractionLog.read(path, None, "quarantine", tmp_path / "q.jsonl", "number")


# Each kind of bad row, the line it stands in, and what is said of it.
RAGGED = (
    'user_id,item_id,timestamp\nu,a,1400000000\nu,"b\nb",1400000001\nu,c\nu,d,1400000003,9\nu,,1400000004\n'
)
OBJECTS = (
    '{"user_id": "u", "item_id": "a", "timestamp": 1400000000}\n{"user_id": "u", "item\n\n[1]\n'
    '{"user_id": "u", "user_id": "v", "item_id": "b", "timestamp": 1400000000}\n'
    '{"user_id": {"id": 1}, "item_id": "c", "timestamp": 1400000000}\n{"item_id": "c", "timestamp": 1400000000}\n'
)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            RAGGED.encode(),
            {5: "has fewer values than", 6: "has more values than", 7: "item_id: is missing"},
        ),
        (
            "a.jsonl",
            OBJECTS.encode(),
            {
                2: "is no valid JSON",
                4: "is JSON, but no object",
                5: "has a key twice",
                6: "user_id: '{\"id\":1}' is no plain value",
                7: "user_id: is missing",
            },
        ),
        (
            "a.csv",
            b"user_id,item_id,timestamp\nu,a,1400000000\nu,\xff,1400000000\nu,,1400000000\n",
            {3: "is not valid UTF-8", 4: "item_id: is missing"},
        ),
        (
            "a.tsv",
            b"user_id\titem_id\ttimestamp\trating\nu\ta\t1400000000\t5\nu\tb\t1400000000000\t5\nu\tc\t0\t1\nu\td\t\t1\n"
            b"u\te\t1400000000\tgood\n",
            {
                3: "'1400000000000' lies outside 1970 to tomorrow, read as s",
                4: "'0' lies outside",
                5: "timestamp: is missing",
                6: "rating: 'good' is not a finite number",
            },
        ),
    ],
)
def test_every_kind_of_bad_row_is_told_with_its_line(tmp_path, name, content, said, ending):
    path = tmp_path / (name + ending)
    path.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(DataError) as error:
        InteractionLog.read(path)
    assert f"{len(said)} bad rows" in str(error.value)
    for line, reason in said.items():
        (told,) = [t for t in str(error.value).splitlines() if f"{path.name} line {line}:" in t]
        assert reason in told
    log = InteractionLog.read(path, on_bad_rows="quarantine", quarantine=tmp_path / "q.jsonl")
    assert log.num_quarantined == len(said)
    assert log.table["item_id"].to_pylist()[0] == "a"
    entries = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in entries] == list(said)


@pytest.mark.parametrize(
    ("times", "kind", "first"),
    [
        (["1398938400", "1398938401.5"], "s", 1398938400),
        (["1398938400000", "1398938401500"], "ms", 1398938400),
        (["1398938400000000", "1398938401500000"], "us", 1398938400),
        (["2014-05-01T10:00:00Z", "2014-05-01 10:00:01.5"], "iso", 1398938400),
        (["2014-05-01T12:00:00+02:00", "2014-05-01 10:00:01.5"], "iso", 1398938400),
    ],
)
def test_times_are_recognised_and_come_back_in_seconds(tmp_path, times, kind, first):
    path = write(tmp_path / "a.csv", "user_id,item_id,timestamp\n" + "".join(f"u,i{t},{t}\n" for t in times))
    for asked in ("auto", kind):
        found = InteractionLog.read(path, time=asked).table["timestamp"].to_pylist()
        assert found == [first, first + 1.5]


def test_times_that_could_be_anything_are_asked_for(tmp_path):
    path = write(tmp_path / "a.csv", "user_id,item_id,timestamp\nu,a,3\nu,b,4\n")
    with pytest.raises(DataError, match=r"plain numbers, such as '4'. Say what they are: data\.time="):
        InteractionLog.read(path)
    path = write(tmp_path / "b.csv", "user_id,item_id\nu,b\nu,a\n")
    assert InteractionLog.read(path, time="row").histories() == {"u": ["b", "a"]}
    with pytest.raises(DataError, match="lacks the column timestamp"):
        InteractionLog.read(path)


def test_a_column_named_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match="two columns named 'user_id'"):
        InteractionLog.read(write(tmp_path / "a.csv", "user_id,item_id,user_id\n1,x,2\n"))


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
