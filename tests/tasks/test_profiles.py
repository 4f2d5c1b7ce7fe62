"""Profiles of users: from their table to prompts and categories."""

import pyarrow as pa
import pytest

from genrec.core.errors import DataError
from genrec.data_prep import (
    DataSettings,
    InteractionLog,
    ItemCatalog,
    check_manifest,
    prepare,
    read_split,
    read_users,
)
from genrec.data_prep.readers import FORMATS
from genrec.indexing import build_index
from genrec.tasks import TaskRows, TaskSettings
from genrec.tasks.profiles import Profiles

LOG = "user_id,item_id,timestamp,rating\n" + "".join(
    f"u{user},i{(user + time) % 6},{time},{1 + (user + time) % 5}\n" for user in range(4) for time in range(6)
)
ITEMS = "item_id,title\n" + "".join(f"i{n},Title {n}\n" for n in range(6))
USERS = "who,age,sex,job,zip\nu0,24,M,writer,1\nu1,9,F,,2\nu9,50,M,cook,3\nu2,,,,4\n"


def prepared(tmp_path, table=USERS, **changes):
    (tmp_path / "interactions.csv").write_text(LOG)
    (tmp_path / "items.csv").write_text(ITEMS)
    if table is not None:
        (tmp_path / "users.csv").write_text(table)
        changes = {"user_columns": {"user_id": "who"}} | changes
    settings = DataSettings(source=str(tmp_path), time="number", user_core=1, item_core=1, **changes)
    report = prepare(settings, tmp_path / "out")
    log = InteractionLog.load(tmp_path / "out" / "interactions.parquet")
    return report, read_split(log.table, settings.split, read_users(tmp_path / "out"))


def rows_of(split, **changes):
    items = ItemCatalog.from_titles({f"i{n}": f"Title {n}" for n in range(6)})
    settings = TaskSettings(form="prompt", mixture={"click": 6}, **changes)
    return TaskRows(split, items, build_index("independent", items, split.train), settings)


def test_the_users_that_are_left_are_written_counted_and_sealed(tmp_path):
    report, split = prepared(tmp_path)
    assert split.users["user_id"].to_pylist() == ["u0", "u1", "u2"]
    assert (report["num_user_rows"], report["num_users_without_profile"]) == (4, 1)
    assert report["user_coverage"] == {"age": 2, "sex": 2, "job": 1, "zip": 3}
    assert "users.parquet" in check_manifest(tmp_path / "out")["files"]
    again = prepare(DataSettings(source=str(tmp_path / "out"), user_core=1, item_core=1), tmp_path / "again")
    assert again["user_coverage"] == report["user_coverage"]  # a prepared folder is a source with its users


def test_prompts_and_fields_have_what_is_known(tmp_path):
    _, split = prepared(tmp_path)
    tasks = rows_of(split)
    source = tasks.source
    assert source.user_ids == ["u0", "u1", "u2", "u3"]
    words = ["24 years old, male, job: writer", "9 years old, female", None, None]
    assert [source.profile(user) for user in range(4)] == words
    assert source.user_fields == {
        "age": ["20 to 29", "0 to 9", None, None],
        "sex": ["M", "F", None, None],
        "job": ["writer", None, None, None],
    }
    with_profile = [row for row in tasks.dataset()["train"] if row["template"] == "click-5"]
    assert {row["key"].split("/")[0] for row in with_profile} == {"u0", "u1"}
    shown = {"u0": words[0], "u1": words[1]}
    assert all(shown[row["key"].split("/")[0]] in row["prompt"] for row in with_profile)
    assert tasks.report["profile"] == {"columns": ["age", "sex", "job"], "left_out": ["zip"]}


def test_without_users_nothing_is_asked_of_them(tmp_path):
    report, split = prepared(tmp_path, None)
    assert split.users is None
    assert not (tmp_path / "out" / "users.parquet").exists()
    tasks = rows_of(split)
    assert tasks.source.user_fields == {}
    assert tasks.source.profile(0) is None
    assert {row["template"] for row in tasks.dataset()["train"]} == {"click-1", "click-2", "click-3"}
    assert "num_user_rows" not in report


def test_users_can_be_left_out(tmp_path):
    (tmp_path / "users.csv").write_text(USERS)
    report, split = prepared(tmp_path, None, users="none")
    assert split.users is None
    assert "num_user_rows" not in report


@pytest.mark.parametrize(
    ("users", "said"),
    [
        ("who,age\nu0,1\nu0,2\n", "already stands in row 1"),
        ("who,age\nx,1\n", "none of the 4 users of the log"),
        ("name,age\nu0,1\n", "no column 'who'"),
    ],
)
def test_a_wrong_table_of_users_is_refused(tmp_path, users, said):
    with pytest.raises(DataError, match=said):
        prepared(tmp_path, users)


def test_columns_that_name_a_user_are_left_out():
    size = range(20)
    table = pa.table(
        {
            "user_id": [f"u{n}" for n in size],
            "accountId": ["a"] * 20,
            "login": [f"login {n}" for n in size],
            "age": [float(n) for n in size],
            "paid": ["yes"] * 20,
        }
    )
    profiles = Profiles(table)
    assert (profiles.columns, profiles.left_out) == (["age", "paid"], ["accountId", "login"])
    assert profiles.words("u1") == "1 year old, paid: yes"
    with pytest.raises(DataError, match="'a' has several"):
        Profiles(pa.table({"user_id": ["b", "a", "a"]}))


RATINGS = "1{0}7{0}5{0}880000000\n2{0}7{0}3{0}880000001\n"
RAW = {
    "movielens-100k": ({"u.data": RATINGS.format("\t"), "u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n"},
        [("24", "M", "technician"), ("53", "F", "other")]),
    "movielens-1m": ({"ratings.dat": RATINGS.format("::"), "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n"},
        [("under 18", "F", "K-12 student"), ("56 or older", "M", "self-employed")]),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
def test_the_users_of_movielens_are_read_from_its_raw_files(tmp_path, name):
    from genrec.data_prep.engine import in_memory
    from genrec.data_prep.tables import check_users

    files, expected = RAW[name]
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    reading = FORMATS[name].open(tmp_path)
    with in_memory() as engine:
        scan = engine.scan(reading.users)
        if reading.shape_users:
            scan.table = reading.shape_users(scan.table)
        found = check_users(engine, scan).take().to_pylist()
    assert [(row["age"], row["gender"], row["occupation"]) for row in found] == expected
