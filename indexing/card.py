"""The index card that writes itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrec._version import __version__
from genrec.core.hub import UNNAMED, write_card

if TYPE_CHECKING:
    from genrec.indexing.index import ItemIndex


def index_line(index: dict[str, Any]) -> str:
    """Returns what an index is and how good, of its report with ``method`` and ``hash``, in words."""
    touched = index.get("num_items_touched")
    policy = (
        f", {touched:,} items touched by the collision policy {index['collision_policy']}" if touched else ""
    )
    return (
        f"{index['method']}, {index['num_items']:,} items, {index['num_tokens']:,} tokens, codes of {index['mean_length']:.2f} "
        f"tokens in the mean and {index['max_length']} at most; collision rate {index['collision_rate']:.4f}{policy}; hash "
        f"{index['hash'][:16]}"
    )


def write_index_card(folder: Path, index: ItemIndex) -> None:
    """Writes ``README.md`` of an index from what it says of itself. Raises RunError if the disk refuses."""
    front = {
        "library_name": "genrec",
        "tags": ["recommender-system", "generative-retrieval", "item-index", "semantic-ids"],
    }
    levels = "".join(
        f"| {number} | {level['tokens']:,} | {level['perplexity']:.1f} | {level['largest']:,} | {level['prefixes']:,} |\n"
        for number, level in enumerate(index.report["levels"], start=1)
    )
    settings = "Not made by genrec: it cannot name new items."
    if index.settings is not None:
        chosen = index.settings.model_dump(mode="json", exclude_defaults=True)
        settings = (
            ", ".join(f"{key} {value}" for key, value in chosen.items() if key != "method") or "all defaults"
        )
        settings = f"Settings other than the defaults: {settings}." if chosen else "Settings: all defaults."
    before = index.report.get("collision_rate_before")
    text = f"""# Item index: {index.method}

Which sequence of tokens names which item; a language model writes items in these tokens. Made by genrec {__version__}.

- Index: {index_line(index.report | {"method": index.method, "hash": index.hash})}.
- {settings}
{f"- Before its collision policy {before:.4f} of the items shared a code with another.{chr(10)}" if before is not None else ""}
| level | tokens used | perplexity | items of the largest token | distinct beginnings |
|---|---|---|---|---|
{levels}
## How to use it

```python
import genrec

index = genrec.ItemIndex.load("{UNNAMED}")  # or this folder
index.code("ITEM_ID")
```

## Limits

It holds item ids and codes, no titles and no data of users. Codes are made from the items' texts or from what was taken
together, as the method says: items that are badly described, or rarely taken, get codes that say little. A model is bound to
the index that it was trained with (the hash).

The terms of the data that the items come from hold; the index itself adds none.
"""
    write_card(folder, front, text)
