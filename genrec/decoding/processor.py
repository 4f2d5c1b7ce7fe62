"""The trie of all items for those who stay with transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from transformers import LogitsProcessor

from genrec.core.errors import ModelError
from genrec.decoding.beam import Scores
from genrec.indexing import ItemTrie, Restriction


class TrieLogitsProcessor(LogitsProcessor):
    """Lets ``generate`` write codes of items and nothing else, whatever the search, the batch and the padding.

    Where each sequence stands in the trie is found again at every call, by one step for each token behind the prompt,
    for all sequences at once: ``generate`` orders its beams anew between two calls and says nothing of it. Behind a whole
    code only the end token is allowed, and so it is where nothing else may come: behind an end token, on a beam that beam
    search carries along without a candidate, and for a request that allows no item.

    What comes out for allowed tokens, the rest being minus infinity:

    - ``"vocabulary"``: what came in, as ``prefix_allowed_tokens_fn`` leaves it: in beam search the log-probability among all
      tokens, otherwise the logit; the end token behind a code counts, too.
    - ``"trained"``: the log-probability among the identifier tokens of the level, or without ``level_tokens`` among all, but
      for those below which every item is excluded: what training maximises, and ``ConstrainedDecoder`` adds up.
    - ``"allowed"``: the log-probability among the allowed tokens.

    With the last two the end token behind a code costs nothing, so that a sequence has the score of its item.

    Args:
        trie: In ids of the tokenizer, as ``ItemIndex.trie(model.token_ids)``.
        end_token: Id of the token that ends a sequence.
        scores: As above.
        prompt_length: Tokens before the code, padding included: those of the padded prompts, or 1 for an
            encoder-decoder, whose decoder begins with its start token. None is the length at the first call; such a
            processor serves one call of ``generate``.
        restrictions: For each request of the batch what it allows (``ItemTrie.restrict``), None being everything;
            None for all of them allows everything.
        level_tokens: The ids of the identifier tokens of each level, for ``"trained"`` with a model that was trained with
            ``train.softmax_over=level``; None is ``vocabulary``.

    Raises:
        ModelError: If ``scores`` is none of these, or a restriction is of another trie. When called: if sequences are shorter than the prompt or not those of the call before, the batch does not divide
            by the requests, the model has no such tokens, or a score of an allowed token is NaN.
    """

    def __init__(
        self,
        trie: ItemTrie,
        end_token: int,
        *,
        scores: Scores = "vocabulary",
        prompt_length: int | None = None,
        restrictions: Sequence[Restriction | None] | None = None,
        level_tokens: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if scores not in get_args(Scores):
            raise ModelError(f"scores is one of {', '.join(get_args(Scores))}, got {scores!r}.")
        self.trie, self.end_token, self.scores = trie, end_token, scores
        self._start, self._one_call, self._seen = prompt_length, prompt_length is None, -1
        self._level_tokens = [np.sort(np.asarray(tokens)) for tokens in level_tokens or ()]
        self._highest = max(int(trie.child_token.max()), end_token)
        self._allowed_before: np.ndarray | None = None
        if restrictions is not None and any(restrictions):
            if any(r is not None and r.trie is not trie for r in restrictions):
                raise ModelError("A restriction is of another trie. Make it with restrict() of this one.")
            all_items = np.arange(trie.num_items + 1)
            self._allowed_before = np.stack(
                [all_items if r is None else r.allowed_before for r in restrictions]
            )

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns ``(sequences, vocabulary)`` scores, minus infinity where no item goes on so."""
        num_rows, vocabulary = scores.shape
        if vocabulary <= self._highest:
            raise ModelError(
                f"The trie, or its end token, has the token {self._highest}, the model only the tokens 0 to {vocabulary - 1}. "
                "Use the trie of this model's tokenizer."
            )
        written = self._written(input_ids)
        nodes = np.zeros(num_rows, np.int64)
        for tokens in written.T:
            nodes = self.trie.step(nodes, tokens)
        row, edge = self._edges(nodes)
        token = self.trie.child_token[edge].astype(np.int64)
        left_out = row[:0], token[:0]
        if self._allowed_before is not None:
            requests = len(self._allowed_before)
            if num_rows % requests:
                raise ModelError(
                    f"There are {num_rows} sequences for {requests} requests with restrictions: give one restriction a "
                    "prompt."
                )
            request, child = row // (num_rows // requests), edge + 1
            count = self._allowed_before[request, self.trie.leaf_end[child]]
            kept = count > self._allowed_before[request, self.trie.leaf_start[child]]
            left_out = row[~kept], token[~kept]
            row, token = row[kept], token[kept]
        ended = np.ones(num_rows, bool)
        ended[row] = False

        def there(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).to(scores.device)

        rows, ends = there(row), there(np.flatnonzero(ended))
        at = (rows, there(token))
        values = scores[at]
        if bool(values.isnan().any()):
            raise ModelError(
                "The model gives NaN for tokens of items. Its weights or its type of numbers are to blame: load it in "
                "float32 or bfloat16, and see that its files are whole."
            )
        if self.scores == "trained" and len(row):
            column, among = left_out[1], scores.clone()
            if self._level_tokens:
                # A sequence that goes on has not ended, so all of them stand at the same level.
                tokens = self._level_tokens[written.shape[1]]
                column, among = np.searchsorted(tokens, column), scores[:, there(tokens)]
            among[there(left_out[0]), there(column)] = float("-inf")
            values = values - among.logsumexp(-1)[rows]
        found = torch.full_like(scores, float("-inf"))
        found[at] = values
        if self.scores == "allowed":
            whole = found.logsumexp(-1, keepdim=True)
            found -= whole.masked_fill(whole.isneginf(), 0.0)  # where nothing is allowed but the end
        found[ends, self.end_token] = scores[ends, self.end_token] if self.scores == "vocabulary" else 0.0
        return found

    def _written(self, input_ids: torch.Tensor) -> np.ndarray:
        """Returns ``(sequences, tokens)`` what stands behind the prompt."""
        length = input_ids.shape[1]
        if self._start is None:
            self._start = length
        elif self._one_call and length != self._seen + 1:
            raise ModelError(
                f"A sequence of {length} tokens does not go on from one of {self._seen}: a processor without prompt_length "
                "serves one call of generate. Make a new one, or give prompt_length."
            )
        if length < self._start:
            raise ModelError(f"prompt_length is {self._start}, the sequences have only {length} tokens.")
        self._seen = length
        return input_ids[:, self._start :].cpu().numpy()

    def _edges(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the edges below nodes, and for each which of the nodes it is below; -1 has none."""
        inside = np.flatnonzero(nodes >= 0)
        first = self.trie.child_start[nodes[inside]].astype(np.int64)
        count = self.trie.child_start[nodes[inside] + 1] - first
        before = np.cumsum(count) - count
        return np.repeat(inside, count), np.arange(count.sum()) + np.repeat(first - before, count)
