"""The protocol: every user once, every item ranked, seen items left out or not by a stated setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from genrec.core.errors import require
from genrec.data_prep import HeldOut, ItemId, Split
from genrec.evaluation.lists import NO_ITEM, top_columns
from genrec.evaluation.metrics import ranking_metrics

if TYPE_CHECKING:
    from genrec.models.sasrec import SASRec


class EvaluateSettings(BaseModel):
    """What is measured, and beside what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on: Literal["test", "valid"] = Field(
        "test", description="Held-out items that are ranked; choose settings on valid, report on test once."
    )
    ks: tuple[int, ...] = Field((1, 5, 10), min_length=1, description="Cut-offs of the metrics.")
    beams: int = Field(20, ge=1, description="Beam width; never less than the largest cut-off.")
    exclude_history: bool = Field(
        True, description="Whether items of the user's history are left out of every row's ranking."
    )
    baselines: tuple[str, ...] = Field(
        ("popularity", "sasrec"), description="Baselines beside the model: popularity, sasrec."
    )
    batch_size: int = Field(32, ge=1, description="Histories ranked together.")


def top_items(
    scores: np.ndarray, item_ids: Sequence[ItemId], k: int, exclude: Sequence[Sequence[ItemId]] | None
) -> list[list[ItemId]]:
    """Returns each user's k best items by score, best first; ties in the order of ``item_ids``.

    Args:
        scores: ``(users, items)``.
        item_ids: What the columns are.
        k: Items wanted; fewer come where fewer are left.
        exclude: Items to leave out, for each user.
    """
    position = {item: column for column, item in enumerate(item_ids)}
    scores = np.array(scores, np.float64)
    for row, items in enumerate(exclude or []):
        scores[row, [position[item] for item in items]] = -np.inf
    return [
        [item_ids[column] for column in columns if column != NO_ITEM]
        for columns in top_columns(scores, k).tolist()
    ]


def popularity(
    split: Split,
    held_out: HeldOut,
    item_ids: Sequence[ItemId],
    trained: SASRec | None = None,  # noqa: ARG001
) -> np.ndarray:
    """Returns each item's number of training interactions as everybody's scores ``(users, items)``."""
    counts = Counter(item for history in split.train.values() for item in history)
    row = np.array([counts[item] for item in item_ids], np.float64)
    return np.broadcast_to(row, (len(held_out), len(item_ids)))


def sasrec(
    split: Split, held_out: HeldOut, item_ids: Sequence[ItemId], trained: SASRec | None = None
) -> np.ndarray:
    """Returns the scores ``(users, items)`` of a SASRec, trained on the split unless one is given."""
    require("torch", "train")
    from genrec.models.sasrec import sasrec_scores, train_sasrec

    model = trained or train_sasrec(split, item_ids)[0]
    position = {item: row for row, item in enumerate(item_ids)}
    return sasrec_scores(model, [[position[i] for i in h] for h in held_out.histories])


Baseline = Callable[[Split, HeldOut, Sequence[ItemId], "SASRec | None"], np.ndarray]

BASELINES: dict[str, Baseline] = {"popularity": popularity, "sasrec": sasrec}


def evaluate_rankings(
    rankings: Sequence[Sequence[ItemId]], held_out: HeldOut, item_ids: Sequence[ItemId], ks: Sequence[int]
) -> dict[str, Any]:
    """Returns metrics of rankings of all users, with what a generated list may get wrong counted.

    ``valid_item_rate`` is the share of listed items that exist; ``distinct_item_rate`` of those, the share
    that is not a repetition; ``history_repeat_rate`` the share that the user took before;
    ``coverage@k`` the share of the catalogue that is listed at all, at the largest cut-off.
    """
    known, k = set(item_ids), max(ks)
    listed = [item for ranking in rankings for item in ranking[:k]]
    repeated = sum(
        item in set(history)
        for ranking, history in zip(rankings, held_out.histories, strict=True)
        for item in ranking[:k]
    )
    total = max(len(listed), 1)
    return ranking_metrics(rankings, held_out.targets, ks) | {
        "num_users": len(held_out),
        "valid_item_rate": sum(item in known for item in listed) / total,
        "distinct_item_rate": sum(len(set(ranking[:k])) for ranking in rankings) / total,
        "history_repeat_rate": repeated / total,
        f"coverage@{k}": len(set(listed)) / len(item_ids),
    }
