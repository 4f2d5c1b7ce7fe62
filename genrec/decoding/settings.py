"""Settings of how items are found for a history, described once: this text is help and documentation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

Method = Literal["constrained", "grounded", "fused"]


class GroundingSettings(BaseModel):
    """How a written title becomes real items; defaults are BIGRec's (Bao et al., arXiv 2308.08434) unless said otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: str = Field(
        "base",
        description="What makes vectors of titles and of what is written: base (the backbone without its adapter, BIGRec's "
        "way), tuned (with it), or an encoder as index.text_encoder has them: words, minilm, a name of "
        "sentence-transformers, lm:NAME.",
    )
    pooling: Literal["last", "mean"] = Field(
        "last",
        description="Of base and tuned: the last hidden state of the last token (BIGRec), or the mean over tokens.",
    )
    distance: Literal["l2", "cosine"] = Field("l2", description="Distance between vectors.")
    beams: int = Field(4, ge=1, description="Beams of the written text, all of which are returned.")
    length_penalty: float = Field(
        1.0,
        description="A beam's log-probability is divided by its length to this power: transformers' default, which BIGRec "
        "leaves as it is; 0 is that of D3 (Bao et al., EMNLP 2024).",
    )
    max_new_tokens: int = Field(
        64, ge=1, description="Most tokens that are written; BIGRec's 128 are more than a title takes."
    )
    combine: Literal["first", "min", "soft_min"] = Field(
        "first",
        description="Distance of an item to all beams: that to the first (BIGRec), the least, or the soft minimum weighted "
        "by the beams' probabilities.",
    )
    temperature: float = Field(
        0.1,
        gt=0,
        description="Of soft_min, in units of the spread of the catalogue's vectors; ours: small, so that a beam which is a "
        "title counts for little but that title.",
    )
    inject: Literal["none", "popularity", "collaborative"] = Field(
        "none",
        description="What re-weights distances: training interactions, or the scores of a sequence recommender.",
    )
    collaborative: Literal["sasrec", "gru4rec"] = Field(
        "sasrec", description="Whose scores inject=collaborative takes."
    )
    gamma: float | None = Field(
        None,
        ge=0,
        description="Weight of what is injected: distances are multiplied by (1 + x)^-gamma. null: that of the paper's grid "
        "with the best NDCG@10 on validation.",
    )
    gamma_rows: int = Field(
        5000, ge=1, description="Validation rows, drawn at random, on which gamma is chosen."
    )
    search: Literal["exact", "ivf", "hnsw"] = Field(
        "exact",
        description="All items, or the candidates of an approximate index of FAISS (ivf: inverted lists, hnsw: a graph), "
        "for catalogues of a million items.",
    )
    search_width: int = Field(
        64,
        ge=1,
        description="Lists that ivf looks into, or entries that hnsw keeps in view: more is slower, misses less.",
    )
    candidates: int = Field(
        1000,
        ge=1,
        description="Titles that an approximate search fetches for each beam; only these are re-weighted and filtered.",
    )


class FusionSettings(BaseModel):
    """How constrained and grounded lists become one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    how: Literal["reciprocal_rank", "weighted"] = Field(
        "reciprocal_rank",
        description="reciprocal_rank: sum over lists of weight / (60 + rank) (Cormack et al., SIGIR 2009). weighted: sum of "
        "weight times the score, scaled to [0, 1] within its list; an item that a list lacks has 0 there.",
    )
    weights: tuple[NonNegativeFloat, NonNegativeFloat] = Field(
        (1.0, 1.0), description="Of the constrained and of the grounded list."
    )
    depth: int = Field(
        20, ge=1, description="Items of each list that are fused; never fewer than are asked for."
    )


class DecodingSettings(BaseModel):
    """How items are found for a history, in evaluation and, unless asked otherwise, in serving."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = Field(
        "constrained",
        description="constrained: beam search over identifiers, below the trie of all items. grounded: a title is written "
        "and the nearest real items are found (BIGRec). fused: both lists as one, for items that nobody took yet.",
    )
    grounding: GroundingSettings = Field(default_factory=GroundingSettings, description="Grounding.")
    fusion: FusionSettings = Field(default_factory=FusionSettings, description="Fusion.")
