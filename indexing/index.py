"""The item index: which code names which item, and back."""

from __future__ import annotations

import base64
import io
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from genrec.core.errors import IndexingError, RunError, UnknownItemError, nearest
from genrec.core.files import atomic_path, hash_value, read_json, write_json
from genrec.core.hub import is_repo_id, pull, push, without_private_paths
from genrec.data_prep import ItemCatalog, ItemId
from genrec.indexing.card import write_index_card
from genrec.indexing.codes import Code, count_symbols, spell_symbols
from genrec.indexing.quality import code_quality
from genrec.indexing.settings import IndexSettings
from genrec.indexing.trie import ItemTrie

_STATE = b"genrec.state"


class ItemIndex:
    """A map between items and codes, one-to-one unless codes are shared on purpose.

    Attributes:
        method: Name of the scheme that made it.
        codes: ``{item_id: code}`` in catalogue order; items that came later stand last.
        tokens: Every token of any code: the vocabulary to add to a model. Sorted by level and number; tokens
            of items that came later stand last, and those of items that left stay, so that a model's
            vocabulary keeps its order.
        token_levels: The level (from 0) of each token in ``tokens``.
        trie_of_tokens: The trie of all codes in numbers of ``tokens``; its rows are numbered as ``item_ids``.
        shared: Whether items may share a code (collision policy ``allow``).
        settings: What it was made with, None for an index that genrec did not make.
        state: Arrays that its scheme needs to name items that come later.
        report: What the scheme says of itself, such as the items a collision policy touched.

    Args:
        method: Name of the scheme.
        codes: ``{item_id: code}``.
        report: What the scheme says of itself.
        settings: What it was made with.
        state: What its scheme needs to name items that come later.
        shared: Whether items may share a code.
        tokens: ``{token: level}`` of tokens that come first, in this order, whether a code has them or not.

    Raises:
        IndexingError: If two items share a code and may not, a code is empty or the beginning of another, or
            a token occurs at two levels.
    """

    def __init__(
        self,
        method: str,
        codes: Mapping[ItemId, Code],
        report: Mapping[str, Any] | None = None,
        settings: IndexSettings | None = None,
        state: Mapping[str, np.ndarray] | None = None,
        shared: bool = False,
        tokens: Mapping[str, int] | None = None,
    ) -> None:
        self.method, self.settings, self.shared = method, settings, shared
        self.codes: dict[ItemId, Code] = dict(codes)
        self.state = dict(state or {})
        if not self.codes:
            raise IndexingError("An index needs at least one item.")
        self._items: dict[Code, list[ItemId]] = {}
        for item, code in self.codes.items():
            self._items.setdefault(code, []).append(item)
        if len(self._items) < len(self.codes) and not shared:
            code, items = next((code, items) for code, items in self._items.items() if len(items) > 1)
            raise IndexingError(
                f"{len(self.codes) - len(self._items):,} items share a code with another, first: "
                f"{', '.join(items[:3])} are all {''.join(code)}. A code must name one item, unless the "
                "collision policy is allow."
            )
        self._kept_tokens = dict(tokens or {})
        levels = dict(self._kept_tokens)
        for code in self._items:
            for level, token in enumerate(code):
                if levels.setdefault(token, level) != level:
                    raise IndexingError(f"The token {token!r} occurs at two levels of codes.")
        rest = levels.keys() - self._kept_tokens.keys()
        self.tokens = [
            *self._kept_tokens,
            *sorted(rest, key=lambda token: (levels[token], _number(token), token)),
        ]
        self.token_levels = [levels[token] for token in self.tokens]
        self.trie_of_tokens = self.trie({token: number for number, token in enumerate(self.tokens)})
        self.report: dict[str, Any] = dict(report or {}) | code_quality(list(self.codes.values()))

    @property
    def item_ids(self) -> list[ItemId]:
        """All items, in catalogue order."""
        return list(self.codes)

    @property
    def num_levels(self) -> int:
        """Tokens in the longest code."""
        return max(map(len, self._items))

    @cached_property
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
        """Returns the item that a code names, the first of several, or None for a code that names none."""
        found = self._items.get(tuple(code))
        return found[0] if found else None

    def items(self, code: Sequence[str]) -> list[ItemId]:
        """Returns every item that a code names, in catalogue order."""
        return list(self._items.get(tuple(code), ()))

    def trie(self, token_ids: Mapping[str, int]) -> ItemTrie:
        """Returns the trie of all codes in a model's token ids.

        Rows are numbered as in ``item_ids``.

        Args:
            token_ids: ``{token: id}`` for every token in ``tokens``.
        """
        rows = [[token_ids[token] for token in code] for code in self.codes.values()]
        return ItemTrie(rows, shared=self.shared)

    def extend(self, items: ItemCatalog) -> ItemIndex:
        """Returns an index that has these items too; no code of before changes, nothing is trained again.

        Each scheme has its rule (its docstring). ``report["num_new_tokens"]`` counts the tokens that a model
        trained with the old index does not know; it can recommend an item only if all tokens of its code are
        known to it.

        Args:
            items: New items.

        Raises:
            IndexingError: If an item is in the index already, the scheme cannot name new items, or has no
                code left.
        """
        from genrec.indexing import INDEXERS

        if known := [item for item in items.item_ids if item in self.codes]:
            raise IndexingError(
                f"{len(known):,} of the {len(items):,} new items are in the index already, first {known[0]!r}."
            )
        if self.method not in INDEXERS or self.settings is None:
            raise IndexingError(
                f"The index was made by {self.method!r}, which genrec cannot ask for codes of new items. Build an "
                "index of the whole catalogue."
            )
        codes = INDEXERS[self.method].extend(self, items)
        report = dict(self.report) | {"num_extended": self.report.get("num_extended", 0) + len(codes)}
        new = self._changed(self.codes | codes, report)
        new.report["num_new_tokens"] = (
            self.report.get("num_new_tokens", 0) + len(new.tokens) - len(self.tokens)
        )
        return new

    def remove(self, items: Collection[ItemId]) -> ItemIndex:
        """Returns an index without these items: they leave the trie, their tokens stay in the vocabulary.

        Raises:
            UnknownItemError: If an item is not in the index.
            IndexingError: If no item is left.
        """
        gone = set(items)
        for item in gone:
            self.code(item)
        report = dict(self.report) | {"num_removed": self.report.get("num_removed", 0) + len(gone)}
        return self._changed({item: code for item, code in self.codes.items() if item not in gone}, report)

    def _changed(self, codes: Mapping[ItemId, Code], report: Mapping[str, Any]) -> ItemIndex:
        tokens = dict(zip(self.tokens, self.token_levels, strict=True))
        return ItemIndex(self.method, codes, report, self.settings, self.state, self.shared, tokens)

    def save(self, folder: str | Path) -> None:
        """Writes ``index.parquet`` (item_id, code), ``index.json`` (method, settings, report, hash) and a card.

        What the scheme needs to name later items goes into the Parquet file's metadata.
        """
        folder = Path(folder)
        table = pa.table(
            {
                "item_id": pa.array(list(self.codes), pa.string()),
                "code": pa.array([list(c) for c in self.codes.values()], pa.list_(pa.string())),
            }
        )
        if self.state:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **self.state)
            # In letters: readers other than pyarrow take metadata for text.
            table = table.replace_schema_metadata({_STATE: base64.b85encode(buffer.getvalue())})
        with atomic_path(folder / "index.parquet") as part:
            pa_parquet.write_table(table, part)
        about = {
            "method": self.method,
            "hash": self.hash,
            "shared": self.shared,
            "settings": self.settings.model_dump(mode="json") if self.settings else None,
            "report": self.report,
            "tokens": dict(zip(self.tokens, self.token_levels, strict=True)) if self._kept_tokens else {},
        }
        write_json(folder / "index.json", about)
        write_index_card(folder, self)

    @classmethod
    def load(cls, folder_or_hub_id: str | Path) -> ItemIndex:
        """Returns the index that ``save`` wrote into a folder, or ``push_to_hub`` into a Hub repository.

        Raises:
            RunError: If a file is missing or the codes are not those that were saved.
        """
        folder = Path(folder_or_hub_id)
        if not folder.is_dir() and is_repo_id(str(folder_or_hub_id)):
            wanted = ["index.json", "index.parquet"]
            folder = pull(str(folder_or_hub_id), "model", "an index", wanted)
        about = read_json(folder / "index.json")
        try:
            table = pa_parquet.read_table(folder / "index.parquet")
        except (OSError, pa.ArrowInvalid) as error:
            raise RunError(f"{folder / 'index.parquet'} cannot be read: {error}") from error
        codes = {
            item: tuple(code)
            for item, code in zip(table["item_id"].to_pylist(), table["code"].to_pylist(), strict=True)
        }
        state = {}
        if _STATE in (table.schema.metadata or {}):
            with np.load(
                io.BytesIO(base64.b85decode(table.schema.metadata[_STATE])), allow_pickle=False
            ) as arrays:
                state = dict(arrays)
        # An index of an earlier version has neither settings nor tokens: it cannot be extended, all else works.
        settings = about.get("settings")
        index = cls(
            about["method"],
            codes,
            about["report"],
            IndexSettings.model_validate(settings) if settings else None,
            state,
            about.get("shared", False),
            about.get("tokens"),
        )
        if index.hash != about["hash"]:
            raise RunError(
                f"{folder / 'index.parquet'} does not have the hash that index.json gives it: one of the "
                "two was changed or cut. Build the index again."
            )
        return index

    @classmethod
    def read(cls, path: str | Path, collisions: str = "allow") -> ItemIndex:
        """Returns a published index: the ``*.index.json`` of LC-Rec, LETTER, MiniOneRec and others.

        The file maps item ids to lists of tokens. ``report`` says how many items share a code, which these
        files have: 832 of the 20,033 of LETTER's Yelp. A token that occurs at several levels is written with
        its level before it.

        Args:
            path: The file.
            collisions: ``"allow"`` keeps shared codes; ``"suffix"`` appends a count to every code, so that they
                name one item each.

        Raises:
            IndexingError: If the file is not such an index, or ``collisions`` is another policy: others need the
                vectors behind the codes.
        """
        found = read_json(path)
        if not isinstance(found, dict) or not all(
            isinstance(code, list) and code and all(isinstance(token, str) for token in code)
            for code in found.values()
        ):
            raise IndexingError(
                f"{path} must map item ids to lists of tokens, as "
                '{"0": ["<a_1>", "<b_2>"], ...}, every list with a token.'
            )
        if collisions not in ("allow", "suffix"):
            raise IndexingError(f"collisions of a read index is 'allow' or 'suffix', got {collisions!r}.")
        codes: dict[ItemId, Code] = {str(item): tuple(code) for item, code in found.items()}
        levels: dict[str, set[int]] = {}
        for code in codes.values():
            for level, token in enumerate(code):
                levels.setdefault(token, set()).add(level)
        if any(len(places) > 1 for places in levels.values()):
            codes = dict(zip(codes, spell_symbols(codes.values()), strict=True))
        counts = Counter(codes.values())
        report = {
            "collision_policy": collisions,
            "collision_rate_before": 1 - len(counts) / len(codes) if codes else 0.0,
            "num_codes_shared": sum(count > 1 for count in counts.values()),
            "num_items_touched": 0,
        }
        if collisions == "suffix":
            seen: Counter[Code] = Counter()
            for item, code in codes.items():
                codes[item] = code + spell_symbols([count_symbols(seen[code], 256)], len(code))[0]
                seen[code] += 1
            report["num_items_touched"] = len(codes) - len(counts)
        name = Path(path).name.removesuffix(".json").removesuffix(".index")
        try:
            return cls(f"published:{name}", codes, report, shared=collisions == "allow")
        except IndexingError as error:
            raise IndexingError(f"{path}: {error} Read it with collisions='suffix'.") from error

    def push_to_hub(self, repo_id: str, private: bool = True, dry_run: bool = False) -> dict[str, int]:
        """Uploads what ``save`` writes to a Hub repository; ``load(repo_id)`` brings it back.

        Args:
            repo_id: ``org/name``.
            private: Whether a new repository is private.
            dry_run: Only say what would go up.

        Returns:
            ``{file: bytes}``.

        Raises:
            RunError: As ``genrec.core.hub.push``.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            self.save(folder)
            without_private_paths(folder)
            message = "genrec item index"
            return push(folder, repo_id, "model", private=private, dry_run=dry_run, message=message)


def _number(token: str) -> int:
    digits = "".join(letter for letter in token if letter.isdigit())
    return int(digits) if digits else 0
