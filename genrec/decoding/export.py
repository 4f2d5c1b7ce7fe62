"""What engines that know nothing of genrec need: merged weights, and which token ids name which item."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from genrec.core.errors import ModelError, RunError, UnknownItemError, nearest
from genrec.core.files import atomic_path, read_json, write_json
from genrec.data_prep import ItemCatalog, ItemId
from genrec.decoding.processor import Scores, TrieLogitsProcessor
from genrec.indexing import Code, ItemIndex, ItemTrie
from genrec.models.backbone import Dtype
from genrec.models.recommender_model import RecommenderModel, SoftmaxOver
from genrec.tasks import Renderer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Engine = Literal["transformers", "vllm", "sglang"]

ABOUT, ITEMS, TRIE = "genrec_items.json", "items.jsonl", "item_trie"
KIND, VERSION = "genrec.ExportedItems", 1


@dataclass(frozen=True)
class ExportedItems:
    """The items of an exported model, and what asks it for them.

    Attributes:
        item_ids: The items, in catalogue order.
        titles: Their titles.
        codes: The tokens that name each.
        trie: The trie of their codes in ids of the exported tokenizer; its rows are numbered as ``item_ids``.
        tokens: ``{identifier token: (id, level)}``, those without an item too.
        end_token: Id of the token that ends a sequence.
        softmax_over: Among what the model was trained to predict an identifier token, as ``train.softmax_over``.
        method: Name of the index's scheme.
        shared: Whether items may share a code.
        asks: What ``Renderer.from_about`` makes the writer of prompts of.
    """

    item_ids: list[ItemId]
    titles: list[str]
    codes: list[Code]
    trie: ItemTrie
    tokens: dict[str, tuple[int, int]]
    end_token: int
    softmax_over: SoftmaxOver
    method: str
    shared: bool
    asks: dict[str, Any]

    @classmethod
    def of(cls, model: RecommenderModel, renderer: Renderer, items: ItemCatalog) -> ExportedItems:
        """Returns the items of a model.

        Raises:
            ModelError: If its tokenizer has no end token.
        """
        index, end_token = renderer.index, model.tokenizer.eos_token_id
        if end_token is None:
            raise ModelError("The tokenizer has no end token, without which an engine cannot end a code.")
        return cls(
            item_ids=index.item_ids,
            titles=[items.title(item) for item in index.item_ids],
            codes=list(index.codes.values()),
            trie=index.trie(renderer.token_ids),
            tokens={
                token: (renderer.token_ids[token], level)
                for token, level in zip(index.tokens, index.token_levels, strict=True)
            },
            end_token=int(end_token),
            softmax_over=model.about.get("softmax_over", "level"),
            method=index.method,
            shared=index.shared,
            asks=renderer.about(),
        )

    def write(self, folder: str | Path) -> None:
        """Writes ``genrec_items.json``, ``items.jsonl`` (item_id, title, code, token_ids) and ``item_trie``.

        Raises:
            RunError: If the disk refuses.
        """
        folder = Path(folder)
        self.trie.save(folder / TRIE)
        ids = {token: number for token, (number, _) in self.tokens.items()}
        with atomic_path(folder / ITEMS) as part, part.open("w", encoding="utf-8") as file:
            for item, title, code in zip(self.item_ids, self.titles, self.codes, strict=True):
                row = {
                    "item_id": item,
                    "title": title,
                    "code": code,
                    "token_ids": [ids[token] for token in code],
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        names = ("tokens", "end_token", "softmax_over", "method", "shared", "asks")
        about = {name: getattr(self, name) for name in names}
        write_json(folder / ABOUT, {"kind": KIND, "version": VERSION, **about})

    @classmethod
    def read(cls, folder: str | Path) -> ExportedItems:
        """Returns what ``write`` wrote.

        Raises:
            RunError: If a file is missing, of another version or broken, or trie and items do not belong together.
        """
        folder = Path(folder)
        about = read_json(folder / ABOUT)
        if not isinstance(about, dict) or about.pop("kind", None) != KIND:
            raise RunError(f"{folder / ABOUT} is none that genrec export wrote.")
        if (version := about.pop("version", None)) != VERSION:
            raise RunError(
                f"{folder / ABOUT} has version {version!r}, this genrec reads version {VERSION}: export again."
            )
        about["tokens"] = {token: tuple(place) for token, place in about["tokens"].items()}
        try:
            # By the file's own lines: a title may hold what splitlines takes for the end of one.
            with (folder / ITEMS).open(encoding="utf-8", newline="\n") as file:
                rows = [json.loads(line) for line in file]
            item_ids, titles = [row["item_id"] for row in rows], [row["title"] for row in rows]
            codes, token_ids = [tuple(row["code"]) for row in rows], [row["token_ids"] for row in rows]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{folder / ITEMS} cannot be read: {error!r}. Export again.") from error
        trie = ItemTrie.load(folder / TRIE, mmap=False)
        fits = len(rows) == trie.num_items and all(
            row in trie.items_at(-1 if (node := trie.find(ids)) is None else node)
            for row, ids in enumerate(token_ids)
        )
        if not fits:
            raise RunError(f"The codes in {folder / ITEMS} are not those of {folder / TRIE}: export again.")
        return cls(item_ids, titles, codes, trie, **about)

    def renderer(self, tokenizer: PreTrainedTokenizerBase) -> Renderer:
        """Returns the writer of the prompts that the model was trained with; ``prompt_ids(history)`` are an engine's input.

        Args:
            tokenizer: The exported one.
        """
        tokens = {token: level for token, (_, level) in self.tokens.items()}
        codes = dict(zip(self.item_ids, self.codes, strict=True))
        index = ItemIndex(self.method, codes, shared=self.shared, tokens=tokens)
        return Renderer.from_about(self.asks, tokenizer, index)

    def processor(
        self, exclude: Sequence[Collection[ItemId]] | None = None, scores: Scores = "trained"
    ) -> TrieLogitsProcessor:
        """Returns a processor for one call of ``generate``.

        Args:
            exclude: For each prompt the items that must not come; None excludes nothing.
            scores: As ``TrieLogitsProcessor``.

        Raises:
            UnknownItemError: If an excluded item is none of these.
        """
        restrictions = None
        if exclude is not None:
            row = {item: number for number, item in enumerate(self.item_ids)}
            restrictions = []
            for items in exclude:
                if unknown := [item for item in items if item not in row]:
                    raise UnknownItemError(
                        f"Item {unknown[0]!r} is not among the {len(row):,} exported items."
                        f"{nearest(str(unknown[0]), row)}"
                    )
                allowed = np.ones(len(row), bool)
                allowed[[row[item] for item in items]] = False
                restrictions.append(self.trie.restrict(allowed))
        levels: list[list[int]] = [[] for _ in range(1 + max(level for _, level in self.tokens.values()))]
        for number, level in self.tokens.values():
            levels[level].append(number)
        return TrieLogitsProcessor(
            self.trie,
            self.end_token,
            scores=scores,
            restrictions=restrictions,
            level_tokens=levels if self.softmax_over == "level" else None,
        )

    def search(self, beams: int) -> dict[str, Any]:
        """Returns arguments of ``generate`` for a beam search that ranks by log-probability, all of them explicit."""
        return {
            "num_beams": beams,
            "num_return_sequences": beams,
            "do_sample": False,
            "length_penalty": 0.0,
            "max_new_tokens": self.trie.depth + 1,
            "eos_token_id": self.end_token,
            "pad_token_id": self.end_token,
            "output_scores": True,
            "return_dict_in_generate": True,
        }

    def rankings(self, found: Any, prompt_length: int, num_prompts: int) -> list[list[tuple[ItemId, float]]]:
        """Returns each prompt's items with their scores, best first, of a beam search's output.

        Args:
            found: What ``generate`` returned with the arguments of ``search`` and a ``processor``.
            prompt_length: Tokens before a code: those of the padded prompts, or 1 for an encoder-decoder.
            num_prompts: Prompts given.
        """
        beams = len(found.sequences) // num_prompts
        lists: list[list[tuple[ItemId, float]]] = [[] for _ in range(num_prompts)]
        written = found.sequences[:, prompt_length:].tolist()
        for place, (ids, score) in enumerate(zip(written, found.sequences_scores.tolist(), strict=True)):
            if score > -1e8:  # below are places that beam search had no candidate for
                lists[place // beams] += [(item, score) for item in self.items(ids)]
        return lists

    def items(self, token_ids: Sequence[int]) -> list[ItemId]:
        """Returns the items that a written sequence names, behind whose code an end token may stand; none for any other."""
        ids = list(token_ids)
        code = ids[: ids.index(self.end_token)] if self.end_token in ids else ids
        node = self.trie.find(code)
        return [] if node is None else [self.item_ids[row] for row in self.trie.items_at(node)]


def write_export(
    folder: str | Path,
    model: RecommenderModel,
    renderer: Renderer,
    items: ItemCatalog,
    engine: Engine = "transformers",
    dtype: Dtype = "auto",
    user: torch.Tensor | None = None,
) -> None:
    """Writes a folder that an engine serves, whole or not at all: model, tokenizer, items, and a README for the engine.

    ``generation_config.json`` has neutral values, so that no default of the backbone's changes a ranking.

    Args:
        folder: New, empty, or an earlier export, which is replaced.
        model: The tuned model.
        renderer: Of its prompts.
        items: Titles.
        engine: What the README is about.
        dtype: As ``RecommenderModel.merge_and_save``.
        user: As ``RecommenderModel.merge_and_save``.

    Raises:
        ModelError: If the engine is unknown, the tokenizer has no end token, or the model cannot be merged.
        RunError: If the folder holds anything else, or the disk refuses.
    """
    from transformers import GenerationConfig

    if engine not in get_args(Engine):
        raise ModelError(
            f"Unknown engine {engine!r}. Allowed: {', '.join(get_args(Engine))}.{nearest(str(engine), get_args(Engine))}"
        )
    folder = Path(folder)
    if folder.exists() and not (folder / ABOUT).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} holds something else, which an export would replace. Choose a new folder.")
    exported = ExportedItems.of(model, renderer, items)
    tokenizer = model.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else exported.end_token
    neutral = GenerationConfig(
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        length_penalty=1.0,
        max_new_tokens=exported.trie.depth + 1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=exported.end_token,
        pad_token_id=pad,
        decoder_start_token_id=model.decoder_start,
    )
    with atomic_path(folder) as part:
        model.merge_and_save(part, dtype, user)
        # Not by its own save, which refuses top_k=0 beside do_sample=False; an engine that samples reads it.
        write_json(part / "generation_config.json", neutral.to_diff_dict() | _explicit(neutral))
        exported.write(part)
        (part / "README.md").write_text(_readme(exported, model, renderer, engine), encoding="utf-8")


def _explicit(config: Any) -> dict[str, Any]:
    """Returns the settings that a library has a default of its own for."""
    names = (
        "do_sample",
        "num_beams",
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "length_penalty",
    )
    return {name: getattr(config, name) for name in names}


# ---------------------------------------------------------------- the README


def _readme(exported: ExportedItems, model: RecommenderModel, renderer: Renderer, engine: Engine) -> str:
    history = exported.item_ids[:2]
    ids = renderer.prompt_ids(history)
    kind = "AutoModelForSeq2SeqLM" if model.is_encoder_decoder else "AutoModelForCausalLM"
    about = {"transformers": "transformers", "vllm": "vLLM", "sglang": "SGLang"}[engine]
    section = {"transformers": "", "vllm": _VLLM, "sglang": _SGLANG}[engine]
    depth = exported.trie.depth
    if engine != "transformers":
        section = section.replace("DEPTH", str(depth)).replace("END_TOKEN", str(exported.end_token))
        section += _LEVEL if exported.softmax_over == "level" else _VOCABULARY
        if model.is_encoder_decoder:
            section += _SEQ2SEQ
    return f"""# A recommender for {about}

Exported by genrec: an ordinary transformers model that recommends by writing the tokens of an item's code, with the
tokens of {len(exported.item_ids):,} items. Codes have at most {depth} tokens.

| file | what it holds |
|---|---|
| `config.json`, `*.safetensors`, `tokenizer*` | the model with its adapter merged in; identifier tokens in embedding, output layer and tokenizer |
| `generation_config.json` | neutral settings: no sampling, no penalty |
| `{ITEMS}` | a line an item: `item_id`, `title`, `code` (tokens as text), `token_ids` |
| `{TRIE}/*.npy` | the trie of all `token_ids`: the children of node n are the edges `child_start[n]` to `child_start[n + 1]`, an edge has its `child_token`, and leads to the node whose number is the edge's and one; node 0 is the root; a node without children ends a code; `leaf_item[leaf_start[n]]` is its line in `{ITEMS}`, from 0 |
| `{ABOUT}` | identifier tokens with id and level, the end token ({exported.end_token}), how prompts are written |

A prompt must be the one of training, token by token. For a user who took {" and ".join(map(repr, history))} it is

    {json.dumps(model.tokenizer.decode(ids), ensure_ascii=False)}
    {ids}

## transformers

Tried: this gives the items and scores of `Recommender.recommend` with as many beams.

```python
import torch
from transformers import {kind}, AutoTokenizer, LogitsProcessorList
from genrec.decoding.export import ExportedItems

folder = "PATH"
items = ExportedItems.read(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {kind}.from_pretrained(folder).eval()
history = {list(history)!r}
prompt = torch.tensor([items.renderer(tokenizer).prompt_ids(history)])
found = model.generate(
    prompt,
    attention_mask=torch.ones_like(prompt),
    logits_processor=LogitsProcessorList([items.processor(exclude=[history])]),
    **items.search(beams=20),
)
print(items.rankings(found, {"1" if model.is_encoder_decoder else "prompt.shape[1]"}, num_prompts=1)[0][:10])
```
{section}"""


_VLLM = """
## vLLM

**Not run**: genrec was built on machines without what vLLM needs. This is what its pages and source said on 2026-11-25.

```python
from transformers import AutoTokenizer
from vllm import LLM
from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams
from genrec.decoding.export import ExportedItems

items = ExportedItems.read("PATH")
prompt = items.renderer(AutoTokenizer.from_pretrained("PATH")).prompt_ids(HISTORY)
choices = sorted({"".join(code) for code in items.codes})
(found,) = LLM("PATH").beam_search(
    [{"prompt_token_ids": prompt}],
    BeamSearchParams(
        beam_width=20,
        max_tokens=DEPTH + 1,
        length_penalty=0.0,
        structured_outputs=StructuredOutputsParams(choice=choices),
    ),
)
for beam in found.sequences:
    print(items.items(beam.tokens[len(prompt):]), beam.cum_logprob)  # no item: drop it
```

- `LLM.beam_search` asks the engine for one token of every beam at a time, as requests of their own; prefix caching is what
  keeps that from reading the prompt again. It takes no logits processor
  ([issue 21546](https://github.com/vllm-project/vllm/issues/21546)); `structured_outputs` came with
  [pull request 35022](https://github.com/vllm-project/vllm/pull/35022), offline only
  ([36285](https://github.com/vllm-project/vllm/pull/36285), for the server, was open).
- It looks at the `2 * beam_width` likeliest tokens of the whole vocabulary, and the constraint strikes out of those
  ([source](https://docs.vllm.ai/en/latest/api/vllm/entrypoints/generate/beam_search/offline/)): it may find fewer items
  than beams, or none, where transformers masks first and finds them.
- A grammar or a choice is of text. It allows an identifier's letters by pieces of text too, which is another sequence with
  another score: `items.items` drops those. One choice an item has to be compiled, which a large catalogue makes slow.
- Without beams (`LLM.generate`: greedy, or `n` samples) the trie can be a custom logits processor, set when the engine
  starts ([how](https://docs.vllm.ai/en/stable/features/custom_logitsprocs/)); `SamplingParams.allowed_token_ids` allows the
  identifier tokens and END_TOKEN at every place, which is no trie, and at most 1,024 ids of them.
"""

_SGLANG = """
## SGLang

**Not run**: genrec was built on machines without what SGLang needs. This is what its pages and source said on 2026-11-25.

```python
import sglang
from transformers import AutoTokenizer
from genrec.decoding.export import ExportedItems

items = ExportedItems.read("PATH")
prompt = items.renderer(AutoTokenizer.from_pretrained("PATH")).prompt_ids(HISTORY)
engine = sglang.Engine(model_path="PATH", page_size=1)
found = engine.generate(
    input_ids=[prompt],
    sampling_params={"beam_width": 200, "n": 200, "max_new_tokens": DEPTH + 1, "stop_token_ids": [END_TOKEN]},
)
```

Map every sequence of token ids by `items.items`, and drop those that name no item.

- Beam search is new in SGLang, by `beam_width` in the sampling parameters
  ([pull request 27716](https://github.com/sgl-project/sglang/pull/27716) says that it was merged as 31626); releases before
  have none ([issue 23356](https://github.com/sgl-project/sglang/issues/23356)).
- It cannot be constrained: a request with `regex`, `ebnf`, `json_schema` or `structural_tag` is refused, and beams are scored
  by the plain softmax
  ([source](https://github.com/sgl-project/sglang/blob/2380ae93fffaf7ba75b93f8da9d189fa6cafdc33/python/sglang/srt/beam_search/coordinator.py)).
  So beams are spent on codes that do not exist: take many and drop those. LoRA, speculative decoding, pipeline parallelism
  and `return_logprob` are refused with it, too.
- Without beams (greedy, or `n` samples) `regex` and `ebnf` constrain text
  ([sampling parameters](https://docs.sglang.io/basic_usage/sampling_params.html)), and a `CustomLogitProcessor` can hold the
  trie, sent with each request; text also allows an identifier's letters by pieces, which is another sequence.
"""

_LEVEL = """- **This model was trained with `train.softmax_over=level`**: an identifier token was told apart from those of its level alone, so
  that nothing kept words of text from being likelier at that place. An engine that takes its candidates from the whole
  vocabulary may meet no identifier at all. Train with `train.softmax_over=vocabulary` for such engines.
"""

_VOCABULARY = """- This model was trained with `train.softmax_over=vocabulary`, as engines score: identifier tokens are its likeliest ones behind
  a prompt.
"""

_SEQ2SEQ = """- This model is an encoder-decoder: see that the engine runs its kind at all. SGLang's beam search refuses them.
"""
