"""What every indexing method promises. A new one joins with its row in ``INDEXERS``."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.core.errors import IndexingError, RecipeError, UnknownItemError
from genrec.data_prep import InteractionLog, ItemCatalog, leave_one_out
from genrec.indexing import INDEXERS, ItemIndex, build_index

from planted import NUM_PLANTED, planted_catalog, planted_log
from planted import SMALL_INDEX as SMALL

methods = pytest.mark.parametrize("method", INDEXERS)


def catalog(titles: dict[str, str | None]) -> ItemCatalog:
    """A catalogue in which a title's last word is the category, below a common top."""
    paths = [["Things", *(title or "").split()[-1:]] for title in titles.values()]
    table = ItemCatalog.from_titles(titles).table
    return ItemCatalog(table.append_column("categories", pa.array(paths, pa.list_(pa.string()))))


@pytest.fixture(scope="module")
def items() -> ItemCatalog:
    planted = planted_catalog()
    return catalog({item: planted.title(item) for item in planted.item_ids})


NEW = {"n1": "red lamp", "n2": "purple radio", "n3": "quiet unheard harp"}


@methods
def test_every_item_gets_a_code_of_its_own(method, log, items):
    index = build_index(method, items, leave_one_out(log).train, SMALL)
    assert index.item_ids == items.item_ids
    assert len(set(index.codes.values())) == NUM_PLANTED
    assert all(index.item(index.code(item)) == item for item in items.item_ids)
    assert index.report["collision_rate"] == 0


@methods
def test_the_same_input_gives_the_same_index(method, log, items):
    train = leave_one_out(log).train
    one, two = (build_index(method, items, train, SMALL) for _ in range(2))
    assert one.codes == two.codes
    assert one.hash == two.hash


@methods
def test_a_saved_index_is_the_index_loaded(method, log, items, tmp_path):
    index = build_index(method, items, leave_one_out(log).train, SMALL)
    index.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "index.json", "index.parquet"]
    loaded = ItemIndex.load(tmp_path)
    assert loaded.codes == index.codes
    assert loaded.tokens == index.tokens
    assert loaded.report == index.report
    assert loaded.settings == index.settings
    assert loaded.extend(catalog(NEW)).codes == index.extend(catalog(NEW)).codes


@methods
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_held_out_interactions_change_no_code(method, data):
    log = planted_log()
    planted = planted_catalog()
    items = catalog({item: planted.title(item) for item in planted.item_ids})
    rows = [
        (user, item, time)
        for user, history in log.histories().items()
        for time, item in enumerate(history[:-2])
    ]
    last = max(time for _, _, time in rows)
    other = [
        (user, data.draw(st.sampled_from(items.item_ids)), last + step)
        for user in log.histories()
        for step in (1, 2)
    ]
    one = build_index(method, items, leave_one_out(log).train, SMALL)
    two = build_index(method, items, leave_one_out(InteractionLog.from_rows(rows + other)).train, SMALL)
    assert one.codes == two.codes


@methods
@settings(max_examples=10, deadline=None)
@given(parts=st.integers(1, 3), late=st.lists(st.sampled_from(["red lamp", "odd", "blue chair"]), max_size=9))
def test_new_items_get_codes_and_no_old_code_changes(method, parts, late):
    planted = planted_catalog()
    items = catalog({item: planted.title(item) for item in planted.item_ids})
    whole = SMALL.model_copy(update={"levels": 3})
    index = start = build_index(method, items, leave_one_out(planted_log()).train, whole)
    titles = dict(NEW) | {f"late{n}": title for n, title in enumerate(late)}
    for part in range(parts):
        new = {item: title for n, (item, title) in enumerate(titles.items()) if n % parts == part}
        index = index.extend(catalog(new)) if new else index
    assert {item: index.codes[item] for item in start.codes} == start.codes
    assert set(index.codes) == set(start.codes) | set(titles)
    assert len(set(index.codes.values())) == len(index.codes)
    assert index.tokens[: len(start.tokens)] == start.tokens
    assert index.report["num_extended"] == len(titles)
    assert index.report["num_new_tokens"] == len(index.tokens) - len(start.tokens)


@methods
def test_removed_items_leave_the_trie_and_may_come_back(method, log, items, tmp_path):
    index = build_index(method, items, leave_one_out(log).train, SMALL)
    gone = ["i3", "i7", "i20"]
    less = index.remove(gone)
    assert less.trie_of_tokens.num_items == NUM_PLANTED - 3
    assert [less.item(index.code(item)) for item in gone] == [None] * 3
    assert less.tokens == index.tokens
    less.save(tmp_path)
    loaded = ItemIndex.load(tmp_path)
    assert loaded.tokens == index.tokens
    assert loaded.codes == less.codes
    planted = planted_catalog()
    back = less.extend(catalog({item: planted.title(item) for item in gone}))
    assert set(back.codes) == set(index.codes)
    assert len(set(back.codes.values())) == NUM_PLANTED
    with pytest.raises(UnknownItemError, match="'i3' is not in the index"):
        less.remove(["i3"])


def test_an_item_that_is_there_is_not_new(log, items):
    index = build_index("random", items, leave_one_out(log).train, SMALL)
    with pytest.raises(IndexingError, match="1 of the 2 new items are in the index already, first 'i3'"):
        index.extend(ItemCatalog.from_titles({"i3": "x", "new": "y"}))


def test_an_index_of_others_says_that_it_cannot_be_extended(items):
    with pytest.raises(IndexingError, match="made by 'mine', which genrec cannot ask"):
        ItemIndex("mine", {"x": ("<a_1>",)}).extend(items)


@methods
@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_catalogues_work(method, size):
    items = catalog({f"i{n}": None if n else "red lamp" for n in range(size)})
    index = build_index(method, items, {"u": items.item_ids}, SMALL)
    assert len(set(index.codes.values())) == size


@methods
def test_items_nobody_took_and_items_of_one_title_get_codes(method):
    items = catalog({f"i{n}": "Same title" for n in range(12)})
    settings = SMALL.model_copy(update={"codebook_size": 16})
    for train in ({}, {"u": ["i0", "i1"]}):
        index = build_index(method, items, train, settings)
        assert len(set(index.codes.values())) == 12


def test_an_unknown_method_is_named_with_the_nearest(items):
    with pytest.raises(RecipeError, match="'rq_kmean'.*Did you mean 'rq_kmeans'"):
        build_index("rq_kmean", items, {})
