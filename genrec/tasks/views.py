"""What a template may print of a user, an item or a list of items, and the filters that print lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from genrec.data_prep import ItemCatalog, ItemId
from genrec.indexing import ItemIndex

FIELDS = ("id", "code", "title", "description", "brand", "categories", "price")


class ItemBook:
    """Identifier and texts of every item by its number in the index, as templates print them.

    A text is None where the catalogue has none: an item that is called by its id has no title. Without an index numbers
    are those of the catalogue, and there are no identifiers.

    Attributes:
        ids: Item ids.
        codes: Identifiers, their tokens joined.
    """

    def __init__(self, index: ItemIndex | None, items: ItemCatalog | None = None) -> None:
        self.ids: list[ItemId] = index.item_ids if index else items.item_ids if items else []
        self.codes = ["".join(code) for code in index.codes.values()] if index else []
        self._items = items

    @cached_property
    def number(self) -> dict[ItemId, int]:
        """``{item id: number}``."""
        return {item: number for number, item in enumerate(self.ids)}

    @cached_property
    def title(self) -> list[str | None]:
        """Titles."""
        found = self._column("title")
        return [None if text == f"Item {item}" else text for item, text in zip(self.ids, found, strict=True)]

    @cached_property
    def description(self) -> list[str | None]:
        """Descriptions; parts of one are joined by a space."""
        return self._column("description", " ")

    @cached_property
    def brand(self) -> list[str | None]:
        """Brands."""
        return self._column("brand")

    @cached_property
    def categories(self) -> list[str | None]:
        """Categories, joined by a comma and a space."""
        return self._column("categories", ", ")

    @cached_property
    def category_names(self) -> list[tuple[str, ...]]:
        """Categories one by one."""
        cells = self._cells("categories")
        return [
            tuple(
                text
                for each in (cell if isinstance(cell, list) else [cell])
                if (text := plain_text(each, ", "))
            )
            for cell in cells
        ]

    @cached_property
    def price(self) -> list[str | None]:
        """Prices as the catalogue has them; numbers without needless zeros."""
        return self._column("price")

    def has(self, number: int, field: str) -> bool:
        """Returns whether an item has a field of ``FIELDS``."""
        return field in ("id", "code") or getattr(self, field)[number] is not None

    def _column(self, name: str, joint: str = " ") -> list[str | None]:
        return [plain_text(cell, joint) for cell in self._cells(name)]

    def _cells(self, name: str) -> list[Any]:
        """Returns a column of the catalogue in the order of the index, None where there is nothing."""
        if self._items is None or name not in self._items.table.column_names:
            return [None] * len(self.ids)
        cells = dict(zip(self._items.item_ids, self._items.table[name].to_pylist(), strict=True))
        return [cells.get(item) for item in self.ids]


def plain_text(value: Any, joint: str) -> str | None:
    """Returns a cell of a table as text in one piece, None where it holds nothing."""
    if isinstance(value, list):
        text = joint.join(part for each in value if (part := plain_text(each, joint)))
    elif isinstance(value, float):
        text = f"{value:g}" if value == value else ""
    else:
        text = "" if value is None else str(value)
    return text.strip() or None


class User:
    """A user: prints as ``user_7``, numbered by first appearance in training; ``name`` and ``profile`` where there are any."""

    __slots__ = ("_name", "_number", "_profile")

    def __init__(
        self, number: int, name: Callable[[], str | None], profile: Callable[[], str | None]
    ) -> None:
        self._number, self._name, self._profile = number, name, profile

    def __str__(self) -> str:
        return f"user_{self._number}"

    @property
    def name(self) -> str | None:
        """The column ``user_name`` of the log."""
        return self._name()

    @property
    def profile(self) -> str | None:
        """What the table of users says, in words."""
        return self._profile()


class Item:
    """An item: prints as its identifier, and has ``FIELDS``."""

    __slots__ = ("_book", "_number")

    def __init__(self, book: ItemBook, number: int) -> None:
        self._book, self._number = book, number

    def __str__(self) -> str:
        return self._book.codes[self._number]

    def __getattr__(self, name: str) -> Any:
        if name == "code":
            return str(self)
        if name == "id":
            return self._book.ids[self._number]
        if name in FIELDS:
            return getattr(self._book, name)[self._number]
        raise AttributeError(name)

    def _has(self, field: str) -> bool:
        return self._book.has(self._number, field)

    @property
    def _numbers(self) -> list[int]:
        return [self._number]


class Items:
    """Items in an order: prints as their identifiers, joined by a comma and a space."""

    __slots__ = ("_book", "_numbers", "_ratings")

    def __init__(self, book: ItemBook, numbers: list[int], ratings: Sequence[float] | None = None) -> None:
        self._book, self._numbers, self._ratings = book, numbers, ratings

    def __str__(self) -> str:
        return self._codes(", ")

    def _codes(self, joint: str) -> str:
        return joint.join(map(self._book.codes.__getitem__, self._numbers))

    def _titles(self) -> list[str]:
        return [str(self._book.title[number]) for number in self._numbers]

    def _has(self, field: str) -> bool:
        return field == "code" or all(self._book.has(number, field) for number in self._numbers)


class Score(float):
    """A number that prints without needless zeros: 4, 4.3."""

    def __str__(self) -> str:
        return f"{float(self):g}"


def _rated(items: Items) -> str:
    ratings = items._ratings if items._ratings is not None else [float("nan")] * len(items._numbers)
    lines = []
    for place, (title, rating) in enumerate(zip(items._titles(), ratings, strict=True), start=1):
        stars = "" if rating != rating else f" ({Score(rating)} star{'' if rating == 1 else 's'})"
        lines.append(f"{place}. {title}{stars}")
    return "\n".join(lines)


# Each with the field of every item that it prints.
LIST_FILTERS: dict[str, tuple[str, Callable[[Items], str]]] = {
    "arrows": ("code", lambda items: items._codes(" -> ")),
    "bare": ("code", lambda items: items._codes("")),
    "numbered": (
        "title",
        lambda items: "\n".join(f"{place}. {title}" for place, title in enumerate(items._titles(), start=1)),
    ),
    "quoted": ("title", lambda items: ", ".join(f'"{title}"' for title in items._titles())),
    "rated": ("title", _rated),
    "titles": ("title", lambda items: ", ".join(items._titles())),
}
