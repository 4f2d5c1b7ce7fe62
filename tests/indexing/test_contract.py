"""What every indexing method promises. A new one joins with its row in ``INDEXERS``."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.core.errors import RecipeError
from genrec.data_prep import InteractionLog, ItemCatalog, leave_one_out
from genrec.indexing import INDEXERS, IndexSettings, ItemIndex, build_index

from planted import NUM_PLANTED, planted_catalog, planted_log

SMALL = IndexSettings(levels=2, codebook_size=8, vector_size=8)

methods = pytest.mark.parametrize("method", INDEXERS)


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
    loaded = ItemIndex.load(tmp_path)
    assert loaded.codes == index.codes
    assert loaded.report == index.report


@methods
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_held_out_interactions_change_no_code(method, data):
    log, items = planted_log(), planted_catalog()
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
@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_catalogues_work(method, size):
    items = ItemCatalog.from_titles({f"i{n}": None for n in range(size)})
    index = build_index(method, items, {"u": items.item_ids}, SMALL)
    assert len(set(index.codes.values())) == size


@methods
def test_items_nobody_took_and_items_of_one_title_get_codes(method):
    items = ItemCatalog.from_titles({f"i{n}": "Same title" for n in range(12)})
    settings = IndexSettings(levels=2, codebook_size=16, vector_size=4)
    index = build_index(method, items, {"u": ["i0", "i1"]}, settings)
    assert len(set(index.codes.values())) == 12


def test_an_unknown_method_is_named_with_the_nearest(items):
    with pytest.raises(RecipeError, match="'rq_kmean'.*Did you mean 'rq_kmeans'"):
        build_index("rq_kmean", items, {})
