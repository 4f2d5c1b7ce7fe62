from itertools import cycle, islice

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, LogitsProcessorList

from genrec.core import processes
from genrec.core.errors import ModelError, UnknownItemError
from genrec.decoding import beam as beam_module
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


def decoder_for(backbone, codes, form="packed", shared=False, whole_words=False, dtype="float32"):
    index = ItemIndex("mine", codes, shared=shared)
    lm, tokenizer = load_backbone(backbone, dtype=dtype)
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


class DictTrie(LogitsProcessor):
    """The constraint in plain Python, for transformers' generate: a dict of prefixes, looked up beam by beam.

    A complete code is ended by the end token, which costs nothing.
    """

    def __init__(self, decoder, prompt_length, end, convention):
        model, index = decoder.model, decoder.index
        self.prompt_length, self.end, self.convention = prompt_length, end, convention
        self.children, self.levels = {}, index.token_levels
        self.first = model.first_id
        for code in index.codes.values():
            ids = [self.first + index.tokens.index(token) for token in code]
            for depth, token in enumerate(ids):
                self.children.setdefault(tuple(ids[:depth]), set()).add(token)
            self.children[tuple(ids)] = {end}

    def __call__(self, input_ids, scores):
        found = torch.full_like(scores, float("-inf"))
        for beam, written in enumerate(input_ids[:, self.prompt_length :].tolist()):
            allowed = sorted(self.children.get(tuple(written), ()))
            if not allowed:
                continue
            if allowed == [self.end]:
                found[beam, self.end] = 0.0
                continue
            among = {
                "vocabulary": list(range(scores.shape[1])),
                "allowed": allowed,
                "trained": [self.first + t for t, level in enumerate(self.levels) if level == len(written)],
            }[self.convention]
            found[beam, allowed] = scores[beam, allowed] - scores[beam, among].logsumexp(0)
        return found


@torch.no_grad()
def generated(decoder, histories, width, convention):
    """What transformers' beam search returns: for each history {item: score}."""
    model, tokenizer = decoder.model, decoder.model.tokenizer
    prompts = [decoder.renderer.prompt_ids(history) for history in histories]
    side = "right" if model.is_encoder_decoder else "left"
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(prompt) for prompt in prompts], batch_first=True, padding_side=side
    )
    mask = torch.nn.utils.rnn.pad_sequence(
        [torch.ones(len(prompt), dtype=torch.long) for prompt in prompts],
        batch_first=True,
        padding_side=side,
    )
    read, end = (1 if model.is_encoder_decoder else ids.shape[1]), tokenizer.eos_token_id
    output = model.backbone.generate(
        input_ids=ids,
        attention_mask=mask,
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=decoder.depth + 1,
        do_sample=False,
        length_penalty=0.0,
        early_stopping=False,
        eos_token_id=end,
        pad_token_id=end,
        logits_processor=LogitsProcessorList([DictTrie(decoder, read, end, convention)]),
        return_dict_in_generate=True,
        output_scores=True,
    )
    items = {code: item for item, code in decoder.index.codes.items()}
    found = [[] for _ in histories]
    for row, (written, score) in enumerate(
        zip(output.sequences[:, read:].tolist(), output.sequences_scores.tolist(), strict=True)
    ):
        if score > -1e8:
            code = tuple(decoder.index.tokens[t - model.first_id] for t in written if t != end)
            found[row // width].append((items[code], score))
    return found


@st.composite
def tries(draw):
    """Codes of unequal lengths over few tokens, none of which begins another."""
    few = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
    codes = draw(st.lists(few, min_size=2, max_size=14, unique=True))
    kept = [a for a in codes if not any(a != b and b[: len(a)] == a for b in codes)]
    return {
        f"i{n}": tuple(f"<{'abcd'[level]}_{t}>" for level, t in enumerate(code))
        for n, code in enumerate(kept)
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
@pytest.mark.parametrize("kind", ["causal", "t5"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_it_is_transformers_beam_search(tiny_backbone, tiny_t5, kind, dtype, tolerance, data):
    codes = data.draw(tries())
    backbone, form = (tiny_t5, "windows") if kind == "t5" else (tiny_backbone, "packed")
    decoder = decoder_for(backbone, codes, form, dtype=dtype)
    ids = decoder.item_ids
    histories = data.draw(st.lists(st.lists(st.sampled_from(ids), max_size=5), min_size=1, max_size=4))
    width = data.draw(st.integers(2, 8))
    convention = data.draw(st.sampled_from(["trained", "vocabulary", "allowed"]))
    # As many beams as asked for: fewer than 20 are not given to anyone.
    wanted = beam_module._Filter.of(decoder, len(histories), None, None)
    read = decoder._read([decoder.renderer.prompt_ids(history) for history in histories])
    found = decoder._search(read, wanted, width, width, convention, None)
    names = {node: ids[item] for node, item in enumerate(decoder.index.trie_of_tokens.node_item) if item >= 0}
    for ours, theirs in zip(found, generated(decoder, histories, width, convention), strict=True):
        ours, theirs = {names[node]: score for node, score in ours}, dict(theirs)
        close = sorted(theirs.values(), reverse=True)
        assert sorted(ours.values(), reverse=True) == pytest.approx(close, abs=tolerance)
        if dtype == "float32":
            gaps = np.diff(sorted(close))
            assume(not len(gaps) or gaps.min() > 1e-4)
            assert ours == pytest.approx(theirs, abs=tolerance)
            assert list(ours) == list(theirs)
        else:  # rounding may exchange items of nearly equal scores
            for item in ours.keys() & theirs.keys():
                assert ours[item] == pytest.approx(theirs[item], abs=tolerance)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_exact_search_finds_what_scoring_every_item_finds(decoder, data):
    ids = decoder.item_ids
    history = data.draw(st.lists(st.sampled_from(ids), max_size=6))
    out = data.draw(st.sets(st.sampled_from(ids)))
    k = data.draw(st.integers(1, len(ids)))
    (found,) = decoder.rank_exact([history], k, [out])
    expected = brute_force(decoder, history, out)
    assert [s for _, s in found.ranking] == pytest.approx(
        sorted(expected.values(), reverse=True)[:k], abs=1e-4
    )
    assert all(s == pytest.approx(expected[item], abs=1e-4) for item, s in found.ranking)
    if len(found.ranking) == k:
        assert found.best_unopened <= found.ranking[-1][1]
    else:
        assert found.best_unopened == float("-inf")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_given_items_get_the_scores_of_exact_search(decoder, data):
    ids = decoder.item_ids
    histories = data.draw(st.lists(st.lists(st.sampled_from(ids), max_size=6), min_size=1, max_size=3))
    exclude = [data.draw(st.sets(st.sampled_from(ids))) for _ in histories]
    allow = [data.draw(st.none() | st.sets(st.sampled_from(ids), min_size=1)) for _ in histories]
    items = [data.draw(st.lists(st.sampled_from(ids), max_size=9)) for _ in histories]
    convention = data.draw(st.sampled_from(["trained", "vocabulary", "allowed"]))
    found = decoder.score(histories, items, exclude, allow=allow, scores=convention)
    exact = decoder.rank_exact(histories, len(ids), exclude, allow=allow, scores=convention)
    for asked, scores, each in zip(items, found, exact, strict=True):
        expected = dict(each.ranking)
        assert scores == pytest.approx([expected.get(item, float("-inf")) for item in asked], abs=1e-4)


def test_more_items_are_scored_than_are_read_at_once(decoder, monkeypatch):
    whole = decoder.score([decoder.item_ids[:2]], [decoder.item_ids])
    monkeypatch.setattr(beam_module, "AT_ONCE", 2)
    assert decoder.score([decoder.item_ids[:2]], [decoder.item_ids])[0] == pytest.approx(whole[0], abs=1e-4)
    assert decoder.score([], []) == []
    with pytest.raises(UnknownItemError, match="'nothing' is not in the index"):
        decoder.score([[]], [["nothing"]])


def test_exact_search_finds_what_narrow_beams_miss(tiny_backbone):
    """The best item lies below the worst first token."""
    codes = {f"a{n}": (f"<a_{n}>", "<b_0>") for n in range(30)}
    codes |= {f"b{n}": ("<a_30>", f"<b_{n}>") for n in range(2)}
    decoder = decoder_for(tiny_backbone, codes)
    scores = brute_force(decoder, ["a1"], set())
    best = max(scores, key=scores.get)
    first = {code[0]: item for item, code in codes.items()}
    # All first tokens above that of the best item, and no other: one beam per item that is worse, with 25 of them.
    (found,) = decoder.rank_exact([["a1"]], 1)
    assert found.ranking[0][0] == best
    assert found.opened <= len(first) + 1
    missed = decoder.missed_by_beams([["a1"], ["a2"], ["b1"]], 1, widths=(1, 20, 40), label="")
    assert missed["missed@40"] == 0.0 <= missed["missed@1"]
    assert missed["users"] == 3


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_allow_list_is_the_exclusion_of_all_else(decoder, data):
    ids = decoder.item_ids
    allow = data.draw(st.lists(st.none() | st.sets(st.sampled_from(ids)), min_size=3, max_size=3))
    out = [data.draw(st.sets(st.sampled_from(ids), max_size=3)) for _ in allow]
    histories = [ids[:2], [], ids[1:4]]
    found = decoder.rank(histories, 5, out, allow=allow)
    others = [set(ids) - (set(ids) if a is None else a) | o for a, o in zip(allow, out, strict=True)]
    for one, two, other in zip(found, decoder.rank(histories, 5, others), others, strict=True):
        assert [item for item, _ in one] == [item for item, _ in two]
        assert [s for _, s in one] == pytest.approx([s for _, s in two], abs=1e-5)
        assert len(one) == min(5, len(ids) - len(other))


def rows_read(decoder):
    """Shapes of what the model's body reads from now on."""
    shapes = []

    def note(_, inputs, given):
        ids = given.get("input_ids")
        shapes.append(tuple((inputs[0] if ids is None else ids).shape))

    decoder.model.backbone.base_model.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def test_beams_share_the_row_of_their_prompt(tiny_backbone):
    decoder = decoder_for(tiny_backbone, EQUAL)
    histories = [["i1", "i2"], ["i3"], ["i1"]]
    decoder.rank(histories, 3)  # tries once whether the model can
    shapes = rows_read(decoder)
    decoder.rank(histories, 3)
    assert shapes == [(3, 5), (3, 5)]  # three prompts of at most two items; then five first tokens of each


def test_what_users_have_in_common_is_read_once(tiny_backbone):
    decoder = decoder_for(tiny_backbone, EQUAL, "prompt")
    histories = [["i1", "i2"], ["i3", "i4"], ["i1", "i2"]]
    prompts = [decoder.renderer.prompt_ids(history) for history in histories]
    same = next(n for n, (a, b) in enumerate(zip(*prompts[:2], strict=True)) if a != b)
    assert same >= 16
    alone = [decoder.rank([history], 5)[0] for history in histories]
    shapes = rows_read(decoder)
    together = decoder.rank(histories, 5)
    # The third asks what the first does, and is answered with it.
    assert shapes[:2] == [(1, same), (2, len(prompts[0]) - same)]
    assert together[0] == together[2]
    for one, two in zip(alone, together, strict=True):
        assert [item for item, _ in one] == [item for item, _ in two]
        assert [s for _, s in one] == pytest.approx([s for _, s in two], abs=1e-4)
    different = decoder.rank(histories, 5, [[], [], ["i1"]])
    assert "i1" not in dict(different[2])


def test_a_row_that_is_finished_leaves_the_batch(tiny_backbone):
    codes = {"a": ("<a_0>",)} | {f"b{n}": ("<a_1>", f"<b_{n}>", f"<c_{n}>") for n in range(6)}
    decoder = decoder_for(tiny_backbone, codes)
    decoder.rank([["a"], ["b1"]], 1)
    shapes = rows_read(decoder)
    found = decoder.rank([["a"], ["b1"]], 1, [[], ["a"]], allow=[["a"], None])
    assert found[0][0][0] == "a"
    assert [shape[0] for shape in shapes] == [2, 1, 1]


def test_a_thousand_items_are_wanted(tiny_backbone):
    codes = {f"i{n}": (f"<a_{n % 40}>", f"<b_{n // 40}>") for n in range(1500)}
    decoder = decoder_for(tiny_backbone, codes)
    (found,) = decoder.rank([["i7"]], 1000, [["i7", "i8"]])
    assert len({item for item, _ in found}) == 1000
    assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)


def test_any_number_of_users_is_streamed(decoder):
    ids = decoder.item_ids
    histories = [ids[:1], ids[1:6], [], ids[2:4] * 3]
    endless = decoder.stream(cycle(histories), 3, cycle([{ids[0]}, set()]), batch_size=2)
    expected = decoder.rank_all(histories, 3, [{ids[0]}, set(), {ids[0]}, set()], label="")
    for one, two in zip(list(islice(endless, 6)), (expected * 2)[:6], strict=True):
        assert [item for item, _ in one] == [item for item, _ in two]


def test_processes_share_the_users(decoder, monkeypatch):
    """Each does its own, and all get all: what two processes hand together is everything, once."""
    ids = decoder.item_ids
    histories = [ids[n : n + 2] for n in range(5)]
    expected = decoder.rank_all(histories, 3, label="")
    parts = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    whole = dict(enumerate(expected))
    monkeypatch.setattr(processes, "gather_dict", lambda part: parts.append(part) or whole | part)
    for number in ("0", "1"):
        monkeypatch.setenv("RANK", number)
        found = decoder.rank_all(histories, 3, label="")
        assert [[item for item, _ in one] for one in found] == [[i for i, _ in two] for two in expected]
    assert [sorted(part) for part in parts] == [[0, 2, 4], [1, 3]]


def test_scores_that_are_no_numbers_are_refused(decoder):
    rows = decoder.model.row_parameters()
    kept = [row.detach().clone() for row in rows]
    try:
        with torch.no_grad():
            for row in rows:
                row.fill_(float("nan"))
        with pytest.raises(ModelError, match="not numbers"):
            decoder.rank([decoder.item_ids[:1]], 3)
    finally:
        with torch.no_grad():
            for row, values in zip(rows, kept, strict=True):
                row.copy_(values)


def test_the_trace_says_what_was_kept(tiny_backbone):
    decoder = decoder_for(tiny_backbone, UNEQUAL)
    levels = []
    (ranking,) = decoder.rank([["a"]], 7, trace=levels)
    assert len(levels) == 3
    trie, parents, kept = decoder.index.trie_of_tokens, [np.zeros(1, int)], {}
    for level in levels:
        live = level.scores[0] > float("-inf")
        for node, score, parent in zip(
            level.nodes[0][live], level.scores[0][live], level.parents[0][live], strict=True
        ):
            assert node in trie.children(int(parents[-1][parent])).values()
            kept[int(node)] = float(score)
        parents.append(level.nodes[0])
    ended = {
        decoder.item_ids[trie.node_item[node]]: score
        for node, score in kept.items()
        if trie.node_item[node] >= 0
    }
    assert ended == pytest.approx(dict(ranking))
