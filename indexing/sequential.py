"""Sequential identifiers: items met together get neighbouring numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genrec.data_prep import ItemCatalog, ItemId, UserId
from genrec.indexing.codes import Code, digits, numbers_of, spell, undigits
from genrec.indexing.index import ItemIndex
from genrec.indexing.indexer import Indexer, IndexInputs


class Sequential(Indexer):
    """Numbers in order of first appearance in the training histories, written in ``levels`` digits.

    Users are walked one by one in the order that ``settings.order`` names (the log's; at random; short
    histories first; long ones first), their items oldest first, so neighbours share their first digits. Items
    without a training interaction are numbered last, in random order: numbering them along the held-out
    interactions is the leak of P5's own indices. New items get the next numbers.

    Source: SID in Hua et al., "How to Index Item IDs", SIGIR-AP 2023, sections on leakage and on the order of
    users. Differs in spelling as ``random`` does; and the left-over items, which the public code numbers along
    the users' held-out items, are shuffled.
    """

    has_codebooks = True

    def build(self, inputs: IndexInputs) -> ItemIndex:
        """Returns the index of every item of the catalogue.

        Raises:
            IndexingError: If the settings have fewer codes than there are items.
        """
        items, settings = inputs.items, inputs.settings
        rng = np.random.default_rng(settings.seed)
        histories = _walk(inputs.train, settings.order, rng)
        order = list(dict.fromkeys(item for history in histories for item in history if item in items))
        rest = sorted(set(items.item_ids) - set(order))
        rng.shuffle(rest)
        order += rest
        codes = spell(digits(np.arange(len(order)), settings.codebook_size, settings.levels))
        by_item = dict(zip(order, codes, strict=True))
        return ItemIndex("sequential", {item: by_item[item] for item in items.item_ids}, settings=settings)

    def extend(self, index: ItemIndex, items: ItemCatalog) -> dict[ItemId, Code]:
        """Returns the next numbers, in the order given.

        Raises:
            IndexingError: If no number is left.
        """
        settings = index.settings
        assert settings is not None
        base, levels = settings.codebook_size, settings.levels
        first = int(undigits(numbers_of(index.codes.values(), levels), base).max()) + 1
        codes = spell(digits(np.arange(first, first + len(items)), base, levels))
        return dict(zip(items.item_ids, codes, strict=True))


def _walk(
    train: Mapping[UserId, Sequence[ItemId]], order: str, rng: np.random.Generator
) -> list[Sequence[ItemId]]:
    histories = list(train.values())
    if order == "random":
        return [histories[row] for row in rng.permutation(len(histories))]
    if order == "short_to_long":
        return sorted(histories, key=len)
    if order == "long_to_short":
        return sorted(histories, key=len, reverse=True)
    return histories
