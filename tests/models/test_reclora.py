"""RecLoRA against its formulas, written out row by row, and as a method of peft."""

import copy
import threading

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import nn

from genrec.core.errors import ModelError
from genrec.models.backbone import load_backbone
from genrec.models.reclora import RecLoraConfig, RecLoraLinear

pytestmark = [
    pytest.mark.model,  # many models, each made and some trained a little
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

SIZE = 6
IDS = torch.tensor([[1, 5, 9, 2, 7], [3, 3, 8, 4, 6], [9, 1, 1, 2, 5]])
VECTORS = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(5))
WAYS = [
    {"mixing": mixing, **way}
    for mixing in ("weights", "outputs")
    for way in (
        {},
        {"gate": "shared", "temperature": 5.0},
        {"routing": "top_k", "top_k": 2},
        {"slices": True, "r": 8, "gate_hidden": 0},
    )
]
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"], "t5": ["q", "v", "wo"]}


def backbone(kind="llama"):
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=32)
        return transformers.GPT2LMHeadModel(config)
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        return transformers.T5ForConditionalGeneration(config)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config)


def settings_of(kind="llama", **options):
    return RecLoraConfig(
        **{"r": 2, "experts": 4, "user_size": SIZE, "target_modules": list(TARGETS[kind])} | options
    )


def stirred(model):
    """The same with every trained weight as after some training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def made(kind="llama", **options):
    return stirred(get_peft_model(backbone(kind), settings_of(kind, **options)))


def inputs(kind="llama", rows=slice(None)):
    ids = IDS[rows]
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if kind == "t5" else {})


def by_hand(layer, x, vectors, shared=None):
    """What a layer adds, from the formulas, one row, user and expert at a time."""
    config = layer.configs["default"]
    gate = shared or layer.reclora_gate["default"]
    n = config.experts
    rank = config.r // n if config.slices else config.r
    a = layer.reclora_A["default"].weight.split(rank, 0)
    b = layer.reclora_B["default"].weight.split(rank, 1)
    rows = []
    for row, u in zip(x, vectors, strict=True):
        if config.gate_hidden:
            norm, hidden, last = gate.layers[0], gate.layers[1], gate.layers[4]
            u = (u - u.mean()) / (u.var(correction=0) + norm.eps).sqrt() * norm.weight + norm.bias
            u = (hidden.weight @ u + hidden.bias).clamp(min=0)
        else:
            last = gate.layers[0]
        exps = ((last.weight @ u + last.bias) / config.temperature).exp()
        if config.routing == "top_k":
            least = sorted(exps.tolist())[-config.top_k]
            exps = torch.stack([e if e >= least else e * 0 for e in exps])
        alpha = exps / exps.sum()
        if config.mixing == "outputs":
            delta = sum(alpha[k] * b[k] @ a[k] for k in range(n))
        else:
            delta = sum(alpha[k] * b[k] for k in range(n)) @ sum(alpha[k] * a[k] for k in range(n))
        rows.append(row @ delta.T * config.lora_alpha / rank)
    return torch.stack(rows)


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, RecLoraLinear)]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_layer_adds_what_the_formulas_say(way):
    model = made(**way)
    shared = layers_of(model)[0].reclora_gate["default"] if way.get("gate") == "shared" else None
    for layer in layers_of(model):
        x = torch.randn(3, 5, layer.in_features)
        with model.users(VECTORS):
            found = layer(x) - layer.base_layer(x)
        torch.testing.assert_close(found, by_hand(layer, x, VECTORS, shared), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_gradients_are_those_of_the_formulas(way):
    model = made(**way)
    layer = layers_of(model)[0]
    x = torch.randn(3, 5, layer.in_features)
    wanted = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    with model.users(VECTORS):
        ours = torch.autograd.grad(layer(x).square().sum(), wanted)
    theirs = torch.autograd.grad((layer.base_layer(x) + by_hand(layer, x, VECTORS)).square().sum(), wanted)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3 * float(two.abs().max()) + 1e-6)


@settings(max_examples=25)
@given(
    users=st.integers(1, 4),
    beams=st.integers(1, 3),
    tokens=st.integers(1, 4),
    experts=st.integers(2, 5),
    rank=st.integers(1, 3),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7)),
    flat=st.booleans(),
    mixing=st.sampled_from(["weights", "outputs"]),
)
def test_any_shape(users, beams, tokens, experts, rank, sizes, flat, mixing):
    """Beams of a row may be rows beside each other, and rows may be flattened to tokens."""
    width, out, size = sizes
    config = RecLoraConfig(
        r=rank, experts=experts, user_size=size, target_modules=["0"], mixing=mixing, gate_hidden=3
    )
    model = stirred(get_peft_model(nn.Sequential(nn.Linear(width, out)), config))
    layer = layers_of(model)[0]
    vectors, x = torch.randn(users, size), torch.randn(users * beams, tokens, width)
    with model.users(vectors):
        found = layer(x.flatten(0, 1)).view(-1, tokens, out) if flat else layer(x)
    expected = layer.base_layer(x) + by_hand(layer, x, vectors.repeat_interleave(beams, 0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TARGETS)
def test_one_expert_is_peft_s_lora_bit_by_bit(kind):
    torch.manual_seed(7)
    options = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.1, "target_modules": TARGETS[kind]}
    ours = get_peft_model(backbone(kind), RecLoraConfig(experts=1, **options))
    torch.manual_seed(7)
    lora = LoraConfig(**options, fan_in_fan_out=kind == "gpt2")
    plain = get_peft_model(backbone(kind), lora)
    mine = [parameter for parameter in ours.parameters() if parameter.requires_grad]
    theirs = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    for step in range(3):
        losses = []
        for model, weights in ((ours, mine), (plain, theirs)):
            torch.manual_seed(step)
            losses.append(model(**inputs(kind), labels=IDS).loss)
            losses[-1].backward()
            torch.optim.SGD(weights, lr=0.5).step()
        assert torch.equal(*losses)
        for one, two in zip(mine, theirs, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one.grad, two.grad)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("mixing", ["weights", "outputs"])
def test_it_starts_as_the_backbone_and_trains_gates_and_meta_loras_alone(kind, mixing):
    model = get_peft_model(backbone(kind), settings_of(kind, mixing=mixing))
    found = model.eval()(**inputs(kind), user_vectors=VECTORS).logits
    with model.disable_adapter():
        assert torch.equal(found, model(**inputs(kind)).logits)
    expected = backbone(kind).eval()(**inputs(kind)).logits
    torch.testing.assert_close(
        found, expected, rtol=1e-5, atol=1e-5
    )  # peft's LoRA rounds a T5 otherwise, too
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".reclora_" in name}
    stirred(model).train()
    vectors = VECTORS.clone().requires_grad_()
    model(**inputs(kind), labels=IDS, user_vectors=vectors).loss.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained
    assert vectors.grad is None


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("way", WAYS[:2] + WAYS[5:6], ids=str)
@torch.no_grad()
def test_users_do_not_see_each_other(kind, way):
    model = made(kind, **way)
    together = model(**inputs(kind), user_vectors=VECTORS).logits
    for row in range(3):
        alone = model(**inputs(kind, [row]), user_vectors=VECTORS[[row]]).logits
        torch.testing.assert_close(together[[row]], alone, rtol=1e-4, atol=1e-5)
    same = model(**inputs(kind, [1, 1]), user_vectors=VECTORS[[0, 0]]).logits
    torch.testing.assert_close(same[0], same[1], rtol=1e-4, atol=1e-5)
    other = model(**inputs(kind), user_vectors=VECTORS.flip(0)).logits
    assert (other[0] - together[0]).abs().max() > 1e-3


def test_slices_have_the_weights_of_one_lora():
    cut = get_peft_model(backbone(), settings_of(r=8, slices=True))
    plain = get_peft_model(backbone(), LoraConfig(r=8, target_modules=TARGETS["llama"]))
    found = sum(p.numel() for name, p in cut.named_parameters() if "reclora_A" in name or "reclora_B" in name)
    assert found == plain.get_nb_trainable_parameters()[0]


@torch.no_grad()
def test_a_great_temperature_gives_each_expert_the_same():
    model = made(temperature=1e6)
    for weights in model.gate_weights(VECTORS).values():
        torch.testing.assert_close(weights, torch.full((3, 4), 0.25), rtol=1e-4, atol=1e-4)


def test_gate_weights_are_told_by_layer():
    model = made(routing="top_k", top_k=2).train()
    found = model.gate_weights(VECTORS)
    assert len(found) == len(layers_of(model)) == 6
    assert "model.layers.1.mlp.down_proj" in found
    for weights in found.values():
        torch.testing.assert_close(weights.sum(1), torch.ones(3))
        assert (weights > 0).sum(1).tolist() == [2, 2, 2]
    assert model.training


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_what_is_saved_is_enough(way, tmp_path):
    model = made(**way)
    expected = model(IDS, user_vectors=VECTORS).logits
    model.save_pretrained(tmp_path)
    assert {key.split("reclora_")[1][0] for key in get_peft_model_state_dict(model)} == {"A", "B", "g"}
    for name, low_memory in (("default", False), ("mine", True)):
        again = PeftModel.from_pretrained(
            backbone(), tmp_path, adapter_name=name, low_cpu_mem_usage=low_memory
        )
        assert torch.equal(again.eval()(IDS, user_vectors=VECTORS).logits, expected)
        assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.peft_config["mine"].mixing == way["mixing"]


@pytest.mark.parametrize("gate", ["layer", "shared"])
def test_adapters_have_names(gate, tmp_path):
    model = made(gate=gate)
    first = model(IDS, user_vectors=VECTORS).logits
    model.save_pretrained(tmp_path / "first")
    wider = settings_of(experts=3, user_size=9, gate=gate, mixing="outputs")
    model.add_adapter("second", wider)
    assert torch.equal(model(IDS, user_vectors=VECTORS).logits, first)
    model.set_adapter("second")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".second" in name}
    stirred(model)
    vectors = torch.randn(3, 9)
    second = model(IDS, user_vectors=vectors).logits
    assert (second - first).abs().max() > 1e-3
    with pytest.raises(ModelError, match=r"\(3, 6\); the adapter 'second' takes \(rows, 9\)"):
        model(IDS, user_vectors=VECTORS)
    model.set_adapter("default")
    assert torch.equal(model(IDS, user_vectors=VECTORS).logits, first)
    model.save_pretrained(tmp_path / "both")
    again = PeftModel.from_pretrained(backbone(), tmp_path / "both" / "second").eval()
    assert torch.equal(again(IDS, user_vectors=vectors).logits, second)
    model.delete_adapter("second")
    assert torch.equal(model(IDS, user_vectors=VECTORS).logits, first)
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, backbone().eval()(IDS).logits)


@pytest.mark.parametrize(
    ("kind", "way"),
    [("llama", way) for way in WAYS] + [(kind, WAYS[n]) for kind in ("gpt2", "t5") for n in (1, 4)],
)
@torch.no_grad()
def test_merged_for_a_user_it_is_an_ordinary_model(kind, way):
    model = made(kind, **way)
    expected = model(**inputs(kind), user_vectors=VECTORS).logits
    for row in range(3):
        merged = model.merge_for(VECTORS[row])
        assert type(merged) is type(backbone(kind))
        assert merged.state_dict().keys() == backbone(kind).state_dict().keys()
        found = merged(**inputs(kind, [row])).logits
        torch.testing.assert_close(found, expected[[row]], rtol=1e-3, atol=1e-4)
    with model.users(VECTORS[[1]]):
        model.merge_adapter()
    torch.testing.assert_close(model(**inputs(kind, [1])).logits, expected[[1]], rtol=1e-3, atol=1e-4)
    model.unmerge_adapter()
    found = model(**inputs(kind), user_vectors=VECTORS).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("gate", ["layer", "shared"])
def test_layers_are_computed_again_for_the_users_they_were_computed_for(kind, reentrant, gate):
    """Two batches of other users before one backward pass, with dropout everywhere."""
    model = made(kind, gate=gate, lora_dropout=0.1).train()

    def gradients():
        torch.manual_seed(3)
        model.zero_grad()
        loss = model(**inputs(kind), labels=IDS, user_vectors=VECTORS).loss
        with model.users(VECTORS[:2].flip(0)):
            loss = loss + model.get_base_model()(**inputs(kind, [2, 0]), labels=IDS[[2, 0]]).loss
        with model.users(VECTORS[:1]):
            loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    expected = gradients()
    if reentrant:
        model.enable_input_require_grads()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    layers_of(model)[0].base_layer.register_forward_hook(lambda *_: calls.append(1))
    found = gradients()
    assert len(calls) == 4
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_accumulated_batches_are_one_batch():
    model = made().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    whole = torch.autograd.grad(model(IDS, labels=IDS, user_vectors=VECTORS).loss, weights)
    for row in range(3):
        loss = model(IDS[[row]], labels=IDS[[row]], user_vectors=VECTORS[[row]]).loss / 3
        loss.backward()
    for weight, gradient in zip(weights, whole, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_beams_may_be_rows_or_tokens():
    model = made()
    expected = model(IDS, user_vectors=VECTORS).logits
    beams = model(IDS.repeat_interleave(2, 0), user_vectors=VECTORS).logits
    torch.testing.assert_close(beams, expected.repeat_interleave(2, 0), rtol=1e-4, atol=1e-5)
    with model.users(VECTORS):
        prompt = model.get_base_model()(IDS[:, :3], use_cache=True)
        rest = model.get_base_model()(IDS[:, 3:], past_key_values=prompt.past_key_values)
        generated = model.get_base_model().generate(
            IDS, num_beams=3, max_new_tokens=3, do_sample=False, pad_token_id=0
        )
    torch.testing.assert_close(rest.logits, expected[:, 3:], rtol=1e-4, atol=1e-5)
    for row in range(3):
        alone = model.merge_for(VECTORS[row]).generate(
            IDS[[row]], num_beams=3, max_new_tokens=3, do_sample=False, pad_token_id=0
        )
        assert torch.equal(generated[[row]], alone)


@torch.no_grad()
def test_within_a_context_a_gate_is_asked_once_where_nothing_is_learned():
    model = made(gate="shared")
    gate, calls = layers_of(model)[0].reclora_gate["default"], []
    gate.register_forward_hook(lambda *_: calls.append(1))
    with model.users(VECTORS):
        model.get_base_model()(IDS)
        model.get_base_model()(IDS)
    assert len(calls) == 1


def test_threads_and_models_keep_their_users_apart():
    one, two = made(), made(mixing="outputs")
    inner = copy.deepcopy(one)
    expected = [model(IDS, user_vectors=VECTORS).logits for model in (one, two, inner)]
    with one.users(VECTORS), two.users(VECTORS[:1]), inner.users(VECTORS.flip(0)):
        assert torch.equal(one.get_base_model()(IDS).logits, expected[0])
        with pytest.raises(RuntimeError, match="stop"), one.users(VECTORS[:1]):
            raise RuntimeError("stop")
        assert torch.equal(one.get_base_model()(IDS).logits, expected[0])
        failures = []

        def elsewhere():
            try:
                one.get_base_model()(IDS)
            except ModelError as error:
                failures.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert "asked without users" in failures[0]
    wrong, turn = [], threading.Barrier(2)

    def ask(vectors, answer):
        for _ in range(5):
            turn.wait()
            if not torch.equal(one(IDS, user_vectors=vectors).logits, answer):
                wrong.append(vectors)

    flipped = one(IDS, user_vectors=VECTORS.flip(0)).logits
    threads = [
        threading.Thread(target=ask, args=pair)
        for pair in ((VECTORS, expected[0]), (VECTORS.flip(0), flipped))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_model_says_what_is_missing():
    model = made()
    with pytest.raises(ModelError, match=r"without users. Give user_vectors=\.\.\., of shape \(rows"):
        model(IDS)
    with pytest.raises(ModelError, match="batch of 3 rows came with 2 users"):
        model(IDS, user_vectors=VECTORS[:2])
    with pytest.raises(ModelError, match=r"shape \(6,\); the adapter 'default' takes \(rows, 6\)"):
        model(IDS, user_vectors=VECTORS[0])
    with pytest.raises(ModelError, match="merged for one user; there are 3"), model.users(VECTORS):
        model.merge_adapter()
    with pytest.raises(ModelError, match="without users"):
        model.merge_adapter()
    model.train().get_base_model().activation_checkpointing_enable()
    model(IDS, user_vectors=VECTORS)
    unloaded = model.unload().eval()
    assert not unloaded._forward_pre_hooks
    assert {module.__module__ for module in unloaded.modules() if "reclora" in module.__module__} == set()
    assert torch.equal(unloaded(IDS).logits, backbone().eval()(IDS).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r is 0; it must be at least 1"),
        ({"experts": 0}, "experts is 0"),
        ({"user_size": None}, "user_size is None; it must be the width"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be greater than 0"),
        ({"lora_dropout": 1.0}, r"lora_dropout is 1.0; it must be in \[0, 1\)"),
        ({"gate_hidden": -1}, "gate_hidden is -1"),
        ({"routing": "hard"}, "routing is 'hard'; it must be 'soft' or 'top_k'"),
        ({"mixing": "sum"}, "mixing is 'sum'"),
        ({"gate": "none"}, "gate is 'none'"),
        ({"routing": "top_k", "top_k": 5}, "top_k is 5; it must be from 1 to experts=4"),
        ({"slices": True, "r": 6}, "r is 6; it must be a multiple of experts=4"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens is a Embedding. RecLoRA goes beside linear"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ModelError, match=message):
        get_peft_model(backbone(), settings_of(**options))


def test_experts_of_a_mixture_are_refused():
    body = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(4, 4)]), "router": nn.Linear(4, 4)})
    with pytest.raises(ModelError, match=r"experts\.0 is an expert of a mixture.*exclude_modules"):
        get_peft_model(body, settings_of(target_modules="all-linear"))
    model = get_peft_model(body, settings_of(target_modules="all-linear", exclude_modules=".*experts.*"))
    assert len(layers_of(model)) == 1


@pytest.mark.parametrize("mixing", ["weights", "outputs"])
def test_beside_a_base_in_four_bits(mixing, tiny_backbone):
    base, _ = load_backbone(tiny_backbone, dtype="float32", four_bit=True)
    plain = base.eval()(IDS).logits.detach()
    model = stirred(get_peft_model(base, settings_of(mixing=mixing))).train()
    loss = model(IDS, labels=IDS, user_vectors=VECTORS).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".reclora_" in name)
    model.eval()
    together = model(IDS, user_vectors=VECTORS).logits
    assert (together - plain).abs().max() > 1e-3
    alone = model(IDS[[1]], user_vectors=VECTORS[[1]]).logits
    torch.testing.assert_close(together[[1]], alone, rtol=1e-3, atol=1e-4)
    for layer in layers_of(model):
        x = torch.randn(3, 2, layer.in_features)
        with model.users(VECTORS):
            found = layer(x) - layer.base_layer(x)
        torch.testing.assert_close(found, by_hand(layer, x, VECTORS), rtol=1e-3, atol=1e-4)
    merged = model.merge_for(VECTORS[1])
    # The sum is rounded to 4 bits again: nearer to the user's model than to the backbone, no more than that.
    far = (merged(IDS[[1]]).logits - plain[[1]]).norm()
    assert (merged(IDS[[1]]).logits - together[[1]]).norm() < far


@torch.no_grad()
def test_a_half_precision_backbone_has_adapters_in_single():
    model = stirred(get_peft_model(backbone().to(torch.bfloat16), settings_of()))
    assert {p.dtype for n, p in model.named_parameters() if "reclora_" in n} == {torch.float32}
    logits = model(IDS, user_vectors=VECTORS).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), made()(IDS, user_vectors=VECTORS).logits, rtol=0.1, atol=0.1)
