"""Beam search under the trie of all items: every result exists, is distinct and is allowed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch

from genrec.core.progress import progress
from genrec.data_prep import ItemId
from genrec.indexing import ItemIndex
from genrec.models.recommender_model import RecommenderModel
from genrec.tasks import Renderer

Ranking = list[tuple[ItemId, float]]


class ConstrainedDecoder:
    """Ranks items for histories with a tuned model.

    A prompt is encoded once. At each level the beams' next tokens are scored among the identifier tokens
    of that level, without those below which every item is excluded, and only children of the trie are
    kept. So the score of an item is the sum of ``log p(token | prompt, tokens before, level, not
    excluded)``, which is what training maximises; it is not renormalised over the trie. Equal scores
    are ordered by the rank of the prefix, then by token. Items that share a code have its score, and come in
    catalogue order.
    """

    def __init__(self, model: RecommenderModel, renderer: Renderer) -> None:
        self.model, self.renderer = model, renderer
        self.index: ItemIndex = renderer.index
        self.item_ids = self.index.item_ids
        trie = self.index.trie_of_tokens
        device = next(model.parameters()).device
        self.depth = trie.depth

        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).to(device)

        self._child_start, self._child_token = tensor(trie.child_start), tensor(trie.child_token)
        self._node_item = tensor(trie.node_item)
        self._leaf_start, self._leaf_end = tensor(trie.leaf_start), tensor(trie.leaf_end)
        self._leaf_of_item = tensor(trie.leaf_of_item).long()
        self._position = {item: row for row, item in enumerate(self.item_ids)}

    @torch.inference_mode()
    def rank(
        self,
        histories: Sequence[Sequence[ItemId]],
        k: int,
        exclude: Sequence[Collection[ItemId]] | None = None,
        beams: int | None = None,
    ) -> list[Ranking]:
        """Returns, for each history, the best allowed items with their scores, best first.

        A list has ``min(k, allowed items)`` entries: with at least k beams no branch without an allowed
        item is ever kept, so k items remain whatever is excluded.

        Args:
            histories: Items each user took, oldest first; may be empty.
            k: Items wanted.
            exclude: Items that must not come, for each history; None excludes nothing.
            beams: Prefixes kept at each level, at least k; default ``max(k, 20)`` (LC-Rec's width).

        Raises:
            UnknownItemError: If a history or an exclusion names an unknown item.
        """
        if not histories:
            return []
        width = max(k, beams or 20)
        prompts = [self.renderer.prompt_ids(history) for history in histories]
        words = None
        if self.model.whole_words is not None:
            words = [self.renderer.whole_word_ids(prompt) for prompt in prompts]
        device = self._node_item.device
        batch = len(prompts)
        hidden, prefixes = self.model.read(prompts, words, keep=self.depth > 1)

        # allowed_before[b, n]: allowed items among the first n leaves, so that a subtraction counts them
        # below any node.
        allowed = torch.ones(batch, len(self.item_ids), dtype=torch.int32, device=device)
        for row, items in enumerate(exclude or []):
            leaves = [self._position[item] for item in items if self.index.code(item)]
            if leaves:
                allowed[row, self._leaf_of_item[torch.tensor(leaves, device=device)]] = 0
        allowed_before = torch.nn.functional.pad(allowed.cumsum(1), (1, 0))

        nodes = torch.zeros(batch, 1, dtype=torch.long, device=device)
        scores = torch.zeros(batch, 1, device=device)
        rows = torch.arange(batch, device=device)[:, None]
        for level in range(self.depth):
            start = self._child_start[nodes]
            count = self._child_start[nodes + 1] - start
            edge = torch.arange(int(count.max()), device=device)
            real = edge < count[..., None]
            edge = (start[..., None] + edge).clamp(max=len(self._child_token) - 1)
            # The trie's integers are small; torch gathers by int64 alone.
            tokens, children = self._child_token[edge].long(), edge + 1
            left = allowed_before[rows[..., None], self._leaf_end[children].long()]
            left = left - allowed_before[rows[..., None], self._leaf_start[children].long()]
            gone = real & (left <= 0)
            excluded = torch.zeros(*nodes.shape, len(self.index.tokens), dtype=torch.bool, device=device)
            excluded[(*torch.nonzero(gone, as_tuple=True)[:2], tokens[gone])] = True
            log_probs = self.model.level_log_probs(hidden, level, excluded)
            grown = (scores[..., None] + log_probs.gather(-1, tokens).float()).masked_fill(
                ~real | gone, float("-inf")
            )
            # A finished item has no children; it stays in the race as itself.
            ended = scores.masked_fill(self._node_item[nodes] < 0, float("-inf"))[..., None]
            every_score = torch.cat([grown, ended], -1).flatten(1)
            every_node = torch.cat([children, nodes[..., None]], -1).flatten(1)
            every_token = torch.cat([tokens, torch.zeros_like(nodes)[..., None]], -1).flatten(1)
            scores, order = torch.sort(every_score, dim=1, descending=True, stable=True)
            scores, order = scores[:, :width], order[:, :width]
            parents = order // (grown.shape[-1] + 1)
            nodes = every_node.gather(1, order)
            if level + 1 < self.depth:
                prefixes.select((rows * hidden.shape[1] + parents).flatten())
                token = (every_token.gather(1, order) + self.model.first_id).flatten()
                hidden = self.model.go_on(prefixes, token).view(batch, parents.shape[1], -1)
        finished = [
            [(node, score) for node, score in zip(found, values, strict=True) if score > float("-inf")]
            for found, values in zip(nodes.tolist(), scores.tolist(), strict=True)
        ]
        if not self.index.shared:
            node_item = self.index.trie_of_tokens.node_item
            return [
                [(self.item_ids[node_item[node]], score) for node, score in found][:k] for found in finished
            ]
        free = allowed.bool()[:, self._leaf_of_item].cpu().numpy()  # by item
        return [
            [
                (self.item_ids[item], score)
                for node, score in found
                for item in self.index.trie_of_tokens.items_at(node)
                if free[row, item]
            ][:k]
            for row, found in enumerate(finished)
        ]

    def rank_all(
        self,
        histories: Sequence[Sequence[ItemId]],
        k: int,
        exclude: Sequence[Collection[ItemId]] | None = None,
        beams: int | None = None,
        batch_size: int = 32,
        label: str = "ranking",
    ) -> list[Ranking]:
        """Returns ``rank`` of any number of histories, in batches of near lengths, behind a progress bar of this label.

        An empty label shows none.
        """
        order = np.argsort([len(history) for history in histories], kind="stable")
        starts = range(0, len(order), batch_size)
        results: list[Ranking] = [[]] * len(order)

        def batches() -> Iterator[np.ndarray]:
            for start in starts:
                yield order[start : start + batch_size]

        for rows in progress(batches(), len(starts), label) if label else batches():
            found = self.rank(
                [histories[row] for row in rows],
                k,
                [exclude[row] for row in rows] if exclude is not None else None,
                beams,
            )
            for row, ranking in zip(rows, found, strict=True):
                results[row] = ranking
        return results
