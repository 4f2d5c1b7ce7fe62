import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from genrec.core.errors import IndexingError, RunError, UnknownItemError
from genrec.indexing import ItemIndex

from planted import DATA


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


def test_tokens_of_items_that_left_keep_their_level_whatever_their_spelling(tmp_path):
    index = ItemIndex("mine", {"x": ("red",), "y": ("blue", "lamp")}).remove(["y"])
    assert index.tokens == ["blue", "red", "lamp"]
    assert index.token_levels == [0, 0, 1]
    index.save(tmp_path)
    loaded = ItemIndex.load(tmp_path)
    assert (loaded.tokens, loaded.token_levels) == (index.tokens, index.token_levels)


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


PUBLISHED = {
    "7": ["<a_1>", "<b_2>"],
    "8": ["<a_1>", "<b_3>"],
    "9": ["<a_1>", "<b_2>"],
    "10": ["<a_2>", "<b_2>"],
}


def test_a_published_index_is_read_with_its_collisions(tmp_path):
    path = tmp_path / "Games.index.json"
    path.write_text(json.dumps(PUBLISHED))
    index = ItemIndex.read(path)
    assert index.method == "published:Games"
    assert index.items(["<a_1>", "<b_2>"]) == ["7", "9"]
    assert index.item(["<a_1>", "<b_2>"]) == "7"
    assert index.report["collision_rate"] == index.report["collision_rate_before"] == 0.25
    assert index.report["num_codes_shared"] == 1
    index.save(tmp_path / "saved")
    assert ItemIndex.load(tmp_path / "saved").items(["<a_1>", "<b_2>"]) == ["7", "9"]
    apart = ItemIndex.read(path, collisions="suffix")
    assert apart.codes["9"] == ("<a_1>", "<b_2>", "<c_#1>")
    assert apart.report["collision_rate"] == 0
    assert apart.report["num_items_touched"] == 1


def test_tokens_at_several_levels_are_written_with_their_level(tmp_path):
    path = tmp_path / "text.json"
    path.write_text(json.dumps({"1": ["red", "lamp"], "2": ["lamp", "red"]}))
    assert ItemIndex.read(path).codes == {"1": ("<a_red>", "<b_lamp>"), "2": ("<a_lamp>", "<b_red>")}
    path.write_text(json.dumps({"1": ["red"], "2": ["red", "lamp"]}))
    with pytest.raises(IndexingError, match=r"prefix-free.*Read it with collisions='suffix'"):
        ItemIndex.read(path)
    assert len(set(ItemIndex.read(path, "suffix").codes.values())) == 2


@pytest.mark.parametrize("content", ["[]", '{"1": "<a_1>"}', '{"1": []}', '{"1": [1]}'])
def test_what_is_no_index_is_refused(content, tmp_path):
    path = tmp_path / "x.index.json"
    path.write_text(content)
    with pytest.raises(IndexingError, match="must map item ids to lists of tokens"):
        ItemIndex.read(path)
    path.write_text(json.dumps(PUBLISHED))
    with pytest.raises(IndexingError, match="'allow' or 'suffix', got 'next_free'"):
        ItemIndex.read(path, "next_free")


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the development data sets are not at {DATA}")
@pytest.mark.parametrize(
    ("name", "source", "items", "colliding"),
    [
        ("beauty", "LETTER", 12_101, 13),
        ("instruments", "LETTER", 9_922, 25),
        ("yelp", "LETTER", 20_033, 832),
        ("office-minionerec", "MiniOneRec", 3_459, 15),
        ("games", "LC-Rec style 4-level index (WncFht/GenRec data/Games/Games.index.json)", 16_859, 142),
    ],
)
def test_the_indices_of_others_open_and_say_what_they_share(name, source, items, colliding, tmp_path):
    rows = [
        row
        for row in pq.read_table(DATA / name / "published_codes.parquet").to_pylist()
        if row["source"] == source
    ]
    path = tmp_path / f"{name}.index.json"
    path.write_text(json.dumps({row["item_id"]: row["codes"] for row in rows}))
    index = ItemIndex.read(path)
    assert len(index.codes) == items
    assert round(index.report["collision_rate"] * items) == colliding
    assert ItemIndex.read(path, "suffix").report["collision_rate"] == 0


def test_an_index_loads_in_a_process_of_its_own(tmp_path):
    index = ItemIndex("mine", {"x": ("<a_1>",), "y": ("<a_2>",)})
    index.save(tmp_path)
    code = f"from genrec.indexing import ItemIndex; print(ItemIndex.load({str(tmp_path)!r}).hash)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == index.hash
