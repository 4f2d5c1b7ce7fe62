import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from genrec.core.page import write_svg
from genrec.data_prep import ItemCatalog
from genrec.decoding.beam import BeamLevel
from genrec.decoding.explain import TREE_STYLE, beam_tree, probability, tree_svg, tree_text
from genrec.indexing import ItemIndex

CODES = {
    "a": ("<a_0>",),
    "b": ("<a_1>", "<b_0>"),
    "c": ("<a_1>", "<b_1>"),
    "d": ("<a_2>", "<b_0>", "<c_0>"),
    "e": ("<a_2>", "<b_0>", "<c_1>"),
    "f": ("<a_2>", "<b_2>", "<c_1>"),
    "g": ("<a_2>", "<b_2>", "<c_2>"),
    "h": ("<a_3>", "<b_1>"),
}
TITLES = {item: f"The {item} <&>" for item in CODES}


@pytest.fixture
def index():
    return ItemIndex("mine", CODES)


def level(index, *beams):
    """A level of one prompt: ``(code, probability, parent)`` of each beam; None is no beam."""
    ids = {token: number for number, token in enumerate(index.tokens)}
    trie = index.trie_of_tokens
    nodes = [0 if b is None else trie.find([ids[f"<{t}>"] for t in b[0].split()]) for b in beams]
    scores = [-math.inf if b is None else math.log(b[1]) for b in beams]
    return BeamLevel(
        nodes=np.array([[0] * len(beams), nodes]),
        scores=np.array([[-math.inf] * len(beams), scores]),
        parents=np.array([[0] * len(beams), [0 if b is None else b[2] for b in beams]]),
    )


def searched(index, carried):
    """A search of three beams; an item that is finished may be carried along, or not."""
    levels = [
        level(index, ("a_2", 0.5, 0), ("a_1", 0.25, 0), ("a_0", 0.125, 0)),
        level(index, ("a_2 b_2", 0.25, 0), ("a_1 b_1", 0.2, 1), ("a_0", 0.125, 2) if carried else None),
        level(index, ("a_2 b_2 c_2", 0.25, 0), ("a_1 b_1", 0.2, 1) if carried else None, None),
    ]
    ranking = [("g", math.log(0.25)), ("c", math.log(0.2))]
    items = ItemCatalog.from_titles(TITLES)
    return beam_tree(levels, index, items, ranking, left_out={"f", "h"}, row=1)


@pytest.mark.parametrize("carried", [False, True])
def test_the_tree_has_what_was_kept(index, carried):
    tree = searched(index, carried)
    assert [(level.kept, level.prefixes) for level in tree.levels] == [(3, 3), (2, 4), (1, 3)]
    assert [level.share for level in tree.levels] == pytest.approx([0.875, 0.45, 0.25])
    two, one, zero = tree.branches
    assert [b.code for b in tree.branches] == [("<a_2>",), ("<a_1>",), ("<a_0>",)]
    # f is left out, so that three items are below, that of the list first.
    assert (two.num_items, two.titles, two.complete) == (3, ("The g <&>", "The d <&>", "The e <&>"), False)
    (kept,) = two.branches
    (end,) = kept.branches
    assert (end.code, end.complete, end.places, end.branches) == (CODES["g"], True, (1,), ())
    (c,) = one.branches
    assert (c.places, math.exp(c.score)) == ((2,), pytest.approx(0.2))
    assert (zero.complete, zero.places, zero.branches) == (True, (), ())


def test_as_text(index):
    assert tree_text(searched(index, False)).splitlines() == [
        "Level 1: 3 of 3 prefixes kept, which have 87.5% of the probability.",
        "Level 2: 2 of 4 prefixes kept, which have 45.0% of the probability.",
        "Level 3: 1 of 3 prefixes kept, which have 25.0% of the probability.",
        "├─ <a_2>  p 0.5000  3 items: The g <&>; The d <&>; The e <&>",
        "│  └─ <b_2>  p 0.2500  1 item: The g <&>",
        "│     └─ <c_2>  p 0.2500  1. The g <&>",
        "├─ <a_1>  p 0.2500  2 items: The c <&>; The b <&>",
        "│  └─ <b_1>  p 0.2000  2. The c <&>",
        "└─ <a_0>  p 0.1250  not in the list: The a <&>",
    ]


def test_what_was_dropped_and_what_shares_a_code():
    codes = {f"i{n}": ("<a_0>", "<b_0>") for n in range(5)} | {"x": ("<a_1>", "<b_0>")}
    index = ItemIndex("mine", codes, shared=True)
    levels = [
        level(index, ("a_0", 0.75, 0), ("a_1", 0.0001, 0)),
        level(index, ("a_0 b_0", 0.5, 0), None),
    ]
    items = ItemCatalog.from_titles({item: item.upper() for item in codes})
    ranking = [("i1", math.log(0.5)), ("i2", math.log(0.5))]
    lines = tree_text(beam_tree(levels, index, items, ranking, {"i0"}, row=1)).splitlines()[2:]
    assert lines == [
        "├─ <a_0>  p 0.7500  4 items: I1; I2; I3 and 1 more",
        "│  └─ <b_0>  p 0.5000  1., 2. I1; I2; I3 and 1 with the same code",
        "└─ <a_1>  p 1.0e-04  dropped with 1 item: X",
    ]


def test_probabilities_are_never_shown_as_none():
    assert [probability(math.log(p)) for p in (1, 0.25, 0.00099, 1e-9)] == [
        "1.0000", "0.2500", "9.9e-04", "1.0e-09",
    ]  # fmt: skip


def test_as_a_picture(index, tmp_path):
    tree = searched(index, False)
    svg = tree_svg(tree)
    assert svg == tree_svg(tree)
    write_svg(tmp_path / "tree.svg", svg, TREE_STYLE)
    root = ET.parse(tmp_path / "tree.svg").getroot()
    name = "{http://www.w3.org/2000/svg}"
    _, _, width, height = map(float, root.get("viewBox").split())
    links = list(root.iter(f"{name}path"))
    assert len(links) == 6
    assert sum("gone" in link.get("class") for link in links) == 1
    texts = ["".join(node.itertext()) for node in root.iter(f"{name}text")]
    assert {"1. The g <&>", "2. The c <&>", "not in the list: The a <&>", "<a_2> 0.5000"} <= set(texts)
    assert "3 of 3 · 88%" in texts
    places = [(float(n.get("x")), float(n.get("y"))) for n in root.iter(f"{name}text")]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    assert len(set(places)) == len(places)
    style = next(root.iter(f"{name}style")).text
    assert "prefers-color-scheme: dark" in style
    # Every class that is drawn has a rule.
    classes = {c for node in root.iter() for c in (node.get("class") or "").split()} - {"plot"}
    assert all(f".{c}" in style for c in classes)


def test_a_search_that_kept_nothing(index, tmp_path):
    items = ItemCatalog.from_titles(TITLES)
    tree = beam_tree([level(index, None)], index, items, [], set(CODES), row=1)
    assert tree_text(tree) == "Level 1: 0 of 0 prefixes kept, which have 0.0% of the probability."
    write_svg(tmp_path / "tree.svg", tree_svg(tree), TREE_STYLE)
    ET.parse(tmp_path / "tree.svg")
