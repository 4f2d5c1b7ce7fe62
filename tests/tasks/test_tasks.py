"""What every family promises. A new one joins with its file; a new sampler with its line in ``SAMPLERS``."""

import json
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.core.errors import DataError, RecipeError, UnknownItemError
from genrec.data_prep import leave_one_out
from genrec.indexing import IndexSettings, build_index
from genrec.models.backbone import load_tokenizer
from genrec.models.vocabulary import add_identifier_tokens
from genrec.tasks import (
    SAMPLERS,
    Renderer,
    TaskRows,
    TaskSettings,
    build_dataset,
    held_out_rows,
    load_families,
    make_renderer,
    read_rows,
    stream_dataset,
    tokenise,
)

from planted import MARKER, NUM_PLANTED, rich_catalog, rich_log

FAMILIES = load_families()
TRAINED = [name for name, family in FAMILIES.items() if family.seen]
families = pytest.mark.parametrize("family", TRAINED)
forms = pytest.mark.parametrize("form", ["packed", "windows", "prompt"])
SMALL = IndexSettings(levels=2, codebook_size=8)


def made(log, items, **changes):
    split = leave_one_out(log)
    return split, items, build_index("random", items, split.train, SMALL), TaskSettings(**changes)


def built(log, items, **changes):
    split, _, index, wanted = made(log, items, **changes)
    return split, index, build_dataset(split, items, index, wanted)


@pytest.fixture(scope="module")
def rich():
    return rich_log(), rich_catalog()


@pytest.fixture(scope="module")
def extended(log, items, tiny_backbone):
    """A tokenizer that knows the identifiers of the planted items."""
    index = made(log, items)[2]
    tokenizer = load_tokenizer(tiny_backbone)
    add_identifier_tokens(tokenizer, index.tokens)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


# ---------------------------------------------------------------- every family


@families
def test_rows_are_prompt_and_completion_and_the_same_each_time(family, rich):
    _, _, one = built(*rich, mixture=[family], form="prompt")
    _, _, two = built(*rich, mixture=[family], form="prompt")
    assert one["train"].column_names == ["task", "template", "key", "prompt", "completion"]
    assert len(one["train"]) > 0
    assert one["train"].to_list() == two["train"].to_list()
    assert set(one["train"]["task"]) == {family}
    assert set(one["train"]["template"]) <= {template.id for template in FAMILIES[family].seen}
    assert all(text.strip() for column in ("prompt", "completion") for text in one["train"][column])
    assert not any("None" in text for column in ("prompt", "completion") for text in one["train"][column])


sayings = st.sampled_from(
    [
        "The strap is really great.",
        "The colour is really poor. I use it.",
        "Nothing to say",
        "The sound is solid!",
    ]
)


@families
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_held_out_interactions_change_no_training_row(family, data):
    """Neither items, nor ratings, nor what was written on them."""
    row = st.tuples(st.integers(0, NUM_PLANTED - 1).map("i{}".format), st.integers(1, 5).map(float), sayings)
    other = {f"u{user}": data.draw(st.tuples(row, row)) for user in range(10)}
    items = rich_catalog()
    changes = {"mixture": [family], "form": "prompt", "smooth_ratings": True, "max_history": 4}
    _, _, one = built(rich_log(10), items, **changes)
    _, _, two = built(rich_log(10, held_out=other), items, **changes)
    assert one["train"].to_list() == two["train"].to_list()
    assert len(one["train"])
    assert MARKER not in json.dumps(one["train"].to_list()).lower()


def test_the_marker_is_there_to_be_found(rich):
    split, items, index, wanted = made(*rich)
    for family in ("p5_review", "p5_explanation"):
        assert MARKER in json.dumps(held_out_rows(split, items, index, wanted, family).to_list())


@forms
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_held_out_items_change_no_training_row_in_any_form(form, data):
    row = st.tuples(st.integers(0, NUM_PLANTED - 1).map("i{}".format), st.just(1.0), sayings)
    other = {f"u{user}": data.draw(st.tuples(row, row)) for user in range(10)}
    _, _, one = built(rich_log(10), rich_catalog(), form=form)
    _, _, two = built(rich_log(10, held_out=other), rich_catalog(), form=form)
    assert one["train"].to_list() == two["train"].to_list()


def test_every_template_of_a_family_comes_as_often_as_any_other(log, items):
    _, _, data = built(log, items, mixture={"lcrec_next_item": 4}, form="prompt")
    counts = Counter(data["train"]["template"])
    assert set(counts) == {template.id for template in FAMILIES["lcrec_next_item"].seen}
    expected = len(data["train"]) / len(counts)
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 40  # 16 degrees: p < .001


def test_a_template_that_prints_what_an_item_lacks_is_not_drawn(rich, items):
    _, _, data = built(*rich, mixture={"lcrec_item_to_text": 5}, form="prompt")
    told = {row["key"] for row in data["train"] if "made of wood" in row["completion"]}
    assert told
    assert not told & {f"i{n}" for n in range(3, NUM_PLANTED, 4)}
    plain = TaskRows(
        *made(rich[0], items, mixture=["p5_zero_shot_rating"])[:3], TaskSettings(), evaluate=True
    )
    assert plain.held_out  # a family that needs a brand and a price has no row without them:
    assert not len(held_out_rows(*made(rich[0], items), "p5_zero_shot_rating", "held_out"))


def test_samples_without_any_template_are_counted(rich):
    log, items = rich
    untitled = items.table.set_column(1, "title", [[None] * len(items)]).drop_columns(["description"])
    rows = TaskRows(*made(log, type(items).from_table(untitled), mixture=["text_to_item", "next_item"]))
    assert len(rows.dataset()["train"]) == rows.counts["next_item"]["rows"]
    assert rows.report["families"]["text_to_item"]["without_template"] == NUM_PLANTED
    assert f"none of text_to_item, {NUM_PLANTED} samples left out" in rows.summary()


# ---------------------------------------------------------------- samplers


def items_in(index, text):
    tokens = re.findall(r"<[^<>]+>", text)
    return [index.item(tokens[i : i + 2]) for i in range(0, len(tokens), 2)]


def test_candidates_are_the_target_and_items_the_user_never_took(log, items):
    split, index, data = built(log, items, mixture=["p5_direct"], form="prompt", candidates=8)
    places = Counter()
    for row in data["train"]:
        user = row["key"].split("/")[0]
        shown = items_in(index, row["prompt"])
        target = split.train[user][int(row["key"].split("/")[1])]
        if len(shown) > 1:
            assert len(set(shown)) == len(shown) == 8
            assert items_in(index, row["completion"]) == [target]
            assert set(shown) & set(split.train[user]) == {target}
            places[shown.index(target)] += 1
        elif shown:
            assert (shown[0] == target) == (row["completion"] == " yes")
            assert shown[0] == target or shown[0] not in split.train[user]
    assert set(places) == set(range(8))


def test_half_of_the_questions_have_yes_for_an_answer(rich):
    _, _, data = built(*rich, mixture={"p5_rating": 10}, form="prompt")
    answers = Counter(row["completion"] for row in data["train"])
    assert abs(answers[" yes"] / (answers[" yes"] + answers[" no"]) - 0.5) < 0.15
    assert {" like", " dislike", " 1", " 5"} <= set(answers)


def test_smoothed_scores_stay_in_the_band_of_their_rating(rich):
    log, items = rich
    _, _, data = built(log, items, mixture={"p5_rating": 20}, form="prompt", smooth_ratings=True)
    ratings = {}
    for user, rating in zip(log.table["user_id"].to_pylist(), log.table["rating"].to_pylist(), strict=True):
        ratings.setdefault(user, []).append(rating)
    seen = set()
    for row in data["train"]:
        if re.fullmatch(r" [\d.]+", row["completion"]) and row["template"] != "p5_rating-5":
            user, place = row["key"].split("/")
            score, rating = float(row["completion"]), ratings[user][int(place)]
            assert abs(score - rating) < 1.1
            assert 1 <= score <= 5
            seen.add(score)
    assert len(seen) > 10
    stars = {r["completion"] for r in data["train"] if r["template"] == "p5_rating-5"}
    assert stars <= {f" {n}" for n in range(1, 6)}


def test_ratings_that_cannot_be_smoothed_are_named(rich):
    log, items = rich
    halves = log.table.set_column(3, "rating", [[2.5] * len(log)])
    with pytest.raises(
        RecipeError, match=r"tasks\.smooth_ratings is for ratings of 1, 2, 3, 4 and 5; u0/0 has 2\.5"
    ):
        built(type(log)(halves), items, mixture={"p5_rating": 9}, form="prompt", smooth_ratings=True)


def test_a_log_without_what_a_family_needs_is_refused(log, items):
    with pytest.raises(
        DataError, match="sampler 'rating' needs a log with the column 'rating'; this one has user_id"
    ):
        built(log, items, mixture=["p5_rating"])


def test_users_are_numbered_as_they_come_and_called_by_their_name(rich):
    _, _, data = built(*rich, mixture={"p5_sequential": 3}, form="prompt")
    for row in data["train"]:
        number = int(row["key"].split("/")[0][1:])
        found = re.search(r"user_(\d+)|Name (\d+)", row["prompt"])
        assert found, row["prompt"]
        assert int(found[1] or int(found[2]) + 1) == number + 1


def test_intentions_ask_for_the_last_training_item_from_its_own_review(rich):
    log, items = rich
    split, index, data = built(log, items, mixture=["lcrec_search", "lcrec_preference"], form="prompt")
    searches = [row for row in data["train"] if row["task"] == "lcrec_search"]
    assert len(searches) == len(split.train)
    for row in searches:
        assert items_in(index, row["completion"]) == [split.train[row["key"].split("/")[0]][-1]]
    assert sum(row["task"] == "lcrec_preference" for row in data["train"]) == len(split.train)


def test_texts_may_come_from_a_file_and_from_a_language_model(rich, tiny_backbone, tmp_path):
    split, items, index, _ = made(*rich)
    path = tmp_path / "texts.jsonl"
    keys = [f"{user}/{len(history) - 1}" for user, history in split.train.items()]
    path.write_text(
        "".join(json.dumps({"key": k, "kind": "preference", "text": f"Wants {k}."}) + "\n" for k in keys)
    )
    wanted = TaskSettings(mixture=["lcrec_preference"], form="prompt", texts={"writer": f"file:{path}"})
    data = build_dataset(split, items, index, wanted)["train"]
    assert [row["completion"] for row in data] == [f" Wants {row['key']}." for row in data]
    model = TaskSettings(
        mixture={"lcrec_preference": {"count": 3}},
        form="prompt",
        texts={"writer": f"lm:{tiny_backbone}", "max_new_tokens": 4},
    )
    one = build_dataset(split, items, index, model, folder=tmp_path / "one")["train"].to_list()
    assert len(one) == 3
    assert len((tmp_path / "one" / "texts.jsonl").read_text().splitlines()) == 3, (
        "no text is written for nothing"
    )


# ---------------------------------------------------------------- forms


@pytest.mark.parametrize("cuts", [1, 3])
@pytest.mark.parametrize("max_history", [1, 3, 50])
def test_packed_rows_make_every_training_item_a_target_once_a_cut(log, items, cuts, max_history):
    split, index, data = built(log, items, max_history=max_history, cuts=cuts)
    found: dict[str, list[str]] = {}
    for row in data["train"]:
        assert row["prompt"] == ""
        names = items_in(index, row["completion"])
        assert len(names) <= max_history
        found.setdefault(row["key"].split("/")[0], []).extend(names)
    for user, history in split.train.items():
        assert sorted(found[user]) == sorted(history * cuts)


def test_windows_ask_for_every_item_after_the_bare_history(log, items):
    split, index, data = built(log, items, form="windows", max_history=3)
    rows = iter(data["train"])
    for history in split.train.values():
        for place in range(len(history)):
            row = next(rows)
            assert items_in(index, row["prompt"]) == history[max(0, place - 3) : place]
            assert items_in(index, row["completion"]) == [history[place]]


def test_prompt_rows_ask_for_each_position_from_what_came_before(log, items):
    split, index, data = built(log, items, form="prompt", max_history=2)
    assert len(data["train"]) == sum(len(history) - 1 for history in split.train.values())
    for row in data["train"]:
        user, place = row["key"].split("/")
        history = split.train[user]
        assert items_in(index, row["prompt"]) == history[max(0, int(place) - 2) : int(place)]
        assert items_in(index, row["completion"]) == [history[int(place)]]


@pytest.mark.model
@pytest.mark.parametrize("method", ["independent", "rq_kmeans"])
@pytest.mark.parametrize("exclude_history", [True, False])
def test_packed_rows_and_windows_have_the_same_loss_on_the_same_positions(
    method, exclude_history, log, items, tiny_backbone
):
    """Through the model's and the trainer's own path: the sum over all targets, history left out or not."""
    import torch

    from genrec.models.backbone import load_backbone
    from genrec.models.recommender_model import RecommenderModel
    from genrec.training.targets import ItemTargets
    from genrec.training.trainer import TokenRows, collate

    split = leave_one_out(log)
    index = build_index(method, items, split.train, SMALL.model_copy(update={"text_encoder": "words"}))
    lm, tokenizer = load_backbone(tiny_backbone, dtype="float32")
    torch.manual_seed(0)
    start = torch.randn(len(index.tokens), lm.config.hidden_size)
    model = RecommenderModel.create(lm, tokenizer, index, start, name=tiny_backbone, layers=None).eval()
    targets = ItemTargets(index, model.first_id, exclude_history)
    found = {}
    for form in ("packed", "windows"):
        wanted = TaskSettings(form=form, cuts=1)
        data = build_dataset(split, items, index, wanted)["train"]
        rows = TokenRows(tokenise(data, make_renderer(tokenizer, index, wanted)), targets)
        total = 0.0
        for first in range(0, len(rows), 64):
            batch = collate([rows[n] for n in range(first, min(first + 64, len(rows)))], len(items))
            about = targets.of(batch)
            inputs = {name: value for name, value in batch.items() if name not in ("items", "slots")}
            with torch.no_grad():
                total += float(model(**inputs, **about, num_items_in_batch=1)["loss"])
        found[form] = (rows.num_targets, total)
    assert found["packed"][0] == found["windows"][0] == index.num_levels * sum(map(len, split.train.values()))
    assert found["windows"][1] == pytest.approx(found["packed"][1], rel=1e-5)


def test_labels_cover_the_completion_and_nothing_else(extended, log, items):
    _, index, data = built(log, items, mixture=["item_to_text", "text_to_item", "next_item"], form="prompt")
    renderer = Renderer(extended, index, "prompt", 50)
    for row in data["train"]:
        ids, labels = renderer.row_ids(row["prompt"], row["completion"])
        answer = [i for i, label in zip(ids, labels, strict=True) if label != -100]
        first = labels.index(answer[0])
        assert labels[:first] == [-100] * first
        assert labels[first:] == ids[first:]
        closed = row["task"] == "item_to_text"
        assert (answer[-1] == extended.eos_token_id) == closed
        assert extended.decode(answer[:-1] if closed else answer) == row["completion"]


def test_messages_are_written_by_the_tokenizers_own_template(extended, log, items):
    split, index, data = built(log, items, mixture=["next_item", "item_to_text"], form="messages")
    renderer = make_renderer(extended, index, TaskSettings(form="messages"))
    for row in [*data["train"]][::40]:
        (asked,), (answer,) = row["prompt"], row["completion"]
        assert (asked["role"], answer["role"]) == ("user", "assistant")
        ids, labels = renderer.row_ids(row["prompt"], row["completion"])
        whole = extended.apply_chat_template([asked, answer], tokenize=True, return_dict=False)
        prompt = extended.apply_chat_template(
            [asked], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert ids == whole
        assert labels == [-100] * len(prompt) + whole[len(prompt) :]
    row = data["validation"][0]
    assert (
        renderer.prompt_ids(split.valid.histories[0])
        == renderer.row_ids(**{k: row[k] for k in ("prompt", "completion")})[0][
            : len(renderer.prompt_ids(split.valid.histories[0]))
        ]
    )


@pytest.mark.model
@pytest.mark.parametrize("form", ["packed", "windows", "prompt", "messages"])
def test_trls_trainer_learns_from_the_rows_as_they_are(form, extended, log, items, tiny_backbone, tmp_path):
    """Its labels are ours; it closes every answer but a chat's with an end token, and adds no start token."""
    from trl import SFTConfig, SFTTrainer

    from genrec.models.backbone import load_backbone

    _, index, data = built(log, items, mixture=["next_item", "item_to_text"], form=form)
    rows = data["train"].select_columns(["prompt", "completion"])
    model, _ = load_backbone(tiny_backbone, dtype="float32")
    model.resize_token_embeddings(len(extended), mean_resizing=False)
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False}
    settings = SFTConfig(output_dir=str(tmp_path), report_to="none", disable_tqdm=True, **options)
    trainer = SFTTrainer(model, settings, train_dataset=rows, processing_class=extended)
    assert trainer.train().training_loss > 0
    renderer = make_renderer(extended, index, TaskSettings(form=form))
    start, end = [extended.bos_token_id], [extended.eos_token_id]
    for theirs, row in list(zip(trainer.train_dataset, data["train"], strict=True))[::97]:
        ids, labels = renderer.row_ids(row["prompt"], row["completion"])
        closing = [] if form == "messages" or ids[-1:] == end else end
        first = 0 if form == "messages" else len(start)
        assert theirs["input_ids"] == ids[first:] + closing
        assert theirs["labels"] == labels[first:] + closing


def test_chats_that_cannot_be_masked_are_refused(extended, log, items, tiny_backbone):
    index = made(log, items)[2]
    chat = [{"role": "user", "content": "?"}], [{"role": "assistant", "content": "!"}]
    plain = load_tokenizer(tiny_backbone)
    add_identifier_tokens(plain, index.tokens)
    with pytest.raises(Exception, match="needs a tokenizer with a chat template"):
        Renderer(plain, index, "messages", 5).row_ids(*chat)
    plain.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(Exception, match="does not write a prompt as the beginning"):
        Renderer(plain, index, "messages", 5).row_ids(*chat)


def test_text_to_text_is_a_prompt_with_an_end_and_an_answer(extended, log, items):
    index = made(log, items)[2]
    renderer = Renderer(extended, index, "prompt", 5, text_to_text=True)
    code = "".join(index.code("i3"))

    def parts(prompt, completion):
        ids, labels = renderer.row_ids(prompt, completion)
        length = labels.count(-100)
        assert labels == [-100] * length + ids[length:]
        return extended.decode(ids[:length]), ids[length:]

    prompt, answer = parts(f"After {code} comes", code)
    assert prompt == f"After {code} comes</s>"
    assert extended.decode(answer) == code  # no code is the beginning of another
    assert parts("Title:", " red lamp") == ("Title:</s>", extended("red lamp</s>")["input_ids"])


def test_whole_words_are_identifiers_and_what_spaces_tell_apart(extended, log, items):
    index = made(log, items)[2]
    renderer = Renderer(extended, index, "prompt", 5)
    one, two = index.code("i1"), index.code("i2")
    pieces = ["r", "Ġ", "l", *one, *two, *one, ",", "Ġ", *two, "n", "Ċ", "x", "</s>"]
    ids = extended.convert_tokens_to_ids(pieces)
    assert renderer.whole_word_ids(ids) == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 8, 9, 10, 10, 0]


def test_whole_words_follow_sentencepieces_mark(log, items):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    index = made(log, items)[2]
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((p, -1.0) for p in ["▁", "▁red", "▁la", "mp", ","]),
    ]
    backend = Tokenizer(models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    add_identifier_tokens(tokenizer, index.tokens)
    renderer = Renderer(tokenizer, index, "prompt", 5, text_to_text=True)
    code = "".join(index.code("i1"))
    text = f"red lamp, {code}{code} lamp"
    ids, labels = renderer.row_ids(text, "red")
    ids = ids[: labels.count(-100)]
    assert ids[:-1] == tokenizer(text, add_special_tokens=False)["input_ids"]
    shown = list(zip(tokenizer.convert_ids_to_tokens(ids), renderer.whole_word_ids([*ids, 0]), strict=False))
    assert [word for piece, word in shown if piece in ("▁red", "▁la", "mp", ",")] == [1, 2, 2, 2, 6, 6]
    assert renderer.whole_word_ids([*ids, 0])[-2:] == [0, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["<a_1>", "<b_2>", "<", "</s>", ", ", " ", "\n", "a <b> c"]), st.text(max_size=6)
        ),
        max_size=9,
    )
)
def test_text_is_tokenised_piece_by_piece_as_it_is_in_one(extended, parts):
    text = "".join(parts)
    index = made_index()
    assert Renderer(extended, index, "prompt", 5)._encode([text]) == [
        extended(text, add_special_tokens=False)["input_ids"]
    ]


def made_index():
    from planted import planted_catalog, planted_log

    return made(planted_log(), planted_catalog())[2]


@pytest.mark.parametrize("form", ["packed", "windows", "prompt", "messages"])
@pytest.mark.parametrize("budget", [False, True])
def test_serving_writes_prompts_as_validation_does(form, budget, log, items, extended):
    mixture = ["item_to_text", "lcrec_next_item"] if form == "messages" else ["item_to_text", "next_item"]
    max_tokens = {"packed": 20, "windows": 20, "prompt": 75, "messages": 120}[form] if budget else None
    split, _, index, wanted = made(
        log, items, form=form, max_history=12, max_tokens=max_tokens, mixture=mixture
    )
    data = build_dataset(split, items, index, wanted, extended)
    renderer = make_renderer(extended, index, wanted)
    again = Renderer.from_about(json.loads(json.dumps(renderer.about())), extended, index)
    shorter = 0
    for row, history in zip(data["validation"], split.valid.histories, strict=True):
        ids, labels = renderer.row_ids(row["prompt"], row["completion"])
        asked = ids[: next(n for n, label in enumerate(labels) if label != -100)]
        assert renderer.prompt_ids(history) == again.prompt_ids(history) == asked
        assert max_tokens is None or len(ids) <= max_tokens
        shorter += len(items_in(index, str(row["prompt"]))) < min(12, len(history))
    assert bool(shorter) == budget


def test_a_mixture_that_cannot_be_ranked_is_refused_for_serving(extended, log, items):
    index = made(log, items)[2]
    with pytest.raises(
        RecipeError, match=r"No family of tasks\.mixture asks for the next item.*lcrec_next_item"
    ):
        make_renderer(extended, index, TaskSettings(mixture=["item_to_text", "p5_sequential"]))


# ---------------------------------------------------------------- mixture


def test_weights_repeat_samples_and_take_shares_of_them(log, items):
    base = Counter(built(log, items, mixture=["lcrec_next_item"], form="prompt")[2]["train"]["key"])
    half = Counter(built(log, items, mixture={"lcrec_next_item": 0.5}, form="prompt")[2]["train"]["key"])
    more = Counter(built(log, items, mixture={"lcrec_next_item": 2.5}, form="prompt")[2]["train"]["key"])
    assert set(base.values()) == {1}
    assert half.keys() < base.keys()
    assert abs(len(half) / len(base) - 0.5) < 0.08
    assert {key: 2 + half[key] for key in base} == more
    rows = built(log, items, mixture={"lcrec_next_item": 2}, form="prompt")[2]["train"]
    assert len({(row["key"], row["template"]) for row in rows}) > 1.5 * len(base), "each time a template anew"


@pytest.mark.parametrize(("count", "expected"), [(7, (0, 1)), (24, (1, 1)), (60, (2, 3))])
def test_counts_take_so_many_samples_in_rounds(count, expected, log, items):
    keys = Counter(built(log, items, mixture={"item_to_text": {"count": count}})[2]["train"]["key"])
    assert sum(keys.values()) == count
    assert {keys[item] for item in items.item_ids} <= set(expected)


def test_what_else_is_in_a_mixture_changes_no_row_of_a_family(rich):
    alone = built(*rich, mixture=["p5_direct"], form="prompt")[2]["train"].to_list()
    beside = built(*rich, mixture=["text_to_item", "p5_direct", "click"], form="prompt")[2]["train"].to_list()
    assert [row for row in beside if row["task"] == "p5_direct"] == alone
    assert built(*rich, mixture=["p5_direct"], form="prompt", seed=1)[2]["train"].to_list() != alone


def test_workers_folders_and_streams_give_the_same_rows(rich, tmp_path, monkeypatch):
    from genrec.tasks import build

    monkeypatch.setattr(build, "_JOB", 20)
    split, items, index, wanted = made(
        *rich, mixture={"lcrec_search": 1, "p5_rating": 1.5, "item_to_text": 1}
    )
    one = build_dataset(split, items, index, wanted)
    two = build_dataset(split, items, index, wanted, folder=tmp_path / "a", workers=2)
    build_dataset(split, items, index, wanted, folder=tmp_path / "b")
    assert (
        one["train"].to_list() == two["train"].to_list() == list(stream_dataset(split, items, index, wanted))
    )
    assert read_rows(tmp_path / "a")["validation"].to_list() == one["validation"].to_list()
    for name in ("train.arrow", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["families"]["item_to_text"]["rows"] == NUM_PLANTED


def test_items_that_nobody_took_in_training_are_counted(rich):
    log, items = rich
    split = leave_one_out(log)
    untrained = set(items.item_ids) - {item for history in split.train.values() for item in history}
    rows = TaskRows(*made(*rich, mixture={"item_to_text": 3}))
    rows.dataset()
    assert rows.counts["item_to_text"]["items_untrained"] == len(untrained)


# ---------------------------------------------------------------- budget


@pytest.mark.parametrize("form", ["packed", "windows", "prompt", "messages"])
def test_rows_fit_the_budget_and_lose_whole_items_from_the_old_end(form, log, items, extended):
    mixture = ["next_item"] if form in ("packed", "windows") else ["next_item", "lcrec_asymmetric"]
    split, _, index, wanted = made(
        log, items, form=form, max_tokens={"prompt": 75, "messages": 120}.get(form, 12), mixture=mixture
    )
    rows = TaskRows(split, items, index, wanted, extended)
    data, renderer = rows.dataset()["train"], make_renderer(extended, index, wanted)
    cut = 0
    for row in data:
        assert len(renderer.row_ids(row["prompt"], row["completion"])[0]) <= wanted.max_tokens
        shown = items_in(index, str(row["prompt"])) if "<a_" in str(row["prompt"]) else []
        user, _, place = row["key"].partition("/")
        if form == "packed" or not shown:
            continue
        history = split.train[user][: int(place)]
        assert shown == history[-len(shown) :], "the newest, in order"
        cut += len(shown) < len(history)
    report = rows.counts
    if form == "packed":
        targets = sum(len(items_in(index, row["completion"])) for row in data)
        assert targets == 2 * sum(map(len, split.train.values())), "no target is lost"
    else:
        assert 0 < cut <= sum(count["histories_cut"] for count in report.values())
    assert "histories cut" in rows.summary()


def test_rows_that_never_fit_are_counted_and_budgets_need_room_and_a_tokenizer(rich, extended, log, items):
    split, _, index, wanted = made(log, items, mixture=["item_to_text"], form="prompt", max_tokens=24)
    rows = TaskRows(split, items, index, wanted, extended)
    assert len(rows.dataset()["train"]) == NUM_PLANTED - rows.counts["item_to_text"]["too_long"] < NUM_PLANTED
    with pytest.raises(RecipeError, match="needs the tokenizer"):
        build_dataset(split, items, index, wanted)
    long = build_index("random", items, split.train, IndexSettings(levels=7, codebook_size=8))
    for mixture, most in ((["next_item"], 40), (["item_to_text"], 8)):
        short = TaskSettings(mixture=mixture, form="prompt", max_tokens=most)
        with pytest.raises(RecipeError, match="has no room for what asks .* code of up to 7 tokens"):
            build_dataset(split, items, long, short, extended)


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize("on", ["valid", "test"])
def test_held_out_rows_ask_for_the_held_out_in_every_template(on, log, items):
    split, _, index, wanted = made(log, items)
    held = getattr(split, on)
    for which in ("seen", "held_out"):
        templates = getattr(FAMILIES["lcrec_next_item"], which)
        rows = held_out_rows(split, items, index, wanted, "lcrec_next_item", which, on)
        assert len(rows) == len(held) * len(templates)
        assert set(rows["template"]) == {template.id for template in templates}
    for row, history, targets in zip(rows, held.histories, held.targets, strict=True):
        assert items_in(index, row["prompt"]) == history
        assert items_in(index, row["completion"]) == targets


def test_held_out_ratings_are_those_of_the_log_and_not_smoothed(rich):
    split, items, index, _ = made(*rich)
    rows = held_out_rows(
        split, items, index, TaskSettings(smooth_ratings=True), "p5_rating", "p5_rating-1", "test"
    )
    table = split.table.to_pylist()
    assert [row["completion"] for row in rows] == [f" {r['rating']:g}" for r in table if r["part"] == "test"]
    numbers = [re.search(r"user_(\d+)", row["prompt"])[1] for row in rows]
    assert numbers == [str(n + 1) for n in range(len(rows))]


def test_what_cannot_be_held_out_is_refused(log, items):
    with pytest.raises(RecipeError, match="'item_to_text' does not ask for interactions.*next_item"):
        held_out_rows(*made(log, items), "item_to_text")
    with pytest.raises(
        RecipeError, match=r"Unknown template of next_item 'next_item-9'.*Did you mean 'next_item-"
    ):
        held_out_rows(*made(log, items), "next_item", ["next_item-9"])
    with pytest.raises(RecipeError, match="no template of the kind 'held_out'"):
        held_out_rows(*made(log, items), "next_item", "held_out")


# ---------------------------------------------------------------- families of users

MINE = """
family: mine
about: Mine.
source: Mine.
samples: next_item
slots: {user: user, history: items, target: item}
templates:
  - id: mine-1
    prompt: "{{ history | titles }} and then"
    completion: "{{ target.title }}"
"""


def test_a_file_adds_a_family(log, items, tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE)
    _, _, data = built(log, items, files=[str(tmp_path / "mine.yaml")], mixture=["mine"], form="prompt")
    row = data["train"][0]
    assert row["prompt"].endswith(" and then")
    assert row["completion"].startswith(" ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("about: Mine.\n", "", "the key 'about' is missing"),
        ("about:", "abuot: x\nabout:", "unknown key 'abuot'.*Did you mean 'about'"),
        ("samples: next_item", "samples: next_itm", "no sampler 'next_itm'.*Did you mean 'next_item'"),
        ("history: items", "histroy: items", "offers no slot 'histroy'.*Did you mean 'history'"),
        ("history: items", "history: text", "slot 'history' of 'next_item' is of type 'items', not 'text'"),
        ("target.title", "targt.title", "template 'mine-1', completion: 'targt' is not among.*'target'"),
        ("target.title", "target.tilte", "no field 'tilte'.*Did you mean 'title'"),
        ("target.title", "target['title']", "without brackets"),
        ("history | titles", "history | upper", "a list of items is printed by arrows, bare"),
        ("target.title", "target | titles", "titles prints lists of items"),
        ("{{ history | titles }}", "{{ history | titles", "template 'mine-1': the prompt is not valid Jinja"),
        ("| titles", "| no_such_filter", "not possible|not valid Jinja"),
        ("family: mine", "family: click", "the name 'click' is taken by the family of genrec's click.yaml"),
        ("mine-1", "click-1", "the id 'click-1' is taken by a template of genrec's click.yaml"),
        ("mine-1", "{a: b}", "'id' must be a text"),
        ("    prompt:", "    held_out: 3\n    prompt:", "'held_out' is true or false"),
        ("templates:", "templates: []\nx:", "unknown key 'x'"),
        (MINE, "[", "not valid YAML"),
        (MINE, "a", "must be a mapping"),
    ],
)
def test_mistakes_in_a_file_are_named(old, new, message, tmp_path):
    path = tmp_path / "mine.yaml"
    assert old in MINE
    path.write_text(MINE.replace(old, new))
    with pytest.raises(RecipeError, match=f"(?s)mine.yaml.*{message}"):
        load_families([path])


def test_a_template_id_stands_once_in_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINE + MINE[MINE.index("  - id") :])
    with pytest.raises(RecipeError, match="two templates have the id 'mine-1'"):
        load_families([path])
    with pytest.raises(RecipeError, match="no family file"):
        load_families([tmp_path / "none.yaml"])


def test_templates_reach_nothing_but_their_slots(log, items, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINE.replace("{{ target.title }}", "{{ ''.__class__.__mro__ }}"))
    with pytest.raises(DataError, match="'mine-1' cannot be filled in"):
        built(log, items, files=[str(path)], mixture=["mine"], form="prompt")


def test_unknown_items_and_families_are_named(log, items, extended):
    index = made(log, items)[2]
    with pytest.raises(UnknownItemError, match="'i99'"):
        Renderer(extended, index, "packed", 5).prompt_ids(["i1", "i99"])
    with pytest.raises(RecipeError, match="Unknown family of tasks 'next_itm'.*Did you mean 'next_item'"):
        built(log, items, mixture=["next_itm"])
    with pytest.raises(RecipeError, match="'p5_zero_shot_rating' has held-out templates only"):
        built(log, items, mixture=["p5_zero_shot_rating"])
    with pytest.raises(RecipeError, match="gives next_item a count"):
        built(log, items, mixture={"next_item": {"count": 3}})
    with pytest.raises(ValueError, match="above 0"):
        TaskSettings(mixture={"next_item": 0})


def test_every_sampler_has_a_family_and_says_what_its_slots_are():
    assert {family.samples for family in FAMILIES.values()} == set(SAMPLERS)
    for sampler in SAMPLERS.values():
        assert sampler.about
        assert all(slot.about for slot in sampler.slots.values())
