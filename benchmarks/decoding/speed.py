"""Measures constrained decoding: ``python benchmarks/decoding/speed.py [figure|growth|trie ...]``.

``figure``: SmolLM2-135M, 10,000 items of four tokens, prompts of 200 tokens, batch 8, 20 beams: ``ConstrainedDecoder`` beside one plain
forward pass over the prompts and beside transformers' ``generate`` with ``prefix_allowed_tokens_fn`` over a dict trie (what LC-Rec,
OpenP5 and LETTER do) and with genrec's ``TrieLogitsProcessor``, one after the other in one process; items and scores are compared.
``growth``: how time grows with beams, items and the length of the prompt. ``trie``: what a step below the trie costs, for up to ten
million items. Codes and histories are drawn, weights of identifier rows too: what is measured does not depend on what a model knows.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList

from genrec.core.errors import GenrecError
from genrec.core.files import write_json
from genrec.core.progress import say
from genrec.decoding.beam import ConstrainedDecoder
from genrec.decoding.processor import TrieLogitsProcessor
from genrec.indexing import ItemIndex, ItemTrie
from genrec.models.backbone import load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.tasks import Renderer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, begin_result

RESULTS = ROOT / "benchmarks" / "decoding" / "results"
BACKBONE, LEVELS, CODEBOOK = "smollm2-135m-instruct", 4, 256
ITEMS, BATCH, BEAMS, K = 10_000, 8, 20, 10
PROMPT_ITEMS = 50  # of four tokens each
BEAM_COUNTS = (1, 5, 20, 50, 100, 200, 500)
ITEM_COUNTS = (1_000, 10_000, 100_000, 1_000_000)
TRIE_COUNTS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
PROMPT_COUNTS = (5, 25, 50, 100, 200)
ROUNDS = 3


def codes_of(num_items: int, rng: np.random.Generator) -> np.ndarray:
    """Returns ``(items, levels)`` distinct codes."""
    drawn = np.unique(rng.integers(0, CODEBOOK**LEVELS, int(num_items * 1.05) + 100))
    drawn = rng.permutation(drawn)[:num_items]
    return drawn[:, None] // CODEBOOK ** np.arange(LEVELS)[::-1] % CODEBOOK


def index_of(num_items: int, seed: int) -> ItemIndex:
    codes = codes_of(num_items, np.random.default_rng(seed))
    names = [[f"<{'abcd'[level]}_{token}>" for token in range(CODEBOOK)] for level in range(LEVELS)]
    return ItemIndex(
        "drawn",
        {
            f"i{row}": tuple(map(lambda level, token: names[level][token], range(LEVELS), code))
            for row, code in enumerate(codes.tolist())
        },
    )


def decoder_of(index: ItemIndex, dtype: Any, history: int) -> ConstrainedDecoder:
    """Returns a decoder of the backbone as it is, with drawn rows for the identifier tokens."""
    lm, tokenizer = load_backbone(BACKBONE, dtype=dtype)
    weight = lm.get_input_embeddings().weight
    rows = torch.randn(len(index.tokens), weight.shape[1], generator=torch.Generator().manual_seed(0))
    model = RecommenderModel.create(
        lm, tokenizer, index, rows * weight.float().std(), name=BACKBONE, layers=None, adapter="full"
    )
    return ConstrainedDecoder(model.eval(), Renderer(tokenizer, index, "packed", history))


def histories_of(index: ItemIndex, length: int, batch: int, seed: int) -> list[list[str]]:
    drawn = np.random.default_rng(seed).integers(0, len(index.codes), (batch, length))
    return [[index.item_ids[item] for item in row] for row in drawn.tolist()]


def seconds(function: Callable[[], Any], rounds: int = ROUNDS) -> tuple[float, Any]:
    """Returns the shortest time of some calls, and what the last returned."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        result = function()
        found.append(time.perf_counter() - began)
    return min(found), result


def dict_trie(decoder: ConstrainedDecoder, prompt_length: int, end: int) -> Callable[[int, Any], list[int]]:
    """Returns the peers' way: a dict of prefixes, asked once a beam and step."""
    children: dict[tuple[int, ...], set[int]] = {}
    number = {token: decoder.model.first_id + place for place, token in enumerate(decoder.index.tokens)}
    for code in decoder.index.codes.values():
        ids = [number[token] for token in code]
        for depth, token in enumerate(ids):
            children.setdefault(tuple(ids[:depth]), set()).add(token)
    lists = {prefix: sorted(found) for prefix, found in children.items()}

    def allowed(_: int, ids: Any) -> list[int]:
        return lists.get(tuple(ids[prompt_length:].tolist()), [end])

    return allowed


def generate(decoder: ConstrainedDecoder, prompts: torch.Tensor, **constraint: Any) -> list[dict[str, float]]:
    """Returns what transformers' beam search finds, ``{item: score}`` for each prompt."""
    model, end = decoder.model, decoder.model.tokenizer.eos_token_id
    output = model.backbone.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        num_beams=BEAMS,
        num_return_sequences=K,
        max_new_tokens=LEVELS,
        do_sample=False,
        length_penalty=0.0,
        eos_token_id=end,
        pad_token_id=end,
        return_dict_in_generate=True,
        output_scores=True,
        **constraint,
    )
    items = {code: item for item, code in decoder.index.codes.items()}
    found: list[dict[str, float]] = [{} for _ in prompts]
    written = output.sequences[:, prompts.shape[1] :].tolist()
    for row, (ids, score) in enumerate(zip(written, output.sequences_scores.tolist(), strict=True)):
        code = tuple(decoder.index.tokens[token - model.first_id] for token in ids)
        found[row // K][items[code]] = score
    return found


@torch.inference_mode()
def figure(seed: int, rounds: int, dtype: Any) -> dict[str, Any]:
    index = index_of(ITEMS, seed)
    decoder = decoder_of(index, dtype, PROMPT_ITEMS)
    histories = histories_of(index, PROMPT_ITEMS, BATCH, seed)
    prompts = torch.tensor([decoder.renderer.prompt_ids(history) for history in histories])
    decoder.rank(histories[:2], 1)
    body, lm = decoder.model.backbone.base_model, decoder.model.backbone
    found: dict[str, Any] = {"prompt_tokens": prompts.shape[1], "dtype": decoder.model.about["dtype"]}
    ours: dict[str, list[dict[str, float]]] = {}
    found["forward_s"] = seconds(lambda: body(input_ids=prompts, use_cache=False), rounds)[0]
    found["forward_with_logits_s"] = seconds(lambda: lm(input_ids=prompts, use_cache=False), rounds)[0]
    for scores in ("trained", "allowed", "vocabulary"):
        taken, lists = seconds(lambda s=scores: decoder.rank(histories, K, beams=BEAMS, scores=s), rounds)
        found[f"genrec_{scores}_s"], ours[scores] = taken, [dict(ranking) for ranking in lists]
        say(f"  genrec, {scores}: {taken:.2f} s")
    end = decoder.model.tokenizer.eos_token_id
    trie = dict_trie(decoder, prompts.shape[1], end)
    of_ids = decoder.index.trie(decoder.model.token_ids)
    processor = LogitsProcessorList([TrieLogitsProcessor(of_ids, end, prompt_length=prompts.shape[1])])
    ways = {"dict": {"prefix_allowed_tokens_fn": trie}, "processor": {"logits_processor": processor}}
    for name, constraint in ways.items():
        taken, lists = seconds(lambda c=constraint: generate(decoder, prompts, **c), min(rounds, 2))
        found[f"generate_{name}_s"] = taken
        found[f"generate_{name}"] = agreement(ours["vocabulary"], lists)
        say(f"  generate, {name}: {taken:.2f} s")
    found["times_of_a_forward"] = found["genrec_trained_s"] / found["forward_s"]
    found["times_faster"] = found["generate_dict_s"] / found["genrec_trained_s"]
    found["times_faster_same_scores"] = found["generate_dict_s"] / found["genrec_vocabulary_s"]
    return found


def agreement(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
    """Returns on how many lists and items two rankings agree, and how far their scores are apart."""
    apart = [
        abs(a[item] - b[item]) for a, b in zip(ours, theirs, strict=True) for item in a.keys() & b.keys()
    ]
    return {
        "equal_lists": sum(list(a) == list(b) for a, b in zip(ours, theirs, strict=True)),
        "lists": len(ours),
        "equal_items": len(apart),
        "items": sum(map(len, ours)),
        "largest_difference": max(apart, default=float("nan")),
    }


@torch.inference_mode()
def growth(seed: int, rounds: int, dtype: Any) -> dict[str, Any]:
    """Returns seconds of a batch as one size grows and the others stay."""
    found: dict[str, Any] = {"beams": {}, "items": {}, "prompt_tokens": {}}
    index = index_of(ITEMS, seed)
    decoder = decoder_of(index, dtype, max(PROMPT_COUNTS))

    def taken(decoder: ConstrainedDecoder, length: int, beams: int) -> dict[str, float]:
        histories = histories_of(decoder.index, length, BATCH, seed)
        prompts = torch.tensor([decoder.renderer.prompt_ids(history) for history in histories])
        forward = seconds(
            lambda: decoder.model.backbone.base_model(input_ids=prompts, use_cache=False), rounds
        )[0]
        # beams of its own, since rank takes 20 at least by itself
        ranked = seconds(lambda: decoder.rank(histories, 1, beams=beams), rounds)[0]
        say(f"  {len(decoder.item_ids):,} items, {prompts.shape[1]} tokens, {beams} beams: {ranked:.2f} s")
        return {"rank_s": ranked, "forward_s": forward, "tokens": prompts.shape[1]}

    decoder.rank(histories_of(index, 5, 2, seed), 1)
    for beams in BEAM_COUNTS:
        found["beams"][str(beams)] = taken(decoder, PROMPT_ITEMS, beams)
    for length in PROMPT_COUNTS:
        found["prompt_tokens"][str(length * LEVELS)] = taken(decoder, length, BEAMS)
    for items in ITEM_COUNTS:
        of_items = decoder_of(index_of(items, seed), dtype, PROMPT_ITEMS)
        of_items.rank(histories_of(of_items.index, 5, 2, seed), 1)
        found["items"][str(items)] = taken(of_items, PROMPT_ITEMS, BEAMS)
    return found


class NoModel:
    """Gives drawn scores at no cost, in the place of a model and what it has read."""

    whole_words, first_id = None, 0

    def __init__(self, seed: int) -> None:
        given = torch.randn(BATCH, BEAMS, CODEBOOK * LEVELS, generator=torch.Generator().manual_seed(seed))
        self.given, self.states = given.log_softmax(-1), torch.zeros(BATCH, BEAMS, 1)

    def parameters(self) -> Any:
        return iter([self.given])

    def read(self, *_: Any, **__: Any) -> Any:
        return self.states[:, :1], self

    def go_on(self, _: Any, parents: torch.Tensor, __: torch.Tensor) -> Any:
        return self.states[:, : parents.shape[1]], self

    def level_log_probs(self, states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return self.given[:, : states.shape[1]]


def trie(seed: int, rounds: int, _: Any) -> dict[str, Any]:
    """Returns milliseconds of a level of a batch, all but the model: the trie, the filter and the choice of beams."""
    found: dict[str, Any] = {}
    for num_items in TRIE_COUNTS:
        codes = codes_of(num_items, np.random.default_rng(seed))
        of_items: Any = SimpleNamespace(
            trie_of_tokens=ItemTrie(codes + CODEBOOK * np.arange(LEVELS)),
            item_ids=range(num_items),
            tokens=range(CODEBOOK * LEVELS),
            shared=False,
        )
        del codes
        renderer: Any = SimpleNamespace(index=of_items, prompt_ids=list)
        decoder = ConstrainedDecoder(NoModel(seed), renderer)  # type: ignore[arg-type]
        users = [[user] for user in range(BATCH)]
        drawn = np.random.default_rng(seed).integers(0, num_items, (BATCH, PROMPT_ITEMS)).tolist()
        steps = {}
        for name, out in (("plain_ms", None), ("excluding_50_ms", drawn)):
            taken = seconds(lambda d=decoder, u=users, o=out: d.rank(u, K, o, BEAMS), 10 * rounds)[0]
            steps[name] = 1000 * taken / LEVELS
        found[str(num_items)] = steps
        say(f"  {num_items:,} items: {steps['plain_ms']:.2f} ms, {steps['excluding_50_ms']:.2f} ms")
    return found


MEASUREMENTS = {"figure": figure, "growth": growth, "trie": trie}


def main(arguments: Sequence[str] | None = None) -> int:
    """Takes the measurements, adds a result file for each and returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python benchmarks/decoding/speed.py", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}; default all")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"the best counts (default {ROUNDS})")
    parser.add_argument("--dtype", default="float32", help="of the model (default float32)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--allow-dirty", action="store_true", help="measure uncommitted changes")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - MEASUREMENTS.keys():
        parser.error(f"{sorted(unknown)[0]!r} is none of {', '.join(MEASUREMENTS)}")
    try:
        for name in options.names or MEASUREMENTS:
            path, head = begin_result(
                options.results,
                name if options.dtype == "float32" else f"{name}-{options.dtype}",
                "benchmarks/decoding/speed.py",
                arguments,
                changed=options.rounds != ROUNDS,
                allow_dirty=options.allow_dirty,
            )
            say(f"== {name}")
            began = time.perf_counter()
            found = MEASUREMENTS[name](options.seed, options.rounds, options.dtype)
            sizes = {"items": ITEMS, "batch": BATCH, "beams": BEAMS, "k": K, "levels": LEVELS}
            wall = round(time.perf_counter() - began, 1)
            write_json(path, head | {"seed": options.seed, **sizes, "found": found, "wall_seconds": wall})
            print(f"Result: {path}")
    except GenrecError as error:
        print(f"speed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
