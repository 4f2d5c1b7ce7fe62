"""Filters and splits of a log, each written once, as Ibis expressions that any engine runs.

A rule takes a log with the columns ``user`` and ``item`` (numbers or text), ``timestamp`` and ``row`` (place in the
source, which decides between equal times), and returns the same table with fewer rows or another column.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from genrec.data_prep.engine import memory_engine

if TYPE_CHECKING:
    import ibis

Keep = Literal["all", "first", "last"]


def at_least(log: ibis.Table, rating: float) -> ibis.Table:
    """Returns the interactions with at least this rating; those without a rating are left out."""
    return log.filter(log.rating >= rating)


def within(log: ibis.Table, since: float | None, until: float | None) -> ibis.Table:
    """Returns the interactions from ``since`` on and before ``until``, either of which may be open."""
    if since is not None:
        log = log.filter(log.timestamp >= since)
    return log if until is None else log.filter(log.timestamp < until)


def once(log: ibis.Table, keep: Keep) -> ibis.Table:
    """Returns one interaction of each user and item, the first or the last."""
    import ibis

    if keep == "all":
        return log
    order = [log.timestamp, log.row] if keep == "first" else [log.timestamp.desc(), log.row.desc()]
    numbered = log.mutate(repeat=ibis.row_number().over(group_by=["user", "item"], order_by=order))
    return numbered.filter(numbered.repeat == 0).drop("repeat")


# Entities of HTML that shops' texts hold; the ampersand last, since the others begin with it.
ENTITIES = {
    "&nbsp;": " ",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": '"',
    "&#34;": '"',
    "&#39;": "'",
    "&apos;": "'",
    "&amp;": "&",
}


def cleaned(text: Any) -> Any:
    """Returns a text column without tags and entities of HTML, control characters and runs of white space."""
    text = text.re_replace(r"</?[A-Za-z!][^<>]*>", " ")
    for entity, letter in ENTITIES.items():
        text = text.replace(entity, letter)
    return text.re_replace(r"[\x00-\x20\x7f\xa0]+", " ").strip().nullif("")


def core_round(log: ibis.Table, user: int, item: int) -> ibis.Table:
    """Returns the interactions of users and items that have so many; a core is where this changes nothing."""
    kept = log
    for column, least in (("user", user), ("item", item)):
        if least > 1:
            counts = log.group_by(column).agg(size=log.count())
            kept = kept.semi_join(counts.filter(counts["size"] >= least), column)
    return kept


def placed(log: ibis.Table) -> ibis.Table:
    """Returns the log with ``place``, from 0 in each user's time order, and ``length``, the user's interactions."""
    import ibis

    order = ibis.row_number().over(group_by="user", order_by=["timestamp", "row"])
    return log.mutate(place=order, length=log.count().over(group_by="user"))


def leave_one_out(log: ibis.Table) -> ibis.Table:
    """Returns the log with ``part``: each user's last for test, the one before for validation, the others train.

    Users with fewer than three interactions train only.
    """
    import ibis

    log = placed(log)
    part = ibis.cases(
        (log.length < 3, "train"),
        (log.place == log.length - 1, "test"),
        (log.place == log.length - 2, "valid"),
        else_="train",
    )
    return log.mutate(part=part).drop("place", "length")


def _border(log: ibis.Table, share: float) -> ibis.Scalar:
    """Returns the time of the interaction at which the last ``share`` of the log begins."""
    import ibis

    counts = log.group_by("timestamp").agg(size=log.count())
    upto = counts.mutate(upto=counts["size"].sum().over(order_by="timestamp", rows=(None, 0)))
    begin = (log.count() * (1 - share)).floor().cast("int64").as_scalar()
    found: ibis.Scalar = upto.filter(upto.upto > begin).timestamp.min().as_scalar()
    assert isinstance(found, ibis.Scalar)
    return found


def global_temporal(log: ibis.Table, valid_share: float, test_share: float, targets: str) -> ibis.Table:
    """Returns the log with ``part`` by two points in time; all of equal time fall on the later side.

    Held-out interactions with nothing of their user before them are ``context``: they cannot be asked for. Where a
    window's items are asked for at once (``targets="all"``), that is the whole first window of such a user.
    """
    import ibis

    valid, test = _border(log, valid_share + test_share), _border(log, test_share)

    def side(time: Any) -> Any:
        return ibis.cases((time >= test, "test"), (time >= valid, "valid"), else_="train")

    log = placed(log.mutate(part=side(log.timestamp)))
    begun = side(log.timestamp.min().over(group_by="user"))
    nothing_before = log.part == begun if targets == "all" else log.place == 0
    part = ibis.cases(((log.part != "train") & nothing_before, "context"), else_=log.part)
    return log.mutate(part=part).drop("place", "length")


def sliding_windows(log: ibis.Table, valid_share: float, test_share: float) -> ibis.Table:
    """Returns the log with ``part`` as MiniOneRec and BIGRec cut it: by the number of windows, not by time.

    A window is an interaction with something of its user before it. They are put in time order, ties in the
    order of the source, and cut at the shares, so that interactions of equal time can lie on both sides of a border.
    """
    import ibis

    log = placed(log)
    windows = log.filter(log.place > 0)
    windows = windows.mutate(
        number=ibis.row_number().over(order_by=["timestamp", "row"]), total=windows.count()
    )
    ends = []
    for share in (valid_share + test_share, test_share):
        first = (windows.total * (1 - share)).floor().cast("int64")
        ends.append(windows.filter(windows.number == first).select("timestamp", "row"))
    held = []
    for end in ends:
        time, row = end.timestamp.as_scalar(), end.row.as_scalar()
        held.append((log.timestamp > time) | ((log.timestamp == time) & (log.row >= row)))
    part = ibis.cases(
        ((held[0] & (log.place == 0)), "context"), (held[1], "test"), (held[0], "valid"), else_="train"
    )
    return log.mutate(part=part).drop("place", "length")


def _groups(table: ibis.Table, order: list[Any], valid_share: float, test_share: float) -> ibis.Table:
    """Returns a table of users or items with ``group``: the last by ``order`` are for test, those before for validation."""
    import ibis

    ranked = table.mutate(rank=ibis.row_number().over(order_by=order), total=table.count())
    from_test = (ranked.total * (1 - test_share)).floor()
    from_valid = (ranked.total * (1 - test_share - valid_share)).floor()
    group = ibis.cases(
        (ranked["rank"] >= from_test, "test"), (ranked["rank"] >= from_valid, "valid"), else_="train"
    )
    return ranked.mutate(group=group).drop("rank", "total")


def _drawn(name: ibis.Column, seed: int) -> Any:
    """Returns what orders names by chance: a digest of seed and name, the same on every engine."""
    import ibis

    return (ibis.literal(f"{seed}/") + name).hexdigest("md5")


def user_disjoint(log: ibis.Table, valid_share: float, test_share: float, seed: int) -> ibis.Table:
    """Returns the log with ``part``: the users of validation and test, drawn by chance, are in training nowhere.

    Their last interaction is asked for, the others are ``context``. Needs the column ``user_id``.
    """
    import ibis

    users = log.select("user", "user_id").distinct()
    users = _groups(users, [_drawn(users.user_id, seed)], valid_share, test_share).select("user", "group")
    log = placed(log).join(users, "user")
    asked = (log.place == log.length - 1) & (log.place > 0)
    part = ibis.cases((log.group == "train", "train"), (asked, log.group), else_="context")
    return log.mutate(part=part).drop("place", "length", "group")


def cold_item(log: ibis.Table, valid_share: float, test_share: float, seed: int, cold: str) -> ibis.Table:
    """Returns the log with ``part``: the items of validation and test are in training nowhere.

    A user trains with what lies before the first such item, so that nothing later than a target is learned of
    anyone who is asked for it; every such item with something before it is asked for, what else follows is ``context``.

    Args:
        log: With the column ``item_id``.
        valid_share: Share of the items.
        test_share: Share of the items.
        seed: Of the draw.
        cold: ``newest``: the items that appear last. ``random``: drawn by chance.
    """
    import ibis

    items = log.group_by(["item", "item_id"]).agg(first_time=log.timestamp.min(), first_row=log.row.min())
    order = [items.first_time, items.first_row] if cold == "newest" else [_drawn(items.item_id, seed)]
    items = _groups(items, order, valid_share, test_share).select("item", "group")
    log = placed(log).join(items, "item")
    held = log.group != "train"
    begins = ibis.cases((held, log.place)).min().over(group_by="user")
    part = ibis.cases(
        (begins.isnull() | (log.place < begins), "train"),
        (held & (log.place > 0), log.group),
        else_="context",
    )
    return log.mutate(part=part).drop("place", "length", "group")


def run_in_memory(rule: Callable[..., ibis.Table], log: pa.Table, *arguments: Any) -> pa.Table:
    """Returns what a rule makes of an Arrow table, in order of ``row``, by DuckDB in this process.

    The expression is compiled once for each rule, its arguments and the table's columns: compiling takes ten times
    as long as running it on a small log.
    """
    schema = tuple(zip(log.schema.names, map(str, log.schema.types), strict=True))
    with memory_engine().con.con.cursor() as cursor:
        cursor.register("log", log)
        return cursor.sql(_compiled(rule, arguments, schema)).to_arrow_table()


@cache
def _compiled(
    rule: Callable[..., ibis.Table], arguments: tuple[Any, ...], schema: tuple[tuple[str, str], ...]
) -> str:
    import ibis

    kinds = {"string": "string", "int64": "int64", "double": "float64"}
    log = ibis.table({name: kinds[kind] for name, kind in schema}, name="log")
    return str(ibis.to_sql(rule(log, *arguments).order_by("row"), dialect="duckdb"))
