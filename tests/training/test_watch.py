"""What is seen of a training, what is kept of it, and what a cut leaves behind."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from trained import trained_bytes, tuned

from genrec.cli import main
from genrec.core.errors import RecipeError, RunError
from genrec.training import watch
from genrec.training.checkpoints import StopOnSignal, Stopped, last_checkpoint
from genrec.training.finetune import load_trained

pytestmark = pytest.mark.model


@pytest.fixture
def signal_at(monkeypatch):
    """Sends this process SIGTERM in the middle of a step."""

    def at(step):
        was = StopOnSignal.on_step_end

        def asked(self, args, state, control, **rest):
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            was(self, args, state, control, **rest)

        monkeypatch.setattr(StopOnSignal, "on_step_end", asked)

    return at


CUT = {"epochs": 1.5, "lora_dropout": 0.1, "checkpoint_steps": 4}


def valued(values):
    """A validation that finds these values of NDCG@10, one after the other."""
    left = iter(values)
    return lambda model, renderer: {"NDCG@10": next(left), "HR@10": 0.5}


@pytest.mark.parametrize("step", [1, 6, 13])
def test_a_run_asked_to_stop_goes_on_to_the_weights_of_an_uncut_one(
    step, signal_at, tiny_backbone, log, items, tmp_path, monkeypatch
):
    whole = tuned(tiny_backbone, log, items, tmp_path / "whole", **CUT)
    signal_at(step)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=rf"after step {step} of 14; checkpoint-{step} is there"):
        tuned(tiny_backbone, log, items, tmp_path / "cut", **CUT)
    assert signal.getsignal(signal.SIGTERM) == before
    monkeypatch.undo()
    cut = tuned(tiny_backbone, log, items, tmp_path / "cut", **CUT)
    assert json.loads((cut / "training.json").read_text())["resumed_from"] == f"checkpoint-{step}"
    assert trained_bytes(cut) == trained_bytes(whole)


def test_the_command_line_says_so_with_the_status_of_the_signal(
    signal_at, tiny_backbone, log, items, tmp_path, capsys
):
    (tmp_path / "data").mkdir()
    log.write(tmp_path / "data" / "interactions.parquet")
    items.write(tmp_path / "data" / "items.parquet")
    (tmp_path / "recipe.yaml").write_text(
        f"run_dir: {tmp_path}/run\ndata: {{source: {tmp_path}/data, item_core: 1}}\n"
        f"index: {{method: independent}}\nmodel: {{backbone: {tiny_backbone}, dtype: float32}}\n"
        "evaluate: {baselines: [popularity]}\n"
    )
    signal_at(2)
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 143
    assert "Stopped by SIGTERM after step 2 of 9; checkpoint-2 is there" in capsys.readouterr().err


def test_checkpoints_that_were_cut_or_changed_are_never_resumed_from(tmp_path, capsys):
    for step in (5, 10, 15, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_text(f"of step {step}")
        digest = __import__("hashlib").sha256((folder / "weights").read_bytes()).hexdigest()
        if step < 20:
            (folder / "COMPLETE").write_text(json.dumps({"weights": digest}))
    (tmp_path / "BEGUN").write_text("these arguments")
    (tmp_path / "checkpoint-15" / "weights").write_text("of step 1")
    assert last_checkpoint(tmp_path, "these arguments") == str(tmp_path / "checkpoint-10")
    said = capsys.readouterr().err
    assert "checkpoint-20 was cut while it was written; it is removed" in said
    assert "checkpoint-15 is broken (weights: not as written); it is removed" in said
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-5"]
    assert last_checkpoint(tmp_path, "other arguments") is None
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_cut_while_checkpoints_are_looked_for_loses_none(tmp_path, monkeypatch):
    assert last_checkpoint(tmp_path, "these arguments") is None
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    (folder / "COMPLETE").write_text("{}")

    def cut(path, *_, **__):
        path.open("w").close()  # as far as it comes when the process ends there
        raise KeyboardInterrupt

    with monkeypatch.context() as within, contextlib.suppress(KeyboardInterrupt):
        within.setattr(Path, "write_text", cut)
        last_checkpoint(tmp_path, "these arguments")
    assert last_checkpoint(tmp_path, "these arguments") == str(folder)


def test_a_broken_checkpoint_falls_back_to_the_one_before(
    signal_at, tiny_backbone, log, items, tmp_path, capsys, monkeypatch
):
    whole = tuned(tiny_backbone, log, items, tmp_path / "whole", **CUT)
    signal_at(6)
    with pytest.raises(Stopped):
        tuned(tiny_backbone, log, items, tmp_path / "cut", **CUT)
    monkeypatch.undo()
    state = tmp_path / "cut" / "checkpoints" / "checkpoint-6" / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:-100])
    cut = tuned(tiny_backbone, log, items, tmp_path / "cut", **CUT)
    assert "checkpoint-6 is broken (optimizer.pt: not as written)" in capsys.readouterr().err
    assert json.loads((cut / "training.json").read_text())["resumed_from"] == "checkpoint-4"
    assert trained_bytes(cut) == trained_bytes(whole)


def test_a_checkpoint_that_does_not_fit_the_disk_does_not_end_the_training(
    tiny_backbone, log, items, tmp_path, capsys, monkeypatch
):
    import errno

    whole = tuned(tiny_backbone, log, items, tmp_path / "whole", **CUT)
    save, calls = torch.save, []

    def full(value, file, *arguments, **options):
        calls.append(str(file))
        if "checkpoint-8" in str(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(value, file, *arguments, **options)

    monkeypatch.setattr(torch, "save", full)
    run = tuned(tiny_backbone, log, items, tmp_path / "run", **CUT)
    said = capsys.readouterr().err
    assert "checkpoint-8 could not be written ([Errno 28] No space left on device; " in said
    assert "it would be resumed from checkpoint-4" in said
    assert any("checkpoint-12" in call for call in calls)
    assert trained_bytes(run) == trained_bytes(whole)


def test_the_weights_that_rank_best_are_kept(tiny_backbone, log, items, tmp_path, capsys):
    seen = []

    def validate(model, renderer):
        assert not model.training
        seen.append({name: tensor.clone() for name, tensor in model.trained_state().items()})
        return {"NDCG@10": [0.1, 0.4, 0.2, 0.3][len(seen) - 1], "HR@10": 0.5}

    run = tuned(
        tiny_backbone,
        log,
        items,
        tmp_path / "run",
        epochs=2,
        validate=validate,
        validate_steps=5,
        lora_dropout=0.1,
    )
    found = load_trained(run)[0].trained_state()
    assert all(torch.equal(found[name], tensor) for name, tensor in seen[1].items())
    about = json.loads((run / "training.json").read_text())
    assert [entry["step"] for entry in about["validations"]] == [5, 10, 15, 18]
    assert [entry["NDCG@10"] for entry in about["validations"]] == [0.1, 0.4, 0.2, 0.3]
    assert about["kept_step"] == 10
    assert "the weights of step 10 are kept: NDCG@10 0.4000" in capsys.readouterr().err
    assert not (run / "checkpoints").exists()


def test_watching_changes_nothing_of_what_is_trained(tiny_backbone, log, items, tmp_path):
    options = {"epochs": 2, "lora_dropout": 0.1}
    plain = tuned(tiny_backbone, log, items, tmp_path / "plain", **options)
    watched = tuned(
        tiny_backbone,
        log,
        items,
        tmp_path / "watched",
        validate=valued([1, 2, 3, 4]),
        validate_steps=5,
        **options,
    )
    assert trained_bytes(plain) == trained_bytes(watched)


def test_training_ends_where_nothing_gets_better_with_a_warning(tiny_backbone, log, items, tmp_path, capsys):
    run = tuned(
        tiny_backbone,
        log,
        items,
        tmp_path / "run",
        epochs=40,
        validate=valued([0.2, 0.3, 0.3, 0.2, 0.1, 0.1]),
        validate_steps=10,
        patience=3,
    )
    about = json.loads((run / "training.json").read_text())
    assert (about["num_steps"], about["kept_step"]) == (50, 20)
    said = capsys.readouterr().err
    assert "no better NDCG@10 in 3 validations: training ends" in said
    assert "warning: since step 20 the loss fell from" in said


def test_the_best_weights_outlive_a_cut(signal_at, tiny_backbone, log, items, tmp_path, monkeypatch):
    options = {"epochs": 2, "validate_steps": 3, "checkpoint_steps": 4}
    values = [0.1, 0.5, 0.2, 0.3, 0.1, 0.2]
    whole = tuned(tiny_backbone, log, items, tmp_path / "whole", validate=valued(values), **options)
    signal_at(10)
    with pytest.raises(Stopped):
        tuned(tiny_backbone, log, items, tmp_path / "cut", validate=valued(values), **options)
    monkeypatch.undo()
    cut = tuned(tiny_backbone, log, items, tmp_path / "cut", validate=valued(values[3:]), **options)
    about = json.loads((cut / "training.json").read_text())
    assert [entry["NDCG@10"] for entry in about["validations"]] == values
    assert about["kept_step"] == 6
    assert trained_bytes(cut) == trained_bytes(whole)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"epochs": 1.5}, 14), ({"epochs": 9, "validate_steps": 4, "patience": 2}, 12)],
    ids=["its steps are done", "nothing got better"],
)
def test_a_training_cut_when_it_was_over_takes_no_further_step(
    options, steps, tiny_backbone, log, items, tmp_path, monkeypatch
):
    """Cut after its last checkpoint and before the model is written, in the middle of an epoch."""
    options |= {"checkpoint_steps": 2, "lora_dropout": 0.1}
    whole = tuned(tiny_backbone, log, items, tmp_path / "whole", validate=valued([0.5, 0.3, 0.2]), **options)

    def cut(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "draw_curves", cut)
    with pytest.raises(KeyboardInterrupt):
        tuned(tiny_backbone, log, items, tmp_path / "cut", validate=valued([0.5, 0.3, 0.2]), **options)
    monkeypatch.undo()
    run = tuned(tiny_backbone, log, items, tmp_path / "cut", validate=valued([0.9]), **options)
    about = json.loads((run / "training.json").read_text())
    assert about["resumed_from"] == f"checkpoint-{steps}"
    assert about["num_steps"] == steps
    assert trained_bytes(run) == trained_bytes(whole)


def test_a_recipe_validates_by_ranking_as_evaluation_does(tiny_backbone, log, items, tmp_path):
    from genrec.pipeline import Pipeline
    from genrec.recipe import parse_recipe

    (tmp_path / "data").mkdir()
    log.write(tmp_path / "data" / "interactions.parquet")
    items.write(tmp_path / "data" / "items.parquet")
    recipe = parse_recipe(
        {
            "run_dir": str(tmp_path / "run"),
            "data": {"source": str(tmp_path / "data"), "item_core": 1},
            "index": {"method": "independent"},
            "model": {"backbone": tiny_backbone, "dtype": "float32"},
            "train": {
                "epochs": 8,
                "learning_rate": 5e-3,
                "rows_learning_rate": 1e-2,
                "validate_steps": 36,
                "validate_users": 40,
            },
            "evaluate": {"on": "valid", "ks": [1, 10], "baselines": ["popularity"]},
        }
    )
    run = Pipeline(recipe).run_until("evaluate")
    about = json.loads((run / "training.json").read_text())
    found = [entry["NDCG@10"] for entry in about["validations"]]
    assert len(found) == 2
    assert found[-1] > 0.9
    measured = json.loads((run / "metrics.json").read_text())["model"]["metrics"]["NDCG@10"]
    assert max(found) == pytest.approx(measured, abs=0.05)  # of 40 of the 60 users


def test_validation_without_a_way_to_measure_is_refused(tiny_backbone, log, items, tmp_path):
    with pytest.raises(RecipeError, match=r"validate_steps=5 needs a function that measures"):
        tuned(tiny_backbone, log, items, tmp_path / "run", validate_steps=5)


def test_curves_and_trackers_lie_in_the_run(tiny_backbone, log, items, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tuned(
        tiny_backbone,
        log,
        items,
        tmp_path / "run",
        epochs=3,
        validate=valued([0.1, 0.2, 0.3]),
        validate_steps=10,
        report_to="tensorboard",
    )
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(run / "logs")).Reload()
    assert [event.value for event in events.Scalars("train/valid_NDCG@10")] == pytest.approx([0.1, 0.2, 0.3])
    assert events.Scalars("train/loss")


def test_an_unknown_tracker_is_named(tiny_backbone, log, items, tmp_path):
    with pytest.raises(
        RecipeError, match=r"Unknown train\.report_to 'tensorbord'.*Did you mean 'tensorboard'"
    ):
        tuned(tiny_backbone, log, items, tmp_path / "run", report_to="tensorbord")


def test_what_training_takes_is_said_before_it_begins(tiny_backbone, log, items, tmp_path, capsys):
    tuned(tiny_backbone, log, items, tmp_path / "run", epochs=2)
    said = capsys.readouterr().err
    assert "weights are trained; 140 rows, 1,680 targets an epoch" in said
    assert "18 steps of about 0." in said
    assert "of gradients and optimizer" in said


@pytest.mark.parametrize(
    ("free", "advice"), [(7e5, r"train\.accumulation=\d+ would do"), (1e5, "Raise train")]
)
def test_a_training_that_cannot_fit_stops_with_what_would(
    free, advice, tiny_backbone, log, items, tmp_path, monkeypatch
):
    monkeypatch.setattr(watch, "_free_memory", lambda device: int(free))
    with pytest.raises(RecipeError, match=rf"Training needs about .* GB are free: .*{advice}"):
        tuned(tiny_backbone, log, items, tmp_path / "run")


def test_a_loss_that_is_no_number_stops_with_what_to_do(tiny_backbone, log, items, tmp_path):
    with pytest.raises(RunError, match=r"The loss became nan at step.*Lower train\.learning_rate"):
        tuned(tiny_backbone, log, items, tmp_path / "run", epochs=4, learning_rate=1e30, adapter="full")
