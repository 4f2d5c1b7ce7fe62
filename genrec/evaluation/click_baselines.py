"""Baselines of click prediction from libraries, on the same samples and fields as the click model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from genrec.core.errors import RecipeError, nearest, require
from genrec.models.settings import ClickSettings

if TYPE_CHECKING:
    import torch
    from scipy.sparse import csr_matrix

    from genrec.models.click import Batches, ClickFields, ClickSamples

Predictor = Callable[["ClickSamples"], np.ndarray]

# What a share of likes counts for that nothing was seen of: so many behaviours of the training mean.
_PRIOR = 5.0


@dataclass(frozen=True)
class ClickTask:
    """What a baseline may learn from.

    Attributes:
        train: Samples of the training part.
        valid: Samples of the validation part, which choose an epoch.
        fields: Numbers of everything.
        settings: Of the click model, whose batch, epochs, patience and ``max_history`` they share.
    """

    train: ClickSamples
    valid: ClickSamples
    fields: ClickFields
    settings: ClickSettings


def constant(task: ClickTask, seed: int) -> Predictor:  # noqa: ARG001
    """Returns the share of likes in training, for every sample."""
    rate = float(task.train.label.mean())
    return lambda samples: np.full(len(samples), rate)


def logistic_regression(task: ClickTask, seed: int, *, strength: float = 0.1) -> Predictor:
    """Returns scikit-learn's logistic regression on user, item, categories and what stands in the history.

    Of the latest ``click.max_history`` behaviours: the share of likes, that among those with a category of the item (each
    with five of the training mean added), the share with such a category, and the logarithm of their number.

    Args:
        task: Samples and fields.
        seed: Of the solver.
        strength: Of the regularisation, inverse (``C``).
    """
    from sklearn.linear_model import LogisticRegression

    rate = float(task.train.label.mean())
    model = LogisticRegression(C=strength, max_iter=2000, random_state=seed)
    model.fit(_matrix(task, task.train, rate), task.train.label.astype(int))
    return lambda samples: model.predict_proba(_matrix(task, samples, rate))[:, 1]


def _matrix(task: ClickTask, samples: ClickSamples, rate: float) -> csr_matrix:
    """Returns ``(samples, columns)``: ones for user, item, each category and each trait of the user, and four numbers of the history."""
    from scipy.sparse import csr_matrix, hstack

    fields = task.fields
    table = fields.item_categories
    rows = np.arange(len(samples))
    kinds = table[samples.item]
    parts = [
        csr_matrix(
            (np.ones(len(rows)), (rows, fields.users(samples))), (len(rows), len(fields.user_ids) + 1)
        ),
        csr_matrix(
            (np.ones(len(rows)), (rows, fields.item_number[samples.item])),
            (len(rows), len(fields.item_ids) + 1),
        ),
    ]
    if table.size:
        there = kinds > 0
        parts.append(
            csr_matrix(
                (np.ones(int(there.sum())), (np.nonzero(there)[0], kinds[there])),
                (len(rows), len(fields.categories) + 1),
            )
        )
    traits = fields.traits(samples)
    if traits.size:
        there = traits > 0
        parts.append(
            csr_matrix(
                (np.ones(int(there.sum())), (np.nonzero(there)[0], traits[there])),
                (len(rows), fields.num_traits + 1),
            )
        )
    numbers = np.zeros((len(rows), 4))
    for first in range(0, len(rows), 8192):
        part = samples.take(slice(first, first + 8192))
        there, liked, items = _history(part, task.settings.max_history)
        alike = np.zeros_like(there)
        for column in range(table.shape[1]):
            for other in range(table.shape[1]):
                asked = table[part.item, other][:, None]
                alike |= there & (asked > 0) & (table[items, column] == asked)
        for column, chosen in enumerate((there, alike)):
            numbers[first : first + len(part), column] = ((chosen & liked).sum(1) + _PRIOR * rate) / (
                chosen.sum(1) + _PRIOR
            )
        numbers[first : first + len(part), 2] = alike.sum(1) / np.maximum(1, there.sum(1))
        numbers[first : first + len(part), 3] = np.log1p(there.sum(1))
    return csr_matrix(hstack([*parts, csr_matrix(numbers)]))


def _history(samples: ClickSamples, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ``(samples, k)``: where there is a behaviour, whether it was liked (so where there is no rating), and its item."""
    from genrec.models.click import recent

    rows = recent(samples, k)
    source, there = samples.source, rows >= 0
    rating = source.rating[rows]
    return there, there & ~(rating < source.settings.like_from), source.item[rows]


def _library(name: str) -> Callable[..., Predictor]:
    """Returns how a model of torch-rechub is fitted."""

    def fit(task: ClickTask, seed: int, *, learning_rate: float = 1e-3, embedding: int = 32) -> Predictor:
        import torch

        from genrec.models.click import fit_clicks, predicted

        s = task.settings.model_copy(
            update={"learning_rate": learning_rate, "embedding": embedding, "seed": seed}
        )
        torch.manual_seed(seed)
        network = _network(name, task.fields, s)
        fit_clicks(network, _batches(task, task.train), _batches(task, task.valid), s, name)
        return lambda samples: predicted(network, _batches(task, samples))

    return fit


def _network(name: str, fields: ClickFields, settings: ClickSettings) -> torch.nn.Module:
    """Returns a model of torch-rechub that gives logits."""
    import torch

    features = require("torch_rechub.basic.features", "click")
    ranking = require("torch_rechub.models.ranking", "click")
    width = settings.embedding
    # Number 0 fills up in torch-rechub, so that unknown ones are 1 and all others one more than elsewhere.
    known = {"user": len(fields.user_ids) + 2, "item": len(fields.item_ids) + 2}
    several = {"liked": known["item"], "other": known["item"]}
    if fields.categories:
        several["category"] = len(fields.categories) + 1
    if fields.num_traits:
        several["traits"] = fields.num_traits + 1
    found = [features.SparseFeature(key, size, embed_dim=width) for key, size in known.items()]
    found += [
        features.SequenceFeature(
            key,
            size,
            embed_dim=width,
            pooling="mean",
            padding_idx=0,
            shared_with="item" if key in ("liked", "other") else None,
        )
        for key, size in several.items()
    ]
    layers = {
        "dims": [settings.hidden] * settings.layers,
        "dropout": settings.dropout,
        "activation": "relu",
    }
    model = {
        "deepfm": lambda: ranking.DeepFM(found, found, layers),
        "autoint": lambda: ranking.AutoInt(found, [], num_layers=2, num_heads=2, mlp_params=layers),
        "dcnv2": lambda: ranking.DCNv2(found, 2, layers),
    }[name]()

    class Logits(torch.nn.Module):
        """Takes back the sigmoid at the end of the library's models."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return torch.logit(self.model(batch), eps=1e-6)

    return Logits()


def _batches(task: ClickTask, samples: ClickSamples) -> Batches:
    """Returns what the library's models read: user and what is known of them, item, categories, and the latest behaviours, liked and others apart."""
    from genrec.models.click import Batches

    fields = task.fields
    users, traits = fields.users(samples) + 1, fields.traits(samples)

    def read(numbers: np.ndarray) -> dict[str, np.ndarray]:
        part = samples.take(numbers)
        there, liked, items = _history(part, task.settings.max_history)
        shown = fields.item_number[items] + 1
        found = {
            "user": users[numbers],
            "item": fields.item_number[part.item] + 1,
            "liked": np.where(liked, shown, 0),
            "other": np.where(there & ~liked, shown, 0),
        }
        if fields.categories:
            found["category"] = fields.item_categories[part.item]
        if fields.num_traits:
            found["traits"] = traits[numbers]
        return found

    return Batches(samples.label, read)


@dataclass(frozen=True)
class ClickBaseline:
    """A baseline: its name in a table, how it is fitted, and what the search tries.

    Attributes:
        title: Name in tables.
        fit: ``(task, seed, **settings) -> Predictor``.
        grid: Values of each setting that are tried on validation.
    """

    title: str
    fit: Callable[..., Predictor]
    grid: Mapping[str, Sequence[Any]]


_GRID = {"learning_rate": (3e-4, 1e-3), "embedding": (16, 32)}

CLICK_BASELINES: dict[str, ClickBaseline] = {
    "constant": ClickBaseline("Training mean", constant, {}),
    "logistic_regression": ClickBaseline(
        "Logistic regression", logistic_regression, {"strength": (0.01, 0.03, 0.1, 0.3, 1.0)}
    ),
    "deepfm": ClickBaseline("DeepFM", _library("deepfm"), _GRID),
    "autoint": ClickBaseline("AutoInt", _library("autoint"), _GRID),
    "dcnv2": ClickBaseline("DCNv2", _library("dcnv2"), _GRID),
}


def check_click_baselines(names: Sequence[str], grids: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
    """Raises RecipeError if a name is no baseline of clicks or comes twice, or a search has a setting that there is not."""
    for name in [*names, *grids]:
        if name not in CLICK_BASELINES:
            raise RecipeError(
                f"Unknown baseline {name!r} of evaluate.task=click. Available: {', '.join(CLICK_BASELINES)}."
                f"{nearest(name, CLICK_BASELINES)}"
            )
    if len(set(names)) < len(names):
        raise RecipeError(f"A baseline comes twice in {', '.join(names)}.")
    for name, grid in grids.items():
        allowed = list(CLICK_BASELINES[name].grid)
        for key, values in grid.items():
            if key not in allowed:
                raise RecipeError(
                    f"evaluate.search.{name}.{key} is no setting of {name}. Allowed: {', '.join(allowed) or 'none'}."
                    f"{nearest(key, allowed)}"
                )
            if not values:
                raise RecipeError(f"evaluate.search.{name}.{key} has no value to try.")
