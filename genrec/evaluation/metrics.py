"""Metrics of ranked lists, scores and ratings: formulas with their sources, vectorised over users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genrec.core.errors import DataError, RecipeError, nearest
from genrec.data_prep import ItemId
from genrec.evaluation.lists import RankedLists

RANKING_METRICS = ("HR", "Recall", "Precision", "NDCG", "MRR", "MAP")


def user_metrics(lists: RankedLists, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns ``(users,)`` values in [0, 1] of metrics such as ``"NDCG@10"``; NaN where nothing is relevant.

    With ``hit(r)`` 1 where the item at rank r (from 1) is relevant, and R the number of relevant items:

    - ``HR@k``: 1 if any of the first k is relevant.
    - ``Recall@k``: hits among the first k / R.
    - ``Precision@k``: hits among the first k / k, also where the list is shorter.
    - ``NDCG@k``: sum of ``hit(r) / log2(r + 1)`` over r <= k, divided by the same sum of a list that
      begins with min(k, R) relevant items (Jarvelin and Kekalainen, TOIS 2002; log base cancels).
    - ``MRR@k``: 1 / rank of the first relevant item, 0 where it is beyond k (Voorhees, TREC-8, 1999).
    - ``MAP@k``: sum of ``hit(r) * Precision@r`` over r <= k, divided by min(k, R), so that a perfect list
      has 1 at any k. ``trec_eval`` and ``ranx`` divide by R instead.

    With one relevant item, Recall is HR and MAP is MRR. A rank that a short list does not have is a miss.

    Args:
        lists: Lists and what is relevant.
        names: ``METRIC@k`` with a metric of ``RANKING_METRICS`` and k of 1 or more.

    Raises:
        RecipeError: If a name is none of these.
    """
    wanted = [parse_metric(name) for name in names]
    longest = min(max((k for _, k in wanted), default=1), lists.items.shape[1])
    values: dict[str, np.ndarray] = {name: np.empty(lists.num_users) for name in names}
    # In stretches of users, so that a million lists need no second copy of themselves.
    for first in range(0, lists.num_users, 50_000):
        users = slice(first, min(first + 50_000, lists.num_users))
        part = RankedLists(lists.items[users], lists.relevant, lists.start[users.start : users.stop + 1])
        relevant = part.num_relevant
        with np.errstate(invalid="ignore", divide="ignore"):
            hits = part.hits(longest)
            for name, (metric, k) in zip(names, wanted, strict=True):
                value = _value(metric, k, hits, relevant)
                values[name][users] = np.where(relevant > 0, value, np.nan)
    return values


def _value(metric: str, k: int, hits: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    hits = hits[:, :k]
    ranks = np.arange(1, hits.shape[1] + 1)
    possible = np.minimum(k, relevant)
    if metric == "HR":
        return hits.any(1).astype(float)
    if metric == "Recall":
        return hits.sum(1) / relevant
    if metric == "Precision":
        return hits.sum(1) / k
    if metric == "MRR":
        return np.where(hits.any(1), 1 / (hits.argmax(1) + 1), 0.0)
    if metric == "NDCG":
        ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
        return hits @ (1 / np.log2(ranks + 1)) / ideal[possible]
    precision = hits.cumsum(1) / ranks
    return (hits * precision).sum(1) / possible


def parse_metric(
    name: str, allowed: Sequence[str] = RANKING_METRICS, what: str = "ranking metric"
) -> tuple[str, int]:
    """Returns metric and cut-off of a name such as ``"NDCG@10"``.

    Raises:
        RecipeError: If the metric is none of those allowed, or the cut-off no whole number of 1 or more.
    """
    metric, _, cut = name.partition("@")
    if metric not in allowed or not cut.isdigit() or int(cut) < 1:
        raise RecipeError(
            f"Unknown {what} {name!r}. Allowed: one of {', '.join(allowed)}, then @ and a cut-off of 1 or more, "
            f"such as NDCG@10.{nearest(metric, allowed)}"
        )
    return metric, int(cut)


def ranking_metrics(
    rankings: Sequence[Sequence[ItemId]],
    targets: Sequence[ItemId] | Sequence[Sequence[ItemId]],
    ks: Sequence[int] = (1, 5, 10),
    metrics: Sequence[str] = ("HR", "NDCG"),
) -> dict[str, float]:
    """Returns the means over users of ``user_metrics`` at every cut-off; NDCG@1, which is HR@1, is left out.

    Users for whom nothing is relevant have no value and are left out of the mean.

    Args:
        rankings: Items of each user, best first.
        targets: The relevant item, or items, of each user.
        ks: Cut-offs.
        metrics: Of ``RANKING_METRICS``.

    Raises:
        DataError: As ``RankedLists.from_items``, or if nothing is relevant for anybody.
        RecipeError: If a metric is unknown or a cut-off below 1.
    """
    names = [f"{metric}@{k}" for metric in metrics for k in ks if (metric, k) != ("NDCG", 1)]
    lists = RankedLists.from_items(rankings, targets)
    if not lists.num_relevant.any():
        raise DataError("Nothing is relevant for any user, so that there is nothing to measure.")
    return {name: float(np.nanmean(value)) for name, value in user_metrics(lists, names).items()}


def rating_metrics(ratings: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Returns ``RMSE`` and ``MAE``, the root of the mean square and the mean size of the error.

    Raises:
        DataError: As ``_pair``.
    """
    ratings, predictions = _pair(ratings, predictions)
    error = predictions - ratings
    return {"RMSE": float(np.sqrt(np.mean(error**2))), "MAE": float(np.abs(error).mean())}


def click_metrics(
    labels: np.ndarray, probabilities: np.ndarray, users: np.ndarray | None = None, threshold: float = 0.5
) -> dict[str, float]:
    """Returns ``AUC``, ``LogLoss`` and ``Accuracy``, and ``GAUC`` where users are given.

    - ``AUC``: probability that a positive scores above a negative, ties counting half (Hanley and McNeil,
      Radiology 1982, from the sum of average ranks).
    - ``GAUC``: AUC of each user who has positives and negatives, averaged by number of examples.
    - ``LogLoss``: mean of -ln of the probability given to what happened, probabilities held within
      [1e-15, 1 - 1e-15].
    - ``Accuracy``: share of examples where ``probability >= threshold`` is the label.

    Args:
        labels: ``(examples,)`` 0 or 1.
        probabilities: ``(examples,)`` in [0, 1].
        users: ``(examples,)`` whose example each is, or None.
        threshold: Of accuracy.

    Raises:
        DataError: As ``labelled``, or if only one of the labels comes.
    """
    labels, probabilities = labelled(labels, probabilities)
    if len(np.unique(labels)) < 2:
        raise DataError(f"Labels must be 0 and 1, both of them; got {np.unique(labels).tolist()} only.")
    held = np.clip(probabilities, 1e-15, 1 - 1e-15)
    found = {
        "AUC": _auc(labels, probabilities),
        "LogLoss": float(-np.where(labels == 1, np.log(held), np.log1p(-held)).mean()),
        "Accuracy": float(((probabilities >= threshold) == labels).mean()),
    }
    if users is not None:
        order = np.argsort(users, kind="stable")
        borders = np.flatnonzero(np.asarray(users)[order][1:] != np.asarray(users)[order][:-1]) + 1
        groups = [rows for rows in np.split(order, borders) if len(np.unique(labels[rows])) == 2]
        if groups:
            weight = np.array([len(rows) for rows in groups])
            each = np.array([_auc(labels[rows], probabilities[rows]) for rows in groups])
            found["GAUC"] = float(weight @ each / weight.sum())
    return found


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    from scipy.stats import rankdata

    positives = int(labels.sum())
    total = rankdata(scores)[labels == 1].sum() - positives * (positives + 1) / 2
    return float(total / positives / (len(labels) - positives))


def labelled(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as float64.

    Raises:
        DataError: As ``_pair``, or if a label is not 0 or 1, or a probability outside [0, 1].
    """
    labels, probabilities = _pair(labels, probabilities)
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"Labels must be 0 and 1; got {np.unique(labels)[:5].tolist()}.")
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise DataError(
            f"Probabilities must lie in [0, 1]; got {probabilities.min():g} to {probabilities.max():g}."
        )
    return labels, probabilities


def _pair(truth: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as float64.

    Raises:
        DataError: If there is nothing, they differ in shape, or a value is not a finite number.
    """
    truth, guess = np.asarray(truth, np.float64), np.asarray(guess, np.float64)
    if truth.shape != guess.shape or truth.ndim != 1 or not len(truth):
        raise DataError(
            f"Truth and prediction must be as many, at least one; got {truth.shape}, {guess.shape}."
        )
    for name, values in (("Truth", truth), ("Prediction", guess)):
        if not np.isfinite(values).all():
            place = int(np.flatnonzero(~np.isfinite(values))[0])
            raise DataError(f"{name} {place} is {values[place]}; every value must be a finite number.")
    return truth, guess
