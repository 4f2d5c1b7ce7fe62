"""Sequential identifiers: items met together get neighbouring numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genrec.data_prep import ItemCatalog, ItemId, UserId
from genrec.indexing.codes import digits, spell
from genrec.indexing.index import ItemIndex
from genrec.indexing.settings import IndexSettings


def sequential(
    items: ItemCatalog, train: Mapping[UserId, Sequence[ItemId]], settings: IndexSettings
) -> ItemIndex:
    """Returns an index of numbers given in order of first appearance in the training histories.

    Users are walked in the log's order, items oldest first, so neighbours share their first digits.
    Items without a training interaction are numbered last, in random order: numbering them along the
    held-out interactions is the leak of P5's own indices.

    Source: SID (original order) in Hua et al., "How to Index Item IDs", SIGIR-AP 2023, sections on
    leakage. Differs in spelling as ``random_codes`` does; and the left-over items, which the public
    code numbers along the users' held-out items, are shuffled.

    Raises:
        IndexingError: If the settings have fewer codes than there are items.
    """
    order = list(dict.fromkeys(item for history in train.values() for item in history if item in items))
    rest = sorted(set(items.item_ids) - set(order))
    np.random.default_rng(settings.seed).shuffle(rest)
    order += rest
    codes = spell(digits(np.arange(len(order)), settings.codebook_size, settings.levels))
    by_item = dict(zip(order, codes, strict=True))
    return ItemIndex("sequential", {item: by_item[item] for item in items.item_ids})
