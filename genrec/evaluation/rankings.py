"""Ranked lists and relevant items in files: checked whoever made them, written for others to read."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pa_parquet

from genrec.core.errors import DataError
from genrec.core.files import atomic_path
from genrec.data_prep import ItemId, UserId
from genrec.data_prep.tables import read_table

TABLE_ENDINGS = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv")


@dataclass(frozen=True)
class _Kind:
    """What a kind of file may hold.

    Attributes:
        trec_endings: File name endings that mean a TREC file.
        fields: Of a line of a TREC file; ``user_id``, ``item_id`` and ``numbers`` are read.
        lists: Columns of a table that may hold a user's items, the preferred one first.
        numbers: Columns of a table that may hold a pair's number; the first is what JSON may give.
        allowed: All of this for people.
    """

    trec_endings: tuple[str, ...]
    fields: tuple[str, ...]
    lists: tuple[str, ...]
    numbers: tuple[str, ...]
    allowed: str


_RUN = _Kind(
    (".trec", ".run", ".txt"),
    ("user_id", "Q0", "item_id", "rank", "score", "tag"),
    ("item_ids",),
    ("score", "rank"),
    "Allowed are .parquet, .jsonl, .csv and .tsv tables with the columns user_id, item_id, and score or rank "
    "or both, or (not in .csv and .tsv) user_id, item_ids (lists, best first) and, if wanted, scores "
    "(lists); .json with {user: [items]} or {user: {item: score}}; and TREC runs (.trec, .run, .txt) with "
    "lines of 'user Q0 item rank score tag'.",
)
_QRELS = _Kind(
    (".trec", ".qrels", ".txt"),
    ("user_id", "0", "item_id", "relevance"),
    ("targets", "item_ids"),
    ("relevance", "rating"),
    "Allowed are .parquet, .jsonl, .csv and .tsv tables with the columns user_id, item_id and, if wanted, "
    "relevance or rating (above 0 is relevant), or (not in .csv and .tsv) user_id and targets or item_ids "
    "(lists); .json with {user: [items]} or {user: {item: relevance}}; and TREC qrels (.trec, .qrels, .txt) "
    "with lines of 'user 0 item relevance'.",
)


@dataclass(frozen=True)
class Rankings:
    """Ranked lists of distinct items, one a user, with scores that do not rise; checked when made.

    Attributes:
        user_ids: Distinct; a user who is ranked several times has several row ids here.
        item_ids: Items of each user, best first.
        scores: Scores of those items, or None.

    Raises:
        DataError: If users, lists and scores are not as many, a user comes twice, an item comes twice in a
            list, a score is not a finite number, or a list's scores rise somewhere. The first is named.
    """

    user_ids: list[UserId]
    item_ids: list[list[ItemId]]
    scores: list[list[float]] | None = None

    def __post_init__(self) -> None:
        _check_lists(self.user_ids, self.item_ids, "is listed")
        if self.scores is None:
            return
        lengths = np.fromiter(map(len, self.item_ids), np.int64, len(self.item_ids))
        given = np.fromiter(map(len, self.scores), np.int64, len(self.scores))
        if len(lengths) != len(given) or (lengths != given).any():
            raise DataError("There must be as many scores as items in every list.")
        values = np.fromiter(chain.from_iterable(self.scores), np.float64, int(lengths.sum()))
        owner = np.repeat(np.arange(len(lengths)), lengths)
        if len(wrong := np.flatnonzero(~np.isfinite(values))):
            raise DataError(
                f"{len(wrong):,} scores are not finite numbers, first {values[wrong[0]]} for user "
                f"{self.user_ids[owner[wrong[0]]]!r}."
            )
        rises = owner[1:][(values[1:] > values[:-1]) & (owner[1:] == owner[:-1])]
        if len(rises):
            raise DataError(
                f"The scores of {len(np.unique(rises)):,} lists rise somewhere, first for user "
                f"{self.user_ids[rises[0]]!r}. A list is best first, so that its scores fall or stay: sort "
                "it, or leave the scores out if the order is meant."
            )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes Parquet, whole or not at all: user_id, item_ids and, where there are scores, scores."""
        columns = {
            "user_id": pa.array(self.user_ids, pa.string()),
            "item_ids": pa.array(self.item_ids, pa.list_(pa.string())),
        }
        if self.scores is not None:
            columns["scores"] = pa.array(self.scores, pa.list_(pa.float64()))
        with atomic_path(path) as part:
            pa_parquet.write_table(pa.table(columns), part)


def read_rankings(path: str | os.PathLike[str]) -> Rankings:
    """Returns the ranked lists of a file, users in order of first appearance.

    - Tables (``.parquet``, ``.jsonl``, ``.ndjson``, ``.csv``, ``.tsv``): one row a user, with ``user_id``, a
      list ``item_ids`` and, if wanted, a list ``scores``; or one row a listed item, with ``user_id``,
      ``item_id`` and ``score`` or ``rank`` or both. Other columns are left aside.
    - ``.json``: ``{user: [items]}`` or ``{user: {item: score}}``.
    - TREC runs (``.trec``, ``.run``, ``.txt``): lines of ``user Q0 item rank score tag``.

    A list is taken in the order given. Where items come one by one, a higher score is better; equal scores go
    by the rank, lower first, and then by the order of the file; without scores the rank decides. trec_eval
    lets the score decide too, but orders equal scores by item id, last first (``form_res_rels.c`` of
    https://github.com/usnistgov/trec_eval), which would rank by name.

    Ids are text; whole numbers become text.

    Raises:
        DataError: If the file is missing, empty, of another kind or broken; a column or an id is missing; a
            line of a TREC file has not six fields; a score or a rank is not a finite number; or as
            ``Rankings``. The first offenders are named.
    """
    pairs = _read_pairs(Path(path), _RUN)
    score, rank = pairs.numbers.get("score"), pairs.numbers.get("rank")
    rows = np.arange(len(pairs.owner))
    if not pairs.listed:
        if score is None and rank is None:
            raise DataError(
                f"{path} has neither score nor rank, so that the order is unknown. {_RUN.allowed}"
            )
        keys = ([] if rank is None else [rank]) + ([] if score is None else [-score])
        rows = np.lexsort((*keys, pairs.owner))
    scores = None if score is None else pairs.number_lists("score", rows)
    try:
        return Rankings(pairs.user_ids, pairs.item_lists(rows), scores)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_relevant(path: str | os.PathLike[str]) -> dict[UserId, list[ItemId]]:
    """Returns each user's relevant items, in the order of the file; an empty list where none is.

    - Tables (endings as in ``read_rankings``): one row a user, with ``user_id`` and a list ``targets`` or, if
      there is none, ``item_ids``; or one row an item, with ``user_id``, ``item_id`` and, if wanted,
      ``relevance`` or, if there is none, ``rating``.
    - ``.json``: ``{user: [items]}`` or ``{user: {item: relevance}}``.
    - TREC qrels (``.trec``, ``.qrels``, ``.txt``): lines of ``user 0 item relevance``.

    An item is relevant if its relevance or rating is above 0, or none is given.

    Raises:
        DataError: As ``read_rankings``, of four fields and of relevance or rating; or if an item is relevant
            twice for a user.
    """
    pairs = _read_pairs(Path(path), _QRELS)
    given = next((pairs.numbers[name] for name in _QRELS.numbers if name in pairs.numbers), None)
    rows = np.argsort(pairs.owner, kind="stable")
    lists = pairs.item_lists(rows if given is None else rows[given[rows] > 0])
    try:
        _check_lists(pairs.user_ids, lists, "is relevant")
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return dict(zip(pairs.user_ids, lists, strict=True))


def align(
    rankings: Rankings,
    user_ids: Sequence[UserId],
    known_items: Collection[ItemId] | None,
    on_missing: Literal["error", "empty"] = "error",
    on_unknown: Literal["error", "miss"] = "error",
) -> tuple[list[list[ItemId]], dict[str, int]]:
    """Returns the lists of ``user_ids``, in that order, and what did not fit, counted.

    The counts are ``num_missing_users`` (to be evaluated, but without a list), ``num_extra_users`` (with a
    list, but not to be evaluated; left aside), ``num_unknown_items`` (places of the lists returned whose item
    is not in the catalogue) and ``num_short_lists`` (of those returned, shorter than the longest).

    Args:
        rankings: Lists of any users.
        user_ids: Users to be evaluated.
        known_items: The catalogue; None takes every item as known.
        on_missing: ``"empty"`` gives a user without a list an empty one, so that the user counts as a miss.
        on_unknown: ``"miss"`` keeps unknown items in their places, where they are misses.

    Raises:
        DataError: If a user has no list or an item is unknown, and that is not allowed. The first three are
            named.
    """
    place = {user: number for number, user in enumerate(rankings.user_ids)}
    missing = [user for user in user_ids if user not in place]
    if missing and on_missing == "error":
        raise DataError(
            f"{len(missing):,} of {len(user_ids):,} users to be evaluated have no ranking, first "
            f"{_first(missing)}. Rank them too, or count them as misses with on_missing='empty'."
        )
    lists = [rankings.item_ids[place[user]] if user in place else [] for user in user_ids]
    listed = dict.fromkeys(chain.from_iterable(lists))
    known = listed.keys() if known_items is None else set(known_items)
    unknown = [item for item in listed if item not in known]
    if unknown and on_unknown == "error":
        raise DataError(
            f"{len(unknown):,} of {len(listed):,} listed items are not in the catalogue of {len(known):,} "
            f"items, first {_first(unknown)}. Rank items of the catalogue only, or count them as misses with "
            "on_unknown='miss'."
        )
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    strange = set(unknown)
    return lists, {
        "num_missing_users": len(missing),
        "num_extra_users": len(place.keys() - set(user_ids)),
        "num_unknown_items": sum(item in strange for items in lists for item in items) if strange else 0,
        "num_short_lists": int((lengths < lengths.max(initial=0)).sum()),
    }


def write_trec(rankings: Rankings, path: str | os.PathLike[str], tag: str) -> None:
    """Writes a TREC run that ``trec_eval``, ``ranx`` and ``read_rankings`` rank as these lists are.

    All of them order by score alone where scores differ, older versions of trec_eval by 32-bit scores. So a
    list without scores, or whose scores do not differ as 32-bit floats, gets n, n - 1, ..., 1 for its n items
    instead. A user with an empty list has no line.

    Args:
        rankings: Lists.
        path: File to write, whole or not at all.
        tag: Name of the run.

    Raises:
        DataError: If an id or the tag is empty or has white space, which the format cannot hold.
    """
    _refuse_white_space([*rankings.user_ids, *dict.fromkeys(chain.from_iterable(rankings.item_ids)), tag])
    given = rankings.scores or [[]] * len(rankings.user_ids)
    with atomic_path(path) as part, open(part, "w", encoding="utf-8", newline="\n") as sink:
        for user, items, scores in zip(
            rankings.user_ids, rankings.item_ids, _trec_scores(given), strict=True
        ):
            held = scores or range(len(items), 0, -1)
            sink.writelines(
                f"{user} Q0 {item} {rank} {score} {tag}\n"
                for rank, (item, score) in enumerate(zip(items, held, strict=True), 1)
            )


def write_qrels(relevant: Mapping[UserId, Sequence[ItemId]], path: str | os.PathLike[str]) -> None:
    """Writes relevant items as TREC qrels with relevance 1, whole or not at all; who has none has no line.

    Raises:
        DataError: If an id is empty or has white space, which the format cannot hold.
    """
    _refuse_white_space([*relevant, *dict.fromkeys(chain.from_iterable(relevant.values()))])
    with atomic_path(path) as part, open(part, "w", encoding="utf-8", newline="\n") as sink:
        for user, items in relevant.items():
            sink.writelines(f"{user} 0 {item} 1\n" for item in items)


@dataclass(frozen=True)
class _Pairs:
    """Users, and pairs of a user and an item as a file has them.

    Attributes:
        user_ids: Users, also those without a pair.
        owner: ``(pairs,)`` place of the pair's user.
        items: ``(pairs,)`` item ids, as codes of distinct texts.
        numbers: ``(pairs,)`` finite values by name.
        listed: Whether the file has lists, whose order counts, and not pairs one by one.
    """

    user_ids: list[UserId]
    owner: np.ndarray
    items: pa.DictionaryArray
    numbers: dict[str, np.ndarray]
    listed: bool

    def item_lists(self, rows: np.ndarray) -> list[list[ItemId]]:
        """Returns the items of these pairs as one list a user; ``owner[rows]`` must not fall."""
        return self._lists(_objects(self.items, rows), rows)

    def number_lists(self, name: str, rows: np.ndarray) -> list[list[float]]:
        """Returns one of the numbers of these pairs in the same way."""
        return self._lists(self.numbers[name][rows], rows)

    def _lists(self, values: np.ndarray, rows: np.ndarray) -> list[list[Any]]:
        start = np.searchsorted(self.owner[rows], np.arange(len(self.user_ids) + 1)).tolist()
        flat = values.tolist()
        return [flat[first:end] for first, end in pairwise(start)]


def _read_pairs(file: Path, kind: _Kind) -> _Pairs:
    """Returns the pairs of a file of any form.

    Raises:
        DataError: As ``read_rankings``.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist. {kind.allowed}")
    if file.suffix not in (*TABLE_ENDINGS, *kind.trec_endings, ".json"):
        raise DataError(f"{file} has the ending {file.suffix!r}. {kind.allowed}")
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty; it needs at least one user. {kind.allowed}")
    if file.suffix == ".json":
        return _json_pairs(file, kind)
    if file.suffix in kind.trec_endings:
        table, lines = _read_trec(file, kind.fields)
        return _long_pairs(table, kind, file, lines, "line")
    table = read_table(file)
    if table.num_rows == 0:
        raise DataError(f"{file} has columns but no rows; it needs at least one user.")
    list_column = next((name for name in kind.lists if name in table.column_names), None)
    missing = [name for name in ("user_id", list_column or "item_id") if name not in table.column_names]
    if missing:
        raise DataError(
            f"{file} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}. It has: "
            f"{', '.join(table.column_names)}. {kind.allowed}"
        )
    if list_column:
        return _wide_pairs(table, list_column, kind, file)
    return _long_pairs(table, kind, file, np.arange(table.num_rows) + 1, "row")


def _read_trec(file: Path, fields: tuple[str, ...]) -> tuple[pa.Table, np.ndarray]:
    """Returns the fields of a TREC file as text columns, and each row's line number; empty lines are no rows.

    Raises:
        DataError: If the file is not UTF-8 text, has no line, or a line has not so many fields.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}.") from error
    lines = pc.list_flatten(pc.split_pattern(pa.array([text], pa.large_string()), "\n"))
    lines = pc.ascii_trim_whitespace(lines)
    filled = np.flatnonzero(pc.not_equal(lines, "").to_numpy(zero_copy_only=False))
    if not len(filled):
        raise DataError(f"{file} has no line that is not empty; it needs at least one user.")
    parts = pc.ascii_split_whitespace(lines.take(pa.array(filled)))
    wrong = np.flatnonzero(pc.list_value_length(parts).to_numpy() != len(fields))
    if len(wrong):
        shown = "; ".join(f"line {filled[row] + 1}: {lines[filled[row]].as_py()!r}" for row in wrong[:3])
        raise DataError(
            f"{len(wrong):,} of {len(filled):,} lines of {file} have not the {len(fields)} fields "
            f"{' '.join(fields)}, separated by white space. First {shown}."
        )
    columns = {name: pc.list_element(parts, place) for place, name in enumerate(fields)}
    return pa.table(columns), filled + 1


def _long_pairs(table: pa.Table, kind: _Kind, file: Path, rows: np.ndarray, unit: str) -> _Pairs:
    """Returns the pairs of a table with one pair a row; errors name rows by ``unit`` and their ``rows``."""
    users = _encoded(table["user_id"], f"{file}, column user_id", rows, unit)
    items = _encoded(table["item_id"], f"{file}, column item_id", rows, unit)
    numbers = {
        name: _numbers(table[name], f"{file}, column {name}", rows, unit)
        for name in kind.numbers
        if name in table.column_names
    }
    return _Pairs(users.dictionary.to_pylist(), users.indices.to_numpy(), items, numbers, False)


def _wide_pairs(table: pa.Table, list_column: str, kind: _Kind, file: Path) -> _Pairs:
    """Returns the pairs of a table with one user a row; a ranking's ``scores`` are the number ``score``."""
    rows = np.arange(table.num_rows) + 1
    users = _objects(_encoded(table["user_id"], f"{file}, column user_id", rows, "row"), rows - 1).tolist()
    lengths = _lengths(table, list_column, kind, file)
    owner = np.repeat(np.arange(len(users)), lengths)
    flat = pc.list_flatten(table[list_column])
    items = _encoded(flat, f"{file}, column {list_column}", owner + 1, "row")
    numbers = {}
    if kind is _RUN and "scores" in table.column_names:
        wrong = np.flatnonzero(_lengths(table, "scores", kind, file) != lengths)
        if len(wrong):
            raise DataError(
                f"{file} has {len(wrong):,} rows with another number of scores than of items, first row "
                f"{wrong[0] + 1} (user {users[wrong[0]]!r})."
            )
        flat = pc.list_flatten(table["scores"])
        numbers["score"] = _numbers(flat, f"{file}, column scores", owner + 1, "row")
    return _Pairs(users, owner, items, numbers, True)


def _json_pairs(file: Path, kind: _Kind) -> _Pairs:
    """Returns the pairs of ``{user: [items]}`` or ``{user: {item: number}}``.

    Raises:
        DataError: If the file is neither, or a key comes twice, of which plain JSON would keep the last.
    """

    def distinct(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(entries)) < len(entries):
            twice = _repeated([key for key, _ in entries])
            raise DataError(
                f"{file} has {twice!r} twice in one object; each user and each item may come once."
            )
        return found

    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=distinct)
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}.") from error
    form = type(next(iter(found.values()))) if isinstance(found, dict) and found else None
    wrong = (
        [user for user, listed in found.items() if type(listed) is not form] if form in (list, dict) else []
    )
    if form not in (list, dict) or wrong:
        where = f" (unlike the first user, {wrong[0]!r} has {found[wrong[0]]!r:.40})" if wrong else ""
        raise DataError(
            f"{file} does not give a list, or an object, for each of at least one user{where}. {kind.allowed}"
        )
    owner = np.repeat(np.arange(len(found)), [len(listed) for listed in found.values()])
    rows = np.array([f"of user {user!r}" for user in found], object)[owner]
    listed = list(chain.from_iterable(found.values()))
    for place in _of_other_types(listed, {str, int}):
        raise DataError(
            f"{file} has the item {listed[place]!r:.40} {rows[place]}; ids are text or whole numbers."
        )
    numbers = {}
    if form is dict:
        values = list(chain.from_iterable(entry.values() for entry in found.values()))
        for place in _of_other_types(values, {int, float}):
            raise DataError(
                f"{file} has the {kind.numbers[0]} {values[place]!r:.40} {rows[place]}; it must be a number."
            )
        held = pa.array(np.array(values, np.float64))
        numbers[kind.numbers[0]] = _numbers(held, f"{file}, {kind.numbers[0]}", rows, "the object")
    places = np.arange(len(found))
    users = _encoded(pa.array(found, pa.large_string()), f"{file}, users", places + 1, "place")
    items = _encoded(pa.array(map(str, listed), pa.large_string()), f"{file}, items", rows, "the list")
    return _Pairs(_objects(users, places).tolist(), owner, items, numbers, form is list)


def _encoded(
    column: pa.ChunkedArray | pa.Array, name: str, rows: np.ndarray, unit: str
) -> pa.DictionaryArray:
    """Returns ids as codes of distinct texts, in order of first appearance.

    Raises:
        DataError: If ids are neither text nor whole numbers, or one is missing or blank.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (_is_text(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        raise DataError(f"{name} holds {column.type}; ids are text or whole numbers.")
    encoded = pc.dictionary_encode(pc.cast(column, pa.large_string()))
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    blank = pc.equal(pc.utf8_trim_whitespace(encoded.dictionary), "").to_numpy(zero_copy_only=False)
    codes = pc.fill_null(encoded.indices, -1).to_numpy()
    wrong = np.flatnonzero(np.append(blank, True)[codes])
    if len(wrong):
        raise DataError(f"{name}: {len(wrong):,} ids are missing, first in {unit} {rows[wrong[0]]}.")
    return encoded


def _objects(encoded: pa.DictionaryArray, rows: np.ndarray) -> np.ndarray:
    """Returns ``(rows,)`` texts of these rows, equal ones being one object, which saves memory."""
    return np.array(encoded.dictionary.to_pylist(), object)[encoded.indices.to_numpy()[rows]]


def _numbers(column: pa.ChunkedArray | pa.Array, name: str, rows: np.ndarray, unit: str) -> np.ndarray:
    """Returns a column as float64.

    Raises:
        DataError: If a value is not a finite number; the first three are named.
    """
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    if not any(check(column.type) for check in (_is_text, pa.types.is_null, *numeric)):
        raise DataError(f"{name} holds {column.type}; it must hold numbers.")
    texts = pc.utf8_trim_whitespace(column) if _is_text(column.type) else column
    try:
        values = pc.cast(texts, pa.float64(), safe=False)
    except pa.ArrowInvalid:
        number = pc.match_substring_regex(texts, r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
        values = pc.cast(pc.if_else(number, texts, None), pa.float64())
    values = values.to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        shown = ", ".join(f"{column[int(row)].as_py()!r} in {unit} {rows[row]}" for row in wrong[:3])
        raise DataError(f"{name}: {len(wrong):,} values are not finite numbers, first {shown}.")
    return values


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _lengths(table: pa.Table, name: str, kind: _Kind, file: Path) -> np.ndarray:
    """Returns ``(rows,)`` lengths of a column of lists.

    Raises:
        DataError: If the column does not hold lists, or a row has none.
    """
    held = table[name].type
    if not (pa.types.is_list(held) or pa.types.is_large_list(held) or pa.types.is_fixed_size_list(held)):
        raise DataError(f"{file}, column {name} holds {held}, not lists. {kind.allowed}")
    lengths = pc.fill_null(pc.list_value_length(table[name]), -1).to_numpy()
    wrong = np.flatnonzero(lengths < 0)
    if len(wrong):
        raise DataError(
            f"{file}, column {name}: {len(wrong):,} rows have no list, first row {wrong[0] + 1}. One who got "
            "nothing has an empty list."
        )
    return lengths


def _check_lists(user_ids: Sequence[UserId], lists: Sequence[Sequence[ItemId]], what: str) -> None:
    """Checks that users are distinct, that each has a list, and that the items of a list are distinct.

    Raises:
        DataError: If they are not; the first is named.
    """
    if len(user_ids) != len(lists):
        raise DataError(f"{len(user_ids):,} users for {len(lists):,} lists; each user needs one.")
    if (repeats := len(user_ids) - len(set(user_ids))) > 0:
        raise DataError(
            f"{repeats:,} rows name a user who has one already, first {_repeated(user_ids)!r}. A user who is "
            "ranked several times needs several row ids, such as 'user/0' and 'user/1'."
        )
    wrong = [row for row, items in enumerate(lists) if len(set(items)) < len(items)]
    if wrong:
        raise DataError(
            f"An item {what} twice for {len(wrong):,} users, first {_repeated(lists[wrong[0]])!r} for user "
            f"{user_ids[wrong[0]]!r}; each item may come once."
        )


def _repeated(values: Sequence[str]) -> str:
    """Returns the first value that was there before; there must be one."""
    first = {value: place for place, value in reversed(list(enumerate(values)))}
    return next(value for place, value in enumerate(values) if first[value] < place)


def _of_other_types(values: Sequence[Any], allowed: set[type]) -> list[int]:
    """Returns the places of values of other types, a bool being no int."""
    if set(map(type, values)) <= allowed:
        return []
    return [place for place, value in enumerate(values) if type(value) not in allowed]


def _trec_scores(scores: Sequence[list[float]]) -> Iterator[list[float]]:
    """Yields each list of scores, or an empty one where 32-bit floats cannot tell them apart."""
    lengths = np.fromiter(map(len, scores), np.int64, len(scores))
    with np.errstate(over="ignore"):
        held = np.fromiter(chain.from_iterable(scores), np.float64, int(lengths.sum())).astype(np.float32)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    tied = set(owner[1:][(held[1:] == held[:-1]) & (owner[1:] == owner[:-1])].tolist())
    return ([] if row in tied else values for row, values in enumerate(scores))


def _refuse_white_space(ids: Sequence[str]) -> None:
    """Raises DataError if an id is empty or has white space."""
    wrong = [each for each in ids if each.split() != [each]]
    if wrong:
        raise DataError(
            "TREC files separate their fields by white space, so that no id or tag may be empty or have any; "
            f"{len(wrong):,} do, first {_first(wrong)}. Rename them, or write Parquet."
        )


def _first(values: Sequence[str]) -> str:
    return ", ".join(map(repr, values[:3]))
