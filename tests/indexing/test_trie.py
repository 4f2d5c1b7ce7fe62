import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec.core.errors import IndexingError
from genrec.indexing import ItemTrie


@st.composite
def prefix_free_codes(draw):
    """Distinct codes of unequal length, none the beginning of another."""
    codes = draw(
        st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple), min_size=1, max_size=40)
    )
    kept = []
    for code in codes:
        if all(code[: len(k)] != k and k[: len(code)] != code for k in kept):
            kept.append(code)
    return kept


def dict_trie(codes):
    root = {}
    for number, code in enumerate(codes):
        node = root
        for token in code:
            node = node.setdefault(token, {})
        node["item"] = number
    return root


@given(prefix_free_codes())
def test_it_is_the_dict_trie(codes):
    trie, stack = ItemTrie(codes), [(0, dict_trie(codes), ())]
    visited = 0
    while stack:
        node, expected, prefix = stack.pop()
        visited += 1
        children = trie.children(node)
        assert set(children) == set(expected) - {"item"}
        assert list(children) == sorted(children)
        assert trie.node_item[node] == expected.get("item", -1)
        below = {number for number, code in enumerate(codes) if code[: len(prefix)] == prefix}
        leaves = trie.leaf_item[trie.leaf_start[node] : trie.leaf_end[node]]
        assert len(leaves) == len(below)
        assert set(leaves.tolist()) == below
        assert trie.find(prefix) == node
        stack += [(children[token], expected[token], (*prefix, token)) for token in children]
    assert visited == trie.num_nodes
    assert trie.num_items == len(codes)
    assert trie.depth == max(map(len, codes))


@given(prefix_free_codes(), st.lists(st.integers(0, 5), max_size=6))
def test_a_prefix_is_found_exactly_when_a_code_begins_so(codes, prefix):
    found = ItemTrie(codes).find(prefix)
    assert (found is not None) == any(code[: len(prefix)] == tuple(prefix) for code in codes)


@pytest.mark.parametrize("codes", [[], [()], [(1,), ()], [(1,), (1,)], [(1, 2), (3,), (1,)]])
def test_codes_that_are_no_trie_are_refused(codes):
    with pytest.raises(IndexingError):
        ItemTrie(codes)
