"""Explanations and feature words out of review texts, by a stated rule and without a model."""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

Explained = tuple[str | None, str | None]

_FEWEST_WORDS, _MOST_WORDS = 3, 30
_NOUN_SHARE = 0.08
_MOST_REVIEWS = 0.25
# Uses that a word's share of opinions is drawn towards nothing by, so that rare words do not win by luck.
_DOUBT = 10

_BOUNDARY = re.compile(r"(?P<end>[.!?]+[\"')\]]*)(?=\s|$|[A-Z][a-z]|[-*\u2022])|\n+")
_EDGE = " \t-\u2013\u2014*\u2022,;:~_"
_TOKEN = re.compile(r"[a-z]+(?:['\u2019-][a-z]+)*|[^\w\s'\u2019-]|-(?!\w)")
_ADDRESS = re.compile(r"https?:|www\.|\.com\b", re.IGNORECASE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ABBREVIATIONS = _words("approx dr e.g etc ft i.e inc jr lb lbs mr mrs ms no oz sr st vs")

_DETERMINERS = _words("a an any each every her his its my no our some the their these this those your")
FUNCTION_WORDS = _DETERMINERS | _words(
    """
    about after again all also although am and anyone are aren't as at be because been before being but by can
    can't cannot could couldn't did didn't do does doesn't don't enough especially even for from had has have
    he her how however i i'd i'll i'm i've if in into is isn't it it's just little may me might more most much
    must myself not of off on only or out over own quite really she should since so still such than that
    that's them then there they though through to too until up us very was wasn't we were what when where
    which while who why will with without won't would wouldn't yet you
    """
)
# Nouns that say nothing of what an item is like: stand-ins for the item, people, time, amounts.
_EMPTY_NOUNS = _words(
    """
    addition amount bit brother buck bucks bunch buy buyer buys chance choice company complaint complaints
    couple course customer daughter day days deal decision dollar dollars downside everyone everything
    exception fact father few folks friend friends future game guy guys hour hours husband idea investment
    issue issues item items job kid kids kind lot lots luck man matter minute minutes mom month months mother
    need needs night none nothing one ones option other others people person piece place point problem
    problems product products purchase reason recommendation rest result results review reviewer reviewers
    reviews same second seller side solution something son sort star stars store stuff theory thing things
    thought thoughts time times top trick trouble try type use user users variety version way ways week weeks wife
    word words work world year years
    """
)
_LIKINGS = _words(
    """
    adore appreciate dislike disliked enjoy enjoyed enjoying enjoys hate hated hates lack lacked lacking lacks
    liked likes love loved loves loving recommend regret
    """
)
_ADVERBS = _words(
    """
    badly beautifully easily effortlessly fast fine flawlessly great loudly nicely perfectly poorly quickly
    quietly smoothly solidly tightly well wonderfully
    """
)
_VERDICTS = _words(
    """
    accurate adequate affordable amazing annoying appealing attractive awesome awful awkward bad beautiful
    boring brilliant bulky charming clever clumsy comfortable comfy confusing convenient cool crappy crisp
    cute decent defective delicate delicious delightful dependable difficult disappointed disappointing dull
    durable easy effective efficient elegant enjoyable excellent exceptional fabulous fantastic fascinating
    faulty favorite favourite fine flawless flimsy fragile friendly frustrating fun fussy generous good
    gorgeous great handy happy harsh helpful horrible impressed impressive inaccurate incredible inferior
    intuitive lame long-lasting lovely mediocre messy muddy neat nice outstanding overpriced painful perfect
    phenomenal pleasant pleased poor powerful precise reasonable reliable responsive rude rugged satisfied
    satisfying shoddy silky sleek slick smooth solid spectacular stunning sturdy stylish super superb superior
    sweet tasty terrible terrific tinny ugly uncomfortable unpleasant unreliable useful useless vague
    versatile vibrant vivid wonderful worthless
    """
)
# Adjectives that tell one item from another in front of a noun, and judge it only behind a verb.
_DESCRIPTIONS = _words(
    """
    average best better bright cheap clean clear compact consistent dirty expensive fair fake fast firm flat
    flexible fresh full gentle heavy huge inexpensive interesting light lightweight loose loud mellow natural
    noisy plain quick quiet rich rigid rough sad sharp simple slow soft stable sticky stiff strong subtle
    thick thin tight tough unique warm weak worse worst wrong
    """
)
OPINIONS = _LIKINGS | _ADVERBS | _VERDICTS | _DESCRIPTIONS
_LINKS = _words(
    """
    are aren't came comes does doesn't feel feels felt fits functions has have held hold holds is isn't look
    looks performs play plays remains seem seemed seems sits smells sound sounds stay stays tastes was wasn't
    were weren't work worked works
    """
)
_PREPOSITIONS = _words("about by for of with")
_SPEAKERS = _words("also always didn't don't i particularly really we")
_BREAK = "|"


def sentences(text: str) -> list[str]:
    """Returns the sentences of a text, in order, each with single spaces and without bullets at its edges.

    A sentence ends at ``.``, ``!`` or ``?`` before white space, before a capitalised word or a bullet
    (reviews often leave the space out) or at the end, and at a line break. Decimals, common abbreviations,
    initials and dots that trail off into a small letter do not end one.
    """
    found, start = [], 0
    for match in _BOUNDARY.finditer(text):
        if match["end"] and _goes_on(text, match):
            continue
        found.append(text[start : match.end()])
        start = match.end()
    found.append(text[start:])
    return [tidy for sentence in found if (tidy := " ".join(sentence.split()).strip(_EDGE))]


def _goes_on(text: str, match: re.Match[str]) -> bool:
    following = text[match.end() : match.end() + 2].strip()[:1]
    if match["end"] == ".":
        before = text[max(0, match.start() - 8) : match.start()].split()
        last = before[-1].lower() if before else ""
        initial = len(last) == 1 and last.isalpha() and last != "i"
        return (last in _ABBREVIATIONS or initial) and not (last == "etc" and following.isupper())
    return match["end"].startswith("..") and following.islower()


def explain(
    reviews: Sequence[str | None],
    item_ids: Sequence[str],
    learn: Sequence[bool] | None = None,
    min_reviews: int = 5,
    min_items: int = 3,
) -> list[Explained]:
    """Returns for each review ``(explanation, feature)``, or ``(None, None)`` where it has no such sentence.

    The explanation is a sentence of the review that gives an opinion on a feature; the feature is the word.
    P5 took both from Sentires, a Java tool that parses sentences and learns a lexicon of (feature, opinion,
    sentiment). This rule knows lists of English words and counts, so it needs nothing but the texts; its
    features are single words, and it tells opinions from facts less well.

    1. A word is *judged* where it follows an adjective of opinion, with at most one word between ("great
       tone", "solid metal stand"), where a linking verb and, at most three words later, an opinion follow it
       ("the ends are very stiff"), or where a determiner before it follows a liking, or an opinion and a
       preposition ("love the tone", "happy with its finish"); punctuation lies nowhere between. Of two
       feature words in a row the second is the judged one.
    2. A *feature word* is used by at least ``min_reviews`` reviews of at least ``min_items`` items and by at
       most a quarter of all reviews; is no function word, opinion or empty noun (product, thing, year); and
       behaves like a noun: .08 of its uses or more stand behind a determiner and before a function word,
       punctuation or the end of the sentence ("the tone is").
    3. An explanation is a sentence of 3 to 30 words, no question and without a web address, in which a
       feature word is judged. A feature weighs the share of its uses that are judged (ten more uses are
       added to all, so that luck with rare words counts less), times the root of its idf, times one plus the
       logarithm of its uses in the review. The heaviest is taken, of equal ones the first.

    Args:
        reviews: Texts in English; ``""`` and ``None`` give ``(None, None)``.
        item_ids: The item that each review is about.
        learn: Which reviews words are counted in: pass those of the training part. Default: all.
        min_reviews: Fewest reviews that use a feature word.
        min_items: Fewest items that these reviews are about.
    """
    # One flat array of word ids, a break after every sentence: then each rule compares shifts of it.
    ids: defaultdict[str, int] = defaultdict()
    ids.default_factory = ids.__len__
    tokens = array("i", [ids[_BREAK]])
    rows, numbers, lengths, usable = [0], [0], [1], [False]
    for row, review in enumerate(reviews):
        for number, sentence in enumerate(sentences(review) if review else ()):
            words = _TOKEN.findall(sentence.lower())
            tokens.extend(map(ids.__getitem__, words))
            tokens.append(ids[_BREAK])
            rows.append(row)
            numbers.append(number)
            lengths.append(len(words) + 1)
            usable.append("?" not in sentence and not _ADDRESS.search(sentence))
    kinds, num_words = _Kinds(list(ids)), len(ids)
    word = np.array(tokens)
    sentence_of = np.repeat(np.arange(len(lengths)), lengths)
    review_of = np.array(rows)[sentence_of]

    learned = np.ones(len(reviews), bool) if learn is None else np.asarray(learn, bool)
    num_learned = int(learned.sum())
    if not num_learned:
        return [(None, None)] * len(reviews)
    counted = learned[review_of]
    in_review = review_of * num_words + word
    pairs, times = np.unique(in_review, return_counts=True)
    uses = _count(word[counted], num_words)
    pairs_counted = pairs[learned[pairs // num_words]]
    reviews_with = _count(pairs_counted % num_words, num_words)
    item_of = np.unique(np.asarray(item_ids, dtype=str), return_inverse=True)[1]
    of_item = item_of[pairs_counted // num_words] * num_words + pairs_counted % num_words
    items_with = _count(np.unique(of_item) % num_words, num_words)
    as_noun = _count(word[counted & kinds.as_noun(word)], num_words)
    feature = (
        kinds.nameable
        & (as_noun >= np.maximum(_NOUN_SHARE * uses, 1))
        & (reviews_with >= min_reviews)
        & (reviews_with <= max(min_reviews, _MOST_REVIEWS * num_learned))
        & (items_with >= min_items)
    )
    judged = kinds.judged(word) & feature[word] & ~feature[np.roll(word, -1)]
    share = _count(word[counted & judged], num_words) / (uses + _DOUBT)
    weight = share * np.sqrt(np.log(num_learned / np.maximum(reviews_with, 1)) + 1)

    num_in_sentence = _count(sentence_of[kinds.word[word]], len(lengths))
    fits = np.array(usable) & (num_in_sentence >= _FEWEST_WORDS) & (num_in_sentence <= _MOST_WORDS)
    at = np.flatnonzero(judged & fits[sentence_of] & (weight[word] > 0))
    score = weight[word[at]] * (1 + np.log(times[np.searchsorted(pairs, in_review[at])]))
    best = at[np.lexsort((at, -score, review_of[at]))]
    best = best[np.diff(review_of[best], prepend=-1) > 0]
    result: list[Explained] = [(None, None)] * len(reviews)
    for place in best:
        row, number = rows[sentence_of[place]], numbers[sentence_of[place]]
        result[row] = (sentences(reviews[row] or "")[number], kinds.vocabulary[word[place]])
    return result


def _count(values: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(values, minlength=size)


class _Kinds:
    """What kinds of word each entry of a vocabulary belongs to, and the patterns over arrays of entries."""

    def __init__(self, vocabulary: list[str]) -> None:
        self.vocabulary = vocabulary
        self.word = np.array([text[0].isalpha() for text in vocabulary])
        self.function = self._among(FUNCTION_WORDS)
        self.determiner = self._among(_DETERMINERS)
        self.preposition = self._among(_PREPOSITIONS)
        self.link = self._among(_LINKS)
        self.liking = self._among(_LIKINGS)
        self.verdict = self._among(_VERDICTS)
        self.predicate = self._among(_VERDICTS | _DESCRIPTIONS | _ADVERBS)
        self.plain = self.word & ~self.function
        long = np.array([len(text) > 2 for text in vocabulary])
        self.nameable = self.plain & long & ~self._among(_EMPTY_NOUNS | OPINIONS)

    def _among(self, words: Collection[str]) -> np.ndarray:
        return np.array([text in words for text in self.vocabulary])

    def as_noun(self, word: np.ndarray) -> np.ndarray:
        """Returns whether each place stands behind a determiner and before what does not go on a noun."""
        return self.determiner[np.roll(word, 1)] & ~self.plain[np.roll(word, -1)]

    def judged(self, word: np.ndarray) -> np.ndarray:
        """Returns whether an opinion is given on the word at each place, were it a feature word."""

        def before(kind: np.ndarray, steps: int) -> np.ndarray:
            return np.roll(kind, steps)

        def after(kind: np.ndarray, steps: int) -> np.ndarray:
            return np.roll(kind, -steps)

        inside, plain, determiner = self.word[word], self.plain[word], self.determiner[word]
        verdict, preposition = self.verdict[word], self.preposition[word]
        likes = self._among({"like"})[word] & before(self._among(_SPEAKERS)[word], 1)
        liking = self.liking[word] | likes
        opinion = self.predicate[word] & ~before(self._among({"as"})[word], 1)

        described = before(verdict, 1) | (before(verdict, 2) & before(plain, 1))
        said_of = np.zeros(len(word), bool)
        for steps in (5, 4, 3, 2):
            said_of = after(opinion, steps) | (said_of & after(inside, steps))
        said_of &= after(self.link[word], 1)
        object_of = before(liking, 2) | (before(preposition, 2) & before(verdict, 3))
        object_of = (before(determiner, 1) & object_of) | (
            before(plain, 1) & before(determiner, 2) & before(liking, 3)
        )
        return described | said_of | object_of
