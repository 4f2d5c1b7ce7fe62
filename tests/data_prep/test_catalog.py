import pyarrow as pa
import pytest

from genrec.core.errors import DataError, UnknownItemError
from genrec.data_prep import InteractionLog, ItemCatalog


def test_items_without_text_are_called_by_their_id_and_counted():
    items = ItemCatalog.from_titles({"7": None, "8": "  ", "9": "Heat "})
    assert [items.title(i) for i in ("7", "8", "9")] == ["Item 7", "Item 8", "Heat"]
    assert items.num_untitled == 2


def test_a_catalogue_without_titles_is_usable():
    items = ItemCatalog.from_table(pa.table({"item_id": [3, 4]}))
    assert items.texts() == ["Item 3", "Item 4"]


def test_shared_titles_are_counted_and_items_stay_apart():
    items = ItemCatalog.from_titles({"a": "Emma", "b": "Emma", "c": "Heat"})
    assert items.num_shared_titles == 2
    assert len(items) == 3


def test_an_item_with_two_rows_is_refused():
    with pytest.raises(DataError, match="row 3: item_id: 'a' already stands in row 1"):
        ItemCatalog.from_table(pa.table({"item_id": ["a", "b", "a"]}))


def test_an_unknown_item_is_named_with_the_nearest():
    with pytest.raises(UnknownItemError, match="'item12'.*Did you mean 'item1'"):
        ItemCatalog.from_titles({"item1": "x", "thing": "y"}).title("item12")


def test_texts_join_title_categories_and_brand():
    table = pa.table(
        {"item_id": ["a"], "title": ["Lamp"], "categories": [["Home", "Light"]], "brand": ["Lux"]}
    )
    assert ItemCatalog.from_table(table).texts() == ["Lamp Home Light Lux"]


def test_restriction_keeps_the_logs_items_and_refuses_unknown_ones():
    items = ItemCatalog.from_titles({"c": "C", "a": "A", "b": "B"})
    log = InteractionLog.from_rows([("u", "a", 1), ("u", "c", 2)])
    assert items.restrict_to_log(log).item_ids == ["c", "a"]
    with pytest.raises(DataError, match="names 1 items that the catalogue lacks, first: z"):
        items.restrict_to_log(InteractionLog.from_rows([("u", "z", 1)]))


def test_a_log_without_catalogue_gets_one():
    items = ItemCatalog.from_log(InteractionLog.from_rows([("u", "b", 1), ("u", "a", 2)]))
    assert items.item_ids == ["a", "b"]
    assert items.num_untitled == 2


def test_untitled_items_are_counted_after_writing_and_choosing_too(tmp_path):
    items = ItemCatalog.from_titles({"3": None, "4": " ", "5": "Lamp"})
    items.write(tmp_path / "items.parquet")
    assert ItemCatalog.load(tmp_path / "items.parquet").num_untitled == 2
    assert items.select(["3", "5"]).num_untitled == 1
    assert items.append(ItemCatalog.from_titles({"6": None})).num_untitled == 3


def test_lists_without_texts_are_lists_of_texts():
    bare = ItemCatalog.from_table(pa.table({"item_id": ["b"], "title": ["y"], "categories": [[]]}))
    assert bare.texts() == ["y"]
    listed = ItemCatalog.from_table(pa.table({"item_id": ["c"], "title": ["z"], "categories": [["k"]]}))
    assert listed.append(bare).texts() == ["z k", "y"]


def test_catalogues_whose_columns_differ_are_refused_unless_one_has_nothing_there():
    listed = ItemCatalog.from_table(pa.table({"item_id": ["c"], "title": ["z"], "categories": [["k"]]}))
    for wrong in (["text"], [3]):
        other = ItemCatalog.from_table(pa.table({"item_id": ["b"], "title": ["y"], "categories": wrong}))
        with pytest.raises(DataError, match="do not fit together"):
            listed.append(other)
    nothing = ItemCatalog.from_table(
        pa.table({"item_id": ["b"], "title": ["y"], "categories": pa.array([None])})
    )
    assert listed.append(nothing).texts() == ["z k", "y"]
