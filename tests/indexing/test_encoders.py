import numpy as np
import pytest

from genrec.core.errors import IndexingError
from genrec.data_prep import ItemCatalog
from genrec.indexing import IndexInputs, IndexSettings, encoders
from genrec.indexing.encoders import encode, new_text_vectors, text_vectors
from genrec.indexing.vectors import item_vectors, new_item_vectors

TITLES = ["red lamp", "blue lamp", "red radio", "quiet radio", "!", "blue chair"]


def catalog(titles=TITLES):
    return ItemCatalog.from_titles({str(n): title for n, title in enumerate(titles)})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path))
    return tmp_path / "vectors"


def test_words_of_new_texts_are_folded_into_the_old_space():
    settings = IndexSettings(text_encoder="words", vector_size=5)
    vectors, state = text_vectors(catalog(), settings)
    np.testing.assert_allclose(new_text_vectors(catalog(), settings, state), vectors, atol=1e-5)
    assert not vectors[4].any()
    assert not new_text_vectors(catalog(["unheard"]), settings, state).any()


def test_a_text_is_encoded_once_and_kept_by_its_content(cache, monkeypatch):
    asked = []

    def load(encoder):
        def vectors_of(texts):
            asked.append((encoder, list(texts)))
            if "cut" in texts:
                raise KeyboardInterrupt
            return np.array([[len(text), 1.0] for text in texts], np.float32)

        return vectors_of

    monkeypatch.setattr(encoders, "_sentence_encoder", load)
    monkeypatch.setattr(encoders, "TEXTS_AT_ONCE", 2)
    assert encode(["aa", "b", "aa"], "some/encoder").tolist() == [[2, 1], [1, 1], [2, 1]]
    assert encode(["aa", "b", "ccc"], "some/encoder").tolist() == [[2, 1], [1, 1], [3, 1]]
    encode(["aa"], "another/encoder")
    assert asked == [("some/encoder", ["aa", "b"]), ("some/encoder", ["ccc"]), ("another/encoder", ["aa"])]
    with pytest.raises(KeyboardInterrupt):
        encode(["x", "y", "cut"], "some/encoder")
    encode(["x", "y", "z"], "some/encoder")
    assert asked[-2:] == [("some/encoder", ["cut"]), ("some/encoder", ["z"])]


def test_a_language_models_states_are_averaged_over_a_texts_tokens(cache, tiny_backbone):
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["red lamp", "", "a much longer text about a quiet radio"]
    found = encode(texts, f"lm:{tiny_backbone}")
    model, tokenizer = AutoModel.from_pretrained(tiny_backbone), AutoTokenizer.from_pretrained(tiny_backbone)
    for row in (0, 2):
        with torch.no_grad():
            states = model(**tokenizer(texts[row], return_tensors="pt")).last_hidden_state[0]
        np.testing.assert_allclose(found[row], states.mean(0).numpy(), atol=1e-5)
    assert not found[1].any()


def test_an_encoder_out_of_reach_says_what_could_be_given(cache):
    with pytest.raises(IndexingError, match="cannot be loaded .*Give minilm, words, a folder"):
        encode(["a"], "nobody/nothing")
    with pytest.raises(IndexingError, match=r"'lm:nobody/nothing' cannot be loaded .*\.gguf"):
        encode(["a"], "lm:nobody/nothing")


@pytest.mark.model
def test_the_packaged_sentence_encoder_knows_what_texts_mean():
    texts = ["shampoo for dry hair", "hair conditioner", "an electric guitar"]
    vectors = encode(texts, "minilm")
    assert vectors.shape == (3, 384)
    near = vectors @ vectors.T
    assert near[0, 1] > near[0, 2] + 0.2
    np.testing.assert_allclose(np.diag(near), 1, atol=1e-5)


def pairs():
    """Items whose title says who takes them."""
    titles = ["red lamp", "red chair", "red radio", "blue lamp", "blue chair", "blue radio", "green sofa"]
    train = {f"u{n}": [str(3 * (n % 2) + m) for m in range(3)] for n in range(20)}
    return IndexInputs(catalog(titles), train, IndexSettings(text_encoder="words", vector_size=4))


def test_both_kinds_of_vectors_stand_side_by_side_with_one_scale():
    inputs = pairs()
    vectors, state = item_vectors(inputs)
    assert vectors.shape == (7, 8)
    np.testing.assert_allclose((vectors[:, :4] ** 2).sum(1).mean(), 1, rtol=1e-6)
    np.testing.assert_allclose((vectors[:, 4:] ** 2).sum(1).mean(), 1, rtol=1e-6)
    assert vectors.dtype == np.float32
    assert not vectors[6, :4].any()
    new = new_item_vectors(inputs.items, inputs.settings, state)
    np.testing.assert_allclose(new[:, 4:], vectors[:, 4:], atol=1e-5)
    assert not new[:, :4].any()


def test_aligned_vectors_of_a_text_lie_by_the_item_that_has_both_kinds():
    pytest.importorskip("torch")
    inputs = pairs()
    settings = inputs.settings.model_copy(update={"fusion": "aligned"})
    inputs = IndexInputs(inputs.items, inputs.train, settings)
    vectors, state = item_vectors(inputs)
    assert vectors.shape == (7, 4)
    new = new_item_vectors(inputs.items, settings, state)
    near = new[:6] @ vectors[:6].T
    assert (near.argmax(1) // 3 == np.arange(6) // 3).all()
    np.testing.assert_allclose(new[6], vectors[6], atol=1e-5)
