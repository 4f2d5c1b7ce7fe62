"""A log of tastes: what a user says of an item is known from what was said of its kind before."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from genrec.data_prep import InteractionLog, ItemCatalog, Split, SplitSettings, split_log
from genrec.models.click import ClickSamples
from genrec.tasks import TaskSettings
from genrec.tasks.source import Source
from genrec.tasks.views import ItemBook

NUM_ITEMS, KINDS = 40, 4


def taste_catalog() -> ItemCatalog:
    numbers = range(NUM_ITEMS)
    plain = ItemCatalog.from_titles({f"i{n}": f"Thing {n}" for n in numbers})
    kinds = pa.array([[f"Kind {n % KINDS}"] for n in numbers])
    return ItemCatalog.from_table(plain.table.append_column("categories", kinds))


def taste_rows(num_users=160, length=24, seed=0):
    """Each user likes two of four kinds, so that what was said of a kind before says all of the next item of it."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        liked = set(rng.permutation(KINDS)[:2].tolist())
        for time in range(length):
            item = int(rng.integers(NUM_ITEMS))
            rows.append([f"u{user}", f"i{item}", float(time), 5.0 if item % KINDS in liked else 1.0])
    return rows


def taste_log(rows) -> InteractionLog:
    names = ("user_id", "item_id", "timestamp", "rating")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    return InteractionLog(table, 0, "number")


def split_of(rows, rule="user_disjoint", **settings) -> Split:
    return split_log(taste_log(rows), SplitSettings(rule=rule, **settings))


def sources(split, items=None, **settings):
    book = ItemBook(None, items or taste_catalog())
    return {part: Source(split, book, TaskSettings(**settings), part) for part in ("train", "valid", "test")}


def samples_of(rows):
    """All rows of the users of a part, of whom no other part has any."""
    found = {}
    for part, source in sources(split_of(rows)).items():
        owner = np.searchsorted(source.start, np.arange(len(source)), "right") - 1
        mine = np.unique(owner[source.asked])
        found[part] = ClickSamples.of(source, np.flatnonzero(np.isin(owner, mine)))
    return found
