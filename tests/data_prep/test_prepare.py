"""What a prepared data set promises, whatever it was made from and on."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.core.errors import DataError
from genrec.data_prep import (
    DataSettings,
    InteractionLog,
    ItemCatalog,
    SplitSettings,
    check_manifest,
    prepare,
    read_split,
    split_log,
)

from planted import DATA

HELD_OUT_RULES = [
    {"rule": "leave_one_out"},
    {"rule": "global_temporal", "valid_share": 0.2, "test_share": 0.2},
    {"rule": "global_temporal", "valid_share": 0.2, "test_share": 0.2, "targets": "all"},
    {"rule": "sliding_windows", "valid_share": 0.2, "test_share": 0.2},
    {"rule": "user_disjoint", "valid_share": 0.2, "test_share": 0.2, "seed": 3},
    {"rule": "cold_item", "valid_share": 0.2, "test_share": 0.2},
    {"rule": "cold_item", "valid_share": 0.2, "test_share": 0.2, "cold": "random", "seed": 3},
]
ROWS = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("stuvwxyz"), st.integers(0, 20)),
    min_size=20,
    max_size=60,
)


def source(tmp_path, text, items=None):
    (tmp_path / "log.csv").write_text(text)
    if items is not None:
        (tmp_path / "items.csv").write_text(items)
    return DataSettings(
        source=str(tmp_path / "log.csv"),
        items=str(tmp_path / "items.csv") if items is not None else None,
        user_core=1,
        item_core=1,
        time="number",
    )


LOG = "user_id,item_id,timestamp,rating,review\n" + "".join(
    f"{user},{item},{time},{rating},<b>r{time}</b> &amp; more\n"
    for user in "uvw"
    for time, (item, rating) in enumerate(zip("abcdea", (5, 4, 1, 5, 3, 2), strict=True))
)
ITEMS = "item_id,title,description\na,<i>Red</i>  lamp,x\nb,Blue &amp; old,\nc,,y\nd,D,z\ne,E,\nf,F,\n"


def test_filters_come_in_order_and_each_step_is_counted(tmp_path):
    s = source(tmp_path, LOG, ITEMS)
    changes = {"min_rating": 2, "since": 0.0, "until": 6.0, "repeats": "last", "user_core": 2, "item_core": 2}
    report = prepare(s.model_copy(update=changes), tmp_path / "out")
    steps = {step["step"]: step["interactions"] for step in report["steps"]}
    assert steps == {
        "read": 18,
        "rating >= 2": 15,
        "since 0, until 6": 15,
        "last of repeats": 12,
        "core (user >= 2, item >= 2)": 12,
    }
    assert InteractionLog.load(tmp_path / "out" / "interactions.parquet").histories()["u"] == list("bdea")
    assert report["num_repeats"] == 0
    assert report["parts"] == {"train": 6, "valid": 3, "test": 3}


def test_a_filter_that_leaves_nothing_says_which(tmp_path):
    s = source(tmp_path, LOG)
    with pytest.raises(
        DataError, match=r"No interaction is left after rating >= 6: before it .* 18 interactions"
    ):
        prepare(s.model_copy(update={"min_rating": 6}), tmp_path / "out")
    with pytest.raises(DataError, match="after core"):
        prepare(s.model_copy(update={"user_core": 7}), tmp_path / "out")
    plain = source(tmp_path, "user_id,item_id,timestamp\nu,a,1\n")
    with pytest.raises(DataError, match=r"has no ratings \(data\.columns\.rating\)"):
        prepare(plain.model_copy(update={"min_rating": 6}), tmp_path / "out")


def test_a_window_may_be_given_as_dates(tmp_path):
    text = "user_id,item_id,timestamp\n" + "".join(f"u,i{day},2014-05-{day:02}\n" for day in range(1, 11))
    s = source(tmp_path, text).model_copy(
        update={"time": "auto", "since": "2014-05-03", "until": "2014-05-07T00:00:00Z"}
    )
    report = prepare(s, tmp_path / "out")
    assert report["time"] == "iso"
    assert InteractionLog.load(tmp_path / "out" / "interactions.parquet").histories() == {
        "u": ["i3", "i4", "i5", "i6"]
    }
    with pytest.raises(DataError, match=r"data\.since='May' is no ISO time"):
        prepare(s.model_copy(update={"since": "May"}), tmp_path / "out")
    with pytest.raises(DataError, match="read as number: give a number"):
        prepare(source(tmp_path, LOG).model_copy(update={"since": "2014-05-03"}), tmp_path / "out")


def test_texts_are_cleaned_and_what_was_changed_is_counted(tmp_path):
    report = prepare(source(tmp_path, LOG, ITEMS), tmp_path / "out")
    items = ItemCatalog.load(tmp_path / "out" / "items.parquet")
    assert [items.title(item) for item in "abc"] == ["Red lamp", "Blue & old", "Item c"]
    assert report["cleaned"] == {"title": 2}
    assert report["log_cleaned"] == {"review": LOG.count("&amp;")}
    assert (report["num_catalogue_rows"], len(items), report["num_untitled_items"]) == (6, 5, 1)
    assert report["text_coverage"] == {"title": 4, "description": 3}
    assert pq.read_table(tmp_path / "out" / "interactions.parquet")["review"][0].as_py() == "r0 & more"
    raw = source(tmp_path, LOG, ITEMS).model_copy(update={"clean_text": False})
    prepare(raw, tmp_path / "out")
    assert ItemCatalog.load(tmp_path / "out" / "items.parquet").title("a") == "<i>Red</i>  lamp"


def test_bad_rows_of_log_and_catalogue_go_to_one_file_and_are_counted(tmp_path):
    s = source(tmp_path, LOG + "u,,9,1,\nv,a,9\n", ITEMS + "a,again,\n,none,\n")
    with pytest.raises(DataError, match=r"log\.csv line 20: item_id: is missing"):
        prepare(s, tmp_path / "out")
    report = prepare(s.model_copy(update={"on_bad_rows": "quarantine"}), tmp_path / "out")
    assert (report["num_quarantined"], report["num_quarantined_items"]) == (2, 2)
    entries = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(entry["file"].split("/")[-1], entry["line"]) for entry in entries] == [
        ("log.csv", 20),
        ("log.csv", 21),
        ("items.csv", 8),
        ("items.csv", 9),
    ]


def test_the_log_may_not_name_items_that_the_catalogue_lacks(tmp_path):
    with pytest.raises(DataError, match="names 1 items that the catalogue lacks, first: e"):
        prepare(source(tmp_path, LOG, "item_id,title\na,A\nb,B\nc,C\nd,D\n"), tmp_path / "out")


def test_a_prepared_set_is_refused_once_it_was_changed(tmp_path):
    prepare(source(tmp_path, LOG), tmp_path / "out")
    manifest = check_manifest(tmp_path / "out")
    assert manifest["source_files"][0]["name"] == "log.csv"
    assert manifest["parts"] == {"train": 12, "valid": 3, "test": 3}
    path = tmp_path / "out" / "interactions.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(DataError, match=r"interactions\.parquet in .* is not what manifest\.json says"):
        check_manifest(tmp_path / "out")
    with pytest.raises(DataError, match="is not what manifest"):
        prepare(DataSettings(source=str(tmp_path / "out")), tmp_path / "again")
    with pytest.raises(DataError, match="is no prepared data set"):
        check_manifest(tmp_path)


def test_a_prepared_set_prepared_again_is_itself(tmp_path):
    one = prepare(source(tmp_path, LOG, ITEMS), tmp_path / "one")
    again = DataSettings(source=str(tmp_path / "one"), user_core=1, item_core=1)
    two = prepare(again, tmp_path / "two")
    assert one["log_sha256"] == two["log_sha256"]
    assert _rows_of(tmp_path / "one").equals(_rows_of(tmp_path / "two"))


@pytest.mark.parametrize("rule", HELD_OUT_RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_a_split_in_memory_is_the_split_on_the_engine(rule, tmp_path):
    rng = np.random.default_rng(5)
    rows = [(f"u{rng.integers(12)}", f"i{rng.integers(30)}", int(rng.integers(60))) for _ in range(150)]
    text = "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows)
    s = source(tmp_path, text).model_copy(update={"split": SplitSettings(**rule)})
    in_memory = split_log(InteractionLog.from_rows(rows), s.split)
    report = prepare(s, tmp_path / "out")
    stored = read_split(InteractionLog.load(tmp_path / "out" / "interactions.parquet").table, s.split)
    assert stored.table.to_pylist() == in_memory.table.to_pylist()
    assert (stored.train, stored.valid, stored.test) == (in_memory.train, in_memory.valid, in_memory.test)
    assert (report["num_test_rows"], report["num_evaluated_users"]) == (
        len(stored.test),
        stored.test.num_users,
    )
    assert report["num_short_users"] == stored.num_short
    assert sum(report["parts"].values()) == len(rows)


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 5))
def test_users_held_out_are_in_training_nowhere(rows, seed):
    try:
        split = split_log(
            InteractionLog.from_rows(rows),
            SplitSettings(rule="user_disjoint", valid_share=0.3, test_share=0.3, seed=seed),
        )
    except DataError:
        return
    groups = [set(split.train), set(split.valid.user_ids), set(split.test.user_ids)]
    assert sum(map(len, groups)) == len(set.union(*groups))
    histories = InteractionLog.from_rows(rows).histories()
    for user, history, target in zip(
        split.test.user_ids, split.test.histories, split.test.targets, strict=True
    ):
        assert history + target == histories[user]


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, cold=st.sampled_from(["newest", "random"]))
def test_items_held_out_are_in_training_nowhere_nor_what_their_users_did_later(rows, cold):
    try:
        split = split_log(
            InteractionLog.from_rows(rows),
            SplitSettings(rule="cold_item", valid_share=0.3, test_share=0.2, cold=cold),
        )
    except DataError:
        return
    trained = {item for items in split.train.values() for item in items}
    asked = [{item for target in held.targets for item in target} for held in (split.valid, split.test)]
    assert not trained & set.union(*asked)
    assert not asked[0] & asked[1]
    histories = InteractionLog.from_rows(rows).histories()
    for user, items in split.train.items():
        assert histories[user][: len(items)] == items
    for held in (split.valid, split.test):
        for user, history, (target,) in zip(held.user_ids, held.histories, held.targets, strict=True):
            assert len(split.train.get(user, [])) <= len(history)
            assert histories[user][: len(history) + 1] == [*history, target]


def test_sliding_windows_are_cut_by_their_number_as_minionerec_does():
    rows = [(user, f"{user}{n}", n // 2) for n in range(6) for user in "uv"]
    split = split_log(
        InteractionLog.from_rows(rows),
        SplitSettings(rule="sliding_windows", valid_share=0.2, test_share=0.2),
    )
    # Ten windows in time order, ties in the order of the source: 6, 2 and 2 of them.
    assert {user: len(items) for user, items in split.train.items()} == {"u": 4, "v": 4}
    assert split.valid.targets == [["u4"], ["v4"]]
    assert split.test.targets == [["u5"], ["v5"]]


def _rows_of(folder):
    return pq.read_table(folder / "interactions.parquet")


def test_the_weight_of_the_tie_rule_is_counted(tmp_path):
    times = {"u": "1233", "v": "1222", "w": "1234"}
    items = {"u": "abcd", "v": "abcd", "w": "abcd"}
    text = "user_id,item_id,timestamp\n" + "".join(
        f"{user},{item},{time}\n"
        for user in times
        for item, time in zip(items[user], times[user], strict=True)
    )
    report = prepare(source(tmp_path, text), tmp_path / "out")
    # u ends with one of two, v with one of three, w with one.
    assert (report["num_users_last_tied"], report["num_users_last_by_chance"]) == (2, 1.2)


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the development data sets are not at {DATA}")
def test_ties_in_random_order_would_change_the_test_item_of_29_percent_of_beauty(tmp_path):
    report = prepare(DataSettings(source=str(DATA / "beauty")), tmp_path / "out")
    assert report["num_users_last_by_chance"] / report["kept"]["users"] == pytest.approx(0.29, abs=0.005)
    assert report["num_users_last_tied"] / report["kept"]["users"] == pytest.approx(0.4346, abs=1e-4)


needs_spark = [
    pytest.mark.spark,
    pytest.mark.data,
    pytest.mark.skipif(not shutil.which("java"), reason="Spark needs Java, and there is no java on the path"),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the development data sets are not at {DATA}"),
]
REVIEWS = DataSettings(
    source=str(DATA / "musical-reviews" / "interactions.parquet"),
    user_core=3,
    item_core=3,
    min_rating=2,
    repeats="first",
    since="2009-01-01",
    split=SplitSettings(rule="cold_item", cold="random", seed=1),
)
CORES = DataSettings(source=str(DATA / "beauty"), user_core=6, item_core=6)


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(REVIEWS, id="reviews", marks=needs_spark),
        pytest.param(CORES, id="beauty", marks=[*needs_spark, pytest.mark.slow]),
    ],
)
def test_spark_prepares_the_rows_that_duckdb_prepares(asked, tmp_path):
    pytest.importorskip("pyspark", reason="Spark is an extra: pip install 'genrec[spark]'")
    reports = []
    for name in ("duckdb", "spark"):
        engine = asked.engine.model_copy(update={"name": name, "threads": 2, "memory_gb": 2})
        reports.append(
            prepare(asked.model_copy(update={"engine": engine}), tmp_path / name) | {"engine": None}
        )
    assert reports[0] == reports[1]
    one, two = (_rows_of(tmp_path / name) for name in ("duckdb", "spark"))
    assert one.to_pylist() == two.to_pylist()
