"""From a source to a prepared data set: read, check, filter, order, split, write, all of it out of core."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pa_parquet

from genrec._version import __version__
from genrec.core.errors import DataError
from genrec.core.files import atomic_path, hash_file, write_json
from genrec.core.hub import source_name
from genrec.core.progress import say
from genrec.data_prep import rules
from genrec.data_prep.card import write_dataset_card
from genrec.data_prep.catalog import ItemCatalog, with_lists
from genrec.data_prep.engine import Engine, Scan, in_memory, open_engine
from genrec.data_prep.log import InteractionLog
from genrec.data_prep.manifest import MANIFEST, hash_path
from genrec.data_prep.settings import DataSettings
from genrec.data_prep.sources import Reading, find_reading, without_login
from genrec.data_prep.split import check_parts, rule_in_words, split_rule
from genrec.data_prep.tables import (
    TIME_KEY,
    Checked,
    OnBadRows,
    TimeKind,
    check_items,
    check_log,
    check_users,
)

if TYPE_CHECKING:
    import ibis

LOG, CATALOG, PROFILES, REPORT = "interactions.parquet", "items.parquet", "users.parquet", "report.json"
QUARANTINE, SCRATCH = "quarantine.jsonl", ".scratch"
# Columns that are not carried along as they are; a part of an earlier preparation is not one of this.
KNOWN = ("user_id", "item_id", "timestamp", "rating", "row", "part")
# Steps in which a report counts interactions over time, in s; months are of 30.4375 days.
STEPS = {
    "minute": 60,
    "10 minutes": 600,
    "hour": 3_600,
    "6 hours": 21_600,
    "day": 86_400,
    "2 days": 172_800,
    "week": 604_800,
    "2 weeks": 1_209_600,
    "month": 2_629_800,
    "2 months": 5_259_600,
    "quarter": 7_889_400,
    "half-year": 15_778_800,
    "year": 31_557_600,
}
MOST_STEPS, MOST_RATINGS, RATING_STEPS = 120, 100, 20
PARTS = ("train", "valid", "test", "context")
WHO_WHAT_WHEN = ("user_id", "item_id", "timestamp")
WITH_PARTS = (*WHO_WHAT_WHEN, "part")


def prepare(settings: DataSettings, folder: str | Path) -> dict[str, Any]:
    """Returns the report of a data set that is written into a folder.

    The folder gets ``interactions.parquet`` (ordered by user and time, with ``part``), ``items.parquet``,
    ``users.parquet`` where something is known of users, ``report.json``, ``manifest.json``, ``README.md`` (a data set
    card) and, where rows were put aside, ``quarantine.jsonl``. Filters come in the order rating, time, repeats, core.

    Args:
        settings: The recipe's ``data``.
        folder: Where to write; what a former call left there is replaced.

    Raises:
        DataError: If the source cannot be read, has bad rows, or a filter or the split leaves nothing.
        RunError: If the disk refuses.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    quarantine = folder / QUARANTINE
    for stale in (quarantine, folder / "report.html", folder / PROFILES):
        stale.unlink(missing_ok=True)
    scratch = folder / SCRATCH
    with open_engine(settings.engine, scratch) as engine:
        s = settings
        reading = find_reading(s.source, scratch, s.format, s.items, s.query, s.encoding, s.users)
        if reading.terms:
            say(f"  {reading.format}: {reading.terms}")
        say(f"  reading {reading.log} as {reading.format}")
        scan = _scan(engine, reading.log, reading.shape_log)
        columns = {**reading.columns, **s.columns}
        time = s.time if s.time != "auto" else reading.time
        checked = check_log(engine, scan, columns, time, s.on_bad_rows, quarantine)
        if checked.time in ("ms", "us", "iso") and s.time == "auto":
            say(f"  times are read as {checked.time}")
        work = _Work(engine, s, checked)
        work.filter()
        items, about_items = _items(work, reading, quarantine)
        users, about_users = _users(work, reading, quarantine)
        work.write(folder / LOG)
        items.write(folder / CATALOG)
        if users is not None:
            with atomic_path(folder / PROFILES) as part:
                pa_parquet.write_table(users, part)
        report = {
            "genrec": __version__,
            "source": without_login(s.source),
            "origin": reading.origin or source_name(s.source),
            "format": reading.format,
            "version": reading.version,
            "terms": reading.terms,
            "engine": s.engine.name,
            "time": checked.time,
            "steps": work.steps,
            "read": {key: value for key, value in work.steps[0].items() if key != "step"},
            "kept": {key: value for key, value in work.steps[-1].items() if key != "step"},
            "num_quarantined": checked.num_bad,
            **work.about(),
            **about_items,
            **about_users,
            "split": rule_in_words(s.split),
            "log_sha256": content_hash(folder / LOG),
            "split_sha256": content_hash(folder / LOG, WITH_PARTS),
        }
    _write_manifest(folder, settings, reading, report)
    write_json(folder / REPORT, report)
    write_dataset_card(folder, report)
    return report


def _scan(engine: Engine, source: Any, shape: Any) -> Scan:
    scan = engine.scan(source)
    if shape is not None:
        scan.table = shape(scan.table)
    return scan


@dataclass
class _Work:
    """The log on its way: what is left of it after each step."""

    engine: Engine
    settings: DataSettings
    checked: Checked

    def __post_init__(self) -> None:
        table, engine = self.checked.table, self.engine
        self.users, self.items = (self._numbered(name) for name in ("user_id", "item_id"))
        rating = {"rating": table.rating} if "rating" in table.columns else {}
        log = table.inner_join(self.users, "user_id").inner_join(self.items, "item_id")
        self.log = engine.keep(log.select("user", "item", "timestamp", "row", **rating))
        self.steps: list[dict[str, Any]] = []
        self.log_cleaned: dict[str, int] = {}
        self._count("read")

    def _numbered(self, name: str) -> ibis.Table:
        """Returns the users' or items' names with their numbers, in order of first appearance."""
        import ibis

        first = self.checked.table.group_by(name).agg(first=self.checked.table.row.min())
        number = ibis.row_number().over(order_by="first")
        return self.engine.keep(first.select(name, **{name.removesuffix("_id"): number}))

    def _count(self, step: str) -> None:
        log = self.log
        found = self.engine.one(
            log.agg(interactions=log.count(), users=log.user.nunique(), items=log.item.nunique())
        )
        if not found["interactions"]:
            before = self.steps[-1]
            raise DataError(
                f"No interaction is left after {step}: before it the log had {before['interactions']:,} interactions of "
                f"{before['users']:,} users and {before['items']:,} items. Lower data.user_core, data.item_core or "
                "data.min_rating, or widen data.since and data.until."
            )
        self.steps.append({"step": step, **found})

    def _replace(self, log: ibis.Table) -> None:
        old, self.log = self.log, self.engine.keep(log)
        self.engine.drop(old)

    def filter(self) -> None:
        """Leaves the interactions that the settings keep."""
        s = self.settings
        if s.min_rating is not None:
            if "rating" not in self.log.columns:
                raise DataError(
                    f"data.min_rating={s.min_rating}, but the log has no ratings (data.columns.rating)."
                )
            self._replace(rules.at_least(self.log, s.min_rating))
            self._count(f"rating >= {s.min_rating:g}")
        if s.since is not None or s.until is not None:
            since, until = (
                _moment(value, key, self.checked.time)
                for key, value in (("since", s.since), ("until", s.until))
            )
            self._replace(rules.within(self.log, since, until))
            ends = [
                f"{key} {value:g}" if isinstance(value, int | float) else f"{key} {value}"
                for key, value in (("since", s.since), ("until", s.until))
                if value is not None
            ]
            self._count(", ".join(ends))
        if s.repeats != "all":
            self._replace(rules.once(self.log, s.repeats))
            self._count(f"{s.repeats} of repeats")
        if s.user_core > 1 or s.item_core > 1:
            before, size, rounds = -1, self._size(), 0
            while 0 < size != before:
                self._replace(rules.core_round(self.log, s.user_core, s.item_core))
                before, size, rounds = size, self._size(), rounds + 1
                say(f"  core filter, round {rounds}: {size:,} interactions")
            self._count(f"core (user >= {s.user_core}, item >= {s.item_core})")

    def _size(self) -> int:
        return int(self.engine.one(self.log.agg(size=self.log.count()))["size"])

    def _named(self, log: ibis.Table) -> ibis.Table:
        return log.inner_join(self.users, "user").inner_join(self.items, "item")

    def write(self, path: Path) -> None:
        """Writes the log with its parts, ordered by user and time."""
        rule, arguments = split_rule(self.settings.split)
        log = self.log
        if rule in (rules.user_disjoint, rules.cold_item):  # the draw is by name
            named = rule(self._named(log), *arguments)
        else:
            named = self._named(rule(log, *arguments))
        named = rules.placed(named)
        source = self.checked.table
        extra = [name for name in source.columns if name not in KNOWN]
        rating = ["rating"] if "rating" in log.columns else []
        if extra:
            kept = source.semi_join(log, "row")
            self.log_cleaned = self.cleaned_texts(
                kept, [name for name in extra if source[name].type().is_string()]
            )
            named = named.inner_join(kept.select("row", **{n: self.clean(kept[n]) for n in extra}), "row")
        order = ["user", "place"]
        columns = ["user_id", "item_id", "timestamp", *rating, *extra, "part"]
        self.log = self.engine.keep(named.select(*columns, *order, "item", "row"))
        self.engine.drop(log)
        sizes = self.engine.fetch(self.log.group_by("part").agg(size=self.log.count())).to_pylist()
        found = {row["part"]: row["size"] for row in sizes}
        self.parts = {part: found[part] for part in PARTS if part in found}
        check_parts(self.parts, sum(self.parts.values()), self.settings.split)
        self.engine.write(self.log.select(*columns, *order), path, order, {TIME_KEY: self.checked.unit})

    def cleaned_texts(self, table: ibis.Table, texts: list[str]) -> dict[str, int]:
        """Returns how many texts of each column cleaning changes, where any is and it is asked for."""
        if not texts or not self.settings.clean_text:
            return {}
        differ = {
            name: (table[name].strip().nullif("") != rules.cleaned(table[name])).sum() for name in texts
        }
        return {name: count for name, count in self.engine.one(table.agg(**differ)).items() if count}

    def clean(self, column: Any) -> Any:
        """Returns a column as it is written: its texts cleaned, where that is asked for."""
        return rules.cleaned(column) if self.settings.clean_text and column.type().is_string() else column

    def about(self) -> dict[str, Any]:
        """Returns what the report says of the log that was written."""
        log, one = self.log, self.engine.one
        import ibis

        users = log.group_by("user").agg(
            size=log.count(),
            evaluated=(log.part == "test").any(),
            trains=(log.part == "train").any(),
            last=log.timestamp.max(),
        )
        items = log.group_by("item").agg(size=log.count())
        neighbours = ibis.window(group_by="user", order_by="place")
        tied = log.mutate(tied=log.timestamp == log.timestamp.lag().over(neighbours))
        # Those of a user's last moment, of which another order of equal times would make another the last.
        ends = log.inner_join(users.select("user", "last"), ["user", log.timestamp == users.last])
        final = ends.group_by("user").agg(final=ends.item.argmax(ends.place))
        ends = ends.inner_join(final, "user")
        ends = ends.group_by("user").agg(size=ends.count(), same=(ends.item == ends.final).sum())
        ends = one(
            ends.agg(tied=(ends.same < ends["size"]).sum(), moved=(1 - ends.same / ends["size"]).sum())
        )
        pairs = log.select("user", "item").distinct()
        text = {
            "num_ties": one(tied.agg(n=tied.tied.sum()))["n"] or 0,
            "num_users_last_tied": ends["tied"] or 0,
            "num_users_last_by_chance": round(ends["moved"] or 0, 1),
            "num_repeats": sum(self.parts.values()) - one(pairs.agg(n=pairs.count()))["n"],
            "span": [one(log.agg(a=log.timestamp.min()))["a"], one(log.agg(a=log.timestamp.max()))["a"]],
            "num_evaluated_users": one(users.agg(n=users.evaluated.sum()))["n"],
            "lengths": _curve(self.engine, users),
            "popularity": _curve(self.engine, items),
            "log_coverage": self._columns(),
            "log_cleaned": self.log_cleaned,
        }
        if self.checked.time not in ("number", "row"):
            text["over_time"] = self._over_time(*text["span"])
        if "rating" in log.columns:
            text |= self._ratings()
        rows = {part: self.parts.get(part, 0) for part in ("valid", "test")}
        if self.settings.split.rule == "global_temporal" and self.settings.split.targets == "all":
            asked = log.group_by("part").agg(size=log.user.nunique())
            rows |= {
                row["part"]: row["size"]
                for row in self.engine.fetch(asked).to_pylist()
                if row["part"] in rows
            }
        short = users.filter(~users.evaluated & users.trains)
        num_short = (
            one(short.agg(n=short.count()))["n"] if self.settings.split.rule == "leave_one_out" else None
        )
        return text | {
            "parts": self.parts,
            "num_train": self.parts.get("train", 0),
            "num_valid_rows": rows["valid"],
            "num_test_rows": rows["test"],
            "num_short_users": self.parts.get("context", 0) if num_short is None else num_short,
            "tie_rule": "the log's own order",
        }

    def _over_time(self, first: float, last: float) -> dict[str, Any]:
        """Returns how many interactions each part has in each of at most ``MOST_STEPS`` equal steps of time.

        ``begin`` is the moment at which the first step begins, in s, ``step`` its length in words and ``seconds`` in s.
        """
        step, seconds, low, size = next(
            (step, seconds, low, high - low + 1)
            for step, seconds in STEPS.items()
            for low, high in [(floor(first / seconds), floor(last / seconds))]
            if high - low < MOST_STEPS or step == "year"
        )
        log = self.log
        asked = log.mutate(step=(log.timestamp / seconds).floor().cast("int64") - low)
        found = asked.group_by("part", "step").agg(size=asked.count())
        counts = {part: [0] * size for part in self.parts}
        for row in self.engine.fetch(found).to_pylist():
            counts[row["part"]][row["step"]] = row["size"]
        return {"step": step, "seconds": seconds, "begin": low * seconds, "parts": counts}

    def _ratings(self) -> dict[str, Any]:
        """Returns ``[rating, how many have it]``, ascending; of very many the lowest of each of equal steps."""
        log, one = self.log, self.engine.one
        known = log.filter(log.rating.notnull())
        found, step = self._sizes(known, MOST_RATINGS + 1), None
        if len(found) > MOST_RATINGS:
            ends = one(known.agg(low=known.rating.min(), high=known.rating.max()))
            step = (ends["high"] - ends["low"]) / RATING_STEPS
            place = ((known.rating - ends["low"]) / step).floor().clip(upper=RATING_STEPS - 1)
            places = self._sizes(known.mutate(rating=place), RATING_STEPS)
            found = [[ends["low"] + number * step, size] for number, size in places]
        unrated = sum(self.parts.values()) - sum(size for _, size in found)
        return {"ratings": found, "rating_step": step, "num_unrated": unrated}

    def _sizes(self, log: ibis.Table, most: int) -> list[list[float]]:
        sizes = log.group_by("rating").agg(size=log.count()).order_by("rating").limit(most)
        return [[row["rating"], row["size"]] for row in self.engine.fetch(sizes).to_pylist()]

    def _columns(self) -> dict[str, int]:
        """Returns how many interactions have something in each further column of the log."""
        log = self.log
        names = [name for name in log.columns if name in self.checked.table.columns and name not in KNOWN]
        columns = {
            name: log[name].nullif("") if log[name].type().is_string() else log[name] for name in names
        }
        return self.engine.one(log.agg(**{n: c.count() for n, c in columns.items()})) if names else {}


def _curve(engine: Engine, table: ibis.Table) -> list[list[int]]:
    """Returns ``[size, how many have it]``, sizes ascending."""
    counts = table.group_by("size").agg(number=table.count()).order_by("size")
    return [[row["size"], row["number"]] for row in engine.fetch(counts).to_pylist()]


def _moment(value: str | float | None, key: str, time: str) -> float | None:
    """Returns a bound of time in the unit of the log.

    Raises:
        DataError: If it is text that is no ISO time, or the log's times are no times.
    """
    if value is None or isinstance(value, int | float):
        return value
    if time in ("number", "row"):
        raise DataError(
            f"data.{key}={value!r} is a date, but the log's times are read as {time}: give a number."
        )
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise DataError(
            f"data.{key}={value!r} is no ISO time such as 2014-05-01 or 2014-05-01T10:00:00."
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _items(work: _Work, reading: Reading, quarantine: Path) -> tuple[ItemCatalog, dict[str, Any]]:
    """Returns the catalogue of the items that are left, and what the report says of it."""
    engine, s = work.engine, work.settings
    left = work.log.select("item").distinct().inner_join(work.items, "item").select("item_id")
    if reading.items is None:
        ids = sorted(engine.fetch(left)["item_id"].to_pylist())
        catalogue, num_bad, num_read = ItemCatalog.from_titles(dict.fromkeys(ids)), 0, 0
        num_without = len(ids)
        cleaned: dict[str, int] = {}
    else:
        scan = _scan(engine, reading.items, reading.shape_items)
        columns = {**reading.item_columns, **s.item_columns}
        checked = check_items(engine, scan, columns, s.on_bad_rows, quarantine, reading.repeated_items)
        fetched, num_read, unknown, cleaned = _kept(work, checked, "item_id", left)
        num_without = len(unknown)
        if unknown and reading.unknown_items == "error":
            raise DataError(
                f"The log names {len(unknown):,} items that the catalogue lacks, first: {', '.join(unknown[:5])}. Add them "
                "to the catalogue (a title may be empty)."
            )
        if unknown:
            untitled = pa.table({"item_id": pa.array(unknown, fetched.schema.field("item_id").type)})
            fetched = pa.concat_tables([fetched, untitled], promote_options="default")
        catalogue = ItemCatalog(with_lists(fetched) if reading.items.format == "json" else fetched)
        num_bad = checked.num_bad
    return catalogue, {
        "num_catalogue_rows": num_read,
        "num_quarantined_items": num_bad,
        "num_items_without_entry": num_without,
        "num_untitled_items": catalogue.num_untitled,
        "num_items_with_shared_title": catalogue.num_shared_titles,
        "text_coverage": {"title": len(catalogue) - catalogue.num_untitled}  # one without is called by its id
        | {
            name: _coverage(catalogue.table[name])
            for name in catalogue.table.column_names
            if name not in ("item_id", "title")
        },
        "cleaned": cleaned,
    }


def _users(work: _Work, reading: Reading, quarantine: Path) -> tuple[pa.Table | None, dict[str, Any]]:
    """Returns the profiles of the users that are left, None where the source has none, and what the report says of them."""
    engine, s = work.engine, work.settings
    if reading.users is None:
        if s.user_columns:
            raise DataError(
                f"data.user_columns={s.user_columns}, but there is no table of users. Name one with data.users."
            )
        return None, {}
    left = work.log.select("user").distinct().inner_join(work.users, "user").select("user_id")
    scan = _scan(engine, reading.users, reading.shape_users)
    columns = {**reading.user_columns, **s.user_columns}
    checked = check_users(engine, scan, columns, s.on_bad_rows, quarantine)
    fetched, num_read, unknown, cleaned = _kept(work, checked, "user_id", left)
    if not len(fetched):
        raise DataError(
            f"{scan.source} has none of the {len(unknown):,} users of the log, first {unknown[0]!r}. Its column user_id must have "
            "the log's ids: map it with data.user_columns.user_id=NAME, or leave the table out with data.users=none."
        )
    table = with_lists(fetched) if reading.users.format == "json" else fetched
    return table, {
        "num_user_rows": num_read,
        "num_quarantined_users": checked.num_bad,
        "num_users_without_profile": len(unknown),
        "user_coverage": {name: _coverage(table[name]) for name in table.column_names if name != "user_id"},
        "user_cleaned": cleaned,
    }


def _kept(
    work: _Work, checked: Checked, key: str, left: ibis.Table
) -> tuple[pa.Table, int, list[str], dict[str, int]]:
    """Returns the rows of a table whose keys are left, with clean texts.

    And how many rows it had, the keys that it lacks, and how many texts of each column cleaning changed.
    """
    engine, table = work.engine, checked.table
    texts = [name for name in table.columns if table[name].type().is_string() and name != key]
    num_read = engine.one(table.agg(n=table.count()))["n"]
    unknown = engine.fetch(left.anti_join(table, key).order_by(key))[key].to_pylist()
    kept = table.semi_join(left, key).order_by("row").drop("row")
    cleaned = work.cleaned_texts(kept, texts)
    kept = kept.mutate(**{name: work.clean(kept[name]) for name in texts})
    return engine.fetch(kept), num_read, unknown, cleaned


def _coverage(column: pa.ChunkedArray) -> int:
    """Returns how many items, or users, have something in a column."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return int(pc.sum(pc.fill_null(pc.greater(pc.utf8_length(column), 0), False)).as_py() or 0)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return int(pc.sum(pc.fill_null(pc.greater(pc.list_value_length(column), 0), False)).as_py() or 0)
    return len(column) - column.null_count


def content_hash(path: str | Path, columns: Sequence[str] = WHO_WHAT_WHEN) -> str:
    """Returns the SHA-256 of columns of a prepared log, in its order, whatever file it came from.

    Args:
        path: File, or folder of several.
        columns: ``WHO_WHAT_WHEN``, or ``WITH_PARTS``, which tells two splits of the same log apart.
    """
    digest = hashlib.sha256()
    for name in columns:
        begun = False
        for column in _batches(path, name):
            if name == "timestamp":
                digest.update(column.to_numpy(zero_copy_only=False).tobytes())
                continue
            digest.update((b"\0" if begun else b"") + "\0".join(column.to_pylist()).encode())
            begun = begun or len(column) > 0
    return digest.hexdigest()


def read_users(folder: str | Path) -> pa.Table | None:
    """Returns the profiles of a prepared data set, a row a user with ``user_id``; None where it has none."""
    file = Path(folder) / PROFILES
    return pa_parquet.read_table(file) if file.is_file() else None


def _batches(path: str | Path, name: str) -> Iterator[pa.Array]:
    for batch in pa_dataset.dataset(path).to_batches(columns=[name]):
        if batch.num_rows:
            yield batch.column(0)


def _write_manifest(folder: Path, settings: DataSettings, reading: Reading, report: dict[str, Any]) -> None:
    """Writes what the data set was made from and what it must be, file by file."""
    write_json(
        folder / MANIFEST,
        {
            "genrec": __version__,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": settings.model_dump(mode="json") | {"source": without_login(settings.source)},
            **{key: report[key] for key in ("origin", "format", "version", "terms")},
            "source_files": [
                {"name": file.name, "bytes": file.stat().st_size, "sha256": hash_file(file)}
                for file in reading.files
                if file.is_file()
            ],
            "time": report["time"],
            "steps": report["steps"],
            "parts": report["parts"],
            "log_sha256": report["log_sha256"],
            "split_sha256": report["split_sha256"],
            "files": {
                name: hash_path(folder / name)
                for name in (LOG, CATALOG, PROFILES)
                if (folder / name).exists()
            },
        },
    )


def load_dataset(
    source: str,
    items: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_rows: OnBadRows = "error",
    quarantine: str | Path | None = None,
    time: TimeKind = "auto",
) -> tuple[InteractionLog, ItemCatalog]:
    """Returns log and catalogue of any source that ``data.source`` may name, in memory, unfiltered.

    Args:
        source: As ``data.source``.
        items: Catalogue beside a log; without one it is the log's items, untitled.
        columns: ``{genrec's name: name in the log}`` where they differ.
        on_bad_rows: ``"error"`` or ``"quarantine"``.
        quarantine: JSON-lines file that receives bad rows.
        time: What times are, as ``data.time``.

    Raises:
        DataError: As ``prepare``.
    """
    with tempfile.TemporaryDirectory() as scratch, in_memory() as engine:
        reading = find_reading(source, Path(scratch), items=items)
        scan = _scan(engine, reading.log, reading.shape_log)
        kind = time if time != "auto" else reading.time
        checked = check_log(
            engine, scan, {**reading.columns, **(columns or {})}, kind, on_bad_rows, quarantine
        )
        log = InteractionLog(checked.take(), checked.num_bad, checked.unit)
        if reading.items is None:
            return log, ItemCatalog.from_log(log)
        scan = _scan(engine, reading.items, reading.shape_items)
        found = check_items(
            engine, scan, reading.item_columns, on_bad_rows, quarantine, reading.repeated_items
        )
        table = found.take()
        return log, ItemCatalog(with_lists(table) if reading.items.format == "json" else table)
