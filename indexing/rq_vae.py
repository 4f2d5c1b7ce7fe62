"""RQ-VAE: semantic identifiers from an autoencoder whose middle is quantised level by level."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from genrec.core.errors import require
from genrec.core.files import atomic_path, hash_array, hash_value
from genrec.core.progress import say
from genrec.data_prep import ItemCatalog, ItemId
from genrec.indexing.codes import Code, spell
from genrec.indexing.collisions import settle
from genrec.indexing.index import ItemIndex
from genrec.indexing.indexer import Indexer, IndexInputs
from genrec.indexing.quality import (
    code_quality,
    collaborative_purity,
    finite,
    groups_by_prefix,
    semantic_purity,
)
from genrec.indexing.rq_kmeans import assign, balanced_kmeans, level_distances, quantize, squared_distances
from genrec.indexing.settings import IndexSettings
from genrec.indexing.sinkhorn import sinkhorn
from genrec.indexing.vectors import cooccurrence, cooccurrence_vectors, item_vectors, new_item_vectors

if TYPE_CHECKING:
    import torch

DIVERSITY_GROUPS = 10  # LETTER's


class RQVAE(Indexer):
    """``levels`` tokens from a residual-quantised variational autoencoder of item vectors.

    An MLP encodes the vectors; the code at level h is the nearest of ``codebook_size`` learned vectors to what the
    levels before left over; a mirrored MLP decodes their sum. Loss: squared error of the reconstruction, and the
    mean over levels of [ |sg(r) - e|^2 + beta |r - sg(e)|^2 ], gradients passed straight through. Codebooks start
    from residual k-means of the encoded items. At the last level assignment in training is by Sinkhorn's uniform
    transport (``rq_vae.epsilon``), so that items which agree on all codes before are spread. A code that no item
    took in an epoch starts again at a residual of its level. Every ``check_epochs`` the codes of all items are
    looked at, and of the second half of the training the state with the fewest collisions is kept. Equal codes that remain are settled by the
    collision policy. New items are encoded, take the nearest codes, and then the policy among those that are there.

    LETTER's terms are options: ``collaborative_weight`` times the cross-entropy of telling an item's collaborative
    vector from those of the batch by the dot product with its quantised vector; ``diversity_weight`` times, at each
    level, the cross-entropy of telling another code of the same group of codes (10 groups of equal size, made again
    each epoch) from all but the own by the dot product with the own.

    Source: Rajput et al., TIGER, NeurIPS 2023; Zheng et al., LC-Rec, ICDE 2024 (loss, initialisation, uniform mapping
    and its released settings); Wang et al., LETTER, CIKM 2024. Differs: vectors are centred and scaled to unit
    variance, without which sentence embeddings of length 1 make the reconstruction a thousandth of the loss; the
    residual is r - sg(e), so that commitment reaches the encoder at every level; k-means starts from all items; dead
    codes start again.
    """

    has_codebooks = True

    def build(self, inputs: IndexInputs) -> ItemIndex:
        """Returns the index of every item of the catalogue.

        Raises:
            IndexingError: If a vector is not finite, or the policy cannot settle the collisions.
            MissingExtraError: If torch is not installed.
        """
        require("torch", "train")
        settings = inputs.settings
        vectors, state = item_vectors(inputs)
        state["mean"] = vectors.mean(0)
        state["spread"] = np.array(float(vectors.std()) or 1.0)
        scaled = _scale(vectors, state)
        trainer = _Trainer(scaled, inputs)
        trainer.run()
        state |= trainer.best
        encoded = _encode(scaled, state)
        codes = assign(encoded, state["codebooks"])
        distances = level_distances(encoded, codes, state["codebooks"])
        settled = settle(settings.collisions, codes, distances, settings.codebook_size)
        return ItemIndex(
            "rq_vae",
            dict(zip(inputs.items.item_ids, settled.codes, strict=True)),
            settled.report(settings.collisions, codes) | {"training": trainer.history},
            settings,
            state,
            shared=settings.collisions == "allow",
        )

    def takes_collaborative(self, settings: IndexSettings) -> bool:
        """Returns whether collaborative vectors are quantised, or codes are pulled to them."""
        return settings.vectors != "text" or settings.rq_vae.collaborative_weight > 0

    def extend(self, index: ItemIndex, items: ItemCatalog) -> dict[ItemId, Code]:
        """Returns the codes of the nearest vectors, settled among the codes that are there."""
        settings, state = index.settings, index.state
        assert settings is not None
        vectors = new_item_vectors(items, settings, state)
        encoded = _encode(_scale(vectors, state), state)
        codes = assign(encoded, state["codebooks"])
        distances = level_distances(encoded, codes, state["codebooks"])
        settled = settle(settings.collisions, codes, distances, settings.codebook_size, index.codes)
        return dict(zip(items.item_ids, settled.codes, strict=True))


def _scale(vectors: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    return ((vectors - state["mean"]) / state["spread"]).astype(np.float32)


def _encode(scaled: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """Returns what the encoder makes of vectors, ``(items, code_size)``; without torch, so that indices extend."""
    hidden, layer = scaled, 0
    while f"encoder_{layer}" in state:
        if layer:
            hidden = np.maximum(hidden, 0)
        hidden = hidden @ state[f"encoder_{layer}"] + state[f"encoder_bias_{layer}"]
        layer += 1
    return hidden


class _Trainer:
    """Trains encoder, decoder and codebooks; where it is can be written down after any look, and taken up again."""

    def __init__(self, scaled: np.ndarray, inputs: IndexInputs) -> None:
        import torch

        self.inputs, self.settings, self.options = inputs, inputs.settings, inputs.settings.rq_vae
        s, levels, size = self.options, self.settings.levels, self.settings.codebook_size
        self.scaled, self.data = scaled, torch.from_numpy(scaled)
        self.generator = torch.Generator().manual_seed(self.settings.seed)
        self.rng = np.random.default_rng(self.settings.seed)
        widths = [scaled.shape[1], *s.hidden, s.code_size]
        self.encoder, self.decoder = _mlp(widths, self.generator), _mlp(widths[::-1], self.generator)
        with torch.no_grad():
            _, starts = quantize(self.encoder(self.data).numpy(), levels, size, self.settings.seed)
        # With fewer items than codes the rest start near nothing, and are taken by no one at first.
        books = torch.randn(levels, size, s.code_size, generator=self.generator) * 0.01
        for level, values in enumerate(starts):
            books[level, : len(values)] = torch.from_numpy(values)
        self.codebooks = torch.nn.Parameter(books)
        parameters = [*self.encoder.parameters(), *self.decoder.parameters(), self.codebooks]
        self.optimizer = torch.optim.AdamW(parameters, lr=s.learning_rate, weight_decay=s.weight_decay)
        steps = max(1, s.epochs * math.ceil(len(scaled) / s.batch_size))
        warm_up = max(1, steps // 20)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up)),
        )
        self.counts = cooccurrence(inputs.items, inputs.train, self.settings.window)
        self.collaborative = None
        if s.collaborative_weight:
            self.collaborative = torch.tensor(_collaborative(inputs, self.counts), dtype=torch.float32)
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, np.ndarray] = {}

    def run(self) -> None:
        """Trains what is left of the epochs; ``best`` and ``history`` are the outcome."""
        s = self.options
        self._resume()
        if not self.history:
            self._look()
        while self.epoch < s.epochs:
            self._epoch()
            self.epoch += 1
            if self.epoch % s.check_epochs == 0 or self.epoch == s.epochs:
                self._look()
                self._save()

    def _epoch(self) -> None:
        import torch

        s, size = self.options, self.settings.codebook_size
        groups = None
        if s.diversity_weight:
            groups = [_groups(book, self.settings.seed) for book in self.codebooks.detach().numpy()]
        used = torch.zeros(self.settings.levels, size)
        order = torch.randperm(len(self.data), generator=self.generator)
        for rows in order.split(s.batch_size):
            loss, codes, residuals = self._loss(rows, groups)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], 1.0)
            self.optimizer.step()
            self.schedule.step()
            for level in range(self.settings.levels):
                used[level] += torch.bincount(codes[:, level], minlength=size)
        with torch.no_grad():
            for level in range(self.settings.levels):
                dead = torch.nonzero(used[level] == 0).flatten()
                chosen = torch.randint(len(residuals[level]), (len(dead),), generator=self.generator)
                self.codebooks[level, dead] = residuals[level][chosen]

    def _loss(self, rows: torch.Tensor, groups: list[np.ndarray] | None) -> tuple[torch.Tensor, ...]:
        """Returns the loss of a batch, its codes ``(batch, levels)`` and residuals ``(levels, batch, code_size)``."""
        import torch
        from torch.nn import functional

        s, levels = self.options, self.settings.levels
        batch = self.data[rows]
        encoded = self.encoder(batch)
        residual, total, quantiser = encoded, torch.zeros_like(encoded), encoded.new_zeros(())
        codes, residuals = [], []
        for level in range(levels):
            book = self.codebooks[level]
            cost = squared_distances(residual.detach().numpy(), book.detach().numpy())
            if level == levels - 1 and s.epsilon > 0:
                cost += (residual.detach().numpy() ** 2).sum(1, keepdims=True)
                chosen = torch.from_numpy(sinkhorn(cost, s.epsilon).argmax(1))
            else:
                chosen = torch.from_numpy(cost.argmin(1))
            taken = book[chosen]
            quantiser = quantiser + functional.mse_loss(taken, residual.detach())
            quantiser = quantiser + s.commitment * functional.mse_loss(residual, taken.detach())
            if groups is not None:
                quantiser = quantiser + s.diversity_weight * _diversity(book, chosen, groups[level], self.rng)
            codes.append(chosen)
            residuals.append(residual.detach())
            residual, total = residual - taken.detach(), total + taken
        through = encoded + (total - encoded).detach()
        loss = functional.mse_loss(self.decoder(through), batch) + quantiser / levels
        if self.collaborative is not None:
            scores = through @ self.collaborative[rows].T
            told = functional.cross_entropy(scores, torch.arange(len(rows)))
            loss = loss + s.collaborative_weight * told
        return loss, torch.stack(codes, 1), torch.stack(residuals)

    def _look(self) -> None:
        """Logs how codes are used and how pure they are, and keeps the state with the fewest collisions."""
        arrays = self._arrays()
        codes = spell(assign(_encode(self.scaled, arrays), arrays["codebooks"]))
        quality = code_quality(codes)
        first = groups_by_prefix(codes, 1)
        semantic, collaborative = (
            semantic_purity(self.scaled, first),
            collaborative_purity(self.counts, first),
        )
        entry = {
            "epoch": self.epoch,
            "collision_rate": quality["collision_rate"],
            "usage": [level["tokens"] / self.settings.codebook_size for level in quality["levels"]],
            "perplexity": [level["perplexity"] for level in quality["levels"]],
            "entropy": [level["entropy"] for level in quality["levels"]],
            "semantic_purity": finite(semantic[0]),
            "semantic_purity_all": finite(semantic[1]),
            "collaborative_purity": finite(collaborative[0]),
            "collaborative_purity_all": finite(collaborative[1]),
        }
        together = collaborative[0] / collaborative[1] if collaborative[1] else float("nan")
        say(
            f"  rq_vae epoch {self.epoch}/{self.options.epochs}: {entry['collision_rate']:.2%} collide; used "
            f"{' '.join(f'{share:.0%}' for share in entry['usage'])}, perplexity "
            f"{' '.join(f'{value:.0f}' for value in entry['perplexity'])}; items of one first token: cosine "
            f"{semantic[0]:.2f} (all {semantic[1]:.2f}), taken together {together:.1f} times as often as any two"
        )
        # Codes of an untrained encoder are spread best of all and say least, so that the first half does not count.
        rivals = [e["collision_rate"] for e in self.history if 2 * e["epoch"] >= self.options.epochs]
        if entry["collision_rate"] <= min(rivals, default=1.0):
            self.best = arrays
        self.history.append(entry)

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {"codebooks": self.codebooks.detach().numpy().copy()}
        linear = [module for module in self.encoder if hasattr(module, "weight")]
        for number, module in enumerate(linear):
            arrays[f"encoder_{number}"] = module.weight.detach().numpy().T.copy()
            arrays[f"encoder_bias_{number}"] = module.bias.detach().numpy().copy()
        return arrays

    @property
    def _about(self) -> str:
        return hash_value(
            [
                self.settings.model_dump(mode="json"),
                hash_array(self.scaled),
                hash_array(self.collaborative.numpy()) if self.collaborative is not None else None,
            ]
        )

    def _save(self) -> None:
        import torch

        if self.inputs.state is None:
            return
        state = {
            "about": self._about,
            "epoch": self.epoch,
            "history": self.history,
            "best": self.best,
            "weights": [self.encoder.state_dict(), self.decoder.state_dict(), self.codebooks.data],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "rng": self.rng.bit_generator.state,
        }
        with atomic_path(self.inputs.state) as part:
            torch.save(state, part)

    def _resume(self) -> None:
        import torch

        if self.inputs.state is None or not self.inputs.state.exists():
            return
        state = torch.load(self.inputs.state, weights_only=False)  # written by us, into our run directory
        if state["about"] != self._about:
            return
        self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]
        encoder, decoder, self.codebooks.data = state["weights"]
        self.encoder.load_state_dict(encoder)
        self.decoder.load_state_dict(decoder)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        self.rng.bit_generator.state = state["rng"]
        say(f"  rq_vae goes on after epoch {self.epoch}")


def _mlp(widths: list[int], generator: torch.Generator) -> Any:
    """Returns linear layers with ReLU between, weights Xavier-normal, biases 0 (LC-Rec's)."""
    import torch

    layers: list[torch.nn.Module] = []
    for one, two in pairwise(widths):
        linear = torch.nn.Linear(one, two)
        torch.nn.init.xavier_normal_(linear.weight, generator=generator)
        torch.nn.init.zeros_(linear.bias)
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def _collaborative(inputs: IndexInputs, counts: Any) -> np.ndarray:
    """Returns ``(items, code_size)`` vectors that LETTER's term holds codes to, of mean length 1.

    Source: LETTER takes the 32 dimensions of a SASRec of that width. Vectors of another width are rotated and cut
    to their leading principal axes.
    """
    size = inputs.settings.rq_vae.code_size
    if inputs.collaborative is None:
        found = cooccurrence_vectors(counts, size, inputs.settings.seed)
    else:
        left, values, _ = np.linalg.svd(np.asarray(inputs.collaborative, np.float64), full_matrices=False)
        found = np.zeros((len(left), size))
        found[:, : min(size, len(values))] = (left * values)[:, :size]
    return found / (float(np.sqrt((found**2).sum(1).mean())) or 1.0)


def _groups(book: np.ndarray, seed: int) -> np.ndarray:
    """Returns a group of each code: 10 clusters of equal size."""
    return balanced_kmeans(book, DIVERSITY_GROUPS, seed)


def _diversity(
    book: torch.Tensor, chosen: torch.Tensor, groups: np.ndarray, rng: np.random.Generator
) -> torch.Tensor:
    """Returns LETTER's diversity loss of one level: another code of the group is told from all but the own."""
    import torch

    members = [np.flatnonzero(groups == group) for group in groups]
    own = chosen.numpy()
    others = [members[code][members[code] != code] for code in own]
    kept = np.array([len(other) > 0 for other in others])
    if not kept.any():
        return book.new_zeros(())
    positive = np.array([rng.choice(other) for other in others if len(other)])
    own = own[kept]
    scores = book[own] @ book.T
    scores = scores.scatter(1, torch.from_numpy(own)[:, None], float("-inf"))
    return torch.nn.functional.cross_entropy(scores, torch.from_numpy(positive))
