import json
import shutil

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genrec.core.errors import IndexingError, RunError
from genrec.indexing import ItemTrie
from genrec.indexing import trie as module

SMALL = st.integers(0, 4)
# Levels of many bits: codes that leave no room for a row number in their word, or take several words.
WIDE = st.sampled_from([0, 1, 2, 2**20, 2**40, 2**40 + 1, 2**62, 2**63 - 1])


@st.composite
def prefix_free_codes(draw, shared=False, tokens=None):
    """Codes of unequal length, none the proper beginning of another; distinct unless ``shared``."""
    token = tokens if tokens is not None else draw(st.sampled_from([SMALL, WIDE]))
    codes = draw(st.lists(st.lists(token, min_size=1, max_size=5).map(tuple), min_size=1, max_size=40))
    if shared:
        codes += draw(st.lists(st.sampled_from(codes), max_size=20))
    kept = []
    for code in codes:
        if all((shared and code == k) or (code[: len(k)] != k and k[: len(code)] != code) for k in kept):
            kept.append(code)
    return draw(st.permutations(kept)) if shared else kept


def dict_trie(codes):
    root = {}
    for number, code in enumerate(codes):
        node = root
        for token in code:
            node = node.setdefault(token, {})
        node.setdefault("items", []).append(number)
    return root


def assert_is_dict_trie(trie, codes):
    stack, visited, numbers = [(0, dict_trie(codes), ())], 0, []
    while stack:
        node, expected, prefix = stack.pop()
        visited += 1
        numbers.append((len(prefix), prefix, node))
        children = trie.children(node)
        assert set(children) == set(expected) - {"items"}
        assert list(children) == sorted(children)
        ended = expected.get("items", [])
        assert trie.items_at(node).tolist() == ended
        assert trie.node_item[node] == (ended or [-1])[0]
        below = [number for number, code in enumerate(codes) if code[: len(prefix)] == prefix]
        leaves = trie.leaf_item[trie.leaf_start[node] : trie.leaf_end[node]]
        assert leaves.tolist() == sorted(below, key=lambda number: codes[number])
        assert trie.find(prefix) == node
        stack += [(children[token], expected[token], (*prefix, token)) for token in children]
    assert visited == trie.num_nodes
    assert [node for _, _, node in sorted(numbers)] == list(range(trie.num_nodes))
    assert trie.leaf_item[trie.leaf_of_item].tolist() == list(range(len(codes)))
    assert trie.num_items == len(codes)
    assert trie.depth == max(map(len, codes))


def padded(codes, levels=0):
    """``codes`` as a 2-D array, -1 after their ends."""
    table = np.full((len(codes), max(levels, *map(len, codes))), -1)
    for row, code in enumerate(codes):
        table[row, : len(code)] = code
    return table


def assert_equal_tries(one, two):
    for name in module.ARRAYS:
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
        assert getattr(one, name).dtype == getattr(two, name).dtype, name
    assert one.depth == two.depth


@settings(deadline=None)
@given(prefix_free_codes())
def test_it_is_the_dict_trie(codes):
    assert_is_dict_trie(ItemTrie(codes), codes)


@settings(deadline=None)
@given(prefix_free_codes(shared=True))
def test_shared_codes_end_at_one_node_in_the_order_given(codes):
    assert_is_dict_trie(ItemTrie(codes, shared=True), codes)
    if len(set(codes)) < len(codes):
        with pytest.raises(IndexingError, match="equal to"):
            ItemTrie(codes)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple), min_size=1, max_size=12))
def test_what_is_refused_is_exactly_what_is_no_trie(codes):
    pairs = [(one, two) for i, one in enumerate(codes) for j, two in enumerate(codes) if i != j]
    begins = any(one != two and two[: len(one)] == one for one, two in pairs)
    equal = any(one == two for one, two in pairs)
    for shared, wrong in ((False, begins or equal), (True, begins)):
        if wrong:
            with pytest.raises(IndexingError, match="prefix-free"):
                ItemTrie(codes, shared)
        else:
            assert ItemTrie(codes, shared).num_items == len(codes)


@settings(deadline=None)
@given(prefix_free_codes(), st.lists(st.integers(-1, 5), max_size=6))
def test_a_prefix_is_found_exactly_when_a_code_begins_so(codes, prefix):
    found = ItemTrie(codes).find(prefix)
    assert (found is not None) == any(code[: len(prefix)] == tuple(prefix) for code in codes)


@settings(deadline=None)
@given(
    prefix_free_codes(shared=True), st.integers(0, 2), st.sampled_from(["int8", "int16", "int32", "int64"])
)
def test_an_array_gives_the_same_trie_as_sequences(codes, more, dtype):
    table = padded(codes, max(map(len, codes)) + more)
    if table.max() <= np.iinfo(dtype).max:
        table = table.astype(dtype)
    given_before = table.copy()
    assert_equal_tries(ItemTrie(table, shared=True), ItemTrie(codes, shared=True))
    assert np.array_equal(table, given_before)
    if table.min() >= 0:
        assert_equal_tries(ItemTrie(table.astype("uint64"), shared=True), ItemTrie(codes, shared=True))
    fortran = np.asfortranarray(table)
    assert_equal_tries(ItemTrie(fortran, shared=True), ItemTrie(codes, shared=True))


@settings(deadline=None)
@given(prefix_free_codes(shared=True), st.sampled_from([0, 3, 1 << 22]), st.data())
def test_a_step_is_a_look_up_among_the_children(codes, dense, data):
    with pytest.MonkeyPatch.context() as patch:  # 0: binary search everywhere
        patch.setattr(module, "DENSE_ENTRIES", dense)
        trie = ItemTrie(codes, shared=True)
        node = st.integers(-1, trie.num_nodes - 1)
        known = sorted({token for code in codes for token in code})
        token = st.one_of(st.integers(-2, 6), st.sampled_from(known), st.sampled_from([-(2**63), 2**63 - 1]))
        pairs = data.draw(st.lists(st.tuples(node, token), max_size=30))
        nodes, tokens = [node for node, _ in pairs], [token for _, token in pairs]
        expected = [trie.children(node).get(token, -1) if node >= 0 else -1 for node, token in pairs]
        found = trie.step(np.array(nodes, np.int32), np.array(tokens, np.int64))
        assert found.tolist() == expected
        assert found.dtype == np.int64
        every = np.arange(trie.num_nodes)
        table = trie.step(every[:, None], np.array(known))
        assert table.shape == (trie.num_nodes, len(known))
        assert {
            (node, token): table[node, column]
            for node in every
            for column, token in enumerate(known)
            if table[node, column] >= 0
        } == {(node, token): child for node in every for token, child in trie.children(node).items()}
        assert all(trie.find(code) is not None and trie.find((*code, 0)) is None for code in codes)
        assert int(trie.step(0, codes[0][0])) == trie.find(codes[0][:1])


@settings(deadline=None)
@given(prefix_free_codes(shared=True), st.data())
def test_a_restriction_is_the_trie_of_the_allowed_codes_only(codes, data):
    trie = ItemTrie(codes, shared=True)
    rows = data.draw(st.sets(st.integers(0, len(codes) - 1)))
    mask = np.zeros(len(codes), bool)
    mask[list(rows)] = True
    kinds = [
        rows,
        list(rows) * 2,
        tuple(rows),
        dict.fromkeys(rows).keys(),
        mask,
        np.array(sorted(rows), np.int16),
    ]
    restricted = trie.restrict(data.draw(st.sampled_from(kinds)))
    allowed = [number for number in range(len(codes)) if number in rows]
    expected = dict_trie([codes[number] for number in allowed])
    only = ItemTrie([codes[number] for number in allowed], shared=True) if allowed else None
    assert restricted.num_items == len(allowed)
    assert int(restricted.count_below(0)) == len(allowed)
    known = sorted({token for code in codes for token in code})
    reached = {}
    stack = [(0, expected, ())]
    while stack:
        node, here, prefix = stack.pop()
        children = restricted.children(node)
        assert list(children) == sorted(set(here) - {"items"})
        assert restricted.items_at(node).tolist() == [allowed[number] for number in here.get("items", [])]
        below = [number for number in allowed if codes[number][: len(prefix)] == prefix]
        assert int(restricted.count_below(node)) == len(below)
        assert restricted.find(prefix) == (node if allowed else None)
        assert restricted.step(node, np.array(known)).tolist() == [children.get(token, -1) for token in known]
        reached[node] = prefix
        if only is not None:
            twin = only.find(prefix)
            assert list(only.children(twin)) == list(children)
            assert only.leaf_end[twin] - only.leaf_start[twin] == len(below)
        stack += [(child, here[token], (*prefix, token)) for token, child in children.items()]
    every = np.arange(trie.num_nodes)
    counts = restricted.count_below(every)
    assert set(np.flatnonzero(counts).tolist()) == (set(reached) if allowed else set())
    assert restricted.count_below(np.array([-1, 0])).tolist() == [0, len(allowed)]
    for code in codes:
        for length in range(len(code) + 1):
            prefix = code[:length]
            is_there = any(codes[number][:length] == prefix for number in allowed)
            assert (restricted.find(prefix) is not None) == is_there


def test_an_empty_allow_list_has_no_children():
    trie = ItemTrie([(0, 1), (0, 2), (3,)])
    for nothing in ([], set(), np.zeros(3, bool), np.zeros(0, int)):
        restricted = trie.restrict(nothing)
        assert restricted.children(0) == {}
        assert restricted.find(()) is None
        assert restricted.step(0, [0, 3]).tolist() == [-1, -1]
        assert restricted.count_below(np.arange(trie.num_nodes)).tolist() == [0] * trie.num_nodes


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([0, 3], "1 row numbers, first 3, .* rows 0 to 2"),
        ({-1}, "first -1"),
        (np.ones(2, bool), "3 codes"),
        ([True, False], "3 codes"),
        (np.ones((3, 1), bool), "3 codes"),
        ([0.0, 1.0], "row numbers or a mask"),
        (["a"], "row numbers or a mask"),
        (np.zeros((1, 1), int), "row numbers or a mask"),
    ],
)
def test_an_allow_list_that_fits_no_trie_is_refused(items, message):
    with pytest.raises(IndexingError, match=message):
        ItemTrie([(0, 1), (0, 2), (3,)]).restrict(items)


@pytest.mark.parametrize("node", [-2, 5, 100])
def test_a_node_that_is_not_there_is_refused(node):
    trie = ItemTrie([(0, 1), (0, 2), (3,)])
    with pytest.raises(IndexingError, match=f"no node {node}"):
        trie.step(np.array([0, node]), 0)
    with pytest.raises(IndexingError, match=f"no node {node}"):
        trie.restrict([0]).count_below(node)


@pytest.mark.parametrize("codes", [[], [()], [(1,), ()], [(1,), (1,)], [(1, 2), (3,), (1,)]])
def test_codes_that_are_no_trie_are_refused(codes):
    with pytest.raises(IndexingError):
        ItemTrie(codes)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((0, 3), int), "at least one code"),
        (np.zeros((3, 0), int), "at least one code"),
        (np.array([[0, 1], [-1, -1]]), "no code may be empty"),
        (np.array([[0, 1, 2], [3, -1, 2]]), r"row 1, \[3, -1, 2\]"),
        (np.array([[0, -2]]), "one is -2"),
        (np.array([[2**63]], np.uint64), "one is 9223372036854775808"),
        (np.array([[0.0]]), "float64"),
        (np.array([[1, 2], [1, -1]]), r"\[1\] is the beginning of the code \[1, 2\]"),
        (np.array([[5, 6], [4, 2], [5, 6]]), r"\[5, 6\] is equal to the code \[5, 6\]"),
        ([(1, -1)], "one is -1"),
    ],
)
def test_codes_that_are_no_trie_are_told_why(codes, message):
    with pytest.raises(IndexingError, match=message):
        ItemTrie(codes)


def test_codes_that_fill_their_words_to_the_last_bit_are_sorted():
    for codes in (
        [(0, 2**63 - 1), (0, 0), (0, 7)],  # a level that never changes beside one of 63 bits
        [(1,), (2**63 - 1, 0), (2**63 - 1, 5), (0, 3)],
        [(2**63 - 1, 2**63 - 1), (0,), (2**63 - 1, 0)],
        [(0, 2**63 - 1, 1), (0, 2**63 - 1, 0), (0, 4)],
        [(2**31 - 1,), (0,)],
        [(7,)],
    ):
        assert_is_dict_trie(ItemTrie(codes), codes)
    assert ItemTrie([(2**31 - 1,)]).child_token.dtype == np.int32
    assert ItemTrie([(2**31,)]).child_token.dtype == np.int64


@settings(deadline=None, max_examples=25)
@given(prefix_free_codes(shared=True), st.booleans())
@example([(0,)], True)
def test_a_saved_trie_is_the_trie_loaded(tmp_path_factory, codes, mmap):
    folder = tmp_path_factory.mktemp("trie") / "of" / "codes"
    trie = ItemTrie(codes, shared=True)
    trie.save(folder)
    loaded = ItemTrie.load(folder, mmap)
    assert_equal_tries(loaded, trie)
    assert_is_dict_trie(loaded, codes)
    loaded.save(folder)
    assert_equal_tries(ItemTrie.load(folder, mmap), trie)
    assert_equal_tries(loaded, trie)


@pytest.fixture
def saved(tmp_path):
    ItemTrie([(0, 1), (0, 2), (3,)]).save(tmp_path / "trie")
    return tmp_path / "trie"


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", [module.ABOUT, *(f"{name}.npy" for name in module.ARRAYS)])
def test_a_missing_or_cut_file_is_named(saved, name, mmap):
    path = saved / name
    whole = path.read_bytes()
    for size in (0, 20, len(whole) - 1, len(whole) - 4):
        path.write_bytes(whole[:size])
        if name == module.ABOUT and size == len(whole) - 1:  # only the last line's end
            continue
        with pytest.raises(RunError, match=name):
            ItemTrie.load(saved, mmap)
    path.unlink()
    with pytest.raises(RunError, match=f"{name} does not exist"):
        ItemTrie.load(saved, mmap)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", module.ARRAYS)
def test_a_foreign_file_is_named(saved, tmp_path, name, mmap):
    path = saved / f"{name}.npy"
    array = np.load(path)
    for foreign in (array[:-1], array.astype(float), array[None], np.full_like(array, 9)):
        np.save(path, foreign)
        if mmap and foreign.shape == array.shape and name in ("child_token", "leaf_item"):
            continue  # found by its hash alone
        if mmap and foreign.dtype == float:
            with pytest.raises(RunError, match=f"{name}.npy does not hold integers"):
                ItemTrie.load(saved)
        with pytest.raises(RunError, match=f"{name}.npy"):
            ItemTrie.load(saved, mmap)
    path.write_text("not an array")
    with pytest.raises(RunError, match=f"{name}.npy"):
        ItemTrie.load(saved, mmap)
    with open(path, "wb") as file:
        np.savez(file, array)
    with pytest.raises(RunError, match=f"{name}.npy"):
        ItemTrie.load(saved, mmap)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "does not describe a trie"),
        ({"version": 2}, "version 2 .* reads version 1"),
        ({"items": "3"}, "how large"),
        ({"nodes": 0}, "how large"),
        ({"sha256": None}, "hashes"),
        ({"items": 4}, "leaf_item.npy has the shape"),
    ],
)
def test_a_foreign_description_is_refused(saved, change, message):
    path = saved / module.ABOUT
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=message):
        ItemTrie.load(saved)
    path.write_text("[1]")
    with pytest.raises(RunError, match="does not describe a trie"):
        ItemTrie.load(saved)


def test_saving_replaces_a_trie_whole_and_nothing_else(saved, tmp_path):
    old, new = ItemTrie.load(saved), ItemTrie([(5,), (6, 1)])
    new.save(saved)
    assert_equal_tries(ItemTrie.load(saved), new)
    assert old.find((0, 2)) is not None
    (saved / "index.parquet").write_text("mine")
    with pytest.raises(RunError, match=r"index\.parquet"):
        old.save(saved)
    assert (saved / "index.parquet").read_text() == "mine"
    assert_equal_tries(ItemTrie.load(saved), new)
    shutil.rmtree(saved)
    saved.write_text("a file")
    with pytest.raises(RunError, match="Could not write"):
        old.save(saved)
    assert saved.read_text() == "a file"
    assert [path.name for path in tmp_path.iterdir()] == ["trie"]


def test_a_cut_save_leaves_the_old_trie(saved, monkeypatch):
    before = ItemTrie.load(saved, mmap=False)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.np, "save", full)
    with pytest.raises(RunError, match="No space left"):
        ItemTrie([(5,), (6, 1)]).save(saved)
    assert_equal_tries(ItemTrie.load(saved, mmap=False), before)
    assert [path.name for path in saved.parent.iterdir()] == ["trie"]
