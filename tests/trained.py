"""A model tuned on the planted log, and how well it learned it."""

from __future__ import annotations

import gc

import peft  # noqa: F401  as watch, so that it is there before gc.freeze

import genrec.training.watch  # noqa: F401
from genrec.data_prep import leave_one_out
from genrec.evaluation import ranking_metrics
from genrec.indexing import IndexSettings, build_index
from genrec.serving import Recommender
from genrec.tasks import TaskSettings, build_dataset
from genrec.training import ModelSettings, TrainSettings, finetune

# accelerate looks for garbage at the end of each training: a second in all that is imported, which is none.
gc.freeze()

FAST = {"learning_rate": 5e-3, "rows_learning_rate": 1e-2, "checkpoint_steps": 0, "report_to": "none"}


def tuned(
    backbone,
    log,
    items,
    run_dir,
    method="independent",
    form="packed",
    names=("next_item",),
    max_history=50,
    model=None,
    validate=None,
    index=None,
    **changes,
):
    split = leave_one_out(log)
    index = build_index(method, items, split.train, IndexSettings(levels=2, codebook_size=6, **(index or {})))
    tasks = TaskSettings(form=form, mixture=names, max_history=max_history)
    data = build_dataset(split, items, index, tasks)
    settings = TrainSettings(**{**FAST, **changes})
    model = ModelSettings(dtype="float32", **(model or {}))  # the same arithmetic on every machine
    return finetune(
        backbone,
        data,
        index,
        items,
        split,
        run_dir,
        tasks=tasks,
        model=model,
        settings=settings,
        validate=validate,
    )


def briefly_tuned(backbone, log, items, run_dir, seed=0):
    """A run of three steps whose items are named by their texts, so that new ones can be."""
    index = {"text_encoder": "words"}
    return tuned(backbone, log, items, run_dir, "rq_kmeans", index=index, max_steps=3, seed=seed)


def hit_rate(run, log, k=1, exclude_history=True):
    split, recommender = leave_one_out(log), Recommender.from_pretrained(run)
    found = recommender.recommend(split.test.histories, k=5, exclude_history=exclude_history)
    return ranking_metrics([[r.item_id for r in x] for x in found], split.test.targets, (k,))[f"HR@{k}"]


def trained_bytes(run):
    return {p.name: p.read_bytes() for p in sorted((run / "model").glob("*.safetensors"))}
