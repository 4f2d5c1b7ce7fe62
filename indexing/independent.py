"""Independent identifiers: one token of its own for every item."""

from __future__ import annotations

import numpy as np

from genrec.data_prep import ItemCatalog, ItemId
from genrec.indexing.codes import Code, numbers_of, spell
from genrec.indexing.index import ItemIndex
from genrec.indexing.indexer import Indexer, IndexInputs


class Independent(Indexer):
    """One token an item, numbered in catalogue order.

    The vocabulary grows by the catalogue, so it suits thousands of items, not millions; nothing is shared
    between items but what the tokens' initial rows say (see ``genrec.models.vocabulary``). New items get the
    next numbers, so a model must learn their tokens before it can write them.

    Source: IID in Hua et al., "How to Index Item IDs", SIGIR-AP 2023.
    """

    def build(self, inputs: IndexInputs) -> ItemIndex:
        """Returns the index of every item of the catalogue."""
        codes = spell(np.arange(len(inputs.items))[:, None])
        return ItemIndex(
            "independent", dict(zip(inputs.items.item_ids, codes, strict=True)), settings=inputs.settings
        )

    def extend(self, index: ItemIndex, items: ItemCatalog) -> dict[ItemId, Code]:
        """Returns the next numbers, which no item ever had."""
        first = int(numbers_of([(token,) for token in index.tokens], 1).max()) + 1
        codes = spell(np.arange(first, first + len(items))[:, None])
        return dict(zip(items.item_ids, codes, strict=True))
