"""A log with a planted, asymmetric next-item rule, so that the right answer is known by construction."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa

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


MARKER = "zanzibar"


def rich_log(
    num_users: int = 16, length: int = 8, held_out: dict[str, list[tuple[str, float, str]]] | None = None
):
    """The planted log with a rating, a review, a headline and a user's name in every row.

    ``held_out`` replaces the item, the rating and the review of each user's last two rows; what stands there
    otherwise speaks of ``MARKER``, as nothing else does.
    """
    rng = np.random.default_rng(1)
    words = ["sound", "colour", "weight", "strap"]
    judged = ["great", "poor", "solid", "lovely"]
    rows = []
    for user in range(num_users):
        item = int(rng.integers(NUM_PLANTED))
        for time in range(length):
            last = time - (length - 2)
            name, rating = f"i{item}", float(1 + (item + user) % 5)
            said = f"The {words[item % 4]} is really {judged[(item + user) % 4]}. I use it every day at home."
            if last >= 0:
                said = f"The {MARKER} is really great. {said}"
                if held_out:
                    name, rating, said = held_out[f"u{user}"][last]
            rows.append(
                (f"u{user}", name, float(time), rating, said, f"{said.split('.')[0]}!", f"Name {user}")
            )
            item = planted_next(item)
    columns = ("user_id", "item_id", "timestamp", "rating", "review", "summary", "user_name")
    table = pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))
    return InteractionLog(table, 0, "number")


def rich_catalog() -> ItemCatalog:
    """The planted catalogue with descriptions (but for every fourth item), brands, categories and prices."""
    plain = planted_catalog()
    numbers = range(NUM_PLANTED)
    told = [None if n % 4 == 3 else f"A {plain.title(f'i{n}')} made of wood, number {n}." for n in numbers]
    return ItemCatalog.from_table(
        plain.table.append_column("description", pa.array(told))
        .append_column("brand", pa.array([f"Brand{n % 5}" for n in numbers]))
        .append_column("categories", pa.array([["Home", f"Kind {n % 3}"] for n in numbers]))
        .append_column("price", pa.array([float(n) + 0.5 for n in numbers]))
    )
