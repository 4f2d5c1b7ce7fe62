"""Independent identifiers: one token of its own for every item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genrec.data_prep import ItemCatalog, ItemId, UserId
from genrec.indexing.codes import spell
from genrec.indexing.index import ItemIndex
from genrec.indexing.settings import IndexSettings


def independent(
    items: ItemCatalog,
    train: Mapping[UserId, Sequence[ItemId]],  # noqa: ARG001
    settings: IndexSettings,  # noqa: ARG001
) -> ItemIndex:
    """Returns an index of one token an item, numbered in catalogue order.

    Source: IID in Hua et al., "How to Index Item IDs", SIGIR-AP 2023. The vocabulary grows by the
    catalogue, so it suits thousands of items, not millions; nothing is shared between items but what
    the tokens' initial rows say (see ``genrec.models.vocabulary``).
    """
    codes = spell(np.arange(len(items))[:, None])
    return ItemIndex("independent", dict(zip(items.item_ids, codes, strict=True)))
