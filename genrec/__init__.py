"""genrec: turn a language model into a recommender.

Everything that a script needs is here by name and imported when it is first used, so that
``import genrec`` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from genrec._version import __version__

if TYPE_CHECKING:
    from genrec.core.errors import GenrecError
    from genrec.data_prep import InteractionLog, ItemCatalog, Split, leave_one_out, load_dataset
    from genrec.evaluation import EvaluateSettings, Judge, ranking_metrics
    from genrec.indexing import IndexSettings, ItemIndex, ItemTrie, build_index
    from genrec.serving import Recommendation, Recommender
    from genrec.tasks import TaskSettings, build_dataset, held_out_rows, stream_dataset
    from genrec.training import ModelSettings, TrainSettings, finetune

_HOMES = {
    "genrec.core.errors": ("GenrecError",),
    "genrec.data_prep": ("InteractionLog", "ItemCatalog", "Split", "leave_one_out", "load_dataset"),
    "genrec.indexing": ("IndexSettings", "ItemIndex", "ItemTrie", "build_index"),
    "genrec.tasks": ("TaskSettings", "build_dataset", "held_out_rows", "stream_dataset"),
    "genrec.training": ("ModelSettings", "TrainSettings", "finetune"),
    "genrec.evaluation": ("EvaluateSettings", "Judge", "ranking_metrics"),
    "genrec.serving": ("Recommendation", "Recommender"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "EvaluateSettings",
    "GenrecError",
    "IndexSettings",
    "InteractionLog",
    "ItemCatalog",
    "ItemIndex",
    "ItemTrie",
    "Judge",
    "ModelSettings",
    "Recommendation",
    "Recommender",
    "Split",
    "TaskSettings",
    "TrainSettings",
    "__version__",
    "build_dataset",
    "build_index",
    "finetune",
    "held_out_rows",
    "leave_one_out",
    "load_dataset",
    "ranking_metrics",
    "stream_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'genrec' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
