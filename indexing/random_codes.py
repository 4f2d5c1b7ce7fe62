"""Random identifiers: the floor that every other scheme must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genrec.data_prep import ItemCatalog, ItemId, UserId
from genrec.indexing.codes import digits, spell
from genrec.indexing.index import ItemIndex
from genrec.indexing.settings import IndexSettings


def random_codes(
    items: ItemCatalog,
    train: Mapping[UserId, Sequence[ItemId]],  # noqa: ARG001
    settings: IndexSettings,
) -> ItemIndex:
    """Returns an index that gives each item a distinct random number, written in ``levels`` digits.

    Source: RID in Hua et al., "How to Index Item IDs", SIGIR-AP 2023. There the number is a decimal
    that the sub-word tokenizer splits; here it has ``levels`` digits to the base ``codebook_size``,
    each an identifier token, so that all codes have one length whatever the tokenizer.

    Raises:
        IndexingError: If the settings have fewer codes than there are items.
    """
    rng = np.random.default_rng(settings.seed)
    capacity = settings.codebook_size**settings.levels
    if capacity <= 4 * len(items):
        numbers = rng.permutation(max(capacity, len(items)))[: len(items)]
    else:
        drawn: dict[int, None] = {}
        while len(drawn) < len(items):
            for number in rng.integers(capacity, size=len(items)).tolist():
                drawn.setdefault(number)
        numbers = np.fromiter(drawn, np.int64, len(drawn))[: len(items)]
    codes = spell(digits(numbers, settings.codebook_size, settings.levels))
    return ItemIndex("random", dict(zip(items.item_ids, codes, strict=True)))
