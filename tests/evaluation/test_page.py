import copy
import math
import re

import pytest

from genrec.evaluation.page import write_comparison, write_page

from pages import Page

EVIL = "<script>alert(1)</script> & \"quoted\" 'too' $x^2$"


def entry(name, level, **more):
    metrics = {f"HR@{k}": level * k / 10 for k in (1, 5, 10)}
    metrics |= {f"NDCG@{k}": level * k / 17 for k in (5, 10)}
    intervals = {metric: [value * 0.9, value * 1.1] for metric, value in metrics.items()}
    beyond = {"coverage@10": level * 1.7, "gini@10": 0.87, "valid_item_rate": 0.9871, "num_users": 321}
    return {"name": name, "metrics": metrics | beyond, "intervals": intervals, "seconds": 3.25, **more}


def a_slice(level):
    return [
        {
            "group": group,
            "num_users": users,
            "metrics": {"HR@10": level, "NDCG@10": level / 2},
            "intervals": {"HR@10": [level - 0.01, level + 0.01], "NDCG@10": [level / 3, level / 1.5]},
        }
        for group, users in (("5-10", 300), ("11+", 21))
    ]


def report(name="SASRec (full cross-entropy)", group="history length"):
    tuning = {
        "settings": {"dim": 64},
        "trials": [{"settings": {"dim": 64}, "value": 0.1396}, {"settings": {"dim": 32}, "value": 0.1402}],
        "on": "valid",
        "metric": "NDCG@10",
    }
    test = {"metric": "NDCG@10", "test": "paired bootstrap over users"}
    return {
        "run": "a run",
        "protocol": {
            "split": "leave_one_out",
            "on": "test",
            "candidates": "all items",
            "exclude_history": True,
            "num_users": 321,
            "num_rows": 321,
            "num_items": 1682,
            "relevant": "one",
            "data_hash": "0a1b2c",
        },
        "seed": 3,
        "training": {"backbone": "tiny", "layers": 2},
        "versions": {"genrec": "1.2.3"},
        "model": entry("Ours", 0.2, slices={group: a_slice(0.2)}),
        "baselines": {
            "popularity": entry("Popularity", 0.1, slices={group: a_slice(0.1)}),
            "sasrec": entry(
                name, 0.19, slices={group: a_slice(0.19)}, tuning=tuning, curve=[[5, 0.11], [10, 0.12]]
            ),
        },
        "tests": [
            test
            | {"a": "model", "b": "sasrec", "difference": 0.0059, "interval": [-0.001, 0.012], "p": 0.03}
            | {"p_holm": 0.06},
            test
            | {"a": "popularity", "b": "model", "difference": -0.0588, "interval": [-0.07, -0.05]}
            | {"p": 0.0001, "p_holm": 0.0002},
        ],
    }


def examples(title="Fargo"):
    return [
        {
            "user_id": "u1",
            "history": [f"item {n}" for n in range(11)],
            "targets": [title],
            "recommended": [("Other", -1.25, False), (title, None, True)],
        }
    ]


@pytest.fixture
def page(tmp_path):
    def write(of_report, **more):
        write_page(tmp_path / "page.html", of_report, **more)
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    return write


def everything(page, of_report=None, title="Fargo"):
    return page(
        of_report or report(),
        curve=[(step, 5 - math.log(step)) for step in range(1, 1001)],
        examples=examples(title),
    )


def test_the_page_is_whole_and_needs_nothing_else(page):
    text = everything(page)
    found = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert "NDCG@10 on validation: 0.1100 at epoch 5, 0.1200 at epoch 10" in text
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert all(value.startswith("#") for name in ("href", "src") for value in found.values(name))
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in found.values("href")} == set(ids)


def test_plots_say_what_they_show_and_follow_the_colours_of_the_page(page):
    text = everything(page)
    plots = re.findall(r'<svg[^>]*class="plot".*?</svg>', text, re.S)
    assert len(plots) == 5
    for plot in plots:
        assert re.search(r'role="img"', plot)
        assert re.search(r'aria-label="[^"]+"', plot)
        assert "var(--" in plot
        assert not re.search("#000[12]|<style|metadata", plot)
    for variable in set(re.findall(r"var\(--([a-z0-9-]+)\)", text)):
        assert f"--{variable}:" in text
    assert "prefers-color-scheme: dark" in text
    assert all(scope in ("col", "row", "colgroup", "rowgroup") for scope in Page(text).values("scope"))


def test_numbers_are_those_of_the_report(page):
    of_report = report()
    found = Page(everything(page, of_report))
    for each in (of_report["model"], *of_report["baselines"].values()):
        for metric, (low, high) in each["intervals"].items():
            assert f"{each['metrics'][metric]:.4f}" in found.words, metric
            assert f"{low:.4f}\N{EN DASH}{high:.4f}" in found.words, metric
        assert f"{each['metrics']['coverage@10']:.4f}" in found.words
        for group in each["slices"]["history length"]:
            assert f"{group['metrics']['NDCG@10']:.4f}" in found.words
    assert (
        "Leave-one-out split, test items; all 1,682 items ranked for 321 users; items of the history left out; "
        "one relevant item a list; seed 3."
    ) in found.text
    assert "0.1396 NDCG@10 on valid" in found.text  # of the chosen settings, not of the best trial
    for said in (
        "0.9871",
        "0a1b2c",
        "dim = 64",
        "genrec 1.2.3",
        "last 8 of 11",
        "item 10",
        "\N{MINUS SIGN}1.250",
    ):
        assert said in found.text
    assert "item 2 " not in found.text
    assert "5.0000 at step 1, \N{MINUS SIGN}1.9078 at step 1,000" in found.text


def test_the_best_is_bold_and_the_runs_own_row_is_marked(page):
    text = page(report())
    rows = re.findall(r"<tr.*?</tr>", text, re.S)
    metrics = [row for row in rows if (row.count("<td") == 5 and "0.1900" in row) or "this run" in row]
    own, other = metrics[0], metrics[1]
    assert own.startswith('<tr class="own">')
    assert own.count("<strong>") == 5
    assert "<strong>" not in other
    assert "On NDCG@10 the highest of 3 models." in Page(text).text


@pytest.mark.parametrize(
    ("difference", "p", "p_holm", "verdict"),
    [
        (0.01, 0.01, 0.02, "▲ ahead"),
        (-0.01, 0.01, 0.02, "▼ behind"),
        (0.01, 0.01, 0.06, "≈ not told apart"),
        (0.01, 0.01, None, "▲ ahead"),
        (0.01, None, None, "≈ not told apart"),
    ],
)
def test_verdicts_follow_the_corrected_p(page, difference, p, p_holm, verdict):
    of_report = report()
    of_report["tests"] = [
        {"metric": "NDCG@10", "a": "model", "b": "sasrec", "difference": difference, "p": p, "p_holm": p_holm}
    ]
    text = Page(page(of_report)).text
    assert re.findall("[▲▼≈] [a-z ]+(?= This)", text) == [verdict]


def test_a_test_against_the_run_is_turned_round(page):
    found = Page(page(report()))
    assert "+0.0588 0.0500\N{EN DASH}0.0700 <0.001 <0.001 ▲ ahead" in found.text
    assert "+0.0059 \N{MINUS SIGN}0.0010 to 0.0120 0.030 0.060 ≈ not told apart" in found.text
    assert "it is ahead of Popularity ; not told apart from SASRec (full cross-entropy) ." in found.text


def test_words_of_users_are_words(page):
    of_report = report(name=EVIL, group=EVIL)
    of_report["run"] = of_report["training"][EVIL] = of_report["protocol"]["split"] = EVIL
    for each in (of_report["model"], *of_report["baselines"].values()):
        each["slices"][EVIL][0]["group"] = EVIL
        each["metrics"][EVIL] = 0.5
    of_report["tests"][0] |= {"metric": EVIL, "a": EVIL, "test": EVIL}
    of_report["baselines"]["sasrec"]["tuning"]["settings"] = {EVIL: EVIL}
    text = everything(page, of_report, title=EVIL)
    found = Page(text)
    assert "script" not in found.tags
    assert "<script" not in text
    assert sum(EVIL in words for words in found.words) > 10
    assert any(EVIL[:30] in words and "321" not in words for words in found.words)


def test_any_text_can_be_written(page):
    odd = "日本語 العنوان 🎬 \ud800 \x00 \x1b line\nbreak --> ]]> " + "w" * 300
    of_report = report(name=odd, group=odd)
    of_report["run"] = odd
    found = Page(everything(page, of_report, title=odd))
    assert "日本語 العنوان 🎬 \ufffd \ufffd \ufffd line break --> ]]>" in found.text
    assert not re.search("[\x00-\x08\x1b]", found.text)


@pytest.mark.parametrize("candidates", ["100 sampled (uniform, seed 0)", "Sampled"])
def test_sampled_candidates_are_told_loudly(page, candidates):
    of_report = report()
    loud = "SAMPLED CANDIDATES: not comparable with full ranking"
    assert loud not in page(of_report)
    of_report["protocol"]["candidates"] = candidates
    assert loud in page(of_report)


def test_validation_items_are_told(page):
    of_report = report()
    said = "Measured on validation items"
    assert said not in page(of_report)
    of_report["protocol"]["on"] = "valid"
    assert said in page(of_report)


def headings(text):
    return re.findall("<h2>(.*?)</h2>", text)


def test_what_is_missing_is_left_out(page):
    everywhere = headings(everything(page))
    assert everywhere == [
        "Accuracy",
        "Is the difference real?",
        "Accuracy by length of the list",
        "Who is served well",
        "What gets recommended",
        "Learning",
        "Examples",
        "Details",
    ]
    alone = {"run": "alone", "model": {"name": "m", "metrics": {"HR@10": 0.25}}}
    text = page(alone, curve=[(1, 2.0)])
    Page(text)
    assert headings(text) == ["Accuracy"]
    assert "0.2500" in text
    assert "<strong>" not in text
    for empty in ({}, {"model": {}}, {"baselines": {"popularity": {"metrics": {}}}, "tests": []}):
        assert headings(page(empty)) == []


@pytest.mark.parametrize("key", sorted(report()))
def test_any_part_may_be_missing(page, key):
    of_report = report()
    del of_report[key]
    Page(everything(page, of_report))


@pytest.mark.parametrize("key", ["name", "intervals", "slices", "seconds"])
def test_any_part_of_an_entry_may_be_missing(page, key):
    of_report = report()
    del of_report["model"][key]
    Page(everything(page, of_report))


def test_a_value_that_is_not_a_number_is_a_dash(page):
    of_report = report()
    of_report["model"]["metrics"] |= {"NDCG@10": float("nan"), "HR@10": None, "coverage@10": float("nan")}
    of_report["model"]["intervals"]["HR@5"] = [None, None]
    found = Page(everything(page, of_report))
    assert not {"nan", "None"} & set(re.findall(r"\w+", found.text))
    assert found.words.count("\N{EN DASH}") >= 3


def test_few_users_are_told(page):
    text = page(report())
    assert "11+" in text
    assert "21 users, few" in text
    assert "300 users, few" not in text
    assert "fewer than 30 users" in text


def test_the_same_report_gives_the_same_bytes(page):
    import matplotlib

    first = everything(page)
    with matplotlib.rc_context(
        {"svg.fonttype": "path", "font.size": 30, "axes.grid": True, "lines.linewidth": 9}
    ):
        assert everything(page, copy.deepcopy(report())) == first


def test_nothing_is_left_in_pyplot_or_the_settings(page):
    import sys

    import matplotlib

    before, pyplot = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    everything(page)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


def test_runs_are_compared(tmp_path):
    runs = [
        {"name": "quick", "path": "runs/q0", "seed": 0, "entry": entry("m", 0.2)},
        {"name": "quick", "path": "runs/q1", "seed": 1, "entry": entry("m", 0.21)},
        {"name": EVIL, "path": "runs/x", "seed": 0, "entry": entry("m", 0.05)},
    ]
    runs += [{"name": f"r{n}", "path": f"runs/{n}", "seed": 0, "entry": entry("m", 0.1)} for n in range(20)]
    test = {"metric": "HR@10", "difference": 0.01, "interval": [0.001, 0.02], "p": 0.01, "p_holm": 0.02}
    comparison = {
        "runs": runs,
        "protocol": report()["protocol"] | {"candidates": "50 sampled (uniform, seed 0)"},
        "tests": [test | {"a": "runs/q1", "b": "runs/q0"}, test | {"a": "elsewhere", "b": "r3"}],
    }
    path = tmp_path / "comparison.html"
    write_comparison(path, comparison)
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert "23 runs compared" in found.text
    assert "<script" not in text
    assert "SAMPLED CANDIDATES" in text
    assert "quick (seed 1 · runs/q1) against quick (seed 0 · runs/q0)" in found.text
    assert "elsewhere against r3" in found.text
    for run in runs:
        for metric, (low, high) in run["entry"]["intervals"].items():
            assert f"{run['entry']['metrics'][metric]:.4f}" in found.words
            assert f"{low:.4f}\N{EN DASH}{high:.4f}" in found.words
    marks = re.findall(r'<svg class="mark".*?</svg>', text)
    assert len(set(marks)) == len(runs)
    write_comparison(path, comparison)
    assert path.read_text(encoding="utf-8") == text
    write_comparison(path, {"runs": []})
    Page(path.read_text(encoding="utf-8"))
