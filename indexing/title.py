"""Title identifiers: an item is named by the words of its title."""

from __future__ import annotations

from genrec.data_prep import ItemCatalog, ItemId
from genrec.indexing.codes import Code
from genrec.indexing.index import ItemIndex
from genrec.indexing.indexer import Indexer, IndexInputs
from genrec.indexing.words import counted, name_symbol, words_of


class Title(Indexer):
    """The words of the title, a token each, then a count among items of one title.

    An item without a title is named by its id (``Item 42``). ``settings.max_words`` cuts long titles; the count
    tells apart what the cut made equal. Items of one title are counted in catalogue order. New items are named
    the same way; a word that no title had at its place is a new token.

    Source: TID in Hua et al., "How to Index Item IDs", SIGIR-AP 2023, where it is mostly the worst. There the
    title is split by the sub-word tokenizer and items of one title collide.
    """

    def build(self, inputs: IndexInputs) -> ItemIndex:
        """Returns the index of every item of the catalogue."""
        settings = inputs.settings
        codes, touched = counted(_rows(inputs.items, settings.max_words), settings.codebook_size)
        report = {"collision_policy": "suffix", "num_items_touched": touched}
        return ItemIndex(
            "title", dict(zip(inputs.items.item_ids, codes, strict=True)), report, settings=settings
        )

    def extend(self, index: ItemIndex, items: ItemCatalog) -> dict[ItemId, Code]:
        """Returns codes by the same rule, counted on from the items that are there."""
        settings = index.settings
        assert settings is not None
        rows = _rows(items, settings.max_words)
        codes, _ = counted(rows, settings.codebook_size, index.codes.values())
        return dict(zip(items.item_ids, codes, strict=True))


def _rows(items: ItemCatalog, max_words: int | None) -> list[list[str]]:
    return [
        [name_symbol(word) for word in words_of(items.title(item))[:max_words]] for item in items.item_ids
    ]
