"""Public data sets by name, and the folders of users' own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa

from genrec.core.errors import DataError, nearest
from genrec.core.packages import PackagedFiles, fetch
from genrec.data_prep.catalog import ItemCatalog
from genrec.data_prep.log import InteractionLog
from genrec.data_prep.tables import OnBadRows, read_table

_MOVIELENS_100K = PackagedFiles(
    "recbole==1.2.1",
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    ("recbole/dataset_example/ml-100k/ml-100k.inter", "recbole/dataset_example/ml-100k/ml-100k.item"),
    "research use, no redistribution (https://files.grouplens.org/datasets/movielens/ml-100k-README.txt)",
)


def movielens_100k() -> tuple[InteractionLog, ItemCatalog]:
    """Returns MovieLens-100K: 100,000 ratings of 943 users on 1,682 films, with titles, years, genres.

    The rows come from the wheel of RecBole 1.2.1, which equal GroupLens' ``u.data`` (source: Harper and
    Konstan, TiiS 2015). Films are written ``Title (year)``. A catalogue entry without year keeps its title.
    """
    log, items = (read_table(path) for path in fetch(_MOVIELENS_100K))
    titles = [
        f"{title.strip()} ({year})" if re.fullmatch(r"\d{4}", year or "") else title.strip()
        for title, year in zip(
            items["movie_title"].to_pylist(), items["release_year"].to_pylist(), strict=True
        )
    ]
    genres = [(value or "").split() for value in items["class"].to_pylist()]
    catalog = pa.table(
        {
            "item_id": items["item_id"],
            "title": pa.array(titles, pa.string()),
            "categories": pa.array(genres, pa.list_(pa.string())),
        }
    )
    return InteractionLog.from_table(log), ItemCatalog.from_table(catalog)


DATASETS: dict[str, Callable[[], tuple[InteractionLog, ItemCatalog]]] = {
    "movielens-100k": movielens_100k,
}


def load_dataset(
    source: str,
    items: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_rows: OnBadRows = "error",
    quarantine: str | Path | None = None,
) -> tuple[InteractionLog, ItemCatalog]:
    """Returns log and catalogue of a named public set, a log file, or a folder.

    Args:
        source: A name in ``DATASETS``; a log file; or a folder with ``interactions.parquet`` and
            ``items.parquet`` (or ``.csv``, ``.tsv``, ``.jsonl``).
        items: Catalogue file for a log file; without it the catalogue is the log's items, untitled.
        columns: ``{genrec's name: name in the log file}`` where they differ.
        on_bad_rows: ``"error"`` or ``"quarantine"``.
        quarantine: JSON-lines file that receives bad rows.

    Raises:
        DataError: If the source is neither, or its content is bad.
    """
    if source in DATASETS:
        return DATASETS[source]()
    path = Path(source)
    if path.is_dir():
        log_path, items_path = (_table_in(path, name) for name in ("interactions", "items"))
    elif path.is_file():
        log_path, items_path = path, Path(items) if items else None
    else:
        raise DataError(
            f"{source!r} is neither a file, nor a folder, nor one of the public sets "
            f"{', '.join(sorted(DATASETS))}.{nearest(source, DATASETS)}"
        )
    if log_path is None:
        raise DataError(f"The folder {path} has no interactions.parquet (or .csv, .tsv, .jsonl).")
    log = InteractionLog.read(log_path, columns, on_bad_rows, quarantine)
    if items_path is None:
        return log, ItemCatalog.from_log(log)
    return log, ItemCatalog.read(items_path, on_bad_rows=on_bad_rows, quarantine=quarantine)


def _table_in(folder: Path, name: str) -> Path | None:
    for ending in (".parquet", ".csv", ".tsv", ".jsonl"):
        if (folder / f"{name}{ending}").is_file():
            return folder / f"{name}{ending}"
    return None
