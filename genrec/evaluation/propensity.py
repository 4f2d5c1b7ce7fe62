"""Estimates from clicks that were not missing at random: propensities, weighted metrics, unbiased losses.

A click is exposure times relevance, ``P(click) = theta * gamma`` (Saito, Yaginuma, Nishino, Sakata and Nakata,
WSDM 2020): what nobody saw nobody clicked, so that plain metrics and losses count popular items too often.
Weighting a click by 1 / theta makes up for it in expectation. Propensities come from training data only;
learnt from test data they would know the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from genrec.core.errors import DataError, RecipeError
from genrec.evaluation.lists import RankedLists
from genrec.evaluation.metrics import parse_metric

PROPENSITY_METRICS = ("Recall", "DCG", "NDCG")


def popularity_propensities(counts: np.ndarray, power: float = 0.5) -> np.ndarray:
    """Returns ``(items,)`` propensities in [0, 1], ``(count / largest count) ** power``.

    The form and its power are those of Saito et al. (WSDM 2020). An item without training interactions has
    0, as the formula says: the estimators here raise propensities to their ``clip`` before dividing.

    Args:
        counts: ``(items,)`` training interactions of each item.
        power: Above 0; the larger, the more rare items weigh.

    Raises:
        DataError: If a count is negative or not finite, or none is positive.
        RecipeError: If the power is not above 0.
    """
    counts = np.asarray(counts, np.float64)
    wrong = np.flatnonzero(~(np.isfinite(counts) & (counts >= 0)))
    if len(wrong):
        raise DataError(f"The count of item {wrong[0]} is {counts[wrong[0]]}; counts are 0 or more.")
    if not counts.any():
        raise DataError("No item has a training interaction, so that there is no popularity to go by.")
    if not 0 < power < np.inf:
        raise RecipeError(f"power is {power}; it must be above 0, 0.5 in Saito et al.")
    return (counts / counts.max()) ** power


def ips_weights(propensities: np.ndarray, clip: float = 0.01) -> np.ndarray:
    """Returns the weights ``1 / max(theta, clip)``, at least 1, in the shape of the propensities.

    With ``clip=0`` they are unbiased; the higher the clip, the less variance and the more bias, at
    ``clip=1`` all are 1. 0.01 is the floor of the metrics in Saito et al.'s code. As weights of training
    rows, whose loss has no part for what was not clicked, they give an inversely weighted likelihood, which
    is not the estimator of ``unbiased_loss``.

    Args:
        propensities: In (0, 1]; 0 is allowed where the clip is above 0.
        clip: In [0, 1].

    Raises:
        DataError: If a propensity is outside this; the first is named.
        RecipeError: If the clip is outside [0, 1].
    """
    if not 0 <= clip <= 1:
        raise RecipeError(f"clip is {clip}; it must be in [0, 1], 0 for no clipping.")
    theta = np.asarray(propensities, np.float64)
    allowed = (theta <= 1) & ((theta >= 0) if clip > 0 else (theta > 0))
    if not allowed.all():
        place = tuple(np.argwhere(~allowed)[0].tolist())
        raise DataError(
            f"{(~allowed).sum():,} propensities are not in {'[' if clip > 0 else '('}0, 1], first that of item "
            f"{', '.join(map(str, place))}: {theta[place]}. Propensities are probabilities of being seen; 0 can "
            "be weighted with a clip above 0 only."
        )
    return 1 / np.maximum(theta, clip)


def propensity_metrics(
    lists: RankedLists,
    propensities: np.ndarray,
    names: Sequence[str],
    clip: float = 0.01,
    normalise: Literal["self", "none"] = "self",
) -> dict[str, np.ndarray]:
    """Returns ``(users,)`` values of metrics such as ``"Recall@10"``; NaN where nothing is relevant.

    With ``w = 1 / max(theta, clip)`` of the item at rank r, ``hit(r)`` 1 where it is relevant, R relevant
    items, and ``c(r) = 1 / log2(r + 1)`` (the discount of ``NDCG``; Saito et al.'s code has 1 at rank 1
    and 1 / log2(r) from rank 2, Jarvelin and Kekalainen's form, so that its DCG is another number):

    ``normalise="self"`` (self-normalised, SNIPS; values in [0, 1]; Recall and DCG as the metrics in the code
    of Saito et al., WSDM 2020; NDCG's ideal is ours):

    - ``Recall@k``: sum of ``hit(r) * w`` over r <= k / sum of w over the relevant items.
    - ``DCG@k``: sum of ``hit(r) * w * c(r)`` over r <= k / sum of w over the relevant items. This is a mean
      over relevant items: with all theta 1 it is the DCG / R.
    - ``NDCG@k``: sum of ``hit(r) * w * c(r)`` over r <= k / the same sum of the list that begins with the
      relevant items by falling w, min(k, R) of them.

    ``normalise="none"`` (plain IPS; no value has an upper bound but that of w): the same sums above,

    - ``Recall@k`` divided by R, the number of items *observed* to be relevant;
    - ``DCG@k`` divided by nothing: with ``clip=0`` and lists that do not depend on these clicks, an unbiased
      estimate of the DCG that all items relevant to the user would give, seen or not. (A user for whom
      nothing was seen to be relevant counts as 0 in that; here, as everywhere, such a user has no value.)
    - ``NDCG@k`` divided by the unweighted ideal of min(k, R) relevant items.

    How many items would be relevant were all seen is unknown, so that Recall and NDCG have their scale from
    what was observed, the same for every model of the same rows: plain IPS compares models, and "self" also
    estimates the level. With all theta 1 both are ``user_metrics``' Recall and NDCG. A user with one
    relevant item has the same "self" value as unweighted: self-normalising within a user can only help
    where users have several.

    Args:
        lists: Lists and what is relevant, as item numbers.
        propensities: ``(items,)`` in (0, 1], by item number; 0 is allowed where the clip is above 0.
        names: ``METRIC@k`` with a metric of ``PROPENSITY_METRICS`` and k of 1 or more.
        clip: Floor of propensities, in [0, 1]; 0 is unbiased, 1 unweighted.
        normalise: What sums are divided by.

    Raises:
        DataError: As ``ips_weights``, or if an item has no propensity.
        RecipeError: If a name, the clip or the normalisation is none of these.
    """
    wanted = [parse_metric(name, PROPENSITY_METRICS, "propensity metric") for name in names]
    if normalise not in ("self", "none"):
        raise RecipeError(f"Unknown normalisation {normalise!r}. Allowed: 'self', 'none'.")
    weights = ips_weights(propensities, clip)
    last = max(lists.items.max(initial=-1), lists.relevant.max(initial=-1))
    if weights.ndim != 1 or last >= len(weights):
        raise DataError(
            f"Propensities have shape {weights.shape}, but items go up to number {last}; each item needs one, "
            f"({last + 1},) or more."
        )
    longest = min(max((k for _, k in wanted), default=1), lists.items.shape[1])
    values: dict[str, np.ndarray] = {name: np.empty(lists.num_users) for name in names}
    # In stretches of users, so that a million lists need no second copy of themselves.
    for first in range(0, lists.num_users, 50_000):
        users = slice(first, min(first + 50_000, lists.num_users))
        start = lists.start[users.start : users.stop + 1]
        part = RankedLists(lists.items[users], lists.relevant[start[0] : start[-1]], start - start[0])
        ideal = _Ideal(part, weights)
        gains = part.hits(longest) * weights[part.items[:, :longest]]
        for name, (metric, k) in zip(names, wanted, strict=True):
            found = gains[:, :k]
            sums = found.sum(1) if metric == "Recall" else found @ _discounts(found.shape[1])
            with np.errstate(invalid="ignore", divide="ignore"):
                values[name][users] = np.where(
                    part.num_relevant > 0, sums / ideal.divisor(metric, k, normalise), np.nan
                )
    return values


def unbiased_loss(
    clicks: np.ndarray,
    theta: np.ndarray,
    loss_positive: np.ndarray,
    loss_negative: np.ndarray,
    clip: float = 0.0,
) -> float:
    """Returns the mean over pairs of ``(Y / theta) * l1 + (1 - Y / theta) * l0`` with theta at least ``clip``.

    Its expectation over exposure and relevance is the ideal loss, the mean of
    ``gamma * l1 + (1 - gamma) * l0`` (Saito et al., WSDM 2020). A clicked pair seen with theta < 1 gives l0 a
    negative weight, and the loss itself may be negative. Clipping biases pairs with theta < clip only, and
    lowers the variance; ``clip=1`` is the naive loss that takes every pair as seen.

    Args:
        clicks: 0 or 1 of each pair of user and item, in any shape.
        theta: Propensity of each pair, in (0, 1]; 0 is allowed where the clip is above 0. Broadcast to the
            clicks' shape, so ``(items,)`` serves ``(users, items)``.
        loss_positive: l1, each pair's loss were its label 1; broadcast as theta.
        loss_negative: l0, each pair's loss were its label 0; broadcast as theta.
        clip: M of the paper, in [0, 1].

    Raises:
        DataError: If there is no pair, clicks are not 0 and 1, shapes do not fit, a loss is not finite, or a
            propensity is not as ``ips_weights`` asks.
        RecipeError: If the clip is outside [0, 1].
    """
    clicks = np.asarray(clicks, np.float64)
    if not clicks.size or not np.isin(clicks, (0, 1)).all():
        raise DataError(f"Clicks must be 0 or 1, at least one pair; got {np.unique(clicks)[:5].tolist()}.")
    weights = ips_weights(theta, clip)
    losses = []
    for label, loss in (
        ("theta", weights),
        ("loss_positive", loss_positive),
        ("loss_negative", loss_negative),
    ):
        given = np.asarray(loss, np.float64)
        if given.shape != clicks.shape[clicks.ndim - given.ndim :] or given.ndim > clicks.ndim:
            raise DataError(
                f"{label} has shape {given.shape}, clicks {clicks.shape}; it must be the same or its last part."
            )
        if not np.isfinite(given).all():
            place = ", ".join(map(str, np.argwhere(~np.isfinite(given))[0]))
            raise DataError(f"{label} is not finite at {place}; every value must be a finite number.")
        losses.append(given)
    weighted = clicks * losses[0]
    return float(np.mean(weighted * losses[1] + (1 - weighted) * losses[2]))


class _Ideal:
    """What users' weighted sums are divided by."""

    def __init__(self, lists: RankedLists, weights: np.ndarray) -> None:
        owner = np.repeat(np.arange(lists.num_users), lists.num_relevant)
        order = np.lexsort((-weights[lists.relevant], owner))
        self.lists = lists
        self.owner = owner
        self.weights = weights[lists.relevant][order]
        self.place = np.arange(len(owner)) - lists.start[owner]

    def divisor(self, metric: str, k: int, normalise: str) -> np.ndarray | float:
        """Returns ``(users,)``, or 1."""
        if normalise == "none" and metric != "NDCG":
            return self.lists.num_relevant if metric == "Recall" else 1.0
        weights = self.weights if normalise == "self" else np.ones(len(self.weights))
        if metric == "NDCG":
            discounts = np.append(_discounts(k), 0.0)
            weights = weights * discounts[np.minimum(self.place, k)]
        return np.bincount(self.owner, weights, self.lists.num_users)


def _discounts(k: int) -> np.ndarray:
    """Returns ``(k,)`` 1 / log2(rank + 1)."""
    return 1 / np.log2(np.arange(2, k + 2))
