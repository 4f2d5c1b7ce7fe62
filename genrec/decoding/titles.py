"""Vectors of a catalogue's titles: made once, mapped from files, searched exactly or by an approximate index."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from genrec.core.errors import ModelError, RunError, require
from genrec.core.files import atomic_path, hash_value, read_json, write_json
from genrec.core.packages import cache_dir
from genrec.core.processes import is_main_process, wait
from genrec.core.progress import say
from genrec.indexing import IndexSettings
from genrec.indexing.encoders import (
    WORDS,
    Encode,
    State,
    encoder_identity,
    later_word_vectors,
    load_encoder,
    word_vectors,
)

VECTORS, STATE, ABOUT = "vectors.npy", "state.npz", "about.json"
# Part of what vectors are known by: another rule for texts makes other vectors.
_CLEANING = "white space as one space, no double quotes at the ends"
_AT_ONCE = 4096


def clean(text: str) -> str:
    """Returns a title as it is compared: white space as single spaces, double quotes at its ends left out."""
    return " ".join(text.split()).strip('" ')


@dataclass(frozen=True)
class TitleEncoder:
    """What makes vectors of titles.

    Attributes:
        identity: Tells it from all others; what its weights depend on is in it.
        load: Returns the function, which may take long; None are words, which are learned from the catalogue.
    """

    identity: str
    load: Callable[[], Encode] | None

    @classmethod
    def of(cls, name: str) -> TitleEncoder:
        """Returns the encoder of a name as ``index.text_encoder`` has it."""
        if name == WORDS:
            return cls(f"{WORDS} {IndexSettings().vector_size}", None)
        return cls(encoder_identity(name), lambda: load_encoder(name))


@dataclass(frozen=True)
class Queries:
    """Texts as the vectors are.

    Attributes:
        vectors: ``(texts, width)`` float32.
        row: ``(texts,)`` row of the title that a text is, -1 where it is none.
    """

    vectors: np.ndarray
    row: np.ndarray


class TitleVectors:
    """Vectors of the different titles of a catalogue, which items of one title share.

    They lie in a folder: ``vectors.npy``, mapped; what new texts need; and a hash of encoder, cleaning, distance and titles,
    in this order, without which they are not used. For L2 the mean of all is subtracted, which changes no distance and keeps
    float32 precise where vectors have much in common, as those of language models do. For cosine they have length 1.

    Attributes:
        folder: Where they lie.
        titles: Cleaned titles, each once, in catalogue order.
        row_of_item: ``(items,)`` row of each item's title.
        spread: Root mean square distance (L2) or mean distance (cosine) of a title from the mean of all.
    """

    def __init__(
        self, folder: Path, titles: Sequence[str], encoder: TitleEncoder, distance: Literal["l2", "cosine"]
    ) -> None:
        """Opens vectors.

        Args:
            folder: Where they lie.
            titles: Of all items, in catalogue order.
            encoder: What makes them.
            distance: ``"l2"`` or ``"cosine"``.

        Raises:
            RunError: If there are none, or they were made of other titles, by another encoder or for another distance.
        """
        self.titles, self.row_of_item, wanted = _asked(titles, encoder, distance)
        self.folder, self._encoder, self._distance = folder, encoder, distance
        if (found := read_json(folder / ABOUT)["made_from"]) != wanted:
            raise RunError(
                f"The vectors in {folder} were made of other titles, by another encoder or for another distance "
                f"({found[:12]}, wanted {wanted[:12]}). Remove the folder, or name another."
            )
        self.vectors: np.ndarray = np.load(folder / VECTORS, mmap_mode="r")
        self._state: State = dict(np.load(folder / STATE))
        self.spread = float(self._state["spread"])
        self._row = {title: row for row, title in enumerate(self.titles)}

    @classmethod
    def make(
        cls,
        titles: Sequence[str],
        encoder: TitleEncoder,
        distance: Literal["l2", "cosine"],
        folder: Path | None = None,
    ) -> TitleVectors:
        """Returns the vectors of a folder, made first where there are none.

        The main process makes them, some thousand titles in memory at a time.

        Args:
            titles: As ``__init__``.
            encoder: As ``__init__``.
            distance: As ``__init__``.
            folder: Default is one of genrec's cache, by the hash of what they are made from.

        Raises:
            ModelError: If a vector is not finite.
            RunError: If the folder has others, or the disk refuses.
        """
        different, _, made_from = _asked(titles, encoder, distance)
        folder = folder or cache_dir() / "titles" / made_from
        if is_main_process() and not (folder / ABOUT).exists():
            say(f"  making vectors of {len(different):,} titles")
            with atomic_path(folder) as part:
                part.mkdir()
                state = _write(part / VECTORS, different, encoder)
                state |= _ready(part / VECTORS, distance)
                np.savez(part / STATE, **state)  # type: ignore[arg-type]
                write_json(part / ABOUT, {"made_from": made_from, "distance": distance})
        wait()
        return cls(folder, titles, encoder, distance)

    def __len__(self) -> int:
        return len(self.titles)

    @cached_property
    def _encode(self) -> Encode:
        if self._encoder.load is None:
            return lambda texts: later_word_vectors(texts, self._state)
        return self._encoder.load()

    def queries(self, texts: Sequence[str]) -> Queries:
        """Returns cleaned texts as vectors; a text that is a title gets the title's own, so that its distance is 0."""
        row = np.array([self._row.get(text, -1) for text in texts], np.int64)
        vectors = np.empty((len(texts), self.vectors.shape[1]), np.float32)
        vectors[row >= 0] = self.vectors[row[row >= 0]]
        if new := list(dict.fromkeys(text for text, known in zip(texts, row, strict=True) if known < 0)):
            found = np.asarray(self._encode(new), np.float32)
            _check_finite(found, new)
            number = {text: place for place, text in enumerate(new)}
            for place in np.flatnonzero(row < 0).tolist():
                vectors[place] = self._shifted(found[number[texts[place]]])
        return Queries(vectors, row)

    def _shifted(self, vectors: np.ndarray) -> np.ndarray:
        return vectors - self._state["centre"] if self._distance == "l2" else _unit(vectors)

    def distances(self, queries: Queries, rows: np.ndarray | None = None) -> np.ndarray:
        """Returns float32 ``(texts, rows)`` distances, at least 0: L2, or 1 less the cosine.

        Args:
            queries: From ``queries``.
            rows: Titles; default all of them.
        """
        vectors = self.vectors if rows is None else self.vectors[rows]
        found = queries.vectors @ vectors.T
        if self._distance == "l2":
            found *= -2
            found += self._squares if rows is None else self._squares[rows]
            found += np.square(queries.vectors).sum(1, keepdims=True)
            np.sqrt(np.maximum(found, 0, out=found), out=found)
        else:
            np.maximum(np.subtract(1, found, out=found), 0, out=found)
        if rows is None:
            known = np.flatnonzero(queries.row >= 0)
            found[known, queries.row[known]] = 0
        else:
            found[queries.row[:, None] == rows] = 0
        return found

    @cached_property
    def _squares(self) -> np.ndarray:
        return np.concatenate([np.square(part).sum(1) for part in _stretches(self.vectors)])

    def nearest(
        self, queries: Queries, num: int, search: Literal["ivf", "hnsw"], width: int
    ) -> list[np.ndarray]:
        """Returns, for each text, rows of about the ``num`` nearest titles by an approximate index, itself included.

        The index is built once, and kept beside the vectors.

        Args:
            queries: From ``queries``.
            num: Titles wanted; fewer come where the index finds no more.
            search: ``"ivf"`` or ``"hnsw"``.
            width: Lists that are looked into, or entries in view.

        Raises:
            MissingExtraError: If FAISS is not installed.
        """
        index = self._indices.get(search)
        if index is None:
            index = self._indices[search] = approximate_index(self.vectors, search, self.folder)
        num = min(num, len(self))
        if search == "ivf":
            index.nprobe = min(width, index.nlist)
        else:
            index.hnsw.efSearch = max(width, num)
        _, found = index.search(queries.vectors, num)
        return [
            np.union1d(rows[rows >= 0], own[own >= 0])
            for rows, own in zip(found, queries.row[:, None], strict=True)
        ]

    @cached_property
    def _indices(self) -> dict[str, Any]:
        return {}


def approximate_index(vectors: np.ndarray, search: Literal["ivf", "hnsw"], folder: Path) -> Any:
    """Returns FAISS's index of vectors by L2, read from the folder where it was built before.

    ``ivf``: 4 sqrt(n) inverted lists, as FAISS's guidelines have it, whole vectors in them. ``hnsw``: 32 neighbours a
    node, all else FAISS's defaults. By L2 vectors of length 1 come in the order of their cosine.

    Raises:
        MissingExtraError: If FAISS is not installed.
    """
    faiss = require("faiss", "search")
    path = folder / f"{search}.faiss"
    if path.exists():
        return faiss.read_index(str(path))
    num, width = vectors.shape
    if search == "ivf":
        # At least 39 vectors a list, below which FAISS's k-means warns.
        lists = max(1, min(4 * math.isqrt(num), num // 39))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, lists)
        sample = np.random.default_rng(0).permutation(num)[: 64 * lists]
        index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
    else:
        index = faiss.IndexHNSWFlat(width, 32)
    for part in _stretches(vectors):
        index.add(np.ascontiguousarray(part))
    with atomic_path(path) as scratch:
        faiss.write_index(index, str(scratch))
    return index


def _asked(titles: Sequence[str], encoder: TitleEncoder, distance: str) -> tuple[list[str], np.ndarray, str]:
    """Returns different cleaned titles, the row of each item, and the hash of what vectors are made from."""
    cleaned = list(map(clean, titles))
    different = list(dict.fromkeys(cleaned))
    row = {title: number for number, title in enumerate(different)}
    return (
        different,
        np.array([row[title] for title in cleaned], np.int64),
        hash_value([encoder.identity, distance, _CLEANING, different]),
    )


def _write(path: Path, titles: Sequence[str], encoder: TitleEncoder) -> State:
    """Writes the vectors of titles as they come, and returns what later texts need."""
    if encoder.load is None:
        vectors, state = word_vectors(titles, IndexSettings().vector_size, 0)
        np.save(path, vectors.astype(np.float32))
        return state
    encode, mapped = encoder.load(), None
    for first in range(0, len(titles), _AT_ONCE):
        part = titles[first : first + _AT_ONCE]
        found = np.asarray(encode(part), np.float32)
        _check_finite(found, part)
        if mapped is None:
            shape = (len(titles), found.shape[1])
            mapped = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        mapped[first : first + len(part)] = found
    assert mapped is not None, "a catalogue has an item"
    mapped.flush()
    return {}


def _ready(path: Path, distance: str) -> State:
    """Shifts or scales the vectors of a file for a distance, and returns their centre and spread."""
    vectors = np.load(path, mmap_mode="r+")
    if distance == "cosine":
        for part in _stretches(vectors):
            part[:] = _unit(part)
    centre = sum(part.sum(0, dtype=np.float64) for part in _stretches(vectors)) / len(vectors)
    if distance == "cosine":
        spread = 1 - float(np.square(centre).sum())
    else:
        squares = 0.0
        for part in _stretches(vectors):
            part -= centre.astype(np.float32)
            squares += float(np.square(part, dtype=np.float64).sum())
        spread = math.sqrt(squares / len(vectors))
    vectors.flush()
    return {"centre": centre.astype(np.float32), "spread": np.array(spread)}


def _stretches(vectors: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(vectors), _AT_ONCE):
        yield vectors[first : first + _AT_ONCE]


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors at length 1; those of 0 stay, and are at distance 1 from all others."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def _check_finite(vectors: np.ndarray, titles: Sequence[str]) -> None:
    wrong = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(wrong):
        raise ModelError(
            f"{len(wrong):,} vectors are not finite, first that of {titles[wrong[0]]!r}. Take another "
            "decoding.grounding.encoder, or load the model in float32."
        )
