"""Samplers: what one sample of a task is, and the slots that templates may print of it.

A sample is a pure function of the seed, its own key and the data: whatever is random is drawn from a hash of
family, key, repetition and the name of the draw. Slots are made when a template prints them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from genrec.core.errors import RecipeError
from genrec.tasks.source import Source
from genrec.tasks.views import Item, Items, Score, User
from genrec.tasks.writers import (
    TextRequest,
    intention_requests,
    nearest,
    preference_request,
    preferred_request,
)

_RANGE = 2**64


def keyed(*parts: object) -> int:
    """Returns a number in [0, 2**64) that is a function of the parts, and uniform over keys."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Sample:
    """One sample: its key and, by name, its slots; a slot is None where the data have nothing for it.

    Attributes:
        sampler: What it is a sample of.
        source: Where it was drawn from.
        family: Name of the family that it is drawn for.
        user: Number of the user, -1 for a sample of an item.
        place: Row of the interaction, or the number of the item.
        repetition: How many times it was drawn before.
        shown_items: Most items of its history; fewer after a cut to a token budget.
    """

    __slots__ = (
        "_values", "family", "key", "place", "repetition", "sampler", "shown_items", "source", "user",
    )  # fmt: skip

    def __init__(
        self, sampler: Sampler, source: Source, family: str, user: int, place: int, repetition: int = 0
    ) -> None:
        self.sampler, self.source, self.family = sampler, source, family
        self.user, self.place, self.repetition = user, place, repetition
        self.key = sampler.key(source, user, place)
        self.shown_items = source.settings.max_history
        self._values: dict[str, Any] = {}

    def __getitem__(self, slot: str) -> Any:
        if slot not in self._values:
            self._values[slot] = self.sampler.slots[slot].value(self)
        return self._values[slot]

    def has(self, slot: str, field: str) -> bool:
        """Returns whether a slot, and its field where one is named, is there to be printed."""
        value = self[slot]
        if value is None:
            return False
        if isinstance(value, User):
            return not field or getattr(value, field) is not None
        return value._has(field) if isinstance(value, Item | Items) else True

    def show(self, num_items: int) -> None:
        """Leaves only the last so many items of the history."""
        self.shown_items = num_items
        self._values.pop("history", None)

    @property
    def item(self) -> int:
        """Number of the item that it is about."""
        return self.place if self.user < 0 else int(self.source.item[self.place])

    @property
    def num_before(self) -> int:
        """Items of the user before it; of a sampler that says so, strictly before its time."""
        if self.user < 0:
            return 0
        end = self.source.before(self.place) if self.sampler.strictly_before else self.place
        return end - int(self.source.start[self.user])

    def draw(self, name: str) -> int:
        """Returns the number in [0, 2**64) of one of its draws."""
        return keyed(self.source.settings.seed, self.family, self.key, self.repetition, name)

    def share(self, name: str) -> float:
        """Returns a draw as a number in [0, 1)."""
        return self.draw(name) / _RANGE


class Slot(NamedTuple):
    """A slot: its type, how its value comes from a sample, and what it is."""

    type: str
    value: Callable[[Sample], Any]
    about: str


@dataclass(frozen=True)
class Sampler:
    """A kind of samples.

    Attributes:
        about: One sample is one of these.
        over: What it goes through: every user's interactions, or the catalogue.
        places: Rows (or item numbers) of a user (or from an item on) that are samples.
        slots: What templates may print.
        held_out: Whether its samples can ask for held-out interactions.
        column: The column without which there is no sample.
        written: ``{slot: kind}`` of those that a writer writes.
        strictly_before: Whether a history has nothing of the sample's own time, so that no order within it matters.
    """

    about: str
    places: Callable[[Source, int], Iterable[int]]
    slots: dict[str, Slot]
    over: Literal["users", "items"] = "users"
    held_out: bool = True
    column: str = ""
    written: Mapping[str, str] = field(default_factory=dict)
    strictly_before: bool = False

    def key(self, source: Source, user: int, place: int) -> str:
        """Returns what names a sample: ``user/position``, or the item."""
        if self.over == "items":
            return source.book.ids[place]
        return f"{source.user_ids[user]}/{place - int(source.start[user])}"


# ---------------------------------------------------------------- places


def _rows(source: Source, user: int) -> np.ndarray:
    rows = np.arange(source.start[user], source.start[user + 1])
    return rows[source.asked[rows]]


def _every(source: Source, user: int) -> Iterable[int]:
    return _rows(source, user).tolist()


def _after_something(source: Source, user: int) -> Iterable[int]:
    rows = _rows(source, user)
    first = source.start[user]
    return rows[source.time[rows] > source.time[first]].tolist() if len(rows) else []


def _from_second(source: Source, user: int) -> Iterable[int]:
    rows = _rows(source, user)
    return rows[rows > source.start[user]].tolist()


def _that_are(mask: str) -> Callable[[Source, int], Iterable[int]]:
    def places(source: Source, user: int) -> Iterable[int]:
        rows = _rows(source, user)
        return rows[getattr(source, mask)[rows]].tolist()

    return places


def _last(source: Source, user: int) -> Iterable[int]:
    return list(_from_second(source, user))[-1:]


def _itself(source: Source, item: int) -> Iterable[int]:  # noqa: ARG001
    return [item]


# ---------------------------------------------------------------- slots


def _user(sample: Sample) -> User:
    source, user = sample.source, sample.user
    return User(int(source.user_number[user]), lambda: source.name(user), lambda: source.profile(user))


def _before(sample: Sample) -> slice:
    return slice(sample.place - min(sample.num_before, sample.shown_items), sample.place)


def _history(sample: Sample) -> Items:
    return Items(sample.source.book, sample.source.item[_before(sample)].tolist())


def _rated_history(sample: Sample) -> Items:
    source, num = sample.source, min(sample.num_before, sample.shown_items)
    shown = sample["item"]
    if source.retriever is not None and num and shown is not None:
        place, item = np.array([sample.place]), np.array([source.book.number[shown.id]])
        rows = source.retriever.rows(source, place, num, item)[0]
    else:
        end = int(source.start[sample.user]) + sample.num_before
        rows = np.arange(end - num, end)
    return Items(source.book, source.item[rows].tolist(), source.rating[rows].tolist())


def _item(sample: Sample) -> Item:
    return Item(sample.source.book, sample.item)


def _never_taken(sample: Sample, name: str, most: int) -> list[int]:
    """Returns up to ``most`` different items in random order, none of which the user took in what may be known.

    In training that is the training history alone: to leave held-out items out would tell that they are no
    negatives. So they may be drawn here.
    """
    source = sample.source
    taken = set(source.item[source.start[sample.user] : source.start[sample.user + 1]].tolist())
    num_items = len(source.book.ids)
    rng = np.random.default_rng(sample.draw(name))
    drawn = rng.choice(num_items, size=min(num_items, most + len(taken)), replace=False)
    return [item for item in drawn.tolist() if item not in taken][:most]


def _candidates(sample: Sample) -> Items:
    chosen = _never_taken(sample, "candidates", sample.source.settings.candidates - 1)
    chosen.insert(int(sample.share("place of the target") * (len(chosen) + 1)), sample.item)
    return Items(sample.source.book, chosen)


def _is_true(sample: Sample) -> bool:
    return sample.share("true or false") < 0.5


def _shown(sample: Sample) -> Item | None:
    if _is_true(sample):
        return _item(sample)
    other = _never_taken(sample, "shown", 1)
    return Item(sample.source.book, other[0]) if other else None


def _yes_or_no(sample: Sample) -> str:
    return "yes" if _is_true(sample) else "no"


def _rating(sample: Sample) -> float | None:
    rating = float(sample.source.rating[sample.place])
    return None if rating != rating else rating


def _stars(sample: Sample) -> Score | None:
    rating = _rating(sample)
    return None if rating is None else Score(rating)


# Lower and upper end of the scores that P5 writes for each rating; the draw's standard deviation is a quarter.
_BANDS = {1: (1.0, 1.4), 2: (1.5, 2.4), 3: (2.5, 3.4), 4: (3.5, 4.4), 5: (4.5, 5.0)}


def _score(sample: Sample) -> Score | None:
    rating = _rating(sample)
    if rating is None or not sample.source.settings.smooth_ratings or sample.source.part != "train":
        return None if rating is None else Score(rating)
    if rating not in _BANDS:
        raise RecipeError(
            f"tasks.smooth_ratings is for ratings of 1, 2, 3, 4 and 5; {sample.key} has {rating:g}. Set it to false."
        )
    low, high = _BANDS[int(rating)]
    rng = np.random.default_rng(sample.draw("score"))
    drawn = rng.normal((low + high) / 2, (high - low) / 4)
    return Score(min(5.0, max(1.0, round(float(drawn), 1))))


def _shown_score(sample: Sample) -> Score | None:
    rating = _rating(sample)
    if rating is None or _is_true(sample):
        return None if rating is None else Score(rating)
    others = [score for score in sample.source.scores if score != rating]
    return Score(others[int(sample.share("shown score") * len(others))]) if others else None


def _liked(sample: Sample) -> str | None:
    rating = _rating(sample)
    if rating is None:
        return None
    return "like" if rating >= sample.source.settings.like_from else "dislike"


def _choices(sample: Sample) -> str:
    return ", ".join(str(Score(score)) for score in sample.source.scores)


def _column(name: str) -> Callable[[Sample], str | None]:
    return lambda sample: getattr(sample.source, name)[sample.place].as_py()


def _clicked(sample: Sample) -> Item | None:
    """The item itself where ratings say whether it was liked; else it or one that the user never took."""
    return _item(sample) if _rating(sample) is not None else _shown(sample)


def _click(sample: Sample) -> str:
    liked = _liked(sample)
    return _yes_or_no(sample) if liked is None else "yes" if liked == "like" else "no"


def text_request(sample: Sample, kind: str) -> TextRequest:
    """Returns the request for a text of a sample: from its target's own review, or from what stands before it."""
    source, seed = sample.source, sample.source.settings.texts.seed
    if kind in ("wish", "query"):
        return intention_requests(sample.key, source.taken(sample.place), seed)[kind == "query"]
    before = range(sample.place - min(sample.num_before, source.settings.max_history), sample.place)
    ask = preference_request if kind == "preference" else preferred_request
    return ask(sample.key, [source.taken(row) for row in before], seed)


def _written(kind: str) -> Callable[[Sample], str | None]:
    """The text that a writer wrote; what the rule says where none was asked to."""

    def value(sample: Sample) -> str:
        known = sample.source.texts.get(kind)
        text = known[sample.key] if known is not None else text_request(sample, kind).fallback
        return nearest(text, sample.source.taken(sample.place)) if kind == "preferred" else text

    return value


USER = Slot("user", _user, "the user")
HISTORY = Slot("items", _history, "what the user took before, oldest first")
TARGET = Slot("item", _item, "the item that the user took")
CANDIDATES = Slot("items", _candidates, "the target among items that the user never took, shuffled")
SHOWN = Slot("item", _shown, "the target, or an item that the user never took, one as likely as the other")
IS_TARGET = Slot("answer", _yes_or_no, "yes or no: whether what is shown is the true one")
STARS = Slot("score", _stars, "the rating")

SAMPLERS: dict[str, Sampler] = {
    "next_item": Sampler(
        "a training position of a user, from the second on",
        _from_second,
        {
            "user": USER,
            "history": HISTORY,
            "target": TARGET,
            "candidates": CANDIDATES,
            "shown": SHOWN,
            "answer": IS_TARGET,
        },
    ),
    "rating": Sampler(
        "a training interaction with a rating",
        _that_are("rated"),
        {
            "user": USER,
            "item": TARGET,
            "score": Slot("score", _score, "the rating, smoothed where tasks.smooth_ratings says so"),
            "stars": STARS,
            "shown_score": Slot("score", _shown_score, "the rating, or another of the scale, as likely"),
            "answer": IS_TARGET,
            "liked": Slot(
                "answer", _liked, "like or dislike: whether the rating is at least tasks.like_from"
            ),
            "choices": Slot("choices", _choices, "every rating that occurs in training"),
        },
        column="rating",
    ),
    "review": Sampler(
        "a training interaction with a review",
        _that_are("reviewed"),
        {
            "user": USER,
            "item": TARGET,
            "review": Slot("text", _column("review"), "the review"),
            "headline": Slot("text", _column("headline"), "its headline"),
            "stars": STARS,
        },
        column="review",
    ),
    "explanation": Sampler(
        "a training interaction with an explanation",
        _that_are("explained"),
        {
            "user": USER,
            "item": TARGET,
            "explanation": Slot("text", _column("explanation"), "a sentence of the review that says why"),
            "feature": Slot("text", _column("feature"), "the word of it that it is about"),
            "headline": Slot("text", _column("headline"), "the review's headline"),
            "stars": STARS,
        },
        column="explanation",
    ),
    "direct": Sampler(
        "a training interaction",
        _every,
        {"user": USER, "target": TARGET, "candidates": CANDIDATES, "shown": SHOWN, "answer": IS_TARGET},
    ),
    "click": Sampler(
        "a training interaction with something before its time",
        _after_something,
        {
            "user": USER,
            "history": Slot(
                "items", _rated_history, "what the user took before, with ratings where there are any"
            ),
            "item": Slot(
                "item", _clicked, "the item; without ratings it or one that the user never took, as likely"
            ),
            "answer": Slot(
                "answer", _click, "yes or no: whether the user liked it (tasks.like_from), or took it"
            ),
        },
        strictly_before=True,
    ),
    "item_text": Sampler(
        "an item of the catalogue",
        _itself,
        {"item": Slot("item", _item, "the item")},
        over="items",
        held_out=False,
    ),
    "intention": Sampler(
        "a user: the last training item, asked for in words",
        _last,
        {
            "user": USER,
            "history": HISTORY,
            "target": TARGET,
            "query": Slot("text", _written("query"), "what the target is like, without its title"),
            "wish": Slot("text", _written("wish"), "what the user wants, without the target's title"),
            "preference": Slot("text", _written("preference"), "what the user prefers, from the history"),
        },
        held_out=False,
        written={"query": "query", "wish": "wish", "preference": "preference"},
    ),
    "preference": Sampler(
        "a user: the training history but its last item",
        _last,
        {
            "user": USER,
            "history": HISTORY,
            "preference": Slot("text", _written("preference"), "what the user prefers, from the history"),
        },
        held_out=False,
        written={"preference": "preference"},
    ),
    "preferred_next": Sampler(
        "a training position of a user, from the second on, for which a preference is known",
        _from_second,
        {
            "user": USER,
            "history": HISTORY,
            "target": TARGET,
            "preference": Slot(
                "text",
                _written("preferred"),
                "of the user's preferences before the target, the nearest to it",
            ),
        },
        held_out=False,
        written={"preference": "preferred"},
    ),
}
