"""Each way to tune: what it trains, what it saves, what comes back, and what merging makes of it."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from genrec.core.errors import MissingExtraError, ModelError, RecipeError
from genrec.core.packages import cache_dir
from genrec.data_prep import leave_one_out
from genrec.decoding.beam import ConstrainedDecoder
from genrec.indexing import IndexSettings, ItemIndex, build_index
from genrec.models.backbone import PACKAGED_MODELS, load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.models.vocabulary import ExtendedEmbedding, ExtendedHead
from genrec.recipe import parse_recipe
from genrec.serving import Recommender
from genrec.tasks import Renderer, TaskSettings, build_dataset
from genrec.training import ModelSettings, TrainSettings, finetune

from conftest import tiny_tokenizer

pytestmark = pytest.mark.model  # many models, each made, trained a little or ranked with

CODES = {f"i{n}": (f"<a_{n % 4}>", f"<b_{n // 4}>") for n in range(11)}
INDEX = ItemIndex("mine", CODES)
WAYS = ("full", "lora", "qlora", "dora")
HISTORIES = [["i1", "i5", "i9", "i2"], ["i3"]]


@pytest.fixture(params=["tiny_backbone", "untied_backbone", "tiny_t5", "untied_t5"])
def backbone(request):
    return request.getfixturevalue(request.param)


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


@pytest.mark.parametrize("way", WAYS[1:])
def test_only_the_adapter_and_the_rows_change(way, backbone):
    before = {name: tensor.clone() for name, tensor in made(backbone, way).backbone.state_dict().items()}
    after = trained(backbone, way).backbone.state_dict()
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert all("lora_" in name or name.endswith(".rows") for name in changed), changed
    assert {name.rpartition(".")[2] for name in changed} >= {"weight", "rows"}
    assert all("absmax" not in name for name in changed)


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
        torch.tensor(
            tokenizer.convert_tokens_to_ids(
                [t for t, at in zip(INDEX.tokens, INDEX.token_levels, strict=True) if at == level]
            )
        )
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


@pytest.mark.parametrize("way", WAYS)
def test_layers_with_their_weights_turned_round_are_no_exception(way, tmp_path):
    """GPT-2's; in 4 bits they are ordinary layers, which merging turns back."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    model = trained(str(tmp_path / "gpt2"), way)
    if way != "full":
        assert model.about["lora"]["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    model.merge_and_save(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(
        logits(merged, batch(model)), logits(model.backbone, batch(model)), rtol=1e-4, atol=1e-4
    )


def test_words_of_an_encoder_have_no_place_in_an_ordinary_folder(tiny_t5, tmp_path):
    with pytest.raises(ModelError, match=r"whole_words=true cannot be merged"):
        made(tiny_t5, "lora", whole_words=True).merge_and_save(tmp_path / "merged")


def gradients(model):
    model.zero_grad()
    model(**batch(model))["loss"].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def test_a_model_measured_between_steps_learns_as_one_that_was_not(way, backbone):
    """bitsandbytes would turn 4-bit weights round for good at the first prediction, and pass no gradient on."""
    model = made(backbone, way).train()
    before = gradients(model)
    with torch.inference_mode():
        model.eval()(**batch(model))
    after = gradients(model.train())
    assert all(torch.equal(before[name], after[name]) for name in before)


def stored(model):
    """Gradients, and bytes that a training step keeps for its backward pass."""
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(5)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch(model))["loss"]
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}, kept


def test_layers_that_forget_give_the_same_gradients(way, backbone):
    dropout = {} if way == "full" else {"lora_dropout": 0.2}
    model = made(backbone, way, **dropout).train()
    expected, much = stored(model)
    model.activation_checkpointing_enable()
    found, little = stored(model)
    assert little < 0.6 * much
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)
    with torch.inference_mode():  # as between two steps, where it is measured
        assert model.eval()(**batch(model))["loss"].isfinite()


def test_a_softmax_over_the_vocabulary_leaves_out_the_same_items_and_is_taught_the_same(backbone, tmp_path):
    model = made(backbone, "lora", softmax_over="vocabulary").eval()
    inputs, first = batch(model), model.first_id
    rows, places = torch.nonzero(inputs["labels"][:, 1:] >= first, as_tuple=True)
    targets = inputs["labels"][:, 1:][rows, places] - first
    generator = torch.Generator().manual_seed(1)
    excluded = torch.rand(len(targets), len(INDEX.tokens), generator=generator) < 0.3
    excluded[torch.arange(len(targets)), targets] = False
    teacher = torch.rand(excluded.shape, generator=generator).masked_fill(excluded, 0.0)
    teacher = teacher / teacher.sum(1, keepdim=True)
    scores = logits(model.backbone, inputs)[:, :-1][rows, places]
    scores[:, first:] = scores[:, first:].masked_fill(excluded, float("-inf"))
    log_probs = scores.log_softmax(-1)[:, first:]
    hard = -log_probs.gather(1, targets[:, None]).sum()
    soft = -(teacher * log_probs.masked_fill(excluded, 0.0)).sum()
    inputs["labels"] = inputs["labels"].masked_fill(inputs["labels"] < first, -100)
    loss = model(**inputs, excluded=excluded, soft_targets=teacher, soft_weight=0.3)["loss"]
    torch.testing.assert_close(loss, (0.7 * hard + 0.3 * soft) / len(targets))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, model.row_parameters()))
    model.save(tmp_path / "model")
    again = RecommenderModel.load(tmp_path / "model", INDEX)
    hidden = torch.randn(3, 64)
    assert torch.equal(model.level_log_probs(hidden, 1), again.level_log_probs(hidden, 1))
    assert model.level_log_probs(hidden, 1).exp().sum(-1).max() < 0.99, "words have their share"


def test_a_model_saved_before_there_was_a_choice_predicts_among_the_level(tiny_backbone, tmp_path):
    made(tiny_backbone, "lora").save(tmp_path / "model")
    path = tmp_path / "model" / "genrec_model.json"
    about = json.loads(path.read_text())
    del about["softmax_over"]
    path.write_text(json.dumps(about))
    again = RecommenderModel.load(tmp_path / "model", INDEX)
    assert float(again.level_log_probs(torch.randn(1, 64), 0).exp().sum()) == pytest.approx(1.0)


def test_an_adapter_can_be_put_beside_some_layers_alone(tiny_backbone):
    model = made(tiny_backbone, "lora", lora_targets=("v_proj", "q_proj"))
    with_adapter = {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name}
    assert with_adapter == {"q_proj", "v_proj"}
    with pytest.raises(
        ModelError,
        match=r"lora_targets names 'qproj'.*Allowed: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, "
        r"v_proj\. Did you mean 'q_proj'\?",
    ):
        made(tiny_backbone, "lora", lora_targets=("qproj",))
    with pytest.raises(ModelError, match="lora_targets names 'lm_head'"):
        made(tiny_backbone, "dora", lora_targets=("lm_head",))


def test_scales_quantised_too_come_back_the_same(tiny_backbone, tmp_path):
    model = trained(tiny_backbone, "qlora", double_quantisation=True)
    assert model.backbone.model.layers[0].mlp.up_proj.base_layer.weight.quant_state.nested
    model.save(tmp_path / "model")
    again = RecommenderModel.load(tmp_path / "model", INDEX)
    assert torch.equal(logits(model.backbone, batch(model)), logits(again.backbone, batch(model)))
    one = logits(made(tiny_backbone, "qlora").backbone, batch(model))
    two = logits(made(tiny_backbone, "qlora", double_quantisation=True).backbone, batch(model))
    assert not torch.equal(one, two)


def test_four_bits_need_their_package_and_their_adapter(tiny_backbone, monkeypatch):
    lm, tokenizer = load_backbone(tiny_backbone, dtype="float32")
    arguments = {"name": tiny_backbone, "layers": None, "adapter": "qlora"}
    with pytest.raises(ModelError, match=r"is not in 4 bits, and adapter is 'qlora'.*four_bit=True"):
        RecommenderModel.create(lm, tokenizer, INDEX, torch.zeros(len(INDEX.tokens), 64), **arguments)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'genrec\[quantization\]'"):
        load_backbone(tiny_backbone, four_bit=True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"adapter": "qdora"}, "'full', 'lora', 'qlora', 'dora'"),
        (
            {"adapter": "full", "lora_targets": ["q_proj"]},
            r"lora_targets needs an adapter",
        ),
        (
            {"double_quantisation": True},
            r"double_quantisation=true needs train\.adapter=qlora or qreclora, got lora",
        ),
        ({"softmax_over": "words"}, "'level' or 'vocabulary'"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"train": keys})


@pytest.mark.model
@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("decoder", {"adapter": "qlora", "double_quantisation": True, "gradient_checkpointing": True}),
        (
            "encoder-decoder",
            {"adapter": "dora", "gradient_checkpointing": True, "softmax_over": "vocabulary"},
        ),
    ],
)
def test_a_run_by_keys_alone(kind, keys, tiny_backbone, tiny_t5, log, items, tmp_path):
    """From the settings of a recipe to recommendations, and to an ordinary model."""
    backbone = tiny_backbone if kind == "decoder" else tiny_t5
    split = leave_one_out(log)
    index = build_index("rq_kmeans", items, split.train, IndexSettings(levels=2, codebook_size=6))
    tasks = TaskSettings(form="windows", max_history=4)
    run = finetune(
        backbone,
        build_dataset(split, items, index, tasks),
        index,
        items,
        split,
        tmp_path / "run",
        tasks=tasks,
        model=ModelSettings(dtype="float32"),
        settings=TrainSettings(epochs=0.16, batch_size=4, learning_rate=5e-3, checkpoint_steps=9, **keys),
    )
    losses = json.loads((run / "training.json").read_text())["losses"]
    assert losses[-1][1] < losses[0][1]
    about = json.loads((run / "model" / "genrec_model.json").read_text())
    assert {name: about[name] for name in keys if name in about} == {
        name: value for name, value in keys.items() if name != "gradient_checkpointing"
    }
    recommender = Recommender.from_pretrained(run)
    (found,) = recommender.recommend([["i1", "i2"]], k=5)
    assert len({one.item_id for one in found}) == 5
    folder = recommender.merge_and_save(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(list(index.tokens))[-1] == len(tokenizer) - 1


@pytest.mark.model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_multiplied_in_the_type_of_the_weights(
    dtype, tiny_t5, log, items, tmp_path, monkeypatch
):
    forward, seen = RecommenderModel.forward, set()

    def watched(self, *arguments, **inputs):
        seen.add(torch.is_autocast_enabled("cpu"))
        return forward(self, *arguments, **inputs)

    monkeypatch.setattr(RecommenderModel, "forward", watched)
    split = leave_one_out(log)
    index = build_index("independent", items, split.train)
    tasks = TaskSettings(form="windows", max_history=4)
    data = build_dataset(split, items, index, tasks)
    run = finetune(
        tiny_t5,
        data,
        index,
        items,
        split,
        tmp_path / "run",
        tasks=tasks,
        model=ModelSettings(dtype=dtype),
        settings=TrainSettings(epochs=0.02, checkpoint_steps=0),
    )
    assert seen == {dtype == "bfloat16"}
    Recommender.from_pretrained(run).merge_and_save(tmp_path / "merged")
    assert str(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").dtype) == f"torch.{dtype}"


@pytest.mark.model
@pytest.mark.skipif(
    not all((cache_dir() / f.package / Path(f.members[0]).name).exists() for f in PACKAGED_MODELS.values()),
    reason="the packaged model is not in the cache: run make quickstart once",
)
def test_an_adapter_of_all_layers_with_1024_new_tokens_is_small(tmp_path):
    index = ItemIndex("mine", {f"i{n}": (f"<a_{n}>",) for n in range(1024)})
    lm, tokenizer = load_backbone("smollm2-135m-instruct")
    assert lm.config.num_hidden_layers == 30
    rows = torch.zeros(1024, lm.config.hidden_size)
    RecommenderModel.create(lm, tokenizer, index, rows, name="smollm2-135m-instruct", layers=None).save(
        tmp_path / "model"
    )
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "model").iterdir()}
    assert sum(size for name, size in sizes.items() if name.endswith(".safetensors")) < 25e6, sizes
