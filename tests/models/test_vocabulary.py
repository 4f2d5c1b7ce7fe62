import numpy as np
import pytest
import torch

from genrec.core.errors import ModelError
from genrec.data_prep import leave_one_out
from genrec.indexing import IndexSettings, build_index
from genrec.models.backbone import load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.models.vocabulary import extend_vocabulary, initial_rows, new_rows


@pytest.fixture(params=["tied", "untied", "encoder-decoder"])
def backbone(request, tiny_backbone, untied_backbone, tiny_t5):
    return {"tied": tiny_backbone, "untied": untied_backbone, "encoder-decoder": tiny_t5}[request.param]


def answers(backbone, ids):
    """What an encoder-decoder's decoder reads, beside its prompt."""
    return {"decoder_input_ids": ids} if backbone.config.is_encoder_decoder else {}


def test_the_extended_model_is_the_resized_model(backbone):
    """Logits equal those of transformers' own resize with the same rows."""
    tokens = ["<a_0>", "<a_1>", "<b_0>"]
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    ours, tokenizer = load_backbone(backbone, dtype="float32")
    old = len(tokenizer)
    extend_vocabulary(ours, tokenizer, tokens, rows)
    theirs, _ = load_backbone(backbone, dtype="float32")
    theirs.resize_token_embeddings(old + 3, mean_resizing=False)
    with torch.no_grad():
        theirs.get_input_embeddings().weight[old:] = rows
        theirs.get_output_embeddings().weight[old:] = rows
    ids = torch.tensor([tokenizer("<a_1>red lamp<b_0><a_0>")["input_ids"]])
    assert (ids >= old).sum() == 3
    inputs = {"input_ids": ids} | answers(ours, torch.tensor([[0, old + 1, old + 2]]))
    torch.testing.assert_close(ours.eval()(**inputs).logits, theirs.eval()(**inputs).logits)
    assert ours.config.vocab_size == old + 3


def test_rows_are_scaled_as_the_embedding_scales_its_own(tiny_backbone, tmp_path):
    """Gemma multiplies what it looks up by the square root of its width."""
    transformers = pytest.importorskip("transformers")
    _, tokenizer = load_backbone(tiny_backbone)
    config = transformers.Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    model = transformers.Gemma3ForCausalLM(config).eval()
    rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    embedding = model.get_input_embeddings()
    expected = torch.cat([embedding(torch.tensor([5])), rows * 16**0.5])
    extend_vocabulary(model, tokenizer, ["<a_0>", "<a_1>"], rows)
    first = len(tokenizer) - 2
    found = model.get_input_embeddings()(torch.tensor([5, first, first + 1]))
    torch.testing.assert_close(found, expected)


def test_a_known_token_is_refused(tiny_backbone):
    model, tokenizer = load_backbone(tiny_backbone, dtype="float32")
    with pytest.raises(ModelError, match="'lamp' already|already, first"):
        extend_vocabulary(model, tokenizer, ["<s>"], torch.zeros(1, 64))


@pytest.mark.parametrize(("kind", "width"), [("random", 0), ("mean", 0), ("text", 0), ("text+teacher", 6)])
def test_rows_start_finite_and_apart(kind, width, tiny_backbone, log, items):
    model, tokenizer = load_backbone(tiny_backbone, dtype="float32")
    split = leave_one_out(log)
    index = build_index("independent", items, split.train)
    vectors = np.random.default_rng(0).normal(size=(24, width)) if width else None
    rows = initial_rows(model, tokenizer, index, items, kind, vectors, 0)
    assert rows.shape == (24, 64)
    assert rows.isfinite().all()
    assert len(rows.unique(dim=0)) > 20


def test_a_token_starts_as_the_mean_of_its_items(tiny_backbone, log, items):
    model, tokenizer = load_backbone(tiny_backbone, dtype="float32")
    split = leave_one_out(log)
    index = build_index("random", items, split.train, IndexSettings(levels=2, codebook_size=8))
    rows = initial_rows(model, tokenizer, index, items, "text", None, 0)
    token = index.tokens[3]
    weight = model.get_input_embeddings().weight
    means = [
        weight[tokenizer(items.title(item))["input_ids"]].mean(0)
        for item, code in index.codes.items()
        if token in code
    ]
    torch.testing.assert_close(rows[3], torch.stack(means).mean(0))


def model_for(backbone, log, items, adapter="lora"):
    split = leave_one_out(log)
    index = build_index("random", items, split.train, IndexSettings(levels=2, codebook_size=8))
    lm, tokenizer = load_backbone(backbone, dtype="float32")
    rows = initial_rows(lm, tokenizer, index, items, "text", None, 0)
    model = RecommenderModel.create(
        lm, tokenizer, index, rows, name=backbone, layers=None, adapter=adapter, lora_r=4
    )
    return model, index


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_saved_and_loaded_it_scores_the_same(backbone, adapter, log, items, tmp_path):
    model, index = model_for(backbone, log, items, adapter)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save(tmp_path / "model")
    again = RecommenderModel.load(tmp_path / "model", index)
    ids = torch.arange(1, 30)[None] % model.backbone.config.vocab_size
    ids[0, 3] = model.first_id
    model.eval()
    for one, two in zip(model.trained_state().values(), again.trained_state().values(), strict=True):
        assert torch.equal(one, two)
    inputs = {"input_ids": ids} | answers(model.backbone, ids)
    with torch.no_grad():
        assert torch.equal(model.backbone(**inputs).logits, again.backbone(**inputs).logits)


def test_an_adapter_holds_no_frozen_weight(backbone, log, items, tmp_path):
    model, index = model_for(backbone, log, items)
    model.save(tmp_path / "model")
    saved = sum(f.stat().st_size for f in (tmp_path / "model").glob("*.safetensors"))
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert saved < trained + 20_000
    assert all(len(rows) == len(index.tokens) for rows in new_rows(model.backbone).values())


def test_old_rows_are_bit_identical_after_a_step(backbone, log, items):
    model, _ = model_for(backbone, log, items)
    before = model.backbone.get_input_embeddings().base.weight.clone()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ids = torch.tensor([[0, model.first_id, 5, model.first_id + 9]])
    model(ids, torch.ones_like(ids), ids, **answers(model.backbone, ids))["loss"].backward()
    optimizer.step()
    assert torch.equal(model.backbone.get_input_embeddings().base.weight, before)
    assert all(row.grad.abs().sum() > 0 for row in new_rows(model.backbone).values())


def test_the_loss_is_cross_entropy_over_the_level_and_over_all_words_for_text(backbone, log, items):
    model, _ = model_for(backbone, log, items)
    model.eval()
    first, level = model.first_id, model.token_level
    a, b = first + int((level == 0).nonzero()[2]), first + int((level == 1).nonzero()[1])
    ids = torch.tensor([[0, a, b, 7, 9], [0, 8, a, 0, 0]])
    labels = torch.tensor([[-100, a, b, 7, -100], [-100, -100, a, -100, -100]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = answers(model.backbone, ids)
    logits = model.backbone(input_ids=ids, attention_mask=mask, **inputs).logits
    expected = []
    for row, position in ((0, 1), (0, 2), (0, 3), (1, 2)):
        scores, target = logits[row, position - 1], int(labels[row, position])
        if target >= first:
            same = first + (level == level[target - first]).nonzero().flatten()
            expected.append(scores[same].logsumexp(0) - scores[target])
        else:
            expected.append(scores.logsumexp(0) - scores[target])
    loss = model(ids, mask, labels, **inputs)["loss"]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    torch.testing.assert_close(model(ids, mask, labels, num_items_in_batch=8, **inputs)["loss"], loss / 2)


def test_another_index_is_refused(tiny_backbone, log, items, tmp_path):
    model, _ = model_for(tiny_backbone, log, items)
    model.save(tmp_path / "model")
    other = build_index("independent", items, {})
    from genrec.core.errors import RunError

    with pytest.raises(RunError, match="trained with the index"):
        RecommenderModel.load(tmp_path / "model", other)


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder", "/no/such.gguf"])
def test_an_unreadable_model_is_named(name):
    with pytest.raises(ModelError, match=r"Could not read the language model|does not exist"):
        load_backbone(name)


def test_too_many_layers_are_refused(tiny_backbone):
    with pytest.raises(ModelError, match="has 2 layers"):
        load_backbone(tiny_backbone, layers=3)
    model, _ = load_backbone(tiny_backbone, layers=1)
    assert len(model.model.layers) == 1
