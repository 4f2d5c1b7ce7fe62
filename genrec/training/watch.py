"""What is seen of a training: its progress, how it ranks meanwhile, its curves, and what it will take before it begins."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from transformers import Trainer, TrainerCallback

from genrec.core.errors import RecipeError, RunError
from genrec.core.files import atomic_path
from genrec.core.processes import is_main_process, process_state, wait
from genrec.core.progress import say
from genrec.models.recommender_model import RecommenderModel
from genrec.training.trainer import TokenRows

if TYPE_CHECKING:
    from collections.abc import Iterator

# Names of what a validation finds, as it stands in logs; the model whose last metric is highest is kept.
VALID = "valid_"
CHOSEN_BY = "NDCG@10"


class ShowProgress(TrainerCallback):
    """Shows steps, loss, learned targets and read tokens a second, memory and the time left.

    Args:
        targets: In a step, on average.
        tokens: In a step, on average, without padding.
    """

    def __init__(self, targets: float, tokens: float) -> None:
        self._targets, self._tokens = targets, tokens

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Begins a bar where somebody watches."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._first, self._began, self._bar = state.global_step, time.perf_counter(), None
        if is_main_process() and (console := Console(stderr=True)).is_terminal:
            columns = [TextColumn("  training"), BarColumn(), TextColumn("{task.fields[note]}")]
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task("", total=state.max_steps, completed=self._first, note="")
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Moves the bar."""
        if self._bar:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Shows the figures; a loss that is no number stops."""
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise RunError(
                f"The loss became {logs['loss']} at step {state.global_step}. Lower train.learning_rate and "
                "train.rows_learning_rate."
            )
        spent = time.perf_counter() - self._began
        done = state.global_step - self._first
        rate = done / spent
        note = f"loss {logs['loss']:.3f}, {rate * self._targets:,.0f} targets/s, {rate * self._tokens:,.0f} tokens/s, {_memory_in_use() / 1e9:.1f} GB"
        if self._bar:
            self._bar.update(self._task, note=note)
        elif state.global_step % max(10, state.max_steps // 10 // 10 * 10) == 0:
            left = spent / done * (state.max_steps - state.global_step)
            say(f"  step {state.global_step}/{state.max_steps}: {note}, {left:.0f} s left")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Ends the bar."""
        if self._bar:
            self._bar.stop()


class KeepBest(TrainerCallback):
    """Measures the model while it is trained, keeps the weights that rank best, and stops where nothing gets better.

    What it found lies in the trainer's log, so that it goes on with a checkpoint. The weights lie in ``best-STEP``
    beside the checkpoints; those that a kept checkpoint may come back to stay.

    Args:
        measure: Returns metrics of the model, ``CHOSEN_BY`` among them, the same in every process.
        steps: Steps between two measurements; the last step is measured too.
        patience: Measurements without a better one after which training ends; 0 never.
        folder: Of the checkpoints.

    Attributes:
        trainer: Set once there is one.
    """

    trainer: Trainer

    def __init__(
        self,
        measure: Callable[[RecommenderModel], Mapping[str, float]],
        steps: int,
        patience: int,
        folder: Path,
    ) -> None:
        self._measure, self._steps, self._patience, self._folder = measure, steps, patience, folder
        self._kept_by_checkpoint: int | None = None

    @property
    def found(self) -> list[dict[str, float]]:
        """What was measured: ``step`` and metrics, in order."""
        history = self.trainer.state.log_history
        entries = [entry for entry in history if VALID + CHOSEN_BY in entry]
        return [
            {"step": entry["step"]}
            | {name.removeprefix(VALID): entry[name] for name in entry if name.startswith(VALID)}
            for entry in entries
        ]

    @property
    def best(self) -> dict[str, float] | None:
        """The measurement with the highest ``CHOSEN_BY``, the first of several."""
        return max(self.found, key=lambda entry: entry[CHOSEN_BY], default=None)

    @property
    def _since_best(self) -> list[dict[str, float]]:
        best = self.best
        return [] if best is None else [entry for entry in self.found if entry["step"] > best["step"]]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Ends a resumed training that had ended when it was cut, and knows what its checkpoint knew."""
        best = self.best
        self._kept_by_checkpoint = None if best is None else int(best["step"])
        if self._patience and len(self._since_best) >= self._patience:
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **about: Any) -> None:  # noqa: ARG002
        """Measures every so many steps."""
        model: RecommenderModel = about["model"]
        if state.global_step % self._steps and state.global_step < state.max_steps:
            return
        before = self.best
        model.eval()
        values = dict(self._measure(model))
        model.train()
        loss_is_due = control.should_log
        self.trainer.log({VALID + name: value for name, value in values.items()})
        control.should_log = loss_is_due  # which a log of anything takes for done
        said = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        say(f"  step {state.global_step}: validation {said}")
        best = self.best
        assert best is not None
        if best["step"] == state.global_step:
            if is_main_process():
                model.save(self._weights(state.global_step))
                if before is not None and before["step"] != self._kept_by_checkpoint:
                    shutil.rmtree(self._weights(int(before["step"])), ignore_errors=True)
            wait()
            return
        since = self._since_best
        self._warn(state, int(best["step"]), since)
        if self._patience and len(since) >= self._patience:
            say(f"  no better {CHOSEN_BY} in {len(since)} validations: training ends")
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Keeps the weights that this checkpoint knows as the best, and those of the one before it."""
        best = self.best
        now = None if best is None else int(best["step"])
        if is_main_process():
            keep = {self._weights(step) for step in (self._kept_by_checkpoint, now) if step is not None}
            for path in set(self._folder.glob("best-*")) - keep:
                shutil.rmtree(path)
        self._kept_by_checkpoint = now

    def load_best(self, model: RecommenderModel) -> int | None:
        """Gives the model the weights that ranked best, and returns their step; None where nothing was measured."""
        best = self.best
        if best is None:
            return None
        step = int(best["step"])
        if step != self.trainer.state.global_step:
            model.load_weights(self._weights(step))
            say(f"  the weights of step {step} are kept: {CHOSEN_BY} {best[CHOSEN_BY]:.4f}")
        return step

    def _weights(self, step: int) -> Path:
        return self._folder / f"best-{step}"

    def _warn(self, state: Any, best: int, since: Sequence[Mapping[str, float]]) -> None:
        """Says where the loss falls and ranking does not get better: the model learns what does not help."""
        losses = [(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry]
        before = [loss for step, loss in losses if best - self._steps <= step <= best]
        after = [loss for step, loss in losses if step >= state.global_step - self._steps]
        if len(since) >= 2 and before and after and np.mean(after) < np.mean(before):
            say(
                f"  warning: since step {best} the loss fell from {np.mean(before):.3f} to {np.mean(after):.3f}, but "
                f"{CHOSEN_BY} did not rise. More training fits the training rows only; set train.patience to end it."
            )


def draw_curves(
    path: Path, losses: Sequence[tuple[float, float]], found: Sequence[Mapping[str, float]]
) -> None:
    """Writes loss, and validation metrics where there are any, over steps, as PNG.

    Raises:
        RunError: If the disk refuses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in (found[0] if found else ()) if name != "step"]
    figure = Figure(figsize=(7, 3 if not names else 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1 + bool(names), sharex=True, squeeze=False)[:, 0]
    if losses:
        axes[0].plot(*zip(*losses, strict=True), color="#2f6f8f", linewidth=1.4)
    axes[0].set_ylabel("training loss")
    for name, colour in zip(names, ("#b3541e", "#5b7f3a", "#6b4c9a", "#777777"), strict=False):
        steps = [entry["step"] for entry in found]
        axes[1].plot(
            steps, [entry[name] for entry in found], marker="o", markersize=3, label=name, color=colour
        )
    if names:
        axes[1].set_ylabel("validation")
        axes[1].legend(frameon=False)
    axes[-1].set_xlabel("step")
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(axis="y", alpha=0.3)
    with atomic_path(path) as part:
        figure.savefig(part, format="png")


def estimate(trainer: Any, rows: TokenRows, share: int, steps: int) -> None:
    """Says what training will take, and stops where it cannot fit.

    One of the longest rows goes forward and backward, and a batch of middle ones. What the longest keeps for the
    backward pass is counted tensor by tensor, so that it is known for any batch; weights and random state stay as they are.

    Args:
        trainer: Ready to train.
        rows: Its rows.
        share: Rows in a batch of one process.
        steps: Steps of the whole training.

    Raises:
        RecipeError: If gradients, optimizer and activations need more memory than is free.
    """
    engine = trainer.accelerator.distributed_type.value
    if engine in ("FSDP", "DEEPSPEED"):
        say(
            f"  {steps:,} steps; what they take is not tried beforehand, since {engine} divides the model when it begins"
        )
        return
    model: RecommenderModel = trainer.model
    device = process_state().device
    by_length = np.argsort(rows.lengths, kind="stable")
    middle = by_length[
        np.linspace(len(rows) // 4, 3 * len(rows) // 4, share).astype(int).clip(max=len(rows) - 1)
    ]
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    fixed = trained + 2 * 4 * model.num_trainable  # gradients, and AdamW's two moments
    free = _free_memory(device)
    with torch.random.fork_rng():
        try:
            longest = _try(trainer, [rows[int(by_length[-1])]])[0]
            need = fixed + share * longest
            if need > free:
                raise RecipeError(_too_much(rows, share, fixed, longest, free, trainer))
            _, seconds = _try(trainer, [rows[int(row)] for row in middle])
        except torch.OutOfMemoryError as error:
            raise RecipeError(
                f"A batch of {share} rows of this model does not fit {device}: {str(error).splitlines()[0]} "
                f"{_ADVICE}"
            ) from error
        finally:
            model.zero_grad(set_to_none=True)
    seconds *= trainer.args.gradient_accumulation_steps
    say(
        f"  {steps:,} steps of about {seconds:.2f} s: {_in_words(steps * seconds)}; about {need / 1e9:.1f} GB beside the "
        f"weights ({fixed / 1e9:.1f} of gradients and optimizer, {share * longest / 1e9:.1f} for the longest batch of "
        f"{share}), of {free / 1e9:.1f} GB free"
    )


_ADVICE = (
    "Raise train.accumulation, lower tasks.max_history or set tasks.max_tokens, set train.gradient_checkpointing=true, or train "
    "fewer weights (train.adapter=lora or qlora, model.layers)."
)


def _too_much(rows: TokenRows, share: int, fixed: int, longest: int, free: int, trainer: Any) -> str:
    """Returns what is said of a training that does not fit, with the accumulation that would."""
    fits = max(0, int((free - fixed) // max(1, longest)))
    batches = next((n for n in range(2, share + 1) if share % n == 0 and share // n <= fits), None)
    accumulation = trainer.args.gradient_accumulation_steps
    would = f"train.accumulation={accumulation * batches} would do. Or: " if batches else ""
    return (
        f"Training needs about {(fixed + share * longest) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
        f"{fixed / 1e9:.1f} GB for gradients and optimizer, {share * longest / 1e9:.1f} GB for what {share} rows of "
        f"{int(rows.lengths.max()):,} tokens keep for the backward pass. {would}{_ADVICE}"
    )


def _try(trainer: Any, batch: list[dict[str, list[int]]]) -> tuple[int, float]:
    """Returns the bytes that a batch keeps for its backward pass, and the seconds of both passes."""
    model: RecommenderModel = trainer.model
    inputs = trainer._prepare_inputs(trainer.data_collator(batch))
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    began = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), _synchronised():
        with trainer.accelerator.autocast():  # which the Trainer wraps around the model once it trains
            loss = trainer.compute_loss(model, inputs)
        loss.backward()
    return sum(kept.values()), time.perf_counter() - began


@contextmanager
def _synchronised() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return (
            int(torch.cuda.mem_get_info(device)[0])
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    return int(psutil.virtual_memory().available)


def _memory_in_use() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return int(psutil.Process().memory_info().rss)


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
