"""Shared fixtures: a planted log whose right answer is known, and a tiny random language model."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # ranx compiles for a minute what then runs for a second

from pathlib import Path

import pytest
from hypothesis import settings

from genrec.data_prep import InteractionLog, ItemCatalog

from planted import planted_catalog, planted_log

# Machines are shared: how long an example takes says nothing of what is tested.
settings.register_profile("genrec", deadline=None)
settings.load_profile("genrec")


@pytest.fixture(scope="session")
def log() -> InteractionLog:
    return planted_log()


@pytest.fixture(scope="session")
def items() -> ItemCatalog:
    return planted_catalog()


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random two-layer Llama and a byte-level tokenizer, saved as any model is."""
    return make_tiny_backbone(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def untied_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with an output layer of its own."""
    return make_tiny_backbone(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random T5 of two and two layers, gated as Flan-T5, and a byte-level tokenizer."""
    return make_tiny_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="session")
def untied_t5(tiny_t5: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with an output layer of its own, which transformers ties unless the weights read differ."""
    import torch
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("untied_t5")
    model = T5ForConditionalGeneration.from_pretrained(tiny_t5)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_t5).save_pretrained(folder)
    return str(folder)


def make_tiny_t5(folder: Path, **changes: object) -> str:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    torch.manual_seed(0)
    config = T5Config(
        **{
            "vocab_size": len(tokenizer) + 7,  # T5 has more rows than tokens
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "dropout_rate": 0.0,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": tokenizer.pad_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **changes,
        }
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():  # T5's own start, of spread 1, is for logits that are scaled down
        model.shared.weight.mul_(0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_tiny_backbone(folder: Path, **changes: object) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fast = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": len(fast),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "bos_token_id": fast.bos_token_id,
            "eos_token_id": fast.eos_token_id,
            **changes,
        }
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def tiny_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(planted_catalog().texts() * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where the data sets must be at hand (CI), a test that would skip for want of them fails instead."""
    if os.environ.get("GENREC_REQUIRE_DATA"):
        for item in items:
            if item.get_closest_marker("data"):
                item.own_markers = [mark for mark in item.own_markers if mark.name != "skipif"]
