import json
import math
import re
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from genrec.cli import main
from genrec.core.errors import DataError
from genrec.data_prep import ItemCatalog, leave_one_out
from genrec.indexing import INDEXERS, ItemIndex, build_index
from genrec.indexing.encoders import text_vectors
from genrec.indexing.page import save_report, write_index_page
from genrec.indexing.report import index_report, report_table

from pages import Page
from planted import SMALL_INDEX as SMALL
from planted import planted_catalog

EVIL = "<script>alert(1)</script> & \"quoted\" 'too' $x^2$"
methods = pytest.mark.parametrize("method", INDEXERS)


def with_categories(titles):
    paths = [["Things", *(title or "").split()[-1:]] for title in titles.values()]
    table = ItemCatalog.from_titles(titles).table
    return ItemCatalog(table.append_column("categories", pa.array(paths, pa.list_(pa.string()))))


@pytest.fixture(scope="module")
def items():
    planted = planted_catalog()
    return with_categories({item: planted.title(item) for item in planted.item_ids})


@pytest.fixture(scope="module")
def train(log):
    return leave_one_out(log).train


def page_of(report, tmp_path):
    write_index_page(tmp_path / "page.html", report)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


@methods
def test_every_scheme_gives_a_whole_page_that_needs_nothing_else(method, items, train, tmp_path):
    index = build_index(method, items, train, SMALL)
    report = index_report(index, items, train)
    text = page_of(report, tmp_path)
    found = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    for variable in set(re.findall(r"var\(--([a-z0-9-]+)\)", text)):
        assert f"--{variable}:" in text
    assert "prefers-color-scheme: dark" in text
    for level in report["levels"]:
        assert f"{level['entropy']:.3f}" in found.words
    assert len(re.findall(r'<svg[^>]*class="plot"', text)) >= min(6, len(report["levels"]))
    assert ("The code tree" in found.text) == any(level["prefixes"] < 24 for level in report["levels"])
    assert "The items on a map" in found.text
    assert report_table(report).count("\n") >= len(report["levels"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_figures_are_those_that_counting_gives(items, train):
    index = build_index("rq_kmeans", items, train, SMALL)
    report = index_report(index, items, train)
    codes = index.codes
    vectors = dict(zip(items.item_ids, text_vectors(items, SMALL)[0], strict=True))
    near = {}
    for history in train.values():
        for (a, one), (b, two) in combinations(enumerate(history), 2):
            if b - a <= SMALL.window and one != two:
                near[frozenset((one, two))] = near.get(frozenset((one, two)), 0) + 1

    def cosine(one, two):
        a, b = vectors[one], vectors[two]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    pairs = list(combinations(codes, 2))
    assert [level["level"] for level in report["levels"]] == [1, 2]
    for level in report["levels"]:
        depth = level["level"]
        tokens = [code[depth - 1] for code in codes.values()]
        counts = sorted((tokens.count(token) for token in set(tokens)), reverse=True)
        assert level["tokens"] == len(counts)
        assert level["largest"] == counts[0]
        assert [n for n, times in level["sizes"] for _ in range(times)] == counts
        assert level["used_share"] == len(counts) / 8
        assert level["entropy"] == pytest.approx(-sum(n / 24 * math.log(n / 24) for n in counts))
        assert level["perplexity"] == pytest.approx(math.exp(level["entropy"]))
        assert level["prefixes"] == len({code[:depth] for code in codes.values()})
        same = [(a, b) for a, b in pairs if codes[a][:depth] == codes[b][:depth]]
        if not same:
            assert "semantic" not in level
            continue
        assert level["semantic"] == pytest.approx(np.mean([cosine(a, b) for a, b in same]))
        assert level["semantic_all"] == pytest.approx(np.mean([cosine(a, b) for a, b in pairs]))
        for key, chosen in (("collaborative", same), ("collaborative_all", pairs)):
            counted = [near.get(frozenset(pair), 0) for pair in chosen]
            assert level[key] == pytest.approx(np.mean(counted)), key
    unused = sum(8 - level["tokens"] for level in report["levels"])
    assert report["dead_share"] == unused / 16
    assert report["collisions"]["rate_after"] == 0
    assert report["collisions"]["rate_before"] == index.report["collision_rate_before"]
    firsts = [code[0] for code in codes.values()]
    for first in report["first_tokens"]:
        assert first["items"] == firsts.count(first["token"])
    for example in report["examples"]:
        best = max(
            sum(np.cumprod([a == b for a, b in zip(code, example["code"], strict=True)]))
            for item, code in codes.items()
            if item != example["item_id"]
        )
        assert example["neighbours"][0]["shared"] == best


def test_words_are_those_that_set_items_apart():
    titles = {
        f"i{n}": f"{'red' if n % 2 else 'blue'} {('lamp', 'chair', 'radio')[n // 20]}" for n in range(60)
    }
    codes = {item: (f"<a_{n // 20}>", f"<b_{n % 20}>") for n, item in enumerate(titles)}
    report = index_report(ItemIndex("mine", codes), ItemCatalog.from_titles(titles))
    assert {first["token"]: first["common"] for first in report["first_tokens"]} == {
        "<a_0>": ["lamp"],
        "<a_1>": ["chair"],
        "<a_2>": ["radio"],
    }
    mixed = {item: (f"<a_{n % 3}>", f"<b_{n // 3}>") for n, item in enumerate(titles)}
    report = index_report(ItemIndex("mine", mixed), ItemCatalog.from_titles(titles))
    assert not any(first["common"] for first in report["first_tokens"])


def test_the_tree_and_the_map_lose_no_item(items, train):
    report = index_report(build_index("collaborative", items, train, SMALL), items, train)

    def check(node):
        if "children" in node:
            here = sum(child["items"] for child in node["children"]) + node["rest"]["items"]
            assert here <= node["items"]
            for child in node["children"]:
                check(child)

    check(report["tree"])
    assert report["tree"]["items"] == sum(child["items"] for child in report["tree"]["children"]) == 24
    assert report["map"]["item_ids"] == items.item_ids
    assert min(report["map"]["x"]) == 0
    assert max(report["map"]["x"] + report["map"]["y"]) == 1


def test_many_items_are_sampled_and_placed_by_neighbourhood(monkeypatch):
    from genrec.indexing import report as module

    monkeypatch.setattr(module, "MAP_ITEMS", 120)
    words = ["lamp", "chair", "radio", "table"]
    titles = {f"i{n}": f"{words[n % 4]} number{n}" for n in range(200)}
    codes = {item: (f"<a_{n % 4}>", f"<b_{n}>") for n, item in enumerate(titles)}
    one, two = (index_report(ItemIndex("mine", codes), ItemCatalog.from_titles(titles)) for _ in range(2))
    assert one == two
    assert one["map"]["method"] == "t-SNE"
    assert one["map"]["num_items"] == 120
    points = np.column_stack([one["map"]["x"], one["map"]["y"]])
    apart = ((points[:, None] - points[None]) ** 2).sum(2)
    np.fill_diagonal(apart, np.inf)
    first = np.array(one["map"]["first_tokens"])
    assert (first[apart.argmin(1)] == first).mean() > 0.9


def test_the_training_of_a_scheme_is_drawn(items, train, tmp_path):
    report = index_report(build_index("rq_vae", items, train, SMALL), items, train)
    assert [look["epoch"] for look in report["training"]] == [0, 2, 4]
    assert "Perplexity over epochs" in page_of(report, tmp_path)


def test_the_same_index_gives_the_same_bytes(items, train, tmp_path):
    import matplotlib

    index = build_index("rq_kmeans", items, train, SMALL)
    one = save_report(tmp_path / "one", index_report(index, items, train))
    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 30, "axes.grid": True}):
        shuffled = ItemCatalog(items.table.take(list(range(23, -1, -1))))
        two = save_report(tmp_path / "two", index_report(index, shuffled, train))
    assert one.read_bytes() == two.read_bytes()
    assert one.with_suffix(".json").read_bytes() == two.with_suffix(".json").read_bytes()


def test_words_of_users_are_words(train, tmp_path):
    odd = "日本語 العنوان 🎬 \x00 \x1b line\nbreak --> ]]> " + "w" * 300
    titles = {f"i{n}": (EVIL if n % 2 else odd) for n in range(24)}
    for method in ("independent", "title", "rq_kmeans", "semantic"):
        items = with_categories(titles)
        report = index_report(build_index(method, items, train, SMALL), items, train, name=EVIL)
        text = page_of(report, tmp_path)
        found = Page(text)
        assert "script" not in found.tags
        assert "<script" not in text
        assert EVIL in found.words
        assert not re.search("[\x00-\x08\x1b]", text)


@pytest.mark.parametrize("size", [1, 2, 3])
@methods
def test_tiny_catalogues_have_a_page(method, size, tmp_path):
    items = with_categories({f"i{n}": None if n else "red lamp" for n in range(size)})
    report = index_report(
        build_index(method, items, {"u": items.item_ids}, SMALL), items, {"u": items.item_ids}
    )
    Page(page_of(report, tmp_path))


def test_what_cannot_be_measured_is_left_out_and_said(items, train, tmp_path):
    index = build_index("rq_kmeans", items, train, SMALL)
    bare = index_report(index)
    assert bare["map"] is None
    assert "semantic" not in bare["levels"][0]
    found = Page(page_of(bare, tmp_path))
    assert "There is no catalogue" in found.text
    assert "no training histories" in found.text
    assert "Taken together" not in found.text
    untitled = ItemCatalog.from_titles(dict.fromkeys(items.item_ids))
    found = Page(page_of(index_report(index, untitled, train), tmp_path))
    assert "have no titles" in found.text
    assert "Taken together" in found.text
    assert "map" not in found.text.replace("and the map are left out", "")
    one = ItemCatalog.from_titles({"i0": "red lamp"})
    with pytest.raises(DataError, match="lacks 23 of the 24 items of the index, first 'i1'"):
        index_report(index, one)


def test_an_encoder_that_is_not_at_hand_is_stood_in_for_and_said(items, train, tmp_path, monkeypatch):
    from genrec.indexing import encoders

    monkeypatch.setenv("GENREC_CACHE", str(tmp_path / "cache"))
    index = build_index(
        "independent", items, train, SMALL.model_copy(update={"text_encoder": "someone/encoder"})
    )
    report = index_report(index, items, train)
    assert report["text_encoder"] == "words"
    assert any("someone/encoder are not at hand" in note for note in report["notes"])
    monkeypatch.setattr(
        encoders, "_sentence_encoder", lambda _: lambda texts: np.eye(len(texts), dtype=np.float32)
    )
    encoders.encode(items.texts(encoders.FIELDS), "someone/encoder")
    report = index_report(index, items, train)
    assert report["text_encoder"] == "someone/encoder"
    assert report["notes"] == []


@pytest.fixture
def recipe(log, items, tmp_path):
    (tmp_path / "data").mkdir()
    log.write(tmp_path / "data" / "interactions.parquet")
    items.write(tmp_path / "data" / "items.parquet")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"run_dir: {tmp_path / 'run'}\n"
        f"data: {{source: {tmp_path / 'data'}, item_core: 1}}\n"
        "index: {method: rq_kmeans, levels: 2, codebook_size: 8, text_encoder: words}\n"
    )
    return path


def test_a_recipes_index_is_made_and_reported(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["index", str(recipe), "--report", "index.seed=3"]) == 0
    shown = capsys.readouterr().out
    assert "perplexity" in shown
    assert f"Report: {run / 'index_report.html'}" in shown
    report = json.loads((run / "index_report.json").read_text())
    assert report["hash"] == ItemIndex.load(run / "prepared_index").hash
    assert report["settings"]["seed"] == 3
    assert report["levels"][0]["collaborative"] > 0
    assert main(["index", "--report", str(run), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "index_report.html").read_bytes() == (
        run / "index_report.html"
    ).read_bytes()
    assert capsys.readouterr().err.count("done already") == 2
    for wrong, said in (
        (["index", "--report", str(run / "prepared_index")], f"--report {run}"),
        (["index", str(recipe), "--out", "x"], "add --report"),
        (["index", "--report", str(recipe), "--items", "x"], "leave --items out"),
    ):
        assert main(wrong) == 1
        assert said in capsys.readouterr().err


def test_saved_and_published_indices_are_reported_alone(items, train, tmp_path, capsys):
    build_index("rq_kmeans", items, train, SMALL).save(tmp_path / "mine")
    assert main(["index", "--report", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine_report.html").exists()
    published = tmp_path / "Toys.index.json"
    published.write_text(
        json.dumps({"0": ["<a_1>", "<b_1>"], "1": ["<a_1>", "<b_1>"], "2": ["<a_2>", "<b_1>"]})
    )
    (tmp_path / "items.csv").write_text("item_id,title\n0,red lamp\n1,blue lamp\n2,green chair\n")
    capsys.readouterr()
    assert main(["index", "--report", str(published), "--items", str(tmp_path / "items.csv")]) == 0
    shown = capsys.readouterr().out
    assert f"Report: {tmp_path / 'Toys.index_report.html'}" in shown
    report = json.loads((tmp_path / "Toys.index_report.json").read_text())
    assert report["collisions"]["rate_after"] == pytest.approx(1 / 3)
    assert report["map"]["num_items"] == 3
    assert "blue lamp" in (tmp_path / "Toys.index_report.html").read_text()
    assert main(["index", "--report", str(published), "a.b=1"]) == 1
