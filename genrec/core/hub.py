"""The Hugging Face Hub: what goes up, checked file by file, and what comes back."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from genrec.core.errors import RunError, require
from genrec.core.files import atomic_path
from genrec.core.progress import say

Kind = Literal["model", "dataset"]
CARD = "README.md"
# What a card says for the name of a repository that it is not in yet.
UNNAMED = "ORG/NAME"

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_REPO_ID = re.compile(rf"{_PART}/{_PART}")
# Formats that can run code when they are read.
_RUNNABLE = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".py"}
# Whole files of data of single users, wherever they lie.
_OF_USERS = {
    "histories.parquet",
    "interactions.parquet",
    "log.parquet",
    "quarantine.jsonl",
    "rankings.parquet",
    "values.parquet",
    "vectors.parquet",
}
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
# Texts of ours that may name folders. Vocabularies are left as they are: a token may look like a path.
_TEXTS, _VOCABULARIES = {".json", ".yaml", ".md"}, {"tokenizer.json", "vocab.json"}


def is_repo_id(name: str) -> bool:
    """Returns whether a name is ``org/name`` as the Hub allows it: no ``..``, no ``--``, no second slash, no ``.git``."""
    return bool(_REPO_ID.fullmatch(name)) and not re.search(r"\.\.|--|\.git$", name)


def check_repo_id(name: str) -> str:
    """Returns the name of a Hub repository.

    Raises:
        RunError: If it is not ``org/name`` (``is_repo_id``).
    """
    if not is_repo_id(name):
        raise RunError(
            f"{name!r} is no name of a Hub repository. Write org/name: letters, digits, '-', '_' and '.', in each part at most "
            "96, with neither '..' nor '--', beginning with a letter or a digit and not ending with '.' or '.git'."
        )
    return name


def write_card(folder: Path, front: Mapping[str, Any], text: str) -> None:
    """Writes ``README.md``: metadata that the Hub reads, then text for people. Raises RunError if the disk refuses."""
    head = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True).strip()
    with atomic_path(folder / CARD) as part:
        part.write_text(f"---\n{head}\n---\n\n{text.strip()}\n", encoding="utf-8")


def read_front(card: Path) -> dict[str, Any]:
    """Returns the metadata at the head of a card; none where there is no card, or it has no readable head."""
    try:
        text = card.read_text(encoding="utf-8")
        found = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        front = yaml.safe_load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return front if isinstance(front, dict) else {}


def size_in_words(size: float) -> str:
    """Returns a number of bytes as people read it: ``940 B``, ``1.2 kB``, ``3.4 MB``."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def source_name(source: str) -> str:
    """Returns what cards call a source of data: of a path its last part, for the folders before it are nobody else's."""
    if source.startswith("hub:") or "://" not in source:
        return source if source.startswith("hub:") and is_repo_id(source[4:]) else Path(source).name or source
    return source.partition("://")[0] + " database"


def without_private_paths(copy: Path) -> None:
    """Rewrites texts: the home folder becomes ``~``, and logins leave the addresses of databases.

    Args:
        copy: A file or folder made to be shared; one that is not there is passed over.

    Raises:
        RunError: If the disk refuses.
    """
    home = str(Path.home())
    named = re.compile(re.escape(home) + r"(?![\w.-])")
    for path in [copy] if copy.is_file() else _files(copy):
        if path.suffix not in _TEXTS or path.name in _VOCABULARIES:
            continue
        text = path.read_text(encoding="utf-8")
        shared = re.sub(r"(?<=://)[^/\s\"'@]*@", "", text)
        shared = named.sub("~", shared) if home != "/" else shared
        if shared != text:
            with atomic_path(path) as part:
                part.write_text(shared, encoding="utf-8")


def check_shareable(folder: Path, users: bool = False) -> dict[str, int]:
    """Returns ``{name: bytes}`` of all files of a folder, sorted by name, none of which is private.

    Args:
        folder: What is to go up.
        users: Whether files of single users may be among them.

    Raises:
        RunError: If a file leads out of the folder, holds data of single users, an access token or the path of the home
            folder, or is of a kind that can run code.
    """
    hub = require("huggingface_hub", "train")
    token = (hub.get_token() or "").encode()
    home = str(Path.home())
    named = re.compile(re.escape(home.encode()) + rb"(?=/)")
    found = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if not path.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{name} in {folder} is a link that leads out of it; it must not go up.")
        if path.name in _OF_USERS and not users:
            raise RunError(f"{name} in {folder} holds data of single users; it must not go up.")
        if path.suffix in _RUNNABLE:
            raise RunError(f"{name} in {folder} is of a kind that can run code when read; it must not go up.")
        found[name] = path.stat().st_size
        if not found[name]:
            continue
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if (token and content.find(token) >= 0) or _TOKEN.search(content):
                raise RunError(f"{name} in {folder} holds an access token; it must not go up. Take it out.")
            if path.suffix in _TEXTS and path.name not in _VOCABULARIES and named.search(content):
                raise RunError(f"{name} in {folder} names the home folder {home}; it must not go up.")
    return found


def push(
    folder: Path,
    repo_id: str,
    kind: Kind,
    *,
    private: bool,
    dry_run: bool,
    message: str,
    replaces: Sequence[str] = (),
    users: bool = False,
) -> dict[str, int]:
    """Uploads a folder to a Hub repository, which is made if need be, and returns ``{name: bytes}`` of what goes up.

    Args:
        folder: What goes up, all of it; in its card the name takes the place of ``UNNAMED``.
        repo_id: ``org/name``.
        kind: Of repository.
        private: Whether it shall be private. One that exists stays as it is; a public one is refused then.
        dry_run: Only check the files.
        message: Of the commit.
        replaces: Patterns of files that leave the repository if the folder has them no more.
        users: As ``check_shareable``.

    Raises:
        RunError: If the name is none, a file must not go up, or the Hub refuses.
    """
    hub = require("huggingface_hub", "train")
    check_repo_id(repo_id)
    card = (folder / CARD).read_text(encoding="utf-8")
    (folder / CARD).write_text(card.replace(UNNAMED, repo_id), encoding="utf-8")
    files = check_shareable(folder, users)
    if dry_run:
        return files
    api = hub.HfApi()
    try:
        api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id, repo_type=kind).private:
            raise RunError(
                f"{repo_id} exists and is public, and what is pushed is private unless said. Make it private on the Hub, choose "
                "another name, or push with private=False (--public)."
            )
        api.upload_folder(
            repo_id=repo_id,
            repo_type=kind,
            folder_path=folder,
            commit_message=message,
            delete_patterns=list(replaces) or None,
        )
    except (OSError, ValueError, RuntimeError) as error:  # the client raises many kinds
        raise RunError(
            f"The Hub did not take {repo_id}: {error}. Log in with: hf auth login (or set HF_TOKEN), and see that you may "
            "write there."
        ) from error
    say(f"  pushed {len(files)} files ({size_in_words(sum(files.values()))}) to {repo_id}")
    return files


def pull(repo_id: str, kind: Kind, what: str, patterns: Sequence[str] | None = None) -> Path:
    """Returns the folder in the cache with the files of a Hub repository.

    The client refuses names of files that lead out of its cache.

    Args:
        repo_id: ``org/name``.
        kind: Of repository.
        what: What is looked for, in words: ``a finished run``.
        patterns: Of the files that are wanted; None takes all.

    Raises:
        RunError: If the name is none, or the repository cannot be read.
    """
    told = f"Give the folder of {what}, or org/name."
    if not is_repo_id(repo_id):
        raise RunError(f"{repo_id!r} is neither a folder nor a Hub repository's name. {told}")
    hub = require("huggingface_hub", "train")
    try:
        return Path(hub.snapshot_download(repo_id, repo_type=kind, allow_patterns=patterns))
    except Exception as error:  # the client raises many kinds, offline, missing and forbidden among them
        raise RunError(
            f"{repo_id!r} is neither a folder nor a Hub repository that can be read "
            f"({type(error).__name__}). {told}"
        ) from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
