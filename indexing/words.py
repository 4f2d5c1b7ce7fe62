"""Codes of words: how names become symbols, and the count that every such code ends with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from genrec.indexing.codes import Code, count_symbols, spell_symbols, symbols

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Returns the words of a text in lower case, punctuation left out."""
    return _WORD.findall(text.lower())


def name_symbol(name: str) -> str:
    """Returns a name as a symbol: never that of a count (``#``) or of a joined part (``+``), no angle brackets."""
    name = name.replace("<", "(").replace(">", ")")
    return f"\\{name}" if name[:1] in "#+\\" else name


def counted(rows: Sequence[Sequence[str]], base: int, taken: Iterable[Code] = ()) -> tuple[list[Code], int]:
    """Returns codes of rows of symbols, each with a count within its row, and how many have another's symbols.

    The count ends every code, so that no code begins another however long a title goes on, and so that items of
    one name are told apart. Those of one name are counted in the order given.

    Args:
        rows: Symbols of each item, without the count; may be empty.
        base: Different symbols of a count at a level.
        taken: Codes of items that are there already; theirs are the first counts.
    """
    used = {symbols(code) for code in taken}
    seen: dict[tuple[str, ...], int] = {}
    for old in used:
        named = tuple(symbol for symbol in old if not symbol.startswith("#"))
        seen[named] = seen.get(named, 0) + 1
    whole, touched = [], 0
    for row in map(tuple, rows):
        while True:
            count = seen.get(row, 0)
            seen[row] = count + 1
            found = (*row, *count_symbols(count, base))
            if found not in used:  # an item of this name may have left
                break
        whole.append(found)
        touched += count > 0
    return spell_symbols(whole), touched
