"""The interactions that samples are drawn from, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genrec.core.errors import DataError, UnknownItemError, nearest
from genrec.data_prep import Split, UserId
from genrec.tasks.profiles import Profiles
from genrec.tasks.reviews import explain
from genrec.tasks.settings import TaskSettings
from genrec.tasks.views import ItemBook
from genrec.tasks.writers import Taken

if TYPE_CHECKING:
    from genrec.tasks.retrieve import Retriever

Part = Literal["train", "valid", "test"]

_BEFORE: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("train", "context", "valid"),
    "test": ("train", "context", "valid", "test"),
}


class Source:
    """Interactions of one part of a split, each user's after what came before, users in the order of the log.

    For ``part="train"`` nothing but training rows is read, so that whatever is drawn from here is a function of
    those alone.

    Attributes:
        book: The items.
        settings: Of the tasks.
        part: Whose interactions samples ask for.
        user_ids: Users.
        start: ``(users + 1,)`` where each user's rows begin.
        item: ``(rows,)`` item numbers.
        asked: ``(rows,)`` whether a row is of ``part``.
        texts: ``{kind: {key: text}}`` that a writer other than the rule wrote for samples.
        retriever: What finds the behaviours that a click is asked after, None for the last ones.
        profiles: What is known of users, None where nothing is.
    """

    def __init__(self, split: Split, book: ItemBook, settings: TaskSettings, part: Part = "train") -> None:
        self.book, self.settings, self.part = book, settings, part
        self.texts: Mapping[str, Mapping[str, str]] = {}
        self.retriever: Retriever | None = None
        self.profiles = None if split.users is None else Profiles(split.users)
        table = split.table
        if part != "train":
            # Numbered as in training; those who come later follow.
            trained = table.filter(pc.equal(table["part"], "train"))
            known = pc.unique(trained["user_id"]).to_pylist()
        kept = table.filter(pc.is_in(table["part"], pa.array(_BEFORE[part], table["part"].type)))
        self._table = kept.drop_columns(["part"])
        self._learned = pc.equal(kept["part"], "train").combine_chunks()
        users = kept["user_id"].combine_chunks().dictionary_encode()
        self.user_ids: list[UserId] = users.dictionary.to_pylist()
        counts = np.bincount(users.indices.to_numpy(), minlength=len(self.user_ids))
        self.start = np.concatenate([[0], np.cumsum(counts)])
        items = kept["item_id"].combine_chunks().dictionary_encode()
        names = items.dictionary.to_pylist()
        numbers = [book.number.get(item, -1) for item in names]
        if -1 in numbers:
            item = names[numbers.index(-1)]
            raise UnknownItemError(
                f"Item {item!r} of the log is not in the index of {len(book.ids):,} items.{nearest(item, book.number)}"
            )
        self.item = np.array(numbers, np.int64)[items.indices.to_numpy()]
        self.asked = np.asarray(pc.equal(kept["part"], part).combine_chunks().to_numpy(zero_copy_only=False))
        self.user_number = np.arange(1, len(self.user_ids) + 1)
        if part != "train":
            order = {
                user: number for number, user in enumerate(dict.fromkeys([*known, *self.user_ids]), start=1)
            }
            self.user_number = np.array([order[user] for user in self.user_ids], np.int64)

    def __len__(self) -> int:
        return len(self.item)

    @cached_property
    def rating(self) -> np.ndarray:
        """``(rows,)`` float64 ratings, NaN where there is none."""
        if "rating" not in self._table.column_names:
            return np.full(len(self), np.nan)
        return pc.cast(self._table["rating"], pa.float64()).to_numpy()

    @cached_property
    def time(self) -> np.ndarray:
        """``(rows,)`` times."""
        return self._table["timestamp"].to_numpy()

    def before(self, place: int) -> int:
        """Returns the row after the last one of the user that is strictly before a row's time."""
        first = int(self.start[np.searchsorted(self.start, place, "right") - 1])
        return first + int(np.searchsorted(self.time[first : place + 1], self.time[place], "left"))

    @cached_property
    def scores(self) -> list[float]:
        """The different ratings of training, ascending; of what came before where held-out rows are asked for."""
        known = self.rating[~np.isnan(self.rating) & (~self.asked | (self.part == "train"))]
        return np.unique(known).tolist()

    @cached_property
    def review(self) -> pa.Array:
        """``(rows,)`` review texts, null where there is none."""
        return self._text("review")

    @cached_property
    def headline(self) -> pa.Array:
        """``(rows,)`` headlines of reviews, null where there is none; the column is called ``summary``."""
        return self._text("summary")

    @cached_property
    def explanation(self) -> pa.Array:
        """``(rows,)`` sentences of reviews that explain the liking, null where there is none.

        The log's column ``explanation``, or what ``genrec.tasks.reviews`` finds in its reviews.
        """
        return self._text("explanation") if "explanation" in self._table.column_names else self._explained[0]

    @cached_property
    def feature(self) -> pa.Array:
        """``(rows,)`` what each explanation is about, null where there is none."""
        return self._text("feature") if "explanation" in self._table.column_names else self._explained[1]

    @cached_property
    def _explained(self) -> tuple[pa.Array, pa.Array]:
        rows = np.flatnonzero(self.reviewed)
        # The words of features are those of training, whichever part is explained.
        learn = self._learned.take(rows).to_pylist()
        item_ids = [self.book.ids[self.item[row]] for row in rows]
        found = explain(self.review.take(rows).to_pylist(), item_ids, learn)
        columns: list[list[str | None]] = [[None] * len(self), [None] * len(self)]
        for row, pair in zip(rows.tolist(), found, strict=True):
            columns[0][row], columns[1][row] = pair
        return pa.array(columns[0], pa.string()), pa.array(columns[1], pa.string())

    def _text(self, name: str) -> pa.Array:
        """Returns a column of texts, trimmed, null where nothing is left."""
        if name not in self._table.column_names:
            return pa.nulls(len(self), pa.string())
        column = pc.utf8_trim_whitespace(pc.cast(self._table[name].combine_chunks(), pa.large_string()))
        return pc.if_else(pc.equal(column, ""), None, column)

    def name(self, user: int) -> str | None:
        """Returns what a user is called in the column ``user_name``, None where it has nothing."""
        if "user_name" not in self._table.column_names:
            return None
        rows = self._table["user_name"].slice(
            int(self.start[user]), int(self.start[user + 1] - self.start[user])
        )
        return next((str(name).strip() for name in rows.to_pylist() if name and str(name).strip()), None)

    def profile(self, user: int) -> str | None:
        """Returns what is known of a user, in words, None where nothing is."""
        return self.profiles.words(self.user_ids[user]) if self.profiles else None

    @cached_property
    def user_fields(self) -> dict[str, list[str | None]]:
        """``{name: categories}`` of the users in the order of ``user_ids``: one a user, None where it is not known.

        Ages are in decades; zip codes and ids are left out (``Profiles``). Empty without a table of users.
        """
        return self.profiles.fields(self.user_ids) if self.profiles else {}

    @cached_property
    def rated(self) -> np.ndarray:
        """``(rows,)`` whether a row has a rating."""
        return ~np.isnan(self.rating)

    @cached_property
    def reviewed(self) -> np.ndarray:
        """``(rows,)`` whether a row has a review."""
        return self.review.is_valid().to_numpy(zero_copy_only=False)

    @cached_property
    def explained(self) -> np.ndarray:
        """``(rows,)`` whether a row has an explanation."""
        return self.explanation.is_valid().to_numpy(zero_copy_only=False)

    def taken(self, row: int) -> Taken:
        """Returns what a writer may know of an interaction."""
        book, item = self.book, int(self.item[row])
        rating = float(self.rating[row])
        return Taken(
            title=book.title[item],
            categories=book.category_names[item],
            brand=book.brand[item],
            description=book.description[item],
            review=self.review[row].as_py(),
            explanation=self.explanation[row].as_py(),
            feature=self.feature[row].as_py(),
            liked=None if rating != rating else rating >= self.settings.like_from,
        )

    def require(self, column: str, sampler: str) -> None:
        """Raises DataError if no row has what a sampler draws from: ``rating``, ``review`` or ``explanation``."""
        have = {"rating": "rated", "review": "reviewed", "explanation": "explained"}[column]
        if not getattr(self, have).any():
            raise DataError(
                f"The sampler {sampler!r} needs a log with the column {column!r}; this one has "
                f"{', '.join(self._table.column_names)}. Take its families out of tasks.mixture, or give a log that "
                "has it."
            )
