import pytest
import torch

from genrec.core.errors import RecipeError
from genrec.data_prep import leave_one_out
from genrec.indexing import ItemIndex
from genrec.models.sasrec import SASRec, load_sasrec, sasrec_scores, save_sasrec
from genrec.models.settings import SASRecSettings
from genrec.training.distill import Distiller
from genrec.training.trainer import collate

CODES = {
    "a": ("<a_0>",),
    "b": ("<a_1>", "<b_0>"),
    "c": ("<a_1>", "<b_1>"),
    "d": ("<a_2>", "<b_0>", "<c_0>"),
    "e": ("<a_2>", "<b_0>", "<c_1>"),
}
FIRST = 100


@pytest.fixture
def teacher():
    torch.manual_seed(3)
    model = SASRec(len(CODES), SASRecSettings(width=8, max_history=10))
    torch.nn.init.normal_(model.items.weight)
    return model.eval()


def row(index, items, prompt=()):
    column = {token: FIRST + n for n, token in enumerate(index.tokens)}
    answer = [column[token] for item in items for token in index.code(item)]
    return [1, *prompt, *answer], [-100] * (1 + len(prompt)) + answer


def test_targets_are_the_teachers_distribution_summed_over_codes(teacher):
    """Each learned token against a sum written out by hand from the teacher's item probabilities."""
    index = ItemIndex("mine", CODES)
    distiller = Distiller(teacher, index, FIRST)
    rows = [row(index, "bde"), row(index, "ca", prompt=(7, 8)), row(index, "d")]
    parts = [distiller.read_row(*r) for r in rows]
    batch = collate(
        [
            {"input_ids": ids, "labels": labels, "items": items, "slots": slots}
            for (ids, labels), (items, slots) in zip(rows, parts, strict=True)
        ],
        no_item=len(CODES),
    )
    soft = distiller.targets(batch)
    learned = [(r, place) for r in range(3) for place, x in enumerate(batch["labels"][r]) if x >= FIRST]
    assert len(soft) == len(learned)
    names = list(CODES)
    for target, (number, items) in zip(
        soft, [(r, history) for r, histories in enumerate(("bde", "ca", "d")) for history in _steps(index, histories)],
        strict=True,
    ):  # fmt: skip
        history, prefix, token = items
        if not history:
            assert target[index.tokens.index(token)] == 1
            assert target.sum() == 1
            continue
        scores = torch.tensor(sasrec_scores(teacher, [[names.index(i) for i in history]])[0])
        probabilities = dict(zip(names, scores.softmax(0).tolist(), strict=True))
        allowed = {i: p for i, p in probabilities.items() if CODES[i][: len(prefix)] == prefix}
        for column, name in enumerate(index.tokens):
            mass = sum(p for i, p in allowed.items() if CODES[i][len(prefix) : len(prefix) + 1] == (name,))
            assert float(target[column]) == pytest.approx(mass / sum(allowed.values()), abs=1e-5), number


def _steps(index, items):
    for place, item in enumerate(items):
        code = index.code(item)
        for level, token in enumerate(code):
            yield items[:place], code[:level], token


def test_an_item_in_the_prompt_is_history_and_not_learned(teacher):
    index = ItemIndex("mine", CODES)
    distiller = Distiller(teacher, index, FIRST)
    ids, _ = row(index, "be")
    labels = [-100] * (len(ids) - 3) + ids[-3:]
    assert distiller.read_row(ids, labels) == ([1, 4], [-1, -1, -1, 1, 1, 1])
    assert distiller.read_row([1, 5, 6], [-100, 5, 6]) == ([], [-1, -1, -1])


def test_rows_longer_than_the_teacher_reads_are_refused(teacher):
    with pytest.raises(RecipeError, match=r"max_history=11 is more than the 10"):
        Distiller(teacher, ItemIndex("mine", CODES), FIRST).check(11)


def test_a_saved_sasrec_scores_the_same_and_only_on_its_items(teacher, tmp_path):
    save_sasrec(teacher, list(CODES), tmp_path / "sasrec")
    again = load_sasrec(tmp_path / "sasrec", list(CODES))
    assert (sasrec_scores(again, [[0, 1], []]) == sasrec_scores(teacher, [[0, 1], []])).all()
    from genrec.core.errors import RunError

    with pytest.raises(RunError, match="another catalogue"):
        load_sasrec(tmp_path / "sasrec", list("xyz"))


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
        teacher="sasrec",
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
        model=ModelSettings(rows_start="text+teacher"),
        settings=settings,
    )
    found = Recommender.from_pretrained(run).recommend(split.test.histories, k=5, exclude_history=False)
    names = [[r.item_id for r in ranking] for ranking in found]
    assert ranking_metrics(names, split.test.targets, (1,))["HR@1"] > 0.9
