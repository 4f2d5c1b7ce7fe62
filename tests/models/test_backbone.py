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


@pytest.mark.parametrize("tied", [False, True])
def test_a_t5_of_a_gguf_file_is_the_t5_it_was_made_of(tied, tmp_path, monkeypatch):
    import gguf
    import transformers

    monkeypatch.setenv("GENREC_CACHE", str(tmp_path / "cache"))
    words = ["<pad>", "</s>", "<unk>", "\u2581", *(f"\u2581w{n}" for n in range(60))]
    words += [f"<extra_id_{n}>" for n in range(100)]
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(words),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=tied,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    if not tied:  # transformers ties every T5 that is not read from weights that differ
        model.lm_head.weight = torch.nn.Parameter(torch.randn(len(words), 32))
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "t5")
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_key_length(8)
    writer.add_layer_norm_eps(1e-6)
    writer.add_relative_attn_buckets_count(32)
    writer.add_decoder_start_token_id(0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("t5")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([3, 3, 2] + [1] * 61 + [4] * 100)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, 2)
    for name, tensor in model.state_dict().items():
        if "embed_tokens" not in name and not (tied and name == "lm_head.weight"):
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    again, tokenizer = load_backbone(str(tmp_path / "tiny.gguf"), dtype="float32")
    assert is_encoder_decoder(str(tmp_path / "tiny.gguf"))
    assert tokenizer("w1 w2")["input_ids"] == [5, 6, 1]
    ids = torch.tensor([[5, 6, 7, 1]])
    with torch.no_grad():
        expected = model(input_ids=ids, decoder_input_ids=ids).logits
        torch.testing.assert_close(again.eval()(input_ids=ids, decoder_input_ids=ids).logits, expected)
    recommender = RecommenderModel.create(
        again, tokenizer, INDEX, torch.zeros(2, 32), name="tiny.gguf", layers=None
    )
    assert recommender.first_id == len(words)
