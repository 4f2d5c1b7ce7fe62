"""From instruction data to a tuned model in a run directory."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from genrec.core.errors import RecipeError, RunError, require
from genrec.core.files import atomic_path, hash_value, read_json, write_json
from genrec.core.processes import is_main_process, num_processes, process_state, rank, wait
from genrec.core.progress import say
from genrec.data_prep import ItemCatalog, Split
from genrec.indexing import IndexSettings, ItemIndex
from genrec.indexing.vectors import cooccurrence, cooccurrence_vectors
from genrec.tasks import Renderer, TaskSettings, make_renderer, tokenise
from genrec.training.settings import ModelSettings, TrainSettings

if TYPE_CHECKING:
    from datasets import DatasetDict

    from genrec.models.sequence import SequenceModel

MODEL, INDEX, CHECKPOINTS = "model", "index", "checkpoints"
ITEMS, HISTORIES = "items.parquet", "histories.parquet"
SERVING_FILE, TRAINING_FILE = "serving.json", "training.json"


def finetune(
    backbone: str,
    data: DatasetDict,
    index: ItemIndex,
    items: ItemCatalog,
    split: Split,
    run_dir: str | Path,
    *,
    tasks: TaskSettings | None = None,
    model: ModelSettings | None = None,
    settings: TrainSettings | None = None,
    teachers: Sequence[SequenceModel] = (),
    data_sha256: str | None = None,
) -> Path:
    """Returns the run directory with the tuned model, its index and its catalogue.

    A run cut at any moment goes on from its last complete checkpoint when called again with the same
    arguments; checkpoints of other arguments are removed. Runs under ``accelerate launch`` as it is.

    Args:
        backbone: A Hub name, folder, GGUF file or packaged name (``genrec.models.backbone``).
        data: From ``build_dataset``.
        index: The items' codes.
        items: The catalogue, for the start values of identifier rows.
        split: Its training histories, for the same.
        run_dir: Folder to write.
        tasks: The settings that ``data`` was built with; they decide how histories are written.
        model: Layers, type and start of rows; its ``backbone`` is ignored in favour of the argument.
        settings: Training settings.
        teachers: The models of ``settings.teacher`` where they are trained already, on the same split and
            catalogue; otherwise they are trained here.
        data_sha256: ``split_sha256`` of the prepared data set, which the model then carries with it.

    Raises:
        ModelError: If the backbone cannot be read.
        RecipeError: If the batch cannot be divided over processes and accumulation.
        RunError: If the disk refuses, or the loss becomes NaN.
    """
    require("peft", "train")
    transformers = require("transformers", "train")
    import torch

    from genrec.models.backbone import NEW, load_backbone
    from genrec.models.recommender_model import RecommenderModel
    from genrec.models.sequence import MODELS, train_sequence
    from genrec.models.vocabulary import initial_rows
    from genrec.training.targets import ItemTargets
    from genrec.training.trainer import (
        ItemTrainer,
        MarkComplete,
        TokenRows,
        collate,
        last_checkpoint,
    )

    tasks, model, settings = tasks or TaskSettings(), model or ModelSettings(), settings or TrainSettings()
    run = Path(run_dir)
    processes = num_processes()
    share, rest = divmod(settings.batch_size, processes * settings.accumulation)
    if rest or not share:
        raise RecipeError(
            f"train.batch_size={settings.batch_size} cannot be divided over {processes} processes times "
            f"{settings.accumulation} accumulated batches. Make it a multiple of their product."
        )
    if index.item_ids != items.item_ids:
        raise RunError(
            f"The index names {len(index.codes):,} items, the catalogue has {len(items):,}, or they come in "
            "another order. Build the index from this catalogue."
        )
    if backbone == NEW and settings.adapter != "full":
        raise RecipeError(
            f"model.backbone=new has random weights, which train.adapter={settings.adapter} would leave as they "
            "are. Set train.adapter=full."
        )
    lm, tokenizer = load_backbone(
        backbone,
        model.layers,
        model.dtype,
        model.new,
        settings.seed,
        four_bit=settings.adapter == "qlora",
        double_quantisation=settings.double_quantisation,
    )
    longest = getattr(lm.config, "max_position_embeddings", None)
    if not settings.teachers and model.rows_start == "text+teacher":
        raise RecipeError("model.rows_start=text+teacher needs a train.teacher, such as sasrec.")
    if given := [teacher.kind for teacher in teachers]:
        if set(given) != set(settings.teachers):
            raise RecipeError(f"train.teacher={settings.teacher}, but the teachers given are {given}.")
    else:
        teachers = [train_sequence(split, items.item_ids, MODELS[kind][1]())[0] for kind in settings.teachers]
    vectors = None
    if model.rows_start == "text+collaborative":
        spec = IndexSettings()
        counts = cooccurrence(items, split.train, spec.window)
        vectors = cooccurrence_vectors(counts, spec.vector_size, settings.seed)
    elif model.rows_start == "text+teacher":
        found = [teacher.items.weight[: len(items)].detach().cpu().numpy() for teacher in teachers]
        vectors = np.hstack([vector / vector.std() for vector in found])
    start = initial_rows(lm, tokenizer, index, items, model.rows_start, vectors, settings.seed)
    transformers.set_seed(settings.seed)  # a teacher trained above must not change the adapter's start
    recommender = RecommenderModel.create(
        lm,
        tokenizer,
        index,
        start,
        name=backbone,
        layers=model.layers,
        new=model.new if backbone == NEW else None,
        adapter=settings.adapter,
        lora_r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        lora_targets=settings.lora_targets,
        double_quantisation=settings.double_quantisation,
        softmax_over=settings.softmax_over,
        data_sha256=data_sha256,
        whole_words=model.whole_words,
    )
    renderer = make_renderer(tokenizer, index, tasks, recommender.is_encoder_decoder)
    targets = ItemTargets(index, recommender.first_id, settings.exclude_history, teachers)
    targets.check(tasks.max_history)
    tokens = run / CHECKPOINTS / f"tokens-{rank()}.arrow"
    words = renderer.whole_word_ids if model.whole_words else None
    rows = TokenRows(tokenise(data["train"], renderer, tasks.workers, tokens), targets, words)
    if longest and int(rows.lengths.max()) > longest:
        raise RecipeError(
            f"The longest row has {int(rows.lengths.max()):,} tokens; {backbone} reads at most {longest:,}. "
            "Lower tasks.max_history, or set tasks.max_tokens."
        )
    if backbone == NEW:
        # Its position vectors are learned, and those after the longest row's last target never are: asked from
        # there, it misses what it knows. So it reads as many items as it had before a target in training.
        renderer.max_history = min(tasks.max_history, max(1, rows.most_items - 1))
    all_weights = sum(p.numel() for p in recommender.parameters())
    say(
        f"  {recommender.num_trainable:,} of {all_weights:,} weights are trained; {len(rows):,} rows, "
        f"{rows.num_targets:,} targets an epoch"
    )

    own = {id(row) for row in recommender.row_parameters()}
    body = [p for p in recommender.parameters() if p.requires_grad and id(p) not in own]
    optimizer = torch.optim.AdamW(
        [
            {"params": body, "lr": settings.learning_rate, "weight_decay": settings.weight_decay},
            {"params": recommender.row_parameters(), "lr": settings.rows_learning_rate, "weight_decay": 0.0},
        ],
        fused=True,
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(run / CHECKPOINTS),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=share,
        gradient_accumulation_steps=settings.accumulation,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_steps,
        # Beside bfloat16 weights the adapter is multiplied in it too. Not lm.dtype: that is of the float32 rows.
        bf16=recommender.about["dtype"] == "bfloat16",
        max_grad_norm=settings.max_grad_norm,
        activation_checkpointing=settings.gradient_checkpointing,
        logging_steps=10,
        save_strategy="steps" if settings.checkpoint_steps else "no",
        save_steps=settings.checkpoint_steps or 500,
        save_total_limit=2,
        report_to=settings.report_to,
        remove_unused_columns=False,
        seed=settings.seed,
        disable_tqdm=True,
        use_cpu=process_state().device.type == "cpu",
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_nan_inf_filter=False,
        ddp_find_unused_parameters=False,  # every trained weight is used in every step
    )
    trainer = ItemTrainer(
        step_rows=settings.batch_size,
        targets=targets,
        teacher_weight=settings.teacher_weight,
        model=recommender,
        args=arguments,
        train_dataset=rows,
        data_collator=partial(collate, no_item=len(items), decoder_start=recommender.decoder_start),
        optimizers=(optimizer, None),
        callbacks=[MarkComplete(), _progress_callback(transformers, rows.num_targets)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    if trainer.args.world_size != processes:
        raise RunError(
            f"{processes} processes were asked for, but training would use {trainer.args.world_size}. "
            "Check the accelerate configuration."
        )
    # What decides the weights; how often checkpoints are written and what is logged does not.
    decisive = settings.model_dump(exclude={"checkpoint_steps", "report_to"})
    begun = hash_value([backbone, model.model_dump(), decisive, index.hash, rows.hash, data_sha256])
    resume = last_checkpoint(run / CHECKPOINTS, begun)
    wait()
    if resume:
        say(f"  going on from {Path(resume).name}")
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    if is_main_process():
        items.write(run / ITEMS)
        index.save(run / INDEX)
        recommender.save(run / MODEL)
        held_out = split.test
        columns = {"user_id": held_out.user_ids, "history": held_out.histories, "targets": held_out.targets}
        with atomic_path(run / HISTORIES) as part:
            pa_parquet.write_table(pa.table(columns), part)
        write_json(run / SERVING_FILE, renderer.about())
        write_json(
            run / TRAINING_FILE,
            {
                "backbone": backbone,
                "layers": lm.config.num_hidden_layers,
                "dtype": recommender.about["dtype"],
                "num_trainable": recommender.num_trainable,
                "num_weights": all_weights,
                "num_rows": len(rows),
                "num_targets": rows.num_targets,
                "num_steps": trainer.state.global_step,
                "train_s": round(time.perf_counter() - began, 1),
                "processes": processes,
                "resumed_from": Path(resume).name if resume else None,
                "losses": losses,
            },
        )
        shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
    wait()
    return run


def load_trained(run_dir: str | Path, dtype: Any = "auto") -> tuple[Any, Renderer, ItemIndex, ItemCatalog]:
    """Returns model, renderer, index and catalogue of a run that ``finetune`` wrote.

    Raises:
        RunError: If the folder is not a finished run, or its parts do not belong together.
    """
    run = Path(run_dir)
    if not (run / MODEL).is_dir():
        raise RunError(
            f"{run} has no trained model. Allowed: the folder of a finished run (genrec run RECIPE makes "
            "one), or the Hub name of one."
        )
    require("peft", "train")
    from genrec.models.recommender_model import RecommenderModel

    index = ItemIndex.load(run / INDEX)
    model = RecommenderModel.load(run / MODEL, index, dtype)
    renderer = Renderer.from_about(read_json(run / SERVING_FILE), model.tokenizer, index)
    return model, renderer, index, ItemCatalog.load(run / ITEMS)


def _progress_callback(transformers: Any, num_targets: int) -> Any:
    """Returns a callback that shows steps, loss, learned targets a second and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    class Show(transformers.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            self.first, self.began, self.bar = state.global_step, time.perf_counter(), None
            if is_main_process() and (console := Console(stderr=True)).is_terminal:
                columns = [TextColumn("  training"), BarColumn(), TextColumn("{task.fields[note]}")]
                self.bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
                self.task = self.bar.add_task("", total=state.max_steps, completed=self.first, note="")
                self.bar.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if self.bar:
                self.bar.update(self.task, completed=state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
            if not logs or "loss" not in logs:
                return
            if not math.isfinite(logs["loss"]):
                raise RunError(
                    f"The loss became {logs['loss']} at step {state.global_step}. Lower train.learning_rate and "
                    "train.rows_learning_rate."
                )
            spent = time.perf_counter() - self.began
            done = state.global_step - self.first
            rate = num_targets * state.num_train_epochs / state.max_steps * done / spent
            note = f"loss {logs['loss']:.3f}, {rate:,.0f} targets/s"
            if self.bar:
                self.bar.update(self.task, note=note)
            elif state.global_step % max(10, state.max_steps // 10 // 10 * 10) == 0:
                left = spent / done * (state.max_steps - state.global_step)
                say(f"  step {state.global_step}/{state.max_steps}: {note}, {left:.0f} s left")

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if self.bar:
                self.bar.stop()

    return Show()
