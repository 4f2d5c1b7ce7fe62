"""Rows of every task, written from a split, a catalogue and an index."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from genrec.core.errors import lookup, require
from genrec.data_prep import ItemCatalog, ItemId, Split
from genrec.indexing import ItemIndex
from genrec.tasks.render import PACKED, fill, templates

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Row = dict[str, str]


class TaskSettings(BaseModel):
    """Which instruction data are written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: tuple[str, ...] = Field(
        ("next_item",), min_length=1, description="Tasks to train on: next_item, text_to_item, item_to_text."
    )
    form: Literal["packed", "prompt"] = Field(
        "packed",
        description="How next_item is written. packed: one row a stretch of a user's history, every item of "
        "it a target. prompt: one row a position, the history in a prompt, the next item as completion.",
    )
    max_history: int = Field(
        50,
        ge=1,
        description="Most items of a history in a row, and in a prompt when serving, where a model.backbone=new "
        "reads no more than it had before a target in training.",
    )
    cuts: int = Field(
        2,
        ge=1,
        description="Packed form: times that each history is cut into rows, each time at other places. An "
        "epoch goes over each interaction so many times.",
    )
    seed: int = Field(0, ge=0, description="Seed of template choice and of cuts.")


def build_dataset(
    split: Split, items: ItemCatalog, index: ItemIndex, settings: TaskSettings | None = None
) -> DatasetDict:
    """Returns the instruction data as ``datasets.DatasetDict`` with ``train`` and ``validation``.

    Rows have ``task``, ``key`` (what the row was drawn from), ``prompt`` and ``completion`` (text, TRL's
    prompt-completion form). Training rows are written from ``split.train`` only, validation rows ask for
    the first of ``split.valid``'s targets; the item-text tasks may name any item of the catalogue, since a title is
    content, not interaction. Each row is drawn by the seed and its own key, so order and number of
    workers change nothing.

    Raises:
        RecipeError: If a task is unknown.
        MissingExtraError: If ``datasets`` is not installed.
    """
    datasets = require("datasets", "train")
    settings = settings or TaskSettings()
    makers = [cast(Maker, lookup(TASKS, name, "task")) for name in settings.names]

    def dataset(rows: Sequence[Row]) -> Dataset:
        features = datasets.Features({name: datasets.Value("string") for name in COLUMNS})
        return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in COLUMNS}, features)

    train = [row for maker in makers for row in maker(split, items, index, settings)]
    held_out = zip(split.valid.user_ids, split.valid.histories, split.valid.targets, strict=True)
    validation = [
        _next_item_row(index, settings, user, history, targets[0]) for user, history, targets in held_out
    ]
    return datasets.DatasetDict({"train": dataset(train), "validation": dataset(validation)})


COLUMNS = ("task", "key", "prompt", "completion")


def next_item(split: Split, items: ItemCatalog, index: ItemIndex, settings: TaskSettings) -> Iterator[Row]:  # noqa: ARG001
    """Yields the rows whose targets are the items of the training histories.

    Packed: a user's history is cut, counted from its end, into stretches of ``max_history`` items; in all
    cuts but the first the last stretch is shortened by a random number of items.
    """
    for user, history in split.train.items():
        if settings.form != PACKED:
            for position in range(1, len(history)):
                yield _next_item_row(index, settings, user, history[:position], history[position])
            continue
        for cut in range(settings.cuts):
            end, size = len(history), settings.max_history
            stretch = int(_rng(settings.seed, user, cut).integers(1, size + 1)) if cut else size
            while end > 0:
                start = max(0, end - stretch)
                yield {
                    "task": "next_item",
                    "key": f"{user}/{start}-{end}",
                    "prompt": "",
                    "completion": _codes(index, history[start:end]),
                }
                end, stretch = start, size


def text_to_item(split: Split, items: ItemCatalog, index: ItemIndex, settings: TaskSettings) -> Iterator[Row]:  # noqa: ARG001
    """Yields one row an item: its title, then its code (LC-Rec's item2index)."""
    for item in index.item_ids:
        template = _draw("text_to_item", settings, item)
        yield {
            "task": "text_to_item",
            "key": item,
            "prompt": fill(template, title=items.title(item)),
            "completion": _codes(index, [item]),
        }


def item_to_text(split: Split, items: ItemCatalog, index: ItemIndex, settings: TaskSettings) -> Iterator[Row]:  # noqa: ARG001
    """Yields one row an item: its code, then its title (LC-Rec's index2item)."""
    for item in index.item_ids:
        template = _draw("item_to_text", settings, item)
        yield {
            "task": "item_to_text",
            "key": item,
            "prompt": fill(template, code=_codes(index, [item])),
            "completion": " " + items.title(item),
        }


Maker = Callable[[Split, ItemCatalog, ItemIndex, TaskSettings], Iterator[Row]]

TASKS: dict[str, Maker] = {
    "item_to_text": item_to_text,
    "next_item": next_item,
    "text_to_item": text_to_item,
}


def _next_item_row(
    index: ItemIndex, settings: TaskSettings, user: str, history: Sequence[ItemId], target: ItemId
) -> Row:
    codes = _codes(index, history[-settings.max_history :])
    if settings.form == PACKED:
        prompt = codes
    else:
        prompt = fill(_draw("next_item", settings, f"{user}/{len(history)}"), history=codes)
    return {
        "task": "next_item",
        "key": f"{user}/{len(history)}",
        "prompt": prompt,
        "completion": _codes(index, [target]),
    }


def _codes(index: ItemIndex, history: Sequence[ItemId]) -> str:
    return "".join(token for item in history for token in index.code(item))


def _draw(task: str, settings: TaskSettings, key: str) -> str:
    known = templates(task)
    return known[int(_rng(settings.seed, key, 0).integers(len(known)))]["prompt"]


def _rng(seed: int, key: str, draw: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(key.encode()), draw])
