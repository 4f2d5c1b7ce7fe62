"""The prefix trie of all codes, in integers only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec.core.errors import IndexingError


class ItemTrie:
    """A trie over token-id codes as flat arrays; node 0 is the root, nodes are numbered by depth.

    The children of node ``n`` are the slots ``child_start[n] : child_start[n + 1]`` of ``child_token``
    and ``child_node``, sorted by token. Codes in lexicographic order number the *leaves*; below node
    ``n`` lie the leaves ``leaf_start[n] : leaf_end[n]``.

    Attributes:
        child_start: ``(nodes + 1,)`` int64.
        child_token: ``(edges,)`` int64.
        child_node: ``(edges,)`` int64.
        leaf_start: ``(nodes,)`` int64.
        leaf_end: ``(nodes,)`` int64.
        leaf_item: ``(items,)`` int64: which of the given codes each leaf is.
        node_item: ``(nodes,)`` int64: the code that ends at a node, -1 inside the trie.
        depth: Longest code.

    Raises:
        IndexingError: If there is no code, one is empty, two are equal, or one is the beginning of another.
    """

    def __init__(self, codes: Sequence[Sequence[int]]) -> None:
        lengths = np.fromiter((len(code) for code in codes), np.int64, len(codes))
        if len(lengths) == 0 or lengths.min() == 0:
            raise IndexingError("A trie needs at least one code, and no code may be empty.")
        self.depth = int(lengths.max())
        padded = np.full((len(codes), self.depth), -1, np.int64)
        padded[np.arange(self.depth) < lengths[:, None]] = np.fromiter(
            (token for code in codes for token in code), np.int64, int(lengths.sum())
        )
        order = np.lexsort(padded.T[::-1])
        padded, lengths = padded[order], lengths[order]
        self.leaf_item = order.astype(np.int64)

        num_items = len(codes)
        starts, ends = [np.zeros(1, np.int64)], [np.full(1, num_items)]
        items, parents, tokens = [np.full(1, -1)], [], []
        new = np.zeros(num_items, bool)
        new[0] = True
        node = np.zeros(num_items, np.int64)
        num_nodes = 1
        for level in range(self.depth):
            alive = lengths > level
            new = new | np.concatenate([[True], padded[1:, level] != padded[:-1, level]])
            first = np.flatnonzero(new & alive)
            group = np.cumsum(new) - 1
            last_of_group = np.flatnonzero(np.concatenate([group[1:] != group[:-1], [True]]))
            end = last_of_group[group[first]] + 1
            ended = lengths[first] == level + 1
            if (clash := ended & (end - first > 1)).any():
                row = first[clash][0]
                raise IndexingError(
                    f"The code {padded[row][: lengths[row]].tolist()} is equal to, or the beginning of, the "
                    f"code {padded[row + 1][: lengths[row + 1]].tolist()}; codes must be prefix-free."
                )
            starts.append(first)
            ends.append(end)
            items.append(np.where(ended, order[first], -1))
            parents.append(node[first])
            tokens.append(padded[first, level])
            number_of_group = np.zeros(num_items, np.int64)
            number_of_group[group[first]] = num_nodes + np.arange(len(first))
            node = number_of_group[group]
            num_nodes += len(first)
        self.leaf_start = np.concatenate(starts).astype(np.int64)
        self.leaf_end = np.concatenate(ends).astype(np.int64)
        self.node_item = np.concatenate(items).astype(np.int64)
        parent = np.concatenate(parents)
        self.child_token = np.concatenate(tokens).astype(np.int64)
        # Nodes of one level come in order of their parents, and parents of a later level come later.
        self.child_node = np.arange(1, num_nodes, dtype=np.int64)
        self.child_start = np.concatenate([[0], np.cumsum(np.bincount(parent, minlength=num_nodes))])

    @property
    def num_nodes(self) -> int:
        """Number of nodes, the root included."""
        return len(self.leaf_start)

    @property
    def num_items(self) -> int:
        """Number of codes."""
        return len(self.leaf_item)

    def children(self, node: int) -> dict[int, int]:
        """Returns ``{token: child node}`` of a node."""
        slots = slice(self.child_start[node], self.child_start[node + 1])
        return dict(zip(self.child_token[slots].tolist(), self.child_node[slots].tolist(), strict=True))

    def find(self, prefix: Sequence[int]) -> int | None:
        """Returns the node that a prefix leads to, or None where no code begins so."""
        node = 0
        for token in prefix:
            low, high = self.child_start[node], self.child_start[node + 1]
            slot = low + int(np.searchsorted(self.child_token[low:high], token))
            if slot == high or self.child_token[slot] != token:
                return None
            node = int(self.child_node[slot])
        return node
