"""The item index: which code names which item, and back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from genrec.core.errors import IndexingError, RunError, UnknownItemError, nearest
from genrec.core.files import atomic_path, hash_value, read_json, write_json
from genrec.data_prep import ItemId
from genrec.indexing.codes import Code
from genrec.indexing.trie import ItemTrie


class ItemIndex:
    """A one-to-one map between items and codes.

    Attributes:
        method: Name of the scheme that made it.
        codes: ``{item_id: code}`` in catalogue order.
        report: What the scheme says of itself, such as the items a collision policy touched.
        tokens: Every token of any code, by level and then number: the vocabulary to add to a model.
        token_levels: The level (from 0) of each token in ``tokens``.

    Raises:
        IndexingError: If two items share a code, a code is empty or the beginning of another, or a token
            occurs at two levels.
    """

    def __init__(
        self, method: str, codes: Mapping[ItemId, Code], report: Mapping[str, Any] | None = None
    ) -> None:
        self.method = method
        self.codes: dict[ItemId, Code] = dict(codes)
        self._items = {code: item for item, code in self.codes.items()}
        if not self.codes:
            raise IndexingError("An index needs at least one item.")
        if len(self._items) < len(self.codes):
            shared = [code for code, count in Counter(self.codes.values()).items() if count > 1]
            both = [item for item, code in self.codes.items() if code == shared[0]]
            raise IndexingError(
                f"{len(self.codes) - len(self._items):,} items share a code with another, first: "
                f"{', '.join(both[:3])} are all {''.join(shared[0])}. A code must name one item."
            )
        levels: dict[str, int] = {}
        for code in self._items:
            for level, token in enumerate(code):
                if levels.setdefault(token, level) != level:
                    raise IndexingError(f"The token {token!r} occurs at two levels of codes.")
        self.tokens = sorted(levels, key=lambda token: (levels[token], _number(token), token))
        self.token_levels = [levels[token] for token in self.tokens]
        position = {token: i for i, token in enumerate(self.tokens)}
        self.trie_of_tokens = ItemTrie([[position[token] for token in code] for code in self.codes.values()])
        self.report: dict[str, Any] = dict(report or {}) | self._quality()

    @property
    def item_ids(self) -> list[ItemId]:
        """All items, in catalogue order."""
        return list(self.codes)

    @property
    def num_levels(self) -> int:
        """Tokens in the longest code."""
        return max(self.token_levels) + 1

    @property
    def hash(self) -> str:
        """Digest of every item's code: equal for equal indices, whatever made them."""
        return hash_value([[item, *code] for item, code in self.codes.items()])

    def code(self, item: ItemId) -> Code:
        """Returns an item's code.

        Raises:
            UnknownItemError: If the index does not have the item.
        """
        if item not in self.codes:
            raise UnknownItemError(
                f"Item {item!r} is not in the index of {len(self.codes):,} items.{nearest(item, self.codes)}"
            )
        return self.codes[item]

    def item(self, code: Sequence[str]) -> ItemId | None:
        """Returns the item that a code names, or None for a code that names none."""
        return self._items.get(tuple(code))

    def trie(self, token_ids: Mapping[str, int]) -> ItemTrie:
        """Returns the trie of all codes in a model's token ids.

        Leaves are numbered as in ``item_ids``.

        Args:
            token_ids: ``{token: id}`` for every token in ``tokens``.
        """
        return ItemTrie([[token_ids[token] for token in code] for code in self.codes.values()])

    def save(self, folder: str | Path) -> None:
        """Writes ``index.parquet`` (item_id, code) and ``index.json`` (method, report, hash)."""
        folder = Path(folder)
        table = pa.table(
            {
                "item_id": pa.array(list(self.codes), pa.string()),
                "code": pa.array([list(c) for c in self.codes.values()], pa.list_(pa.string())),
            }
        )
        with atomic_path(folder / "index.parquet") as part:
            pa_parquet.write_table(table, part)
        write_json(folder / "index.json", {"method": self.method, "hash": self.hash, "report": self.report})

    @classmethod
    def load(cls, folder: str | Path) -> ItemIndex:
        """Returns the index that ``save`` wrote.

        Raises:
            RunError: If a file is missing or the codes are not those that were saved.
        """
        folder = Path(folder)
        about = read_json(folder / "index.json")
        try:
            table = pa_parquet.read_table(folder / "index.parquet")
        except (OSError, pa.ArrowInvalid) as error:
            raise RunError(f"{folder / 'index.parquet'} cannot be read: {error}") from error
        codes = {
            item: tuple(code)
            for item, code in zip(table["item_id"].to_pylist(), table["code"].to_pylist(), strict=True)
        }
        index = cls(about["method"], codes, about["report"])
        if index.hash != about["hash"]:
            raise RunError(
                f"{folder / 'index.parquet'} does not have the hash that index.json gives it: one of the "
                "two was changed or cut. Build the index again."
            )
        return index

    def _quality(self) -> dict[str, Any]:
        levels = []
        for level in range(self.num_levels):
            used = Counter(code[level] for code in self.codes.values() if len(code) > level)
            total = used.total()
            entropy = -sum(n / total * math.log(n / total) for n in used.values())
            levels.append({"tokens": len(used), "perplexity": math.exp(entropy)})
        lengths = [len(code) for code in self.codes.values()]
        return {
            "num_items": len(self.codes),
            "num_tokens": len(self.tokens),
            "mean_length": sum(lengths) / len(lengths),
            "max_length": max(lengths),
            "collision_rate": 0.0,
            "levels": levels,
        }


def _number(token: str) -> int:
    digits = "".join(letter for letter in token if letter.isdigit())
    return int(digits) if digits else 0
