"""Explanations: a sentence of the review itself, about a word that counts as a feature, free of leaks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.tasks.reviews import explain, sentences

from planted import DATA

FILLER = "I bought it in May. It came on a Tuesday. We went home and read."


def planted(num: int = 12) -> tuple[list[str], list[str]]:
    reviews = [
        f"{FILLER} The {'zipper' if n % 2 else 'colour'} is {'sturdy' if n % 3 else 'very ugly'}. "
        "Is the strap good? See www.example.com for a great strap."
        for n in range(num)
    ]
    reviews += [f"{FILLER} The strap of the bag was on the left of it." for _ in range(num)]
    return reviews, [f"i{n % 6}" for n in range(2 * num)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Good tone. Bad cable!", ["Good tone.", "Bad cable!"]),
        ("It costs 2.50 at Mr. Smith's, i.e. little.", ["It costs 2.50 at Mr. Smith's, i.e. little."]),
        ("No space.Next one", ["No space.", "Next one"]),
        ("it broke... after a week. really?", ["it broke... after a week.", "really?"]),
        ("Pros:\n- loud\n- light", ["Pros", "loud", "light"]),
        ("Strings, picks, etc. It has all.", ["Strings, picks, etc.", "It has all."]),
        ("  \n ", []),
    ],
)
def test_sentences(text, wanted):
    assert sentences(text) == wanted


@settings(deadline=None)
@given(st.text(alphabet="aB. !?\n-'\"1", max_size=60))
def test_sentences_lose_no_word(text):
    kept = "".join("".join(sentences(text)).split())
    assert [c for c in kept if c.isalnum()] == [c for c in text if c.isalnum()]


def test_an_explanation_is_the_sentence_that_judges_a_feature():
    reviews, items = planted()
    found = explain(reviews, items)
    assert found[0] == ("The colour is very ugly.", "colour")
    assert found[1] == ("The zipper is sturdy.", "zipper")
    assert set(found[12:]) == {(None, None)}, "a fact is no opinion"


def test_rare_words_and_words_of_one_item_are_no_features():
    reviews, items = planted()
    assert set(explain(reviews, items, min_reviews=7)) == {(None, None)}
    assert set(explain(reviews, ["i0"] * len(items))) == {(None, None)}


def test_the_patterns_of_an_opinion():
    reviews = [
        "I really like the lining.",
        "It has a nice soft lining.",
        "I am happy with its lining.",
        "The lining of it fits well, and more.",
        "The lining feels a bit too thin.",
        "The lining fits well.",
        "Its lining, well, is there. The lining.",
        "My lining looks like the old one.",
    ]
    found = explain(reviews, [f"i{n}" for n in range(8)], min_reviews=5)
    # A word in more than a quarter of the reviews is too common for a feature.
    assert set(found) == {(None, None)}
    found = explain(reviews + [FILLER] * 24, [f"i{n}" for n in range(32)])
    assert [feature for _, feature in found[:8]] == ["lining"] * 3 + [None] + ["lining"] * 2 + [None] * 2


def test_what_is_learned_comes_from_the_named_reviews_only():
    reviews, items = planted()
    learn = [row % 4 < 3 for row in range(len(reviews))]
    one = explain(reviews, items, learn=learn, min_reviews=2, min_items=1)
    changed = [
        r if keep else "A great zipper. A great whatnot." for r, keep in zip(reviews, learn, strict=True)
    ]
    two = explain(changed, items, learn=learn, min_reviews=2, min_items=1)
    assert any(explanation for explanation, _ in one)
    assert [x for x, keep in zip(one, learn, strict=True) if keep] == [
        x for x, keep in zip(two, learn, strict=True) if keep
    ]
    assert two[3] == ("A great zipper.", "zipper"), "others are explained by what was learned"


def test_nothing_in_nothing_out():
    assert explain([], []) == []
    assert explain(["", None], ["a", "b"]) == [(None, None)] * 2
    assert explain(["The tone is great."], ["a"], learn=[False]) == [(None, None)]


@pytest.mark.data
@pytest.mark.skipif(not (DATA / "musical-reviews").is_dir(), reason=f"no musical-reviews in {DATA}")
def test_half_of_real_reviews_have_an_explanation():
    import pyarrow.parquet as pq

    table = pq.read_table(DATA / "musical-reviews" / "reviews.parquet", columns=["review_text", "item_id"])
    reviews, items = table["review_text"].to_pylist(), table["item_id"].to_pylist()
    found = explain(reviews, items)
    some = [(r, e, f) for r, (e, f) in zip(reviews, found, strict=True) if e]
    assert 0.4 < len(some) / len(reviews) < 0.7
    assert all(e in " ".join(r.split()) and f in e.lower() for r, e, f in some)
    features = {f for _, _, f in some}
    assert {"tone", "price", "quality", "strap", "finish"} <= features
    assert not {"great", "bought", "thing", "wife", "playing"} & features
