"""Random identifiers: the floor that every other scheme must beat."""

from __future__ import annotations

import numpy as np

from genrec.core.errors import IndexingError
from genrec.data_prep import ItemCatalog, ItemId
from genrec.indexing.codes import Code, digits, numbers_of, spell, undigits
from genrec.indexing.index import ItemIndex
from genrec.indexing.indexer import Indexer, IndexInputs
from genrec.indexing.settings import IndexSettings


class Random(Indexer):
    """A distinct random number for each item, written in ``levels`` digits. New items get free numbers.

    Source: RID in Hua et al., "How to Index Item IDs", SIGIR-AP 2023. There the number is a decimal that the
    sub-word tokenizer splits; here it has ``levels`` digits to the base ``codebook_size``, each an identifier
    token, so that all codes have one length whatever the tokenizer.
    """

    has_codebooks = True

    def build(self, inputs: IndexInputs) -> ItemIndex:
        """Returns the index of every item of the catalogue.

        Raises:
            IndexingError: If the settings have fewer codes than there are items.
        """
        settings = inputs.settings
        codes = _draw(len(inputs.items), settings, set(), settings.seed)
        return ItemIndex("random", dict(zip(inputs.items.item_ids, codes, strict=True)), settings=settings)

    def extend(self, index: ItemIndex, items: ItemCatalog) -> dict[ItemId, Code]:
        """Returns free numbers, drawn at random.

        Raises:
            IndexingError: If too few codes are free.
        """
        settings = index.settings
        assert settings is not None
        used = set(
            undigits(numbers_of(index.codes.values(), settings.levels), settings.codebook_size).tolist()
        )
        codes = _draw(len(items), settings, used, settings.seed + len(index.codes))
        return dict(zip(items.item_ids, codes, strict=True))


def _draw(count: int, settings: IndexSettings, used: set[int], seed: int) -> list[Code]:
    rng = np.random.default_rng(seed)
    base, levels = settings.codebook_size, settings.levels
    capacity = base**levels
    if capacity < count + len(used):
        raise IndexingError(
            f"{levels} levels of {base} codes name at most {capacity:,} items; {count + len(used):,} are needed. "
            "Raise index.levels or index.codebook_size."
        )
    if capacity <= 4 * (count + len(used)):
        free = np.setdiff1d(np.arange(capacity), np.fromiter(used, np.int64, len(used)))
        numbers = rng.permutation(free)[:count]
    else:
        drawn: dict[int, None] = {}
        while len(drawn) < count:
            # Numbers beyond 63 bits are not needed to keep any catalogue apart.
            for number in rng.integers(min(capacity, 2**63 - 1), size=count).tolist():
                if number not in used:
                    drawn.setdefault(number)
        numbers = np.fromiter(drawn, np.int64, len(drawn))[:count]
    return spell(digits(numbers, base, levels))
