"""What the indexing methods cost and how good their codes are, beside the peers' ways of making them."""

import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from genrec.core.errors import require
from genrec.data_prep import ItemCatalog, load_dataset
from genrec.indexing import IndexInputs, IndexSettings, ItemIndex, build_index
from genrec.indexing.codes import spell, symbols
from genrec.indexing.collaborative import _split, _taken
from genrec.indexing.collisions import settle
from genrec.indexing.encoders import text_vectors
from genrec.indexing.quality import code_quality, collaborative_purity, groups_by_prefix, semantic_purity
from genrec.indexing.rq_kmeans import assign, level_distances
from genrec.indexing.rq_vae import _encode
from genrec.indexing.vectors import cooccurrence, item_vectors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from run import data_source

Figures = dict[str, float]

WIDTH, CODES = 384, 256  # minilm's vectors; the codes at a level
KMEANS_LEVELS, VAE_LEVELS = 3, 4
BRANCHING, LEAF_SIZE = 10, 500
BEAUTY, ENCODER = "shared:beauty", "minilm"


def timed(work: Callable[[], Any], name: str) -> tuple[Any, Figures]:
    """Returns what ``work`` returns, and its seconds on the clock and on all processors."""
    began, used = time.perf_counter(), time.process_time()
    result = work()
    return result, {f"{name}_s": time.perf_counter() - began, f"{name}_cpu_s": time.process_time() - used}


def catalog(size: int) -> ItemCatalog:
    """Returns items named by their number, without titles."""
    return ItemCatalog.from_titles(dict.fromkeys(map(str, range(size))))


# --- rq_kmeans


def mixture(size: int, seed: int) -> np.ndarray:
    """Returns ``(size, 384)`` float32: sums of three of 300 random vectors each, of lengths as 1, .7, .5, and noise, .4."""
    rng = np.random.default_rng(seed)
    kinds = [
        np.float32(scale) * rng.standard_normal((300, WIDTH), dtype=np.float32) for scale in (1, 0.7, 0.5)
    ]
    vectors = np.empty((size, WIDTH), np.float32)
    for first in range(0, size, 65_536):
        part = vectors[first : first + 65_536]
        rng.standard_normal(out=part, dtype=np.float32)
        part *= 0.4
        for kind in kinds:
            part += kind[rng.integers(len(kind), size=len(part))]
    return vectors


def left_over(vectors: np.ndarray, centroids: Sequence[np.ndarray]) -> float:
    """Returns the mean squared length of what the nearest centroids leave over, over that of vectors less their mean."""
    mean, left, whole = vectors.mean(0, dtype=np.float64), 0.0, 0.0
    for first in range(0, len(vectors), 8192):  # so that it is not what takes the most memory
        rest = vectors[first : first + 8192].astype(np.float64)
        whole += float(((rest - mean) ** 2).sum())
        codes = assign(rest, centroids)
        for level, values in enumerate(centroids):
            rest -= values[codes[:, level]]
        left += float((rest**2).sum())
    return left / whole


def kmeans_index(size: int, seed: int) -> Figures:
    """As ``rq_kmeans`` does it, from vectors to an index without collisions; its k-means has 131,072 items at most."""
    vectors, items = mixture(size, seed), catalog(size)
    settings = IndexSettings(
        levels=KMEANS_LEVELS,
        codebook_size=CODES,
        vectors="collaborative",
        collaborative_vectors="sasrec",
        seed=seed,
    )
    index, figures = timed(
        lambda: build_index("rq_kmeans", items, {}, settings, collaborative=vectors), "index"
    )
    scale = float(index.state["collaborative_scale"])
    centroids = [index.state[f"centroids_{level}"] * scale for level in range(KMEANS_LEVELS)]
    return figures | {
        "left_share": left_over(vectors, centroids),
        "collided_share": index.report["collision_rate_before"],
        "touched": index.report["num_items_touched"],
        "collided_after": size - len(set(index.codes.values())),
        "input_mb": vectors.nbytes / 1e6,
    }


def kmeans_of_all(size: int, seed: int) -> Figures:
    """Scikit-learn's k-means on all items at every level, as the public code of MiniOneRec and GRID has it.

    Only the codes: collisions stay, and there is no index.
    """
    from sklearn.cluster import KMeans

    vectors = mixture(size, seed)

    def fit() -> tuple[np.ndarray, list[np.ndarray]]:
        residual, codes, centroids = vectors.copy(), np.empty((size, KMEANS_LEVELS), np.int64), []
        for level in range(KMEANS_LEVELS):
            found = KMeans(min(CODES, size), n_init=1, random_state=seed).fit(residual)
            codes[:, level] = found.labels_
            centroids.append(found.cluster_centers_)
            residual -= found.cluster_centers_[found.labels_]
        return codes, centroids

    (codes, centroids), figures = timed(fit, "index")
    return figures | {
        "left_share": left_over(vectors, centroids),
        "collided_share": 1 - len(np.unique(codes, axis=0)) / size,
        "input_mb": vectors.nbytes / 1e6,
    }


# --- collaborative


def planted(size: int, seed: int) -> tuple[dict[str, list[str]], np.ndarray, np.ndarray]:
    """Returns histories of as many users as items, and the planted community and family of each item.

    Communities have about 250 items, and ten families share them. Lengths of histories have mean 10 from 3 on.
    Seven of ten items come from the user's community, two from its family, one from all; which one follows a
    power law of rank, exponent .8.
    """
    rng = np.random.default_rng(seed)
    communities = max(20, size // 250)
    community = rng.permutation(size) % communities
    family = community % BRANCHING
    chance = (1.0 + rng.permutation(size)) ** -0.8
    lengths = 2 + rng.geometric(1 / 8, size=size)
    owner = np.repeat(np.arange(size), lengths)
    own = rng.integers(communities, size=size)[owner]
    kind = rng.choice(3, size=len(owner), p=[0.7, 0.2, 0.1])
    drawn = np.empty(len(owner), np.int64)
    # Items in groups side by side, and one random number along the sum of their chances.
    for number, (group, wanted) in enumerate(
        [(community, own), (family, own % BRANCHING), (np.zeros(size, np.int64), np.zeros_like(own))]
    ):
        here = np.flatnonzero(kind == number)
        order = np.argsort(group, kind="stable")
        along = np.concatenate([[0.0], np.cumsum(chance[order])])
        start = np.searchsorted(group[order], np.arange(group.max() + 2))
        low, high = along[start[wanted[here]]], along[start[wanted[here] + 1]]
        place = np.searchsorted(along, low + rng.random(len(here)) * (high - low), side="right") - 1
        drawn[here] = order[np.clip(place, start[wanted[here]], start[wanted[here] + 1] - 1)]
    names = np.array([str(item) for item in range(size)], object)
    parts = np.split(names[drawn], np.cumsum(lengths)[:-1])
    return {str(user): part.tolist() for user, part in enumerate(parts)}, community, family


def _agreement(one: np.ndarray, two: np.ndarray) -> float:
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(one, two))


def _numbered(paths: list[Any]) -> np.ndarray:
    return np.unique(np.array([str(path) for path in paths]), return_inverse=True)[1]


def tree_figures(paths: list[tuple[Any, ...]], community: np.ndarray, family: np.ndarray) -> Figures:
    """Returns how a tree of clusters looks, and its normalised mutual information with what was planted.

    Args:
        paths: Each item's clusters from the root down.
        community: Planted, fine.
        family: Planted, coarse.
    """
    first, leaf = _numbered([path[:1] for path in paths]), _numbered(paths)
    return {
        "leaves": int(leaf.max()) + 1,
        "largest_leaf": int(np.bincount(leaf).max()),
        "depth": max(map(len, paths)),
        "largest_first_share": float(np.bincount(first).max() / len(first)),
        "first_with_families": _agreement(first, family),
        "leaves_with_communities": _agreement(leaf, community),
    }


def collaborative_index(size: int, seed: int) -> Figures:
    """As ``collaborative`` does it, the whole way to codes."""
    train, community, family = planted(size, seed)
    items, settings = catalog(size), IndexSettings(branching=BRANCHING, leaf_size=LEAF_SIZE, seed=seed)
    index, figures = timed(lambda: build_index("collaborative", items, train, settings), "index")
    paths = [
        tuple(symbol for symbol in symbols(code) if not symbol.startswith("#"))
        for code in index.codes.values()
    ]
    seen = np.array([path != ("unseen",) for path in paths])
    shown = [path for path in paths if path != ("unseen",)]
    return (
        figures
        | tree_figures(shown, community[seen], family[seen])
        | {"interactions": sum(map(len, train.values())), "unseen": int((~seen).sum())}
    )


def collaborative_dense(size: int, seed: int) -> Figures:
    """Scikit-learn's spectral clustering of the dense matrix, and of its parts, as LLM-RecSys-ID has it."""
    from sklearn.cluster import SpectralClustering

    train, community, family = planted(size, seed)
    settings = IndexSettings(branching=BRANCHING, leaf_size=LEAF_SIZE, seed=seed)
    taken = _taken(IndexInputs(catalog(size), train, settings))
    seen = np.flatnonzero(np.asarray(taken.sum(0)).ravel())
    paths: dict[int, tuple[int, ...]] = {}

    def cluster() -> None:
        joined = (taken.T @ taken).toarray()
        np.fill_diagonal(joined, 0)
        waiting: list[tuple[np.ndarray, tuple[int, ...]]] = [(seen, ())]
        while waiting:
            rows, path = waiting.pop()
            labels = np.zeros(len(rows), np.int64)
            if len(rows) > LEAF_SIZE:
                method = SpectralClustering(
                    BRANCHING, affinity="precomputed", assign_labels="cluster_qr", random_state=seed
                )
                labels = method.fit_predict(joined[np.ix_(rows, rows)])
            if labels.max() == labels.min():  # small enough, or it came back whole and would for ever
                paths.update(dict.fromkeys(rows.tolist(), path))
                continue
            for label in np.unique(labels):
                waiting.append((rows[labels == label], (*path, int(label))))

    _, figures = timed(cluster, "index")
    ours = np.zeros(size, np.int64)
    for number, part in enumerate(_split(taken, seen, 0, settings)):
        ours[part] = number
    shown = [paths[row] for row in seen.tolist()]
    return (
        figures
        | tree_figures(shown, community[seen], family[seen])
        | {
            "first_with_ours": _agreement(_numbered([path[:1] for path in shown]), ours[seen]),
            "dense_mb": size**2 * 8 / 1e6,
        }
    )


# --- rq_vae


def beauty(size: int, seed: int) -> tuple[IndexInputs, np.ndarray]:
    """Returns what names the Beauty items, a random subset below their number, and their text vectors.

    Raises:
        DataError: If the data set is not there.
    """
    log, items = load_dataset(data_source(BEAUTY))
    kept = np.sort(np.random.default_rng(seed).permutation(len(items))[:size])
    items = ItemCatalog(items.table.take(kept))
    train = {user: history[:-2] for user, history in log.histories().items()}
    settings = IndexSettings(
        levels=VAE_LEVELS, codebook_size=CODES, vectors="text", text_encoder=ENCODER, seed=seed
    )
    return IndexInputs(items, train, settings), text_vectors(items, settings)[0]


def code_figures(raw: np.ndarray, inputs: IndexInputs, vectors: np.ndarray) -> Figures:
    """Returns how codes ``(items, levels)`` are before any policy.

    ``semantic`` is the mean cosine of two items of one first token after the mean vector is taken off, ``together``
    how many times as often as any two they were taken together.
    """
    codes = spell(raw)
    quality, first = code_quality(codes), groups_by_prefix(codes, 1)
    counts = cooccurrence(inputs.items, inputs.train, inputs.settings.window)
    within, of_all = collaborative_purity(counts, first)
    return {
        "collided_share": quality["collision_rate"],
        "collided_least_share": 1 - len(np.unique(vectors, axis=0)) / len(vectors),
        **{
            f"used_{level}_share": entry["tokens"] / CODES for level, entry in enumerate(quality["levels"], 1)
        },
        "semantic": semantic_purity(vectors - vectors.mean(0), first)[0],
        "together": within / of_all,
    }


def vae_index(size: int, seed: int, epochs: int | None = None) -> Figures:
    """As ``rq_vae`` does it, with its settings but the number of epochs; text vectors are there already."""
    inputs, vectors = beauty(size, seed)
    settings = inputs.settings
    if epochs is not None:
        settings = settings.model_copy(
            update={"rq_vae": settings.rq_vae.model_copy(update={"epochs": epochs})}
        )
    found, figures = timed(lambda: build_index("rq_vae", inputs.items, inputs.train, settings), "index")
    index: ItemIndex = found
    scaled = ((item_vectors(inputs)[0] - index.state["mean"]) / index.state["spread"]).astype(np.float32)
    raw = assign(_encode(scaled, index.state), index.state["codebooks"])
    return (
        figures
        | code_figures(raw, inputs, vectors)
        | {
            "touched": index.report["num_items_touched"],
            "collided_after": len(raw) - len(set(index.codes.values())),
            "epochs": settings.rq_vae.epochs,
        }
    )


def vae_lcrec(size: int, seed: int, epochs: int | None = None) -> Figures:
    """LC-Rec's way (ICDE 2024), from its formulas, at its rate (1e-3), with our layers, batch and number of epochs.

    Vectors go in as they are; codebooks start by k-means on the first batch; the nearest code is taken at all levels but
    the last, where it is Sinkhorn on exponentials; residuals pass gradients straight through; no code starts again; the
    state with the fewest collisions of all looks is kept. Groups of one code are then spread by Sinkhorn in up to 20
    rounds, and what collides after them stays.
    """
    torch = require("torch", "train")
    from sklearn.cluster import KMeans
    from torch.nn import functional

    inputs, vectors = beauty(size, seed)
    options = inputs.settings.rq_vae
    epochs = options.epochs if epochs is None else epochs
    torch.manual_seed(seed)
    data = torch.from_numpy(np.asarray(vectors, np.float32))

    def network(widths: list[int]) -> Any:
        layers: list[Any] = []
        for one, two in pairwise(widths):
            layer = torch.nn.Linear(one, two)
            torch.nn.init.xavier_normal_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
            layers += [layer, torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1])

    def transported(distance: Any) -> Any:
        low, high = distance.min(), distance.max()
        scaled = ((distance - (high + low) / 2) / ((high - low) / 2 + 1e-5)).double()
        plan = torch.exp(-scaled / (options.epsilon or 0.003))
        plan /= plan.sum()
        for _ in range(50):
            plan /= plan.sum(1, keepdim=True) * len(plan)
            plan /= plan.sum(0, keepdim=True) * plan.shape[1]
        return plan.argmax(1)

    def quantised(encoded: Any, books: Any, training: bool) -> tuple[Any, Any, Any]:
        rest, total, loss, chosen = encoded, torch.zeros_like(encoded), encoded.new_zeros(()), []
        for level, book in enumerate(books):
            distance = torch.cdist(rest.detach(), book.detach()) ** 2
            last = training and level == len(books) - 1
            code = transported(distance) if last else distance.argmin(1)
            taken = book[code]
            loss = loss + functional.mse_loss(taken, rest.detach())
            loss = loss + options.commitment * functional.mse_loss(rest, taken.detach())
            through = rest + (taken - rest).detach()
            rest, total = rest - through, total + through
            chosen.append(code)
        return total, loss / len(books), torch.stack(chosen, 1)

    def train() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        widths = [data.shape[1], *options.hidden, options.code_size]
        encoder, decoder = network(widths), network(widths[::-1])
        books = torch.nn.Parameter(torch.zeros(VAE_LEVELS, CODES, options.code_size))
        optimizer = torch.optim.AdamW(
            [*encoder.parameters(), *decoder.parameters(), books],
            lr=1e-3,
            weight_decay=options.weight_decay,
        )
        steps = max(1, epochs * -(-len(data) // options.batch_size))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / max(1, steps // 20), (steps - step) / steps)
        )
        best, fewest = None, 2.0
        for epoch in range(epochs):
            for rows in torch.randperm(len(data)).split(options.batch_size):
                encoded = encoder(data[rows])
                if not books.any():
                    rest = encoded.detach().numpy()
                    for level in range(VAE_LEVELS):
                        found = KMeans(min(CODES, len(rest)), n_init=1, max_iter=100, random_state=seed).fit(
                            rest
                        )
                        books.data[level, : len(found.cluster_centers_)] = torch.from_numpy(
                            found.cluster_centers_
                        )
                        rest = rest - found.cluster_centers_[found.labels_]
                total, loss, _ = quantised(encoded, books, training=True)
                loss = functional.mse_loss(decoder(total), data[rows]) + loss
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
                optimizer.step()
                schedule.step()
            if (epoch + 1) % options.check_epochs == 0 or epoch + 1 == epochs:
                with torch.no_grad():
                    encoded = encoder(data)
                    codes = quantised(encoded, books, training=False)[2].numpy()
                share = 1 - len(np.unique(codes, axis=0)) / len(codes)
                if share < fewest:
                    best, fewest = (encoded.numpy(), books.detach().numpy().copy(), codes), share
        assert best is not None
        return best

    (encoded, books, raw), figures = timed(train, "index")
    settled, more = timed(
        lambda: settle("sinkhorn", raw, level_distances(encoded, raw, list(books)), CODES), "spread"
    )
    return (
        figures
        | more
        | code_figures(raw, inputs, vectors)
        | {
            "touched": settled.touched["sinkhorn"] + settled.touched["next_free"],
            "collided_after": settled.touched["next_free"],
            "epochs": epochs,
        }
    )
