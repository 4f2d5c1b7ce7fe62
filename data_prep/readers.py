"""The public sets in their own raw files, and how they are told by the names of those files."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genrec.core.errors import DataError
from genrec.core.packages import PackagedFiles, fetch
from genrec.data_prep.engine import Source
from genrec.data_prep.sources import Reading, table_file

if TYPE_CHECKING:
    import ibis

GROUPLENS = (
    "research use, no redistribution (the README in the folder; https://grouplens.org/datasets/movielens)"
)


@dataclass(frozen=True)
class Format:
    """A raw format of a public set.

    Attributes:
        about: What it is, in one line.
        log: Patterns of file names, one of which the log's file has; compared without regard to case.
        read: Folder or log file to how it is read.
    """

    about: str
    log: tuple[str, ...]
    read: Callable[[Path], Reading]


def _find(path: Path, *patterns: str) -> Path | None:
    """Returns the file of a folder (or beside a file) that has one of these names; None if there is none."""
    folder = path if path.is_dir() else path.parent
    found = [
        file
        for pattern in patterns
        for file in sorted(folder.iterdir())
        if fnmatch.fnmatch(file.name.lower(), pattern)
    ]
    return found[0] if found else None


def _log_file(path: Path, *patterns: str) -> Path:
    """Returns the log's file.

    Raises:
        DataError: If a folder has none or several.
    """
    if path.is_file():
        return path
    found = [f for f in sorted(path.iterdir()) if any(fnmatch.fnmatch(f.name.lower(), p) for p in patterns)]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DataError(
            f"{path} must have one file named {' or '.join(patterns)}; it has {names}. Give the file itself."
        )
    return found[0]


def movielens_100k() -> Reading:
    """Returns how MovieLens-100K is read from a package: 100,000 ratings of 943 users on 1,682 films.

    The rows come from the wheel of RecBole 1.2.1, which equal GroupLens' ``u.data`` (source: Harper and
    Konstan, TiiS 2015). Films are written ``Title (year)``. A catalogue entry without year keeps its title.
    """
    files = PackagedFiles(
        "recbole==1.2.1",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        ("recbole/dataset_example/ml-100k/ml-100k.inter", "recbole/dataset_example/ml-100k/ml-100k.item"),
        "research use, no redistribution (https://files.grouplens.org/datasets/movielens/ml-100k-README.txt)",
    )
    log, items = fetch(files)

    def shape(items: ibis.Table) -> ibis.Table:
        year = items.release_year.re_search(r"^\d{4}$").fill_null(False)
        title = items.movie_title.strip()
        return items.select(
            "_file",
            "_row",
            item_id=items.item_id,
            title=year.ifelse(title + " (" + items.release_year + ")", title),
            categories=items["class"].strip().split(" "),
        )

    return Reading("movielens-100k", table_file(log), table_file(items), time="s", shape_items=shape)


def _movielens_1m(path: Path) -> Reading:
    log = _log_file(path, "ratings.dat")
    movies = _find(path, "movies.dat")
    items = Source((movies,), "csv", "::", "", ("item_id", "title", "genres"), "latin-1") if movies else None
    return Reading(
        "movielens-1m",
        Source((log,), "csv", "::", "", ("user_id", "item_id", "rating", "timestamp"), "latin-1"),
        items,
        time="s",
        shape_items=_genres,
        terms=GROUPLENS,
    )


def _genres(items: ibis.Table) -> ibis.Table:
    return items.mutate(categories=items.genres.split("|")).drop("genres")


FORMATS: dict[str, Format] = {
    "movielens-1m": Format("MovieLens 1M and 10M: ratings.dat, movies.dat", ("ratings.dat",), _movielens_1m),
}
FORMATS["table"] = Format(
    "a plain table, whatever its name", (), lambda path: Reading("table", table_file(path))
)

PUBLIC: dict[str, Callable[[], Reading]] = {"movielens-100k": movielens_100k}


def recognise(path: Path, sure: bool = True) -> Reading | None:
    """Returns how a folder or file of a public set is read, told by the names of its files.

    Args:
        path: A folder, or the log's file.
        sure: Whether something must be found.

    Raises:
        DataError: If nothing or several fit, and ``sure``.
    """
    names = [path.name] if path.is_file() else sorted(file.name for file in path.iterdir())
    fits = [
        name
        for name, format in FORMATS.items()
        if any(fnmatch.fnmatch(file.lower(), pattern) for file in names for pattern in format.log)
    ]
    if len(fits) == 1:
        return FORMATS[fits[0]].read(path)
    if not sure:
        return None
    known = "; ".join(format.about for format in FORMATS.values() if format.log)
    raise DataError(
        f"{path} has no interactions.parquet (or .csv, .tsv, .jsonl), and its files tell "
        + (
            f"several raw formats, {', '.join(fits)}: choose one with data.format."
            if fits
            else f"no raw format ({known})."
        )
    )
