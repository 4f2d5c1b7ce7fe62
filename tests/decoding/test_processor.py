import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, LogitsProcessorList

from genrec.core.errors import ModelError
from genrec.decoding.beam import ConstrainedDecoder
from genrec.decoding.processor import TrieLogitsProcessor
from genrec.indexing import ItemIndex, ItemTrie
from genrec.models.backbone import load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.tasks import Renderer

END, PAD = 1, 0
# Ids of the tiny models' tokens; 30 stands at two levels, which a trie may have and an index may not.
TOKENS = [20, 30, 40, 50, 60]
codes_drawn = st.sets(
    st.lists(st.sampled_from(TOKENS), min_size=1, max_size=4).map(tuple), min_size=1, max_size=14
)


def prefix_free(codes):
    return sorted(c for c in codes if not any(c != d and c[: len(d)] == d for d in codes))


def dict_trie(codes):
    """The trie that public code has: a dict in a dict for each token."""
    root = {}
    for code in codes:
        node = root
        for token in code:
            node = node.setdefault(token, {})
    return root


def allowed_by(tries, start):
    """``prefix_allowed_tokens_fn`` over one dict trie a request."""

    def allowed(request, ids):
        node = tries[request]
        for token in ids[start:].tolist():
            node = node.get(token, {})
        return list(node) or [END]

    return allowed


@pytest.fixture(scope="module", params=["causal", "t5"])
def lm(request, tiny_backbone, tiny_t5):
    kind, folder = (
        (AutoModelForCausalLM, tiny_backbone)
        if request.param == "causal"
        else (AutoModelForSeq2SeqLM, tiny_t5)
    )
    return kind.from_pretrained(folder, dtype="float32").eval()


def searched(lm, prompts, beams, tokens, **constraint):
    """Sequences behind the prompt and their scores, ``(prompts, beams, ...)``, of prompts padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    found = lm.generate(
        input_ids=ids,
        attention_mask=mask,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        length_penalty=0.0,
        max_new_tokens=tokens,
        eos_token_id=END,
        pad_token_id=PAD,
        output_scores=beams > 1,
        return_dict_in_generate=True,
        **constraint,
    )
    start = 1 if lm.config.is_encoder_decoder else longest
    scores = found.sequences_scores if beams > 1 else torch.zeros(len(prompts))
    return found.sequences[:, start:], scores


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_it_is_generate_with_a_dict_trie(lm, data):
    codes = prefix_free(data.draw(codes_drawn))
    prompts = data.draw(
        st.lists(st.lists(st.integers(70, 250), min_size=1, max_size=9), min_size=1, max_size=3)
    )
    beams = data.draw(st.integers(1, 7))
    which = st.sets(st.sampled_from(range(len(codes))), min_size=1)
    allowed = [data.draw(st.none() | which) for _ in prompts]
    trie, tokens = ItemTrie(codes), max(map(len, codes)) + 1
    start = 1 if lm.config.is_encoder_decoder else max(map(len, prompts))
    tries = [dict_trie([codes[row] for row in (a or range(len(codes)))]) for a in allowed]
    theirs = searched(lm, prompts, beams, tokens, prefix_allowed_tokens_fn=allowed_by(tries, start))
    for given_start in (None, start):
        processor = TrieLogitsProcessor(
            trie,
            END,
            prompt_length=given_start,
            restrictions=[None if a is None else trie.restrict(a) for a in allowed],
        )
        ours = searched(lm, prompts, beams, tokens, logits_processor=LogitsProcessorList([processor]))
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


UNEQUAL = {
    "a": ("<a_0>",),
    "b": ("<a_1>", "<b_0>"),
    "c": ("<a_1>", "<b_1>"),
    "d": ("<a_2>", "<b_0>", "<c_0>"),
    "e": ("<a_2>", "<b_0>", "<c_1>"),
    "f": ("<a_2>", "<b_2>", "<c_1>"),
}


@pytest.fixture(scope="module", params=["causal", "t5", "whole vocabulary"])
def decoder(request, tiny_backbone, tiny_t5):
    folder = tiny_t5 if request.param == "t5" else tiny_backbone
    index = ItemIndex("mine", UNEQUAL)
    lm, tokenizer = load_backbone(folder, dtype="float32")
    rows = torch.randn(len(index.tokens), 64, generator=torch.Generator().manual_seed(2)) * 0.5
    over = "vocabulary" if request.param == "whole vocabulary" else "level"
    model = RecommenderModel.create(lm, tokenizer, index, rows, name=folder, layers=None, softmax_over=over)
    renderer = Renderer(tokenizer, index, "packed", 20, text_to_text=model.is_encoder_decoder)
    return ConstrainedDecoder(model.eval(), renderer)


def ranked(decoder, lm, histories, out, scores):
    """Items and scores that generate gives on a model, by a convention."""
    model, index = decoder.model, decoder.index
    trie = index.trie(model.token_ids)
    processor = TrieLogitsProcessor(
        trie,
        END,
        scores=scores,
        restrictions=[trie.restrict([n for n, i in enumerate(index.item_ids) if i not in o]) for o in out],
        level_tokens=None
        if model.about["softmax_over"] == "vocabulary"
        else [
            [
                model.token_ids[t]
                for t, at in zip(index.tokens, index.token_levels, strict=True)
                if at == level
            ]
            for level in range(index.num_levels)
        ],
    )
    prompts = [decoder.renderer.prompt_ids(history) for history in histories]
    beams = 12
    found, totals = searched(lm, prompts, beams, 4, logits_processor=LogitsProcessorList([processor]))
    rows = {tuple(model.token_ids[t] for t in code): item for item, code in index.codes.items()}
    lists = [[] for _ in histories]
    for number, (ids, total) in enumerate(zip(found.tolist(), totals.tolist(), strict=True)):
        code = tuple(ids[: ids.index(END)]) if END in ids else tuple(ids)
        if total > -1e8 and code in rows:
            lists[number // beams].append((rows[code], total))
    return lists


@pytest.mark.parametrize("merged", [False, True])
def test_it_gives_the_recommenders_own_ranking(decoder, merged, tmp_path):
    model = decoder.model
    lm = model.backbone
    if merged:
        model.merge_and_save(tmp_path / "plain")
        kind = AutoModelForSeq2SeqLM if model.is_encoder_decoder else AutoModelForCausalLM
        lm = kind.from_pretrained(tmp_path / "plain").eval()
    histories, out = [["a", "d", "c"], ["b"], ["f", "f"]], [{"d"}, {"b", "c"}, set()]
    found = ranked(decoder, lm, histories, out, "trained")
    expected = decoder.rank(histories, 6, out)
    for one, two in zip(found, expected, strict=True):
        assert [item for item, _ in one] == [item for item, _ in two]
        assert [score for _, score in one] == pytest.approx([score for _, score in two], abs=1e-4)


def test_probabilities_among_allowed_tokens_add_up_to_one(decoder):
    out = [{"e"}, set()]
    for ranking in ranked(decoder, decoder.model.backbone, [["a"], []], out, "allowed"):
        assert sum(np.exp(score) for _, score in ranking) == pytest.approx(1, abs=1e-5)


def test_sampling_writes_allowed_items_only(tiny_backbone):
    lm = AutoModelForCausalLM.from_pretrained(tiny_backbone).eval()
    codes = [(20,), (30, 20), (30, 40, 50)]
    trie = ItemTrie(codes)
    torch.manual_seed(0)
    found = lm.generate(
        torch.tensor([[9, 9]] * 40),
        attention_mask=torch.ones(40, 2, dtype=torch.long),
        do_sample=True,
        top_k=0,
        max_new_tokens=4,
        pad_token_id=PAD,
        eos_token_id=END,
        logits_processor=LogitsProcessorList(
            [TrieLogitsProcessor(trie, END, restrictions=[trie.restrict([0, 2])] * 40)]
        ),
    )
    written = {tuple(t for t in row if t not in (PAD, END)) for row in found[:, 2:].tolist()}
    assert written == {codes[0], codes[2]}


def test_a_request_that_allows_nothing_gets_nothing(decoder):
    assert ranked(decoder, decoder.model.backbone, [["a"], ["b"]], [set(UNEQUAL), {"a"}], "trained")[0] == []


def test_wrong_use_is_told(tiny_backbone):
    trie = ItemTrie([(20,), (30, 20)])
    scores, ids = torch.zeros(2, 60), torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ModelError, match="allowed, got 'logits'"):
        TrieLogitsProcessor(trie, END, scores="logits")
    with pytest.raises(ModelError, match="of another trie"):
        TrieLogitsProcessor(trie, END, restrictions=[ItemTrie([(20,)]).restrict([0])])
    with pytest.raises(ModelError, match="has the token 30, the model only the tokens 0 to 24"):
        TrieLogitsProcessor(trie, END)(ids, torch.zeros(2, 25))
    with pytest.raises(ModelError, match="2 sequences for 3 requests"):
        TrieLogitsProcessor(trie, END, restrictions=[trie.restrict([0])] * 3)(ids, scores)
    with pytest.raises(ModelError, match="prompt_length is 4, the sequences have only 3"):
        TrieLogitsProcessor(trie, END, prompt_length=4)(ids, scores)
    used = TrieLogitsProcessor(trie, END)
    used(ids, scores)
    with pytest.raises(ModelError, match="serves one call of generate"):
        used(ids, scores)
    scores[1, 20] = float("nan")
    with pytest.raises(ModelError, match="gives NaN"):
        TrieLogitsProcessor(trie, END)(ids, scores)
