"""Click models: how likely a user is to like an item, from everything that the training log says of both."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch import nn

from genrec.core.errors import DataError, RunError
from genrec.core.files import atomic_path, hash_value, read_json
from genrec.core.progress import say
from genrec.data_prep import ItemId
from genrec.models.sequence import read_checkpoint
from genrec.models.settings import ClickSettings
from genrec.tasks.retrieve import Retriever
from genrec.tasks.samplers import SAMPLERS, Sample
from genrec.tasks.source import Source

_MOST_SCORES = 32
_ROWS = 4096


@dataclass(frozen=True)
class ClickSamples:
    """Questions whether a user likes an item, each asked at the time of an interaction.

    Attributes:
        source: The interactions that may be known.
        place: ``(samples,)`` rows of the source at whose time is asked.
        user: ``(samples,)`` numbers of users in the source.
        item: ``(samples,)`` numbers of the items asked for in the source's book.
        label: ``(samples,)`` float32, 1 for yes.
    """

    source: Source
    place: np.ndarray
    user: np.ndarray
    item: np.ndarray
    label: np.ndarray

    @classmethod
    def of(cls, source: Source, places: np.ndarray | None = None, family: str = "click") -> ClickSamples:
        """Returns the samples at some rows, by default at all that the source asks for.

        With a rating the item is the one taken, and the answer is whether the rating is at least ``tasks.like_from``;
        without one both are what the sampler ``click`` draws for a family: the item or one that the user never took. A row
        for which it has nothing, since its user took every item, is left out.

        Args:
            source: Of any part.
            places: Rows.
            family: Whose draws they are.
        """
        place = np.flatnonzero(source.asked) if places is None else np.asarray(places, np.int64)
        user = np.searchsorted(source.start, place, "right") - 1
        item, rating = source.item[place].copy(), source.rating[place]
        label = (rating >= source.settings.like_from).astype(np.float32)
        kept = np.ones(len(place), bool)
        for row in np.flatnonzero(np.isnan(rating)).tolist():
            sample = Sample(SAMPLERS["click"], source, family, int(user[row]), int(place[row]))
            if (shown := sample["item"]) is None:
                kept[row] = False
            else:
                item[row], label[row] = source.book.number[shown.id], sample["answer"] == "yes"
        return cls(source, place[kept], user[kept], item[kept], label[kept])

    def __len__(self) -> int:
        return len(self.place)

    def take(self, rows: np.ndarray | slice) -> ClickSamples:
        """Returns some of the samples, in the order given."""
        return ClickSamples(self.source, self.place[rows], self.user[rows], self.item[rows], self.label[rows])

    @property
    def user_ids(self) -> list[str]:
        """Whose samples they are."""
        return [self.source.user_ids[user] for user in self.user.tolist()]

    @property
    def keys(self) -> list[str]:
        """``user/position``, as rows of families have them."""
        first = self.source.start[self.user]
        return [f"{user}/{place}" for user, place in zip(self.user_ids, self.place - first, strict=True)]

    @cached_property
    def end(self) -> np.ndarray:
        """``(samples,)`` rows of the source up to which is known what the user did strictly before."""
        return np.array([self.source.before(place) for place in self.place.tolist()], np.int64)


# Samples and k to ``(samples, k)`` rows of the source, each strictly before its sample, -1 anywhere where there are fewer.
Histories = Callable[[ClickSamples, int], np.ndarray]


def recent(samples: ClickSamples, k: int) -> np.ndarray:
    """Returns ``(samples, k)`` rows of the last k behaviours strictly before each sample, oldest first, -1 filling up in front."""
    rows = samples.end[:, None] - k + np.arange(k)
    return np.where(rows >= samples.source.start[samples.user][:, None], rows, -1)


def retrieved(retriever: Retriever) -> Histories:
    """Returns what reads the behaviours that a retriever finds most like the item asked for, for ``kind="sim"``."""
    return lambda samples, k: retriever.rows(samples.source, samples.place, k, samples.item)


class ClickFields:
    """Numbers of users, items and ratings, learned from the training part alone.

    Users and items without a training interaction are unknown: number 0, which is trained by taking others for unknown
    (``click.unknown_rate``). An item keeps its categories all the same, which are content.

    Attributes:
        item_ids: The catalogue.
        user_ids: Those of training; ``user_ids[n]`` has number n + 1.
        scores: Ratings of training, ascending, at most 32 (else quantiles); number 0 is none.
        categories: Names; ``categories[n]`` has number n + 1.
        item_number: ``(items,)`` number of each item of the catalogue, 0 or its place + 1.
        item_categories: ``(items, most)`` numbers of categories, 0 filling up.
        num_traits: Different values of what is known of users (``Source.user_fields``), of all columns together; a value that no
            training user has is unknown.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.about = dict(about)
        self.item_ids: list[ItemId] = self.about["item_ids"]
        self.user_ids: list[str] = self.about["user_ids"]
        self.scores = np.array(self.about["scores"], np.float64)
        self.categories: list[str] = self.about["categories"]
        self.item_number = np.zeros(len(self.item_ids), np.int64)
        self.item_number[self.about["trained"]] = np.array(self.about["trained"], np.int64) + 1
        found: list[list[int]] = self.about["item_categories"]
        self.item_categories = np.zeros((len(found), max(map(len, found), default=0)), np.int64)
        for item, numbers in enumerate(found):
            self.item_categories[item, : len(numbers)] = numbers
        self._user = {user: number for number, user in enumerate(self.user_ids, start=1)}
        traits: dict[str, list[str]] = self.about.get("user_fields", {})
        named = [(column, value) for column, values in traits.items() for value in values]
        self._trait = {each: number for number, each in enumerate(named, start=1)}
        self.num_traits = len(named)

    @classmethod
    def learn(cls, source: Source) -> ClickFields:
        """Returns the numbers that a source of the training part gives."""
        names = source.book.category_names
        categories = sorted({name for each in names for name in each})
        number = {name: place for place, name in enumerate(categories, start=1)}
        scores = np.array(source.scores, np.float64)
        if len(scores) > _MOST_SCORES:
            rated = source.rating[source.rated]
            scores = np.unique(np.quantile(rated, np.linspace(0, 1, _MOST_SCORES)))
        return cls(
            {
                "item_ids": list(source.book.ids),
                "user_ids": list(source.user_ids),
                "trained": np.unique(source.item).tolist(),
                "scores": scores.tolist(),
                "categories": categories,
                "item_categories": [[number[name] for name in dict.fromkeys(each)] for each in names],
                "user_fields": {
                    column: sorted({value for value in values if value is not None})
                    for column, values in source.user_fields.items()
                },
            }
        )

    def check(self, source: Source) -> None:
        """Raises RunError if a source numbers other items than these."""
        if source.book.ids is not self.item_ids and source.book.ids != self.item_ids:
            raise RunError(
                f"The click model knows {len(self.item_ids):,} items in the order of its catalogue; these data have "
                f"{len(source.book.ids):,}, or in another order. Train it on this catalogue."
            )

    def users(self, samples: ClickSamples) -> np.ndarray:
        """Returns ``(samples,)`` numbers of users."""
        known = np.array([self._user.get(user, 0) for user in samples.source.user_ids], np.int64)
        return known[samples.user]

    def traits(self, samples: ClickSamples) -> np.ndarray:
        """Returns ``(samples, columns)`` numbers of what is known of users, 0 where nothing is; no column without traits."""
        source, columns = samples.source, self.about.get("user_fields", {})
        found = np.zeros((len(source.user_ids), len(columns)), np.int64)
        for place, column in enumerate(columns):
            for user, value in enumerate(source.user_fields.get(column, [])):
                found[user, place] = 0 if value is None else self._trait.get((column, value), 0)
        return found[samples.user]

    def behaviours(self, source: Source, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns, for rows of the source, places of items in the catalogue (their count where a row is -1) and numbers of ratings."""
        there = rows >= 0
        items = np.where(there, source.item[rows], len(self.item_ids))
        if not len(self.scores):
            return items, np.zeros_like(items)
        rating = source.rating[rows]
        middles = (self.scores[1:] + self.scores[:-1]) / 2
        return items, np.where(there & ~np.isnan(rating), np.searchsorted(middles, rating) + 1, 0)


class ClickModel(nn.Module):
    """DIN (Zhou et al., KDD 2018), or SIM (Pi et al., CIKM 2020) where the behaviours it reads are retrieved.

    A user is the vectors of the id and, averaged, of what else is known; an item those of its id and, averaged, of its categories; a behaviour is an item and the vector of its rating
    through a linear layer and ReLU, as in RecLoRA's code. The target weighs the behaviours by a small network of both, their
    difference and their product; the user, the target and the weighed sum go through hidden layers with ReLU and dropout.

    Differs: weights come from a softmax over the behaviours *and a nothing of score 0*. DIN's are not normalised, so that
    long histories have long sums; a plain softmax has to choose some behaviour where none says anything. ReLU in place of
    DIN's Dice, as in RecLoRA's settings. What SIM searches is whatever ``histories`` gives, and it is not trained.

    Users and items that training never saw have the unknown's vectors (``ClickFields``).

    Args:
        fields: Numbers of everything.
        settings: Sizes.
        histories: What is read; ``kind="sim"`` needs it, the default of ``"din"`` are the latest behaviours.

    Raises:
        RunError: If ``kind="sim"`` comes without.
    """

    _number: torch.Tensor
    _kinds: torch.Tensor

    def __init__(
        self, fields: ClickFields, settings: ClickSettings, histories: Histories | None = None
    ) -> None:
        super().__init__()
        if histories is None and settings.kind == "sim":
            raise RunError(
                "click.kind=sim reads retrieved behaviours: give histories, a function that retrieves them."
            )
        s, self.fields, self.settings = settings, fields, settings
        self.histories: Histories = histories or recent
        width, num_items = s.embedding, len(fields.item_ids)
        self.users = nn.Embedding(len(fields.user_ids) + 1, width)
        self.items = nn.Embedding(num_items + 1, width)
        self.ratings = nn.Embedding(len(fields.scores) + 1, width)
        self.categories = nn.Embedding(len(fields.categories) + 1, width, padding_idx=0)
        self.traits = nn.Embedding(fields.num_traits + 1, width, padding_idx=0)
        for table in (self.users, self.items, self.ratings, self.categories, self.traits):
            nn.init.normal_(table.weight, std=0.05)
        with torch.no_grad():
            self.categories.weight[0] = 0
            self.traits.weight[0] = 0
        # One more place, of what fills a history up.
        kinds = np.pad(fields.item_categories, ((0, 1), (0, 0)))
        self.register_buffer("_number", torch.from_numpy(np.append(fields.item_number, 0)), persistent=False)
        self.register_buffer("_kinds", torch.from_numpy(kinds), persistent=False)
        item_width = width * (1 + bool(fields.categories))
        self.behaviour = nn.Linear(item_width + width, item_width)
        sizes = [4 * item_width, *[s.attention_hidden] * (s.attention_layers - 1)]
        attention: list[nn.Module] = []
        for before, after in pairwise(sizes):
            attention += [nn.Linear(before, after), nn.ReLU()]
        self.attention = nn.Sequential(*attention, nn.Linear(sizes[-1], 1))
        sizes = [width * (1 + bool(fields.num_traits)) + 2 * item_width, *[s.hidden] * s.layers]
        body: list[nn.Module] = []
        for before, after in pairwise(sizes):
            body += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(s.dropout)]
        self.body, self.out = nn.Sequential(*body), nn.Linear(s.hidden, 1)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns ``(samples,)`` logits of yes."""
        return self.out(self._hidden(batch))[:, 0]

    def _unknown(self, numbers: torch.Tensor) -> torch.Tensor:
        """Returns the numbers, in training some of them taken for unknown."""
        if not self.training or not self.settings.unknown_rate:
            return numbers
        return numbers * (torch.rand(numbers.shape, device=numbers.device) >= self.settings.unknown_rate)

    def _items(self, places: torch.Tensor) -> torch.Tensor:
        """Returns ``(..., width)`` vectors of items at places of the catalogue."""
        own = self.items(self._unknown(self._number[places]))
        if not self.fields.categories:
            return own
        kinds = self._kinds[places]
        count = (kinds > 0).sum(-1, keepdim=True).clamp(min=1)
        return torch.cat([own, self.categories(kinds).sum(-2) / count], -1)

    def _behaviours(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns ``(samples, k, width)`` behaviours, and which of them there are."""
        both = torch.cat([self._items(batch["history"]), self.ratings(batch["rating"])], -1)
        return torch.relu(self.behaviour(both)), batch["history"] < len(self.fields.item_ids)

    def _hidden(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        target = self._items(batch["item"])
        done, there = self._behaviours(batch)
        asked = target[:, None].expand_as(done)
        scores = self.attention(torch.cat([done, asked, done - asked, done * asked], -1))[..., 0]
        scores = scores.masked_fill(~there, -torch.inf)
        weights = nn.functional.pad(scores, (0, 1)).softmax(-1)[:, :-1]
        pooled = (weights[:, None] @ done)[:, 0]
        return self.body(torch.cat([self._users(batch), target, pooled], -1))

    def _users(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        own = self.users(self._unknown(batch["user"]))
        if not self.fields.num_traits:
            return own
        traits = batch["traits"]
        count = (traits > 0).sum(-1, keepdim=True).clamp(min=1)
        return torch.cat([own, self.traits(traits).sum(-2) / count], -1)

    def inputs(self, samples: ClickSamples) -> Batches:
        """Returns the samples as batches for ``forward``; behaviours are looked up here, once."""
        self.fields.check(samples.source)
        rows = self.histories(samples, self.settings.max_history).astype(np.int32)
        users, traits = self.fields.users(samples), self.fields.traits(samples)

        def take(numbers: np.ndarray) -> dict[str, np.ndarray]:
            history, rating = self.fields.behaviours(samples.source, rows[numbers])
            return {
                "user": users[numbers],
                "traits": traits[numbers],
                "item": samples.item[numbers],
                "history": history,
                "rating": rating,
            }

        return Batches(samples.label, take)

    def probabilities(self, samples: ClickSamples) -> np.ndarray:
        """Returns ``(samples,)`` float64 probabilities of yes."""
        return predicted(self, self.inputs(samples))

    @torch.inference_mode()
    def vectors(self, samples: ClickSamples) -> np.ndarray:
        """Returns ``(samples, hidden)`` float32 states of the last hidden layer, which know the user and the item asked for.

        They are for what answers yes or no to that item (RecLoRA), never for what generates items: see ``user_vectors``.
        """
        parts = [self._hidden(batch).cpu().numpy() for batch in self._all(samples)]
        return np.concatenate([*parts, np.zeros((0, self.settings.hidden), np.float32)])

    @torch.inference_mode()
    def user_vectors(self, samples: ClickSamples) -> np.ndarray:
        """Returns ``(samples, width)`` float32: the user's own vector and the mean of the behaviours, without the item asked for.

        With ``kind="sim"`` the behaviours were chosen by that item all the same: take ``"din"`` where it must not be known.
        """
        parts = []
        for batch in self._all(samples):
            done, there = self._behaviours(batch)
            mean = (done * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp(min=1)
            parts.append(torch.cat([self._users(batch), mean], -1).cpu().numpy())
        width = self.users.embedding_dim * (1 + bool(self.fields.num_traits)) + self.behaviour.out_features
        return np.concatenate([*parts, np.zeros((0, width), np.float32)])

    def _all(self, samples: ClickSamples) -> Iterator[dict[str, torch.Tensor]]:
        self.eval()
        return self.inputs(samples).in_order(self.out.weight.device)


@dataclass(frozen=True)
class Batches:
    """Labels of samples, and what a network reads of any of them.

    Attributes:
        label: ``(samples,)`` float32.
        read: Numbers of samples to named arrays, one row each.
    """

    label: np.ndarray
    read: Callable[[np.ndarray], Mapping[str, np.ndarray]]

    def take(self, numbers: np.ndarray, device: torch.device) -> dict[str, torch.Tensor]:
        """Returns what a network reads of some samples."""
        found = self.read(numbers).items()
        return {name: torch.from_numpy(np.ascontiguousarray(each)).to(device) for name, each in found}

    def in_order(self, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
        """Yields all samples in batches."""
        for first in range(0, len(self.label), _ROWS):
            yield self.take(np.arange(first, min(first + _ROWS, len(self.label))), device)


@torch.inference_mode()
def predicted(network: nn.Module, batches: Batches) -> np.ndarray:
    """Returns ``(samples,)`` float64 probabilities by a network of logits."""
    network.eval()
    device = next(network.parameters()).device
    parts = [network(batch).double().sigmoid().cpu().numpy() for batch in batches.in_order(device)]
    return np.concatenate([*parts, np.zeros(0)])


def fit_clicks(
    network: nn.Module,
    train: Batches,
    valid: Batches,
    settings: ClickSettings,
    name: str,
    begun: str = "",
    checkpoint: Path | None = None,
) -> dict[str, Any]:
    """Trains a network of logits by binary cross-entropy, leaves it at the epoch of the best AUC on validation, and says what it took.

    Args:
        network: Named tensors to ``(samples,)`` logits.
        train: Samples to learn.
        valid: Samples that choose the epoch.
        settings: Rate, decay, batch, epochs, patience and seed.
        name: For the progress lines.
        begun: Says which training a checkpoint is of.
        checkpoint: File in which the state is kept after every epoch; a training that was cut goes on from it, to the same
            weights. It is removed by whoever saves the result.

    Raises:
        DataError: If there is nothing to learn, or validation has samples of one answer only.
        RunError: If the loss becomes NaN, or the disk refuses.
    """
    s = settings
    if not len(train.label):
        raise DataError("There is no training sample of a click. Give a log with more interactions.")
    if len(np.unique(valid.label)) < 2:
        raise DataError(
            f"The {len(valid.label):,} validation samples all have the same answer, so that no AUC chooses the epoch. Set "
            "tasks.like_from between the ratings, or hold out more interactions."
        )
    rng = np.random.default_rng(s.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=s.learning_rate, weight_decay=s.weight_decay)
    best, best_state, best_epoch, steps, first_epoch = -1.0, network.state_dict(), 0, 0, 1
    curve: list[tuple[int, float]] = []
    spent_before = 0.0
    if checkpoint is not None and (state := read_checkpoint(checkpoint, begun)) is not None:
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
        rng.bit_generator.state = json.loads(state["numpy_rng"])
        best, best_state, best_epoch, steps = (
            state[k] for k in ("best", "best_state", "best_epoch", "steps")
        )
        first_epoch, curve, spent_before = state["epoch"] + 1, state["curve"], state["seconds"]
        say(f"  {name} goes on after epoch {state['epoch']}")
    began = time.perf_counter() - spent_before
    for epoch in range(first_epoch, s.epochs + 1):
        if epoch - 1 - best_epoch >= s.patience and epoch > 1:
            break
        network.train()
        order = rng.permutation(len(train.label))
        for start in range(0, len(order), s.batch_size):
            numbers = order[start : start + s.batch_size]
            wanted = torch.from_numpy(train.label[numbers]).to(device)
            found = network(train.take(numbers, device))
            loss = nn.functional.binary_cross_entropy_with_logits(found, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        if not torch.isfinite(loss):
            raise RunError(
                f"The loss of {name} became {float(loss)} in epoch {epoch}. Lower its learning_rate."
            )
        value = float(roc_auc_score(valid.label, predicted(network, valid)))
        curve.append((epoch, value))
        if value > best:
            best, best_epoch = value, epoch
            best_state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        spent = time.perf_counter() - began
        say(f"  {name} epoch {epoch}/{s.epochs}: AUC on validation {value:.4f} ({spent:.0f} s)")
        if checkpoint is not None:
            state = {
                "begun": begun,
                "model": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "torch_rng": torch.get_rng_state(),
                "numpy_rng": json.dumps(rng.bit_generator.state),
                **{"best": best, "best_state": best_state, "best_epoch": best_epoch, "steps": steps},
                **{"epoch": epoch, "curve": curve, "seconds": spent},
            }
            with atomic_path(checkpoint) as part:
                torch.save(state, part)
    network.load_state_dict(best_state)
    network.eval()
    return {
        "steps": steps,
        "best_epoch": best_epoch,
        "valid_auc": best,
        "curve": curve,
        "num_samples": len(train.label),
        "train_s": round(time.perf_counter() - began, 1),
    }


def train_click(
    train: ClickSamples,
    valid: ClickSamples,
    settings: ClickSettings | None = None,
    histories: Histories | None = None,
    checkpoint: Path | None = None,
) -> tuple[ClickModel, dict[str, Any]]:
    """Returns the click model at the epoch of the best AUC on validation, and what its training took.

    What it knows of a sample is what happened strictly before it, and what it learns are training samples alone.

    Args:
        train: Of a source of the training part.
        valid: Of a source of the validation part.
        settings: Default ``ClickSettings()``.
        histories: As ``ClickModel``.
        checkpoint: As ``fit_clicks``.

    Raises:
        DataError: As ``fit_clicks``.
        RunError: As ``fit_clicks`` and ``ClickModel``.
    """
    s = settings or ClickSettings()
    fields = ClickFields.learn(train.source)
    torch.manual_seed(s.seed)
    model = ClickModel(fields, s, histories)
    batches, chosen = model.inputs(train), model.inputs(valid)
    known = [train.label, train.item, train.place, train.source.rating, valid.label, valid.item, valid.place]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in known)).hexdigest()
    begun = hash_value([s.model_dump(), fields.about, digest])
    return model, fit_clicks(model, batches, chosen, s, s.kind, begun, checkpoint)


def save_click_model(model: ClickModel, folder: str | Path) -> None:
    """Writes weights, settings and numbers into a folder, whole or not at all."""
    with atomic_path(folder) as part:
        part.mkdir()
        save_file(model.state_dict(), part / "weights.safetensors")
        about = {"settings": model.settings.model_dump(), "fields": model.fields.about}
        (part / "model.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


def load_click_model(
    folder: str | Path, item_ids: Sequence[ItemId], histories: Histories | None = None
) -> ClickModel:
    """Returns the model that ``save_click_model`` wrote.

    Args:
        folder: Where.
        item_ids: The catalogue that it will be used with.
        histories: As ``ClickModel``.

    Raises:
        RunError: If it was trained on other items or in another order, or as ``ClickModel``.
    """
    about = read_json(Path(folder) / "model.json")
    if about["fields"]["item_ids"] != list(item_ids):
        raise RunError(f"The click model in {folder} was trained on another catalogue.")
    model = ClickModel(ClickFields(about["fields"]), ClickSettings(**about["settings"]), histories)
    model.load_state_dict(load_file(Path(folder) / "weights.safetensors"))
    return model.eval()
