"""What a history may be, what is told of one that may not, and why it gets what it gets."""

import json
import math
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from small import small_recommender

from genrec.cli import main
from genrec.core.errors import DataError, RunError, UnknownItemError
from genrec.decoding.export import ExportedItems
from genrec.indexing import ItemIndex
from genrec.serving import Recommender

from pages import Page

CODES = {f"i{n}": (f"<a_{n % 5}>", f"<b_{n // 5}>", f"<c_{n % 2}>") for n in range(13)}
TITLES = {f"i{n}": f"Film {n} (1990)" for n in range(13)} | {"i11": "The  Twins", "i12": "the twins"}


@pytest.fixture(scope="module")
def recommender(tiny_backbone, tmp_path_factory):
    return small_recommender(tiny_backbone, tmp_path_factory.mktemp("run"), CODES, titles=TITLES)


@pytest.fixture(scope="module")
def run(recommender, tmp_path_factory):
    """A run folder of what serving needs, and nothing else."""
    folder = tmp_path_factory.mktemp("served")
    decoder = recommender._decoder
    decoder.model.save(folder / "model")
    decoder.index.save(folder / "index")
    recommender.items.write(folder / "items.parquet")
    (folder / "serving.json").write_text(json.dumps(decoder.renderer.about()))
    return folder


def test_an_empty_history_gets_what_the_model_expects_first(recommender, run, capsys):
    (found,) = recommender.recommend([[]], k=13)
    assert {r.item_id for r in found} == set(CODES)
    assert main(["recommend", str(run), "-k", "13", "--json", "--history"]) == 0
    assert [r["item_id"] for r in json.loads(capsys.readouterr().out)] == [r.item_id for r in found]


@pytest.mark.parametrize("policy", ["error", "title"])
def test_unknown_items_are_told(recommender, run, policy, capsys):
    said = "'i99'.*(not in the index of 13 items|nor the title)"
    with pytest.raises(UnknownItemError, match=said):
        recommender.recommend([["i1"], ["i2", "i99"]], unknown=policy)
    with pytest.raises(UnknownItemError, match=said):
        recommender.explain(["i99"], unknown=policy)
    assert main(["recommend", str(run), "--unknown", policy, "--history", "i1", "i99"]) == 1
    assert "genrec: " in (err := capsys.readouterr().err)
    assert "'i99'" in err


def test_unknown_items_can_be_skipped_and_are_named(recommender, run, capsys):
    found = recommender.recommend([["nope", "i1", "nope", "gone"], ["i2"]], unknown="skip")
    assert "left out of histories, not in the index: 'nope', 'gone'" in capsys.readouterr().err
    assert found == recommender.recommend([["i1"], ["i2"]])
    assert capsys.readouterr().err == ""
    assert main(["recommend", str(run), "--unknown", "skip", "--json", "--history", "i1", "nope"]) == 0
    out, err = capsys.readouterr()
    assert "'nope'" in err
    assert [r["item_id"] for r in json.loads(out)] == [r.item_id for r in found[0]]
    recommender.recommend([[f"x{n}" for n in range(14)]], unknown="skip")
    assert "'x9' and 4 others" in capsys.readouterr().err


def test_titles_stand_for_items(recommender, run, capsys):
    by_title = recommender.recommend([["film 3  (1990)", "i4", " FILM 5 (1990)"]], unknown="title")
    assert by_title == recommender.recommend([["i3", "i4", "i5"]])
    with pytest.raises(
        UnknownItemError, match=r"'Film 77 \(1990\)' is neither .* Did you mean 'Film 7 \(1990\)'"
    ):
        recommender.recommend([["Film 77 (1990)"]], unknown="title")
    with pytest.raises(
        DataError, match="2 items have the title 'The Twins': 'i11', 'i12'. Give the item's id"
    ):
        recommender.recommend([["The Twins"]], unknown="title")
    assert main(["recommend", str(run), "--unknown", "title", "--history", "Film 3 (1990)"]) == 0
    assert "Film 3 (1990)  [i3]" in capsys.readouterr().out


def test_the_newest_items_of_a_long_history_are_read(tiny_backbone, tmp_path, capsys):
    recommender = small_recommender(tiny_backbone, tmp_path, CODES)
    recommender._decoder.renderer.max_history = 4
    items = list(CODES)
    for _ in range(2):
        found = recommender.recommend([items[:9]], exclude_history=False)
    said = capsys.readouterr().err
    assert said.count("a history has 9 items: the model reads the newest 4 (tasks.max_history)") == 1
    assert found == recommender.recommend([items[5:9]], exclude_history=False)
    # What is not read is not recommended either.
    assert {r.item_id for r in recommender.recommend([items[:9]], k=20)[0]} == set(items[9:])


WRONG = {
    "histories, not one": (["i1"], r"History 0 must be a list of item ids, got 'i1'"),
    "a text": ("i1", r"Histories are a list of histories, got 'i1'. Write \[\[...\]\]"),
    "a number": (5, "Histories are a list of histories, got 5"),
    "a mapping": ({"u": ["i1"]}, "Histories are a list of histories, got {'u'"),
    "none": ([None], "History 0 must be a list of item ids, got None"),
    "numbers": ([["i1"], [181, 50]], "History 1 must be .* which are texts, and has 181. Write '181'"),
    "numpy's numbers": ([np.array([181])], "has (np.int64\\()?181\\)?. Write '181'"),
    "an empty place": ([["i1", None]], "History 0 must be .* and has None"),
    "lists in lists": ([[["i1"]]], r"History 0 must be .* and has \['i1'\]"),
    "a set": ([{"i1", "i2"}], "History 0 is a set, which has no order"),
    "a history as a mapping": ([{"i1": 1}], "History 0 must be a list of item ids, got {'i1': 1}"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_history_is_told(recommender, name):
    given, said = WRONG[name]
    with pytest.raises(DataError, match=said):
        recommender.recommend(given)


def test_other_wrong_arguments_are_told(recommender, run, capsys):
    for k, said in (
        (0, "k must be 1 or more, got 0"),
        (-3, "got -3"),
        (True, "got True"),
        (2.5, "whole number, got 2.5"),
        ("5", "got '5'"),
    ):
        with pytest.raises(DataError, match=said):
            recommender.recommend([["i1"]], k=k)
        with pytest.raises(DataError, match=said):
            recommender.explain(["i1"], k=k)
    with pytest.raises(DataError, match="beams must be 1 or more, got 0"):
        recommender.recommend([["i1"]], beams=0)
    with pytest.raises(DataError, match="unknown is one of error, skip, title, got 'ignore'"):
        recommender.recommend([["i1"]], unknown="ignore")
    with pytest.raises(DataError, match="exclude must be a list of item ids, got 'i1'"):
        recommender.recommend([["i2"]], exclude="i1")
    with pytest.raises(UnknownItemError, match="'i99'"):
        recommender.recommend([["i2"]], exclude=["i99"])
    with pytest.raises(DataError, match="user_ids is a list of users, got 'u1'"):
        recommender.recommend(user_ids="u1")
    with pytest.raises(DataError, match="1 histories came with 2 user_ids"):
        recommender.recommend([["i1"]], user_ids=["u1", None])
    assert recommender.recommend([["i1"]], user_ids=["u1"]) == recommender.recommend([["i1"]])
    assert recommender.recommend([]) == []
    assert len(recommender.recommend([("i1",), np.array(["i2"])], k=np.int64(3))[1]) == 3
    for options, said in (
        (["-k", "0"], "k must be 1 or more, got 0"),
        (["--beams", "0"], "beams must be 1 or more"),
    ):
        assert main(["recommend", str(run), *options, "--history", "i1"]) == 1
        assert f"genrec: {said}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["recommend", str(run), "-k", "many", "--history", "i1"])
    assert "argument -k: invalid int value: 'many'" in capsys.readouterr().err


def test_an_index_that_is_not_the_models_is_refused(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    ItemIndex(
        "mine", {item: code[::-1] for item, code in zip(CODES, reversed(CODES.values()), strict=True)}
    ).save(folder / "index")
    said = "was trained with the index .*, not with the given one .* Use the index saved beside it"
    with pytest.raises(RunError, match=said):
        Recommender.from_pretrained(folder)
    assert main(["recommend", str(folder), "--history", "i1"]) == 1
    assert "genrec: " in (err := capsys.readouterr().err)
    assert "was trained with the index" in err
    shutil.rmtree(folder / "index")
    with pytest.raises(RunError, match="index.json does not exist"):
        Recommender.from_pretrained(folder)


def branches(tree):
    waiting = list(tree.branches)
    while waiting:
        branch = waiting.pop()
        yield branch
        waiting += branch.branches


@pytest.mark.parametrize("beams", [3, 20])
def test_an_explanation_is_the_list_and_what_led_there(recommender, beams):
    why = recommender.explain(["i1", "i3"], k=3, beams=beams)
    assert why.history == [("i1", TITLES["i1"]), ("i3", TITLES["i3"])]
    assert [why.recommendations] == recommender.recommend([["i1", "i3"]], k=3, beams=beams)
    width = max(beams, 3)
    assert [level.kept <= max(width, 20) for level in why.tree.levels] == [True] * 3
    found = {branch.code: branch for branch in branches(why.tree)}
    for place, item in enumerate(why.recommendations, start=1):
        assert found[item.code].places == (place,)
        assert found[item.code].score == pytest.approx(item.score, abs=1e-5)
    for branch in found.values():
        below = [
            i for i, c in CODES.items() if c[: len(branch.code)] == branch.code and i not in ("i1", "i3")
        ]
        assert branch.num_items == len(below) > 0
        assert set(branch.titles) <= {TITLES[item] for item in below}
        assert all(inner.score <= branch.score for inner in branch.branches)
        assert sum(math.exp(inner.score) for inner in branch.branches) <= math.exp(branch.score) + 1e-5


def test_the_command_explains(recommender, run, tmp_path, capsys):
    command = ["recommend", str(run), "-k", "3", "--history", "i1", "i3"]
    assert main(command) == 0
    plain = capsys.readouterr().out
    why = recommender.explain(["i1", "i3"], k=3)
    first = why.recommendations[0]
    assert plain.splitlines()[:3] == [
        "History of 2 items:",
        "    Film 1 (1990)  [i1]",
        "    Film 3 (1990)  [i3]",
    ]
    assert (
        f"  1. {first.title}  [{first.item_id}]  p {math.exp(first.score):.4f}  {''.join(first.code)}"
        in plain
    )
    picture, page = tmp_path / "tree.svg", tmp_path / "tree.html"
    assert main([*command, "--why", "--why-picture", str(picture)]) == 0
    explained = capsys.readouterr().out
    assert explained.startswith(plain)
    assert "Level 3: " in explained
    assert f"Picture: {picture}" in explained
    assert f"1. {first.title}" in ElementTree.tostring(ElementTree.parse(picture).getroot(), "unicode")
    assert main([*command, "--why-picture", str(page)]) == 0
    assert "Level 1" not in capsys.readouterr().out
    read = Page(page.read_text())
    assert "What the search kept" in read.text
    assert all(item.title in read.text for item in why.recommendations)
    assert main([*command, "--why", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [r["item_id"] for r in value["recommendations"]] == [r.item_id for r in why.recommendations]
    assert value["history"] == [["i1", "Film 1 (1990)"], ["i3", "Film 3 (1990)"]]
    assert value["tree"]["branches"][0]["code"] == list(why.tree.branches[0].code)
    assert main([*command, "--why-picture", str(tmp_path / "tree.png")]) == 1
    assert "A picture is an .svg or an .html file" in capsys.readouterr().err


def test_the_command_exports(recommender, run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "out"), "--engine", "vllm", "--dtype", "float32"]) == 0
    assert "exported" in capsys.readouterr().err
    assert ExportedItems.read(tmp_path / "out").item_ids == list(CODES)
    assert "## vLLM" in (tmp_path / "out" / "README.md").read_text()
    assert main(["export", str(run), str(tmp_path / "other"), "--engine", "vlm"]) == 1
    assert "Did you mean 'vllm'?" in capsys.readouterr().err
    assert main(["export", str(tmp_path), str(tmp_path / "other")]) == 1
    assert "has no trained model" in capsys.readouterr().err


def test_an_allow_list_of_unknown_items_is_told_by_recommend_and_explain_alike(recommender):
    for ask in (
        lambda **o: recommender.recommend([["i1"]], **o),
        lambda **o: recommender.explain(["i1"], **o),
    ):
        with pytest.raises(UnknownItemError, match="nope"):
            ask(allow=["i2", "nope"])
    why = recommender.explain(["i1"], k=3, allow=["i2", "i3"])
    assert {item.item_id for item in why.recommendations} == {"i2", "i3"}


def test_the_command_wants_to_know_for_whom(capsys):
    assert main(["recommend", "nowhere"]) == 1
    assert "give --user or --history" in capsys.readouterr().err
