"""Metrics of generated text beside references: BLEU, ROUGE and how varied the text is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from genrec.core.errors import DataError, RecipeError

Tokenize = Callable[[str], Sequence[str]]
References = Sequence[str] | Sequence[Sequence[str]]


def alphanumeric(text: str) -> list[str]:
    """Returns the runs of a-z and 0-9 in the lower-cased text, which is what ``rouge-score`` counts unstemmed.

    Letters outside a-z split words and vanish: not for text in other scripts.
    """
    return re.findall("[a-z0-9]+", text.lower())


def text_metrics(
    references: References, generated: Sequence[str], tokenize: Tokenize = str.split
) -> dict[str, float]:
    """Returns all metrics of this module.

    ``BLEU-1`` to ``BLEU-4`` and the nine of ``rouge``, in [0, 100]; ``USR``, ``distinct-1`` and
    ``distinct-2``, in [0, 1].

    Args:
        references: The right text of each example, or several.
        generated: The text that was written for each example.
        tokenize: Gives the tokens of a text.

    Raises:
        DataError: If there is no example, the two are not as many, or an example has no reference.
    """
    scores = _bleu_scores(references, generated, 4, tokenize)
    return {
        **{f"BLEU-{n}": score for n, score in enumerate(scores, start=1)},
        **rouge(references, generated, tokenize),
        "USR": unique_sentence_ratio(generated, tokenize),
        "distinct-1": distinct_ngrams(generated, 1, tokenize),
        "distinct-2": distinct_ngrams(generated, 2, tokenize),
    }


def bleu(
    references: References, generated: Sequence[str], max_n: int = 4, tokenize: Tokenize = str.split
) -> float:
    """Returns BLEU of the whole corpus in [0, 100], unsmoothed (Papineni et al., ACL 2002).

    ``100 * BP * (p_1 ... p_N)^(1/N)`` with N = ``max_n``. ``p_n`` is the number of generated n-grams that a
    reference has, each counted at most as often as in the one reference that has it most, over all examples,
    divided by the number of generated n-grams. ``BP = exp(min(0, 1 - r/c))`` with c the generated tokens and r
    those of the references, of several that with the closest length, the shorter one where two are as close.
    0 where a precision is 0 or there is no n-gram of a length. As ``sacrebleu`` with ``tokenize="none"`` and
    ``smooth_method="none"``; whitespace tokens are P5's. Case counts.

    Args:
        references: The right text of each example, or several.
        generated: The text that was written for each example.
        max_n: Longest n-gram.
        tokenize: Gives the tokens of a text.

    Raises:
        DataError: As ``text_metrics``.
        RecipeError: If ``max_n`` is below 1.
    """
    return _bleu_scores(references, generated, max_n, tokenize)[-1]


def rouge(
    references: References, generated: Sequence[str], tokenize: Tokenize = str.split
) -> dict[str, float]:
    """Returns precision, recall and F1 of ROUGE-1, ROUGE-2 and ROUGE-L, in [0, 100] (Lin, 2004).

    The names are ``"ROUGE-1 precision"``, ``"ROUGE-1 recall"``, ``"ROUGE-1 F1"`` and so on. ROUGE-n counts
    shared n-grams, each as often as both texts have it; ROUGE-L the longest common subsequence of tokens of
    the whole text. Precision divides by what was generated, recall by the reference, F1 is
    ``2 P R / (P + R)``; each 0 where it would divide by 0. They are worked out for each example and averaged.
    Of several references the one with the best F1 counts, for each of the three apart. As ``rouge-score``
    with ``use_stemmer=False`` if ``tokenize`` is ``alphanumeric``.

    Args:
        references: The right text of each example, or several.
        generated: The text that was written for each example.
        tokenize: Gives the tokens of a text.

    Raises:
        DataError: As ``text_metrics``.
    """
    kinds = ("ROUGE-1", "ROUGE-2", "ROUGE-L")
    total = np.zeros((len(kinds), 3))
    for texts, text in _examples(references, generated):
        ours = tokenize(text)
        scores = np.array([_rouge_scores(tokenize(reference), ours) for reference in texts])
        best = scores[:, :, 2].argmax(0)
        total += scores[best, np.arange(len(kinds))]
    means = 100 * total / len(generated)
    return {
        f"{kind} {name}": float(means[row, column])
        for row, kind in enumerate(kinds)
        for column, name in enumerate(("precision", "recall", "F1"))
    }


def unique_sentence_ratio(generated: Sequence[str], tokenize: Tokenize = str.split) -> float:
    """Returns distinct texts / texts, in (0, 1], two being the same if their tokens are (Li et al., CIKM 2020).

    Raises:
        DataError: If there is no text.
    """
    if not len(generated):
        raise DataError("No generated text, so that there is nothing to measure.")
    return len({tuple(tokenize(text)) for text in generated}) / len(generated)


def distinct_ngrams(generated: Sequence[str], n: int, tokenize: Tokenize = str.split) -> float:
    """Returns distinct n-grams / n-grams of all texts together, in [0, 1]; 0 where there is none.

    Distinct-n of Li et al. (NAACL 2016), who divide by tokens; n-grams make 1 the value of text that repeats
    nothing, at any n. It falls as more text is measured: compare only as many texts of similar length.

    Raises:
        RecipeError: If n is below 1.
    """
    if n < 1:
        raise RecipeError(f"n-grams have 1 token or more; got n = {n}.")
    counts: Counter[tuple[str, ...]] = Counter()
    for text in generated:
        counts.update(_ngrams(tokenize(text), n))
    return len(counts) / max(counts.total(), 1)


def _examples(references: References, generated: Sequence[str]) -> list[tuple[list[str], str]]:
    """Returns the references, at least one, and the generated text of each example."""
    if isinstance(references, str) or isinstance(generated, str):
        raise DataError(
            "References and generated texts must be lists with one entry an example, not one text."
        )
    if len(references) != len(generated) or not len(generated):
        raise DataError(
            f"{len(references):,} references for {len(generated):,} generated texts; each example needs both, and "
            "there must be one. Where nothing was generated, give an empty text."
        )
    texts = [[entry] if isinstance(entry, str) else list(entry) for entry in references]
    empty = [example for example, entry in enumerate(texts) if not entry]
    if empty:
        raise DataError(
            f"{len(empty):,} examples have no reference, first example {empty[0]}; leave them out."
        )
    return list(zip(texts, generated, strict=True))


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[first:] for first in range(n)), strict=False))


def _bleu_scores(
    references: References, generated: Sequence[str], max_n: int, tokenize: Tokenize
) -> list[float]:
    """Returns BLEU-1 to BLEU-``max_n``."""
    if max_n < 1:
        raise RecipeError(f"BLEU needs n-grams of 1 token or more; got max_n = {max_n}.")
    matched, possible = np.zeros(max_n), np.zeros(max_n)
    ours_length = references_length = 0
    for texts, text in _examples(references, generated):
        ours, theirs = tokenize(text), [tokenize(reference) for reference in texts]
        ours_length += len(ours)
        references_length += min((abs(len(tokens) - len(ours)), len(tokens)) for tokens in theirs)[1]
        for n in range(1, max_n + 1):
            counts = _ngrams(ours, n)
            most: Counter[tuple[str, ...]] = Counter()
            for tokens in theirs:
                most |= _ngrams(tokens, n)
            matched[n - 1] += (counts & most).total()
            possible[n - 1] += counts.total()
    brevity = min(0.0, 1 - references_length / max(ours_length, 1))
    # A length nobody wrote has matched 0 too: its logarithm, minus infinity, makes the score 0.
    with np.errstate(divide="ignore"):
        logs = np.log(matched) - np.log(np.maximum(possible, 1))
    means = np.cumsum(logs) / np.arange(1, max_n + 1)
    return (100 * np.exp(brevity + means)).tolist()


def _rouge_scores(reference: Sequence[str], ours: Sequence[str]) -> list[tuple[float, float, float]]:
    """Returns precision, recall and F1 of ROUGE-1, ROUGE-2 and ROUGE-L."""
    scores = []
    for n in (1, 2):
        shared = (_ngrams(reference, n) & _ngrams(ours, n)).total()
        scores.append(_precision_recall(shared, len(ours) - n + 1, len(reference) - n + 1))
    scores.append(_precision_recall(_common_subsequence(reference, ours), len(ours), len(reference)))
    return scores


def _precision_recall(shared: int, ours: int, reference: int) -> tuple[float, float, float]:
    if not shared:
        return 0.0, 0.0, 0.0
    # Equals 2 P R / (P + R).
    return shared / ours, shared / reference, 2 * shared / (ours + reference)


def _common_subsequence(one: Sequence[str], two: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence.

    Bit by bit in one integer (Hyyro, AWOCA 2004): after each token of ``two``, the zeros among the low bits
    are the places of ``one`` at which the length of the table's row grows.
    """
    places: dict[str, int] = {}
    for place, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << place
    full = (1 << len(one)) - 1
    row = full
    for token in two:
        here = row & places.get(token, 0)
        row = ((row + here) | (row - here)) & full
    return len(one) - row.bit_count()
