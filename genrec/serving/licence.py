"""Which licence a tuned model inherits from its base model, and what that says of commercial use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genrec.core.errors import require
from genrec.core.hub import CARD, is_repo_id, read_front

# Licences of models that the package index ships, which have no card beside them; PackagedFiles has their addresses.
_PACKAGED = {"smollm2-135m-instruct": "apache-2.0"}

FREE, CONDITIONS, FORBIDDEN, UNKNOWN = "free", "conditions", "forbidden", "unknown"

# The beginnings of the Hub's names of licences, and what each says of commercial use. The first that fits counts.
COMMERCIAL_USE = {
    "apache-2.0": FREE,
    "mit": FREE,
    "bsd": FREE,
    "cc0": FREE,
    "unlicense": FREE,
    "cc-by-nc": FORBIDDEN,
    "cc-by": FREE,
    "llama": CONDITIONS,
    "gemma": CONDITIONS,
    "openrail": CONDITIONS,
    "bigscience": CONDITIONS,
    "creativeml": CONDITIONS,
    "bigcode": CONDITIONS,
}
_NON_COMMERCIAL_WORDS = ("non-commercial", "noncommercial", "research")


@dataclass(frozen=True)
class Licence:
    """A licence by the Hub's name.

    Attributes:
        id: Such as ``apache-2.0``; ``other`` where the Hub has no name for it; empty where it is unknown.
        name: What ``other`` is called.
        link: Where ``other`` can be read.
        own: Whether there is no base model to inherit one from.
    """

    id: str = ""
    name: str = ""
    link: str = ""
    own: bool = False

    @property
    def commercial(self) -> str:
        """What it says of commercial use: ``free``, ``conditions``, ``forbidden`` or ``unknown``."""
        called = (self.name if self.id == "other" else self.id).lower()
        if any(word in called for word in _NON_COMMERCIAL_WORDS):
            return FORBIDDEN
        return next((use for start, use in COMMERCIAL_USE.items() if called.startswith(start)), UNKNOWN)

    @property
    def front(self) -> dict[str, str]:
        """What a card's metadata say; nothing where it is unknown."""
        found = {"license": self.id, "license_name": self.name, "license_link": self.link}
        return {key: value for key, value in found.items() if value}

    def sentence(self, backbone: str) -> str:
        """Returns what a card says: whose licence it is, and a warning where commercial use is not simply free."""
        if self.own:
            return "The weights are new: no licence is inherited from a base model. Choose one before you publish them."
        called = self.name or self.id
        inherited = f"Inherited from the base model {backbone}: **{called}**."
        return {
            FREE: f"{inherited} It lets the base model be used commercially; the terms of the data (below) may not.",
            CONDITIONS: f"{inherited} **Warning: it allows commercial use only under its conditions**, which a tuned model "
            "passes on. Read it before you use or publish this one.",
            FORBIDDEN: f"{inherited} **Warning: it forbids commercial use**, of the base model and of what is made from it.",
            UNKNOWN: (inherited if called else f"The licence of the base model {backbone} is not known.")
            + " **Warning: whether commercial use is allowed is not known to genrec.** Find the base model's licence out before "
            "you use or publish this one.",
        }[self.commercial]


def licence_of(backbone: str) -> Licence:
    """Returns the licence of a base model: of the packaged ones as listed, else as the card beside its files says.

    Args:
        backbone: As ``model.backbone``. The card of a Hub name is fetched, or taken from the cache, if it can be had.
    """
    if backbone == "new":
        return Licence(own=True)
    if backbone in _PACKAGED:
        return Licence(_PACKAGED[backbone])
    path = Path(backbone).expanduser()
    if path.exists():
        front = read_front((path if path.is_dir() else path.parent) / CARD)
    else:
        card = _fetched_card(backbone) if is_repo_id(backbone) else None
        front = read_front(card) if card else {}
    given = front.get("license")
    if not given:
        return Licence()
    text = {key: str(front.get(key) or "") for key in ("license_name", "license_link")}
    chosen = given if isinstance(given, str) else ", ".join(map(str, given))
    return Licence(chosen, text["license_name"], text["license_link"])


def _fetched_card(repo_id: str) -> Path | None:
    hub = require("huggingface_hub", "train")
    try:
        return Path(hub.hf_hub_download(repo_id, CARD, etag_timeout=5))
    except Exception:  # offline, gated, without a card: its licence is unknown, which the card then says
        return None
