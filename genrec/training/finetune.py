"""From instruction data to a tuned model in a run directory."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from genrec.core.errors import RecipeError, RunError, check_passed_on, lookup, require
from genrec.core.files import atomic_path, hash_file, hash_folder, hash_value, read_json, write_json
from genrec.core.processes import is_main_process, num_processes, process_state, rank, wait
from genrec.core.progress import say
from genrec.data_prep import ItemCatalog, Split
from genrec.indexing import IndexSettings, ItemIndex
from genrec.indexing.vectors import cooccurrence, cooccurrence_vectors
from genrec.tasks import Renderer, TaskSettings, make_renderer, tokenise
from genrec.training.settings import ModelSettings, TrainSettings

if TYPE_CHECKING:
    from datasets import DatasetDict

    from genrec.models.recommender_model import RecommenderModel
    from genrec.models.sequence import SequenceModel

MODEL, INDEX, CHECKPOINTS = "model", "index", "checkpoints"
ITEMS, HISTORIES = "items.parquet", "histories.parquet"
SERVING_FILE, TRAINING_FILE = "serving.json", "training.json"
CURVES, LOGS = "curves.png", "logs"
# What personal adapters are made from (genrec.models.users); whoever trains with it writes it.
USERS = "users"
DECODING = "decoding"  # which evaluation writes
# What a recommendation depends on, and the file with its hashes.
SERVED, SEAL = (MODEL, INDEX, ITEMS, SERVING_FILE, DECODING, USERS), "sha256.json"
# Those that transformers calls otherwise.
SCHEDULES = {"constant": "constant_with_warmup"}


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
    validate: Callable[[RecommenderModel, Renderer], Mapping[str, float]] | None = None,
    row_vectors: np.ndarray | None = None,
    start: str | Path | None = None,
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
        validate: Returns metrics of the model, NDCG@10 among them, the same in every process; called every
            ``settings.validate_steps``.
        row_vectors: ``(training rows, size)`` vectors of the rows' users, for ``adapter`` ``"reclora"`` and ``"qreclora"``. They
            may know nothing of what their row learns.
        start: Folder of ``RecommenderModel.save`` with weights to go on from, of the same backbone, adapter and index.

    Raises:
        ModelError: If the backbone cannot be read.
        RecipeError: If the batch cannot be divided over processes and accumulation.
        RunError: If the disk refuses, the loss becomes NaN, or training would not run as its launcher was told
            (``check_launch``).
        Stopped: If the process was asked to end by SIGTERM; a checkpoint is there.
    """
    require("peft", "train")
    transformers = require("transformers", "train")
    import torch

    from genrec.models.backbone import NEW, load_backbone
    from genrec.models.recommender_model import RecommenderModel
    from genrec.models.sequence import MODELS, train_sequence
    from genrec.models.vocabulary import initial_rows
    from genrec.training.checkpoints import MarkComplete, StopOnSignal, Stopped, last_checkpoint
    from genrec.training.launch import check_launch, whole_weights
    from genrec.training.targets import ItemTargets
    from genrec.training.trainer import ItemTrainer, TokenRows, collate
    from genrec.training.watch import KeepBest, ShowProgress, draw_curves, estimate

    tasks, model, settings = tasks or TaskSettings(), model or ModelSettings(), settings or TrainSettings()
    run = Path(run_dir)
    processes = num_processes()
    share, rest = divmod(settings.batch_size, processes * settings.accumulation)
    if rest or not share:
        raise RecipeError(
            f"train.batch_size={settings.batch_size} cannot be divided over {processes} processes times "
            f"{settings.accumulation} accumulated batches. Make it a multiple of their product."
        )
    if settings.validate_steps and validate is None:
        raise RecipeError(
            f"train.validate_steps={settings.validate_steps} needs a function that measures the model: give validate, or run a "
            "recipe, which has one."
        )
    if (row_vectors is not None) != settings.personal:
        raise RecipeError(
            f"train.adapter={settings.adapter} {'needs' if settings.personal else 'does not take'} row_vectors, one for each "
            "training row. A recipe makes them from train.reclora.vectors."
        )
    trackers = transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK
    for tracker in settings.report_to:
        lookup(trackers, tracker, "train.report_to")
    if "tensorboard" in settings.report_to:
        require("tensorboard", "train")
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
        four_bit=settings.four_bit,
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
    first_rows = initial_rows(lm, tokenizer, index, items, model.rows_start, vectors, settings.seed)
    transformers.set_seed(settings.seed)  # a teacher trained above must not change the adapter's start
    recommender = RecommenderModel.create(
        lm,
        tokenizer,
        index,
        first_rows,
        name=backbone,
        layers=model.layers,
        new=model.new if backbone == NEW else None,
        adapter=settings.adapter,
        lora_r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        lora_targets=settings.lora_targets,
        lora_options=settings.lora_options,
        reclora=None
        if row_vectors is None
        else settings.reclora.adapter | {"user_size": row_vectors.shape[1]},
        double_quantisation=settings.double_quantisation,
        softmax_over=settings.softmax_over,
        data_sha256=data_sha256,
        whole_words=model.whole_words,
    )
    if start is not None:
        recommender.load_weights(start)
    renderer = make_renderer(tokenizer, index, tasks, recommender.is_encoder_decoder)
    targets = ItemTargets(index, recommender.first_id, settings.exclude_history, teachers)
    targets.check(tasks.max_history)
    tokens = run / CHECKPOINTS / f"tokens-{rank()}.arrow"
    words = renderer.whole_word_ids if model.whole_words else None
    rows = TokenRows(tokenise(data["train"], renderer, tasks.workers, tokens), targets, words, row_vectors)
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
    groups = [
        {"params": body, "lr": settings.learning_rate, "weight_decay": settings.weight_decay},
        {"params": recommender.row_parameters(), "lr": settings.rows_learning_rate, "weight_decay": 0.0},
    ]
    own_arguments = {
        "output_dir": str(run / CHECKPOINTS),
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": share,
        "gradient_accumulation_steps": settings.accumulation,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "lr_scheduler_type": SCHEDULES.get(settings.schedule, settings.schedule),
        "warmup_steps": settings.warmup_steps,
        # Beside bfloat16 weights the adapter is multiplied in it too. Not lm.dtype: that is of the float32 rows.
        "bf16": recommender.about["dtype"] == "bfloat16",
        "max_grad_norm": settings.max_grad_norm,
        "activation_checkpointing": settings.gradient_checkpointing,
        "logging_steps": 10,
        "save_strategy": "steps" if settings.checkpoint_steps else "no",
        "save_steps": settings.checkpoint_steps or 500,
        "save_total_limit": 2,
        "report_to": list(settings.report_to) or "none",
        "remove_unused_columns": False,
        "seed": settings.seed,
        "disable_tqdm": True,
        "use_cpu": process_state().device.type == "cpu",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_nan_inf_filter": False,
        # An adapter's weights are used in every step; of all weights, an output layer's old rows where there is text alone.
        "ddp_find_unused_parameters": settings.adapter == "full",
    }
    arguments = _training_arguments(transformers.TrainingArguments, own_arguments, settings.arguments)
    make, options = ItemTrainer.get_optimizer_cls_and_kwargs(arguments, cast(Any, recommender))
    step = settings.batch_size / len(rows)  # of an epoch
    shown = ShowProgress(rows.num_targets * step, float(rows.lengths.sum(dtype=np.int64)) * step)
    stopper, keeper = StopOnSignal(), None
    if settings.validate_steps and validate is not None:
        keeper = KeepBest(
            lambda model: validate(model, renderer),
            settings.validate_steps,
            settings.patience,
            run / CHECKPOINTS,
        )
    trainer = ItemTrainer(
        step_rows=settings.batch_size,
        targets=targets,
        teacher_weight=settings.teacher_weight,
        model=recommender,
        args=arguments,
        train_dataset=rows,
        data_collator=partial(collate, no_item=len(items), decoder_start=recommender.decoder_start),
        make_optimizer=lambda: make(groups, **options),
        callbacks=[
            MarkComplete(),
            stopper,
            shown,
            *([keeper] if keeper else []),
        ],
    )
    if keeper:
        keeper.trainer = trainer
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, trackers["tensorboard"]):
            callback.logging_dir = str(run / LOGS)
    trainer.remove_callback(transformers.PrinterCallback)
    check_launch(trainer, processes, validates=keeper is not None)
    # What decides the weights; how often checkpoints are written and what is logged does not.
    decisive = settings.model_dump(exclude={"checkpoint_steps", "report_to"})
    weights = None if start is None else hash_folder(Path(start))
    begun = hash_value([backbone, model.model_dump(), decisive, index.hash, rows.hash, data_sha256, weights])
    resume = last_checkpoint(run / CHECKPOINTS, begun)
    wait()
    if resume:
        say(f"  going on from {Path(resume).name}")
    else:
        steps = math.ceil(math.ceil(len(rows) / settings.batch_size) * settings.epochs)
        estimate(trainer, rows, share, settings.max_steps or steps)
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    if stopper.stopped_at is not None:
        left = last_checkpoint(run / CHECKPOINTS, begun)
        where = f"{Path(left).name} is there" if left else "there is no checkpoint"
        raise Stopped(
            f"Stopped by SIGTERM after step {stopper.stopped_at} of {trainer.state.max_steps}; {where}, and the same command "
            "goes on from it."
        )
    best = keeper.load_best(recommender) if keeper else None
    validations = keeper.found if keeper else []
    with whole_weights(recommender):
        if is_main_process():
            recommender.save(run / MODEL)
    if is_main_process():
        draw_curves(run / CURVES, losses, validations)
        items.write(run / ITEMS)
        index.save(run / INDEX)
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
                "encoder_decoder": bool(lm.config.is_encoder_decoder),
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
                "validations": validations,
                "kept_step": best,
            },
        )
        shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
        seal(run)
    wait()
    return run


def _training_arguments(kind: Any, own: Mapping[str, Any], further: Mapping[str, Any]) -> Any:
    """Returns transformers' arguments of a training.

    Raises:
        RecipeError: If one is unknown, not of its type, or decided by a key of genrec.
    """
    check_passed_on("train.arguments", further, own, kind, "of train (genrec keys lists them)", RecipeError)
    try:
        return kind(**own, **further)
    except (TypeError, ValueError) as error:
        if not further:
            raise
        raise RecipeError(f"train.arguments={dict(further)}: {error}") from error


def seal(folder: str | Path, further: Sequence[str] = ()) -> None:
    """Writes the hashes of what a folder serves into its ``sha256.json``: the files of ``SERVED``, and further ones.

    Args:
        folder: A run directory, or what was saved of one.
        further: Names of files and folders that are served too; one that is not there is passed over.

    Raises:
        RunError: If the disk refuses.
    """
    names = [*SERVED, *further]
    write_json(Path(folder) / SEAL, {"names": names, "files": _hashes(Path(folder), names)})


def check_seal(folder: str | Path) -> bool:
    """Returns whether a folder has hashes of what it serves; those of before genrec wrote them have none.

    That finds files that were cut, changed or added. Whoever may write the folder may write its hashes too: they are
    no signature.

    Raises:
        RunError: If a file is not as it was written, is missing, or was not there.
    """
    folder = Path(folder)
    if not (folder / SEAL).is_file():
        return False
    sealed = read_json(folder / SEAL)
    try:
        expected = dict(sealed["files"])
        names = {*SERVED, *sealed["names"]}
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder / SEAL} is incomplete or broken: it has no files and names.") from error
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in map(str, names)):
        raise RunError(f"{folder / SEAL} names files outside the run.")
    found = _hashes(folder, sorted(map(str, names)))
    if wrong := sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)):
        raise RunError(
            f"{', '.join(wrong[:5])}{f' and {len(wrong) - 5:,} more' if len(wrong) > 5 else ''} in {folder} are incomplete or "
            f"broken, or were changed: they are not what {SEAL} says was written. Copy or download the run again, or run "
            "its recipe again."
        )
    return True


def _hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        path = folder / name
        if path.is_dir():
            found |= {f"{name}/{inner}": digest for inner, digest in hash_folder(path).items()}
        elif path.is_file():
            found[name] = hash_file(path)
    return found


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
