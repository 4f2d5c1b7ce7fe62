"""The data set card that writes itself, and a prepared set's way to the Hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genrec.core.errors import DataError, RunError
from genrec.core.hub import UNNAMED, push, without_private_paths, write_card
from genrec.core.progress import say
from genrec.data_prep.manifest import PUSHED, check_manifest

# The Hub's classes of size, by the interactions that are below each.
_SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
    100_000_000: "10M<n<100M",
    1_000_000_000: "100M<n<1B",
}


def terms_in_words(data: Mapping[str, Any]) -> str:
    """Returns under which terms data may be used, of the report of a preparation."""
    return data.get("terms") or "not known to genrec: whoever shares what is made from them must know them"


def version_in_words(data: Mapping[str, Any]) -> str:
    """Returns which edition of the data it is, of the report of a preparation."""
    return data.get("version") or "not stated by the source; the hash tells it"


def write_dataset_card(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes ``README.md`` of a prepared data set from its report. Raises RunError if the disk refuses."""
    kept = report["kept"]
    front: dict[str, Any] = {
        "pretty_name": f"{report['origin']}, prepared by genrec",
        "license": "other",
        "license_name": "terms-of-the-source",
        "tags": ["recommender-system", "sequential-recommendation", "genrec"],
        "size_categories": [
            next((name for most, name in _SIZES.items() if kept["interactions"] < most), "1B<n<10B")
        ],
        "configs": [
            {"config_name": "interactions", "data_files": "interactions.parquet", "default": True},
            {"config_name": "items", "data_files": "items.parquet"},
        ],
    }
    steps = "".join(
        f"| {each['step']} | {each['interactions']:,} | {each['users']:,} | {each['items']:,} |\n"
        for each in report["steps"]
    )
    parts = ", ".join(f"{part} {size:,}" for part, size in report["parts"].items())
    text = f"""# {report["origin"]}, prepared by genrec {report["genrec"]}

**These are data of users**: who took which item and when. A name that stands for a person is still data of that person.
Share them only if you may.

## Terms

- Source: {report["origin"]}, read as {report["format"]}; version: {version_in_words(report)}.
- Terms of the source: {terms_in_words(report)}. They hold for these files.

## What is in it

`interactions.parquet` has `user_id`, `item_id`, `timestamp`, `part` and what else the log had, ordered by user and time;
`items.parquet` has a row for each item, `report.json` all counts, `manifest.json` settings and hashes.

| after | interactions | users | items |
|---|---|---|---|
{steps}
Split: {report["split"]}; {parts}. Equal times of a user come in {report["tie_rule"]} ({report["num_ties"]:,} neighbouring
pairs). {report["num_quarantined"]:,} bad rows of the log were put aside and are not in it. {report["num_untitled_items"]:,} items
have no title.

SHA-256 of users, items and times {report["log_sha256"]}, with their parts {report["split_sha256"]}.

## How to use it

```yaml
data:
  source: hub:{UNNAMED} # or this folder
```

## Limits

The log is what its source recorded and the filters above left: users and items with few interactions may be missing, and
what was not shown to a user could not be taken.
"""
    write_card(folder, front, text)


def push_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    may_share_user_data: bool = False,
    private: bool = True,
    dry_run: bool = False,
) -> dict[str, int]:
    """Uploads a prepared data set to the Hub and returns ``{file: bytes}``; ``data.source=hub:ORG/NAME`` reads it there.

    It is data of users, which must not be shared unless it may.

    Args:
        folder: That ``prepare`` wrote.
        repo_id: ``org/name``.
        may_share_user_data: Says that whoever pushes may share these users' data there.
        private: Whether the repository shall be private.
        dry_run: Only say what would go up; needs no permission.

    Raises:
        DataError: If it is no prepared data set, was changed since, or sharing is not said to be allowed.
        RunError: As ``genrec.core.hub.push``.
    """
    folder = Path(folder)
    about = check_manifest(folder)
    say(
        f"  {folder} holds data of users: who took what and when. Terms of the source: {terms_in_words(about)}."
        + ("" if private else " The repository will be PUBLIC.")
    )
    if not (may_share_user_data or dry_run):
        raise DataError(
            "A prepared data set is data of users and is not pushed unless you say that you may share it: "
            "--i-may-share-user-data (may_share_user_data=True). --dry-run shows what would go up."
        )
    with tempfile.TemporaryDirectory() as scratch:
        shared = Path(scratch)
        try:
            for name in (each for each in PUSHED if not each.endswith("*")):
                if (folder / name).is_dir():
                    shutil.copytree(folder / name, shared / name)
                elif (folder / name).exists():
                    shutil.copyfile(folder / name, shared / name)
        except OSError as error:
            raise RunError(f"Could not copy {folder}: {error}") from error
        without_private_paths(shared)
        return push(
            shared,
            repo_id,
            "dataset",
            private=private,
            dry_run=dry_run,
            message="genrec prepared data set",
            replaces=PUSHED,
            users=True,
        )
