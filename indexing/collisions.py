"""What is done when two items get one code. Every policy is named, and says how many items it touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from genrec.core.errors import IndexingError
from genrec.data_prep import ItemId
from genrec.indexing.codes import Code, count_symbols, spell, spell_symbols, symbols
from genrec.indexing.sinkhorn import sinkhorn

Distances = Callable[[np.ndarray, int], np.ndarray]
"""Rows and a level to ``(rows, codes)``: distances of those items to the codes of that level that have a vector."""

SINKHORN_ROUNDS, SINKHORN_EPSILON = 20, 0.003  # LC-Rec's


@dataclass
class Settled:
    """Codes after a policy.

    Attributes:
        codes: In the order of the items.
        touched: ``{policy: items it changed}``; sinkhorn may leave some to next_free.
    """

    codes: list[Code]
    touched: dict[str, int] = field(default_factory=dict)

    def report(self, policy: str, raw: np.ndarray) -> dict[str, Any]:
        """Returns what an index says of its collisions.

        Args:
            policy: Name of the policy.
            raw: ``(items, levels)``, the codes before.
        """
        return {
            "collision_policy": policy,
            "collision_rate_before": 1 - len(np.unique(raw, axis=0)) / len(raw),
            "num_items_touched": sum(self.touched.values()),
            "touched_by": self.touched,
        }


def settle(
    policy: str,
    codes: np.ndarray,
    distances: Distances,
    codebook_size: int,
    taken: dict[ItemId, Code] | None = None,
) -> Settled:
    """Returns codes that a policy made of ``codes``.

    Args:
        policy: A name in ``COLLISION_POLICIES``.
        codes: ``(items, levels)`` integers below ``codebook_size``.
        distances: Gives the distances of items to the codes of a level.
        codebook_size: Different tokens at a level.
        taken: Codes of items that are there already, and keep them.

    Raises:
        IndexingError: If the policy is next_free or sinkhorn and no code is left.
    """
    return COLLISION_POLICIES[policy](codes, distances, codebook_size, set((taken or {}).values()))


def _next_free(codes: np.ndarray, distances: Distances, size: int, taken: set[Code]) -> Settled:
    """Later items of a shared code take the nearest free last token.

    Where all last tokens after an item's first ones are taken, the item goes to the nearest first tokens that have
    room: those that differ at the last place only come first, and nearer ones before others at each place.
    """
    codes = codes.copy()
    levels = codes.shape[1]
    used: dict[tuple[int, ...], set[int]] = {}
    for code in [tuple(map(int, symbols(code))) for code in taken]:
        used.setdefault(code[:-1], set()).add(code[-1])
    clashing = []
    for row, code in enumerate(map(tuple, codes.tolist())):
        last = used.setdefault(code[:-1], set())
        if code[-1] in last:
            clashing.append(row)
        else:
            last.add(code[-1])
    rows = np.array(clashing, np.int64)
    # Some thousand rows at once: with a million items the distances would not fit into memory.
    for first in range(0, len(rows), 4096):
        part = rows[first : first + 4096]
        for row, distance in zip(part.tolist(), _padded(distances(part, levels - 1), size), strict=True):
            prefix = tuple(codes[row, :-1].tolist())
            if len(used[prefix]) == size:
                here = np.array([row])
                nearer = [
                    _padded(distances(here, level), size)[0].argsort(kind="stable")
                    for level in range(levels - 1)
                ]
                roomy = (found for found in product(*nearer) if len(used.get(found, ())) < size)
                if (prefix := next(roomy, prefix)) not in used:
                    used[prefix] = set()
            last = used[prefix]
            if len(last) == size:
                raise IndexingError(
                    f"All {size**levels:,} codes of {levels} levels of {size} are taken. Raise index.codebook_size or "
                    "index.levels, or set index.collisions=suffix, which counts without end."
                )
            distance[list(last)] = np.inf
            codes[row] = (*prefix, int(np.argmin(distance)))
            last.add(int(codes[row, -1]))
    return Settled(spell(codes), {"next_free": len(clashing)})


def _padded(distances: np.ndarray, size: int) -> np.ndarray:
    """Codes without a vector, as there are with fewer items than codes, come after all others, in order."""
    room = ((0, 0), (0, size - distances.shape[1]))
    return np.pad(distances, room, constant_values=np.finfo(float).max)


def _suffix(codes: np.ndarray, distances: Distances, size: int, taken: set[Code]) -> Settled:  # noqa: ARG001
    """Every item gets one more token, which counts within its code (TIGER): 0 for the first, 1, 2, ...

    Where a code has as many items as a level has tokens, its later ones take several (``count_symbols``).
    """
    seen: dict[tuple[int, ...], int] = {}
    settled: list[Code] = []
    touched = 0
    for row in map(tuple, codes.tolist()):
        while True:
            count = seen.get(row, 0)
            seen[row] = count + 1
            (code,) = spell_symbols([(*row, *count_symbols(count, size))])
            if code not in taken:
                break
        settled.append(code)
        touched += count > 0
    return Settled(settled, {"suffix": touched})


def _sinkhorn(codes: np.ndarray, distances: Distances, size: int, taken: set[Code]) -> Settled:
    """Items of one code are spread over last tokens by transport, in turns, as LC-Rec's re-assignment does.

    What is still shared after 20 turns, as by items with one text, whose distances are equal, is left to
    next_free; so are items that meet a code which is taken already.
    """
    codes = codes.copy()
    moved: set[int] = set()
    for _ in range(SINKHORN_ROUNDS):
        _, group, count = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        shared = np.flatnonzero(count[group] > 1)
        if len(shared) == 0:
            break
        shared = shared[np.argsort(group[shared], kind="stable")]
        before = codes[shared, -1].copy()
        for rows in np.split(shared, np.flatnonzero(np.diff(group[shared])) + 1):
            spread = sinkhorn(distances(rows, codes.shape[1] - 1), SINKHORN_EPSILON)
            codes[rows, -1] = spread.argmax(1)
        moved.update(shared[codes[shared, -1] != before].tolist())
        if np.array_equal(before, codes[shared, -1]):
            break
    rest = _next_free(codes, distances, size, taken)
    changed = {row for row, code in enumerate(spell(codes)) if rest.codes[row] != code}
    return Settled(rest.codes, {"sinkhorn": len(moved - changed), "next_free": len(changed)})


def _allow(codes: np.ndarray, distances: Distances, size: int, taken: set[Code]) -> Settled:  # noqa: ARG001
    """Items keep the code that they share."""
    return Settled(spell(codes), {"allow": 0})


COLLISION_POLICIES: dict[str, Callable[[np.ndarray, Distances, int, set[Code]], Settled]] = {
    "next_free": _next_free,
    "suffix": _suffix,
    "sinkhorn": _sinkhorn,
    "allow": _allow,
}
