"""New tokens done right: their rows are trained and saved, the old ones are neither touched nor saved.

The embedding of the backbone stays as it is. Beside it stands a small matrix of rows for the new
tokens, looked up for ids from ``first_id`` on; with tied embeddings the same matrix is the new part
of the output layer. (peft's trainable token indices copy the whole embedding at each step and save
it whole after a resize: 245 MB where the rows have 4.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

from genrec.core.errors import ModelError
from genrec.data_prep import ItemCatalog
from genrec.indexing import ItemIndex

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ExtendedEmbedding(nn.Module):
    """An input embedding whose ids from ``first_id`` on read from ``rows``, shape ``(new tokens, width)``."""

    def __init__(self, base: nn.Embedding, rows: nn.Parameter, first_id: int) -> None:
        super().__init__()
        self.base, self.rows, self.first_id = base, rows, first_id
        self.num_embeddings = first_id + len(rows)
        self.embedding_dim = base.embedding_dim

    @property
    def weight(self) -> torch.Tensor:
        """All rows as one matrix ``(vocabulary, width)``: old ones first."""
        return torch.cat([self.base.weight[: self.first_id], self.rows.to(self.base.weight.dtype)])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the vectors ``(..., width)`` of token ids ``(...)``."""
        new = ids >= self.first_id
        old_part = self.base(ids.masked_fill(new, 0))
        new_part = nn.functional.embedding((ids - self.first_id).clamp(min=0), self.rows)
        if (scale := getattr(self.base, "embed_scale", None)) is not None:  # Gemma's, and others'
            new_part = new_part * scale
        return torch.where(new[..., None], new_part.to(old_part.dtype), old_part)


class ExtendedHead(nn.Module):
    """An output layer that appends the scores of new tokens, ``hidden @ rows.T``."""

    def __init__(self, base: nn.Linear, rows: nn.Parameter, first_id: int) -> None:
        super().__init__()
        self.base, self.rows, self.first_id = base, rows, first_id

    @property
    def weight(self) -> torch.Tensor:
        """All rows as one matrix ``(vocabulary, width)``: old ones first."""
        return torch.cat([self.base.weight[: self.first_id], self.rows.to(self.base.weight.dtype)])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns logits ``(..., vocabulary)``."""
        return torch.cat([self.base(hidden)[..., : self.first_id], self.new_scores(hidden)], -1)

    def new_scores(
        self, hidden: torch.Tensor, first: int | None = None, last: int | None = None
    ) -> torch.Tensor:
        """Returns the logits of the new tokens only, of all or of ``first : last``, ``(..., tokens)``, in the rows' type."""
        # Under autocast the logits of items would be rounded to bfloat16 in training, and not in serving.
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.to(self.rows.dtype) @ self.rows[first:last].T


def add_identifier_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Adds identifier tokens to a tokenizer, in this order, as its last ids.

    Raises:
        ModelError: If the tokenizer has one of them already.
    """
    from tokenizers import AddedToken

    if known := sorted(set(tokens) & tokenizer.get_vocab().keys()):
        raise ModelError(
            f"The tokenizer has {len(known)} of the identifier tokens already, first {known[0]!r}."
        )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])


def extend_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], rows: torch.Tensor
) -> None:
    """Adds identifier tokens to a model and its tokenizer, in place.

    Args:
        model: A causal model with its usual embeddings.
        tokenizer: Its tokenizer; receives the tokens in this order as its last ids.
        tokens: New tokens.
        rows: ``(tokens, width)`` initial rows, trained in float32. Untied models get a copy for the
            output layer.

    Raises:
        ModelError: If the tokenizer knows a token already, or is larger than the model's embedding.
    """
    first_id = len(tokenizer)
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    head = cast(nn.Linear, model.get_output_embeddings())
    if first_id > embedding.num_embeddings:
        raise ModelError(
            f"The tokenizer has {first_id:,} tokens, the model only {embedding.num_embeddings:,} rows."
        )
    add_identifier_tokens(tokenizer, tokens)
    tied = head.weight is embedding.weight
    shared = nn.Parameter(rows.detach().clone().float())
    model.set_input_embeddings(ExtendedEmbedding(embedding, shared, first_id))
    own = shared if tied else nn.Parameter(shared.detach().clone())
    model.set_output_embeddings(ExtendedHead(head, own, first_id))
    model.config.vocab_size = first_id + len(tokens)


@torch.no_grad()
def join_vocabulary(model: PreTrainedModel) -> None:
    """Turns an extended model into an ordinary one whose embedding and output layer hold all rows, in place."""
    embedding = cast(ExtendedEmbedding, model.get_input_embeddings())
    head = cast(ExtendedHead, model.get_output_embeddings())
    # Not by transformers' own resize, which ties a T5 again that was read with an output layer of its own.
    inputs, outputs = embedding.base, head.base
    tied = outputs.weight is inputs.weight
    inputs.weight = nn.Parameter(embedding.weight)
    inputs.num_embeddings = embedding.num_embeddings
    outputs.weight = inputs.weight if tied else nn.Parameter(head.weight)
    outputs.out_features = embedding.num_embeddings
    if outputs.bias is not None:
        missing = embedding.num_embeddings - embedding.first_id
        old = outputs.bias[: embedding.first_id]
        outputs.bias = nn.Parameter(nn.functional.pad(old, (0, missing)))
    model.set_input_embeddings(inputs)
    model.set_output_embeddings(outputs)


def new_rows(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Returns the trainable rows of an extended model: ``input``, and ``output`` where it is not tied."""
    embedding = cast(ExtendedEmbedding, model.get_input_embeddings())
    head = cast(ExtendedHead, model.get_output_embeddings())
    rows = {"input": embedding.rows}
    return rows if head.rows is embedding.rows else rows | {"output": head.rows}


def initial_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    index: ItemIndex,
    items: ItemCatalog,
    kind: str,
    vectors: np.ndarray | None,
    seed: int,
) -> torch.Tensor:
    """Returns ``(tokens, width)`` start values for the rows of an index's tokens.

    ``"text"`` and what begins with it: an item's start value is the mean of its title's token rows, plus a
    random projection of its standardised vector, if there is one, at the embedding's own spread; a token's is
    the mean over the items that carry it. ``"mean"``: every token gets the mean of the old rows and a little
    noise, so that tokens are told apart. ``"random"``: noise of the old rows' spread, for a model that is trained
    from nothing, whose old rows have no mean worth starting from. This rule is genrec's own.

    Args:
        model: The backbone, before its vocabulary is extended.
        tokenizer: Its tokenizer.
        index: The items' codes.
        items: Their titles.
        kind: As ``model.rows_start``.
        vectors: ``(items of the index, any width)`` of what is known of items beside text, or None.
        seed: Seed of projection and noise.
    """
    weight = cast(nn.Embedding, model.get_input_embeddings()).weight.detach().float()
    generator = torch.Generator().manual_seed(seed)
    spread = float(weight.std())
    if not kind.startswith("text"):
        noise = spread * torch.randn(len(index.tokens), weight.shape[1], generator=generator)
        return noise if kind == "random" else weight.mean(0) + 0.1 * noise
    start = weight.mean(0).repeat(len(index.codes), 1)
    for row, item in enumerate(index.item_ids):
        if ids := tokenizer(items.title(item), add_special_tokens=False)["input_ids"]:
            start[row] = weight[ids].mean(0)
    if vectors is not None:
        vectors = (vectors - vectors.mean(0)) / np.maximum(vectors.std(), 1e-12)
        projection = torch.randn(vectors.shape[1], weight.shape[1], generator=generator)
        start += torch.tensor(vectors, dtype=torch.float32) @ projection * (spread / vectors.shape[1] ** 0.5)
    position_of_token = {token: row for row, token in enumerate(index.tokens)}
    total = torch.zeros(len(index.tokens), weight.shape[1])
    count = torch.zeros(len(index.tokens), 1)
    for row, code in enumerate(index.codes.values()):
        for token in code:
            total[position_of_token[token]] += start[row]
            count[position_of_token[token]] += 1
    return total / count
