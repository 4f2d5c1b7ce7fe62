"""Reading, checking, filtering and splitting logs; item catalogues; readers of public data sets."""

from genrec.data_prep.catalog import ItemCatalog
from genrec.data_prep.datasets import DATASETS, load_dataset
from genrec.data_prep.log import InteractionLog, ItemId, UserId
from genrec.data_prep.split import HeldOut, Split, leave_one_out

__all__ = [
    "DATASETS",
    "HeldOut",
    "InteractionLog",
    "ItemCatalog",
    "ItemId",
    "Split",
    "UserId",
    "leave_one_out",
    "load_dataset",
]
