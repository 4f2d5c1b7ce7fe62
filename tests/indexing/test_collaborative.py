import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigsh

from genrec.core.errors import IndexingError
from genrec.data_prep import ItemCatalog
from genrec.indexing import IndexSettings, build_index
from genrec.indexing import collaborative as module
from genrec.indexing.codes import symbols
from genrec.indexing.collaborative import _spectral_clusters
from genrec.indexing.vectors import cooccurrence, cooccurrence_vectors, propagation_vectors


def catalog(size):
    return ItemCatalog.from_titles({str(n): None for n in range(size)})


def blocks(num_blocks, size, users, seed=0, across=0.0):
    """Users who take items of one block, and now and then one of another."""
    rng = np.random.default_rng(seed)
    train = {}
    for user in range(users):
        block = user % num_blocks
        items = rng.integers(size, size=8) + block * size
        away = rng.random(8) < across
        items[away] = rng.integers(num_blocks * size, size=int(away.sum()))
        train[f"u{user}"] = [str(item) for item in items]
    return train


def paths(index):
    return {
        item: tuple(symbol for symbol in symbols(code) if not symbol.startswith("#"))
        for item, code in index.codes.items()
    }


@pytest.mark.parametrize("naming", ["path", "shared"])
def test_planted_groups_are_the_clusters(naming):
    settings = IndexSettings(branching=4, leaf_size=15, cluster_tokens=naming)
    index = build_index("collaborative", catalog(60), blocks(4, 15, 400, across=0.1), settings)
    found = paths(index)
    assert len(set(found.values())) == 4
    for block in range(4):
        assert len({found[str(item)] for item in range(block * 15, block * 15 + 15)}) == 1
    assert index.report["num_clusters"] == 4


def test_it_is_the_spectral_clustering_of_scikit_learn():
    from sklearn.cluster import SpectralClustering

    train = blocks(5, 12, 300, seed=1, across=0.25)
    taken = np.zeros((300, 60))
    for user, items in enumerate(train.values()):
        for item in items:
            taken[user, int(item)] += 1
    affinity = taken.T @ taken
    np.fill_diagonal(affinity, 0)
    expected = SpectralClustering(
        5, affinity="precomputed", assign_labels="cluster_qr", random_state=0
    ).fit_predict(affinity)
    found = _spectral_clusters(csr_matrix(taken), 5, 0, by_position=False)
    assert len(set(zip(expected, found, strict=True))) == len(set(expected)) == 5


@given(
    st.lists(st.lists(st.integers(0, 39), max_size=12), max_size=30),
    st.integers(2, 5),
    st.integers(1, 9),
    st.sampled_from(["path", "shared"]),
)
@settings(deadline=None, max_examples=60)
def test_any_graph_ends_in_small_leaves_and_codes_of_their_own(histories, branching, leaf_size, naming):
    train = {f"u{n}": [str(item) for item in history] for n, history in enumerate(histories)}
    options = IndexSettings(branching=branching, leaf_size=max(leaf_size, branching), cluster_tokens=naming)
    index = build_index("collaborative", catalog(40), train, options)
    found = paths(index)
    seen = {item for history in train.values() for item in history}
    assert len(set(index.codes.values())) == 40
    assert {item for item, path in found.items() if path == ("unseen",)} == {str(n) for n in range(40)} - seen
    sizes = {path: list(found.values()).count(path) for path in found.values() if path != ("unseen",)}
    assert max(sizes.values(), default=0) <= options.leaf_size


def test_a_graph_that_cannot_be_divided_is_cut_by_position():
    # Everybody takes everything: all eigenvalues but the first are equal.
    train = {f"u{n}": [str(item) for item in range(30)] for n in range(3)}
    index = build_index("collaborative", catalog(30), train, IndexSettings(branching=2, leaf_size=4))
    assert len(set(index.codes.values())) == 30
    assert index.num_levels <= 12


def far_from_solved():
    """A ring of items, each taken with the next: its eigenvalues lie too close together for few restarts."""
    return {f"u{n}": [str(n), str((n + 1) % 400)] for n in range(400)}


@pytest.mark.parametrize("restarts", [1, 6, 12])
def test_an_eigen_solver_that_does_not_converge_leaves_small_leaves_and_the_same_codes_again(
    monkeypatch, restarts
):
    options = IndexSettings(branching=4, leaf_size=20)
    converged = []

    def counted(*arguments, **options):
        try:
            found = eigsh(*arguments, **options)
        except ArpackNoConvergence as error:
            converged.append(len(error.eigenvalues))
            raise
        converged.append(len(found[0]))
        return found

    monkeypatch.setattr(module, "RESTARTS", restarts)
    monkeypatch.setattr("scipy.sparse.linalg.eigsh", counted)
    index = build_index("collaborative", catalog(400), far_from_solved(), options)
    assert min(converged) < 4
    found = list(paths(index).values())
    assert len(set(index.codes.values())) == 400
    assert max(map(found.count, found)) <= 20
    assert index.num_levels <= 10
    assert build_index("collaborative", catalog(400), far_from_solved(), options).codes == index.codes


def test_an_eigen_solver_that_fails_leaves_parts_of_equal_size(monkeypatch):
    def fails(*_, **__):
        raise ArpackError(-9999)

    monkeypatch.setattr("scipy.sparse.linalg.eigsh", fails)
    train = blocks(4, 15, 400, across=0.1)
    index = build_index("collaborative", catalog(60), train, IndexSettings(branching=4, leaf_size=15))
    found = list(paths(index).values())
    assert [found.count(path) for path in set(found)] == [15] * 4


def test_parts_that_no_history_joins_are_never_mixed():
    train = blocks(2, 20, 100) | {f"v{n}": [str(40 + 2 * n), str(41 + 2 * n)] for n in range(5)}
    index = build_index("collaborative", catalog(50), train, IndexSettings(branching=4, leaf_size=20))
    found = paths(index)
    large = {found[str(item)] for item in range(20)}
    assert large.isdisjoint({found[str(item)] for item in range(40, 50)})
    assert all(found[str(40 + 2 * n)] == found[str(41 + 2 * n)] for n in range(5))


def test_an_empty_graph_leaves_everything_unseen():
    index = build_index("collaborative", catalog(12), {}, IndexSettings(branching=2, leaf_size=3))
    assert set(paths(index).values()) == {("unseen",)}
    assert len(set(index.codes.values())) == 12


def test_shared_tokens_must_be_enough_for_the_parts_of_a_cluster():
    with pytest.raises(IndexingError, match=r"leaf_size=4 tokens in turn, fewer than the index\.branching=5"):
        build_index(
            "collaborative", catalog(3), {}, IndexSettings(branching=5, leaf_size=4, cluster_tokens="shared")
        )


def test_cooccurrence_counts_pairs_at_most_a_window_apart():
    counts = cooccurrence(catalog(4), {"u": ["0", "1", "2"], "v": ["1", "0"], "w": ["3", "3"]}, 1).toarray()
    assert counts.tolist() == [[0, 2, 0, 0], [2, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 2]]
    assert not cooccurrence(catalog(2), {}, 3).nnz


def test_cooccurrence_vectors_bring_items_met_together_near():
    items = ItemCatalog.from_titles(dict.fromkeys("abcdx"))
    train = {str(n): list("abab") if n % 2 else list("cdcd") for n in range(10)}
    vectors = cooccurrence_vectors(cooccurrence(items, train, 3), 4, 0)
    near = vectors @ vectors.T
    assert near[0, 1] > 10 * abs(near[0, 2])
    assert not vectors[4].any()


def test_propagation_is_lightgcns_on_the_whole_graph():
    train = blocks(3, 5, 40, across=0.2)
    taken = np.zeros((40, 16))
    for user, history in enumerate(train.values()):
        taken[user, [int(item) for item in history]] = 1
    # The adjacency of users and items, normalised on both sides, and the mean over 0, 2, 4 and 6 steps: an item's
    # even steps lead to items again.
    adjacency = np.block([[np.zeros((40, 40)), taken], [taken.T, np.zeros((16, 16))]])
    root = 1 / np.sqrt(np.maximum(adjacency.sum(0), 1))
    step = root[:, None] * adjacency * root
    left, values, right = np.linalg.svd(step[:40, 40:], full_matrices=False)
    start = np.vstack([left * values, right.T * values])
    layers = [np.linalg.matrix_power(step, 2 * layer) @ start for layer in range(4)]
    expected = np.mean(layers, axis=0)[40:]
    found = propagation_vectors(catalog(16), train, 16, 0)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-9)
    assert not found[15].any()
