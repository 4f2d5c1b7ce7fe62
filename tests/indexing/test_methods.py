import numpy as np
import pytest

from genrec.core.errors import IndexingError
from genrec.data_prep import ItemCatalog
from genrec.indexing import IndexSettings, build_index
from genrec.indexing.codes import digits
from genrec.indexing.collisions import next_free, suffix
from genrec.indexing.rq_kmeans import quantize
from genrec.indexing.vectors import collaborative_vectors


def test_sequential_numbers_follow_first_appearance_and_leave_the_rest_last():
    items = ItemCatalog.from_titles(dict.fromkeys("abcdef"))
    index = build_index(
        "sequential", items, {"u": ["c", "a"], "v": ["a", "f"]}, IndexSettings(levels=1, codebook_size=6)
    )
    numbers = {item: int(code[0][3:-1]) for item, code in index.codes.items()}
    assert [numbers[i] for i in "caf"] == [0, 1, 2]
    assert sorted(numbers[i] for i in "bde") == [3, 4, 5]


def test_digits_are_those_of_numpy():
    numbers = np.arange(125)
    assert ["".join(map(str, row)) for row in digits(numbers, 5, 3)] == [
        np.base_repr(n, 5).zfill(3) for n in numbers
    ]


@pytest.mark.parametrize("method", ["random", "sequential"])
def test_too_few_codes_say_which_setting_to_raise(method):
    items = ItemCatalog.from_titles({str(n): None for n in range(10)})
    with pytest.raises(IndexingError, match=r"at most 9 items; 10 are needed. Raise index\.levels"):
        build_index(method, items, {}, IndexSettings(levels=2, codebook_size=3))


def test_residual_kmeans_finds_planted_clusters():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6)) * 100
    offsets = rng.normal(size=(4, 6)) * 5
    coarse, fine = np.arange(120) // 30, np.arange(120) % 4
    vectors = centres[coarse] + offsets[fine] + rng.normal(size=(120, 6)) * 0.01
    codes, _ = quantize(vectors, 2, 4, seed=0)
    assert len({(c, code) for c, code in zip(coarse, codes[:, 0], strict=True)}) == 4
    groups = [set(map(tuple, codes[(coarse == c) & (fine == f)])) for c in range(4) for f in range(4)]
    assert all(len(group) == 1 for group in groups)
    assert len(set().union(*groups)) == 16


def test_nan_vectors_are_named():
    with pytest.raises(IndexingError, match="row 2 is not finite"):
        quantize(np.array([[0.0], [1.0], [np.nan]]), 1, 2, 0)


def test_next_free_takes_the_nearest_free_last_code():
    codes = np.array([[0, 1], [0, 1], [0, 1], [1, 1]])
    distances = np.array([[3, 0, 1, 2], [3, 0, 1, 2], [0.5, 0, 1, 2], [0, 0, 0, 0]], float)
    settled, moved = next_free(codes, distances)
    assert settled.tolist() == [[0, 1], [0, 2], [0, 0], [1, 1]]
    assert moved == 2
    with pytest.raises(IndexingError, match=r"3 items share.*index\.collisions=suffix"):
        next_free(codes, distances[:, :2])


def test_suffix_counts_inside_a_code():
    settled, touched = suffix(np.array([[0, 1], [0, 1], [2, 2]]), np.zeros((3, 4)))
    assert settled.tolist() == [[0, 1, 0], [0, 1, 1], [2, 2, 0]]
    assert touched == 1


def test_collaborative_vectors_bring_items_met_together_near():
    items = ItemCatalog.from_titles(dict.fromkeys("abcdx"))
    train = {str(n): list("abab") if n % 2 else list("cdcd") for n in range(10)}
    vectors = collaborative_vectors(items, train, 4, 3, 0)
    near = vectors @ vectors.T
    assert near[0, 1] > 10 * abs(near[0, 2])
    assert not vectors[4].any()
