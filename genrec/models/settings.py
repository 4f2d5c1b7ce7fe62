"""Settings of the small models, apart from their code so that a recipe can be read without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SequenceSettings(BaseModel):
    """What the sequence recommenders share; defaults of this class were chosen on MovieLens-100K's validation items."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(64, ge=1, description="Width of item vectors and layers.")
    layers: int = Field(2, ge=1, description="Layers of the encoder.")
    max_history: int = Field(100, ge=2, description="Most items of a history.")
    exclude_history: bool = Field(
        True,
        description="Whether the loss leaves out the items of the history, as ranking does "
        "(see train.exclude_history).",
    )
    dropout: float = Field(0.3, ge=0, lt=1, description="Dropout everywhere.")
    learning_rate: float = Field(
        4e-3, gt=0, description="Peak rate of Adam: it rises for one epoch and falls linearly to 0."
    )
    batch_size: int = Field(64, ge=1, description="Histories in a step.")
    epochs: int = Field(60, ge=1, description="Passes over the training histories.")
    seed: int = Field(0, ge=0, description="Seed of everything random.")


class NewModelSettings(BaseModel):
    """A small model built from a config, for ``model.backbone=new``; the defaults have 0.8 M weights.

    TIGER's (Rajput et al., NeurIPS 2023) is an encoder-decoder of width 128 with 4 and 4 layers, 6 heads of size 64 and
    feed-forward layers of 1,024.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["decoder", "encoder_decoder"] = Field(
        "decoder",
        description="decoder: a GPT-2, which reads and writes one sequence. encoder_decoder: a T5, whose encoder reads the prompt "
        "and whose decoder writes the answer.",
    )
    width: int = Field(
        128, ge=1, description="Width of the states; a multiple of heads, unless head_size is given."
    )
    heads: int = Field(4, ge=1, description="Attention heads.")
    head_size: int | None = Field(
        None, ge=1, description="Width of a head of an encoder_decoder; empty is width / heads."
    )
    feed_forward: int | None = Field(
        None, ge=1, description="Width of the feed-forward layers; empty is 4 x width."
    )
    layers: int = Field(
        4, ge=1, description="Transformer layers, of the encoder and of the decoder where there are both."
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Dropout of embeddings, attention weights and each layer's parts."
    )
    positions: int = Field(512, ge=2, description="Most tokens of a row of a decoder.")


class SASRecSettings(SequenceSettings):
    """SASRec with full cross-entropy: a baseline that may also teach."""

    heads: int = Field(2, ge=1, description="Attention heads.")
    normalise: bool = Field(
        True,
        description="Whether the sum of item and position vectors is normalised before the first layer. It "
        "matters a lot, and which way depends on the data: search both.",
    )


class GRU4RecSettings(SequenceSettings):
    """GRU4Rec with full cross-entropy."""

    layers: int = Field(1, ge=1, description="Recurrent layers.")
    hidden_size: int = Field(128, ge=1, description="Width of the recurrent state.")


class ClickSettings(BaseModel):
    """A click model: DIN, or SIM where the history is retrieved. Widths and dropout are RecLoRA's for its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["din", "sim"] = Field(
        "din",
        description="din: reads the latest behaviours. sim: the same network reads those nearest to the item that is asked for "
        "(tasks.retrieve says by what).",
    )
    max_history: int = Field(60, ge=1, description="Most behaviours that are read; 60 is the paper's.")
    embedding: int = Field(
        32, ge=1, description="Width of the vector of a user, an item, a category or a rating."
    )
    hidden: int = Field(256, ge=1, description="Width of the hidden layers, the last of which is the vector.")
    layers: int = Field(3, ge=1, description="Hidden layers.")
    attention_hidden: int = Field(64, ge=1, description="Width of the hidden layers of the attention.")
    attention_layers: int = Field(2, ge=1, description="Layers of the attention, its output among them.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout behind each hidden layer.")
    unknown_rate: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Share of users and of items that training takes for unknown ones, so that those who come later have a vector "
        "that was trained. Ours; the paper says nothing of them.",
    )
    learning_rate: float = Field(1e-3, gt=0, description="Rate of AdamW.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    batch_size: int = Field(256, ge=1, description="Samples in a step.")
    epochs: int = Field(20, ge=1, description="Most passes over the training samples.")
    patience: int = Field(
        2, ge=1, description="Passes without a better AUC on validation after which training ends."
    )
    seed: int = Field(0, ge=0, description="Seed of everything random.")


class RecLoraSettings(BaseModel):
    """What RecLoRA has beyond a LoRA (docs/reclora.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vectors: Literal["sasrec", "gru4rec", "codes", "file", "click"] = Field(
        "sasrec",
        description="What a user's adapter is made from. sasrec, gru4rec: that recommender's state after the history. codes: "
        "residual k-means codes of SASRec's state, so that users of one code share an adapter. file: vectors of your own by user. "
        "click: the last hidden layer of the click model, which knows user and item, exactly with evaluate.task=click. A user of whom nothing is known has the mean of the training users'.",
    )
    file: str | None = Field(
        None,
        description="Parquet file with the columns user_id and vector (lists of one length), made from training interactions alone.",
    )
    code_levels: int = Field(2, ge=1, description="vectors=codes: levels of a user's code.")
    codebook_size: int = Field(16, ge=2, description="vectors=codes: codes of a level.")
    experts: int = Field(8, ge=1, description="Meta-LoRAs beside each layer; one is a plain LoRA.")
    temperature: float = Field(1.0, gt=0, description="Divides the gate's scores before their softmax.")
    routing: Literal["soft", "top_k"] = Field(
        "soft", description="soft: all experts are weighed. top_k: the top_k of greatest score."
    )
    top_k: int = Field(2, ge=1, description="Experts of a user with routing=top_k.")
    mixing: Literal["weights", "outputs"] = Field(
        "weights",
        description="weights: A and B are mixed each, as in the released class. outputs: their products are, as the paper's sum and "
        "iLoRA do.",
    )
    gate: Literal["layer", "shared"] = Field(
        "layer", description="A gate for each adapted layer, or one for all."
    )
    gate_hidden: int = Field(60, ge=0, description="Width of the gate's hidden layer; 0 is one linear layer.")
    gate_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout behind it.")
    slices: bool = Field(
        False, description="Whether one LoRA of rank lora_r is cut among the experts, as in iLoRA."
    )

    @model_validator(mode="after")
    def _keys_that_belong_together(self) -> RecLoraSettings:
        if (self.vectors == "file") != (self.file is not None):
            raise ValueError(
                f"train.reclora.vectors={self.vectors} and train.reclora.file={self.file}: give a file exactly with vectors=file"
            )
        return self

    @property
    def teacher(self) -> str | None:
        """The sequence recommender that the vectors come from; None where they come from a file or a click model."""
        return {"codes": "sasrec", "file": None, "click": None}.get(self.vectors, self.vectors)

    @property
    def adapter(self) -> dict[str, object]:
        """Those that ``RecLoraConfig`` has too."""
        return self.model_dump(exclude={"vectors", "file", "code_levels", "codebook_size"})
