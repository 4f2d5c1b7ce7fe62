import pyarrow.parquet as pq
import pytest

from genrec.core.errors import IndexingError, RunError, UnknownItemError
from genrec.indexing import ItemIndex


def test_two_items_may_not_share_a_code():
    with pytest.raises(IndexingError, match="1 items share a code.*x, y are all <a_1><b_1>"):
        ItemIndex("mine", {"x": ("<a_1>", "<b_1>"), "y": ("<a_1>", "<b_1>")})


def test_a_code_may_not_begin_another():
    with pytest.raises(IndexingError, match="prefix-free"):
        ItemIndex("mine", {"x": ("<a_1>",), "y": ("<a_1>", "<b_1>")})


def test_a_token_belongs_to_one_level():
    with pytest.raises(IndexingError, match="two levels"):
        ItemIndex("mine", {"x": ("<a_1>", "<a_1>")})


def test_codes_of_unequal_length_are_allowed():
    index = ItemIndex("mine", {"x": ("<a_1>",), "y": ("<a_2>", "<b_10>"), "z": ("<a_2>", "<b_9>")})
    assert index.tokens == ["<a_1>", "<a_2>", "<b_9>", "<b_10>"]
    assert index.token_levels == [0, 0, 1, 1]
    assert index.item(["<a_2>", "<b_9>"]) == "z"
    assert index.item(["<a_2>"]) is None


def test_an_unknown_item_is_named():
    with pytest.raises(UnknownItemError, match="'q' is not in the index"):
        ItemIndex("mine", {"x": ("<a_1>",)}).code("q")


def test_a_changed_or_missing_file_is_refused(tmp_path):
    ItemIndex("mine", {"x": ("<a_1>",), "y": ("<a_2>",)}).save(tmp_path)
    table = pq.read_table(tmp_path / "index.parquet")
    pq.write_table(table.slice(0, 1), tmp_path / "index.parquet")
    with pytest.raises(RunError, match="does not have the hash"):
        ItemIndex.load(tmp_path)
    (tmp_path / "index.parquet").write_bytes(b"cut")
    with pytest.raises(RunError, match="cannot be read"):
        ItemIndex.load(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        ItemIndex.load(tmp_path / "nowhere")
