"""Reading, checking, filtering and splitting logs; item catalogues; readers of public data sets."""

from genrec.data_prep.card import push_dataset
from genrec.data_prep.catalog import ItemCatalog
from genrec.data_prep.log import InteractionLog, ItemId, UserId
from genrec.data_prep.manifest import check_manifest
from genrec.data_prep.prepare import load_dataset, prepare, read_users
from genrec.data_prep.settings import DataSettings
from genrec.data_prep.split import (
    HeldOut,
    Split,
    SplitSettings,
    global_temporal,
    leave_one_out,
    read_split,
    split_log,
)

__all__ = [
    "DataSettings",
    "HeldOut",
    "InteractionLog",
    "ItemCatalog",
    "ItemId",
    "Split",
    "SplitSettings",
    "UserId",
    "check_manifest",
    "global_temporal",
    "leave_one_out",
    "load_dataset",
    "prepare",
    "push_dataset",
    "read_split",
    "read_users",
    "split_log",
]
