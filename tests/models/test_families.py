"""Backbones of many families behind one code path: trained, decoded and merged as their own plain logits say."""

import pytest
import torch
import transformers

from genrec.decoding.beam import ConstrainedDecoder
from genrec.indexing import ItemIndex
from genrec.models.backbone import load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.tasks import Renderer

from conftest import tiny_tokenizer

pytestmark = pytest.mark.model  # many models, each made, trained a little or ranked with

CODES = {f"i{n}": (f"<a_{n % 4}>", f"<b_{n // 4}>") for n in range(11)}
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
# A window shorter than the prompts; logits that reach well beyond their cap.
SLIDING = SIZE | {"sliding_window": 5}
FAMILIES = {
    "llama": ("LlamaConfig", SIZE | {"tie_word_embeddings": False}),
    "smollm": ("LlamaConfig", SIZE | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", SIZE | {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", SLIDING),
    "gemma2": ("Gemma2Config", SLIDING | {"final_logit_softcapping": 0.5, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", SLIDING | {"query_pre_attn_scalar": 8}),
    "mistral, wide window": ("MistralConfig", SIZE | {"sliding_window": 64}),
    "gemma3, wide window": ("Gemma3TextConfig", SIZE | {"sliding_window": 64, "query_pre_attn_scalar": 8}),
    "phi": ("PhiConfig", SIZE | {"num_key_value_heads": 4}),  # whose output layer has a bias
    "granite": ("GraniteConfig", SIZE | {"logits_scaling": 8.0, "embedding_multiplier": 3.0}),
    "cohere": ("CohereConfig", SIZE | {"logit_scale": 0.0625}),
    "mixtral": ("MixtralConfig", SIZE | {"num_local_experts": 2}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "t5": ("T5Config", T5),
    "flan-t5": ("T5Config", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("MT5Config", T5 | {"tie_word_embeddings": False}),
    "umt5": ("UMT5Config", T5 | {"tie_word_embeddings": False}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    name, values = FAMILIES[request.param]
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids["pad_token_id"] = tokenizer.pad_token_id
    config = getattr(transformers, name)(vocab_size=len(tokenizer), **ids, **values)
    if config.is_encoder_decoder:
        config.decoder_start_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    kind = (
        transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    )
    model = kind.from_config(config)
    with torch.no_grad():
        # Biases start as nothing, where a mistake would not be seen, and weights so small that no cap is reached.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    path = tmp_path_factory.mktemp(request.param.replace(", ", "_").replace(" ", "_"))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def decoder_for(folder, **options):
    index = ItemIndex("mine", CODES)
    lm, tokenizer = load_backbone(folder, dtype="float32")
    rows = torch.randn(len(index.tokens), 32, generator=torch.Generator().manual_seed(2)) * 0.5
    model = RecommenderModel.create(lm, tokenizer, index, rows, name=folder, layers=None, **options).eval()
    form = "windows" if model.is_encoder_decoder else "packed"
    return ConstrainedDecoder(
        model, Renderer(tokenizer, index, form, 20, text_to_text=model.is_encoder_decoder)
    )


def plain_scores(lm, first_id, index, prompt, start, over_vocabulary=False):
    """Every item's score by the plain logits of a transformers model, each by forward passes of its own."""
    tokens, levels, scores = list(index.tokens), torch.tensor(index.token_levels), {}
    for item, code in index.codes.items():
        total, written = 0.0, []
        for level, token in enumerate(code):
            if start is None:
                logits = lm(input_ids=torch.tensor([[*prompt, *written]])).logits[0, -1]
            else:
                given = {"decoder_input_ids": torch.tensor([[start, *written]])}
                logits = lm(input_ids=torch.tensor([prompt]), **given).logits[0, -1]
            if over_vocabulary:
                logits = logits - logits.logsumexp(0)
            else:
                same = logits[first_id:][levels == level]
                logits = logits - same.logsumexp(0)
            written.append(first_id + tokens.index(token))
            total += float(logits[written[-1]])
        scores[item] = total
    return scores


HISTORIES = [["i1", "i5", "i9", "i2", "i7", "i0", "i10"], ["i3"], ["i4", "i6", "i8"]]


@torch.no_grad()
@pytest.mark.parametrize("over", ["level", "vocabulary"])
def test_it_ranks_as_its_own_plain_logits_do(over, folder):
    decoder = decoder_for(folder, softmax_over=over)
    model = decoder.model
    for history, ranking in zip(HISTORIES, decoder.rank(HISTORIES, 11), strict=True):
        prompt = decoder.renderer.prompt_ids(history)
        expected = plain_scores(
            model.backbone, model.first_id, decoder.index, prompt, model.decoder_start, over == "vocabulary"
        )
        assert dict(ranking) == pytest.approx(expected, abs=1e-4)
        assert len(ranking) == 11


def test_beams_share_rows_where_a_model_lets_them(folder):
    """All decoders but those whose window the prompts outgrow; that the ranking is right either way is tested above."""
    decoder = decoder_for(folder)
    decoder.rank(HISTORIES, 3)  # tries once
    rows = []
    body = decoder.model.backbone.get_decoder() if decoder.model.is_encoder_decoder else None
    body = body or decoder.model.backbone.base_model
    body.register_forward_pre_hook(
        lambda _, __, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    decoder.rank(HISTORIES, 3)
    shares = max(rows) == len(HISTORIES)
    config = decoder.model.backbone.config
    narrow = getattr(config, "sliding_window", None) == SLIDING["sliding_window"]
    assert shares == (not decoder.model.is_encoder_decoder and not narrow)


@pytest.mark.parametrize("over", ["level", "vocabulary"])
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_step_lowers_a_loss_that_is_its_own(adapter, over, folder):
    """Of identifiers and of words, by the model's own logits."""
    decoder = decoder_for(folder, adapter=adapter, softmax_over=over)
    model = decoder.model
    first, level = model.first_id, model.token_level
    a, b = first, first + int((level == 1).nonzero()[0])
    ids = torch.tensor([[1, a, b, 7, 9, 11, a + 1, b + 1], [1, 8, a + 2, b, 0, 0, 0, 0]])
    mask = torch.tensor([[1] * 8, [1, 1, 1, 1, 0, 0, 0, 0]])
    labels = ids.masked_fill(mask == 0, -100).index_fill(1, torch.tensor([0]), -100)
    inputs = {"decoder_input_ids": ids} if model.is_encoder_decoder else {}
    logits = model.backbone(input_ids=ids, attention_mask=mask, **inputs).logits[:, :-1]
    expected = []
    for row, place in (labels[:, 1:] != -100).nonzero().tolist():
        scores, target = logits[row, place], int(labels[row, place + 1])
        candidates = scores
        if target >= first and over == "level":
            candidates = scores[first:][level == level[target - first]]
        expected.append(candidates.logsumexp(0) - scores[target])
    loss = model(ids, mask, labels, **inputs)["loss"]
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-4)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad(loss, trained, allow_unused=True)
    theirs = torch.autograd.grad(torch.stack(expected).mean(), trained, allow_unused=True)
    for parameter, *grads in zip(trained, ours, theirs, strict=True):
        one, two = (torch.zeros_like(parameter) if grad is None else grad for grad in grads)
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    model(ids, mask, labels, **inputs)["loss"].backward()
    torch.optim.SGD(trained, lr=1e-2).step()
    assert model(ids, mask, labels, **inputs)["loss"] < loss
