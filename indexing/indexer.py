"""What an indexing method is: a way to name a catalogue, and a way to name what comes later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genrec.data_prep import ItemCatalog, ItemId, UserId
from genrec.indexing.codes import Code
from genrec.indexing.settings import IndexSettings

if TYPE_CHECKING:
    from genrec.indexing.index import ItemIndex


@dataclass(frozen=True)
class IndexInputs:
    """What a catalogue is named from.

    Attributes:
        items: The catalogue.
        train: Training histories, ``{user_id: items, oldest first}``; nothing held out belongs here.
        settings: Settings of all methods.
        collaborative: ``(items, width)`` vectors of a sequence recommender, in catalogue order, where
            ``settings.collaborative_vectors`` asks for them.
        state: File in which long training keeps where it is, so that it can be cut; None keeps nothing.
    """

    items: ItemCatalog
    train: Mapping[UserId, Sequence[ItemId]]
    settings: IndexSettings
    collaborative: np.ndarray | None = None
    state: Path | None = None


class Indexer(ABC):
    """An indexing method. Its class says what it does, its source and where it differs.

    Attributes:
        has_codebooks: Whether each of the first ``settings.levels`` tokens is one of ``settings.codebook_size``, so
            that a level may have tokens which no item uses.
    """

    has_codebooks = False

    @abstractmethod
    def build(self, inputs: IndexInputs) -> ItemIndex:
        """Returns the index of every item of the catalogue."""

    def takes_collaborative(self, settings: IndexSettings) -> bool:  # noqa: ARG002
        """Returns whether the method reads collaborative vectors under these settings."""
        return False

    @abstractmethod
    def extend(self, index: ItemIndex, items: ItemCatalog) -> dict[ItemId, Code]:
        """Returns the codes of items that came later, in their order; no old code changes.

        Args:
            index: An index that ``build`` made, or that was extended since.
            items: Items that are not in the index.
        """
