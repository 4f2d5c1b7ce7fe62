"""The spelling of codes: which tokens a row of code numbers is written with."""

from __future__ import annotations

import string

import numpy as np

from genrec.core.errors import IndexingError

Code = tuple[str, ...]


def spell(numbers: np.ndarray) -> list[Code]:
    """Returns the codes of an integer array ``(items, levels)``.

    Level 1 is spelled ``<a_7>``, level 2 ``<b_7>`` and so on (LC-Rec's spelling), so that no token
    is shared by two levels.
    """
    letters = string.ascii_lowercase
    return [
        tuple(f"<{letters[level]}_{number}>" for level, number in enumerate(row)) for row in numbers.tolist()
    ]


def digits(numbers: np.ndarray, base: int, levels: int) -> np.ndarray:
    """Returns the digits, most significant first, of integers as an array ``(numbers, levels)``.

    Raises:
        IndexingError: If a number has more than ``levels`` digits.
    """
    if len(numbers) and int(numbers.max()) >= base**levels:
        raise IndexingError(
            f"{levels} levels of {base} codes name at most {base**levels:,} items; "
            f"{int(numbers.max()) + 1:,} are needed. Raise index.levels or index.codebook_size."
        )
    powers = base ** np.arange(levels - 1, -1, -1, dtype=np.int64)
    return numbers[:, None] // powers[None, :] % base
