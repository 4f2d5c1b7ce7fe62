"""A training that is cut again and again, at random moments, ends with the weights of one that never was."""

import json
import shutil
import signal

import cuts
import numpy as np
import pytest
from trained import trained_bytes

pytestmark = pytest.mark.model


def last_whole(run):
    """The step of the newest checkpoint that is whole, 0 for none."""
    marks = (run / "checkpoints").glob("checkpoint-*/COMPLETE")
    return max((int(mark.parent.name.split("-")[1]) for mark in marks), default=0)


@pytest.mark.parametrize(
    ("times", "seed"), [(4, 0), *(pytest.param(20, seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_a_training_cut_at_random_calls_ends_with_the_weights_of_an_uncut_one(
    times, seed, tiny_backbone, log, items, tmp_path
):
    whole, cut, counts = (tmp_path / name for name in ("whole", "cut", "counts.json"))
    assert cuts.train_apart({}, 0, counts, tiny_backbone, log, items, whole) == 0
    number = json.loads(counts.read_text())
    rng, done, resumed = np.random.default_rng(seed), 0, set()
    while True:
        save = int(rng.choice([0, 1, 2]))
        first = int(rng.integers(1, number["checkpoint"] if save else number["all"] // 4))
        signals = {first: signal.SIGKILL}
        if rng.random() < 0.5:  # asked to end, and killed after a while, as a scheduler does
            later = first + int(rng.integers(1, number["all"] // 4))
            signals = {first: signal.SIGTERM, later: signal.SIGKILL}
        if done == times:
            signals = {}
        before = last_whole(cut)
        status = cuts.train_apart(signals, save, counts, tiny_backbone, log, items, cut)
        print(f"seed {seed}, cut {done}: from step {before}, {signals} from save {save}: status {status}")
        if status:
            assert status in (128 + signal.SIGTERM, -signal.SIGKILL, -signal.SIGTERM)
            assert last_whole(cut) >= before
            done += 1
            continue
        assert trained_bytes(cut) == trained_bytes(whole)
        about = [json.loads((run / "training.json").read_text()) for run in (whole, cut)]
        assert about[0]["validations"] == about[1]["validations"]
        resumed.add(about[1]["resumed_from"])
        if done == times:
            break
        shutil.rmtree(cut)
    assert resumed - {None}
