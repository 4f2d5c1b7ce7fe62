"""The spelling of codes: which tokens a row of numbers or symbols is written with."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence

import numpy as np

from genrec.core.errors import IndexingError

Code = tuple[str, ...]


def spell(numbers: np.ndarray) -> list[Code]:
    """Returns the codes of an integer array ``(items, levels)``.

    Level 1 is spelled ``<a_7>``, level 2 ``<b_7>`` and so on (LC-Rec's spelling), so that no token
    is shared by two levels.
    """
    return spell_symbols(numbers.tolist())


def spell_symbols(rows: Iterable[Sequence[object]], first_level: int = 0) -> list[Code]:
    """Returns the codes of rows of symbols, one a level, of any lengths: ``<a_red>``, ``<b_lamp>``.

    Args:
        rows: Symbols of each item.
        first_level: The level, from 0, of the first symbol.
    """
    rows = list(rows)
    names = [_level_name(first_level + level) for level in range(max(map(len, rows), default=0))]
    return [tuple([f"<{name}_{symbol}>" for name, symbol in zip(names, row, strict=False)]) for row in rows]


def symbols(code: Code) -> tuple[str, ...]:
    """Returns what ``spell_symbols`` made a code of: ``("<a_7>", "<b_#0>")`` gives ``("7", "#0")``."""
    return tuple(token.partition("_")[2][:-1] for token in code)


def count_symbols(number: int, base: int) -> tuple[str, ...]:
    """Returns the symbols that count items of one name: ``#0``, ``#1``, ..., then several symbols each.

    No count's symbols begin another's, whatever counts follow, so that codes which end with them stay
    prefix-free when a catalogue grows. The first ``base - 1`` counts take one symbol; the last symbol opens
    a block of two, whose last pair opens a block of three, and so on.

    Args:
        number: The count, from 0.
        base: Different symbols at a level, 2 or more.
    """
    shown: list[int] = []
    width = 1
    while number >= base**width - 1:
        number -= base**width - 1
        shown += [base - 1] * width
        width += 1
    shown += [number // base**place % base for place in reversed(range(width))]
    return tuple(f"#{digit}" for digit in shown)


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
    powers = np.array([min(base**place, 2**63 - 1) for place in range(levels - 1, -1, -1)], np.int64)
    return numbers[:, None] // powers[None, :] % base


def undigits(rows: np.ndarray, base: int) -> np.ndarray:
    """Returns the numbers whose digits the rows are; the inverse of ``digits``."""
    numbers = np.zeros(len(rows), np.int64)
    for column in rows.T:
        numbers = numbers * base + column
    return numbers


def numbers_of(codes: Iterable[Code], levels: int) -> np.ndarray:
    """Returns the first ``levels`` numbers of codes that ``spell`` wrote, as an array ``(codes, levels)``."""
    return np.array([[int(symbol) for symbol in symbols(code[:levels])] for code in codes], np.int64).reshape(
        -1, levels
    )


def _level_name(level: int) -> str:
    """Returns a, b, ..., z, aa, ab, ...: letters only, so that they never run into a number."""
    name = ""
    level += 1
    while level:
        level, letter = divmod(level - 1, 26)
        name = string.ascii_lowercase[letter] + name
    return name
