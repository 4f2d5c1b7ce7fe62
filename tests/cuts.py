"""Trainings that send themselves a signal at a numbered call, in processes that have everything imported.

Calls are counted as Python's profiler sees them, those of C functions too, so that a moment can lie between any two
of them and comes again with its number.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
from pathlib import Path
from unittest import mock

import matplotlib.backends.backend_agg  # noqa: F401  here, once, and not in every process
import torch
from trained import tuned

from genrec.training import checkpoints, trainer

SETTINGS = {"epochs": 1.5, "batch_size": 32, "lora_dropout": 0.1, "checkpoint_steps": 1, "validate_steps": 2}

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


def measure(model, renderer):
    """A value that hangs on every bit of the weights, and goes up and down with them."""
    state = torch.cat([tensor.flatten().double() for _, tensor in sorted(model.trained_state().items())])
    return {"NDCG@10": float(state.sum() * 1e3 % 1), "HR@10": 0.5}


def train(signals, save, counts, *arguments):
    """Trains as ``tuned``, and sends itself each signal at the call of its number.

    Args:
        signals: ``{number: signal}``.
        save: From which checkpoint on calls are counted, 1 is the first that is written; 0 counts from where
            training looks for checkpoints.
        counts: A file that is given the number of calls from there to the end, ``all``, and of the fewest that write a
            ``checkpoint``.
        arguments: Of ``tuned``.
    """
    torch.set_num_threads(1)
    calls, writing, saves = itertools.count(1), [], itertools.count(1)

    def count(frame, event, argument):
        if event.endswith("call") and (number := next(calls)) in signals:
            os.kill(os.getpid(), signals[number])

    look, write = checkpoints.last_checkpoint, trainer.ItemTrainer._save_checkpoint

    def looked(*given):
        if not save and not sys.getprofile():
            sys.setprofile(count)
        return look(*given)

    def written(*given):
        if next(saves) == save:
            sys.setprofile(count)
        before = next(calls)
        write(*given)
        writing.append(next(calls) - before)  # two calls more than were made

    checkpoints.last_checkpoint, trainer.ItemTrainer._save_checkpoint = looked, written
    try:
        tuned(*arguments, validate=measure, **SETTINGS)
    except checkpoints.Stopped as stopped:
        sys.exit(stopped.exit_status)
    finally:
        sys.setprofile(None)
    Path(counts).write_text(json.dumps({"all": next(calls), "checkpoint": min(writing, default=0)}))


def train_apart(*arguments):
    """The status with which a process ended that called ``train``."""
    process = FORKS.Process(target=train, args=arguments)
    # A server that forks is not given the path to what it is to import (Python 3.11).
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        process.start()
    process.join()
    return process.exitcode
