"""Textual identifiers: a few telling words of the title, like tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from genrec.data_prep import ItemCatalog, ItemId
from genrec.indexing.codes import Code, count_symbols, spell_symbols
from genrec.indexing.index import ItemIndex
from genrec.indexing.indexer import Indexer, IndexInputs
from genrec.indexing.settings import IndexSettings
from genrec.indexing.words import name_symbol, words_of

MAX_WORDS = 4


class TextId(Indexer):
    """Up to four telling words of the title, general ones first, then a count.

    Rare words of a title tell most; but words of one title only, which no two items could share, come after all
    others, and stop words and single letters are taken only where a title has nothing else. The words chosen are written from the most frequent to the rarest, so
    that items of a kind share the beginning of their codes. Where an item would get the words of an earlier one, it
    takes its next telling word for the last in turns; only where no word is left the count tells them apart.
    ``settings.max_words`` is the number of words. New items are named by the frequencies of the old ones.

    Source: the idea of short, tag-like, distinct textual identifiers is IDGenRec's (Tan et al., SIGIR 2024), where
    a language model is trained to write them; this one needs none.
    """

    def build(self, inputs: IndexInputs) -> ItemIndex:
        """Returns the index of every item of the catalogue."""
        items, settings = inputs.items, inputs.settings
        words = [words_of(items.title(item)) for item in items.item_ids]
        frequency = Counter(word for row in words for word in set(row))
        # Only words that two titles share are worth keeping: any other is as rare as a new one.
        shared = sorted(word for word, count in frequency.items() if count > 1)
        state = {
            "words": np.array(shared, str),
            "word_counts": np.array([frequency[word] for word in shared], np.int64),
        }
        codes, repaired, counted = _name(words, state, settings, set())
        report = {
            "collision_policy": "next_words",
            "num_items_touched": repaired + counted,
            "touched_by": {"next_words": repaired, "suffix": counted},
        }
        return ItemIndex("text_id", dict(zip(items.item_ids, codes, strict=True)), report, settings, state)

    def extend(self, index: ItemIndex, items: ItemCatalog) -> dict[ItemId, Code]:
        """Returns codes by the same rule, with the frequencies of the titles that were there first."""
        settings = index.settings
        assert settings is not None
        words = [words_of(items.title(item)) for item in items.item_ids]
        codes, _, _ = _name(words, index.state, settings, set(index.codes.values()))
        return dict(zip(items.item_ids, codes, strict=True))


def _name(
    words: Sequence[Sequence[str]], state: dict[str, np.ndarray], settings: IndexSettings, taken: set[Code]
) -> tuple[list[Code], int, int]:
    """Returns codes, how many took another word than their first choice, and how many a count tells apart."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    frequency = dict(zip(state["words"].tolist(), state["word_counts"].tolist(), strict=True))
    most, used = settings.max_words or MAX_WORDS, set(taken)
    next_count: Counter[frozenset[str]] = Counter()
    codes, repaired, counted = [], 0, 0

    def rank(word: str) -> tuple[bool, bool, int, str]:
        count = frequency.get(word, 1)
        return word in ENGLISH_STOP_WORDS or len(word) == 1, count == 1, count, word

    for row in words:
        ranked = sorted(set(row), key=rank)
        telling = [word for word in ranked if not rank(word)[0]] or ranked
        kept = telling[: most - 1]
        choices = [[*kept, other] for other in telling[most - 1 :]] or [kept]
        for number, choice in enumerate(choices):
            code = _spell(choice, frequency, 0, settings.codebook_size)
            if code not in used:
                repaired += number > 0
                break
        else:
            key = frozenset(choices[0])
            while code in used:  # next_count, so that items of one title are not counted through each time
                code = _spell(choices[0], frequency, next_count[key], settings.codebook_size)
                next_count[key] += 1
            counted += 1
        used.add(code)
        codes.append(code)
    return codes, repaired, counted


def _spell(words: Sequence[str], frequency: dict[str, int], count: int, base: int) -> Code:
    row = sorted(words, key=lambda word: (-frequency.get(word, 1), word))
    return spell_symbols([[*map(name_symbol, row), *count_symbols(count, base)]])[0]
