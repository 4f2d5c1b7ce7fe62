"""What is known of users beside what they took: as words for prompts, and as categories for models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from genrec.core.errors import DataError
from genrec.data_prep import UserId
from genrec.tasks.views import plain_text

# Fewer users may well differ in everything that is worth knowing of them.
_MANY = 20
_POSTAL = {"zip", "zipcode", "postcode", "postalcode"}
_GENDERS = {"m": "male", "f": "female"}


class Profiles:
    """The profiles of users, whose columns are words and categories.

    Left out are columns of zip codes and of ids, by their names (``zip_code``, ``account_id``), and those in which no two of
    20 users or more are alike: they name a user, and say nothing of one.

    Attributes:
        columns: Names of the columns that are used, in the order of the table.
        left_out: Names of those that are not.

    Args:
        table: ``user_id`` and any columns, a row a user.

    Raises:
        DataError: If it has no ``user_id``, or a user twice.
    """

    def __init__(self, table: pa.Table) -> None:
        if "user_id" not in table.column_names:
            raise DataError(f"Profiles need the column user_id; got {', '.join(table.column_names)}.")
        ids: list[UserId] = table["user_id"].to_pylist()
        self._row = {user: row for row, user in enumerate(ids)}
        if len(self._row) < len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            raise DataError(f"Profiles have a row a user; {twice!r} has several.")
        cells = {
            name: [plain_text(cell, ", ") for cell in table[name].to_pylist()]
            for name in table.column_names
            if name != "user_id"
        }
        self.left_out = [name for name, values in cells.items() if _names_users(name, values)]
        self._cells = {name: values for name, values in cells.items() if name not in self.left_out}
        self.columns = list(self._cells)

    def fields(self, user_ids: Sequence[UserId]) -> dict[str, list[str | None]]:
        """Returns ``{column: the category of each user}``, None where nothing is known; ages are in decades (``20 to 29``)."""
        rows = [self._row.get(user) for user in user_ids]
        return {
            name: [None if row is None else _category(name, values[row]) for row in rows]
            for name, values in self._cells.items()
        }

    def words(self, user: UserId) -> str | None:
        """Returns what is known of a user, such as ``24 years old, male, occupation: writer``; None where nothing is."""
        row = self._row.get(user)
        if row is None:
            return None
        known = [(name, value) for name, values in self._cells.items() if (value := values[row])]
        return ", ".join(_said(name, value) for name, value in known) or None


def _plain_name(column: str) -> str:
    return re.sub(r"[\W_]", "", column).lower()


def _names_users(column: str, values: Sequence[str | None]) -> bool:
    if _plain_name(column) in _POSTAL or re.search(r"(^|[\W_])id$|[a-z]I[dD]$|^ID$", column):
        return True
    known = [value for value in values if value is not None]
    return len(known) >= _MANY and len(set(known)) == len(known) and _plain_name(column) != "age"


def _years(column: str, value: str) -> int | None:
    """Returns the age that a value is, None for anything else."""
    if _plain_name(column) != "age" or not re.fullmatch(r"\d{1,3}(\.\d+)?", value):
        return None
    return int(float(value))


def _category(column: str, value: str | None) -> str | None:
    if value is None or (years := _years(column, value)) is None:
        return value
    decade = years // 10 * 10
    return f"{decade} to {decade + 9}"


def _said(column: str, value: str) -> str:
    if (years := _years(column, value)) is not None:
        return f"{years} year{'' if years == 1 else 's'} old"
    if _plain_name(column) in ("gender", "sex"):
        return _GENDERS.get(value.lower(), value)
    return f"{re.sub(r'[_-]+', ' ', column)}: {value}"
