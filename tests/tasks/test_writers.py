"""Intentions and preferences: what the rule may say, what a model's texts depend on, and what a cut run keeps."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from genrec.core.errors import DataError, ModelError, RunError
from genrec.tasks.reviews import FUNCTION_WORDS
from genrec.tasks.writers import (
    Taken,
    TextRequest,
    WriterSettings,
    intention_requests,
    nearest,
    preference_request,
    preferred_request,
    statements,
    write_texts,
)

PEN = Taken(
    title="Zebra Gel Pen, Blue",
    categories=("Office > Writing > Gel Pens",),
    brand="Zebra",
    description="A blue pen. The grip is made of soft rubber for long letters.",
    review="I love my zebra pen. The ink is great and dries quickly.",
    explanation="The ink is great and dries quickly.",
    feature="ink",
)
BOOK = Taken(
    title="Ruled Notebook",
    categories=("Office > Paper > Notebooks",),
    feature="binding",
    liked=False,
    review="The binding is weak, sadly.",
)
LAMP = Taken(title="Desk Lamp", categories=("Lighting",), brand="Lux")

VOCABULARY = "pen blue ink grip zebra the great Blue Pens soft notebook binding lamp love works rubber"
words = st.sampled_from(VOCABULARY.split())
texts = st.lists(words, max_size=8).map(lambda w: " ".join(w))
sentences = st.lists(texts.map(lambda t: f"{t.capitalize()}."), max_size=3).map(" ".join)
taken = st.builds(
    Taken,
    title=texts,
    categories=st.lists(st.lists(words, min_size=1, max_size=3).map(" > ".join), max_size=2).map(tuple),
    brand=st.none() | words,
    description=st.none() | sentences,
    review=st.none() | sentences,
    explanation=st.none() | sentences,
    feature=st.none() | words,
    liked=st.sampled_from([None, True, False]),
)


def content(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - FUNCTION_WORDS


@settings(deadline=None)
@given(taken, st.integers(0, 3))
def test_an_intention_has_no_word_of_the_title(target, seed):
    # "great" and "love" may stand in wordings as well; none of the wordings has another word of these titles.
    for request in intention_requests("u/3", target, seed):
        assert not content(request.fallback) & content(target.title), request.fallback
        assert "{" not in request.fallback


@settings(deadline=None)
@given(taken, st.integers(0, 3))
def test_the_rule_is_a_function_of_seed_key_and_what_it_was_given(target, seed):
    assert intention_requests("u/3", target, seed) == intention_requests("u/3", target, seed)
    history = [PEN, target, BOOK]
    assert preference_request("u/3", history, seed) == preference_request("u/3", list(history), seed)
    assert preferred_request("u/3", history, seed) == preferred_request("u/3", list(history), seed)


def test_what_the_rule_says():
    wish, query = intention_requests("u/1", PEN)
    assert (wish.kind, query.kind, wish.key) == ("wish", "query", "u/1")
    assert "The ink is great and dries quickly." in wish.fallback
    assert "Writing" in query.fallback, "the most specific category has a word of the title"
    assert "Zebra" in query.instruction, "a language model is told the title and asked not to use it"
    said = preference_request("u/1", [PEN, PEN, BOOK]).fallback
    assert "Gel Pens and Notebooks" in said
    lines = statements(preferred_request("u/1", [PEN, BOOK, LAMP]).fallback)
    assert len(lines) == 5
    assert nearest("\n".join(lines), BOOK) == next(line for line in lines if "Notebooks" in line)
    assert {line for line in lines if "binding" in line} < {
        "Finds fault with the binding.",
        "Is easily put off by the binding.",
        "Avoids what fails in the binding.",
    }


def test_keys_vary_the_wording():
    said = {preference_request(f"u{n}/9", [PEN, PEN, BOOK, LAMP, LAMP, LAMP]).fallback for n in range(40)}
    assert len(said) >= 5
    assert any(re.search(r"Gel Pens and Notebooks.*Lighting", text) for text in said), "long and short term"


def test_without_anything_known_there_is_still_a_text():
    nothing = [Taken(), Taken()]
    requests = [
        *intention_requests("a", Taken()),
        *intention_requests("b", Taken(liked=False)),
        preference_request("a", nothing),
        preferred_request("a", []),
    ]
    assert all(request.fallback for request in requests)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1. Likes ink\n\n- Hates glue\n* Reads", ["Likes ink", "Hates glue", "Reads"]),
        ('Here: ["Likes ink", "Hates glue"]', ["Likes ink", "Hates glue"]),
        ("[no json]\nLikes 3 pens", ["[no json]", "Likes 3 pens"]),
        ("a\nb\nc\nd\ne\nf", ["a", "b", "c", "d", "e"]),
    ],
)
def test_statements_of_a_text(text, wanted):
    assert statements(text) == wanted


def test_a_preference_without_a_statement_is_refused():
    with pytest.raises(DataError, match="no line"):
        nearest(" \n", PEN)


def requests() -> list[TextRequest]:
    asked = [
        TextRequest(f"u{n}", "preference", "Titles: " + "pen; " * n + "\nWhat is liked?", f"rule {n}")
        for n in range(9)
    ]
    return [*asked, TextRequest("u0", "wish", "What is wished for?", "rule wish")]


def test_texts_come_by_kind_and_key():
    written = write_texts(requests())
    assert written["preference"]["u4"] == "rule 4"
    assert written["wish"] == {"u0": "rule wish"}
    with pytest.raises(DataError, match="2 texts of kind 'wish' were asked for key 'u0'"):
        write_texts([*requests(), requests()[-1]])


@pytest.mark.parametrize("writer", ["lm:", "gpt", "file", ""])
def test_an_unknown_writer_is_refused(writer):
    with pytest.raises(ValidationError, match="none of template, lm:NAME, file:PATH"):
        WriterSettings(writer=writer)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_texts_from_a_file(tmp_path, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / f"texts.{suffix}"
    rows = [{"key": r.key, "kind": r.kind, "text": f"mine {r.key}"} for r in requests()[1:]]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="lacks 1 of 10 texts, such as preference of u0.*missing=template"):
        write_texts(requests(), WriterSettings(writer=f"file:{path}"))
    written = write_texts(requests(), WriterSettings(writer=f"file:{path}", missing="template"))
    assert written["preference"]["u0"] == "rule 0"
    assert written["preference"]["u1"] == "mine u1"


@pytest.mark.parametrize("content", ["not json", '{"key": 1}', "[1]", None])
def test_a_file_that_holds_no_texts_is_refused(tmp_path, content):
    path = tmp_path / "texts.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match="key, kind and text"):
        write_texts(requests(), WriterSettings(writer=f"file:{path}"))


@pytest.fixture(scope="module")
def load(tiny_backbone):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def loaded(name):
        loaded.times += 1
        model = AutoModelForCausalLM.from_pretrained(tiny_backbone)
        # As it is made the model says its last token again, whatever came before.
        for weight in model.model.layers.parameters():
            weight.data.mul_(8 if weight.ndim == 2 else 1)
        model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, max_length=9)
        return model, AutoTokenizer.from_pretrained(tiny_backbone)

    loaded.times = 0
    return loaded


def by_model(**changes) -> WriterSettings:
    return WriterSettings(**{"writer": "lm:tiny", "max_new_tokens": 6, **changes})


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_batches_and_order_change_no_text(load, temperature):
    alone = write_texts(requests(), by_model(batch_size=1, temperature=temperature), load=load)
    together = write_texts(requests()[::-1], by_model(batch_size=4, temperature=temperature), load=load)
    assert alone == together
    assert len(set(alone["preference"].values())) > 3


def test_a_seed_changes_drawn_texts_only(load):
    def texts(**changes):
        return write_texts(requests(), by_model(**changes), load=load)

    assert texts(temperature=1.0) != texts(temperature=1.0, seed=1)
    assert texts() == texts(seed=1)
    assert texts() == texts(temperature=1.0, top_p=1e-9), "of the likeliest token alone"


def test_greedy_texts_are_the_models_own(load):
    import torch

    model, tokenizer = load("")
    ids = tokenizer(requests()[3].instruction + "\nAnswer:", return_tensors="pt")["input_ids"]
    width = ids.shape[1]
    for _ in range(6):
        with torch.inference_mode():
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    wanted = tokenizer.decode(ids[0, width:], skip_special_tokens=True).strip()
    assert write_texts(requests(), by_model(), load=load)["preference"]["u3"] == wanted


def test_a_cut_run_goes_on_from_its_cache(load, tmp_path):
    cache, settings = tmp_path / "new" / "texts.jsonl", by_model(batch_size=2)
    whole = write_texts(requests(), settings, load=load)
    write_texts(requests()[:6], settings, cache, load)
    cut = cache.read_bytes()[:-4]
    cache.write_bytes(cut)
    assert write_texts(requests(), settings, cache, load) == whole
    lines = [json.loads(line) for line in cache.read_text().splitlines()]
    assert len(lines) == len({line["hash"] for line in lines}) == 10
    before = load.times
    assert write_texts(requests(), settings, cache, load) == whole
    assert load.times == before, "nothing is left to write"
    assert write_texts(requests(), by_model(max_new_tokens=5), cache, load) != whole
    assert load.times == before + 1, "other settings, other texts"


def test_a_whole_last_line_without_its_end_is_kept(load, tmp_path):
    cache = tmp_path / "texts.jsonl"
    whole = write_texts(requests()[:3], by_model(), cache, load)
    cache.write_bytes(cache.read_bytes()[:-1])
    assert (
        write_texts(requests()[:4], by_model(), cache, load)["preference"].items()
        >= whole["preference"].items()
    )
    assert len(cache.read_text().splitlines()) == 4


def test_a_broken_line_amid_a_cache_is_refused(tmp_path):
    cache = tmp_path / "texts.jsonl"
    cache.write_text('{"hash": "a", "text": "b"}\n{"hash": "c"\n{"hash": "d", "text": "e"}\n')
    with pytest.raises(RunError, match="Line 2"):
        write_texts(requests(), by_model(), cache, load=None)


def test_an_empty_answer_gives_way_to_the_rule(load, capsys):
    def ends_at_once(name):
        model, tokenizer = load(name)
        first = tokenizer(requests()[0].instruction + "\nAnswer:", return_tensors="pt")
        end = int(model(**first).logits[0, -1].argmax())
        model.generation_config.eos_token_id = [end, 1]
        tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(end)})
        return model, tokenizer

    written = write_texts(requests()[:1], by_model(), load=ends_at_once)
    assert written == {"preference": {"u0": "rule 0"}}
    assert "wrote nothing for 1 of 1 texts" in capsys.readouterr().err


def test_chat_models_are_asked_as_in_a_chat(load):
    def chatty(name):
        model, tokenizer = load(name)
        tokenizer.chat_template = (
            "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %} it says{% endif %}"
        )
        return model, tokenizer

    import torch

    model, tokenizer = load("")
    ids = tokenizer("<s>user: What is wished for? it says", add_special_tokens=False, return_tensors="pt")[
        "input_ids"
    ]
    with torch.inference_mode():
        first = tokenizer.decode(model(ids).logits[0, -1].argmax()).strip()
    written = write_texts(requests()[-1:], by_model(max_new_tokens=1), load=chatty)
    assert written["wish"]["u0"] == (first or "rule wish")


def test_a_prompt_longer_than_the_model_reads_is_refused(load):
    long = TextRequest("u", "wish", "pen " * 600, "")
    with pytest.raises(ModelError, match=r"The wish of u asks tiny to read .* it has room for 512"):
        write_texts([long], by_model(), load=load)


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="cannot be read as a causal language model"):
        write_texts(requests(), by_model(writer=f"lm:{tmp_path}/none"))
