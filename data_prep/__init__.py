"""Reading, checking, filtering and splitting logs; item catalogues; readers of public data sets."""

from genrec.data_prep.catalog import ItemCatalog
from genrec.data_prep.datasets import DATASETS, load_dataset
from genrec.data_prep.log import InteractionLog, ItemId, UserId
from genrec.data_prep.split import (
    HeldOut,
    Split,
    SplitSettings,
    global_temporal,
    leave_one_out,
    split_log,
)

__all__ = [
    "DATASETS",
    "HeldOut",
    "InteractionLog",
    "ItemCatalog",
    "ItemId",
    "Split",
    "SplitSettings",
    "UserId",
    "global_temporal",
    "leave_one_out",
    "load_dataset",
    "split_log",
]
