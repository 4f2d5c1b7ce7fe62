import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genrec.core.errors import UnknownItemError
from genrec.decoding.beam import ConstrainedDecoder
from genrec.indexing import ItemIndex
from genrec.models.backbone import load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.tasks import Renderer

UNEQUAL = {
    "a": ("<a_0>",),
    "b": ("<a_1>", "<b_0>"),
    "c": ("<a_1>", "<b_1>"),
    "d": ("<a_2>", "<b_0>", "<c_0>"),
    "e": ("<a_2>", "<b_0>", "<c_1>"),
    "f": ("<a_2>", "<b_2>", "<c_1>"),
    "g": ("<a_3>", "<b_1>"),
}
EQUAL = {f"i{n}": (f"<a_{n % 5}>", f"<b_{n // 5}>") for n in range(13)}
FLAT = {f"i{n}": (f"<a_{n}>",) for n in range(9)}


def decoder_for(backbone, codes, form="packed", shared=False, whole_words=False):
    index = ItemIndex("mine", codes, shared=shared)
    lm, tokenizer = load_backbone(backbone, dtype="float32")
    rows = torch.randn(len(index.tokens), 64, generator=torch.Generator().manual_seed(2)) * 0.5
    model = RecommenderModel.create(
        lm, tokenizer, index, rows, name=backbone, layers=None, whole_words=whole_words
    )
    if whole_words:
        with torch.no_grad():
            model.whole_words.normal_(generator=torch.Generator().manual_seed(3))
    return ConstrainedDecoder(
        model.eval(), Renderer(tokenizer, index, form, 20, text_to_text=model.is_encoder_decoder)
    )


# codes, form, and whether an encoder-decoder reads them, told of whole words
KINDS = {
    "unequal": (UNEQUAL, "packed", False, False),
    "equal": (EQUAL, "packed", False, False),
    "flat": (FLAT, "packed", False, False),
    "prompt": (EQUAL, "prompt", False, False),
    "t5 unequal": (UNEQUAL, "windows", True, False),
    "t5 prompt": (EQUAL, "prompt", True, True),
}


@pytest.fixture(scope="module", params=KINDS)
def decoder(request, tiny_backbone, tiny_t5):
    codes, form, t5, whole_words = KINDS[request.param]
    return decoder_for(tiny_t5 if t5 else tiny_backbone, codes, form, whole_words=whole_words)


def last_state(decoder, prompt, code):
    """What the next token is predicted from, of one row without padding or cache."""
    model = decoder.model
    if not model.is_encoder_decoder:
        ids = torch.tensor([[*prompt, *code]])
        return model.states(ids, torch.ones_like(ids))[0, -1]
    # T5's own forward, whose output layer's input is read.
    seen = {}
    head = model.backbone.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.update(state=inputs[0]))
    vectors = model.backbone.get_input_embeddings()(torch.tensor([prompt]))
    if model.whole_words is not None:
        vectors = vectors + model.whole_words[torch.tensor([decoder.renderer.whole_word_ids(prompt)])]
    model.backbone(inputs_embeds=vectors, decoder_input_ids=torch.tensor([[model.decoder_start, *code]]))
    hook.remove()
    return seen["state"][0, -1]


@torch.no_grad()
def brute_force(decoder, history, out):
    """Every allowed item's score, each by a forward pass of its own over prompt and code."""
    scores, codes = {}, decoder.index.codes
    for item, code in codes.items():
        if item in out:
            continue
        prompt = decoder.renderer.prompt_ids(history)
        total, written = 0.0, []
        for level, token in enumerate(code):
            hidden = last_state(decoder, prompt, written)
            tokens = decoder.index.tokens
            column = tokens.index(token)
            below = [{i for i, c in codes.items() if c[: level + 1] == (*code[:level], t)} for t in tokens]
            gone = torch.tensor([bool(items) and items <= out for items in below])
            total += float(decoder.model.level_log_probs(hidden, level, gone)[column])
            written.append(decoder.model.first_id + column)
        scores[item] = total
    return scores


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_with_wide_beams_it_is_exhaustive_scoring(decoder, data):
    ids = decoder.item_ids
    histories = data.draw(st.lists(st.lists(st.sampled_from(ids), max_size=6), min_size=1, max_size=4))
    exclude = [data.draw(st.sets(st.sampled_from(ids))) for _ in histories]
    k = data.draw(st.integers(1, len(ids) + 2))
    found = decoder.rank(histories, k, exclude, beams=50)
    for history, out, ranking in zip(histories, exclude, found, strict=True):
        expected = brute_force(decoder, history, out)
        best = sorted(expected.values(), reverse=True)[:k]
        assert [s for _, s in ranking] == pytest.approx(best, abs=1e-4)
        assert all(s == pytest.approx(expected[item], abs=1e-4) for item, s in ranking)
        assert len({item for item, _ in ranking}) == min(k, len(expected))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_narrow_beams_still_give_k_allowed_items(decoder, data):
    ids = decoder.item_ids
    out = data.draw(st.sets(st.sampled_from(ids)))
    k = data.draw(st.integers(1, len(ids)))
    # rank widens to 20 by itself; k beams are the narrowest it may be asked for.
    (ranking,) = decoder.rank([ids[:2]], k, [out], beams=k)
    names = [item for item, _ in ranking]
    assert len(set(names)) == len(names) == min(k, len(ids) - len(out))
    assert not set(names) & out
    assert [s for _, s in ranking] == sorted((s for _, s in ranking), reverse=True)


def test_a_user_gets_the_same_alone_and_in_a_batch(decoder):
    ids = decoder.item_ids
    histories = [ids[:1], ids[1:6], [], ids[2:4] * 3]
    together = decoder.rank(histories, 5)
    in_batches = decoder.rank_all(histories, 5, batch_size=2)
    for history, one, two in zip(histories, together, in_batches, strict=True):
        (alone,) = decoder.rank([history], 5)
        assert [i for i, _ in alone] == [i for i, _ in one] == [i for i, _ in two]
        assert [s for _, s in alone] == pytest.approx([s for _, s in one], abs=1e-4)


def test_equal_scores_go_by_token(tiny_backbone):
    decoder = decoder_for(tiny_backbone, FLAT)
    with torch.no_grad():
        for row in decoder.model.row_parameters():
            row.zero_()
    (ranking,) = decoder.rank([["i3"]], 9)
    assert [item for item, _ in ranking] == decoder.item_ids


def test_items_that_share_a_code_all_come_with_its_score(tiny_backbone):
    codes = {
        "a": ("<a_0>", "<b_0>"),
        "b": ("<a_1>", "<b_0>"),
        "c": ("<a_0>", "<b_0>"),
        "d": ("<a_1>", "<b_1>"),
    }
    decoder = decoder_for(tiny_backbone, codes | {"e": ("<a_0>", "<b_0>")}, shared=True)
    (ranking,) = decoder.rank([["b"]], 5)
    scores = dict(ranking)
    assert scores["a"] == scores["c"] == scores["e"]
    assert [item for item, _ in ranking if item in "ace"] == ["a", "c", "e"]
    (ranking,) = decoder.rank([["b"]], 5, [{"c", "d"}])
    assert {item for item, _ in ranking} == {"a", "b", "e"}
    (ranking,) = decoder.rank([["b"]], 5, [{"a", "c", "e"}])
    assert {item for item, _ in ranking} == {"b", "d"}


def test_unknown_items_and_no_histories(decoder):
    assert decoder.rank([], 3) == []
    with pytest.raises(UnknownItemError):
        decoder.rank([["nope"]], 3)
    with pytest.raises(UnknownItemError):
        decoder.rank([decoder.item_ids[:1]], 3, [["nope"]])
