"""Sequence recommenders with full cross-entropy: the baselines that a generative recommender has to beat."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from genrec.core.errors import RunError
from genrec.core.files import atomic_path, hash_value, read_json
from genrec.core.progress import say
from genrec.data_prep import ItemId, Split
from genrec.models.loss import cross_entropy
from genrec.models.settings import GRU4RecSettings, SASRecSettings, SequenceSettings

VALIDATE_EVERY = 5


class SequenceModel(nn.Module):
    """Scores every item after each position of a history: states of an encoder times the item vectors.

    Loss is cross-entropy over the whole catalogue at every position, without the items that the user took
    before unless ``exclude_history`` is off.

    Attributes:
        items: Item vectors ``(items + 1, width)``; the last one is padding.
    """

    kind: ClassVar[str]

    def __init__(self, num_items: int, settings: SequenceSettings) -> None:
        super().__init__()
        self.num_items, self.settings = num_items, settings
        self.items = nn.Embedding(num_items + 1, settings.width, padding_idx=num_items)
        self.dropout = nn.Dropout(settings.dropout)
        nn.init.normal_(self.items.weight, std=0.02)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Returns states ``(batch, length, width)`` of item positions ``(batch, length)``, right-padded."""
        raise NotImplementedError

    def scores(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the scores ``(..., items)`` of all items for states ``(..., width)``."""
        return states @ self.items.weight[: self.num_items].T

    def item_vectors(self) -> np.ndarray:
        """Returns the item vectors ``(items, width)`` without that of padding."""
        return self.items.weight[: self.num_items].detach().cpu().numpy()


class _Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each normalised before and dropped out after."""

    def __init__(self, settings: SASRecSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.before_attention, self.before_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        batch, length, width = states.shape
        qkv = self.qkv(self.before_attention(states)).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        states = states + self.dropout(self.out(mixed))
        wide = nn.functional.gelu(self.wide(self.before_forward(states)))
        return states + self.dropout(self.narrow(wide))


class SASRec(SequenceModel):
    """Self-attentive sequential recommendation (Kang and McAuley, ICDM 2018).

    Differs from the paper: full cross-entropy instead of one sampled negative; the sum of item and position
    vectors is normalised (``normalise``), where the paper multiplies item vectors by the square root of the
    width; parts are normalised first, with GELU and a feed-forward of four times the width; dropout is on the
    input and on the output of each part, not on attention weights, which on a CPU cost more to drop than to
    compute.
    """

    kind = "sasrec"

    def __init__(self, num_items: int, settings: SASRecSettings) -> None:
        super().__init__(num_items, settings)
        self.positions = nn.Embedding(settings.max_history, settings.width)
        self.before = nn.LayerNorm(settings.width) if settings.normalise else nn.Identity()
        self.body = nn.Sequential(*(_Block(settings) for _ in range(settings.layers)))
        self.body.append(nn.LayerNorm(settings.width))
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Returns states as ``SequenceModel.forward``."""
        positions = self.positions(torch.arange(items.shape[1], device=items.device))
        return self.body(self.dropout(self.before(self.items(items) + positions)))


class GRU4Rec(SequenceModel):
    """A gated recurrent network over the history (Hidasi et al., ICLR 2016).

    Differs from the paper: histories of users instead of sessions; item vectors normalised on the way in, shared
    between input and output, and full cross-entropy, as in GRU4Rec's later versions and in the replications that found it
    strong (Hidasi and Czapp, RecSys 2023, compare implementations).
    """

    kind = "gru4rec"

    def __init__(self, num_items: int, settings: GRU4RecSettings) -> None:
        super().__init__(num_items, settings)
        self.before = nn.LayerNorm(settings.width)
        self.body = nn.GRU(settings.width, settings.hidden_size, settings.layers, batch_first=True)
        self.out = nn.Linear(settings.hidden_size, settings.width)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Returns states as ``SequenceModel.forward``."""
        states, _ = self.body(self.dropout(self.before(self.items(items))))
        return self.out(self.dropout(states))


MODELS: dict[str, tuple[type[SequenceModel], type[SequenceSettings]]] = {
    SASRec.kind: (SASRec, SASRecSettings),
    GRU4Rec.kind: (GRU4Rec, GRU4RecSettings),
}


def _cut(
    histories: Sequence[np.ndarray], max_history: int, rng: np.random.Generator, batch_size: int
) -> list[np.ndarray]:
    """Returns an epoch's rows: stretches of at most ``max_history + 1`` items.

    Stretches overlap by one item, so that each item but the first is a target once; the first stretch of a
    long history is cut at a random length, so that borders fall elsewhere in each epoch. A small log is
    gone through several times, until an epoch has 10 steps, so that patience means something for it.
    """
    rows: list[np.ndarray] = []
    while len(rows) < 10 * batch_size:
        before = len(rows)
        for history in histories:
            end, stretch = len(history), max_history + 1
            if end > stretch:
                stretch = int(rng.integers(2, stretch + 1))
            while end > 1:
                start = max(0, end - stretch)
                rows.append(history[start:end])
                end, stretch = (start + 1 if start else 0), max_history + 1
        if len(rows) == before:
            break
    return rows


def _batches(rows: list[np.ndarray], batch_size: int, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Returns the rows in batches of near lengths and about as many targets each, in random order.

    There are as many batches as batches of ``batch_size`` rows would be. With as many rows in each instead, a
    target of a short history would weigh many times as much as one of a long history.
    """
    rows = sorted(rows, key=len)
    ends = np.cumsum([len(row) - 1 for row in rows])
    number = (ends - 1) * -(-len(rows) // batch_size) // ends[-1]
    batches: list[list[np.ndarray]] = [[] for _ in range(int(number[-1]) + 1)]
    for row, place in zip(rows, number.tolist(), strict=True):
        batches[place].append(row)
    batches = [batch for batch in batches if batch]
    return [batches[place] for place in rng.permutation(len(batches))]


def _pad(histories: Sequence[Any], fill: int) -> torch.Tensor:
    """Returns sequences of item positions as rows, filled up on the right."""
    padded = np.full((len(histories), max(len(history) for history in histories)), fill)
    for row, history in enumerate(histories):
        padded[row, : len(history)] = history
    return torch.from_numpy(padded)


def taken_before(items: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, no_item: int) -> torch.Tensor:
    """Returns, for targets at ``items[rows, slots]``, the other items that come before in the same row.

    Args:
        items: ``(batch, length)`` item positions, padded with ``no_item``.
        rows: ``(targets,)``.
        slots: ``(targets,)``.
        no_item: What fills the result, ``(targets, length)``, where there is no such item.
    """
    before = torch.arange(items.shape[1], device=items.device) < slots[:, None]
    others = items[rows]
    return torch.where(before & (others != items[rows, slots][:, None]), others, no_item)


@torch.inference_mode()
def sequence_scores(
    model: SequenceModel, histories: Sequence[Sequence[int]] | Sequence[np.ndarray], batch_size: int = 128
) -> np.ndarray:
    """Returns float32 scores ``(histories, items)`` of every item after each history of positions."""
    result = np.zeros((len(histories), model.num_items), np.float32)
    for rows, states in _last_states(model, histories, batch_size):
        result[rows] = model.scores(states).cpu().numpy()
    return result


@torch.inference_mode()
def sequence_states(
    model: SequenceModel, histories: Sequence[Sequence[int]] | Sequence[np.ndarray], batch_size: int = 128
) -> np.ndarray:
    """Returns float32 states ``(histories, width)`` after each history of positions, by which items are scored."""
    result = np.zeros((len(histories), model.settings.width), np.float32)
    for rows, states in _last_states(model, histories, batch_size):
        result[rows] = states.cpu().numpy()
    return result


def _last_states(
    model: SequenceModel, histories: Sequence[Sequence[int]] | Sequence[np.ndarray], batch_size: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yields numbers of histories and their states, in batches of near lengths."""
    model.eval()
    device = model.items.weight.device
    order = np.argsort([len(history) for history in histories], kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        kept = [list(histories[row][-model.settings.max_history :]) or [model.num_items] for row in rows]
        states = model(_pad(kept, model.num_items).to(device))
        yield rows, states[torch.arange(len(rows)), torch.tensor([len(history) - 1 for history in kept])]


def train_sequence(
    split: Split,
    item_ids: Sequence[ItemId],
    settings: SequenceSettings | None = None,
    checkpoint: Path | None = None,
) -> tuple[SequenceModel, dict[str, Any]]:
    """Returns the model at the epoch that was best on validation, and what its training took.

    Trained on ``split.train``; NDCG@10 on ``split.valid`` over all items (those of the history left out as
    ``exclude_history`` says), looked at every five epochs, decides which epoch is kept. Test items are not
    looked at.

    Args:
        split: Training histories and validation items.
        item_ids: The catalogue.
        settings: Whose class says which model; default ``SASRecSettings()``.
        checkpoint: File in which the state is kept at every validation; a training that was cut goes on from
            it, to the same weights. It is removed by whoever saves the result.

    Raises:
        RunError: If the loss becomes NaN, or the disk refuses.
    """
    s = settings or SASRecSettings()
    kind, model_class = next((k, m) for k, (m, c) in MODELS.items() if c is type(s))
    torch.manual_seed(s.seed)
    rng = np.random.default_rng(s.seed)
    position = {item: row for row, item in enumerate(item_ids)}
    train = [np.array([position[i] for i in history]) for history in split.train.values()]
    train.sort(key=len)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model_class(len(item_ids), s).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=s.learning_rate, fused=True)
    best, best_state, best_epoch, steps, first_epoch = -1.0, model.state_dict(), 0, 0, 1
    curve: list[tuple[int, float]] = []
    spent_before = 0.0
    begun = hash_value([kind, s.model_dump(), list(item_ids), [len(h) for h in train]])
    if checkpoint is not None and (state := read_checkpoint(checkpoint, begun)) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch_rng"])
        rng.bit_generator.state = json.loads(state["numpy_rng"])
        best, best_state, best_epoch, steps = (
            state[k] for k in ("best", "best_state", "best_epoch", "steps")
        )
        first_epoch, curve, spent_before = state["epoch"] + 1, state["curve"], state["seconds"]
        say(f"  {kind} goes on after epoch {state['epoch']}")
    began = time.perf_counter() - spent_before
    for epoch in range(first_epoch, s.epochs + 1):
        model.train()
        rows = _cut(train, s.max_history, rng, s.batch_size)
        batches = _batches(rows, s.batch_size, rng)
        for place, batch_rows in enumerate(batches):
            done = epoch - 1 + place / len(batches)
            for group in optimizer.param_groups:
                group["lr"] = s.learning_rate * min(1.0, done + 0.05) * (1 - done / s.epochs)
            batch = _pad(batch_rows, len(item_ids)).to(device)
            learned = batch[:, 1:] != len(item_ids)
            states, targets = model(batch[:, :-1])[learned], batch[:, 1:][learned]
            left_out = targets.new_full((len(targets), 1), len(item_ids))
            if s.exclude_history:
                users, places = torch.nonzero(learned, as_tuple=True)
                left_out = taken_before(batch, users, places + 1, len(item_ids))
                left_out[:, -1] = len(item_ids)  # what comes last is never before a target
            # The last row is padding and no candidate: each row leaves it out.
            loss = cross_entropy(states, model.items.weight, targets, left_out) / len(targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        if not torch.isfinite(loss):
            raise RunError(
                f"The loss of {kind} became {float(loss)} in epoch {epoch}. Lower {kind}.learning_rate."
            )
        if epoch % VALIDATE_EVERY and epoch != s.epochs:
            continue
        value = _validation_ndcg(model, split, position)
        curve.append((epoch, value))
        if value > best:
            best, best_epoch = value, epoch
            best_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        spent = time.perf_counter() - began
        say(f"  {kind} epoch {epoch}/{s.epochs}: NDCG@10 on validation {value:.4f} ({spent:.0f} s)")
        if checkpoint is not None:
            state = {
                "begun": begun,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "torch_rng": torch.get_rng_state(),
                "numpy_rng": json.dumps(rng.bit_generator.state),
                **{"best": best, "best_state": best_state, "best_epoch": best_epoch, "steps": steps},
                **{"epoch": epoch, "curve": curve, "seconds": spent},
            }
            with atomic_path(checkpoint) as part:
                torch.save(state, part)
    model.load_state_dict(best_state)
    return model.eval(), {
        "epochs": s.epochs,
        "steps": steps,
        "best_epoch": best_epoch,
        "valid_ndcg@10": best,
        "curve": curve,
        "train_s": round(time.perf_counter() - began, 1),
    }


def _validation_ndcg(model: SequenceModel, split: Split, position: dict[ItemId, int]) -> float:
    """Returns NDCG@10 on the validation rows (``genrec.evaluation`` lies to the right of this layer)."""
    gain = 1 / np.log2(np.arange(11) + 1, where=np.arange(11) > 0, out=np.ones(11))
    total = 0.0
    for first in range(0, len(split.valid), 1024):
        rows = slice(first, first + 1024)
        seen = [[position[i] for i in history] for history in split.valid.histories[rows]]
        scores = sequence_scores(model, seen)
        if model.settings.exclude_history:
            for row, history in enumerate(seen):
                scores[row, history] = -np.inf
        for row, targets in enumerate(split.valid.targets[rows]):
            wanted = scores[row, [position[target] for target in targets]]
            rank = (scores[row] > wanted[:, None]).sum(1) + 1
            total += gain[rank[rank <= 10]].sum() / gain[1 : 1 + min(10, len(targets))].sum()
    return float(total / len(split.valid))


def read_checkpoint(path: Path, begun: str) -> dict[str, Any] | None:
    """Returns the state of the same training, or None where there is none that can be read."""
    try:
        state = torch.load(path, weights_only=True)
    except FileNotFoundError:
        return None
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        say(f"  {path.name} cannot be read ({error}); training begins anew")
        return None
    return state if state["begun"] == begun else None


def save_sequence_model(model: SequenceModel, item_ids: Sequence[ItemId], folder: str | Path) -> None:
    """Writes weights, settings and the order of items into a folder, whole or not at all."""
    with atomic_path(folder) as part:
        part.mkdir()
        save_file(model.state_dict(), part / "weights.safetensors")
        about = {"kind": model.kind, "settings": model.settings.model_dump(), "item_ids": list(item_ids)}
        (part / "model.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


def load_sequence_model(folder: str | Path, item_ids: Sequence[ItemId]) -> SequenceModel:
    """Returns the model that ``save_sequence_model`` wrote.

    Raises:
        RunError: If it was trained on other items or in another order.
    """
    about = read_json(Path(folder) / "model.json")
    if about["item_ids"] != list(item_ids):
        raise RunError(f"The {about['kind']} in {folder} was trained on another catalogue.")
    model_class, settings_class = MODELS[about["kind"]]
    model = model_class(len(item_ids), settings_class(**about["settings"]))
    model.load_state_dict(load_file(Path(folder) / "weights.safetensors"))
    return model.eval()
