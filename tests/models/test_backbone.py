import pytest
import torch

from genrec.core.errors import ModelError
from genrec.indexing import ItemIndex
from genrec.models.backbone import is_encoder_decoder, load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.models.settings import NewModelSettings

INDEX = ItemIndex("mine", {"a": ("<a_0>",), "b": ("<a_1>",)})
TIGER = NewModelSettings(kind="encoder_decoder", heads=6, head_size=64, feed_forward=1024)


def test_a_kind_is_told_by_the_config(tiny_backbone, tiny_t5):
    assert not is_encoder_decoder(tiny_backbone)
    assert is_encoder_decoder(tiny_t5)
    assert not is_encoder_decoder("new")
    assert is_encoder_decoder("new", TIGER)
    with pytest.raises(ModelError, match="Could not read the language model"):
        is_encoder_decoder("no/such-model")


def test_encoder_and_decoder_keep_as_many_layers(tiny_t5):
    model, _ = load_backbone(tiny_t5, layers=1)
    assert len(model.get_encoder().block) == len(model.get_decoder().block) == 1
    with pytest.raises(ModelError, match=r"model\.layers=3 is not possible"):
        load_backbone(tiny_t5, layers=3)


def test_a_new_encoder_decoder_has_tigers_shape():
    model, tokenizer = load_backbone("new", new=TIGER)
    attention = model.get_decoder().block[3].layer[0].SelfAttention
    assert (attention.q.in_features, attention.q.out_features, attention.n_heads) == (128, 384, 6)
    assert model.get_encoder().block[3].layer[1].DenseReluDense.wi.out_features == 1024
    assert model.config.decoder_start_token_id == tokenizer.bos_token_id
    again, _ = load_backbone("new", new=TIGER)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match=r"head_size=64 needs model\.new\.kind=encoder_decoder"):
        load_backbone("new", new=NewModelSettings(head_size=64))
    with pytest.raises(ModelError, match="is no multiple of"):
        load_backbone("new", new=NewModelSettings(kind="encoder_decoder", heads=6))


@pytest.mark.parametrize("scaled", [True, False])
def test_states_are_scaled_as_the_model_scales_them(scaled, tiny_t5):
    """Flan-T5 and T5 differ in whether the decoder's states are scaled before the output layer."""
    backbone, tokenizer = load_backbone(tiny_t5)
    backbone.config.scale_decoder_outputs = scaled
    model = RecommenderModel.create(
        backbone, tokenizer, INDEX, torch.zeros(2, 64), name=tiny_t5, layers=None, adapter="full"
    ).eval()
    ids, start = torch.tensor([[5, 6, 7]]), torch.tensor([[model.decoder_start, 9]])
    with torch.no_grad():
        states = model.states(ids, torch.ones_like(ids), start)
        logits = model.backbone(input_ids=ids, decoder_input_ids=start).logits
        torch.testing.assert_close(model.backbone.get_output_embeddings()(states), logits)


def test_an_encoder_decoder_that_changes_its_logits_is_refused(tiny_t5, monkeypatch):
    backbone, tokenizer = load_backbone(tiny_t5)
    plain = backbone.forward

    def capped(**inputs):
        output = plain(**inputs)
        output.logits = 30 * torch.tanh(output.logits / 30) + 1
        return output

    monkeypatch.setattr(backbone, "forward", capped)
    with pytest.raises(
        ModelError, match="T5ForConditionalGeneration changes its states before the output layer or its"
    ):
        RecommenderModel.create(backbone, tokenizer, INDEX, torch.zeros(2, 64), name=tiny_t5, layers=None)
