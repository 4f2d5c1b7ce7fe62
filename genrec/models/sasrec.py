"""SASRec with full cross-entropy: the baseline that a generative recommender has to beat."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from genrec.core.progress import say
from genrec.data_prep import ItemId, Split


class SASRecSettings(BaseModel):
    """The SASRec baseline; the defaults were chosen on MovieLens-100K's validation items."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(64, ge=1, description="Width of item vectors and of the two layers.")
    layers: int = Field(2, ge=1, description="Transformer layers.")
    heads: int = Field(2, ge=1, description="Attention heads.")
    max_history: int = Field(100, ge=2, description="Most items of a history.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Dropout everywhere.")
    learning_rate: float = Field(3e-3, gt=0, description="Rate of Adam.")
    batch_size: int = Field(64, ge=1, description="Histories in a step.")
    max_epochs: int = Field(150, ge=1, description="Most passes over the training histories.")
    patience: int = Field(
        4,
        ge=1,
        description="Checks, one every five epochs, without a better NDCG@10 on validation, then stop.",
    )
    seed: int = Field(0, ge=0, description="Seed of everything random.")


class SASRec(nn.Module):
    """Self-attentive sequential recommendation (Kang and McAuley, ICDM 2018), scored on all items.

    Differs from the paper: loss is cross-entropy over the whole catalogue at every position instead of
    one sampled negative; layers are pre-norm with GELU and a feed-forward of four times the width.
    """

    def __init__(self, num_items: int, settings: SASRecSettings) -> None:
        super().__init__()
        s = settings
        self.num_items, self.settings = num_items, s
        self.items = nn.Embedding(num_items + 1, s.width, padding_idx=num_items)
        self.positions = nn.Embedding(s.max_history, s.width)
        self.dropout = nn.Dropout(s.dropout)
        layer = nn.TransformerEncoderLayer(
            s.width, s.heads, 4 * s.width, s.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(
            layer, s.layers, norm=nn.LayerNorm(s.width), enable_nested_tensor=False
        )
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Returns states ``(batch, length, width)`` of item positions ``(batch, length)``, right-padded."""
        length = items.shape[1]
        states = self.dropout(self.items(items) + self.positions(torch.arange(length, device=items.device)))
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=items.device)
        return self.body(states, mask=mask, is_causal=True)

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

    Trained on ``split.train``; NDCG@10 over all items not in the history, on ``split.valid``, decides when
    to stop and which epoch is kept. Test items are not looked at.
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
    optimizer = torch.optim.Adam(model.parameters(), lr=s.learning_rate)
    best, best_state, waited = -1.0, model.state_dict(), 0
    began, epoch, best_epoch = time.perf_counter(), 0, 0
    for epoch in range(1, s.max_epochs + 1):
        model.train()
        rows = _cut(train, s.max_history, rng, s.batch_size)
        rows.sort(key=len)
        starts = rng.permutation(np.arange(0, len(rows), s.batch_size))
        for first in starts.tolist():
            batch = _pad(rows[first : first + s.batch_size], len(item_ids)).to(device)
            learned = batch[:, 1:] != len(item_ids)
            states = model(batch[:, :-1])[learned]
            loss = nn.functional.cross_entropy(model.scores(states), batch[:, 1:][learned])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 5:
            continue
        scores = sasrec_scores(model, seen)
        for row, history in enumerate(seen):
            scores[row, history] = -np.inf
        rank = (scores > scores[np.arange(len(targets)), targets][:, None]).sum(1) + 1
        value = float(np.where(rank <= 10, 1 / np.log2(rank + 1), 0).mean())
        if value > best:
            best, best_epoch, waited = value, epoch, 0
            best_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        else:
            waited += 1
        if epoch % 20 == 0:
            spent = time.perf_counter() - began
            say(f"  SASRec epoch {epoch}: NDCG@10 on validation {value:.4f}, best {best:.4f} ({spent:.0f} s)")
        if waited >= s.patience:
            break
    model.load_state_dict(best_state)
    seconds = time.perf_counter() - began
    return model.eval(), {
        "epochs": epoch,
        "best_epoch": best_epoch,
        "valid_ndcg@10": best,
        "train_s": round(seconds, 1),
    }
