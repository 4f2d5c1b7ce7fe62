"""Each way to tune: what it trains, what it saves, what comes back, and what merging makes of it."""


import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from genrec.decoding.beam import ConstrainedDecoder
from genrec.indexing import ItemIndex
from genrec.models.backbone import load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.models.vocabulary import ExtendedEmbedding, ExtendedHead
from genrec.tasks import Renderer

CODES = {f"i{n}": (f"<a_{n % 4}>", f"<b_{n // 4}>") for n in range(11)}
INDEX = ItemIndex("mine", CODES)
WAYS = ("full", "lora", "qlora", "dora")
HISTORIES = [["i1", "i5", "i9", "i2"], ["i3"]]


@pytest.fixture(params=["tied", "untied", "encoder-decoder"])
def backbone(request, tiny_backbone, untied_backbone, tiny_t5):
    return {"tied": tiny_backbone, "untied": untied_backbone, "encoder-decoder": tiny_t5}[request.param]


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


def made(folder, way, **options):
    double = options.get("double_quantisation", False)
    lm, tokenizer = load_backbone(
        folder, dtype="float32", four_bit=way == "qlora", double_quantisation=double
    )
    rows = torch.randn(len(INDEX.tokens), 64, generator=torch.Generator().manual_seed(2)) * 0.5
    torch.manual_seed(3)
    return RecommenderModel.create(
        lm, tokenizer, INDEX, rows, name=folder, layers=None, adapter=way, lora_r=4, **options
    )


def batch(model):
    """Two rows of words and items, the second shorter."""
    first = model.first_id
    a, b = first, first + int((model.token_level == 1).nonzero()[0])
    ids = torch.tensor([[1, a, b, 7, 9, 11, a + 1, b + 1], [1, 8, a + 2, b, 0, 0, 0, 0]])
    mask = torch.tensor([[1] * 8, [1, 1, 1, 1, 0, 0, 0, 0]])
    labels = ids.masked_fill(mask == 0, -100).index_fill(1, torch.tensor([0]), -100)
    found = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return found | ({"decoder_input_ids": ids} if model.is_encoder_decoder else {})


def trained(folder, way, steps=4, **options):
    """A model after a few steps that are large enough to see."""
    model = made(folder, way, **options)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch(model))["loss"].backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def logits(lm, inputs):
    return lm(**{name: value for name, value in inputs.items() if name != "labels"}).logits


def test_only_the_adapter_and_the_rows_change(way, backbone):
    if way == "full":
        pytest.skip("full tuning changes every weight")
    model = made(backbone, way)
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items() if "absmax" not in name}
    model = trained(backbone, way)
    changed = {
        name for name, tensor in model.backbone.state_dict().items() if name in before and not torch.equal(tensor, before[name])
    }
    assert changed
    assert all("lora_" in name or name.endswith(".rows") for name in changed), changed
    assert sum(name.endswith(".rows") for name in changed) >= 1
    old = model.backbone.get_input_embeddings().base.weight
    assert torch.equal(old, load_backbone(backbone, dtype="float32")[0].get_input_embeddings().weight)


def test_it_comes_back_with_the_same_logits(way, backbone, tmp_path):
    model = trained(backbone, way)
    model.save(tmp_path / "model")
    again = RecommenderModel.load(tmp_path / "model", INDEX)
    inputs = batch(model)
    assert torch.equal(logits(model.backbone, inputs), logits(again.backbone, inputs))
    saved = sum(file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors"))
    assert saved < sum(p.numel() * 4 for p in model.parameters() if p.requires_grad) + 20_000


def ranking_by_plain_logits(folder, history, model, renderer):
    """By a model that knows nothing of genrec, from the folder alone."""
    kind = AutoModelForSeq2SeqLM if model.is_encoder_decoder else AutoModelForCausalLM
    lm, tokenizer = kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert not [m for m in lm.modules() if isinstance(m, ExtendedEmbedding | ExtendedHead)]
    assert lm.get_input_embeddings().weight.shape[0] == len(tokenizer)
    prompt, scores = torch.tensor([renderer.prompt_ids(history)]), {}
    levels = [
        torch.tensor(tokenizer.convert_tokens_to_ids([t for t, at in zip(INDEX.tokens, INDEX.token_levels, strict=True) if at == level]))
        for level in (0, 1)
    ]
    for item, code in CODES.items():
        written, total = [], 0.0
        for level, token in enumerate(tokenizer.convert_tokens_to_ids(list(code))):
            ids = torch.tensor([written], dtype=torch.long)
            if model.is_encoder_decoder:
                ids = torch.cat([torch.tensor([[model.decoder_start]]), ids], 1)
                found = logits(lm, {"input_ids": prompt, "decoder_input_ids": ids})[0, -1]
            else:
                found = logits(lm, {"input_ids": torch.cat([prompt, ids], 1)})[0, -1]
            total += float(found[token] - found[levels[level]].logsumexp(0))
            written.append(token)
        scores[item] = total
    return scores


def test_merged_it_is_an_ordinary_model_that_ranks_the_same(way, backbone, tmp_path):
    model = trained(backbone, way)
    inputs = batch(model)
    before = logits(model.backbone, inputs)
    form = "windows" if model.is_encoder_decoder else "packed"
    renderer = Renderer(model.tokenizer, INDEX, form, 20, text_to_text=model.is_encoder_decoder)
    rankings = ConstrainedDecoder(model, renderer).rank(HISTORIES, len(CODES))
    model.merge_and_save(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert torch.equal(logits(model.backbone, inputs), before), "the model itself changed"
    for history, ranking in zip(HISTORIES, rankings, strict=True):
        scores = ranking_by_plain_logits(tmp_path / "merged", history, model, renderer)
        assert dict(ranking) == pytest.approx(scores, abs=1e-4)
        assert [item for item, _ in ranking] == sorted(scores, key=scores.get, reverse=True)
