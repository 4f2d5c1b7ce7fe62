"""What is done when two items get one code. Every policy ends without a shared code, or with an error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from genrec.core.errors import IndexingError


def next_free(codes: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns codes in which later items of a shared code took the nearest free last token.

    Args:
        codes: ``(items, levels)`` integers.
        distances: ``(items, codebook_size)``, of each item to the codes of the last level.

    Returns:
        The codes and how many items were moved.

    Raises:
        IndexingError: If more items share all but the last token than there are last tokens.
    """
    codes, moved = codes.copy(), 0
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, prefix in enumerate(map(tuple, codes[:, :-1].tolist())):
        groups.setdefault(prefix, []).append(row)
    for prefix, rows in groups.items():
        if len(rows) > distances.shape[1]:
            raise IndexingError(
                f"{len(rows):,} items share the code prefix {prefix}, but a level has only "
                f"{distances.shape[1]:,} codes. Raise index.codebook_size or index.levels, or set "
                "index.collisions=suffix."
            )
        free = np.ones(distances.shape[1], bool)
        clashing = []
        for row in rows:
            if free[codes[row, -1]]:
                free[codes[row, -1]] = False
            else:
                clashing.append(row)
        for row in clashing:
            codes[row, -1] = int(np.argmin(np.where(free, distances[row], np.inf)))
            free[codes[row, -1]] = False
        moved += len(clashing)
    return codes, moved


def suffix(codes: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, int]:  # noqa: ARG001
    """Returns codes with one more token: 0, 1, 2, ... among the items of one code (TIGER's rule).

    Every item gets the token, so that all codes keep one length. Also returns how many items share
    their first tokens with an earlier one.
    """
    seen: dict[tuple[int, ...], int] = {}
    last = np.empty(len(codes), codes.dtype)
    for row, code in enumerate(map(tuple, codes.tolist())):
        last[row] = seen.get(code, 0)
        seen[code] = int(last[row]) + 1
    return np.column_stack([codes, last]), int((last > 0).sum())


COLLISION_POLICIES: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, int]]] = {
    "next_free": next_free,
    "suffix": suffix,
}
