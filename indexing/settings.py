"""Settings that indexing methods share, described once: this text is help and documentation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class IndexSettings(BaseModel):
    """How items are named."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: int = Field(3, ge=1, le=26, description="Tokens in a code (methods of fixed length).")
    codebook_size: int = Field(
        256,
        ge=2,
        description="Different tokens at a level. 256 with 3 levels is TIGER's and MiniOneRec's setting.",
    )
    vectors: Literal["collaborative", "text", "both"] = Field(
        "both",
        description="What rq_kmeans quantises: co-occurrence in training histories, title and category "
        "words, or the two side by side.",
    )
    vector_size: int = Field(64, ge=1, description="Width of each kind of item vector.")
    window: int = Field(
        10, ge=1, description="Two items of a history co-occur when at most this many places apart."
    )
    collisions: Literal["next_free", "suffix"] = Field(
        "next_free",
        description="What happens when two items get one code: next_free gives the later item the nearest "
        "free last token, suffix gives every item one more token that counts within its code.",
    )
    seed: int = Field(0, ge=0, description="Seed of everything random in indexing.")
