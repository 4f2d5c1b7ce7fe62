"""The Hub, databases and how a source is asked for."""

import sqlite3

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrec.core.errors import DataError
from genrec.data_prep import load_dataset
from genrec.data_prep.prepare import prepare
from genrec.data_prep.settings import DataSettings
from genrec.data_prep.sources import database_table, find_reading, hub_table

ROWS = [("u", "a", 1400000000, 4.5), ("u", "b", 1400000001, 3), ("u", "a", 1400000002, None)]


@pytest.fixture
def sqlite(tmp_path):
    file = tmp_path / "shop's log.db"
    with sqlite3.connect(file) as con:
        con.execute("CREATE TABLE purchases (who TEXT, item_id, timestamp INTEGER, rating REAL)")
        con.executemany("INSERT INTO purchases VALUES (?, ?, ?, ?)", ROWS)
        con.execute("CREATE TABLE goods (item_id, title TEXT)")
        con.executemany("INSERT INTO goods VALUES (?, ?)", [("a", "Lamp"), ("b", None), (7, "Unsold")])
    con.close()
    return f"sqlite:///{file}"


def test_a_query_of_sqlite_gives_log_and_catalogue(tmp_path, sqlite):
    settings = DataSettings(
        source=sqlite,
        query="SELECT who AS user_id, item_id, timestamp, rating FROM purchases ORDER BY timestamp;",
        items="goods",
        user_core=1,
        item_core=1,
    )
    report = prepare(settings, tmp_path / "out")
    assert report["read"] == {"interactions": 3, "users": 1, "items": 2}
    log = pq.read_table(tmp_path / "out" / "interactions.parquet").to_pylist()
    assert [(r["user_id"], r["item_id"], r["timestamp"], r["rating"]) for r in log] == ROWS
    items = pq.read_table(tmp_path / "out" / "items.parquet")
    assert items["title"].to_pylist() == ["Lamp", "Item b"]
    assert (
        pq.read_table(tmp_path / "out" / "interactions.parquet").schema.field("rating").type == pa.float64()
    )


def test_values_of_sqlite_keep_their_kind_and_mixed_ones_are_text(tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as con:
        con.execute('CREATE TABLE t (whole, number, mixed, empty, "a ""name")')
        con.executemany("INSERT INTO t VALUES (?, ?, ?, NULL, ?)", [(1, 1, 1, "x"), (2**60, 0.5, "one", "y")])
    con.close()
    table = pq.read_table(database_table(f"sqlite:///{tmp_path}/a.db", "t", tmp_path, "log").files[0])
    assert table.to_pylist() == [
        {"whole": 1, "number": 1.0, "mixed": "1", "empty": None, 'a "name': "x"},
        {"whole": 2**60, "number": 0.5, "mixed": "one", "empty": None, 'a "name': "y"},
    ]


def test_rows_keep_the_order_of_the_answer(tmp_path, sqlite):
    query = "SELECT * FROM purchases ORDER BY timestamp DESC"
    with duckdb.connect(str(tmp_path / "a.duckdb")) as con:
        con.execute("CREATE TABLE purchases AS SELECT range AS timestamp FROM range(1400000000, 1400000003)")
    for address in (sqlite, f"duckdb:///{tmp_path}/a.duckdb"):
        table = pq.read_table(database_table(address, query, tmp_path, "log").files[0])
        assert table["timestamp"].to_pylist() == [1400000002, 1400000001, 1400000000]


def test_a_large_answer_comes_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("genrec.data_prep.sources.BATCH", 1000)
    with sqlite3.connect(tmp_path / "a.db") as con:
        con.execute(
            "CREATE TABLE t AS WITH RECURSIVE n(i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM n LIMIT 2500) SELECT i FROM n"
        )
    con.close()
    file = pq.ParquetFile(database_table(f"sqlite:///{tmp_path}/a.db", "t", tmp_path, "log").files[0])
    assert file.num_row_groups == 3
    assert file.read()["i"].to_pylist() == list(range(2500))


def test_a_file_of_duckdb_is_read_and_stays_as_it_is(tmp_path):
    file = tmp_path / "log.duckdb"
    with duckdb.connect(str(file)) as con:
        con.execute("CREATE TABLE log (user_id TEXT, item_id TEXT, timestamp TIMESTAMP)")
        con.execute(
            "INSERT INTO log VALUES ('u', 'a', '2014-05-13 16:53:20'), ('u', 'b', '2014-05-13 16:53:21.5')"
        )
    before = file.read_bytes()
    reading = find_reading(f"duckdb:///{file}", tmp_path, query="log")
    assert str(reading.log) == f"duckdb:///{file} (log)"
    assert reading.log.files[0].parent == tmp_path
    assert pq.read_table(reading.log.files[0]).num_rows == 2
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (None, r"say what it is asked with data\.query"),
        ("purchase", r"there is no table 'purchase'; it has purchases, goods\. Did you mean 'purchases'"),
        ("SELECT colour FROM purchases", "no such column: colour"),
        ("DELETE FROM purchases", "did not answer 'DELETE FROM purchases'"),
    ],
)
def test_a_wrong_query_says_what_the_database_says(tmp_path, sqlite, query, said):
    with pytest.raises(DataError, match=said):
        find_reading(sqlite, tmp_path, query=query)


def test_a_wrong_table_of_duckdb_is_a_data_error(tmp_path):
    duckdb.connect(str(tmp_path / "a.duckdb")).close()
    with pytest.raises(DataError, match="did not answer 'log': CatalogException"):
        database_table(f"duckdb:///{tmp_path}/a.duckdb", "log", tmp_path, "log")


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_a_missing_file_is_not_made(tmp_path, kind):
    with pytest.raises(DataError, match=r"there is no file .*none\.db.*absolute one begins with a fourth"):
        find_reading(f"{kind}:///{tmp_path}/none.db", tmp_path, query="log")
    assert not (tmp_path / "none.db").exists()


def test_an_unknown_address_names_what_is_known_and_hides_the_password(tmp_path):
    with pytest.raises(DataError, match="data.source is sqlite:///FILE, duckdb:///FILE or another") as error:
        find_reading("oracel://me:secret@host/db", tmp_path, query="log")
    assert "secret" not in str(error.value)
    assert "oracel://host/db" in str(error.value)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder as ``datasets`` reads it, with a cache of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    log = pa.table({"user_id": ["u", "u"], "item_id": ["b", "a"], "timestamp": [1400000001, 1400000000]})
    pq.write_table(log, folder / "train-0.parquet")
    (folder / "test.csv").write_text("user_id,item_id,timestamp\nv,c,1400000002\n")
    return folder


def test_a_data_set_that_datasets_reads_is_a_source(tmp_path, hub):
    (hub / "test.csv").unlink()
    log, items = load_dataset(f"hub:{hub}")
    assert log.histories() == {"u": ["a", "b"]}
    assert items.item_ids == ["a", "b"]
    assert find_reading(f"hub:{hub}::train", tmp_path).format == "Hub data set"


def test_another_split_of_a_data_set(tmp_path, hub):
    (hub / "train-0.parquet").unlink()
    (hub / "train.csv").write_text("user_id,item_id,timestamp\nu,a,1400000000\n")
    table = pq.read_table(hub_table(f"{hub}::test", tmp_path / "scratch").files[0])
    assert table["user_id"].to_pylist() == ["v"]
    with pytest.raises(
        DataError, match=r"split dev\) could not be read.*data\.source=hub:ORG/NAME:CONFIG:SPLIT"
    ):
        hub_table(f"{hub}::dev", tmp_path / "scratch")


def test_a_hub_name_that_cannot_be_had_is_a_data_error(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="'nobody/nothing-here'.*could not be read"):
        find_reading("hub:nobody/nothing-here", tmp_path)
