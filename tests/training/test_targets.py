import math

import pytest
import torch

from genrec.core.errors import RecipeError
from genrec.data_prep import leave_one_out
from genrec.indexing import ItemIndex
from genrec.models.sequence import GRU4Rec, SASRec, load_sequence_model, save_sequence_model, sequence_scores
from genrec.models.settings import GRU4RecSettings, SASRecSettings
from genrec.training.targets import ItemTargets
from genrec.training.trainer import collate

CODES = {
    "a": ("<a_0>",),
    "b": ("<a_1>", "<b_0>"),
    "c": ("<a_1>", "<b_1>"),
    "d": ("<a_2>", "<b_0>", "<c_0>"),
    "e": ("<a_2>", "<b_0>", "<c_1>"),
}
SINGLE = {"a": ("<3>",), "b": ("<1>",), "c": ("<5>",), "d": ("<2>",), "e": ("<4>",)}
FIRST = 100


@pytest.fixture
def teacher():
    torch.manual_seed(3)
    model = SASRec(len(CODES), SASRecSettings(width=8, max_history=10))
    torch.nn.init.normal_(model.items.weight)
    return model.eval()


@pytest.fixture
def second_teacher():
    torch.manual_seed(4)
    model = GRU4Rec(len(CODES), GRU4RecSettings(width=8, hidden_size=8, max_history=10))
    torch.nn.init.normal_(model.items.weight)
    return model.eval()


def row(index, items, prompt=()):
    column = {token: FIRST + n for n, token in enumerate(index.tokens)}
    answer = [column[token] for item in items for token in index.code(item)]
    return [1, *prompt, *answer], [-100] * (1 + len(prompt)) + answer


def batch_of(targets, rows):
    parts = [targets.read_row(*r) for r in rows]
    batch = [
        {"input_ids": ids, "labels": labels, "items": items, "slots": slots}
        for (ids, labels), (items, slots) in zip(rows, parts, strict=True)
    ]
    return collate(batch, no_item=len(CODES))


@pytest.mark.parametrize("codes", [CODES, SINGLE])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("exclude_history", [True, False])
def test_targets_are_the_teachers_mean_distribution_summed_over_codes(
    teacher, second_teacher, exclude_history, number, codes
):
    """Each learned token against a sum written out by hand from the teachers' item probabilities."""
    index = ItemIndex("mine", codes)
    teachers = [teacher, second_teacher][:number]
    targets = ItemTargets(index, FIRST, exclude_history, teachers)
    histories = ["bdeca", "cabc", "d", "deded"]
    rows = [row(index, items, prompt=(7, 8) if items == "cabc" else ()) for items in histories]
    found = targets.of(batch_of(targets, rows))
    steps = [step for items in histories for step in _steps(index, items)]
    assert len(found["soft_targets"]) == len(steps)
    names = list(codes)
    for target, (history, item, prefix, token) in zip(found["soft_targets"], steps, strict=True):
        if not history:
            assert target[index.tokens.index(token)] == 1
            assert target.sum() == 1
            continue
        out = set(history) - {item} if exclude_history else set()
        weight = dict.fromkeys(set(names) - out, 0.0)
        for model in teachers:
            scores = sequence_scores(model, [[names.index(i) for i in history]])[0]
            parts = {i: math.exp(scores[names.index(i)]) for i in weight}
            for i, part in parts.items():
                weight[i] += part / sum(parts.values()) / number
        allowed = {i: w for i, w in weight.items() if codes[i][: len(prefix)] == prefix}
        for column, name in enumerate(index.tokens):
            mass = sum(w for i, w in allowed.items() if codes[i][: len(prefix) + 1] == (*prefix, name))
            assert float(target[column]) == pytest.approx(mass / sum(allowed.values()), abs=1e-5)


def test_tokens_of_which_every_item_was_taken_are_no_candidates():
    index = ItemIndex("mine", CODES)
    targets = ItemTargets(index, FIRST, exclude_history=True)
    histories = ["bdeca", "cabc", "dd", "aabe"]
    found = targets.of(batch_of(targets, [row(index, items) for items in histories]))
    steps = [step for items in histories for step in _steps(index, items)]
    for excluded, (history, item, prefix, token) in zip(found["excluded"], steps, strict=True):
        out = set(history) - {item}
        for column, name in enumerate(index.tokens):
            below = {i for i, code in CODES.items() if code[: len(prefix) + 1] == (*prefix, name)}
            assert bool(excluded[column]) == (bool(below) and below <= out)
        assert not excluded[index.tokens.index(token)]
    assert found["excluded"].any()
    assert ItemTargets(index, FIRST, exclude_history=False).of(batch_of(targets, [row(index, "ab")])) == {}


def _steps(index, items):
    for place, item in enumerate(items):
        code = index.code(item)
        for level, token in enumerate(code):
            yield items[:place], item, code[:level], token


def test_an_item_in_the_prompt_is_history_and_not_learned():
    index = ItemIndex("mine", CODES)
    targets = ItemTargets(index, FIRST, exclude_history=True)
    ids, _ = row(index, "be")
    labels = [-100] * (len(ids) - 3) + ids[-3:]
    assert targets.read_row(ids, labels) == ([1, 4], [-1, -1, -1, 1, 1, 1])
    assert targets.read_row([1, 5, 6], [-100, 5, 6]) == ([], [-1, -1, -1])


def test_rows_longer_than_the_teacher_reads_are_refused(teacher):
    with pytest.raises(RecipeError, match=r"max_history=11 is more than the 10 .*raise sasrec\.max_history"):
        ItemTargets(ItemIndex("mine", CODES), FIRST, True, [teacher]).check(11)


def test_a_saved_sasrec_scores_the_same_and_only_on_its_items(teacher, tmp_path):
    save_sequence_model(teacher, list(CODES), tmp_path / "sasrec")
    again = load_sequence_model(tmp_path / "sasrec", list(CODES))
    assert (sequence_scores(again, [[0, 1], []]) == sequence_scores(teacher, [[0, 1], []])).all()
    from genrec.core.errors import RunError

    with pytest.raises(RunError, match="another catalogue"):
        load_sequence_model(tmp_path / "sasrec", list("xyz"))


@pytest.mark.model
@pytest.mark.parametrize("method", ["independent", "rq_kmeans"])
def test_a_taught_model_learns_the_planted_rule(method, tiny_backbone, log, items, tmp_path):
    from genrec.evaluation import ranking_metrics
    from genrec.indexing import IndexSettings, build_index
    from genrec.serving import Recommender
    from genrec.tasks import build_dataset
    from genrec.training import ModelSettings, TrainSettings, finetune

    split = leave_one_out(log)
    index = build_index(method, items, split.train, IndexSettings(levels=2, codebook_size=6))
    settings = TrainSettings(
        teacher="sasrec" if method == "rq_kmeans" else "sasrec+gru4rec",
        epochs=25 if method == "rq_kmeans" else 10,
        learning_rate=5e-3,
        rows_learning_rate=1e-2,
        checkpoint_steps=0,
    )
    run = finetune(
        tiny_backbone,
        build_dataset(split, items, index),
        index,
        items,
        split,
        tmp_path / "run",
        model=ModelSettings(rows_start="text+teacher", dtype="float32"),
        settings=settings,
    )
    found = Recommender.from_pretrained(run).recommend(split.test.histories, k=5)
    names = [[r.item_id for r in ranking] for ranking in found]
    assert ranking_metrics(names, split.test.targets, (1,))["HR@1"] > 0.9
