"""What a sequence recommender knows, told to the language model while it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from genrec.core.errors import RecipeError
from genrec.indexing import ItemIndex
from genrec.models.sasrec import SASRec


class Distiller:
    """Turns a teacher's scores of items into target distributions over identifier tokens.

    At a token of level l of an item's code, the teacher's distribution over all items, given the items that
    came before in the same row, is restricted to those that share the code's first tokens and added up by
    their next token. Knowledge distillation is Hinton et al. (2015); the marginalisation over codes is
    genrec's own. An item without a predecessor in its row has its own token as the whole target.
    """

    def __init__(self, teacher: SASRec, index: ItemIndex, first_id: int) -> None:
        trie = index.trie_of_tokens
        self.teacher, self.index, self.first_id = teacher.eval(), index, first_id
        column = {token: number for number, token in enumerate(index.tokens)}
        self._item = {
            tuple(first_id + column[token] for token in code): row
            for row, code in enumerate(index.codes.values())
        }
        size = (len(index.codes), trie.depth)
        self._token, self._prefix = torch.full(size, -1), torch.full(size, -1)
        for row, code in enumerate(index.codes.values()):
            numbers = [column[token] for token in code]
            for level, number in enumerate(numbers):
                node = trie.find(numbers[:level])
                assert node is not None
                self._token[row, level], self._prefix[row, level] = number, node

    def check(self, max_history: int) -> None:
        """Raises RecipeError if rows may have more items than the teacher reads."""
        if max_history > self.teacher.settings.max_history:
            raise RecipeError(
                f"tasks.max_history={max_history} is more than the {self.teacher.settings.max_history} items "
                "that the teacher reads. Lower it, or set train.teacher=none."
            )

    def read_row(self, ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]]:
        """Returns the items of a row, and for each token which of them it is learned for, -1 for none."""
        items: list[int] = []
        code: list[int] = []
        slots = [-1] * len(ids)
        for place, token in enumerate(ids):
            if token < self.first_id:
                code = []
                continue
            code.append(token)
            if labels[place] != -100:
                slots[place] = len(items)
            if (item := self._item.get(tuple(code))) is not None:
                items.append(item)
                code = []
        return items, slots

    @torch.no_grad()
    def targets(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Returns ``(learned identifier tokens, new tokens)`` distributions, in the order of the labels.

        Args:
            inputs: A batch with ``labels`` and, ``(batch, ...)``, the padded ``items`` and ``slots``.
        """
        device = inputs["labels"].device
        self.teacher.to(device)
        self._token, self._prefix = self._token.to(device), self._prefix.to(device)
        labels, slots, items = inputs["labels"][:, 1:], inputs["slots"][:, 1:], inputs["items"]
        rows, places = torch.nonzero(labels >= self.first_id, as_tuple=True)
        slot, token = slots[rows, places], labels[rows, places] - self.first_id
        result = torch.zeros(len(rows), len(self.index.tokens), device=device)
        known = slot > 0
        result[torch.nonzero(~known).flatten(), token[~known]] = 1.0
        if not bool(known.any()):
            return result
        rows, slot, token = rows[known], slot[known], token[known]
        states = self.teacher(items)[rows, slot - 1]
        probabilities = self.teacher.scores(states).softmax(-1)
        item = items[rows, slot]
        level = (self._token[item] == token[:, None]).long().argmax(1)
        allowed = self._prefix[item, level][:, None] == self._prefix[:, level].T
        columns = self._token[:, level].T.clamp(min=0)
        soft = torch.zeros(len(rows), len(self.index.tokens), device=device)
        soft.scatter_add_(1, columns, probabilities * allowed)
        result[known] = soft / soft.sum(1, keepdim=True).clamp(min=1e-30)
        return result
