"""Hybrid identifiers: two schemes joined, the second one after the first."""

from __future__ import annotations

from typing import cast

import numpy as np

from genrec.core.errors import RecipeError, lookup
from genrec.data_prep import ItemCatalog, ItemId
from genrec.indexing.codes import Code, spell_symbols, symbols
from genrec.indexing.index import ItemIndex
from genrec.indexing.indexer import Indexer, IndexInputs
from genrec.indexing.settings import IndexSettings
from genrec.indexing.words import counted


class Hybrid(Indexer):
    """The code of one scheme followed by that of another, ``settings.join``, such as collaborative+independent.

    The first one's closing count (as ``collaborative`` and ``semantic`` have it) is left out, since the second
    scheme tells items apart by itself. Symbols of the second are marked with a plus, so that where it begins is
    known whatever the depth of the first, and no code begins another. New items get both schemes' codes for new
    items.

    Source: HID in Hua et al., "How to Index Item IDs", SIGIR-AP 2023: there CID+IID and SemID+IID are best.
    """

    def build(self, inputs: IndexInputs) -> ItemIndex:
        """Returns the index of every item of the catalogue.

        Raises:
            RecipeError: If ``settings.join`` does not name two other schemes.
            IndexingError: As the two schemes.
        """
        one, two = (indexer.build(inputs) for indexer in _joined(inputs.settings))
        codes = {item: _join(one.code(item), two.code(item)) for item in inputs.items.item_ids}
        state = {
            f"{place}/{name}": array
            for place, index in enumerate((one, two))
            for name, array in index.state.items()
        }
        state["counted"] = np.array(any(symbols(code)[-1].startswith("#") for code in one.codes.values()))
        report = {
            "parts": [one.report, two.report],
            "num_items_touched": two.report.get("num_items_touched", 0),
        }
        return ItemIndex("hybrid", codes, report, inputs.settings, state, two.shared)

    def takes_collaborative(self, settings: IndexSettings) -> bool:
        """Returns whether one of the two schemes does."""
        return any(indexer.takes_collaborative(settings) for indexer in _joined(settings))

    def extend(self, index: ItemIndex, items: ItemCatalog) -> dict[ItemId, Code]:
        """Returns both schemes' codes for new items, joined."""
        assert index.settings is not None
        halves = [_parted(code) for code in index.codes.values()]
        first = [one for one, _ in halves]
        old = [
            counted(first, index.settings.codebook_size)[0]
            if index.state["counted"]
            else spell_symbols(first),
            spell_symbols([two for _, two in halves]),
        ]
        new = []
        for place, indexer in enumerate(_joined(index.settings)):
            state = {
                name.partition("/")[2]: array
                for name, array in index.state.items()
                if name.startswith(f"{place}/")
            }
            codes = dict(zip(index.codes, old[place], strict=True))
            part = ItemIndex("hybrid", codes, None, index.settings, state, index.shared and place == 1)
            new.append(indexer.extend(part, items))
        return {item: _join(new[0][item], new[1][item]) for item in items.item_ids}


def _joined(settings: IndexSettings) -> list[Indexer]:
    from genrec.indexing import INDEXERS

    names = [name.strip() for name in settings.join.split("+")]
    if len(names) != 2 or "hybrid" in names:
        raise RecipeError(
            f"index.join names two schemes other than hybrid with a plus between, such as collaborative+independent; "
            f"got {settings.join!r}."
        )
    return [cast(Indexer, lookup(INDEXERS, name, "indexing method in index.join")) for name in names]


def _join(one: Code, two: Code) -> Code:
    first = [symbol for symbol in symbols(one) if not symbol.startswith("#")]
    return spell_symbols([[*first, *("+" + symbol for symbol in symbols(two))]])[0]


def _parted(code: Code) -> tuple[list[str], list[str]]:
    """Returns the symbols of the first scheme, its count left out, and of the second."""
    parts = symbols(code)
    two = [symbol[1:] for symbol in parts if symbol.startswith("+")]
    return list(parts[: len(parts) - len(two)]), two
