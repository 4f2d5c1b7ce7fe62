"""Measures what personal adapters cost over plain LoRA of the same rank: ``python benchmarks/training/personal.py [--rounds N]``.

SmolLM2-135M-Instruct, whole, with an adapter beside every linear layer: LoRA, and RecLoRA of as many ranks an expert with both ways of
mixing, each user with a vector of their own. A training step and the ranking of a batch are timed by turns, one of each way in a round,
so that a busy machine is busy for all, in seconds of processor, which waiting for others does not add to; figures are medians over
rounds, ratios medians of each round's own.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrec.core.errors import GenrecError
from genrec.core.files import write_json
from genrec.core.progress import say
from genrec.decoding.beam import ConstrainedDecoder
from genrec.indexing import ItemIndex
from genrec.models.backbone import load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.tasks import Renderer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, begin_result, peak_memory

RESULTS = ROOT / "benchmarks" / "training" / "results"
BACKBONE, LAYERS, RANK, EXPERTS, USER_SIZE = "smollm2-135m-instruct", 30, 8, 8, 64
# Of a training step: rows of so many items, all of them learned; of a ranking: users, items of a history, beams.
ROWS, ITEMS = 8, 50
USERS, HISTORY, BEAMS, K = 32, 50, 20, 10
NUM_ITEMS, LEVELS, CODES = 4096, 3, 16
ROUNDS = 7
WAYS = ("lora", "reclora, weights", "reclora, outputs")


def made(way: str, index: ItemIndex, layers: int) -> tuple[RecommenderModel, Any]:
    """Returns a model with the adapters of a way, which are not zero, and its tokenizer."""
    lm, tokenizer = load_backbone(BACKBONE, layers)
    rows = (
        torch.randn(len(index.tokens), lm.config.hidden_size, generator=torch.Generator().manual_seed(0))
        * 0.02
    )
    torch.manual_seed(0)
    kind, _, mixing = way.partition(", ")
    model = RecommenderModel.create(
        lm,
        tokenizer,
        index,
        rows,
        name=BACKBONE,
        layers=layers,
        adapter="lora" if kind == "lora" else "reclora",
        lora_r=RANK,
        lora_alpha=2 * RANK,
        reclora=None if kind == "lora" else {"user_size": USER_SIZE, "experts": EXPERTS, "mixing": mixing},
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    return model, tokenizer


def step_of(model: RecommenderModel, rng: np.random.Generator) -> Callable[[], None]:
    """Returns what takes one training step of a model."""
    length = ITEMS * LEVELS
    ids = torch.from_numpy(rng.integers(len(model.token_level), size=(ROWS, length))) + model.first_id
    users = None
    if model.user_size is not None:
        users = torch.from_numpy(rng.normal(size=(ROWS, USER_SIZE)).astype(np.float32))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    bfloat16 = model.about["dtype"] == "bfloat16"

    def step() -> None:
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model(ids, torch.ones_like(ids), ids, user_vectors=users)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ranking_of(
    model: RecommenderModel, tokenizer: Any, index: ItemIndex, rng: np.random.Generator
) -> Callable[[], None]:
    """Returns what ranks one batch of users with a model."""
    decoder = ConstrainedDecoder(model, Renderer(tokenizer, index, "packed", HISTORY))
    names = index.item_ids
    histories = [[names[item] for item in rng.integers(NUM_ITEMS, size=HISTORY)] for _ in range(USERS)]
    users = None
    if model.user_size is not None:
        users = rng.normal(size=(USERS, USER_SIZE)).astype(np.float32)

    def rank() -> None:
        model.eval()
        decoder.rank(histories, K, beams=BEAMS, users=users)

    return rank


def timed(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measured(rounds: int, layers: int) -> dict[str, Any]:
    """Returns seconds of each way by turns, and the ratios to LoRA."""
    codes = {
        f"i{n}": (f"<a_{n % CODES}>", f"<b_{n // CODES % CODES}>", f"<c_{n // CODES**2}>")
        for n in range(NUM_ITEMS)
    }
    index = ItemIndex("mine", codes)
    models = {way: made(way, index, layers) for way in WAYS}
    found: dict[str, Any] = {}
    for name in ("training step", "ranking"):
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        works = {}
        for way, (model, tokenizer) in models.items():
            rng = np.random.default_rng(0)
            works[way] = (
                step_of(model, rng) if name == "training step" else ranking_of(model, tokenizer, index, rng)
            )
            works[way]()  # what is done once only
        for number in range(rounds):
            order = WAYS if number % 2 == 0 else tuple(reversed(WAYS))
            for way in order:
                seconds[way].append(timed(works[way]))
            say(
                f"  {name}, round {number + 1}: "
                + ", ".join(f"{way} {seconds[way][-1]:.2f} s" for way in WAYS)
            )
        found[name] = {
            way: {
                "processor_s": round(statistics.median(seconds[way]), 3),
                "ratio": round(
                    statistics.median(a / b for a, b in zip(seconds[way], seconds["lora"], strict=True)), 3
                ),
                "each": [round(each, 3) for each in seconds[way]],
            }
            for way in WAYS
        }
        del works
        gc.collect()
    for each in found["ranking"].values():
        each["users_per_s"] = round(USERS / each["processor_s"], 2)
    trained = {
        way: {
            "adapter": sum(
                p.numel() for n, p in model.named_parameters() if "lora_A." in n or "lora_B." in n
            ),
            "gates": sum(p.numel() for n, p in model.named_parameters() if "reclora_gate" in n),
            # What is kept of a user: the vector. While a batch is answered: a weight an expert and gate; and, mixing weights,
            # one layer's own pair at a time, in the adapter's type.
            "bytes_per_user": 0 if model.user_size is None else 4 * USER_SIZE,
            "bytes_per_user_in_a_batch": _in_a_batch(model),
        }
        for way, (model, _) in models.items()
    }
    dtype = models["lora"][0].about["dtype"]
    return {"dtype": dtype, "weights": trained, **found}


def _in_a_batch(model: RecommenderModel) -> int:
    if model.user_size is None or model.peft is None:
        return 0
    gates = sum(
        "reclora_gate" in name and name.endswith(".layers.1.bias") for name, _ in model.named_parameters()
    )
    weights = 4 * EXPERTS * gates
    if model.about["reclora"]["mixing"] == "outputs":
        return weights
    sizes = [
        RANK * (layer.in_features + layer.out_features)
        for layer in model.modules()
        if type(layer).__name__ == "RecLoraLinear"
    ]
    return weights + 4 * max(sizes)


def main() -> int:
    """Measures, prints, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--allow-dirty", action="store_true")
    options = parser.parse_args()
    try:
        path, result = begin_result(
            RESULTS,
            "personal",
            "benchmarks/training/personal.py",
            sys.argv[1:],
            changed=(options.rounds, options.layers) != (ROUNDS, LAYERS),
            allow_dirty=options.allow_dirty,
        )
        about = {
            "backbone": BACKBONE,
            "layers": options.layers,
            "rank": RANK,
            "experts": EXPERTS,
            "user_size": USER_SIZE,
            "training": {"rows": ROWS, "tokens": ITEMS * LEVELS},
            "ranking": {"users": USERS, "tokens": HISTORY * LEVELS + 1, "beams": BEAMS, "levels": LEVELS},
            "rounds": options.rounds,
        }
        result |= {"settings": about, **measured(options.rounds, options.layers), "peak_gb": peak_memory()}
        write_json(path, result)
    except GenrecError as error:
        print(f"personal.py: {error}", file=sys.stderr)
        return error.exit_status
    say(f"  wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
