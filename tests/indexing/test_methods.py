"""What each method names items by, on catalogues and logs whose right answer is known."""

import numpy as np
import pyarrow as pa
import pytest

from genrec.core.errors import IndexingError, RecipeError
from genrec.data_prep import ItemCatalog
from genrec.indexing import IndexSettings, build_index
from genrec.indexing.codes import digits, numbers_of, spell, symbols, undigits
from genrec.indexing.rq_kmeans import quantize


def numbers(index):
    return {item: int(symbols(code)[0]) for item, code in index.codes.items()}


def with_categories(paths):
    table = ItemCatalog.from_titles(dict.fromkeys(paths)).table
    column = pa.array(list(paths.values()))
    return ItemCatalog(table.append_column("categories", column))


def test_sequential_numbers_follow_first_appearance_and_leave_the_rest_last():
    items = ItemCatalog.from_titles(dict.fromkeys("abcdef"))
    index = build_index(
        "sequential", items, {"u": ["c", "a"], "v": ["a", "f"]}, IndexSettings(levels=1, codebook_size=6)
    )
    found = numbers(index)
    assert [found[i] for i in "caf"] == [0, 1, 2]
    assert sorted(found[i] for i in "bde") == [3, 4, 5]


@pytest.mark.parametrize(
    ("order", "expected"),
    [("original", "abcdefg"), ("short_to_long", "gdefabc"), ("long_to_short", "abcdefg"), ("random", None)],
)
def test_sequential_walks_users_in_four_orders(order, expected):
    items = ItemCatalog.from_titles(dict.fromkeys("gfedcba"))
    train = {"u": list("abcab"), "v": list("def"), "w": ["g"]}
    found = numbers(
        build_index("sequential", items, train, IndexSettings(levels=1, codebook_size=9, order=order))
    )
    walked = "".join(sorted(found, key=found.__getitem__))
    assert walked == expected if expected else any(part in walked for part in ("abc", "def"))


def test_digits_are_those_of_numpy():
    found = digits(np.arange(125), 5, 3)
    assert ["".join(map(str, row)) for row in found] == [np.base_repr(n, 5).zfill(3) for n in range(125)]
    assert undigits(found, 5).tolist() == list(range(125))


def test_levels_beyond_the_alphabet_have_names_too():
    (code,) = spell(np.zeros((1, 28), int))
    assert code[25:] == ("<z_0>", "<aa_0>", "<ab_0>")
    assert numbers_of([code], 28).tolist() == [[0] * 28]


@pytest.mark.parametrize("method", ["random", "sequential"])
def test_too_few_codes_say_which_setting_to_raise(method):
    items = ItemCatalog.from_titles({str(n): None for n in range(10)})
    with pytest.raises(IndexingError, match=r"at most 9 items; 10 are needed. Raise index\.levels"):
        build_index(method, items, {}, IndexSettings(levels=2, codebook_size=3))


def test_random_extends_to_the_last_free_code():
    items = ItemCatalog.from_titles({str(n): None for n in range(7)})
    index = build_index("random", items, {}, IndexSettings(levels=2, codebook_size=3))
    full = index.extend(ItemCatalog.from_titles({"x": None, "y": None}))
    assert len(set(full.codes.values())) == 9
    with pytest.raises(IndexingError, match="at most 9 items; 10 are needed"):
        full.extend(ItemCatalog.from_titles({"z": None}))


def test_titles_are_words_and_a_count_among_equals():
    items = ItemCatalog.from_titles(
        {"a": "Red Lamp", "b": "red, LAMP!", "c": "Red", "d": None, "e": "#1 <b>"}
    )
    index = build_index("title", items, {})
    assert [symbols(code) for code in index.codes.values()] == [
        ("red", "lamp", "#0"),
        ("red", "lamp", "#1"),
        ("red", "#0"),
        ("item", "d", "#0"),
        ("1", "b", "#0"),
    ]
    assert index.report["num_items_touched"] == 1


def test_titles_may_be_cut():
    items = ItemCatalog.from_titles({"a": "one two three four", "b": "one two five"})
    index = build_index("title", items, {}, IndexSettings(max_words=2))
    assert [symbols(code) for code in index.codes.values()] == [("one", "two", "#0"), ("one", "two", "#1")]


def test_text_ids_are_telling_words_general_ones_first():
    titles = ["the red brass lamp", "the blue brass lamp", "a red brass radio", "the red radio", "unheard of"]
    items = ItemCatalog.from_titles({str(n): title for n, title in enumerate(titles)})
    index = build_index("text_id", items, {}, IndexSettings(max_words=3))
    assert [symbols(code) for code in index.codes.values()] == [
        ("brass", "red", "lamp", "#0"),
        ("brass", "lamp", "blue", "#0"),
        ("brass", "red", "radio", "#0"),
        ("red", "radio", "#0"),
        ("unheard", "#0"),
    ]


def test_text_ids_that_meet_take_their_next_words_and_then_a_count():
    titles = {"a": "old lamp green", "b": "old lamp green tall", "c": "old lamp green"}
    many = {f"x{n}": title for n, title in enumerate(["old tall", "lamp tall", "green tall"] * 2)}
    index = build_index("text_id", ItemCatalog.from_titles(titles | many), {}, IndexSettings(max_words=2))
    assert len(set(index.codes.values())) == 9
    touched = index.report["touched_by"]
    assert touched["next_words"] >= 1
    assert touched["suffix"] >= 1


@pytest.fixture(scope="module")
def gift_cards():
    titles = pa.table({"item_id": [str(n) for n in range(100_000)], "title": ["Gift card"] * 100_000})
    return ItemCatalog(titles.append_column("categories", pa.array([["Gifts"]] * 100_000)))


@pytest.mark.large
@pytest.mark.parametrize("method", ["title", "text_id", "semantic"])
def test_a_hundred_thousand_items_of_one_name_are_counted(method, gift_cards):
    index = build_index(method, gift_cards, {})
    assert index.num_levels <= 9
    assert len(index.tokens) < 256 * 9


def test_semantic_codes_are_category_paths_without_the_common_top():
    paths = {
        "a": ["All", "Hair", "Dye"],
        "b": ["All", "Hair"],
        "c": ["All", "Hair", "Dye"],
        "d": ["All", "Skin"],
    }
    index = build_index("semantic", with_categories(paths), {})
    found = {item: symbols(code) for item, code in index.codes.items()}
    assert {item: code[:-1] for item, code in found.items()} == {
        "a": ("Hair", "Dye"),
        "b": ("Hair",),
        "c": ("Hair", "Dye"),
        "d": ("Skin",),
    }
    assert {found["a"][-1], found["c"][-1]} == {"#0", "#1"}


def test_semantic_passes_over_missing_levels():
    paths = {"a": ["Hair", None, "Dye"], "b": ["Hair", "Dye"], "c": None, "d": [], "e": ["", "Skin"]}
    index = build_index("semantic", with_categories(paths), {})
    assert {item: symbols(code)[:-1] for item, code in index.codes.items()} == {
        "a": ("Hair", "Dye"),
        "b": ("Hair", "Dye"),
        "c": (),
        "d": (),
        "e": ("Skin",),
    }
    assert index.report["num_without_category"] == 2


def test_a_category_may_look_like_a_count():
    index = build_index(
        "semantic", with_categories({"a": ["#0"], "b": None, "c": ["#0", "#0"], "d": ["x"]}), {}
    )
    assert len(set(index.codes.values())) == 4


def test_flat_categories_are_frequent_labels_most_frequent_first():
    paths = {str(n): ["Bars", "Food"] if n % 3 else ["Food"] for n in range(30)} | {"x": ["Rare", "Bars"]}
    index = build_index("semantic", with_categories(paths), {}, IndexSettings(categories="flat"))
    assert symbols(index.code("1"))[:-1] == ("Food", "Bars")
    assert symbols(index.code("x"))[:-1] == ("Bars",)


def test_semantic_needs_categories():
    with pytest.raises(IndexingError, match="no item has one: the catalogue needs a column 'categories'"):
        build_index("semantic", ItemCatalog.from_titles({"a": "b"}), {})


def test_a_hybrid_is_the_path_of_one_and_the_whole_of_the_other():
    paths = {"a": ["Hair", "Dye"], "b": ["Hair"], "c": ["Hair", "Dye"], "d": None, "e": ["Skin"]}
    index = build_index("hybrid", with_categories(paths), {}, IndexSettings(join="semantic+independent"))
    assert [symbols(code) for code in index.codes.values()] == [
        ("Hair", "Dye", "+0"),
        ("Hair", "+1"),
        ("Hair", "Dye", "+2"),
        ("+3",),
        ("Skin", "+4"),
    ]


@pytest.mark.parametrize("join", ["semantic", "hybrid+random", "a+b+c"])
def test_a_hybrid_joins_two_schemes(join):
    with pytest.raises(RecipeError, match=r"index\.join names two schemes"):
        build_index("hybrid", with_categories({"a": ["x"]}), {}, IndexSettings(join=join))
    with pytest.raises(RecipeError, match="Did you mean 'semantic'"):
        build_index("hybrid", with_categories({"a": ["x"]}), {}, IndexSettings(join="semantics+random"))


def planted_vectors():
    rng = np.random.default_rng(0)
    centres, offsets = rng.normal(size=(4, 6)) * 100, rng.normal(size=(4, 6)) * 5
    coarse, fine = np.arange(120) // 30, np.arange(120) % 4
    return centres[coarse] + offsets[fine] + rng.normal(size=(120, 6)) * 0.01, coarse, fine


@pytest.mark.parametrize("balanced", [False, True])
def test_residual_kmeans_finds_planted_clusters(balanced):
    vectors, coarse, fine = planted_vectors()
    codes, centroids = quantize(vectors, 2, 4, 0, balanced)
    assert len({(c, code) for c, code in zip(coarse, codes[:, 0], strict=True)}) == 4
    groups = [set(map(tuple, codes[(coarse == c) & (fine == f)])) for c in range(4) for f in range(4)]
    if not balanced:  # where sizes must be equal the offsets of one cluster need not be those of another
        assert all(len(group) == 1 for group in groups)
        assert len(set().union(*groups)) == 16
        rebuilt = centroids[0][codes[:, 0]] + centroids[1][codes[:, 1]]
        assert np.abs(rebuilt - vectors).max() < 0.5  # groups are not quite equal parts of the four offsets


def test_balanced_levels_have_clusters_of_equal_size():
    vectors = np.random.default_rng(0).normal(size=(101, 5)) ** 3
    codes, _ = quantize(vectors, 3, 8, 0, True)
    for level in range(3):
        assert set(np.bincount(codes[:, level], minlength=8)) == {12, 13}


def test_nan_vectors_are_named():
    with pytest.raises(IndexingError, match="row 2 is not finite"):
        quantize(np.array([[0.0], [1.0], [np.nan]]), 1, 2, 0)


def test_vectors_of_a_sequence_recommender_are_checked():
    items = ItemCatalog.from_titles({"a": "x", "b": "y"})
    settings = IndexSettings(vectors="collaborative", collaborative_vectors="sasrec", codebook_size=4)
    with pytest.raises(IndexingError, match=r"give them as build_index\(\.\.\., collaborative=\.\.\.\)"):
        build_index("rq_kmeans", items, {}, settings)
    with pytest.raises(IndexingError, match="3 rows for 2 items"):
        build_index("rq_kmeans", items, {}, settings, collaborative=np.ones((3, 2)))
    with pytest.raises(
        IndexingError, match=r"1 items have a collaborative vector that is not finite, first 'b'"
    ):
        build_index("rq_kmeans", items, {}, settings, collaborative=np.array([[0.0], [np.nan]]))
    index = build_index("rq_kmeans", items, {}, settings, collaborative=np.array([[0.0], [1.0]]))
    with pytest.raises(
        IndexingError, match="made of collaborative vectors only, which new items do not have"
    ):
        index.extend(ItemCatalog.from_titles({"c": "z"}))


@pytest.mark.parametrize("method", ["rq_kmeans", "rq_vae"])
def test_constant_vectors_are_told_apart_by_the_policy(method):
    items = ItemCatalog.from_titles({str(n): "same" for n in range(40)})
    settings = IndexSettings(levels=2, codebook_size=8, vectors="text", text_encoder="words")
    settings = settings.model_copy(update={"rq_vae": settings.rq_vae.model_copy(update={"epochs": 2})})
    index = build_index(method, items, {}, settings)
    assert len(set(index.codes.values())) == 40
    assert index.report["num_items_touched"] == 39
    allowed = build_index(method, items, {}, settings.model_copy(update={"collisions": "allow"}))
    assert allowed.report["collision_rate"] == 1 - 1 / 40
    assert allowed.items(allowed.code("0")) == items.item_ids


def test_empty_text_everywhere_is_told_apart_by_the_policy():
    table = pa.table({"item_id": [str(n) for n in range(9)], "title": ["!"] * 9})
    settings = IndexSettings(levels=2, codebook_size=4, vectors="text", text_encoder="words")
    index = build_index("rq_kmeans", ItemCatalog(table), {}, settings)
    assert len(set(index.codes.values())) == 9
    with pytest.raises(IndexingError, match="No item had a word of text when the index was built"):
        index.extend(ItemCatalog.from_titles({"x": "a lamp"}))


def test_a_new_item_with_the_text_of_an_old_one_comes_beside_it():
    titles = [
        f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in ("lamp", "radio", "chair")
    ]
    items = ItemCatalog.from_titles({title: title for title in titles})
    settings = IndexSettings(levels=2, codebook_size=9, vectors="text", text_encoder="words", vector_size=6)
    index = build_index("rq_kmeans", items, {}, settings)
    new = index.extend(ItemCatalog.from_titles({"new": "blue radio"}))
    assert new.code("new")[0] == index.code("blue radio")[0]
