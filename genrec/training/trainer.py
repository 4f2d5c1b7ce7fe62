"""The transformers Trainer, with batches of near lengths and checkpoints of trained weights only.

TRL's SFTTrainer was weighed and left: it scores the whole vocabulary (on a CPU at every position), which is most of
a small model's cost; the rows are in its prompt-completion form, so that it can be used on them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from safetensors import SafetensorError
from torch.utils.data import Dataset, Sampler
from transformers import Trainer

from genrec.core.errors import DataError, RunError
from genrec.core.processes import any_of_them, is_main_process, wait
from genrec.core.progress import say
from genrec.models.recommender_model import RecommenderModel
from genrec.training.checkpoints import WEIGHTS
from genrec.training.launch import whole_weights
from genrec.training.targets import ItemTargets


class TokenRows(Dataset):
    """Rows as ``input_ids`` and ``labels``, with ``items`` and ``slots`` of ``ItemTargets``.

    Token ids come from Arrow, mapped where they lie in a file; the rest is made when a row is asked for.

    Attributes:
        lengths: ``(rows,)`` tokens of each row.
        num_targets: Number of labels in all rows.

    Args:
        rows: From ``genrec.tasks.tokenise``.
        targets: What is known of a row's items.
        whole_words: Numbers the words of a prompt, ``Renderer.whole_word_ids``, for a model that is told them.
        user_vectors: ``(rows, size)`` of each row's user, for a model of personal adapters.
    """

    def __init__(
        self,
        rows: Any,
        targets: ItemTargets,
        whole_words: Callable[[Sequence[int]], list[int]] | None = None,
        user_vectors: np.ndarray | None = None,
    ) -> None:
        if not len(rows):
            raise DataError("There is no training row: every user has fewer interactions than a row needs.")
        self._rows, self._targets, self._whole_words = rows, targets, whole_words
        self._user_vectors = user_vectors
        self.lengths = pc.list_value_length(rows.data["input_ids"]).to_numpy()
        self.num_targets = int(self.lengths.sum(dtype=np.int64) - pc.sum(rows.data["prompt_tokens"]).as_py())

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> dict[str, Any]:
        stored = self._rows[row]
        ids, length = stored["input_ids"], stored["prompt_tokens"]
        labels = [-100] * length + ids[length:]
        items, slots = self._targets.read_row(ids, labels)
        found: dict[str, Any] = {"input_ids": ids, "labels": labels, "items": items, "slots": slots}
        if self._whole_words is not None:
            found["whole_words"] = self._whole_words(ids[:length])
        if self._user_vectors is not None:
            found["user_vectors"] = self._user_vectors[row]
        return found

    @property
    def most_items(self) -> int:
        """Items of the row that has the most of them."""
        return max(len(self[row]["items"]) for row in range(len(self)))

    @property
    def hash(self) -> str:
        """Digest of all ids, of where the prompts end and of users' vectors, however the rows were written."""
        digest = hashlib.sha256()
        for chunk in self._rows.data["input_ids"].chunks:
            digest.update(chunk.flatten().to_numpy().tobytes())
        digest.update(self.lengths.tobytes())
        digest.update(self._rows.data["prompt_tokens"].to_numpy().tobytes())
        if self._user_vectors is not None:
            digest.update(self._user_vectors.tobytes())
        return digest.hexdigest()


def collate(
    rows: Sequence[dict[str, Any]], no_item: int, decoder_start: int | None = None
) -> dict[str, torch.Tensor]:
    """Returns every column of the rows, ``(batch, longest)``, padded on the right, and ``attention_mask``; users' vectors as they are.

    For an encoder-decoder ``input_ids`` are the prompts; the answers are ``decoder_input_ids``, the start token first, and
    ``labels`` and ``slots`` are theirs.

    Args:
        rows: From ``TokenRows``.
        no_item: What pads ``items``.
        decoder_start: Token that an encoder-decoder's answers begin with; None is a decoder-only model.
    """
    if decoder_start is not None:
        rows = [_parted(row, decoder_start) for row in rows]
    padding = {"labels": -100, "items": no_item, "slots": -1}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row[name], dtype=torch.long) for row in rows], True, padding.get(name, 0)
        )
        for name in rows[0]
        if name != "user_vectors"
    }
    if "user_vectors" in rows[0]:
        batch["user_vectors"] = torch.from_numpy(np.stack([row["user_vectors"] for row in rows]))
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return batch


def _parted(row: dict[str, Any], start: int) -> dict[str, Any]:
    ids, labels = row["input_ids"], row["labels"]
    length = next((place for place, label in enumerate(labels) if label != -100), len(labels))
    return row | {
        "input_ids": ids[:length],
        "decoder_input_ids": [start, *ids[length:]],
        "labels": [-100, *labels[length:]],
        "slots": [-1, *row["slots"][length:]],
    }


class LengthGroupedSampler(Sampler[int]):
    """Row numbers such that each stretch of ``batch_size`` has near lengths, batches in random order.

    The order depends on seed, epoch and the batch size of the whole step only, so one process and several
    see the same steps. The last batch is filled up with rows of the longest kind, drawn a second time.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, of which the order is a function."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = rng.permutation(len(self.lengths))
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        missing = len(self) - len(rows)
        rows = np.concatenate([rows, np.resize(rows[::-1], missing)])
        batches = rng.permutation(rows.reshape(-1, self.batch_size))
        return iter(batches.ravel().tolist())


class ItemTrainer(Trainer):
    """A Trainer whose checkpoints hold what is trained, and whose order ignores the number of processes."""

    def __init__(
        self,
        *,
        step_rows: int,
        targets: ItemTargets,
        teacher_weight: float,
        make_optimizer: Callable[[], torch.optim.Optimizer],
        **arguments: Any,
    ) -> None:
        self._step_rows, self._targets, self._teacher_weight = step_rows, targets, teacher_weight
        self._make_optimizer = make_optimizer
        super().__init__(**arguments)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:  # noqa: ARG002
        """Returns our optimizer, made once; one handed to a Trainer is replaced under DeepSpeed and refused under FSDP."""
        if self.optimizer is None:
            self.optimizer = self._make_optimizer()
        return self.optimizer

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Returns the model's loss, with what ``ItemTargets`` says of each label."""
        with torch.autocast(inputs["labels"].device.type, enabled=False):
            about = self._targets.of(inputs)
        inputs = {name: value for name, value in inputs.items() if name not in ("items", "slots")}
        inputs |= about | {"soft_weight": self._teacher_weight}
        if options.get("num_items_in_batch") is not None:
            # The same divisor in every step: divided by its own number of targets, a step of short rows
            # would give each of its targets many times the weight of one in a step of long rows.
            options["num_items_in_batch"] = self._mean_targets
        return super().compute_loss(model, inputs, *arguments, **options)

    @cached_property
    def _mean_targets(self) -> float:
        """Targets in a step, on average."""
        rows = self.train_dataset
        assert isinstance(rows, TokenRows)
        return rows.num_targets * self._step_rows / len(rows)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        rows = train_dataset if train_dataset is not None else self.train_dataset
        assert isinstance(rows, TokenRows)
        return LengthGroupedSampler(rows.lengths, self._step_rows, self.args.seed)

    def _run_epoch(self, *arguments: Any, **about: Any) -> None:
        # A Trainer resumed from the checkpoint of its last step, in the middle of an epoch, takes one step more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        if not self.control.should_training_stop:
            super()._run_epoch(*arguments, **about)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:  # noqa: ARG002
        # Every process is asked to save; two that replaced the folder at once would stop each other. It is a folder
        # of its own, since save replaces it whole, and other processes write beside it.
        with whole_weights(self._model):
            if not self.args.should_save:
                return
            self._model.save(Path(output_dir or str(self.args.output_dir)) / WEIGHTS)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder, error = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}", None
        try:
            super()._save_checkpoint(model, trial)
        except (
            OSError,
            RuntimeError,
            RunError,
            SafetensorError,
        ) as found:  # of a full disk, by each library's own
            error = str(found).splitlines()[0]
        if any_of_them(error is not None):
            wait()
            if is_main_process():
                shutil.rmtree(folder, ignore_errors=True)
                before = sorted(
                    folder.parent.glob("checkpoint-*/COMPLETE"), key=lambda file: file.stat().st_mtime
                )
                resumed = f"from {before[-1].parent.name}" if before else "from the beginning"
                free = shutil.disk_usage(folder.parent).free / 1e6
                say(
                    f"  {folder.name} could not be written ({error or 'by another process'}; {free:,.1f} MB are free there); "
                    f"training goes on. Cut now, it would be resumed {resumed}."
                )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ARG002
        self._model.load_weights(Path(resume_from_checkpoint) / WEIGHTS)

    @property
    def _model(self) -> RecommenderModel:
        return self.accelerator.unwrap_model(self.model)
