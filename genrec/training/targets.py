"""What the token at a label is told apart from, and what a teacher says should come there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from genrec.core.errors import RecipeError
from genrec.indexing import ItemIndex
from genrec.models.loss import rows_at_once
from genrec.models.sequence import SequenceModel, taken_before


class ItemTargets:
    """Reads the items of a row, and turns them into what the loss needs at each identifier label.

    ``excluded``: where a user takes no item twice, ranking leaves out the items of the history. The loss
    then leaves them out too: an identifier token below which every item is in the row's history already is
    no candidate at a label, unless it is the label. So training maximises the probability that ranking
    sorts by, and nothing is spent on learning that what was seen does not come again. This is genrec's own.

    ``soft_targets``: at a token of level l of an item's code, the teachers' distribution over all items
    (but those excluded), given the items before in the row, is restricted to those that share the code's
    first tokens and added up by their next token. The distribution of several teachers is the mean of
    theirs. Knowledge distillation is Hinton et al. (2015); the marginalisation over codes is genrec's own.
    An item without a predecessor in its row has its own token as the whole target.

    Args:
        index: The items' codes.
        first_id: Token id of the index's first token.
        exclude_history: Whether ``excluded`` is made.
        teachers: Whose distributions ``soft_targets`` are; with none there are no soft targets.
    """

    def __init__(
        self, index: ItemIndex, first_id: int, exclude_history: bool, teachers: Sequence[SequenceModel] = ()
    ) -> None:
        self.index, self.first_id, self.exclude_history = index, first_id, exclude_history
        self.teachers = [teacher.eval() for teacher in teachers]
        trie = index.trie_of_tokens
        self._leaf_item = torch.from_numpy(trie.leaf_item).long()
        leaves = torch.from_numpy(trie.leaf_of_item).long()
        self._leaf_of_item = torch.cat([leaves, torch.tensor([len(index.codes)])])
        column = {token: number for number, token in enumerate(index.tokens)}
        self._item = {
            tuple(first_id + column[token] for token in code): row
            for row, code in enumerate(index.codes.values())
        }
        # One row more than there are items, for padding: it has no token, so that it matches nothing.
        size = (len(index.codes) + 1, trie.depth)
        self._token, self._prefix = torch.full(size, -1), torch.full(size, -1)
        self._num_below = torch.zeros(size, dtype=torch.int32)
        for row, code in enumerate(index.codes.values()):
            numbers = [column[token] for token in code]
            for level, number in enumerate(numbers):
                node, child = trie.find(numbers[:level]), trie.find(numbers[: level + 1])
                assert node is not None
                assert child is not None
                self._token[row, level], self._prefix[row, level] = number, node
                self._num_below[row, level] = int(trie.leaf_end[child] - trie.leaf_start[child])

    def check(self, max_history: int) -> None:
        """Raises RecipeError if rows may have more items than a teacher reads."""
        for teacher in self.teachers:
            if max_history > teacher.settings.max_history:
                raise RecipeError(
                    f"tasks.max_history={max_history} is more than the {teacher.settings.max_history} items "
                    f"that the teacher reads. Lower it, raise {teacher.kind}.max_history, or set "
                    "train.teacher=none."
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
    def of(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns ``excluded`` and ``soft_targets``, ``(learned identifier tokens, new tokens)``, as asked for.

        Rows come in the order of the labels.

        Args:
            inputs: A batch with ``labels`` and, ``(batch, ...)``, the padded ``items`` and ``slots``.
        """
        device = inputs["labels"].device
        self._token, self._prefix = self._token.to(device), self._prefix.to(device)
        self._num_below = self._num_below.to(device)
        labels, slots, items = inputs["labels"][:, 1:], inputs["slots"][:, 1:], inputs["items"]
        rows, places = torch.nonzero(labels >= self.first_id, as_tuple=True)
        slot, token = slots[rows, places], labels[rows, places] - self.first_id
        target = items[rows, slot]
        level = (self._token[target] == token[:, None]).long().argmax(1)
        num_items, num_tokens = len(self.index.codes), len(self.index.tokens)
        tokens_are_items = self.index.trie_of_tokens.depth == 1 and not self.index.shared

        taken = taken_before(items, rows, slot, num_items)
        found = {}
        if self.exclude_history and tokens_are_items:
            out = torch.zeros(len(rows), num_tokens + 1, dtype=torch.bool, device=device)
            column = self._token[taken, 0]
            found["excluded"] = out.scatter_(1, column.masked_fill(column < 0, num_tokens), True)[:, :-1]
        elif self.exclude_history:
            # An item taken twice counts once: sorted, its other copies become padding.
            once = taken.sort(1).values
            again = torch.nn.functional.pad(once[:, 1:] == once[:, :-1], (1, 0))
            once = once.masked_fill(again, num_items)
            same_prefix = self._prefix[once, level[:, None]] == self._prefix[target, level][:, None]
            column = torch.where(same_prefix, self._token[once, level[:, None]], num_tokens)
            count = torch.zeros(len(rows), num_tokens + 1, dtype=torch.int32, device=device)
            count.scatter_add_(1, column, torch.ones_like(column, dtype=torch.int32))
            below = torch.ones_like(count).scatter_(1, column, self._num_below[once, level[:, None]])
            found["excluded"] = (count == below)[:, :num_tokens]
        if self.teachers:
            soft = torch.zeros(len(rows), num_tokens, device=device)
            known = slot > 0
            soft[torch.nonzero(~known).flatten(), token[~known]] = 1.0
            if bool(known.any()):
                # The tokens of one item share a position, for which the teacher is asked once.
                place, label = torch.unique(rows[known] * items.shape[1] + slot[known], return_inverse=True)
                first = torch.zeros_like(place).scatter_(0, label, torch.nonzero(known).flatten())
                left_out = taken[first] if self.exclude_history else None
                if tokens_are_items and len(self.index.tokens) == num_items:  # and leaves are, in their order
                    self._add_probabilities(soft, first, items, rows[first], slot[first], left_out)
                else:
                    of_leaf = torch.zeros(len(first), num_items, device=device)
                    here = torch.arange(len(first), device=device)
                    self._add_probabilities(of_leaf, here, items, rows[first], slot[first], left_out)
                    soft[known] = self._below(of_leaf, label, self._prefix[target, level][known])
            found["soft_targets"] = soft
        return found

    def _add_probabilities(
        self,
        into: torch.Tensor,
        at: torch.Tensor,
        items: torch.Tensor,
        rows: torch.Tensor,
        slots: torch.Tensor,
        left_out: torch.Tensor | None,
    ) -> None:
        """Adds the teachers' probabilities of the trie's leaves to rows ``at`` of ``into``, ``(any, items)``.

        Args:
            into: What is added to.
            at: ``(places,)`` its rows.
            items: ``(batch, length)``.
            rows: ``(places,)`` rows of ``items``.
            slots: ``(places,)`` whose items before are the history.
            left_out: ``(places, any number)`` items that are no candidates, or None.
        """
        device = items.device
        leaf_item = self._leaf_item.to(device)
        if left_out is not None:
            left_out = self._leaf_of_item.to(device)[left_out]
        # A stretch at a time in memory that is kept, as in genrec.models.loss.
        size = rows_at_once(len(leaf_item), device)
        for teacher in self.teachers:
            teacher.to(device)
            states, weight = teacher(items)[rows, slots - 1], teacher.items.weight[leaf_item]
            scores = states.new_empty(min(size, len(states)), len(weight))
            mask = torch.empty(len(scores), len(weight) + 1, dtype=torch.bool, device=device)
            for first in range(0, len(states), size):
                part = slice(first, first + size)
                scores = scores[: len(states[part])]
                torch.mm(states[part], weight.T, out=scores)
                if left_out is not None:
                    mask = mask[: len(scores)]
                    scores.masked_fill_(
                        mask.fill_(False).scatter_(1, left_out[part], True)[:, :-1], float("-inf")
                    )
                torch.softmax(scores, 1, out=scores)
                into.index_add_(0, at[part], scores, alpha=1 / len(self.teachers))

    def _below(self, probabilities: torch.Tensor, label: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        """Returns ``(labels, new tokens)`` how the probability below each prefix is shared by its next tokens.

        Args:
            probabilities: ``(places, items)`` of the trie's leaves.
            label: ``(labels,)`` row of ``probabilities``.
            prefix: ``(labels,)`` node.
        """
        trie, device = self.index.trie_of_tokens, probabilities.device
        # In float64, since the share of a small branch is a difference of two sums near 1.
        mass = torch.nn.functional.pad(probabilities.double().cumsum(1), (1, 0))
        start = torch.from_numpy(trie.child_start).to(device)
        count = start[prefix + 1] - start[prefix]
        edge = torch.arange(int(count.max()), device=device)
        real = edge < count[:, None]
        edge = (start[prefix][:, None] + edge).clamp(max=len(trie.child_token) - 1)
        # The trie's integers are small; torch gathers by int64 alone.
        ends = torch.from_numpy(trie.leaf_end).to(device)[edge + 1].long()
        starts = torch.from_numpy(trie.leaf_start).to(device)[edge + 1].long()
        part = (mass[label[:, None], ends] - mass[label[:, None], starts]).clamp(min=0) * real
        part = part / part.sum(1, keepdim=True).clamp(min=1e-300)
        tokens = torch.from_numpy(trie.child_token).to(device)[edge].long()
        shares = torch.zeros(len(label), len(self.index.tokens), device=device)
        return shares.scatter_add_(1, tokens, part.float())
