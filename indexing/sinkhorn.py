"""Assignments in which every code gets its share: Sinkhorn's transport, and clusters of equal size."""

from __future__ import annotations

import numpy as np

from genrec.core.errors import IndexingError


def sinkhorn(cost: np.ndarray, epsilon: float, iterations: int = 50) -> np.ndarray:
    """Returns log Q, ``(items, codes)``, of the transport that gives each code an equal share of the items.

    Q maximises the match of items and codes at entropy ``epsilon``: as in LC-Rec (ICDE 2024, uniform semantic
    mapping) costs are centred and scaled to [-1, 1], rows and columns of exp(-cost / epsilon) are normalised in
    turns, and an item's code is the argmax of its row. Differs in working on logarithms throughout, so that
    nothing over- or underflows at any epsilon; the released code takes exponentials, which are 0 or infinite
    from about .001 down.

    Args:
        cost: ``(items, codes)``, finite.
        epsilon: More than 0; the smaller, the nearer to the cheapest assignment.
        iterations: Turns.

    Raises:
        IndexingError: If epsilon is not positive or a cost is not finite.
    """
    if not epsilon > 0:
        raise IndexingError(f"Sinkhorn's epsilon must be more than 0, got {epsilon}.")
    if not np.isfinite(cost).all():
        raise IndexingError("Sinkhorn's costs must be finite.")
    low, high = float(cost.min()), float(cost.max())
    scaled = (cost.astype(np.float64) - (low + high) / 2) / ((high - low) / 2 + 1e-5)
    smallest = 1e-290  # of the smallest numbers there are the quotients would be infinite
    log_q = -scaled / max(epsilon, smallest)
    num_items, num_codes = log_q.shape
    turns = 0
    while turns < iterations:
        log_q -= _log_sum_exp(log_q, 1) + np.log(num_items)
        log_q -= _log_sum_exp(log_q, 0) + np.log(num_codes)
        turns += 1
        # Until factors grow large, a turn is two products with the exponentials, which are taken once. What was
        # too small for them stays below 1e-200 of its row and column.
        kernel, row_factor, column_factor = np.exp(log_q), np.ones(num_items), np.ones(num_codes)
        while turns < iterations:
            with np.errstate(divide="ignore", over="ignore"):
                rows = 1 / (num_items * (kernel @ column_factor))
                columns = 1 / (num_codes * (rows @ kernel))
            if not (_moderate(rows) and _moderate(columns)):
                break
            row_factor, column_factor = rows, columns
            turns += 1
        log_q += np.log(row_factor)[:, None] + np.log(column_factor)
    return log_q


def _moderate(factors: np.ndarray) -> bool:
    return bool(np.isfinite(factors).all() and factors.max() < 1e100 and factors.min() > 1e-100)


def balanced(cost: np.ndarray, iterations: int = 20) -> np.ndarray:
    """Returns codes ``(items,)`` of low total cost of which each is given to n/K items, rounded down or up.

    Codes get prices by ``sinkhorn`` at a small epsilon; then items propose to the codes that are cheapest to
    them after the price, and a code that is asked by too many keeps those that would lose most elsewhere
    (deferred acceptance, Gale and Shapley 1962). Near to the cheapest assignment, which min-cost flow would
    find in hours where this takes seconds.

    Args:
        cost: ``(items, codes)``, finite.
        iterations: Turns of Sinkhorn.
    """
    num_items, num_codes = cost.shape
    log_q = sinkhorn(cost, 0.01, iterations)
    # What an item prefers is the same in Q as in cost minus price; a row's constant does not matter.
    preference = log_q - log_q.max(1, keepdims=True)
    order = np.argsort(-preference, axis=1, kind="stable")
    wanted = np.bincount(order[:, 0], minlength=num_codes)
    room = np.full(num_codes, num_items // num_codes)
    room[np.argsort(-wanted, kind="stable")[: num_items % num_codes]] += 1

    ranked = np.take_along_axis(preference, order, 1)
    # What an item loses when it must go one further down its list.
    loss = np.concatenate([ranked[:, :-1] - ranked[:, 1:], np.zeros((num_items, 1))], 1)
    place = np.zeros(num_items, np.int64)
    rows = np.arange(num_items)
    while True:
        # A code without room is passed over, which happens with fewer items than codes.
        while (closed := room[order[rows, place]] == 0).any():
            place[closed] += 1
        code = order[rows, place]
        count = np.bincount(code, minlength=num_codes)
        if (count <= room).all():
            return code
        by_code = np.lexsort((-loss[rows, place], code))
        start = np.concatenate([[0], np.cumsum(count)])[code[by_code]]
        over = by_code[np.arange(num_items) - start >= room[code[by_code]]]
        place[over] += 1


def _log_sum_exp(values: np.ndarray, axis: int) -> np.ndarray:
    highest = values.max(axis, keepdims=True)
    return highest + np.log(np.exp(values - highest).sum(axis, keepdims=True))
