"""How sure the numbers are: intervals of means, paired tests of two models, correction for many tests.

Everything is over users. A user's rows stand or fall together: what is drawn again, or has its sign turned,
is a user with the sum and the number of its rows, so that the estimate stays the mean over rows. Metrics are
handled one by one, and users of equal sum and number together, so that a result depends neither on what else
is reported nor on the order of users.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genrec.core.errors import DataError, RecipeError, lookup

TEST = "paired sign-flip randomisation over users"
LEVEL = 0.95


@dataclass(frozen=True)
class PairedTest:
    """The difference of two models in one metric, and how often chance alone would do as much.

    Attributes:
        metric: Its name.
        difference: Mean over rows of a - b.
        interval: 95% percentile bootstrap interval of the difference, over users.
        p: Two-sided, of the randomisation test (``TEST``).
        num_users: Users who have a value.
        num_differing: Users whose rows do not sum to the same; only they move ``p``.
        p_t: Of the paired t-test; None with one user or where all differences are equal.
        p_mcnemar: Of McNemar's exact test; None unless all values are 0 or 1, one row a user.
        p_wilcoxon: Of the signed-rank test with Pratt's zeros; None where no user differs.
    """

    metric: str
    difference: float
    interval: tuple[float, float]
    p: float
    num_users: int
    num_differing: int
    p_t: float | None
    p_mcnemar: float | None
    p_wilcoxon: float | None


def bootstrap_intervals(
    values: Mapping[str, np.ndarray],
    users: np.ndarray | None = None,
    resamples: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Returns the interval of each metric's mean over rows that have a value.

    Percentile bootstrap (Efron, Annals of Statistics 1979; for ranking metrics Sakai, SIGIR 2006): as many
    users as have a value are drawn with replacement, each with all its rows. One user alone gives an interval
    of no width, which says nothing.

    Args:
        values: ``(rows,)`` of each metric, NaN where a row has no value.
        users: ``(rows,)`` whose row each is, or None where every row is a user.
        resamples: Draws; 1,000 hold the ends to a few percent of the width.
        level: Share of draws inside, in (0, 1).
        seed: Of the draws.

    Raises:
        DataError: If vectors are not as long as each other or as ``users``, a value is infinite or a metric
            has no value at all.
        RecipeError: If there is no resample or the level is outside (0, 1).
    """
    vectors, owner = _checked(values, users)
    found = {}
    for name, vector in vectors.items():
        sums, counts = _per_user(vector, owner)
        found[name] = _interval(sums, counts, resamples, level, seed)
    return found


def paired_tests(
    a: Mapping[str, np.ndarray],
    b: Mapping[str, np.ndarray],
    users: np.ndarray | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[PairedTest]:
    """Returns the test of a against b for every metric, in a's order.

    ``p`` is that of the paired randomisation test (Fisher; for rankings Smucker, Allan and Carterette, CIKM
    2007): were the models alike, each user's difference could as well have the other sign. It asks for no
    distribution, users who do not differ leave it unmoved however many they are, and users of several rows
    are turned as a whole. With n users who differ and ``2**n <= resamples`` all signs are gone through and
    p is the share whose mean is at least as far from 0; otherwise signs are drawn and p is
    ``(1 + as far) / (1 + resamples)``, which is never 0 and keeps its level. For 0/1 metrics of one row a
    user the exact p is McNemar's.

    Beside it stand the paired t-test (with several rows a user the variance of a ratio by the delta method,
    Deng, Knoblich and Lu, KDD 2018: from each user's sum less the mean times its rows; with one row a user
    the ordinary one), McNemar's exact test (binomial over the users who differ) and Wilcoxon's signed-rank
    test of users' sums, where zeros are ranked and then left out (Pratt, JASA 1959), by the normal
    distribution.

    Args:
        a: ``(rows,)`` of each metric, NaN where a row has no value.
        b: The same rows and metrics of the other model.
        users: ``(rows,)`` whose row each is, or None where every row is a user.
        resamples: Draws of the test and of the interval.
        seed: Of the draws.

    Raises:
        DataError: As ``bootstrap_intervals``, or if a metric is in one only, or a row has a value in one
            only; the first is named.
        RecipeError: If there is no resample.
    """
    alone = [name for name in [*a, *b] if name not in a or name not in b]
    if alone:
        raise DataError(
            f"{alone[0]!r} is measured for one of the two only ({len(alone)} such metrics); both need the same."
        )
    # One call for both, so that all of them are of one length.
    vectors, owner = _checked(
        {("a", n): v for n, v in a.items()} | {("b", n): v for n, v in b.items()}, users
    )
    return [_paired_test(name, vectors["a", name], vectors["b", name], owner, resamples, seed) for name in a]


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values corrected for being several, in [0, 1] and in the order given.

    With m of them sorted upwards, the i-th (from 1) becomes the largest of ``(m - j + 1) * p_j`` over j <= i,
    at most 1 (Holm, Scandinavian Journal of Statistics 1979). The chance of any false finding is then at
    most the level, however the tests depend on each other.

    Raises:
        DataError: If one is not in [0, 1].
    """
    p = np.asarray(p_values, np.float64)
    wrong = np.flatnonzero(~((p >= 0) & (p <= 1)))
    if len(wrong):
        raise DataError(f"p-value {wrong[0]} is {p[wrong[0]]}; each must be in [0, 1].")
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected.tolist()


def compare_models(
    values: Mapping[str, Mapping[str, np.ndarray]],
    users: np.ndarray | None,
    pairs: Sequence[tuple[str, str]],
    metrics: Sequence[str],
    resamples: int = 10_000,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Returns an entry of the report's ``tests`` for every pair and metric, corrected over all of them.

    An entry has ``metric``, ``a``, ``b``, ``difference`` (a - b), ``interval``, ``p``, ``p_holm`` (``holm``
    over all entries, which are one family), ``test``, ``num_users``, ``num_differing`` and ``other_p``, the
    p-values of the further tests that apply.

    Args:
        values: For each model the ``(rows,)`` of each metric.
        users: ``(rows,)`` whose row each is, or None where every row is a user.
        pairs: Names of the models compared.
        metrics: What they are compared in.
        resamples: As ``paired_tests``.
        seed: As ``paired_tests``.

    Raises:
        DataError: As ``paired_tests``.
        RecipeError: As ``paired_tests``, or if a pair names a model that is not there.
    """
    entries: list[dict[str, object]] = []
    p_values: list[float] = []
    for pair in pairs:
        chosen = []
        for model in pair:
            lookup(dict(values), model, "model")
            measured = values[model]
            missing = [name for name in metrics if name not in measured]
            if missing:
                raise DataError(
                    f"{model!r} is not measured in {missing[0]!r}; it is in: {', '.join(measured)}."
                )
            chosen.append({name: measured[name] for name in metrics})
        for test in paired_tests(chosen[0], chosen[1], users, resamples, seed) if metrics else ():
            others = {
                "paired t-test": test.p_t,
                "McNemar, exact": test.p_mcnemar,
                "Wilcoxon signed-rank, Pratt": test.p_wilcoxon,
            }
            p_values.append(test.p)
            entries.append(
                {
                    "metric": test.metric,
                    "a": pair[0],
                    "b": pair[1],
                    "difference": test.difference,
                    "interval": list(test.interval),
                    "p": test.p,
                    "test": TEST,
                    "num_users": test.num_users,
                    "num_differing": test.num_differing,
                    "other_p": {name: p for name, p in others.items() if p is not None},
                }
            )
    for entry, corrected in zip(entries, holm(p_values), strict=True):
        entry["p_holm"] = corrected
    return entries


def _checked(values: Mapping, users: np.ndarray | None) -> tuple[dict, np.ndarray | None]:
    """Returns the vectors as float64, and whose row each is as 0, 1, ... (None: its own).

    Raises:
        DataError: As ``bootstrap_intervals``.
    """
    if not values:
        raise DataError("No metric is given, so that there is nothing to measure.")
    vectors = {name: np.asarray(vector, np.float64) for name, vector in values.items()}
    shape = next(iter(vectors.values())).shape if users is None else np.shape(users)
    for name, vector in vectors.items():
        label = repr(name) if isinstance(name, str) else f"{name[1]!r} of {name[0]}"
        if vector.ndim != 1 or vector.shape != shape:
            raise DataError(
                f"{label} has shape {vector.shape} where (rows,) = {shape} is wanted; each metric needs one "
                "value a row, and users, if given, one number a row."
            )
        if np.isinf(vector).any():
            raise DataError(
                f"Row {np.isinf(vector).argmax()} of {label} is infinite; each value must be finite."
            )
        if np.isnan(vector).all():
            raise DataError(f"No row has a value of {label}; leave the metric out.")
    return vectors, None if users is None else np.unique(users, return_inverse=True)[1]


def _per_user(vector: np.ndarray, owner: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sum and the number of values of each user who has one."""
    valued = ~np.isnan(vector)
    if owner is None:
        return vector[valued], np.ones(valued.sum())
    counts = np.bincount(owner[valued])
    sums = np.bincount(owner[valued], vector[valued])
    return sums[counts > 0], counts[counts > 0].astype(np.float64)


def _stretches(resamples: int, width: int) -> Iterator[int]:
    """Yields how many resamples to draw at once: two million numbers, or one resample of more.

    Raises:
        RecipeError: If there is no resample.
    """
    if resamples < 1:
        raise RecipeError(f"resamples is {resamples}; at least 1 is needed, 1,000 are usual.")
    at_once = max(1, 2_000_000 // width)
    for first in range(0, resamples, at_once):
        yield min(at_once, resamples - first)


def _few(kinds: int, users: int) -> bool:
    """Whether drawing how often each kind of user comes is faster than drawing users (a draw costs four)."""
    return 4 * kinds <= users


def _interval(
    sums: np.ndarray, counts: np.ndarray, resamples: int, level: float, seed: int
) -> tuple[float, float]:
    if not 0 < level < 1:
        raise RecipeError(f"level is {level}; it must be in (0, 1), such as 0.95.")
    rng = np.random.default_rng(seed)
    order = np.lexsort((sums, counts))
    sums, counts = sums[order], counts[order]
    users = len(sums)
    new = np.concatenate([[True], (np.diff(sums) != 0) | (np.diff(counts) != 0)])
    copies = np.diff(np.append(np.flatnonzero(new), users))
    few = _few(len(copies), users)
    means = []
    for size in _stretches(resamples, len(copies) if few else users):
        if few:
            times = rng.multinomial(users, copies / users, size).astype(np.float64)
            means.append(times @ sums[new] / (times @ counts[new]))
        else:
            drawn = rng.integers(users, size=(size, users))
            means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _paired_test(
    name: str, a: np.ndarray, b: np.ndarray, owner: np.ndarray | None, resamples: int, seed: int
) -> PairedTest:
    alone = np.isnan(a) != np.isnan(b)
    if alone.any():
        raise DataError(
            f"{alone.sum():,} rows have a value of {name!r} for one of the two only, first row {alone.argmax()}; "
            "both must be measured on the same rows."
        )
    sums, counts = _per_user(a - b, owner)
    valued = ~np.isnan(a)
    binary = (counts == 1).all() and np.isin(a[valued], (0, 1)).all() and np.isin(b[valued], (0, 1)).all()
    return PairedTest(
        metric=name,
        difference=float(sums.sum() / counts.sum()),
        interval=_interval(sums, counts, resamples, LEVEL, seed),
        p=_sign_flip(sums, resamples, seed),
        num_users=len(sums),
        num_differing=int((sums != 0).sum()),
        p_t=_t_test(sums, counts),
        p_mcnemar=_mcnemar(sums) if binary else None,
        p_wilcoxon=_wilcoxon(sums),
    )


def _sign_flip(sums: np.ndarray, resamples: int, seed: int) -> float:
    sizes, copies = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    users = int(copies.sum())
    # Sums of the same numbers in another order differ in their last bits, and must count as equal.
    seen = abs(sums.sum()) - 1e-10 * (sizes @ copies)
    if 2 ** min(users, 60) <= resamples:
        signs = 1.0 - 2 * (np.arange(2**users)[:, None] >> np.arange(users) & 1)
        return float(np.mean(np.abs(signs @ np.repeat(sizes, copies)) >= seen))
    rng = np.random.default_rng(seed)
    few = _few(len(sizes), users)
    as_far = 0
    for size in _stretches(resamples, len(sizes) if few else users):
        if few:
            # Of m users with the same size, those who keep their sign are binomial.
            totals = (2.0 * rng.binomial(copies, 0.5, (size, len(sizes))) - copies) @ sizes
        else:
            kept = rng.integers(2, size=(size, users), dtype=np.int8)
            totals = (2.0 * kept - 1) @ np.repeat(sizes, copies)
        as_far += int((np.abs(totals) >= seen).sum())
    return (1 + as_far) / (1 + resamples)


def _t_test(sums: np.ndarray, counts: np.ndarray) -> float | None:
    from scipy.stats import t

    users, mean = len(sums), sums.sum() / counts.sum()
    rest = sums - mean * counts
    # Equal differences leave nothing but rounding errors.
    if users < 2 or rest @ rest <= 1e-24 * (sums @ sums):
        return None
    error = np.sqrt(users / (users - 1) * (rest @ rest)) / counts.sum()
    return float(2 * t.sf(abs(mean) / error, users - 1))


def _mcnemar(sums: np.ndarray) -> float:
    from scipy.stats import binomtest

    better, worse = int((sums > 0).sum()), int((sums < 0).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _wilcoxon(sums: np.ndarray) -> float | None:
    from scipy.stats import norm, rankdata

    if not sums.any():
        return None
    # A rank's sign is as likely + as -, so that their sum has the squared ranks as variance, ties or not.
    ranks = rankdata(np.abs(sums)) * np.sign(sums)
    return float(2 * norm.sf(abs(ranks.sum()) / np.sqrt(ranks @ ranks)))
