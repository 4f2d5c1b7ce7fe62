"""What every task promises. A new one joins with its row in ``TASKS``."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.core.errors import RecipeError, UnknownItemError
from genrec.data_prep import InteractionLog, leave_one_out
from genrec.indexing import IndexSettings, build_index
from genrec.models.backbone import load_tokenizer
from genrec.models.vocabulary import add_identifier_tokens
from genrec.tasks import TASKS, Renderer, TaskSettings, build_dataset
from genrec.tasks.render import templates

from planted import planted_catalog, planted_log

tasks = pytest.mark.parametrize("task", TASKS)
forms = pytest.mark.parametrize("form", ["packed", "prompt"])


def built(log, items, **changes):
    split = leave_one_out(log)
    index = build_index("random", items, split.train, IndexSettings(levels=2, codebook_size=8))
    return split, index, build_dataset(split, items, index, TaskSettings(**changes))


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone):
    return load_tokenizer(tiny_backbone)


@tasks
@forms
def test_rows_are_prompt_and_completion_and_the_same_each_time(task, form, log, items):
    _, _, one = built(log, items, names=[task], form=form)
    _, _, two = built(log, items, names=[task], form=form)
    assert one["train"].column_names == ["task", "key", "prompt", "completion"]
    assert len(one["train"]) > 0
    assert one["train"].to_list() == two["train"].to_list()
    assert set(one["train"]["task"]) == {task}


@tasks
@forms
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_held_out_interactions_change_no_training_row(task, form, data):
    log, items = planted_log(num_users=12), planted_catalog()
    train = [(u, i, t) for u, h in log.histories().items() for t, i in enumerate(h[:-2])]
    other = [
        (user, data.draw(st.sampled_from(items.item_ids)), 100 + step)
        for user in log.histories()
        for step in (1, 2)
    ]
    _, _, one = built(log, items, names=[task], form=form)
    _, _, two = built(InteractionLog.from_rows(train + other), items, names=[task], form=form)
    assert one["train"].to_list() == two["train"].to_list()


@pytest.mark.parametrize("cuts", [1, 3])
@pytest.mark.parametrize("max_history", [1, 3, 50])
def test_packed_rows_make_every_training_item_a_target_once_a_cut(log, items, cuts, max_history):
    split, index, data = built(log, items, max_history=max_history, cuts=cuts)
    found: dict[str, list[str]] = {}
    for row in data["train"]:
        assert row["prompt"] == ""
        tokens = [token + ">" for token in row["completion"].split(">")[:-1]]
        names = [index.item(tokens[i : i + 2]) for i in range(0, len(tokens), 2)]
        assert len(names) <= max_history
        found.setdefault(row["key"].split("/")[0], []).extend(names)
    for user, history in split.train.items():
        assert sorted(found[user]) == sorted(history * cuts)


def test_prompt_rows_ask_for_each_position_from_what_came_before(log, items):
    split, index, data = built(log, items, form="prompt", max_history=2)
    assert len(data["train"]) == sum(len(history) - 1 for history in split.train.values())
    row = data["train"][3]
    history = split.train[row["key"].split("/")[0]]
    assert row["completion"] == "".join(index.code(history[4]))
    assert "".join(index.code(history[2])) + "".join(index.code(history[3])) in row["prompt"]
    assert "".join(index.code(history[1])) + "".join(index.code(history[2])) not in row["prompt"]


def test_every_template_is_used_and_has_an_id(log, items):
    _, _, data = built(log, items, names=["text_to_item"])
    starts = {t["prompt"].split("{")[0] for t in templates("text_to_item")}
    assert all(any(prompt.startswith(s) for prompt in data["train"]["prompt"]) for s in starts)
    ids = [t["id"] for task in TASKS for t in templates(task)]
    assert len(set(ids)) == len(ids)


def test_labels_cover_the_completion_and_nothing_else(tokenizer, log, items, tiny_backbone):
    _, index, data = built(log, items, names=["item_to_text", "text_to_item", "next_item"], form="prompt")
    tokenizer = load_tokenizer(tiny_backbone)
    add_identifier_tokens(tokenizer, index.tokens)
    renderer = Renderer(tokenizer, index, "prompt", 50)
    for row in data["train"]:
        ids, labels = renderer.row_ids(row["prompt"], row["completion"])
        answer = [i for i, label in zip(ids, labels, strict=True) if label != -100]
        first = labels.index(answer[0])
        assert labels[:first] == [-100] * first
        assert labels[first:] == ids[first:]
        closed = row["task"] == "item_to_text"
        assert (answer[-1] == tokenizer.eos_token_id) == closed
        assert tokenizer.decode(answer[:-1] if closed else answer) == row["completion"]


@forms
def test_serving_writes_prompts_as_training_does(form, log, items, tiny_backbone):
    split, index, data = built(log, items, form=form, max_history=4)
    tokenizer = load_tokenizer(tiny_backbone)
    add_identifier_tokens(tokenizer, index.tokens)
    renderer = Renderer(tokenizer, index, form, 4)
    first = templates("next_item")[0]["prompt"].split("{")[0] if form == "prompt" else ""
    checked = 0
    for row, history in zip(data["validation"], split.valid.histories, strict=True):
        if row["prompt"].startswith(first):
            ids, labels = renderer.row_ids(row["prompt"], row["completion"])
            assert renderer.prompt_ids(history) == ids[: labels.index(next(x for x in labels if x != -100))]
            checked += 1
    assert checked


def test_unknown_items_and_tasks_are_named(log, items, tiny_backbone):
    split, index, _ = built(log, items)
    tokenizer = load_tokenizer(tiny_backbone)
    add_identifier_tokens(tokenizer, index.tokens)
    with pytest.raises(UnknownItemError, match="'i99'"):
        Renderer(tokenizer, index, "packed", 5).prompt_ids(["i1", "i99"])
    with pytest.raises(RecipeError, match="Unknown task 'next_itm'.*Did you mean 'next_item'"):
        build_dataset(split, items, index, TaskSettings(names=["next_itm"]))
