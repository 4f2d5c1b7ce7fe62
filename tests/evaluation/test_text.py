import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu
from sacrebleu.metrics import BLEU

from genrec.core.errors import DataError, RecipeError
from genrec.evaluation.text import (
    alphanumeric,
    bleu,
    distinct_ngrams,
    rouge,
    text_metrics,
    unique_sentence_ratio,
)

# Few words, so that n-grams are shared and repeated; capitals and marks, so that tokenisers differ.
TEXTS = st.lists(st.sampled_from(["a", "b", "c", "A", "the", "b,", "3.5", "-"]), max_size=9).map(" ".join)
EXAMPLES = st.lists(st.tuples(st.lists(TEXTS, min_size=1, max_size=3), TEXTS), min_size=1, max_size=5)
SCORER = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
KINDS = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}


class Whitespace:
    def tokenize(self, text):
        return text.split()


def sacre(references, generated, max_n):
    """Its references come text by text, every example having as many: the last one is repeated."""
    most = max(map(len, references))
    streams = [[texts[min(place, len(texts) - 1)] for texts in references] for place in range(most)]
    metric = BLEU(tokenize="none", smooth_method="none", force=True, max_ngram_order=max_n)
    return metric.corpus_score(generated, streams).score


@given(EXAMPLES, st.integers(1, 5))
def test_bleu_equals_sacrebleus(examples, max_n):
    references, generated = [texts for texts, _ in examples], [text for _, text in examples]
    assert bleu(references, generated, max_n) == pytest.approx(sacre(references, generated, max_n), abs=1e-9)


def check_rouge(references, generated, tokenize, scorer):
    """Of several references, ``score_multi`` takes the best F1 of each kind."""
    found = rouge(references, generated, tokenize)
    theirs = [scorer.score_multi(texts, text) for texts, text in zip(references, generated, strict=True)]
    for ours, kind in KINDS.items():
        for name, field in (("precision", "precision"), ("recall", "recall"), ("F1", "fmeasure")):
            expected = 100 * sum(getattr(scores[kind], field) for scores in theirs) / len(theirs)
            assert found[f"{ours} {name}"] == pytest.approx(expected, abs=1e-9), (ours, name)
    assert len(found) == 9


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_rouge_equals_rouge_scores(examples):
    references, generated = [[text] for text, _ in examples], [text for _, text in examples]
    check_rouge(references, generated, alphanumeric, SCORER)
    check_rouge(references, generated, str.split, RougeScorer(list(KINDS.values()), tokenizer=Whitespace()))
    assert rouge([text for text, _ in examples], generated) == rouge(references, generated)


def test_long_texts_equal_the_packages():
    """Hundreds of tokens: more than the bits of a machine word. References as plain texts."""
    rng = random.Random(0)
    words = [f"w{n}" for n in range(30)]
    references = [" ".join(rng.choices(words, k=rng.randrange(300))) for _ in range(30)]
    generated = [
        " ".join(word for word in text.split() + rng.choices(words, k=9) if rng.random() < 0.8)
        for text in references
    ]
    check_rouge([[text] for text in references], generated, str.split, SCORER)
    theirs = corpus_bleu(generated, [references], smooth_method="none", force=True, tokenize="none")
    assert 0 < theirs.score < 100
    assert bleu(references, generated) == pytest.approx(theirs.score, abs=1e-9)


def test_several_references_of_rouge():
    """The best F1 is in another reference from kind to kind, and not where recall is best."""
    references = [["the cat sat down there", "sat cat the"], ["a b", "b"], ["c", "c d e f g"]]
    generated = ["the cat sat", "b a", "c d e f"]
    check_rouge(references, generated, alphanumeric, SCORER)


@given(st.text(st.characters(max_codepoint=0x2FFF)))
def test_the_tokens_are_those_of_rouge_score(text):
    from rouge_score.tokenize import tokenize

    assert alphanumeric(text) == tokenize(text, None)


def test_known_answers():
    same = ["the cat sat on the mat"] * 2
    found = text_metrics(same, same)
    assert found.pop("USR") == 0.5
    assert found.pop("distinct-1") == 5 / 12
    assert found.pop("distinct-2") == 5 / 10
    assert len(found) == 13
    assert found == pytest.approx(dict.fromkeys(found, 100))
    # Papineni's example of clipping: "the" counts twice only.
    assert bleu(["the cat is on the mat"], ["the the the the the the the"], 1) == pytest.approx(100 * 2 / 7)
    # Lin's example of ROUGE-L: 3 of 4 words in order.
    found = rouge(["police killed the gunman"] * 2, ["police kill the gunman", "the gunman kill police"])
    assert found["ROUGE-L F1"] == pytest.approx(100 * (3 / 4 + 2 / 4) / 2)


def test_nothing_written_scores_nothing():
    found = text_metrics(["a b", ""], ["", ""])
    assert found.pop("USR") == 0.5
    assert set(found.values()) == {0.0}
    assert bleu(["a b c d"], ["a b c"]) == 0, "no 4-gram was written"
    assert bleu(["a b c d"], ["a b c"], 3) > 0


def test_variety_is_of_tokens_and_of_all_texts_together():
    texts = ["good film", "good  film", "bad film", ""]
    assert unique_sentence_ratio(texts) == 3 / 4
    assert unique_sentence_ratio(texts, list) == 1
    assert distinct_ngrams(texts, 1) == 3 / 6
    assert distinct_ngrams(texts, 2) == 2 / 3
    assert distinct_ngrams(texts, 3) == 0


@pytest.mark.parametrize("measure", [text_metrics, bleu, rouge])
def test_bad_texts_are_refused(measure):
    with pytest.raises(DataError, match="2 references for 1 generated texts"):
        measure(["a", "b"], ["a"])
    with pytest.raises(DataError, match="there must be one"):
        measure([], [])
    with pytest.raises(DataError, match="1 examples have no reference, first example 1"):
        measure([["a"], []], ["a", "b"])
    with pytest.raises(DataError, match="not one text"):
        measure("a", "a")


def test_bad_sizes_are_refused():
    with pytest.raises(RecipeError, match="max_n = 0"):
        bleu(["a"], ["a"], 0)
    with pytest.raises(RecipeError, match="n = 0"):
        distinct_ngrams(["a"], 0)
    with pytest.raises(DataError, match="No generated text"):
        unique_sentence_ratio([])
