import ast
import contextlib
import io
import itertools
import json
import re

import pytest
import torch
from small import small_recommender
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessorList,
)

from genrec.core.errors import ModelError, RunError, UnknownItemError
from genrec.decoding.export import ExportedItems, write_export

UNEQUAL = {
    "a": ("<a_0>",),
    "b": ("<a_1>", "<b_0>"),
    "c": ("<a_1>", "<b_1>"),
    "d": ("<a_2>", "<b_0>", "<c_0>"),
    "e": ("<a_2>", "<b_0>", "<c_1>"),
    "f": ("<a_2>", "<b_2>", "<c_1>"),
}
EQUAL = {f"i{n}": (f"<a_{n % 5}>", f"<b_{n // 5}>") for n in range(13)}
# codes, form, an encoder-decoder, softmax
KINDS = {
    "equal": (EQUAL, "packed", False, "level"),
    "unequal": (UNEQUAL, "prompt", False, "level"),
    "whole vocabulary": (UNEQUAL, "packed", False, "vocabulary"),
    "t5": (UNEQUAL, "prompt", True, "level"),
}


@pytest.fixture(scope="module", params=KINDS)
def recommender(request, tiny_backbone, tiny_t5, tmp_path_factory):
    codes, form, t5, over = KINDS[request.param]
    return small_recommender(
        tiny_t5 if t5 else tiny_backbone, tmp_path_factory.mktemp("run"), codes, form, over
    )


@pytest.fixture(scope="module")
def folder(recommender, tmp_path_factory):
    return recommender.export(tmp_path_factory.mktemp("exported") / "plain")


def plain_model(recommender, folder):
    t5 = recommender._decoder.model.is_encoder_decoder
    return (AutoModelForSeq2SeqLM if t5 else AutoModelForCausalLM).from_pretrained(folder).eval()


def test_every_code_is_read_back_and_nothing_else(recommender, folder):
    exported = ExportedItems.read(folder)
    index, ids = recommender._decoder.index, recommender._decoder.model.token_ids
    assert exported.item_ids == index.item_ids
    assert exported.titles == [recommender.items.title(item) for item in index.item_ids]
    codes = {tuple(ids[t] for t in code): item for item, code in index.codes.items()}
    every = [p for n in range(index.num_levels + 1) for p in itertools.product(ids.values(), repeat=n)]
    for written in every:
        expected = [codes[written]] if written in codes else []
        assert exported.items(written) == exported.items([*written, exported.end_token]) == expected


@pytest.mark.parametrize("beams", [4, 20])
def test_a_plain_folder_ranks_as_the_recommender(recommender, folder, beams):
    exported, lm = ExportedItems.read(folder), plain_model(recommender, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = exported.item_ids
    histories = [ids[:3], [], ids[4:5]]
    renderer = exported.renderer(tokenizer)
    prompts = [renderer.prompt_ids(history) for history in histories]
    assert prompts == [recommender._decoder.renderer.prompt_ids(history) for history in histories]
    longest = max(map(len, prompts))
    found = lm.generate(
        torch.tensor([[exported.end_token] * (longest - len(p)) + p for p in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
        logits_processor=LogitsProcessorList([exported.processor(exclude=histories)]),
        **exported.search(beams=beams),
    )
    start = 1 if lm.config.is_encoder_decoder else longest
    rankings = exported.rankings(found, start, len(prompts))
    for mine, theirs in zip(rankings, recommender.recommend(histories, k=beams, beams=beams), strict=True):
        assert [item for item, _ in mine] == [r.item_id for r in theirs]
        assert [score for _, score in mine] == pytest.approx([r.score for r in theirs], abs=1e-4)


def test_the_readmes_own_lines_give_the_recommenders_list(recommender, folder):
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code.replace("PATH", str(folder)), {})
    found = ast.literal_eval(out.getvalue())
    expected = recommender.recommend([ExportedItems.read(folder).item_ids[:2]], k=10, beams=20)[0]
    assert [item for item, _ in found] == [r.item_id for r in expected]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_readme_says_what_was_not_run(recommender, engine, tmp_path):
    text = (recommender.export(tmp_path / "x", engine) / "README.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        ast.parse(code)
    assert "**Not run**" in text
    assert not re.search("DEPTH|END_TOKEN", text)
    level = recommender._decoder.model.about["softmax_over"] == "level"
    assert ("may meet no identifier" in text) == level
    assert ("This model is an encoder-decoder" in text) == recommender._decoder.model.is_encoder_decoder


def test_defaults_of_the_backbone_change_nothing(tiny_backbone, tmp_path):
    recommender = small_recommender(tiny_backbone, tmp_path, EQUAL)
    recommender._decoder.model.backbone.generation_config = GenerationConfig(
        do_sample=True, temperature=0.3, top_k=3, repetition_penalty=1.7, num_beams=2, no_repeat_ngram_size=2
    )
    folder = recommender.export(tmp_path / "plain")
    written = json.loads((folder / "generation_config.json").read_text())
    assert written["do_sample"] is False
    assert [written[n] for n in ("temperature", "top_p", "top_k", "repetition_penalty", "num_beams")] == [
        1.0, 1.0, 0, 1.0, 1,
    ]  # fmt: skip
    assert "no_repeat_ngram_size" not in written
    read = GenerationConfig.from_pretrained(folder)
    assert read.eos_token_id == ExportedItems.read(folder).end_token
    assert (read.do_sample, read.repetition_penalty, read.max_new_tokens) == (False, 1.0, 3)


def test_items_that_share_a_code_are_all_named(tiny_backbone, tmp_path):
    codes = {"a": ("<a_0>", "<b_0>"), "b": ("<a_1>", "<b_0>"), "c": ("<a_0>", "<b_0>")}
    recommender = small_recommender(tiny_backbone, tmp_path, codes, shared=True)
    exported = ExportedItems.read(recommender.export(tmp_path / "x"))
    ids = recommender._decoder.model.token_ids
    assert exported.items([ids["<a_0>"], ids["<b_0>"]]) == ["a", "c"]


def test_what_cannot_be_exported_or_read_is_told(tiny_backbone, tiny_t5, tmp_path):
    recommender = small_recommender(tiny_backbone, tmp_path, EQUAL)
    with pytest.raises(
        ModelError, match="Unknown engine 'vlm'. Allowed: transformers, vllm, sglang. Did you mean 'vllm'"
    ):
        recommender.export(tmp_path / "x", "vlm")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="holds something else"):
        recommender.export(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    whole_words = small_recommender(tiny_t5, tmp_path, EQUAL, "prompt", whole_words=True)
    with pytest.raises(ModelError, match="cannot be merged"):
        whole_words.export(tmp_path / "words")
    assert not (tmp_path / "words").exists()
    folder = recommender.export(tmp_path / "x")
    exported = ExportedItems.read(recommender.export(tmp_path / "x"))  # an earlier one is replaced
    with pytest.raises(UnknownItemError, match="'i99' is not among the 13 exported items"):
        exported.processor(exclude=[["i99"]])
    with pytest.raises(RunError, match="genrec_items.json does not exist"):
        ExportedItems.read(tmp_path / "mine")
    lines = (folder / "items.jsonl").read_text().split("\n")[:-1]
    for wrong in (lines[:-1], [lines[1], lines[0], *lines[2:]]):
        (folder / "items.jsonl").write_text("\n".join(wrong))
        with pytest.raises(RunError, match="are not those of"):
            ExportedItems.read(folder)
    (folder / "items.jsonl").write_text('{"item_id": "a"}')
    with pytest.raises(RunError, match=r"items.jsonl cannot be read: KeyError\('title'\)"):
        ExportedItems.read(folder)
    about = json.loads((folder / "genrec_items.json").read_text())
    (folder / "genrec_items.json").write_text(json.dumps(about | {"version": 9}))
    with pytest.raises(RunError, match="has version 9, this genrec reads version 1"):
        ExportedItems.read(folder)
    (folder / "genrec_items.json").write_text("{}")
    with pytest.raises(RunError, match="none that genrec export wrote"):
        ExportedItems.read(folder)


def test_items_that_left_are_not_exported(tiny_backbone, tmp_path):
    recommender = small_recommender(tiny_backbone, tmp_path, EQUAL)
    less = recommender.remove(["i0", "i5", "i10"])  # and with them the first token of all three
    exported = ExportedItems.read(less.export(tmp_path / "x"))
    assert len(exported.item_ids) == 10
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "x")
    history = [["i1", "i2"]]
    found = plain_model(less, tmp_path / "x").generate(
        prompt := torch.tensor([exported.renderer(tokenizer).prompt_ids(history[0])]),
        attention_mask=torch.ones_like(prompt),
        logits_processor=LogitsProcessorList([exported.processor(exclude=history)]),
        **exported.search(20),
    )
    (mine,) = exported.rankings(found, prompt.shape[1], 1)
    (theirs,) = less.recommend(history, k=20)
    assert [item for item, _ in mine] == [r.item_id for r in theirs]
    assert [score for _, score in mine] == pytest.approx([r.score for r in theirs], abs=1e-4)


def test_write_export_is_what_the_recommender_calls(tiny_backbone, tmp_path):
    recommender = small_recommender(tiny_backbone, tmp_path, EQUAL)
    decoder = recommender._decoder
    write_export(tmp_path / "one", decoder.model, decoder.renderer, recommender.items, dtype="bfloat16")
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
