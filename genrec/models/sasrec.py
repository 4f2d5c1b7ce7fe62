"""SASRec with full cross-entropy: the baseline that a generative recommender has to beat."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from genrec.core.errors import RunError
from genrec.core.files import atomic_path, read_json
from genrec.core.progress import say
from genrec.data_prep import ItemId, Split
from genrec.models.settings import SASRecSettings


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


class SASRec(nn.Module):
    """Self-attentive sequential recommendation (Kang and McAuley, ICDM 2018), scored on all items.

    Differs from the paper: loss is cross-entropy over the whole catalogue at every position instead of
    one sampled negative, without the items that the user took before unless
    ``SASRecSettings.exclude_history`` is off; layers are normalised first, with GELU and a feed-forward of four times the
    width; dropout is on the input and on the output of each part, not on attention weights, which on a
    CPU cost more to drop than to compute.
    """

    def __init__(self, num_items: int, settings: SASRecSettings) -> None:
        super().__init__()
        s = settings
        self.num_items, self.settings = num_items, s
        self.items = nn.Embedding(num_items + 1, s.width, padding_idx=num_items)
        self.positions = nn.Embedding(s.max_history, s.width)
        self.dropout = nn.Dropout(s.dropout)
        self.body = nn.Sequential(*(_Block(s) for _ in range(s.layers)), nn.LayerNorm(s.width))
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Returns states ``(batch, length, width)`` of item positions ``(batch, length)``, right-padded."""
        positions = self.positions(torch.arange(items.shape[1], device=items.device))
        return self.body(self.dropout(self.items(items) + positions))

    def scores(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the scores ``(..., items)`` of all items for states ``(..., width)``."""
        return states @ self.items.weight[: self.num_items].T


def _cut(
    histories: Sequence[Sequence[int]], max_history: int, rng: np.random.Generator, batch_size: int
) -> list[Sequence[int]]:
    """Returns an epoch's rows: stretches of at most ``max_history + 1`` items.

    Stretches overlap by one item, so that each item but the first is a target once; the first stretch of a
    long history is cut at a random length, so that borders fall elsewhere in each epoch. A small log is
    gone through several times, until an epoch has 10 steps, so that patience means something for it.
    """
    rows: list[Sequence[int]] = []
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


def _pad(histories: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    padded = torch.full((len(histories), max(map(len, histories))), fill)
    for row, history in enumerate(histories):
        padded[row, : len(history)] = torch.tensor(history)
    return padded


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


def leave_out(scores: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """Returns scores ``(targets, items)`` with minus infinity at items ``(targets, any number)``.

    Positions from ``items`` on leave nothing out.
    """
    out = torch.zeros(len(scores), scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    return scores.masked_fill(out.scatter_(1, taken, True)[:, :-1], float("-inf"))


@torch.inference_mode()
def sasrec_scores(model: SASRec, histories: Sequence[Sequence[int]], batch_size: int = 128) -> np.ndarray:
    """Returns float32 scores ``(histories, items)`` of every item after each history of positions."""
    model.eval()
    device = model.items.weight.device
    result = np.zeros((len(histories), model.num_items), np.float32)
    order = np.argsort([len(history) for history in histories], kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        kept = [histories[row][-model.settings.max_history :] or [model.num_items] for row in rows]
        states = model(_pad(kept, model.num_items).to(device))
        last = states[torch.arange(len(rows)), torch.tensor([len(history) - 1 for history in kept])]
        result[rows] = model.scores(last).cpu().numpy()
    return result


def train_sasrec(
    split: Split, item_ids: Sequence[ItemId], settings: SASRecSettings | None = None
) -> tuple[SASRec, dict[str, float]]:
    """Returns SASRec at the epoch that was best on validation, and what its training took.

    Trained on ``split.train``; NDCG@10 over all items not in the history, on ``split.valid``, decides
    which epoch is kept. Test items are not looked at.
    """
    s = settings or SASRecSettings()
    torch.manual_seed(s.seed)
    rng = np.random.default_rng(s.seed)
    position = {item: row for row, item in enumerate(item_ids)}
    train = [[position[i] for i in history] for history in split.train.values()]
    seen = [[position[i] for i in history] for history in split.valid.histories]
    targets = np.array([position[i] for i in split.valid.targets])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = SASRec(len(item_ids), s).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=s.learning_rate, fused=True)
    best, best_state = -1.0, model.state_dict()
    began, best_epoch, steps = time.perf_counter(), 0, 0
    for epoch in range(1, s.epochs + 1):
        model.train()
        rows = _cut(train, s.max_history, rng, s.batch_size)
        rows.sort(key=len)
        starts = rng.permutation(np.arange(0, len(rows), s.batch_size)).tolist()
        for place, first in enumerate(starts):
            done = epoch - 1 + place / len(starts)
            for group in optimizer.param_groups:
                group["lr"] = s.learning_rate * min(1.0, done + 0.05) * (1 - done / s.epochs)
            batch = _pad(rows[first : first + s.batch_size], len(item_ids)).to(device)
            learned = batch[:, 1:] != len(item_ids)
            logits = model.scores(model(batch[:, :-1])[learned])
            if s.exclude_history:
                users, places = torch.nonzero(learned, as_tuple=True)
                taken = taken_before(batch, users, places + 1, len(item_ids))
                logits = leave_out(logits, taken)
            loss = nn.functional.cross_entropy(logits, batch[:, 1:][learned])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        if epoch % 5 and epoch != s.epochs:
            continue
        scores = sasrec_scores(model, seen)
        for row, history in enumerate(seen):
            scores[row, history] = -np.inf
        rank = (scores > scores[np.arange(len(targets)), targets][:, None]).sum(1) + 1
        value = float(np.where(rank <= 10, 1 / np.log2(rank + 1), 0).mean())
        if value > best:
            best, best_epoch = value, epoch
            best_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        spent = time.perf_counter() - began
        say(f"  SASRec epoch {epoch}/{s.epochs}: NDCG@10 on validation {value:.4f} ({spent:.0f} s)")
    model.load_state_dict(best_state)
    seconds = time.perf_counter() - began
    return model.eval(), {
        "epochs": s.epochs,
        "steps": steps,
        "best_epoch": best_epoch,
        "valid_ndcg@10": best,
        "train_s": round(seconds, 1),
    }


def save_sasrec(model: SASRec, item_ids: Sequence[ItemId], folder: str | Path) -> None:
    """Writes weights, settings and the order of items into a folder, whole or not at all."""
    with atomic_path(folder) as part:
        part.mkdir()
        save_file(model.state_dict(), part / "sasrec.safetensors")
        about = {"settings": model.settings.model_dump(), "item_ids": list(item_ids)}
        (part / "sasrec.json").write_text(json.dumps(about) + "\n", encoding="utf-8")


def load_sasrec(folder: str | Path, item_ids: Sequence[ItemId]) -> SASRec:
    """Returns the SASRec that ``save_sasrec`` wrote.

    Raises:
        RunError: If it was trained on other items or in another order.
    """
    about = read_json(Path(folder) / "sasrec.json")
    if about["item_ids"] != list(item_ids):
        raise RunError(f"The SASRec in {folder} was trained on another catalogue.")
    model = SASRec(len(item_ids), SASRecSettings(**about["settings"]))
    model.load_state_dict(load_file(Path(folder) / "sasrec.safetensors"))
    return model.eval()
