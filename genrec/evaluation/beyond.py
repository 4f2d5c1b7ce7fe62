"""Metrics of ranked lists beyond accuracy: reach, novelty, diversity, calibration, value, validity."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from genrec.core.errors import DataError, RecipeError
from genrec.evaluation.lists import NO_ITEM, RankedLists
from genrec.evaluation.metrics import labelled


@dataclass(frozen=True)
class ListContext:
    """What the metrics beyond accuracy need to know about the items and the training data.

    Everything is of the training part: nothing held out may be counted. Item numbers are those of the
    lists, from 0 to ``num_items - 1``.

    Attributes:
        num_items: Size of the catalogue.
        num_users: Users with training interactions.
        counts: ``(items,)`` training interactions of each item, repeated ones too.
        users_of_item: ``(items,)`` distinct users with a training interaction with the item.
        vectors: ``(items, dimensions)`` vectors for diversity, or None. Not those the ranker itself uses: a
            list would look as diverse as its ranker believes it is.
        categories: ``(items, categories)`` bool, whether the item is of the category, or None.
        history_shares: ``(users, categories)`` shares of the categories in each listed user's history, as
            ``category_shares`` gives them, or None.
        prices: ``(items,)`` price or value of each item, or None.

    Raises:
        DataError: If a size is below 1, an array has another shape, counts or prices are negative or no
            finite numbers, nothing was counted, an item has more users than there are, or there are history
            shares without categories. The first item is named.
    """

    num_items: int
    num_users: int
    counts: np.ndarray
    users_of_item: np.ndarray
    vectors: np.ndarray | None = None
    categories: np.ndarray | None = None
    history_shares: np.ndarray | None = None
    prices: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.num_items < 1 or self.num_users < 1:
            raise DataError(
                f"There must be an item and a training user; got {self.num_items} items, {self.num_users} users."
            )
        for name in ("counts", "users_of_item", "vectors", "categories", "prices"):
            values = getattr(self, name)
            dimensions = 2 if name in ("vectors", "categories") else 1
            if values is not None and (np.ndim(values) != dimensions or len(values) != self.num_items):
                raise DataError(
                    f"{name} must have {dimensions} dimension(s), first one row for each of the "
                    f"{self.num_items:,} items; got shape {np.shape(values)}."
                )
        if self.history_shares is not None and self.categories is None:
            raise DataError("history_shares without categories: give the categories of the items too.")
        # For their errors: a run should not rank all users before it hears of a bad price.
        _head_floor(self.counts, 1)
        _user_shares(self.users_of_item, self.num_users)
        if self.prices is not None:
            _amounts(self.prices, "price")


def list_metrics(lists: RankedLists, k: int, context: ListContext) -> dict[str, float]:
    """Returns every metric of this module that the context allows, by name and cut-off (``"gini@10"``).

    Always ``coverage``, ``user_coverage``, ``gini``, ``entropy``, ``personalisation``, ``novelty``,
    ``popularity``, ``tail_share`` and ``serendipity``; ``diversity`` where there are vectors,
    ``calibration`` where there are categories and history shares, ``value`` and ``value_share`` where
    there are prices. Metrics of single lists are averaged over the users who have a value; a metric that
    nobody has a value of is left out.

    Raises:
        RecipeError: If k is below 1.
        DataError: If a listed item is not in the catalogue, or as the functions of the single metrics.
    """
    items = lists.items
    exposed = exposure(items, k, context.num_items)
    found: dict[str, float | np.ndarray] = {
        "coverage": coverage(exposed),
        "user_coverage": user_coverage(items),
        "gini": gini(exposed),
        "entropy": entropy(exposed),
        "personalisation": personalisation(exposed, int((items[:, :1] != NO_ITEM).sum()), k),
        "novelty": novelty(items, k, context.users_of_item, context.num_users),
        "popularity": popularity(items, k, context.counts),
        "tail_share": tail_share(items, k, context.counts),
        "serendipity": serendipity(lists, k, context.counts),
    }
    if context.vectors is not None:
        found["diversity"] = diversity(items, k, context.vectors)
    if context.categories is not None and context.history_shares is not None:
        found["calibration"] = calibration(items, k, context.categories, context.history_shares)
    if context.prices is not None:
        found["value"], found["value_share"] = value(lists, k, context.prices)
    means = {}
    for name, values in found.items():
        known = np.atleast_1d(values)[~np.isnan(np.atleast_1d(values))]
        if len(known):
            means[f"{name}@{k}"] = float(known.mean())
    return means


def exposure(items: np.ndarray, k: int, num_items: int) -> np.ndarray:
    """Returns ``(num_items,)`` in how many lists each item is among the first k.

    Args:
        items: ``(users, width)`` item numbers, best first, ``NO_ITEM`` after the end of a shorter list; no
            item twice in a list. The same in all functions of this module.
        k: Cut-off.
        num_items: Size of the catalogue.

    Raises:
        RecipeError: If k is below 1.
        DataError: If a listed item is not in ``[0, num_items)``; its user is named. These two hold for all
            functions of this module that look items up at a cut-off.
    """
    total = np.zeros(num_items + 1, np.int64)
    for _, part in _stretches(items, k, num_items):
        total += np.bincount((part + 1).ravel(), minlength=num_items + 1)
    return total[1:]


def coverage(exposed: np.ndarray) -> float:
    """Returns the share of the catalogue that is in somebody's first k, in [0, 1].

    Distinct listed items / items: the catalogue coverage of Ge, Delgado-Battenfeld and Jannach (RecSys 2010).

    Args:
        exposed: ``(items,)`` in how many lists each item of the catalogue is, from ``exposure``.
    """
    return float((exposed > 0).mean())


def user_coverage(items: np.ndarray) -> float:
    """Returns the share of users whose list has an item, in [0, 1]; the same at every cut-off."""
    return float((items[:, :1] != NO_ITEM).any(1).mean())


def gini(exposed: np.ndarray) -> float:
    """Returns how unequally the items are listed: 0 where all equally often, ``1 - 1/n`` where only one is.

    With exposures ``x_1 <= ... <= x_n`` of all n items, zeros included,
    ``G = sum_i (2 i - n - 1) x_i / (n sum_i x_i)`` (half the relative mean absolute difference; Gini, 1912).
    NaN where nothing is listed.

    Args:
        exposed: As ``coverage``.
    """
    if not exposed.any():
        return float("nan")
    n = len(exposed)
    weights = 2.0 * np.arange(1, n + 1) - n - 1
    return float(weights @ np.sort(exposed) / (n * exposed.sum()))


def entropy(exposed: np.ndarray) -> float:
    """Returns how evenly the items are listed, in [0, 1]: 1 where all equally often, 0 where only one is.

    ``-sum_i q_i ln q_i / ln n`` with ``q_i`` the share of item i in all exposures (Shannon, 1948), divided by
    its largest value so that catalogues compare. 1 for a catalogue of one item, NaN where nothing is listed.

    Args:
        exposed: As ``coverage``.
    """
    if not exposed.any():
        return float("nan")
    if len(exposed) == 1:
        return 1.0
    shares = exposed[exposed > 0] / exposed.sum()
    return float(abs(shares @ np.log(shares)) / np.log(len(exposed)))


def personalisation(exposed: np.ndarray, num_lists: int, k: int) -> float:
    """Returns how different the lists of two users are on average, in [0, 1]: 1 where none shares an item.

    ``1 - mean over pairs u < v of |L_u and L_v| / k``, the mean inter-list distance of Zhou et al. (PNAS
    2010), over all pairs of users with a list: an item in x lists is shared by x (x - 1) / 2 pairs, so no
    pair is sampled. It divides by k also where a list is shorter. Random lists have the highest values, so it
    is to be read beside accuracy. NaN where fewer than two users have a list.

    Args:
        exposed: As ``coverage``, at this k.
        num_lists: Lists with an item.
        k: Cut-off.
    """
    if num_lists < 2:
        return float("nan")
    return 1 - int(exposed @ (exposed - 1)) / (num_lists * (num_lists - 1)) / k


def novelty(items: np.ndarray, k: int, users_of_item: np.ndarray, num_users: int) -> np.ndarray:
    """Returns ``(users,)`` how seldom the listed items were taken, in bits; NaN where the list is empty.

    Mean over the first k of ``-log2(users_of_item / num_users)`` (MeanInvUserFreq of RecTools), with the
    items a list has, not k, in the denominator. An item that nobody took counts as taken by one user, as
    RecTools does; others are not smoothed.

    Args:
        items: As ``exposure``.
        k: Cut-off.
        users_of_item: ``(items,)`` distinct training users of each item.
        num_users: Users with training interactions.

    Raises:
        DataError: If an item has more users than there are, fewer than none, or NaN; it is named.
    """
    return _list_means(items, k, -np.log2(_user_shares(users_of_item, num_users)))


def popularity(items: np.ndarray, k: int, counts: np.ndarray) -> np.ndarray:
    """Returns ``(users,)`` mean number of training interactions of the listed items; NaN for an empty list.

    Averaged over users it is the average recommendation popularity (ARP) of Yin et al. (VLDB 2012).

    Args:
        items: As ``exposure``.
        k: Cut-off.
        counts: ``(items,)`` training interactions of each item.

    Raises:
        DataError: If a count is negative or no finite number; the item is named.
    """
    return _list_means(items, k, _amounts(counts, "count"))


def tail_share(items: np.ndarray, k: int, counts: np.ndarray, head: float = 0.8) -> np.ndarray:
    """Returns ``(users,)`` share of the listed items that are of the long tail; NaN where the list is empty.

    The head is the fewest items, most popular first, that together have the share ``head`` of all training
    interactions, and every item as popular as the last of them, so that no tie is broken by item number;
    the tail is all others, items without interactions included. Averaged over users it is the average
    percentage of long tail items (APLT) of Abdollahpouri, Burke and Mobasher (FLAIRS 2019) for this tail.

    Args:
        items: As ``exposure``.
        k: Cut-off.
        counts: ``(items,)`` training interactions of each item.
        head: Share of interactions, in (0, 1].

    Raises:
        DataError: As ``popularity``, or if there is no interaction.
        RecipeError: If ``head`` is outside (0, 1].
    """
    return _list_means(items, k, (np.asarray(counts) < _head_floor(counts, head)).astype(np.float64))


def diversity(items: np.ndarray, k: int, vectors: np.ndarray) -> np.ndarray:
    """Returns ``(users,)`` mean of ``1 - cosine`` over pairs of the first k, in [0, 2]; NaN below two items.

    Intra-list diversity, from the similarity of Ziegler et al. (WWW 2005). All pairs at once: with unit
    vectors e, the cosines of pairs sum to ``(|sum e|^2 - sum |e|^2) / 2``. A zero vector has cosine 0 to
    everything, as in scikit-learn, so its pairs count as 1.

    Args:
        items: As ``exposure``.
        k: Cut-off.
        vectors: ``(items, dimensions)``; float32 is kept, sums are float64.

    Raises:
        DataError: If a vector has a value that is no finite number; the item is named.
    """
    vectors = np.asarray(vectors)
    if vectors.dtype != np.float32:
        vectors = vectors.astype(np.float64)
    wrong = ~np.isfinite(vectors).all(1)
    if wrong.any():
        raise DataError(
            f"{wrong.sum():,} item vectors have values that are no finite numbers, first that of item "
            f"{np.flatnonzero(wrong)[0]}."
        )
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(norm > 0, norm, 1)
    squares = np.einsum("id,id->i", units, units, dtype=np.float64)
    units, squares = _with_blank(units), _with_blank(squares)
    found = np.full(len(items), np.nan)
    for users, part in _stretches(items, k, len(vectors), units.shape[1]):
        length = (part != NO_ITEM).sum(1)
        total = _sums(part, units)
        cosines = np.einsum("ud,ud->u", total, total) - squares[part].sum(1)
        pairs = np.where(length > 1, length * (length - 1.0), np.nan)
        found[users] = np.clip(1 - cosines / pairs, 0, 2)
    return found


def serendipity(lists: RankedLists, k: int, counts: np.ndarray) -> np.ndarray:
    """Returns ``(users,)`` how much better relevant items are ranked than their popularity would, in [0, 1].

    The variant of RecTools (against popularity; others compare with an item-kNN list):
    ``1/k sum over r <= k of max(p(r) - pu(i_r), 0) hit(r)`` with ``p(r) = (n + 1 - r) / n`` and
    ``pu(i) = (n + 1 - rank(i)) / n``. ``rank(i)`` is 1 for the most popular items, 2 for those of the next
    lower count, and so on: items of one count share a rank and no rank is skipped. ``pu`` is 0 for items
    without interactions. It divides by k, which is RecTools' formula; RecTools' code divides by the length
    of a shorter list. NaN where nothing is relevant, 0 where nothing relevant is listed.

    Args:
        lists: Lists and what is relevant.
        k: Cut-off.
        counts: ``(items,)`` training interactions of each item.

    Raises:
        DataError: As ``popularity``.
    """
    counts = _amounts(counts, "count")
    n = len(counts)
    users, places, items = _hits(lists, k, n)
    levels, level = np.unique(counts, return_inverse=True)
    expected = np.where(counts > 0, (n + 1 - (len(levels) - level)) / n, 0.0)
    surprise = np.maximum((n - places) / n - expected[items], 0)
    total = np.bincount(users, surprise, minlength=lists.num_users)
    return np.where(lists.num_relevant > 0, total / k, np.nan)


def category_shares(items: np.ndarray, k: int, categories: np.ndarray) -> np.ndarray:
    """Returns ``(users, categories)`` shares of the categories in the first k; rows sum to 1, or are all 0.

    Each item gives its categories equal shares of one vote (Steck, RecSys 2018, with equal weights of
    ranks); items without a category have no vote, and a row is 0 where no item has one. Histories, padded
    like lists, get their shares in the same way.

    Args:
        items: As ``exposure``; an item may come twice in a history.
        k: Cut-off; the width for all.
        categories: ``(items, categories)`` bool.

    Raises:
        DataError: If ``categories`` is not a matrix.
    """
    flags = np.asarray(categories, bool)
    if flags.ndim != 2:
        raise DataError(f"categories must be a matrix (items, categories); got shape {flags.shape}.")
    votes = _with_blank(flags / np.maximum(flags.sum(1, keepdims=True), 1))
    shares = np.empty((len(items), votes.shape[1]))
    for users, part in _stretches(items, k, len(flags), votes.shape[1]):
        total = _sums(part, votes)
        weight = total.sum(1, keepdims=True)
        shares[users] = total / np.where(weight > 0, weight, 1)
    return shares


def calibration(
    items: np.ndarray, k: int, categories: np.ndarray, history_shares: np.ndarray, alpha: float = 0.01
) -> np.ndarray:
    """Returns ``(users,)`` how far the list's categories are from the history's, in nats; 0 is calibrated.

    ``KL(p || q~) = sum_g p(g) ln(p(g) / q~(g))`` with p the shares in the history, q those in the first k
    (``category_shares``) and ``q~ = (1 - alpha) q + alpha p`` (Steck, RecSys 2018), so at most
    ``-ln(alpha)``. NaN where no item of the list, or none of the history, has a category.

    Args:
        items: As ``exposure``.
        k: Cut-off.
        categories: ``(items, categories)`` bool.
        history_shares: ``(users, categories)``; each row sums to 1 or is all 0.
        alpha: Weight of p in the smoothed q, in (0, 1]; the default is Steck's.

    Raises:
        DataError: If the shapes do not fit, or a row of shares is negative or sums to something else; the
            first user is named.
        RecipeError: If ``alpha`` is outside (0, 1].
    """
    from scipy.special import rel_entr

    if not 0 < alpha <= 1:
        raise RecipeError(f"alpha must lie in (0, 1]; got {alpha}.")
    listed = category_shares(items, k, categories)
    history = np.asarray(history_shares, np.float64)
    if history.shape != listed.shape:
        raise DataError(f"history_shares must be (users, categories) {listed.shape}; got {history.shape}.")
    total = history.sum(1)
    right = (history >= 0).all(1) & ((np.abs(total - 1) < 1e-6) | (total == 0))
    if not right.all():
        user = int(np.flatnonzero(~right)[0])
        raise DataError(
            f"The history shares of {(~right).sum():,} users are negative or do not sum to 1 (or, without "
            f"categories, to 0), first those of user {user}, which sum to {total[user]:g}."
        )
    distance = rel_entr(history, (1 - alpha) * listed + alpha * history).sum(1)
    return np.where((total > 0) & listed.any(1), np.maximum(distance, 0), np.nan)


def value(lists: RankedLists, k: int, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``(users,)`` summed price of the relevant items in the first k, and its share of the possible.

    The possible is the sum of the k highest prices of the user's relevant items; the share lies in [0, 1].
    Both are NaN where nothing is relevant, the share also where all that is relevant is free.

    Args:
        lists: Lists and what is relevant.
        k: Cut-off.
        prices: ``(items,)`` price or value of each item, in any one unit.

    Raises:
        DataError: If a price is negative or no finite number, or a relevant item has none; the item is named.
    """
    prices = _amounts(prices, "price")
    unknown = lists.relevant[(lists.relevant < 0) | (lists.relevant >= len(prices))]
    if len(unknown):
        raise DataError(
            f"{len(unknown):,} relevant items have no price, first item {unknown[0]}; there are prices of "
            f"{len(prices):,} items. Give one for every item that can be relevant."
        )
    users, _, items = _hits(lists, k, len(prices))
    got = np.bincount(users, prices[items], minlength=lists.num_users)
    worth = prices[lists.relevant]
    owner = np.repeat(np.arange(lists.num_users), lists.num_relevant)
    best = np.lexsort((-worth, owner))
    first = np.arange(len(worth)) - np.repeat(lists.start[:-1], lists.num_relevant) < k
    most = np.bincount(owner[first], worth[best][first], minlength=lists.num_users)
    # The two sums may round apart, hence the minimum.
    share = np.divide(np.minimum(got, most), most, out=np.full(lists.num_users, np.nan), where=most > 0)
    return np.where(lists.num_relevant > 0, got, np.nan), share


def generated_rates(
    generated: Sequence[Sequence[str]],
    known: Collection[str],
    histories: Sequence[Sequence[str]] | None = None,
) -> dict[str, float]:
    """Returns what raw generated lists get wrong, as shares in [0, 1] of all that was generated.

    To be asked before anything is filtered: who drops wrong strings first sees rates of 1.

    - ``valid_item_rate``: strings that are known items / strings of all lists.
    - ``distinct_item_rate``: strings that do not repeat an earlier one of their list / strings of all lists.
    - ``history_repeat_rate``: strings that are in the user's history / strings of all lists; only where
      histories are given.
    - ``empty_list_rate``: lists without a string / lists. The others cannot show these; where every list is
      empty, they are 0.

    Args:
        generated: Strings of each user as they were written, in any number.
        known: All that exists.
        histories: Items of each user before.

    Raises:
        DataError: If there is no list, or histories are not as many.
    """
    if not len(generated) or (histories is not None and len(histories) != len(generated)):
        raise DataError(
            f"{len(generated):,} generated lists and {'no' if histories is None else len(histories)} histories; "
            "there must be a list, and histories must be none or as many. A user who got nothing has an empty list."
        )
    existing = set(known)
    total = max(sum(map(len, generated)), 1)
    rates = {
        "valid_item_rate": sum(text in existing for texts in generated for text in texts) / total,
        "distinct_item_rate": sum(len(set(texts)) for texts in generated) / total,
        "empty_list_rate": sum(not len(texts) for texts in generated) / len(generated),
    }
    if histories is not None:
        repeats = 0
        for texts, history in zip(generated, histories, strict=True):
            before = set(history)
            repeats += sum(text in before for text in texts)
        rates["history_repeat_rate"] = repeats / total
    return rates


def probability_metrics(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> dict[str, float]:
    """Returns ``Brier`` and ``ECE``, how far probabilities are from what happened, in [0, 1]; 0 is best.

    - ``Brier``: mean of ``(probability - label)^2`` (Brier, Monthly Weather Review 1950).
    - ``ECE``: sum over bins of ``examples in bin / examples * |mean label - mean probability|`` (Naeini, Cooper
      and Hauskrecht, AAAI 2015), in bins of equally many examples by rising probability, not of equal width,
      since probabilities of clicks crowd near 0. Examples of one probability share a bin, the one at the
      middle of their places, so that the order of examples changes nothing; bins may then differ in size.

    Args:
        labels: ``(examples,)`` 0 or 1; one of them alone will do.
        probabilities: ``(examples,)`` in [0, 1].
        bins: Bins of ECE; more than examples leaves some empty.

    Raises:
        DataError: If the arrays are empty, differ in length or hold no finite numbers, labels are not 0 and
            1, or a probability is outside [0, 1].
        RecipeError: If there is no bin.
    """
    labels, probabilities = labelled(labels, probabilities)
    gap = np.bincount(_bins(probabilities, bins), labels - probabilities)
    return {
        "Brier": float(np.mean((probabilities - labels) ** 2)),
        "ECE": float(np.abs(gap).sum() / len(labels)),
    }


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> list[tuple[float, float]]:
    """Returns the mean probability and the mean label of each bin of ECE that is not empty, by rising probability.

    Arguments and errors as ``probability_metrics``.
    """
    labels, probabilities = labelled(labels, probabilities)
    own = _bins(probabilities, bins)
    return [
        (float(probabilities[own == each].mean()), float(labels[own == each].mean()))
        for each in np.unique(own)
    ]


def _bins(probabilities: np.ndarray, bins: int) -> np.ndarray:
    """Returns the bin of each example, equal probabilities in one."""
    if bins < 1:
        raise RecipeError(f"ECE needs a bin at least; got {bins} bins.")
    _, group, size = np.unique(probabilities, return_inverse=True, return_counts=True)
    twice_middle = 2 * (np.cumsum(size) - size) + size - 1
    return (bins * twice_middle // (2 * len(probabilities)))[group]


def _stretches(
    items: np.ndarray, k: int, num_items: int, values_per_list: int = 1
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields users and their ``(some users, min(k, width))`` checked items, few enough to stay in the cache."""
    _check_cut(k)
    step = max(1, 2**18 // max(1, min(k, items.shape[1]), values_per_list))
    for first in range(0, len(items), step):
        part = items[first : first + step, :k]
        if part.size and (part.min() < NO_ITEM or part.max() >= num_items):
            row, column = np.argwhere((part < NO_ITEM) | (part >= num_items))[0]
            raise _unknown_item(first + row, part[row, column], num_items)
        yield slice(first, first + len(part)), part


def _check_cut(k: int) -> None:
    if k < 1:
        raise RecipeError(f"A cut-off must be 1 or more; got {k}.")


def _unknown_item(user: int, item: int, num_items: int) -> DataError:
    return DataError(
        f"User {user} is given item {item}, which is not in the catalogue of {num_items:,} items (0 to "
        f"{num_items - 1}; {NO_ITEM} fills up)."
    )


def _with_blank(table: np.ndarray) -> np.ndarray:
    """Returns the table with a row of zeros at the end, which is the one that ``NO_ITEM`` (-1) looks up."""
    return np.concatenate([table, np.zeros_like(table, shape=(1, *table.shape[1:]))])


def _list_means(items: np.ndarray, k: int, table: np.ndarray) -> np.ndarray:
    """Returns ``(users,)`` mean of the table's values of the first k; NaN where the list is empty."""
    means = np.empty(len(items))
    padded = _with_blank(table)
    for users, part in _stretches(items, k, len(table)):
        length = (part != NO_ITEM).sum(1)
        means[users] = padded[part].sum(1) / np.where(length > 0, length, np.nan)
    return means


def _sums(part: np.ndarray, padded: np.ndarray) -> np.ndarray:
    """Returns ``(some users, columns)`` float64 sum of the table's rows of each list."""
    total = np.zeros((len(part), padded.shape[1]))
    # Rank by rank: gathering all ranks at once would need k times the memory.
    for column in part.T:
        total += padded[column]
    return total


def _hits(lists: RankedLists, k: int, num_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns user, place from 0 and item of every relevant item in the first k; only these are checked."""
    _check_cut(k)
    hits = lists.hits(k)
    # Hits are few: one flat pass is much faster than looking for row and column at once.
    users, places = np.divmod(np.flatnonzero(hits), max(1, hits.shape[1]))
    items = lists.items[users, places]
    wrong = np.flatnonzero((items < 0) | (items >= num_items))
    if len(wrong):
        raise _unknown_item(users[wrong[0]], items[wrong[0]], num_items)
    return users, places, items


def _amounts(values: np.ndarray, what: str) -> np.ndarray:
    """Returns the items' values as float64.

    Raises:
        DataError: If one is negative or no finite number; the item is named.
    """
    values = np.asarray(values, np.float64)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        item = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{wrong.sum():,} items have a {what} that is negative or no finite number, first item {item} with "
            f"{values[item]}. Give every item one of 0 or more."
        )
    return values


def _user_shares(users_of_item: np.ndarray, num_users: int) -> np.ndarray:
    """Returns ``(items,)`` share of the users who took each item, nobody counting as one."""
    users = _amounts(users_of_item, "number of users")
    if users.max(initial=0) > num_users:
        raise DataError(f"Item {users.argmax()} has {users.max():g} users; there are only {num_users:,}.")
    return np.maximum(users, 1) / num_users


def _head_floor(counts: np.ndarray, head: float) -> float:
    """Returns the number of interactions from which on an item is of the head."""
    if not 0 < head <= 1:
        raise RecipeError(f"The head's share of interactions must lie in (0, 1]; got {head}.")
    falling = -np.sort(-_amounts(counts, "count"))
    if not falling.any():
        raise DataError("No item has a training interaction, so that there is neither head nor tail.")
    together = np.cumsum(falling)
    return float(falling[np.searchsorted(together, head * together[-1])])
