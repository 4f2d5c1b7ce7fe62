import pytest

from genrec.core.errors import DataError
from genrec.data_prep import InteractionLog, load_dataset
from genrec.data_prep.engine import memory_engine

from planted import DATA


def test_a_folder_with_log_and_catalogue(tmp_path, log, items):
    log.write(tmp_path / "interactions.parquet")
    items.write(tmp_path / "items.parquet")
    read_log, read_items = load_dataset(str(tmp_path))
    assert read_log.table.equals(log.table)
    assert read_items.item_ids == items.item_ids


def test_a_log_file_alone_brings_an_untitled_catalogue(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,x,1\n")
    _, items = load_dataset(str(tmp_path / "log.csv"), time="number")
    assert items.title("x") == "Item x"


def test_a_log_read_knows_its_times_and_leaves_nothing_in_the_engine(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\nu,x,1400000000\n")
    before = memory_engine().con.raw_sql("SHOW TABLES").fetchall()
    log, _ = load_dataset(str(path))
    assert (log.time, InteractionLog.read(path).time) == ("s", "s")
    assert memory_engine().con.raw_sql("SHOW TABLES").fetchall() == before


def test_what_cannot_be_read_leaves_nothing_in_the_engine_either(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\nu,,1400000000\n")
    before = memory_engine().con.raw_sql("SHOW TABLES").fetchall()
    for read in (load_dataset, InteractionLog.read):
        with pytest.raises(DataError, match="item_id: is missing"):
            read(str(path))
    assert memory_engine().con.raw_sql("SHOW TABLES").fetchall() == before


def test_an_unknown_source_names_the_nearest_set():
    with pytest.raises(DataError, match="Did you mean 'movielens-100k'"):
        load_dataset("movielens100k")


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no interactions\.parquet"):
        load_dataset(str(tmp_path))


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the development data sets are not at {DATA}")
@pytest.mark.parametrize(
    ("name", "users", "items", "interactions"),
    [
        ("beauty", 22_363, 12_101, 198_502),
        ("ml-100k", 943, 1_682, 100_000),
        ("games", 50_546, 16_859, 452_989),
    ],
)
def test_real_sets_have_their_published_sizes(name, users, items, interactions):
    columns = {"timestamp": "order"} if name == "games" else None
    log, catalog = load_dataset(str(DATA / name), columns=columns, time="number" if columns else "auto")
    assert (log.num_users, len(catalog), len(log)) == (users, items, interactions)
    core = log.k_core(5, 5) if name == "beauty" else log
    assert len(core) == interactions


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the development data sets are not at {DATA}")
def test_ties_keep_beautys_own_order():
    log, _ = load_dataset(str(DATA / "beauty"))
    users, order = log.table["user_id"].to_pylist(), log.table["order"].to_pylist()
    assert all(b == a + 1 for u, v, a, b in zip(users, users[1:], order, order[1:], strict=False) if u == v)
    assert log.num_ties > 0.3 * len(log)
