"""A log with a planted, asymmetric next-item rule, so that the right answer is known by construction."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from genrec.data_prep import InteractionLog, ItemCatalog
from genrec.indexing import IndexSettings
from genrec.indexing.settings import RQVAESettings

NUM_PLANTED = 24
DATA = Path(os.environ.get("GENREC_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")

# Settings under which every indexing method names the planted items in an instant.
SMALL_INDEX = IndexSettings(
    levels=2,
    codebook_size=8,
    vector_size=8,
    text_encoder="words",
    branching=3,
    leaf_size=4,
    rq_vae=RQVAESettings(hidden=(16,), code_size=4, epochs=4, check_epochs=2),
)


def planted_next(item: int) -> int:
    """The item that always follows: 13 i + 5 modulo 24, one cycle through all items."""
    return (13 * item + 5) % NUM_PLANTED


def planted_log(num_users: int = 60, length: int = 16, seed: int = 0) -> InteractionLog:
    """Users who start anywhere and follow the planted rule; every item is as popular as any other."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        item = int(rng.integers(NUM_PLANTED))
        for time in range(length):
            rows.append((f"u{user}", f"i{item}", float(time)))
            item = planted_next(item)
    return InteractionLog.from_rows(rows)


def planted_catalog() -> ItemCatalog:
    words = ["red", "blue", "green", "old", "new", "small", "large", "quiet"]
    things = ["lamp", "chair", "radio"]
    return ItemCatalog.from_titles({f"i{n}": f"{words[n % 8]} {things[n // 8]}" for n in range(NUM_PLANTED)})
