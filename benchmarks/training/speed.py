"""Measures what packing and the loss save: ``python benchmarks/training/speed.py [--seconds S]``.

Next items learned a second, by the usual way (TRL's SFTTrainer: a window a row, padded batches in random order, scores of the whole
vocabulary), by windows in genrec (batches of near lengths, logits at targets over identifier tokens) and
by packed histories in genrec, both with logits over the whole vocabulary too: the same language model with LoRA, on the same
histories of MovieLens-100K and Beauty. Then windows and packed histories learn the same targets of the same users many times, as
many in a step, with few layers, and their losses on the same items are compared, so that nobody is quick by learning less.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import set_seed

from genrec.core.errors import GenrecError
from genrec.core.files import read_json, write_json
from genrec.core.progress import say
from genrec.data_prep import InteractionLog, ItemCatalog, Split, leave_one_out
from genrec.indexing import IndexSettings, ItemIndex, build_index
from genrec.models.backbone import load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.models.vocabulary import add_identifier_tokens, initial_rows
from genrec.tasks import TaskSettings, build_dataset, make_renderer
from genrec.training import ModelSettings, TrainSettings, finetune
from genrec.training.finetune import MODEL, TRAINING_FILE

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, begin_result, datasets

RESULTS = ROOT / "benchmarks" / "training" / "results"
BACKBONE, HISTORY, LORA_R, RATE = "smollm2-135m-instruct", 50, 16, 1e-3
SECONDS, LAYERS, FEW_LAYERS = 60, 30, 2
SFT = "SFTTrainer, windows"
# Way: form of the rows, and among what an identifier token is predicted.
WAYS: dict[str, tuple[str, Any]] = {
    "genrec, windows, all words": ("windows", "vocabulary"),
    "genrec, windows": ("windows", "level"),
    "genrec, packed, all words": ("packed", "vocabulary"),
    "genrec, packed": ("packed", "level"),
}
# Next items that are learned in a step, on average, whatever the way.
TARGETS = 64
# Users whose histories are learned for the comparison of losses, and how many times: until little is left to learn.
USERS = {"beauty": 300, "movielens-100k": 6}
PASSES = {"beauty": 40, "movielens-100k": 40}
PARTS = ("speed", "same")
CODES = IndexSettings(levels=2, codebook_size=128)


def of_users(log: InteractionLog, users: Sequence[str]) -> Split:
    """Returns the split of these users alone."""
    kept = pc.is_in(log.table["user_id"], pa.array(list(users), log.table.schema.field("user_id").type))
    return leave_one_out(InteractionLog(log.table.filter(kept), 0, log.time))


class Case:
    """One data set with its codes, and the users in the order in which they are taken."""

    def __init__(self, name: str, log: InteractionLog, items: ItemCatalog, seed: int) -> None:
        log = log.k_core(5, 1)
        self.name, self.items, self.log = name, items.restrict_to_log(log), log
        train = leave_one_out(log).train
        self.index: ItemIndex = build_index("random", self.items, train, CODES)
        self.users = np.random.default_rng(seed).permutation(sorted(train)).tolist()
        self.seed = seed

    def tasks(self, form: str) -> TaskSettings:
        return TaskSettings(form=form, max_history=HISTORY, cuts=1, seed=self.seed)

    def rows(self, split: Split, form: str) -> Any:
        return build_dataset(split, self.items, self.index, self.tasks(form))

    def num_targets(self, split: Split) -> int:
        """Next items that windows of these users learn; packed rows learn one more each, which has nothing before it."""
        return len(self.rows(split, "windows")["train"])


def in_genrec(
    case: Case, split: Split, way: str, layers: int, folder: Path, passes: int = 1
) -> dict[str, float]:
    """Returns what ``finetune`` took for the users of a split."""
    form, softmax_over = WAYS[way]
    data, targets = case.rows(split, form), case.num_targets(split)
    batch = TARGETS if form == "windows" else max(1, round(TARGETS * len(data["train"]) / targets))
    settings = TrainSettings(
        adapter="lora",
        lora_r=LORA_R,
        softmax_over=softmax_over,
        epochs=passes,
        batch_size=batch,
        learning_rate=RATE,
        rows_learning_rate=RATE,
        checkpoint_steps=0,
        exclude_history=False,
        seed=case.seed,
        report_to=(),
    )
    model = ModelSettings(backbone=BACKBONE, layers=layers, rows_start="mean")
    finetune(
        BACKBONE,
        data,
        case.index,
        case.items,
        split,
        folder,
        tasks=case.tasks(form),
        model=model,
        settings=settings,
    )
    about = read_json(folder / TRAINING_FILE)
    return {"targets": targets, "seconds": about["train_s"], "steps": about["num_steps"], "batch": batch}


def with_trl(case: Case, split: Split, layers: int, folder: Path) -> dict[str, float]:
    """Returns what TRL's SFTTrainer took for the same windows once through."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = case.rows(split, "windows")["train"].select_columns(["prompt", "completion"])
    model, tokenizer = load_backbone(BACKBONE, layers, "auto")
    start = initial_rows(model, tokenizer, case.index, case.items, "mean", None, case.seed)
    first = len(tokenizer)
    add_identifier_tokens(tokenizer, case.index.tokens)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[first:] = start.to(model.dtype)
    set_seed(case.seed)
    new = list(range(first, len(tokenizer)))
    adapter = LoraConfig(
        r=LORA_R, lora_alpha=32, target_modules="all-linear", trainable_token_indices={"embed_tokens": new}
    )
    settings = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=TARGETS,
        learning_rate=RATE,
        warmup_steps=10,
        lr_scheduler_type="linear",
        max_length=None,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        bf16=model.dtype == torch.bfloat16,
        gradient_checkpointing=False,
        logging_steps=10,
        seed=case.seed,
    )
    trainer = SFTTrainer(model, settings, train_dataset=rows, processing_class=tokenizer, peft_config=adapter)
    trainer.model.get_output_embeddings().bias = (
        None  # TRL 1.16 asks for it, peft 0.21's wrapper of new rows has none
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    return {
        "targets": len(rows),
        "seconds": round(seconds, 1),
        "steps": trainer.state.global_step,
        "batch": TARGETS,
    }


def speed(case: Case, way: str, seconds: float, layers: int) -> dict[str, float]:
    """Returns next items a second of one way, on as many users as fill about so many seconds."""
    users = 1
    while True:
        split = of_users(case.log, case.users[:users])
        with tempfile.TemporaryDirectory() as folder:
            take = with_trl(case, split, layers, Path(folder)) if way == SFT else None
            found = take or in_genrec(case, split, way, layers, Path(folder))
        enough = found["seconds"] >= 0.7 * seconds or users >= len(case.users)
        found |= {"users": users, "targets_per_s": found["targets"] / found["seconds"]}
        say(f"  {way}: {found['targets']:,} next items of {users:,} users in {found['seconds']:.1f} s")
        if enough:
            return found
        more = min(8.0, max(1.5, seconds / max(0.5, found["seconds"])))
        users = min(len(case.users), math.ceil(users * more))


@torch.no_grad()
def losses(case: Case, split: Split, folder: Path) -> dict[str, float]:
    """Returns the mean loss of the last items that were learned and of validation items, among identifiers of their level."""
    model = RecommenderModel.load(folder / MODEL, case.index)
    renderer = make_renderer(model.tokenizer, case.index, case.tasks("windows"))
    asked = {
        "learned_loss": [(history[:-1], history[-1]) for history in split.train.values()],
        "valid_loss": [
            (history, targets[0])
            for history, targets in zip(split.valid.histories, split.valid.targets, strict=True)
        ],
    }
    found = {}
    for name, rows in asked.items():
        total = 0.0
        for history, item in rows:
            read = renderer.prompt_ids(history)
            answer = [renderer.token_ids[token] for token in case.index.code(item)]
            row = torch.tensor([read + answer], device=model.token_level.device)
            states = model.states(row, torch.ones_like(row))[0, len(read) - 1 : -1]
            for level, token in enumerate(answer):
                total -= float(model.level_log_probs(states[level], level)[token - model.first_id])
        found[name] = total / len(rows)
    return found


def same_loss(case: Case, layers: int, passes: int) -> dict[str, dict[str, float]]:
    """Returns of windows and packed histories what they took for the same targets, and the losses after it."""
    split, found = of_users(case.log, case.users[: USERS[case.name]]), {}
    for way in ("genrec, windows", "genrec, packed"):
        with tempfile.TemporaryDirectory() as folder:
            figures = in_genrec(case, split, way, layers, Path(folder), passes)
            found[way] = figures | losses(case, split, Path(folder))
        found[way] |= {"users": USERS[case.name], "passes": passes}
        say(
            f"  {way}: {passes} times in {figures['seconds']:.1f} s, loss {found[way]['learned_loss']:.3f} on "
            f"learned items, {found[way]['valid_loss']:.3f} on validation items"
        )
    chance = sum(math.log(n) for n in np.bincount(case.index.token_levels))
    found["chance"] = {"learned_loss": chance, "valid_loss": chance}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Takes the measurements, adds a result file, prints them and returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python benchmarks/training/speed.py", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for each way (default {SECONDS})")
    parser.add_argument("--layers", type=int, default=LAYERS, help=f"of the model (default {LAYERS}, all)")
    parser.add_argument("--passes", type=int, help=f"of the comparison of losses (default {PASSES})")
    parser.add_argument("--part", choices=PARTS, help="speed of all ways, or the losses, alone")
    parser.add_argument("--data", choices=("movielens-100k", "beauty"), help="one of the two alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--allow-dirty", action="store_true", help="measure uncommitted changes")
    options = parser.parse_args(arguments)
    try:
        changed = (options.seconds, options.layers, options.passes) != (SECONDS, LAYERS, None)
        for case in (Case(*dataset, options.seed) for dataset in datasets()):
            if options.data not in (None, case.name):
                continue
            say(f"== {case.name}")
            path, head = begin_result(
                options.results,
                f"{options.part or 'speed'}-{case.name}",
                "benchmarks/training/speed.py",
                arguments,
                changed=changed,
                allow_dirty=options.allow_dirty,
            )
            began = time.perf_counter()
            speeds, same = {}, {}
            if options.part != "same":
                speeds = {way: speed(case, way, options.seconds, options.layers) for way in (SFT, *WAYS)}
            if options.part != "speed":
                same = same_loss(case, FEW_LAYERS, options.passes or PASSES[case.name])
            result = head | {
                "seed": options.seed,
                "layers": options.layers,
                "few_layers": FEW_LAYERS,
                "data": {case.name: {"speed": speeds, "same": same}},
                "wall_seconds": round(time.perf_counter() - began, 1),
            }
            write_json(path, result)
            for way, took in speeds.items():
                rate, usual = took["targets_per_s"], speeds[SFT]["targets_per_s"]
                print(f"{case.name}, {way}: {rate:.1f} next items/s ({rate / usual:.1f}x)")
            for way, after in same.items():
                learned, valid = after["learned_loss"], after["valid_loss"]
                print(f"{case.name}, {way}: loss {learned:.3f} learned, {valid:.3f} validation")
            print(f"Result: {path}")
    except GenrecError as error:
        print(f"speed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
