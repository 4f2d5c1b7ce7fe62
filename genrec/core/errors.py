"""The errors of genrec: each says what was given, what is allowed and what to do."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class GenrecError(Exception):
    """Base of every error that genrec raises on purpose; the command line prints it without a traceback.

    Attributes:
        exit_status: What the command line then returns.
    """

    exit_status = 1


class DataError(GenrecError):
    """Raised for a log or catalogue that cannot be used as it is."""


class RecipeError(GenrecError):
    """Raised for a recipe with an unknown key or a value that is not allowed."""


class RunError(GenrecError):
    """Raised for a run directory that is missing, incomplete, cut or changed behind genrec's back."""


class ModelError(GenrecError):
    """Raised for a backbone that cannot be read or does not fit what is asked of it."""


class IndexingError(GenrecError):
    """Raised when identifiers cannot be given to the items as asked, or an index is broken."""


class UnknownItemError(GenrecError):
    """Raised when a history names an item that the index does not have."""


class MissingExtraError(GenrecError, ImportError):
    """Raised when a feature needs a package of an optional extra that is not installed."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the closest allowed name, or ``""`` when none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def lookup(table: dict, name: str, what: str) -> object:
    """Returns ``table[name]``.

    Raises:
        RecipeError: If ``name`` is not in the table; the message lists the names and the nearest one.
    """
    if name not in table:
        raise RecipeError(
            f"Unknown {what} {name!r}. Available: {', '.join(sorted(table))}.{nearest(name, table)}"
        )
    return table[name]


def require(module: str, extra: str) -> ModuleType:
    """Returns the imported module.

    Raises:
        MissingExtraError: If its package is not installed; the message names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"This needs the package {module.split('.')[0]!r}, which is not installed ({error}). "
            f"Install it with: pip install 'genrec[{extra}]'"
        ) from error


def check_passed_on(
    key: str, given: Iterable[str], own: Iterable[str], kind: type, ours: str, error: type[GenrecError]
) -> None:
    """Returns if each name given is an argument of a library's dataclass that no key of genrec decides.

    Args:
        key: The recipe's key that they stand in.
        given: Names.
        own: Those that genrec decides.
        kind: The dataclass that they are passed on to.
        ours: What decides them, in words.
        error: Is raised for the first name that is not allowed.
    """
    known = [each.name for each in dataclasses.fields(kind) if each.init]
    for name in given:
        if name in own:
            raise error(f"{key}.{name} is decided by genrec's own keys {ours}: set those.")
        if name not in known:
            library = kind.__module__.split(".")[0]
            raise error(f"{key}.{name} is no argument of {library}'s {kind.__name__}.{nearest(name, known)}")
