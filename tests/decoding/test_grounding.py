import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from genrec.core.errors import DataError, MissingExtraError, ModelError, RunError, UnknownItemError
from genrec.data_prep import ItemCatalog
from genrec.decoding.fusion import Ranker, fuse
from genrec.decoding.grounding import GAMMAS, Grounder, Injection, Written, reweighted, soft_min
from genrec.decoding.settings import DecodingSettings, FusionSettings, GroundingSettings
from genrec.decoding.titles import TitleEncoder, TitleVectors, clean
from genrec.indexing import ItemIndex
from genrec.models.backbone import load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.tasks import Renderer, TaskSettings, TitlePrompts, title_template

TITLES = ["red lamp", '"blue" chair', "green  radio ", "old lamp", "red lamp", "new chair", "small radio"]
CATALOG = ItemCatalog.from_titles({f"i{n}": title for n, title in enumerate(TITLES)} | {"i7": None})
IDS = CATALOG.item_ids


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def model_and_prompts(backbone, catalog=CATALOG, form="prompt", whole_words=False, adapter="lora"):
    """A model whose adapter and identifier rows are random, too, and what asks it for titles."""
    index = ItemIndex("mine", {item: (f"<a_{n}>",) for n, item in enumerate(IDS)})
    lm, tokenizer = load_backbone(backbone, dtype="float32")
    rows = torch.randn(len(index.tokens), 64, generator=torch.Generator().manual_seed(2))
    model = RecommenderModel.create(
        lm, tokenizer, index, rows, name=backbone, layers=None, whole_words=whole_words, adapter=adapter
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or name == "whole_words":
                weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
    renderer = Renderer(tokenizer, index, form, 10, text_to_text=model.is_encoder_decoder)
    template = title_template(TaskSettings(mixture=["next_item", "bigrec"]))
    return model.eval(), TitlePrompts(renderer, template, catalog)


@pytest.fixture(scope="module", params=["causal", "t5", "t5 whole words"])
def parts(request, tiny_backbone, tiny_t5):
    backbone = tiny_backbone if request.param == "causal" else tiny_t5
    return model_and_prompts(backbone, whole_words="whole" in request.param)


@pytest.fixture(scope="module")
def causal(tiny_backbone):
    return model_and_prompts(tiny_backbone)


HISTORIES = [["i0", "i1", "i5"], ["i3"], [], ["i7", "i2", "i6", "i0", "i0"]]


def plain_vectors(titles):
    """Vectors by letters, far from the origin so that their distances are small beside them."""
    return np.array([[50 + sum(map(ord, t)) % 17, len(t), t.count("a") * 3.0] for t in titles], np.float32)


def by_hand(catalog=CATALOG, **settings):
    """A grounder whose vectors are those of ``plain_vectors``, without a model."""
    injection = settings.pop("injection", None)
    gamma = settings.pop("gamma_used", None)
    folder = settings.pop("folder", None)
    encoder = TitleEncoder("by hand", lambda: plain_vectors)
    return Grounder(None, None, catalog, GroundingSettings(**settings), injection, gamma, folder, encoder)


def distance(one, two, kind):
    one, two = (plain_vectors([each])[0].astype(float).tolist() for each in (one, two))
    if kind == "l2":
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(one, two, strict=True)))
    dot = sum(x * y for x, y in zip(one, two, strict=True))
    return 1 - dot / math.sqrt(sum(x * x for x in one) * sum(y * y for y in two))


# ---------------------------------------------------------------- what is written


def generated_plainly(model, prompts, history, beams):
    """What transformers' own generate writes after a prompt, alone and without a cache made beforehand."""
    ids = torch.tensor([prompts.prompt_ids(history, 64)])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.whole_words is not None:
        words = torch.tensor([prompts.renderer.whole_word_ids(ids[0].tolist())])
        vectors = model.backbone.get_input_embeddings()(ids) + model.whole_words[words]
        inputs = {"inputs_embeds": vectors, "attention_mask": inputs["attention_mask"]}
    tokens = list(range(model.first_id, len(model.tokenizer)))
    model.backbone.generation_config = GenerationConfig()
    found = model.backbone.generate(
        **inputs, num_beams=beams, num_return_sequences=beams, do_sample=False, max_new_tokens=7, suppress_tokens=tokens,
        eos_token_id=model.tokenizer.eos_token_id, pad_token_id=model.tokenizer.eos_token_id,
        decoder_start_token_id=model.decoder_start,
    )  # fmt: skip
    answers = found[:, 1 if model.is_encoder_decoder else ids.shape[1] :]
    return [clean(text) for text in model.tokenizer.batch_decode(answers, skip_special_tokens=True)]


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_generate_whatever_the_batch_and_the_checkpoints_defaults(parts, beams):
    model, prompts = parts
    expected = [generated_plainly(model, prompts, history, beams) for history in HISTORIES]
    model.backbone.generation_config = GenerationConfig(
        repetition_penalty=9.0, no_repeat_ngram_size=1, min_new_tokens=6, num_beams=2, do_sample=True, temperature=3.0,
        bad_words_ids=[[3]], num_return_sequences=2, forced_eos_token_id=5, suppress_tokens=[40],
    )  # fmt: skip
    settings = GroundingSettings(beams=beams, max_new_tokens=7)
    grounder = Grounder(model, prompts, CATALOG, settings)
    together = grounder.write(HISTORIES)
    assert [each.texts for each in together] == expected
    assert [each.texts for each in grounder.write(HISTORIES, batch_size=1, label="")] == expected
    assert all(sorted(each.scores, reverse=True) == each.scores for each in together)
    assert model.backbone.generation_config.num_beams == 2  # put back
    assert not any("<a_" in text for each in together for text in each.texts)


def test_identifier_tokens_are_never_written(tiny_backbone):
    model, prompts = model_and_prompts(tiny_backbone)
    with torch.no_grad():
        for row in model.row_parameters():
            row.mul_(100)
    for each in Grounder(model, prompts, CATALOG, GroundingSettings(max_new_tokens=5)).write(HISTORIES):
        assert not any("<a_" in text for text in each.texts)


def test_prompts_are_those_of_training(causal, log):
    _, prompts = causal
    tokenizer = prompts.renderer.tokenizer
    text = tokenizer.decode(prompts.prompt_ids(["i0", "i7", "i1"], 64), skip_special_tokens=True)
    assert text.endswith('Titles chosen up to now: "red lamp", ""blue" chair"\nNew title:')
    assert prompts.title(' "red lamp"') == "red lamp"
    with pytest.raises(UnknownItemError, match="nope"):
        prompts.prompt_ids(["nope"], 64)


def test_a_prompt_is_cut_to_its_budget(tiny_backbone):
    _, prompts = model_and_prompts(tiny_backbone)
    whole = prompts.prompt_ids(IDS[:6], 64)
    prompts.renderer.max_tokens = len(whole) + 63
    shorter = prompts.prompt_ids(IDS[:6], 64)
    assert len(shorter) < len(whole)
    assert shorter == prompts.prompt_ids(IDS[1:6], 64)


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("encoder", ["base", "tuned"])
def test_vectors_of_the_model_are_its_last_hidden_states(parts, encoder, pooling):
    model, prompts = parts
    settings = GroundingSettings(encoder=encoder, pooling=pooling, distance="cosine")
    vectors = Grounder(model, prompts, CATALOG, settings).vectors
    ids = torch.tensor([prompts.renderer.text_ids("old lamp")])
    with torch.no_grad():
        if encoder == "base":
            model.peft.disable_adapter_layers()
        if model.is_encoder_decoder:
            inputs = model.backbone.get_input_embeddings()(ids)
            if model.whole_words is not None:
                inputs = (
                    inputs
                    + model.whole_words[torch.tensor([prompts.renderer.whole_word_ids(ids[0].tolist())])]
                )
            states = model.backbone.get_encoder()(inputs_embeds=inputs).last_hidden_state[0]
        else:
            states = model.backbone.base_model(input_ids=ids).last_hidden_state[0]
        model.peft.enable_adapter_layers()
    expected = states[-1] if pooling == "last" else states.mean(0)
    expected = expected / expected.norm()
    row = vectors.titles.index("old lamp")
    np.testing.assert_allclose(vectors.vectors[row], expected.numpy(), atol=1e-5)


def test_the_base_of_a_model_that_was_trained_whole_is_gone(tiny_backbone):
    model, prompts = model_and_prompts(tiny_backbone, adapter="full")
    with pytest.raises(ModelError, match="tuned"):
        Grounder(model, prompts, CATALOG)
    Grounder(model, prompts, CATALOG, GroundingSettings(encoder="tuned"))


def test_vectors_are_made_once_mapped_and_refused_for_another_catalogue(tmp_path):
    asked = []

    def encode(titles):
        asked.extend(titles)
        return plain_vectors(titles)

    folder = tmp_path / "vectors"
    for _ in range(2):
        vectors = TitleVectors.make(TITLES, TitleEncoder("mine", lambda: encode), "l2", folder)
    assert asked == ["red lamp", 'blue" chair', "green radio", "old lamp", "new chair", "small radio"]
    assert isinstance(vectors.vectors, np.memmap)
    assert vectors.row_of_item.tolist() == [0, 1, 2, 3, 0, 4, 5]
    for titles, encoder, kind in [
        (TITLES[1:], "mine", "l2"), (TITLES[::-1], "mine", "l2"), (TITLES, "other", "l2"), (TITLES, "mine", "cosine"),
    ]:  # fmt: skip
        with pytest.raises(RunError, match="other titles"):
            TitleVectors(folder, titles, TitleEncoder(encoder, lambda: encode), kind)


def test_vectors_that_are_not_finite_are_refused():
    broken = TitleEncoder("broken", lambda: lambda titles: np.full((len(titles), 2), np.nan))
    with pytest.raises(ModelError, match="'red lamp'"):
        TitleVectors.make(TITLES, broken, "l2")


@pytest.mark.parametrize("kind", ["l2", "cosine"])
def test_words_of_texts_are_in_the_space_of_titles(kind):
    settings = GroundingSettings(encoder="words", distance=kind)
    grounder = Grounder(None, None, CATALOG, settings)
    ((best, _), *_), (first, *_) = grounder.match(
        [[], []], [Written(["lamp red"], [0.0]), Written(["zz"], [0.0])], 3
    )
    assert best == "i0"
    assert np.isfinite(first[1])
    assert grounder.match([[]], [Written(["red lamp"], [0.0])], 1) == [[("i0", 0.0)]]


# ---------------------------------------------------------------- distances and their order

TEXTS = st.sampled_from([*map(clean, TITLES), "", "a lamp", "red  radio!", "banana", "blue chair"])


@pytest.mark.parametrize("combine", ["first", "min", "soft_min"])
@pytest.mark.parametrize("kind", ["l2", "cosine"])
@given(texts=st.lists(TEXTS, min_size=3, max_size=3), out=st.sets(st.sampled_from(IDS)), k=st.integers(1, 9))
def test_rankings_are_those_of_distances_worked_out_by_hand(kind, combine, texts, out, k):
    scores = [-0.5, -1.0, -3.0]
    grounder = by_hand(distance=kind, combine=combine, beams=3)
    (found,) = grounder.match([[]], [Written(texts, scores)], k, [out])
    total = sum(map(math.exp, scores))
    temperature = 0.1 * grounder.vectors.spread
    expected = {}
    for item in IDS:
        each = [distance(text, clean(CATALOG.title(item)), kind) for text in texts]
        soft = sum(
            math.exp(s) / total * math.exp(-d / temperature) for s, d in zip(scores, each, strict=True)
        )
        soft = -temperature * math.log(soft) if soft > 0 else math.inf
        expected[item] = {"first": each[0], "min": min(each), "soft_min": soft}[combine]
    assert len({item for item, _ in found}) == len(found) == min(k, len(IDS) - len(out))
    assert not out & {item for item, _ in found}
    best = sorted(value for item, value in expected.items() if item not in out)[:k]
    finite = [value for value in best if value < math.inf]  # what the plain sum cannot tell from 0
    assert [-s for _, s in found][: len(finite)] == pytest.approx(finite, abs=2e-3 if kind == "l2" else 1e-6)


def test_an_exact_title_is_at_distance_0_and_its_items_come_in_catalogue_order():
    grounder = by_hand()
    written = [Written([clean(TITLES[0])] * 4, [0.0] * 4), Written(['blue" chair'] * 4, [0.0] * 4)]
    first, second = grounder.match([[], []], written, 3)
    assert first[:2] == [("i0", 0.0), ("i4", 0.0)]
    assert second[0] == ("i1", 0.0)
    assert first[2][1] < 0


def test_titles_that_several_beams_wrote_come_in_the_order_of_the_beams():
    written = Written(["small radio", "old lamp", "red lamp", "banana"], [-0.1, -2.0, -3.0, -4.0])
    for combine in ("min", "soft_min"):
        (found,) = by_hand(combine=combine).match([[]], [written], 4)
        assert [item for item, _ in found] == ["i6", "i3", "i0", "i4"]
    (found,) = by_hand().match([[]], [written], 1)
    assert found == [("i6", 0.0)]


def test_the_soft_minimum_is_bounded_monotone_and_scales():
    rng = np.random.default_rng(0)
    distances, scores = rng.random((3, 50)) * 5, [-1.0, -1.5, -4.0]
    found = soft_min(distances, scores, 0.3)
    assert (found >= distances.min(0) - 1e-12).all()
    np.testing.assert_allclose(soft_min(distances * 7, scores, 0.3 * 7), found * 7)
    assert (soft_min(distances + np.array([[0.1], [0], [0]]), scores, 0.3) >= found).all()
    np.testing.assert_allclose(soft_min(distances, [0.0, -1e9, -1e9], 0.3), distances[0])
    assert np.isfinite(soft_min(distances * 1e6, scores, 1e-3)).all()


# ---------------------------------------------------------------- injection

FLOATS = st.lists(st.floats(0, 100), min_size=1, max_size=12)


@given(
    distances=FLOATS,
    gamma=st.sampled_from(sorted({*GAMMAS["popularity"], *GAMMAS["collaborative"]})),
    data=st.data(),
)
def test_reweighted_distances_are_the_papers(distances, gamma, data):
    n = len(distances)
    injected = data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))
    low, high = min(distances), max(distances)
    expected = [
        (d - low) / (high - low) * (1 + p) ** -gamma if high > low else 0.0
        for d, p in zip(distances, injected, strict=True)
    ]
    found = reweighted(np.array(distances), np.array(injected), gamma)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_injected_popularity_and_scores_follow_the_formulas():
    text, gamma = "a lamp", 2.5
    counts = np.array([4, 0, 9, 1, 9, 2, 2, 30])
    taken = [{"i3": 1.5, "i0": -2.0}, {"i2": 4.0}]
    scores = np.array([[taken[u].get(item, 0.25) for item in IDS] for u in range(2)])
    d = [distance(text, clean(CATALOG.title(item)), "l2") for item in IDS]
    dn = [(x - min(d)) / (max(d) - min(d)) for x in d]
    share = [c / sum(counts) for c in counts]
    for kind, injection, values in [
        ("popularity", Injection.of_counts(IDS, counts), [share, share]),
        ("collaborative", Injection(IDS, lambda histories: scores[: len(histories)]), scores.tolist()),
    ]:
        grounder = by_hand(inject=kind, injection=injection, gamma_used=gamma)
        for user, found in enumerate(grounder.match([["i0"], ["i1"]], [Written([text], [0.0])] * 2, 8)):
            x = values[user]
            xn = [(v - min(x)) / (max(x) - min(x)) for v in x]
            expected = {i: -a * (1 + b) ** -gamma for i, a, b in zip(IDS, dn, xn, strict=True)}
            assert dict(found) == pytest.approx(expected, abs=1e-5)
            assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)
            assert found[0][0] == IDS[int(np.argmin(d))]


def test_gamma_0_keeps_the_plain_order_and_the_nearest_stays_first():
    injection = Injection.of_counts(IDS, np.array([1, 2, 3, 4, 5, 6, 7, 8]))
    written = [Written(["a lamp"], [0.0])]
    (plain,) = by_hand().match([[]], written, 8)
    grounder = by_hand(inject="popularity", injection=injection)
    zero, one, many = (lists[0] for lists in grounder.match_each([[]], written, 8, None, (0.0, 1.0, 99.0)))
    assert [i for i, _ in zero] == [i for i, _ in plain]
    assert zero[0][0] == one[0][0] == many[0][0]
    assert [i for i, _ in one] != [i for i, _ in many]


def test_of_equal_distances_the_more_popular_is_first_and_equal_all_is_no_fault():
    same = ItemCatalog.from_titles({"a": "one", "b": "eno", "c": "far away", "d": "neo"})
    counts = Injection.of_counts(same.item_ids, np.array([1, 5, 0, 3]))
    written = [Written(["neo one"], [0.0]), Written(["x"], [0.0])]
    grounder = by_hand(same, inject="popularity", injection=counts, gamma_used=1.0)
    for ranking in grounder.match([[], []], written, 4):
        assert [i for i, _ in ranking if i != "c"] in (["b", "d", "a"], ["a", "b", "d"])
    single = ItemCatalog.from_titles({"a": "one"})
    none = Injection.of_counts(["a"], np.array([0]))
    grounder = by_hand(single, inject="popularity", injection=none, gamma_used=3.0)
    assert grounder.match([[]], [Written(["x"], [0.0])], 5) == [[("a", 0.0)]]


def test_items_an_injection_does_not_know_have_nothing_of_it():
    injection = Injection.of_counts(["i2", "i0", "gone"], np.array([5, 1, 100]))
    grounder = by_hand(inject="popularity", injection=injection, gamma_used=1.0)
    (found,) = grounder.match([["i7", "i0"]], [Written(["banana"], [0.0])], 8)
    assert {item for item, _ in found} == set(IDS)
    with pytest.raises(DataError, match="injection"):
        by_hand(inject="popularity")
    with pytest.raises(DataError, match="injection"):
        by_hand(injection=injection)


# ---------------------------------------------------------------- approximate search


@pytest.mark.parametrize("search", ["ivf", "hnsw"])
@pytest.mark.parametrize("combine", ["first", "min"])
def test_an_approximate_search_that_sees_all_is_the_exact_one(search, combine):
    pytest.importorskip("faiss")
    titles = {f"i{n}": f"title {n % 170} {'a' * (n % 5)}{'b' * (n % 7)}" for n in range(200)}
    catalog = ItemCatalog.from_titles(titles)
    injection = Injection.of_counts(catalog.item_ids, np.arange(200) % 13)
    written = [Written(["title 3 aab", "title"], [-1.0, -2.0]), Written(["b", ""], [-1.0, -2.0])]
    out = [set(catalog.item_ids[::3]), set(catalog.item_ids[:190])]
    same = {"combine": combine, "beams": 2, "inject": "popularity", "injection": injection, "gamma_used": 2.0}
    exact = by_hand(catalog, **same)
    wide = by_hand(catalog, **same, search=search, search_width=500)
    for exclude in (None, out):
        for one, two in zip(*(g.match([[], []], written, 20, exclude) for g in (exact, wide)), strict=True):
            assert [s for _, s in two] == pytest.approx([s for _, s in one], abs=1e-5)
    # Where candidates do not hold k allowed items all are looked at.
    narrow = by_hand(catalog, combine=combine, beams=2, search=search, search_width=1, candidates=1)
    for ranking, left in zip(narrow.match([[], []], written, 20, out), (133, 10), strict=True):
        assert len({item for item, _ in ranking}) == len(ranking) == min(20, left)
    again = by_hand(
        catalog, combine=combine, beams=2, search=search, search_width=500
    )  # the index is read, not built
    assert [r[0][0] for r in again.match([[], []], written, 5)]


def test_a_search_without_its_package_names_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"genrec\[search\]"):
        by_hand(search="ivf").match([[]], [Written(["x"], [0.0])], 1)


# ---------------------------------------------------------------- filters and figures


def test_results_are_allowed_distinct_and_as_many_as_there_are():
    grounder = by_hand()
    written = [Written(["lamp"], [0.0])] * 2
    short, none = grounder.match([[], []], written, 50, [IDS[:5], IDS])
    assert sorted(item for item, _ in short) == IDS[5:]
    assert none == []
    with pytest.raises(UnknownItemError, match="nope"):
        grounder.match([[]], written[:1], 1, [["nope"]])


def test_figures_of_what_was_written():
    injection = Injection.of_counts(IDS, np.array([1, 2, 3, 4, 5, 6, 7, 80]))
    grounder = by_hand(inject="popularity", injection=injection, gamma_used=9.0, beams=2)
    written = [
        Written(["red lamp", "x"], [0, 0]),
        Written(["", "old lamp"], [0, 0]),
        Written(["q", "q"], [0, 0]),
    ]
    found = grounder.figures([[]] * 3, written, grounder.match([[]] * 3, written, 3))
    assert found["exact_match_rate"] == pytest.approx(1 / 3)
    assert found["any_match_rate"] == pytest.approx(2 / 3)
    assert found["empty_rate"] == pytest.approx(1 / 3)
    near = [min(distance(text, clean(CATALOG.title(i)), "l2") for i in IDS) for text in ("red lamp", "", "q")]
    assert found["nearest_distance"] == pytest.approx(sum(near) / 3, abs=1e-3)
    assert found["num_shared_titles"] == 2
    assert found["num_titles"] == 7
    assert found["num_untitled"] == 1
    assert found["gamma"] == 9
    assert 0 < found["gamma_changed"] <= 1


# ---------------------------------------------------------------- fusion


def test_fusion_is_reciprocal_rank_or_weighted_scores():
    one, two = [("a", -1.0), ("b", -2.0), ("c", -5.0)], [("b", -0.1), ("d", -0.3)]
    found = fuse([one, two], FusionSettings(), 10)
    assert dict(found) == pytest.approx({"b": 1 / 62 + 1 / 61, "a": 1 / 61, "d": 1 / 62, "c": 1 / 63})
    assert [item for item, _ in found] == ["b", "a", "d", "c"]
    found = fuse([one, two], FusionSettings(how="weighted", weights=(1, 3)), 2)
    assert found == [("b", pytest.approx(0.75 + 3)), ("a", pytest.approx(1.0))]
    assert fuse([one, []], FusionSettings(), 1) == [("a", pytest.approx(1 / 61))]


def test_fused_lists_hold_items_that_have_a_title_and_no_code(tiny_backbone):
    from genrec.decoding.beam import ConstrainedDecoder

    later = CATALOG.append(ItemCatalog.from_titles({"cold": "purple violin"}))
    model, prompts = model_and_prompts(tiny_backbone, later)
    grounder = Grounder(model, prompts, later, GroundingSettings(encoder="words", max_new_tokens=5))
    ranker = Ranker(
        DecodingSettings(method="fused"), later, ConstrainedDecoder(model, prompts.renderer), grounder
    )
    written = [Written(["purple violin"], [0.0])] * 2
    histories, out = [["i0", "cold"], ["i1"]], [["i0", "cold"], ["i1"]]
    first, second = ranker.rank_all(histories, 9, out, label="", written=written)
    assert {item for item, _ in first} == set(IDS) - {"i0"}
    assert {item for item, _ in second} == {*IDS, "cold"} - {"i1"}
    (grounded,) = ranker.rank_all([["i1"]], 1, label="", written=written[:1], method="grounded")
    assert grounded == [("cold", 0.0)]
    (constrained,) = ranker.rank_all([["i1", "cold"]], 9, label="", method="constrained")
    assert {item for item, _ in constrained} == set(IDS)
    with pytest.raises(UnknownItemError, match="nope"):
        ranker.rank_all([["nope"]], 1, label="")
    with pytest.raises(RunError, match="bigrec"):
        Ranker(DecodingSettings(), later, ranker.constrained).rank_all([["i1"]], 1, method="grounded")
    with pytest.raises(RunError, match="next_item"):
        Ranker(DecodingSettings(), later, None, grounder).rank_all([["i1"]], 1)
