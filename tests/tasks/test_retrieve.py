"""What is retrieved is what a brute force finds, and nothing of the sample's time or later."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.core.errors import DataError
from genrec.data_prep import InteractionLog, ItemCatalog, SplitSettings, split_log
from genrec.indexing import build_index
from genrec.tasks import TaskRows, TaskSettings
from genrec.tasks.retrieve import Retriever
from genrec.tasks.settings import RetrieveSettings
from genrec.tasks.source import Source
from genrec.tasks.views import ItemBook


def brute_force(scores, history, k, order):
    """Places of a history by its items' scores, later ones first among equals."""
    places = sorted(range(len(history)), key=lambda place: (-scores[history[place]], -place))[:k]
    return places if order == "relevance" else sorted(places)


@settings(max_examples=60)
@given(
    st.integers(2, 12),
    st.lists(st.lists(st.integers(0, 11), max_size=30), min_size=1, max_size=8),
    st.integers(1, 9),
    st.sampled_from(["cosine", "inner"]),
    st.sampled_from(["time", "relevance"]),
    st.integers(0, 99),
)
def test_it_finds_what_a_brute_force_finds(num_items, histories, k, similarity, order, seed):
    rng = np.random.default_rng(seed)
    # Whole numbers, whose sums are exact in any order; some items have equal vectors.
    vectors = rng.integers(-2, 3, size=(num_items, 3)).astype(np.float32)
    histories = [np.array(each, np.int64) % num_items for each in histories]
    targets = rng.integers(num_items, size=len(histories))
    retriever = Retriever(vectors, None, similarity, order)
    scores = retriever.vectors[targets] @ retriever.vectors.T
    found = retriever.find(histories, targets, k)
    for row, history in enumerate(histories):
        wanted = brute_force(scores[row], history, k, order)
        assert [place for place in found[row].tolist() if place >= 0] == wanted
        assert found[row, len(wanted) :].tolist() == [-1] * (k - len(wanted))


def test_cosine_is_an_inner_product_of_vectors_of_one_length():
    vectors = np.array([[3.0, 0.0], [0.1, 0.1], [0.0, 5.0]])
    history, target = [np.array([0, 1, 2])], np.array([0])
    assert Retriever(vectors, similarity="cosine", order="relevance").find(history, target, 3)[
        0
    ].tolist() == [0, 1, 2]
    inner = Retriever(-vectors, similarity="inner").find([np.array([1, 2])], np.array([2]), 1)
    assert inner[0].tolist() == [1]


def test_a_catalogue_larger_than_a_history_is_not_gone_through():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5000, 8))
    histories = [rng.integers(5000, size=40) for _ in range(20)]
    targets = rng.integers(5000, size=20)
    few = Retriever(vectors)
    scores = few.vectors[targets] @ few.vectors.T
    for row, places in enumerate(few.find(histories, targets, 5)):
        assert places.tolist() == brute_force(scores[row].round(5), histories[row], 5, "time")


def test_pca_keeps_what_there_is_most_of():
    rng = np.random.default_rng(0)
    two = rng.normal(size=(50, 2)) * 10
    vectors = np.hstack([two, rng.normal(size=(50, 30)) * 1e-4]) + 7
    reduced = Retriever(vectors, 2, "inner")
    assert reduced.vectors.shape == (50, 2)
    plain = Retriever(two - two.mean(0), None, "inner")
    history = [np.arange(50)]
    np.testing.assert_array_equal(
        reduced.find(history, np.array([3]), 10), plain.find(history, np.array([3]), 10)
    )
    with pytest.raises(DataError, match="item 1 is not finite"):
        Retriever(np.array([[1.0], [np.nan]]))


def a_log(rows):
    users, items, times, ratings = zip(*rows, strict=True)
    columns = {"user_id": users, "item_id": items, "timestamp": list(map(float, times)), "rating": ratings}
    return InteractionLog.from_table(pa.table(columns), time="number")


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["u0", "u1", "u2"]),
        st.sampled_from([f"i{n}" for n in range(5)]),
        st.integers(1, 12),
        st.sampled_from([1.0, 5.0]),
    ),
    min_size=12,
    max_size=40,
)
CATALOG = ItemCatalog.from_titles({f"i{n}": f"Title {n % 3}" for n in range(5)})


@settings(max_examples=40)
@given(ROWS, st.integers(1, 6))
def test_nothing_of_the_samples_time_or_later_is_found(rows, k):
    split = split_log(a_log(rows), SplitSettings(rule="leave_one_out"))
    source = Source(split, ItemBook(None, CATALOG), TaskSettings(), "test")
    places = np.arange(len(source))
    retriever = Retriever(np.random.default_rng(0).normal(size=(5, 4)))
    found = retriever.rows(source, places, k)
    users = np.searchsorted(source.start, places, "right") - 1
    for place, user, own in zip(places, users, found, strict=True):
        kept = own[own >= 0]
        assert (kept >= source.start[user]).all()
        assert (source.time[kept] < source.time[place]).all()
        earlier = [row for row in range(source.start[user], place) if source.time[row] < source.time[place]]
        assert len(kept) == min(k, len(earlier))
        assert source.before(place) == source.start[user] + len(earlier)


def test_prompts_of_clicks_show_what_is_most_alike_in_time_order():
    """Two kinds of films: the prompt about one shows those of its kind, however long ago."""
    kinds = {f"{kind}{n}": f"{kind} film {n}" for kind in ("war", "love") for n in range(6)}
    catalog = ItemCatalog.from_titles(kinds)
    rows = [("u", f"war{n}", n + 1, 5.0) for n in range(5)]
    rows += [("u", f"love{n}", n + 10, 2.0) for n in range(5)]
    rows += [("u", "war5", 20, 5.0), ("u", "love5", 20, 5.0)]
    rows += [("v", f"love{n}", n + 1, 5.0) for n in range(3)] + [
        ("u", "love0", 30, 5.0),
        ("u", "love1", 31, 5.0),
    ]
    split = split_log(a_log(rows))
    index = build_index("independent", catalog, split.train)

    def prompt(**retrieve):
        wanted = TaskSettings(
            form="prompt",
            mixture={"click": 1},
            max_history=3,
            retrieve=RetrieveSettings(encoder="words", **retrieve),
        )
        rows = TaskRows(split, catalog, index, wanted).dataset()["train"]
        return next(row["prompt"] for row in rows if row["key"] == "u/10")  # war5, of one time with love5

    assert [line[3:9] for line in prompt().splitlines() if line[:2] in ("1.", "2.", "3.")] == ["love f"] * 3
    similar = [
        line for line in prompt(how="similar", dimensions=None).splitlines() if line[:2] in ("1.", "2.", "3.")
    ]
    assert [line[3:6] for line in similar] == ["war"] * 3
    shown = [int(line.split(" (")[0].split()[-1]) for line in similar]
    assert shown == sorted(shown)


def test_a_click_knows_nothing_of_its_own_second():
    rows = [
        ("u", "i0", 1, 5.0),
        ("u", "i1", 2, 1.0),
        ("u", "i2", 2, 5.0),
        ("u", "i3", 3, 5.0),
        ("u", "i4", 4, 5.0),
    ]
    split = split_log(a_log([*rows, ("u", "i0", 5, 5.0)]))
    index = build_index("independent", CATALOG, split.train)
    settings = TaskSettings(form="prompt", mixture={"click": 1})
    rows = TaskRows(split, CATALOG, index, settings).dataset()["train"]
    assert [row["key"] for row in rows] == ["u/1", "u/2", "u/3"]  # the first has nothing before it
    assert [row["prompt"].count("stars") >= 1 for row in rows] == [True] * 3
    assert [row["prompt"].count("1. ") + row["prompt"].count("2. ") for row in rows] == [1, 1, 2]
