"""One door to all methods: constrained lists, grounded lists, or both as one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from genrec.core.errors import RunError
from genrec.core.progress import progress
from genrec.data_prep import ItemCatalog, ItemId
from genrec.decoding.beam import ConstrainedDecoder, Ranking
from genrec.decoding.grounding import Grounder, Written, normalised
from genrec.decoding.settings import DecodingSettings, FusionSettings, Method

_RANK_CONSTANT = 60


def fuse(lists: Sequence[Ranking], settings: FusionSettings, k: int) -> Ranking:
    """Returns the k best items of one user's lists, each once, with the sum of what each list gives them.

    ``reciprocal_rank``: weight / (60 + rank), ranks from 1 (Cormack et al., SIGIR 2009, whose constant this is; the weights
    are ours). ``weighted``: weight times the score, scaled to [0, 1] within the list. A list gives nothing to an item that it
    lacks. Equal sums go by the first list that has the item, then by rank there.

    Args:
        lists: Items with scores, best first; the first is that of the first weight.
        settings: How.
        k: Items wanted.
    """
    total: dict[ItemId, float] = {}
    for ranking, weight in zip(lists, settings.weights, strict=True):
        if settings.how == "reciprocal_rank":
            shares = [1 / (_RANK_CONSTANT + rank) for rank in range(1, len(ranking) + 1)]
        else:
            shares = normalised(np.array([score for _, score in ranking])).tolist() if ranking else []
        for (item, _), share in zip(ranking, shares, strict=True):
            total[item] = total.get(item, 0.0) + weight * share
    return sorted(total.items(), key=lambda pair: -pair[1])[:k]


class Ranker:
    """Ranks items by any of the methods that a model can.

    Attributes:
        settings: The method unless another is asked for, and how lists are fused.
        items: The catalogue.
        constrained: Beam search over identifiers, None where the model cannot.
        grounder: Grounding of what it writes, None where it cannot.
    """

    def __init__(
        self,
        settings: DecodingSettings,
        items: ItemCatalog,
        constrained: ConstrainedDecoder | None = None,
        grounder: Grounder | None = None,
    ) -> None:
        self.settings, self.items, self.constrained, self.grounder = settings, items, constrained, grounder

    def rank_all(
        self,
        histories: Sequence[Sequence[ItemId]],
        k: int,
        exclude: Sequence[Collection[ItemId]] | None = None,
        beams: int | None = None,
        batch_size: int = 32,
        label: str = "ranking",
        method: Method | None = None,
        allow: Sequence[Collection[ItemId] | None] | None = None,
        written: Sequence[Written] | None = None,
        users: np.ndarray | None = None,
    ) -> list[Ranking]:
        """Returns, for each history, the ``min(k, allowed items)`` best items with their scores, best first.

        Items that the index lacks are known to grounding alone: beam search passes them over in histories.

        Args:
            histories: Items each user took, oldest first; may be empty.
            k: Items wanted.
            exclude: Items that must not come, for each history; None excludes nothing.
            beams: Of the constrained search.
            batch_size: Histories at a time.
            label: Of the progress bars; an empty one shows none.
            method: Default is that of the settings.
            allow: The only items that may come, for each history; None allows all, also of a single history.
            written: From ``Grounder.write`` for these histories, where it is there already.
            users: ``(histories, user_size)`` vectors, for a model of personal adapters.

        Raises:
            RunError: If the model cannot be asked in this way.
            UnknownItemError: If an item is unknown.
        """
        method = method or self.settings.method
        depth = k if method != "fused" else max(k, self.settings.fusion.depth)
        lists = []
        if method != "grounded":
            if self.constrained is None:
                raise RunError(
                    f"method={method!r} needs a model that writes identifiers, and no family of its mixture asks for "
                    "one. Use method='grounded', or train with next_item in tasks.mixture."
                )
            codes, asked, out = self.constrained.index.codes, histories, exclude
            if len(codes) < len(self.items):
                for item in {item for rows in (histories, exclude or []) for each in rows for item in each}:
                    self.items.title(item)  # says what is wrong with an unknown one
                asked = [[item for item in each if item in codes] for each in histories]
                out = exclude and [[item for item in each if item in codes] for each in exclude]
            found: Iterable[Ranking] = self.constrained.stream(
                asked, depth, out, beams, batch_size, allow=allow, users=users
            )
            lists.append(list(progress(found, len(asked), label) if label else found))
        if method != "constrained":
            if self.grounder is None:
                raise RunError(
                    f"method={method!r} needs a model that writes titles, and no family of its mixture asks for the "
                    "title of the next item. Use method='constrained', or train with bigrec in tasks.mixture."
                )
            if written is None:
                written = self.grounder.write(histories, batch_size, label and "writing", users)
            lists.append(self.grounder.match(histories, written, depth, self._left_out(exclude, allow)))
        if len(lists) == 1:
            return lists[0]
        return [fuse(each, self.settings.fusion, k) for each in zip(*lists, strict=True)]

    def _left_out(
        self,
        exclude: Sequence[Collection[ItemId]] | None,
        allow: Sequence[Collection[ItemId] | None] | None,
    ) -> Sequence[Collection[ItemId]] | None:
        """Returns exclusions and allow-lists as exclusions alone."""
        if allow is None:
            return exclude
        every = set(self.items.item_ids)
        out = exclude or [()] * len(allow)
        return [
            items if only is None else (every - set(only)).union(items)
            for items, only in zip(out, allow, strict=True)
        ]
