"""Baselines that a table is not shown without, tuned on validation by one shared small search."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from genrec.core.errors import DataError, RecipeError, nearest, require
from genrec.core.progress import say
from genrec.data_prep import ItemId, Split
from genrec.models.settings import GRU4RecSettings, SASRecSettings, SequenceSettings

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from genrec.models.sequence import SequenceModel

T = TypeVar("T")
Histories = Sequence[Sequence[int]] | Sequence[np.ndarray]


class Scorer(Protocol):
    """Whatever scores every item for histories of item positions."""

    def __call__(self, histories: Histories) -> np.ndarray:
        """Returns ``(histories, items)`` scores, higher is better."""
        ...


@dataclass(frozen=True)
class TrainingLog:
    """Training histories as item positions, made once for every baseline.

    Attributes:
        histories: ``(items,)`` positions of each user, oldest first.
        times: The time of each of these interactions.
        num_items: Size of the catalogue.
    """

    histories: list[np.ndarray]
    times: list[np.ndarray]
    num_items: int

    @classmethod
    def of(cls, split: Split, item_ids: Sequence[ItemId]) -> TrainingLog:
        """Returns the training part of a split."""
        position = {item: column for column, item in enumerate(item_ids)}
        return cls(
            [np.array([position[i] for i in history], np.int64) for history in split.train.values()],
            [np.array(times) for times in split.train_times.values()],
            len(item_ids),
        )

    def matrix(self, histories: Histories | None = None) -> csr_matrix:
        """Returns ``(histories, items)`` ones where an item was taken; default the training histories."""
        from scipy.sparse import csr_matrix

        rows = [
            np.unique(np.asarray(h, np.int64)) for h in (self.histories if histories is None else histories)
        ]
        indices = np.concatenate([*rows, np.zeros(0, np.int64)])
        start = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        ones = np.ones(len(indices), np.float32)
        return csr_matrix((ones, indices, start), (len(rows), self.num_items))


def popularity(log: TrainingLog, seed: int) -> Scorer:  # noqa: ARG001
    """Returns a scorer by each item's number of training interactions."""
    return _constant(np.bincount(np.concatenate(log.histories), minlength=log.num_items))


def recent_popularity(log: TrainingLog, seed: int, *, share: float) -> Scorer:  # noqa: ARG001
    """Returns a scorer by interactions in the latest ``share`` of the training log; all time breaks ties.

    Recent popularity is far stronger than all-time popularity where fashions change (Ji et al., SIGIR 2020).
    """
    items, times = np.concatenate(log.histories), np.concatenate(log.times)
    since = np.sort(times)[int(len(times) * (1 - share))]
    counts = np.bincount(items, minlength=log.num_items)
    recent = np.bincount(items[times >= since], minlength=log.num_items)
    return _constant(recent + counts / (counts.max() + 1))


def _constant(row: np.ndarray) -> Scorer:
    return lambda histories: np.broadcast_to(row.astype(np.float64), (len(histories), len(row)))


def item_knn(log: TrainingLog, seed: int, *, weighting: str, neighbours: int, last: int) -> Scorer:  # noqa: ARG001
    """Returns a scorer by similarity to the last items of a history (Sarwar et al., WWW 2001), of ``implicit``.

    Args:
        log: Training log.
        seed: Not used.
        weighting: ``"cosine"``, ``"tfidf"`` or ``"bm25"`` weights of the user-item matrix.
        neighbours: Most similar items kept for each item.
        last: How many of a history's last items count.
    """
    knn = require("implicit.nearest_neighbours", "train")
    kinds = {"cosine": knn.CosineRecommender, "tfidf": knn.TFIDFRecommender, "bm25": knn.BM25Recommender}
    model = kinds[weighting](K=neighbours + 1)  # an item is its own nearest neighbour
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Method expects CSR")  # implicit 0.7 hands itself another format
        model.fit(log.matrix(), show_progress=False)
    similarity = model.similarity.astype(np.float32)
    similarity.setdiag(0)
    return lambda histories: (log.matrix([h[-last:] for h in histories]) @ similarity).toarray()


def ease(log: TrainingLog, seed: int, *, regularisation: float) -> Scorer:  # noqa: ARG001
    """Returns the scorer of EASE: a linear item-to-item model in closed form (Steck, WWW 2019, equation 8).

    ``B = I - P / diag(P)`` with ``P = (X'X + regularisation I)^-1``.

    Raises:
        DataError: If the matrix of items by items would take more than 16 GB.
    """
    from scipy.linalg import cho_factor
    from scipy.linalg.lapack import dpotri

    if log.num_items > 45_000:
        raise DataError(
            f"EASE inverts a matrix of {log.num_items:,} by {log.num_items:,} items, more than 16 GB. Take ease "
            "out of evaluate.baselines for a catalogue of this size."
        )
    users = log.matrix().astype(np.float64)
    gram = (users.T @ users).toarray()
    gram[np.diag_indices_from(gram)] += regularisation
    # Column order, so that LAPACK works in place; dpotri fills in the lower triangle only.
    factor, lower = cho_factor(gram.T, lower=True, overwrite_a=True, check_finite=False)
    inverse, _ = dpotri(factor, lower=lower, overwrite_c=True)
    below = np.tril(inverse, -1)
    weights = (-(below + below.T) / np.diag(inverse)).astype(np.float32)
    return lambda histories: log.matrix(histories) @ weights


def implicit_als(log: TrainingLog, seed: int, *, factors: int, regularisation: float, alpha: float) -> Scorer:
    """Returns the scorer of implicit matrix factorisation (Hu, Koren and Volinsky, ICDM 2008), of ``implicit``.

    A history's vector is solved for from its items, so that users need not be known in training.
    """
    als = require("implicit.als", "train")
    threadpoolctl = require("threadpoolctl", "train")
    with threadpoolctl.threadpool_limits(1, "blas"):  # implicit has threads of its own
        model = als.AlternatingLeastSquares(
            factors=factors, regularization=regularisation, alpha=alpha, iterations=15, random_state=seed
        )
        model.fit(log.matrix(), show_progress=False)

    def scores(histories: Histories) -> np.ndarray:
        with threadpoolctl.threadpool_limits(1, "blas"):
            vectors = model.recalculate_user(np.arange(len(histories)), log.matrix(histories))
        return np.asarray(vectors) @ np.asarray(model.item_factors).T

    return scores


@dataclass(frozen=True)
class Baseline:
    """A baseline: its name in a table, how it is fitted, and what the search tries.

    Attributes:
        title: Name in tables.
        fit: ``(log, seed, **settings) -> Scorer``; None for those that are trained in a stage of their own.
        grid: Values of each setting that are tried on validation.
    """

    title: str
    fit: Callable[..., Scorer] | None
    grid: Mapping[str, Sequence[Any]]


SEQUENCE_MODELS: dict[str, type[SequenceSettings]] = {"sasrec": SASRecSettings, "gru4rec": GRU4RecSettings}

BASELINES: dict[str, Baseline] = {
    "popularity": Baseline("Popularity", popularity, {}),
    "recent_popularity": Baseline("Recent popularity", recent_popularity, {"share": (0.01, 0.03, 0.1, 0.3)}),
    "item_knn": Baseline(
        "Item-KNN",
        item_knn,
        {"weighting": ("cosine", "tfidf", "bm25"), "neighbours": (50, 200), "last": (1, 3, 10, 1000)},
    ),
    "ease": Baseline("EASE", ease, {"regularisation": (20.0, 100.0, 500.0)}),
    "implicit_als": Baseline(
        "Matrix factorisation (iALS)",
        implicit_als,
        {"factors": (64, 128), "regularisation": (0.1, 1.0, 10.0), "alpha": (1.0, 5.0)},
    ),
    "gru4rec": Baseline("GRU4Rec (full cross-entropy)", None, {}),
    "sasrec": Baseline("SASRec (full cross-entropy)", None, {}),
}


def check_baselines(names: Sequence[str]) -> None:
    """Raises RecipeError if a name is no baseline, or comes twice."""
    for name in names:
        if name not in BASELINES:
            raise RecipeError(
                f"Unknown baseline {name!r}. Available: {', '.join(BASELINES)}.{nearest(name, BASELINES)}"
            )
    if len(set(names)) < len(names):
        raise RecipeError(f"A baseline comes twice in {', '.join(names)}.")


def search(
    name: str, grid: Mapping[str, Sequence[Any]], attempt: Callable[[dict[str, Any]], tuple[float, T]]
) -> tuple[dict[str, Any], list[dict[str, Any]], T]:
    """Returns the best settings of a grid, every trial, ``{"settings", "value"}``, and what the best one made.

    The first wins a tie.

    Args:
        name: What is searched, for the progress lines.
        grid: Values of each setting; every combination is tried.
        attempt: Returns the value of settings on validation, higher is better, and what was made with them,
            of which only the best so far is kept.
    """
    trials: list[dict[str, Any]] = []
    best: tuple[float, dict[str, Any], T] | None = None
    combinations = list(itertools.product(*grid.values()))
    for number, values in enumerate(combinations, start=1):
        settings = dict(zip(grid, values, strict=True))
        value, made = attempt(settings)
        trials.append({"settings": settings, "value": value})
        if best is None or value > best[0]:
            best = value, settings, made
        shown = ", ".join(f"{key}={entry}" for key, entry in settings.items())
        if len(combinations) > 1:
            say(f"  {name} {number}/{len(combinations)}: {shown}: {value:.4f} on validation")
    assert best is not None, "check_search refuses a setting without values"
    return best[1], trials, best[2]


def check_search(grids: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
    """Raises RecipeError if ``evaluate.search`` names no baseline, or a setting that it does not have."""
    for name, grid in grids.items():
        check_baselines([name])
        known = SEQUENCE_MODELS.get(name)
        allowed = list(known.model_fields) if known else list(BASELINES[name].grid)
        for key, values in grid.items():
            if key not in allowed:
                raise RecipeError(
                    f"evaluate.search.{name}.{key} is no setting of {name}. "
                    f"Allowed: {', '.join(allowed) or 'none'}.{nearest(key, allowed)}"
                )
            if not values:
                raise RecipeError(f"evaluate.search.{name}.{key} has no value to try.")


def sequence_scorer(model: SequenceModel) -> Scorer:
    """Returns the scorer of a trained sequence recommender."""
    from genrec.models.sequence import sequence_scores

    return lambda histories: sequence_scores(model, histories)
