"""The prefix trie of all codes, in flat integer arrays: one sort makes it, a file maps it, a count restricts it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from genrec.core.errors import IndexingError, RunError
from genrec.core.files import atomic_path, hash_file, hash_folder, read_json, write_json

ABOUT = "trie.json"
ARRAYS = ("child_start", "child_token", "leaf_start", "leaf_end", "leaf_item")
KIND, VERSION = "genrec.ItemTrie", 1
DENSE_ENTRIES = 1 << 22  # 16 MB of int32
STEPS_AT_ONCE = 1 << 13  # what one stretch of look-ups makes stays in the processor's cache


class ItemTrie:
    """A trie over token-id codes as flat arrays; node 0 is the root, nodes are numbered breadth-first.

    The children of node ``n`` are the edges ``child_start[n] : child_start[n + 1]``, sorted by their
    ``child_token``, and the node behind edge ``e`` is ``e + 1``. Codes in lexicographic order number the
    *leaves*; below node ``n`` lie the leaves ``leaf_start[n] : leaf_end[n]``. A code ends at a node exactly
    when the node has no children. Integers are int32 while they fit, and else int64.

    Compressed sparse rows with dense first levels are Su et al. (2026), "Vectorizing the Trie" (STATIC). That
    codes are packed with their row numbers, so that a plain sort makes the trie, is genrec's own.

    Args:
        codes: Sequences of token ids (0 or more) of any lengths, or ``(items, levels)`` integers, where a
            shorter code is padded with -1. Only the second is read without a Python loop.
        shared: Whether codes may be equal. The node they end at then has all of them as leaves, in the
            order given.

    Attributes:
        child_start: ``(nodes + 1,)``.
        child_token: ``(edges,)``.
        leaf_start: ``(nodes,)``.
        leaf_end: ``(nodes,)``.
        leaf_item: ``(items,)`` which of the given codes each leaf is.
        depth: Longest code.

    Raises:
        IndexingError: If there is no code, one is empty, two are equal (unless ``shared``), one is the
            beginning of another, a token is negative, or -1 stands before a token.
    """

    child_start: np.ndarray
    child_token: np.ndarray
    leaf_start: np.ndarray
    leaf_end: np.ndarray
    leaf_item: np.ndarray
    depth: int

    def __init__(self, codes: Sequence[Sequence[int]] | np.ndarray, shared: bool = False) -> None:
        table, lows, highs = _checked(codes)
        num_items, self.depth = len(table), len(highs)
        # No trie has more edges than tokens, so whatever counts nodes fits, too.
        index = np.int32 if num_items * self.depth < 2**31 - 1 else np.int64
        token_type = np.int32 if max(highs) < 2**31 else np.int64
        words, fields, self.leaf_item = _sorted_codes(table, lows, highs, index)
        del table
        alike = _levels_alike(words, fields)
        if not shared and (twice := np.flatnonzero(alike == self.depth)).size:
            raise _clash(words, fields, int(twice[0]), "equal to")

        starts, ends = [np.zeros(1, index)], [np.full(1, num_items, index)]
        children: list[np.ndarray] = []
        tokens: list[np.ndarray] = []
        num_edges = 0
        for level, field in enumerate(fields):
            begins = alike <= level
            first = np.flatnonzero(begins).astype(index)
            token = field.tokens(words[field.word][begins])
            last = np.empty_like(first)
            last[:-1], last[-1] = first[1:], num_items
            if field.low < 0:
                ended = token < 0
                # Padding sorts first, so a code comes right before those that it begins.
                if (clash := ended[:-1] & (alike[first[1:]] == level)).any():
                    raise _clash(words, fields, int(first[1:][clash][0]), "the beginning of")
                begins[first[ended]] = False
                first, last, token = first[~ended], last[~ended], token[~ended]
            # Children lie in the order of their parents, so those before a parent's are counted by its row.
            counted = np.cumsum(begins, dtype=index)
            children.append(num_edges + counted[starts[-1]] - begins[starts[-1]])
            starts.append(first)
            ends.append(last)
            tokens.append(token.astype(token_type))
            num_edges += len(first)
        del words, alike, begins, first, last, token, counted
        children.append(np.full(len(starts[-1]) + 1, num_edges, index))
        self.child_start = _joined(children)
        self.child_token = _joined(tokens)
        self.leaf_start = _joined(starts)
        self.leaf_end = _joined(ends)

    @property
    def num_nodes(self) -> int:
        """Number of nodes, the root included."""
        return len(self.leaf_start)

    @property
    def num_items(self) -> int:
        """Number of codes given."""
        return len(self.leaf_item)

    @cached_property
    def node_item(self) -> np.ndarray:
        """``(nodes,)`` the code that ends at a node, the first given of equal ones, -1 inside the trie."""
        ended = self.child_start[1:] == self.child_start[:-1]
        found = np.full(self.num_nodes, -1, self.leaf_item.dtype)
        found[ended] = self.leaf_item[self.leaf_start[ended]]
        return found

    @cached_property
    def leaf_of_item(self) -> np.ndarray:
        """``(items,)`` which leaf each of the given codes is: the inverse of ``leaf_item``."""
        found = np.empty_like(self.leaf_item)
        found[self.leaf_item] = np.arange(self.num_items, dtype=found.dtype)
        return found

    def children(self, node: int) -> dict[int, int]:
        """Returns ``{token: child node}`` of a node, by token."""
        first, last = int(self.child_start[node]), int(self.child_start[node + 1])
        return dict(zip(self.child_token[first:last].tolist(), range(first + 1, last + 1), strict=True))

    def items_at(self, node: int) -> np.ndarray:
        """Returns the row numbers of the codes that end at a node, in the order given; empty inside the trie."""
        if node < 0 or self.child_start[node] < self.child_start[node + 1]:
            return self.leaf_item[:0]
        return self.leaf_item[self.leaf_start[node] : self.leaf_end[node]]

    def find(self, prefix: Sequence[int]) -> int | None:
        """Returns the node that a prefix leads to, or None where no code begins so."""
        node = 0
        low, offset, table = self._dense
        for token in prefix:
            if node < len(low):
                place = int(token) - int(low[node])
                if not 0 <= place < offset[node + 1] - offset[node]:
                    return None
                node = int(table[offset[node] + place])
                if node < 0:
                    return None
            else:
                first, last = int(self.child_start[node]), int(self.child_start[node + 1])
                edge = first + int(np.searchsorted(self.child_token[first:last], token))
                if edge == last or self.child_token[edge] != token:
                    return None
                node = edge + 1
        return node

    def step(self, nodes: np.ndarray | int, tokens: np.ndarray | int) -> np.ndarray:
        """Returns the children of nodes by tokens, -1 where there is none, int64 of the broadcast shape.

        A lookup in the first levels, which have a dense table, a binary search among the children below
        them. The child of -1 is -1, so steps may follow each other.

        Args:
            nodes: Integers of any shape.
            tokens: Integers of a shape that broadcasts with it; any value is allowed.

        Raises:
            IndexingError: If a node is neither of the trie nor -1.
        """
        nodes, tokens = np.broadcast_arrays(np.asarray(nodes, np.int64), np.asarray(tokens, np.int64))
        node, token = nodes.ravel(), tokens.ravel()
        self._check_nodes(node)
        num_dense = len(self._dense[0])
        found = np.full(len(node), -1)
        for first in range(0, len(node), STEPS_AT_ONCE):
            part = slice(first, first + STEPS_AT_ONCE)
            self._step(node[part], token[part], num_dense, found[part])
        return found.reshape(nodes.shape)

    def restrict(self, items: Collection[int] | np.ndarray) -> Restriction:
        """Returns the trie as it is with some items only; costs one count over all items, whatever is allowed.

        The first call also inverts ``leaf_item``, which is kept.

        Args:
            items: Row numbers of codes, a number twice counting once, or ``(items,)`` bool. May be empty.

        Raises:
            IndexingError: If a row number is none of the trie's, or a mask has another length.
        """
        rows = items if isinstance(items, np.ndarray) else np.asarray(list(items))
        if rows.dtype == bool:
            if rows.shape != (self.num_items,):
                raise IndexingError(
                    f"An allow-list as a mask has one value for each of the {self.num_items:,} codes, "
                    f"this one has the shape {rows.shape}."
                )
            rows = np.flatnonzero(rows)
        else:
            if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
                raise IndexingError(
                    "An allow-list is a collection of row numbers or a mask of booleans, this one has the shape "
                    f"{rows.shape} and the type {rows.dtype}."
                )
            if rows.size and (rows.min() < 0 or rows.max() >= self.num_items):
                wrong = rows[(rows < 0) | (rows >= self.num_items)]
                raise IndexingError(
                    f"The allow-list has {len(wrong):,} row numbers, first {int(wrong[0])}, that are none of the "
                    f"trie's: its {self.num_items:,} codes are the rows 0 to {self.num_items - 1}."
                )
        allowed = np.zeros(self.num_items, bool)
        allowed[self.leaf_of_item[rows.astype(np.int64)]] = True
        counted = np.zeros(self.num_items + 1, self.leaf_item.dtype)
        np.cumsum(allowed, out=counted[1:])
        return Restriction(self, counted)

    def save(self, folder: str | Path) -> None:
        """Writes the arrays as ``.npy`` files and ``trie.json`` (counts, hashes), whole or not at all.

        A trie that is there already is replaced, and stays open where it is mapped.

        Raises:
            RunError: If the folder holds anything else, which replacing it would lose, or the disk refuses.
        """
        folder = Path(folder)
        if folder.is_dir():
            others = sorted({path.name for path in folder.iterdir()} - {ABOUT, *map(_file_name, ARRAYS)})
            if others:
                raise RunError(
                    f"{folder} holds other files ({', '.join(others[:3])}), and a trie is written as a whole "
                    "folder. Choose one of its own."
                )
        with atomic_path(folder) as part:
            part.mkdir()
            for name in ARRAYS:
                np.save(part / _file_name(name), getattr(self, name))
            about = {
                "kind": KIND,
                "version": VERSION,
                "depth": self.depth,
                "items": self.num_items,
                "nodes": self.num_nodes,
                "sha256": hash_folder(part),
            }
            write_json(part / ABOUT, about)

    @classmethod
    def load(cls, folder: str | Path, mmap: bool = True) -> ItemTrie:
        """Returns the trie that ``save`` wrote.

        Args:
            folder: Where it is.
            mmap: Map the files, so that pages are read when they are needed and processes share them. Kinds,
                lengths and ends are checked. Otherwise everything is read, and its hashes are checked, too.

        Raises:
            RunError: If a file is missing, cut, or none that ``save`` wrote there.
        """
        folder = Path(folder)
        about = read_json(folder / ABOUT)
        counts = _counts(about, folder / ABOUT)
        trie = cls.__new__(cls)
        trie.depth = counts["depth"]
        items, nodes = counts["items"], counts["nodes"]
        lengths = (nodes + 1, nodes - 1, nodes, nodes, items)
        for name, length in zip(ARRAYS, lengths, strict=True):
            path = folder / _file_name(name)
            if not mmap and path.exists() and hash_file(path) != about["sha256"].get(path.name):
                raise _broken(path, f"does not have the hash that {ABOUT} gives it")
            setattr(trie, name, _read_array(path, length, mmap))
        for name, place, value in (
            ("child_start", 0, 0),
            ("child_start", -1, nodes - 1),
            ("leaf_start", 0, 0),
            ("leaf_end", 0, items),
        ):
            if getattr(trie, name)[place] != value:
                raise _broken(folder / _file_name(name), f"does not fit the counts in {ABOUT}")
        return trie

    @cached_property
    def _dense(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``(low, offset, table)`` of the first levels: node n and token t lead to ``table[offset[n] + t - low[n]]``.

        A node's row reaches from its least token to its greatest. Whole levels are in it, as many as stay
        below ``DENSE_ENTRIES``.
        """
        lows, widths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        first, last, entries = 0, 1, 0
        while first < last:
            start = self.child_start[first : last + 1].astype(np.int64)
            if entries + start[-1] - start[0] > DENSE_ENTRIES:
                break
            low, width = np.zeros(last - first, np.int64), np.zeros(last - first, np.int64)
            inner = start[1:] > start[:-1]
            low[inner] = self.child_token[start[:-1][inner]]
            # Less one, for tokens up to 2^63.
            width[inner] = self.child_token[start[1:][inner] - 1] - low[inner]
            if width.max() >= DENSE_ENTRIES:
                break
            width[inner] += 1
            entries += int(width.sum())
            if entries > DENSE_ENTRIES:
                break
            lows.append(low)
            widths.append(width)
            first, last = int(start[0]) + 1, int(start[-1]) + 1
        low, width = np.concatenate(lows), np.concatenate(widths)
        offset = np.concatenate([[0], np.cumsum(width)])
        start = self.child_start[: len(low) + 1].astype(np.int64)
        row = np.repeat(offset[:-1] - low, np.diff(start))
        table = np.full(offset[-1], -1, self.child_start.dtype)
        table[row + self.child_token[: start[-1]]] = np.arange(1, start[-1] + 1)
        return low, offset, table

    def _step(self, node: np.ndarray, token: np.ndarray, num_dense: int, into: np.ndarray) -> None:
        for here, look_up in (
            ((node >= 0) & (node < num_dense), self._step_dense),
            (node >= num_dense, self._step_sparse),
        ):
            if here.all():
                into[:] = look_up(node, token)
            elif here.any():
                into[here] = look_up(node[here], token[here])

    def _step_dense(self, node: np.ndarray, token: np.ndarray) -> np.ndarray:
        low, offset, table = self._dense
        place, row = token - low[node], offset[node]
        inside = (place >= 0) & (place < offset[node + 1] - row)
        return np.where(inside, table[np.where(inside, row + place, 0)], -1)

    def _step_sparse(self, node: np.ndarray, token: np.ndarray) -> np.ndarray:
        edge = self.child_start.take(node).astype(np.int64)
        count = self.child_start.take(node + 1) - edge
        inner = count > 0
        edge[~inner] = 0
        # To the last edge whose token is not greater, or else the first. The number of rounds is that of the
        # largest node; at the others nothing moves any more.
        for _ in range(int(count.max() - 1).bit_length()):
            half = count >> 1
            count -= half
            half *= self.child_token.take(edge + half) <= token
            edge += half
        return np.where(inner & (self.child_token.take(edge) == token), edge + 1, -1)

    def _check_nodes(self, nodes: np.ndarray) -> None:
        if nodes.size and (nodes.min() < -1 or nodes.max() >= self.num_nodes):
            wrong = nodes[(nodes < -1) | (nodes >= self.num_nodes)]
            raise IndexingError(
                f"There is no node {int(wrong.flat[0])}: the trie's nodes are 0 to {self.num_nodes - 1}, and -1 "
                "stands for none."
            )


class Restriction:
    """A trie as it is with some of its items only; nodes keep their numbers.

    Attributes:
        trie: The whole trie.
        allowed_before: ``(items + 1,)`` how many allowed items are among the first leaves.
    """

    def __init__(self, trie: ItemTrie, allowed_before: np.ndarray) -> None:
        self.trie, self.allowed_before = trie, allowed_before

    @property
    def num_items(self) -> int:
        """Number of allowed items."""
        return int(self.allowed_before[-1])

    def count_below(self, nodes: np.ndarray | int) -> np.ndarray:
        """Returns how many allowed items lie below nodes, int64 of their shape; none below -1.

        Raises:
            IndexingError: If a node is neither of the trie nor -1.
        """
        nodes = np.asarray(nodes, np.int64)
        self.trie._check_nodes(nodes)
        count = self.allowed_before[self.trie.leaf_end[nodes]].astype(np.int64)
        count -= self.allowed_before[self.trie.leaf_start[nodes]]
        return np.where(nodes < 0, 0, count)

    def children(self, node: int) -> dict[int, int]:
        """Returns ``{token: child node}`` of the children with an allowed item below, by token."""
        first, last = int(self.trie.child_start[node]), int(self.trie.child_start[node + 1])
        edges = np.arange(first, last)[self.count_below(np.arange(first + 1, last + 1)) > 0]
        return dict(zip(self.trie.child_token[edges].tolist(), (edges + 1).tolist(), strict=True))

    def items_at(self, node: int) -> np.ndarray:
        """Returns the allowed row numbers that end at a node, in the order given; empty inside the trie."""
        items, first = self.trie.items_at(node), int(self.trie.leaf_start[node])
        return items[np.diff(self.allowed_before[first : first + len(items) + 1]) > 0]

    def find(self, prefix: Sequence[int]) -> int | None:
        """Returns the node that a prefix leads to, or None where no allowed item's code begins so."""
        node = self.trie.find(prefix)
        return node if node is not None and self.count_below(node) > 0 else None

    def step(self, nodes: np.ndarray | int, tokens: np.ndarray | int) -> np.ndarray:
        """Returns the children of nodes by tokens as ``ItemTrie.step``, -1 where no allowed item is below."""
        found = self.trie.step(nodes, tokens)
        return np.where(self.count_below(found) > 0, found, -1)


@dataclass(frozen=True)
class _Field:
    """Where the tokens of a level lie in packed codes: bits of a word, less the least of the level."""

    word: int
    shift: int
    bits: int
    low: int

    def tokens(self, word: np.ndarray) -> np.ndarray:
        """Returns the tokens in packed words, int64, -1 where the code has ended. Overwrites its argument."""
        word >>= np.uint64(self.shift)
        word &= np.uint64((1 << self.bits) - 1)
        tokens = word.view(np.int64)
        tokens += self.low
        return tokens


def _checked(codes: Sequence[Sequence[int]] | np.ndarray) -> tuple[np.ndarray, list[int], list[int]]:
    """Returns ``(items, longest code)`` padded with -1, and the least and the greatest value of each level."""
    if isinstance(codes, np.ndarray) and codes.ndim == 2:
        if codes.dtype.kind not in "iu":
            raise IndexingError(f"Codes are integers, these are {codes.dtype}.")
        table = codes
    else:
        lengths = np.fromiter((len(code) for code in codes), np.int64, len(codes))
        if len(lengths) == 0 or lengths.min() == 0:
            raise IndexingError("A trie needs at least one code, and no code may be empty.")
        tokens = np.fromiter((token for code in codes for token in code), np.int64, int(lengths.sum()))
        if tokens.min() < 0:
            raise IndexingError(f"Tokens are 0 or more, one is {tokens.min()}.")
        table = np.full((len(codes), int(lengths.max())), -1, np.int64)
        table[np.arange(table.shape[1]) < lengths[:, None]] = tokens
    if table.size == 0 or table[:, 0].min() == -1:
        raise IndexingError("A trie needs at least one code, and no code may be empty.")
    columns = range(table.shape[1])
    lows, highs = ([int(get(table[:, level])) for level in columns] for get in (np.min, np.max))
    if min(lows) < -1 or max(highs) >= 2**63:
        wrong = min(lows) if min(lows) < -1 else max(highs)
        raise IndexingError(
            f"Tokens are 0 or more and below 2^63, and -1 fills up shorter codes; one is {wrong}."
        )
    for level in columns[1:]:
        if lows[level - 1] < 0 <= highs[level]:
            hole = (table[:, level - 1] < 0) & (table[:, level] >= 0)
            if hole.any():
                row = int(hole.argmax())
                raise IndexingError(
                    f"The code in row {row}, {table[row].tolist()}, has -1 before a token. -1 fills up the end of a "
                    "code that is shorter than others."
                )
    depth = max(level + 1 for level in columns if highs[level] >= 0)
    return table[:, :depth], lows[:depth], highs[:depth]


def _sorted_codes(
    table: np.ndarray, lows: list[int], highs: list[int], index: type[np.signedinteger]
) -> tuple[list[np.ndarray], list[_Field], np.ndarray]:
    """Returns packed codes in lexicographic order, where their levels are, and which row each is.

    Levels are packed from the left into as few uint64 as hold them. Where one word has room for the row
    number, too, it is sorted with the code: that is several times as fast as sorting positions, and keeps
    equal codes in the order given.
    """
    num_items = len(table)
    bits = [(high - low).bit_length() for low, high in zip(lows, highs, strict=True)]
    levels_of_words: list[list[int]] = [[]]
    for level, width in enumerate(bits):
        if sum(bits[other] for other in levels_of_words[-1]) + width > 64:
            levels_of_words.append([])
        levels_of_words[-1].append(level)
    words = []
    for levels in levels_of_words:
        word = np.zeros(num_items, np.uint64)
        for level in levels:
            values = table[:, level].astype(np.int64)
            values -= lows[level]
            word <<= np.uint64(bits[level])
            word |= values.view(np.uint64)
        words.append(word)
    row_bits = (num_items - 1).bit_length()
    if len(words) == 1 and sum(bits) + row_bits <= 64:
        word <<= np.uint64(row_bits)
        word |= np.arange(num_items, dtype=np.uint64)
        word.sort()
        rows = (word & np.uint64((1 << row_bits) - 1)).astype(index)
    else:
        order = np.lexsort(words[::-1])
        words, rows, row_bits = [word[order] for word in words], order.astype(index), 0
    fields = []
    for number, levels in enumerate(levels_of_words):
        for level in levels:
            below = sum(bits[other] for other in levels if other > level)
            fields.append(_Field(number, below + row_bits, bits[level], lows[level]))
    return words, fields, rows


def _levels_alike(words: list[np.ndarray], fields: list[_Field]) -> np.ndarray:
    """Returns ``(items,)`` how many first levels each code shares with the one before, 0 for the first."""
    alike = np.zeros(len(words[0]), np.min_scalar_type(len(fields)))
    alike_so_far = np.ones(len(alike) - 1, bool)
    for number, word in enumerate(words):
        differs = word[1:] ^ word[:-1]
        for field in fields:
            if field.word == number:
                alike_so_far &= differs < (1 << field.shift)
                alike[1:] += alike_so_far
    return alike


def _clash(words: list[np.ndarray], fields: list[_Field], row: int, how: str) -> IndexingError:
    """Returns the error that the code before a row of the sorted codes is ``how`` to the row's."""
    one, two = (
        [t for field in fields if (t := int(field.tokens(words[field.word][at : at + 1].copy())[0])) >= 0]
        for at in (row - 1, row)
    )
    return IndexingError(f"The code {one} is {how} the code {two}; codes must be prefix-free.")


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Returns the parts in one array, and empties the list, so that they are not kept in memory."""
    joined = np.concatenate(parts)
    parts.clear()
    return joined


def _file_name(array: str) -> str:
    return f"{array}.npy"


def _broken(path: Path, how: str) -> RunError:
    return RunError(f"{path} {how}: the trie was cut, changed, or is none of genrec's. Save it again.")


def _counts(about: Any, path: Path) -> dict[str, int]:
    """Returns the counts of a ``trie.json``; raises RunError if it is none, or of another version."""
    if not isinstance(about, dict) or about.get("kind") != KIND:
        raise _broken(path, "does not describe a trie")
    if about.get("version") != VERSION:
        raise RunError(
            f"{path} has version {about.get('version')!r} of the trie's files, this genrec reads version {VERSION}. "
            "Build the trie again."
        )
    counts = {name: about.get(name) for name in ("depth", "items", "nodes")}
    if not all(isinstance(count, int) and count > 0 for count in counts.values()):
        raise _broken(path, "does not say how large the trie is")
    if not isinstance(about.get("sha256"), dict):
        raise _broken(path, "does not have the files' hashes")
    return counts  # type: ignore[return-value]


def _read_array(path: Path, length: int, mmap: bool) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r" if mmap else None)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist.") from error
    except (OSError, ValueError, EOFError) as error:
        raise _broken(path, f"cannot be read ({error})") from error
    if not isinstance(array, np.ndarray) or array.dtype not in (np.int32, np.int64):
        raise _broken(path, "does not hold integers")
    if array.shape != (length,):
        raise _broken(path, f"has the shape {array.shape}, not the ({length},) that {ABOUT} gives it")
    # A plain view of the map: np.memmap costs a Python call at every element.
    return np.asarray(array)
