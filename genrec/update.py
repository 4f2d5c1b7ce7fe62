"""A finished run and what happened since: later interactions go in, the language model stays or learns on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pa_parquet

from genrec.core.errors import DataError, RecipeError, RunError, UnknownItemError
from genrec.core.files import atomic_path, hash_value, read_json, write_json
from genrec.core.page import plural
from genrec.core.progress import say
from genrec.data_prep import HeldOut, InteractionLog, ItemCatalog, ItemId, Split, UserId, read_users
from genrec.data_prep.prepare import PROFILES
from genrec.recipe import Recipe, load_recipe
from genrec.serving.recommender import Recommender
from genrec.tasks import build_dataset, known_before
from genrec.training.finetune import (
    DECODING,
    HISTORIES,
    INDEX,
    ITEMS,
    MODEL,
    SERVING_FILE,
    TRAINING_FILE,
    USERS,
    finetune,
    seal,
)

LOG, REPORT = "log.parquet", "update.json"
# A recipe trains from nothing on everything; what is learned already should not be thrown over by a few new rows.
_RATE = 0.1
_COPIED = (MODEL, SERVING_FILE, TRAINING_FILE, DECODING, USERS, "recipe.yaml", "README.md")
_IDS = ("user_id", "item_id", "timestamp")


def update(
    run_dir: str | Path,
    log: str | Path,
    out: str | Path | None = None,
    *,
    items: str | Path | None = None,
    vectors: str | Path | None = None,
    unknown: str = "error",
    train: bool = False,
    rehearsal: float = 1.0,
    overrides: Sequence[str] = (),
    compared: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the report of a run that took in later interactions, and writes that run.

    Histories of users with new interactions become longer, and with them the vectors from which personal adapters are made;
    encoder, codes and mean of the vectors stay, so that whoever has no new interaction gets what they got before, to the
    bit. With ``train`` the model learns on: rows that learn a new interaction, and as many old ones drawn by the seed times
    ``rehearsal``, from the weights it has, at a tenth of the recipe's rates, without teachers. Then everyone's results may
    change, and the report says how much.

    A history holds everything that is known now, what was held out for evaluation too. So the new run cannot be
    evaluated on what the old one held out, and refuses to be.

    An update that was cut goes on when it is asked for again with the same arguments.

    Args:
        run_dir: A finished run, or an updated one.
        log: A file of interactions as the recipe's own: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``, read by the recipe's
            column names and kind of time, at least ``data.min_rating``. Rows that are known are counted and passed over.
        out: Folder of the new run; default ``RUN-update-N``.
        items: Catalogue file of new items, which get codes by ``ItemIndex.extend``.
        vectors: New or changed vectors of users, for ``train.reclora.vectors=file``.
        unknown: What happens to interactions with items that neither the run nor ``items`` has, or that cannot be named with
            tokens that the model knows: ``"error"``, or ``"skip"`` leaves them out, counted and named in the report.
        train: Whether the model learns on.
        rehearsal: Old rows for each new one.
        overrides: Changes to the recipe's ``train`` keys, such as ``train.epochs=1``.
        compared: Users of either kind whose lists are compared before and after.
        seed: Of what is drawn.

    Raises:
        RunError: If the folder is no finished run with its log, or the new folder is there already.
        DataError: If the log cannot be read, or has nothing new.
        UnknownItemError: If it has unknown items and ``unknown="error"``.
        RecipeError: If an override is not of ``train``.
    """
    run, began = Path(run_dir), time.perf_counter()
    if unknown not in ("error", "skip"):
        raise DataError(f"unknown is 'error' or 'skip', got {unknown!r}.")
    if wrong := [each for each in overrides if not each.startswith("train.")]:
        raise RecipeError(
            f"An update changes how training goes on alone: {wrong[0]!r} is no key of train. Run a recipe for anything else."
        )
    known = _known_log(run)
    recipe, before = load_recipe(run, overrides), Recommender.from_pretrained(run)
    target = Path(out) if out is not None else _next_folder(run)
    if (target / REPORT).exists():
        raise RunError(f"{target} is an updated run already. Choose another folder.")
    if not (target / LOG).exists() and target.exists() and any(target.iterdir()):
        raise RunError(f"{target} holds something else. Choose a new folder.")

    new, counts = _new_rows(recipe, known, log)
    after, new, left_out = _with_items(before, new, items, unknown)
    both = [known.table, new.select(known.table.column_names)]
    combined = InteractionLog(pa.concat_tables(both, promote_options="default"), time=known.time)
    histories = combined.histories()
    added = set(pc.unique(new["user_id"]).to_pylist())
    counts["late"] = _num_late(known, new)

    target.mkdir(parents=True, exist_ok=True)
    combined.write(target / LOG)
    profiles = _profiles(run)
    if profiles is not None:
        with atomic_path(target / PROFILES) as part:
            pa_parquet.write_table(profiles, part)
    for name in _COPIED:
        _copy(run / name, target / name)
    _write_histories(run, target, histories, added)
    _write_users(run, target, vectors)
    after.items.write(target / ITEMS)
    model, index = after._decoder.model, after._decoder.index
    index.save(target / INDEX)
    model.about["index_hash"] = index.hash
    model.about["data_sha256"] = hash_value([histories, counts])
    training: dict[str, Any] | None = None
    if train:
        training = _train_on(recipe, overrides, after, combined, known, added, target, rehearsal, seed)
    else:
        model.save(target / MODEL)
    seal(target)
    now = Recommender.from_pretrained(target)
    report = {
        "from": str(run),
        "interactions": {"known": len(known), "new": new.num_rows, **counts},
        "users": {
            "changed": len(added & set(known.histories())),
            "new": len(added - set(known.histories())),
            "unchanged": len(histories) - len(added),
        },
        "items": {"new": len(after.items) - len(before.items), "left_out": left_out},
        "lists": _compared(before, now, histories, added, compared, seed),
        "vectors": _vectors_moved(before, now, run, histories, added),
        "training": training,
        "seconds": round(time.perf_counter() - began, 1),
    }
    report["run"] = str(target)
    if (card := target / "README.md").exists():
        with card.open("a", encoding="utf-8") as file:
            file.write("\n## Updated\n\nWhat stands above is of the run that this one goes on from.\n\n")
            file.writelines(f"- {line}\n" for line in report_lines(report)[:-1])
    write_json(target / REPORT, report)
    return report


def report_lines(report: dict[str, Any]) -> list[str]:
    """Returns a report of ``update`` as lines to print."""
    rows, users, items, lists = (report[key] for key in ("interactions", "users", "items", "lists"))
    lines = [
        f"{rows['new']:,} new interactions of {rows['read']:,} read beside {rows['known']:,} known "
        f"({rows['known_already']:,} known already, {rows['below_min_rating']:,} below data.min_rating, "
        f"{rows['quarantined']:,} bad, {items['left_out']['interactions']:,} of unknown items; {rows['late']:,} late)",
        f"{users['changed']:,} users have more history, {users['new']:,} are new, {users['unchanged']:,} are as they were; "
        f"{items['new']:,} new items",
    ]
    if (moved := report["vectors"]) and moved["users"]:
        lines.append(
            f"vectors of {moved['users']:,} users moved: cosine {moved['mean_cosine']:.3f} on average, "
            f"{moved['least_cosine']:.3f} at least"
        )
    for name, found in lists.items():
        if found["users"]:
            lines.append(
                f"lists of {found['users']:,} {name} users: {found['same_list']:.1%} are the same, {found['overlap@10']:.1%} of the "
                "items are"
            )
    if training := report["training"]:
        lines.append(
            f"learned on {training['rows_new']:,} new rows and {training['rows_again']:,} old ones in {training['steps']:,} steps, "
            f"{training['seconds']:.0f} s"
        )
    return [*lines, f"Updated run: {report['run']}"]


def _known_log(run: Path) -> InteractionLog:
    """Returns the interactions that a run knows of: those of its preparation, or of its last update."""
    for place in (run / LOG, run / "data" / "interactions.parquet"):
        if place.exists():
            log = InteractionLog.load(place)
            log.table = log.table.select([*_IDS, *(["rating"] if "rating" in log.table.column_names else [])])
            return log
    raise RunError(
        f"{run} has no log of its interactions, from which an update goes on (a run from the Hub carries none). Give the "
        "folder of a run that genrec run made here."
    )


def _next_folder(run: Path) -> Path:
    name, mark, number = run.name.rpartition("-update-")
    if mark and number.isdigit():
        return run.with_name(f"{name}-update-{int(number) + 1}")
    return run.with_name(f"{run.name}-update-1")


def _new_rows(recipe: Recipe, known: InteractionLog, path: str | Path) -> tuple[pa.Table, dict[str, int]]:
    """Returns the rows of a file that are not known yet, with the columns of the known log, and what was left out."""
    data = recipe.data
    read = InteractionLog.read(path, data.columns, data.on_bad_rows, time=data.time)
    table, counts = read.table, {"read": len(read), "quarantined": read.num_quarantined}
    if read.time != known.time:
        raise DataError(
            f"The times of {path} are {'seconds' if read.time == 's' else 'plain numbers'}, those of the run are "
            f"{'seconds' if known.time == 's' else 'plain numbers'}. Give both of one kind (data.time)."
        )
    if data.min_rating is not None:
        if "rating" not in table.column_names:
            raise DataError(f"The recipe keeps ratings from {data.min_rating} on, and {path} has no ratings.")
        table = table.filter(pc.greater_equal(table["rating"], data.min_rating))
    counts["below_min_rating"] = len(read) - table.num_rows
    rows = {tuple(row) for row in zip(*(known.table[name].to_pylist() for name in _IDS), strict=True)}
    fresh = [row not in rows for row in zip(*(table[name].to_pylist() for name in _IDS), strict=True)]
    counts["known_already"] = len(fresh) - sum(fresh)
    table = table.filter(pa.array(fresh, pa.bool_()))
    if not table.num_rows:
        raise DataError(f"{path} has no new interaction: {counts['read']:,} rows were read, {counts}.")
    if "rating" in known.table.column_names:
        kind = known.table["rating"].type
        rating = (
            table["rating"].cast(kind) if "rating" in table.column_names else pa.nulls(table.num_rows, kind)
        )
        table = table.select(_IDS).append_column("rating", rating)
    return table, counts


def _with_items(
    before: Recommender, new: pa.Table, path: str | Path | None, unknown: str
) -> tuple[Recommender, pa.Table, dict[str, Any]]:
    """Returns a recommender that knows the new items that can be named, the rows of known items, and what is left out."""
    after, out = before, {"items": [], "interactions": 0}
    named = pc.unique(new["item_id"]).to_pylist()
    wanted = [item for item in named if item not in before.items]
    if path is not None and wanted:
        given = ItemCatalog.read(path)
        found = [item for item in wanted if item in given]
        if found:
            able = _nameable(before, given.select(found))
            after = before.extend(given.select(able)) if able else before
    missing = [item for item in named if item not in after._decoder.index.codes]
    if missing:
        rows = new.filter(pc.is_in(new["item_id"], pa.array(missing)))
        told = (
            f"Of the new log {plural(len(missing), 'item')}, first {missing[0]!r}, cannot be taken in: neither the run nor the "
            "catalogue of new items (--items) has it, or its code has a token that the model never learned"
        )
        if unknown == "error":
            raise UnknownItemError(
                f"{told}. Give a catalogue that has all of them, leave {plural(rows.num_rows, 'interaction')} out (--unknown skip), or "
                "train a run with an index of all items."
            )
        say(f"  warning: {told}; {plural(rows.num_rows, 'interaction')} left out")
        out = {"items": missing, "interactions": rows.num_rows}
        new = new.filter(pc.invert(pc.is_in(new["item_id"], pa.array(missing))))
        if not new.num_rows:
            raise DataError("No new interaction is left without those of unknown items.")
    return after, new, out


def _nameable(before: Recommender, items: ItemCatalog) -> list[ItemId]:
    """Returns the items whose codes have tokens that the model knows."""
    index = before._decoder.index
    longer = index.extend(items)
    unknown = set(longer.tokens[len(index.tokens) :])
    return [item for item in items.item_ids if not unknown & set(longer.code(item))]


def _num_late(known: InteractionLog, new: pa.Table) -> int:
    """Returns how many new interactions are earlier than something that is known of their user."""
    newest = dict(zip(known.table["user_id"].to_pylist(), known.table["timestamp"].to_pylist(), strict=True))
    pairs = zip(new["user_id"].to_pylist(), new["timestamp"].to_pylist(), strict=True)
    return sum(moment < newest.get(user, float("-inf")) for user, moment in pairs)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir() and not target.exists():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copyfile(source, target)


def _write_histories(
    run: Path, target: Path, histories: dict[UserId, list[ItemId]], added: set[UserId]
) -> None:
    """Writes what serving knows of users: of those with new interactions everything, of the others what it was."""
    stored = pa_parquet.read_table(run / HISTORIES)
    kept = stored.filter(pc.invert(pc.is_in(stored["user_id"], pa.array(sorted(added), pa.string()))))
    users = [user for user in histories if user in added]
    columns = {
        "user_id": users,
        "history": [histories[user] for user in users],
        "targets": [[] for _ in users],
    }
    fresh = pa.table(
        {name: pa.array(columns[name], stored.schema.field(name).type) for name in stored.column_names}
    )
    with atomic_path(target / HISTORIES) as part:
        pa_parquet.write_table(pa.concat_tables([kept, fresh]), part)


def _write_users(run: Path, target: Path, vectors: str | Path | None) -> None:
    if vectors is None:
        return
    if not (run / USERS).exists():
        raise DataError("This run has no vectors of users; leave out the file of new ones.")
    from genrec.models.users import UserVectors, read_vectors

    users = UserVectors.load(run / USERS)
    if users.table is None:
        raise DataError(
            f"The vectors of this run's users come from {users.source}, which makes them from histories. Leave the file out."
        )
    found = read_vectors(vectors)
    if (size := len(next(iter(found.values())))) != users.size:
        raise DataError(f"{vectors} has vectors of {size}; the run's are of {users.size}.")
    users.table |= found
    users.save(target / USERS)


def _train_on(
    recipe: Recipe,
    overrides: Sequence[str],
    after: Recommender,
    combined: InteractionLog,
    known: InteractionLog,
    added: set[UserId],
    target: Path,
    rehearsal: float,
    seed: int,
) -> dict[str, Any]:
    """Lets the model learn on, writes it, and returns what was done."""
    model, index = after._decoder.model, after._decoder.index
    settings = recipe.train
    rates = {
        name: getattr(settings, name) * _RATE
        for name in ("learning_rate", "rows_learning_rate")
        if not any(each.startswith(f"train.{name}=") for each in overrides)
    }
    changes: dict[str, Any] = {"teacher": "none", "validate_steps": 0, **rates}
    if not any(each.startswith("train.max_steps=") for each in overrides):
        changes["max_steps"] = None  # of a training from nothing
    settings = settings.model_copy(update=changes)
    model_settings = recipe.model.model_copy(
        update={"rows_start": "random"}
    )  # which the run's own rows replace
    split = _everything(combined, _profiles(target))
    rows = build_dataset(
        split, after.items, index, recipe.tasks, model.tokenizer, text_to_text=model.is_encoder_decoder
    )
    # How much of a user's history is as it was: a late row moves all that comes behind it.
    old, now = known.histories(), combined.histories()
    same = {user: _common(old.get(user, []), now[user]) if user in added else len(now[user]) for user in now}
    numbers = range(len(rows["train"]))
    fresh = [row for row in numbers if _learns_new(rows["train"]["key"][row], same)]
    rest = np.setdiff1d(np.arange(len(rows["train"])), fresh)
    count = min(len(rest), round(rehearsal * len(fresh)))
    again = np.sort(np.random.default_rng(seed).choice(rest, count, replace=False)) if count else rest[:0]
    say(f"  learning on: {len(fresh):,} rows with new interactions, {count:,} old ones again")
    rows["train"] = rows["train"].select([*fresh, *again.tolist()]).flatten_indices()
    row_vectors = None
    if after._users is not None:
        pairs = known_before(rows["train"]["task"], rows["train"]["key"], split, recipe.tasks)
        user_ids, histories = zip(*pairs, strict=True)
        row_vectors = after._users.of(histories, user_ids)
    kept = [target / name for name in (HISTORIES, SERVING_FILE)]
    before = {path: path.read_bytes() for path in kept}
    start = target / "start"
    if not start.exists():
        model.save(start)
    finetune(
        model.about["backbone"],
        rows,
        index,
        after.items,
        split,
        target,
        tasks=recipe.tasks,
        model=model_settings,
        settings=settings,
        data_sha256=model.about["data_sha256"],
        row_vectors=row_vectors,
        start=start,
    )
    shutil.rmtree(start)
    for path, content in before.items():
        path.write_bytes(content)
    about = read_json(target / TRAINING_FILE)
    return {
        "rows_new": len(fresh),
        "rows_again": count,
        "steps": about["num_steps"],
        "seconds": about["train_s"],
        "losses": about["losses"],
        **{name: getattr(settings, name) for name in ("learning_rate", "rows_learning_rate", "epochs")},
    }


def _profiles(run: Path) -> pa.Table | None:
    """Returns what a run knows of users, from its preparation or from the run that it is an update of."""
    own = read_users(run)
    return own if own is not None else read_users(run / "data")


def _everything(log: InteractionLog, users: pa.Table | None) -> Split:
    """Returns the split that holds nothing out."""
    train: dict[UserId, list[ItemId]] = log.histories()
    times: dict[UserId, list[float]] = {}
    for user, moment in zip(
        log.table["user_id"].to_pylist(), log.table["timestamp"].to_pylist(), strict=True
    ):
        times.setdefault(user, []).append(moment)
    nothing = HeldOut([], [], [])
    table = log.table.append_column("part", pa.array(["train"] * len(log), pa.string()))
    return Split(train, times, nothing, nothing, len(train), "nothing is held out", table, users)


def _common(before: Sequence[ItemId], now: Sequence[ItemId]) -> int:
    return next(
        (n for n, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now))
    )


def _learns_new(key: str, same: dict[UserId, int]) -> bool:
    """Returns whether a row, by its key, learns an interaction behind those that were there before."""
    user, _, place = key.rpartition("/")
    if user not in same:
        return False  # of an item
    first, _, last = place.partition("-")
    return (int(last) if last else int(first) + 1) > same[user]


def _drawn(users: Sequence[UserId], num: int, seed: int) -> list[UserId]:
    order = np.random.default_rng(seed).permutation(len(users))[:num]
    return [users[row] for row in sorted(order.tolist())]


def _compared(
    before: Recommender,
    now: Recommender,
    histories: dict[UserId, list[ItemId]],
    added: set[UserId],
    num: int,
    seed: int,
) -> dict[str, Any]:
    """Returns how alike the lists of some users are before and after, of those with new interactions and of the others."""
    served = pa_parquet.read_table(before.run_dir / HISTORIES, columns=["user_id"])["user_id"].to_pylist()
    found: dict[str, dict[str, float]] = {}
    for name, chosen in (("changed", True), ("unchanged", False)):
        able = [user for user in dict.fromkeys(served) if (user in added) == chosen and user in histories]
        users = _drawn(able, num, seed)
        if not users:
            found[name] = {"users": 0}
            continue
        k = min(10, len(before.items))
        pairs = [
            ([r.item_id for r in a], [r.item_id for r in b])
            for a, b in zip(
                before.recommend(user_ids=users, k=k), now.recommend(user_ids=users, k=k), strict=True
            )
        ]
        found[name] = {
            "users": len(users),
            "same_list": sum(a == b for a, b in pairs) / len(users),
            "overlap@10": float(np.mean([len(set(a) & set(b)) / max(1, len(a)) for a, b in pairs])),
        }
    return found


def _vectors_moved(
    before: Recommender,
    now: Recommender,
    run: Path,
    histories: dict[UserId, list[ItemId]],
    added: set[UserId],
) -> dict[str, Any] | None:
    """Returns how far the vectors of users with new interactions moved; None where adapters are the same for everyone."""
    if before._users is None or now._users is None:
        return None
    stored = pa_parquet.read_table(run / HISTORIES)
    old = dict(zip(stored["user_id"].to_pylist(), stored["history"].to_pylist(), strict=True))
    users = [user for user in old if user in added]
    if not users:
        return {"users": 0}
    a = before._users.of([old[user] for user in users], users)
    b = now._users.of([histories[user] for user in users], users)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / np.maximum(lengths, 1e-12)
    moved: dict[str, float] = {"mean_cosine": float(cosine.mean()), "least_cosine": float(cosine.min())}
    return {"users": len(users)} | moved
