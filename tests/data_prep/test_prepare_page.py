import copy
import json
import re
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec.core.errors import MissingExtraError
from genrec.data_prep.page import report_table, save_page
from genrec.data_prep.prepare import prepare
from genrec.data_prep.settings import DataSettings
from genrec.data_prep.sources import without_login

from pages import Page
from planted import DATA

EVIL = "<script>alert(1)</script> & \"quoted\" 'too' $x^2$"
DAY = 86_400


def report(**changes):
    return {
        "genrec": "1.2.3",
        "source": "/data/shop/log.csv",
        "format": "table",
        "engine": "duckdb",
        "time": "ms",
        "steps": [
            {"step": "read", "interactions": 4000, "users": 500, "items": 300},
            {"step": "rating >= 3", "interactions": 3200, "users": 450, "items": 300},
            {"step": "core (user >= 5, item >= 5)", "interactions": 3000, "users": 400, "items": 200},
        ],
        "read": {"interactions": 4000, "users": 500, "items": 300},
        "kept": {"interactions": 3000, "users": 400, "items": 200},
        "num_quarantined": 17,
        "num_quarantined_items": 1,
        "num_ties": 1234,
        "num_users_last_tied": 172,
        "num_users_last_by_chance": 100.0,
        "num_repeats": 60,
        "span": [1_000_000_000.0, 1_000_000_000.0 + 500 * DAY],
        "num_evaluated_users": 400,
        "lengths": [[5, 350], [20, 49], [270, 1]],
        "popularity": [[5, 150], [30, 45], [180, 5]],
        "log_coverage": {"review": 2400},
        "over_time": {
            "step": "quarter",
            "seconds": 7_889_400,
            "begin": 994_064_400,
            "parts": {
                "train": [400, 500, 500, 400, 200, 200],
                "valid": [0, 0, 50, 50, 100, 200],
                "test": [0, 0, 0, 0, 0, 400],
            },
        },
        "ratings": [[3.0, 500], [4.5, 1500], [5.0, 900]],
        "rating_step": None,
        "num_unrated": 100,
        "parts": {"train": 2200, "valid": 400, "test": 400},
        "num_train": 2200,
        "num_valid_rows": 400,
        "num_test_rows": 400,
        "num_short_users": 0,
        "tie_rule": "the log's own order",
        "num_catalogue_rows": 310,
        "num_untitled_items": 4,
        "num_items_with_shared_title": 7,
        "text_coverage": {"title": 196, "brand": 50},
        "cleaned": {"title": 33},
        "log_cleaned": {},
        "split": "leave-one-out",
        "log_sha256": "0a1b2c",
        "split_sha256": "3d4e5f",
        **changes,
    }


@pytest.fixture
def page(tmp_path):
    def write(of_report):
        path = save_page(tmp_path / "made", of_report)
        assert path.name == "report.html"
        return path.read_text(encoding="utf-8")

    return write


def plots(text):
    return re.findall(r'<svg[^>]*class="plot".*?</svg>', text, re.S)


def line(text, begin):
    (found,) = [line for line in text.splitlines() if line.startswith(begin)]
    return found.removeprefix(begin).split()


def test_the_page_is_whole_and_needs_nothing_else(page):
    text = page(report())
    found = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in found.values("href")} <= set(ids)
    for variable in set(re.findall(r"var\(--([a-z0-9-]+)\)", text)):
        assert f"--{variable}:" in text


def test_plots_say_what_they_show_and_follow_the_colours_of_the_page(page):
    drawn = plots(page(report()))
    assert len(drawn) == 4
    for plot in drawn:
        assert re.search(r'role="img"', plot)
        assert "var(--" in plot
        assert not re.search("#000[12]|<style|metadata|</text>[^<]", plot)
    assert re.findall(r'aria-label="([^"]+)"', "".join(drawn)) == [
        "Interactions over time, per quarter: the most, 800, from 2002-10-01 on",
        "Users by number of interactions: 5 to 270, median 5",
        "Interactions of an item by its rank: 180 of the first, 5 of the last. Of the interactions the most popular 1% "
        "(2 items) have 12.0% and the most popular 10% (20 items) have 45.0%; Gini coefficient 0.56 (0: every item is taken "
        "equally often).",
        "Interactions by rating, 3: 500; 4.5: 1,500; 5: 900; none: 100",
    ]


def test_text_and_page_say_what_the_report_says(page):
    text, words = report_table(report()), Page(page(report())).text
    assert line(text, "rating >= 3") == ["3,200", "800", "450", "50", "300", "0"]
    assert line(text, "core (user >= 5, item >= 5)") == ["3,000", "200", "400", "50", "200", "100"]
    assert "450 \N{MINUS SIGN}50 (10.0%) 300 all kept" in words
    assert line(text, "validation") == ["400", "13.3%"]
    assert line(text, "a user") == ["5", "5", "7.5", "20", "270"]
    assert "a user 5 5 7.5 20 270" in words
    assert line(text, "4.5") == ["1,500", "50.0%"]
    assert line(text, "none") == ["100", "3.33%"]
    assert line(text, "brand (of each item)") == ["50", "25.0%", "0"]
    assert line(text, "review (of each interaction)") == ["2,400", "80.0%", "0"]
    flat = " ".join(text.split())
    for said in (
        "Read from /data/shop/log.csv as table, on duckdb.",
        "Split: leave-one-out. All 400 users are evaluated.",
        "the most popular 1% (2 items) have 12.0% and the most popular 10% (20 items) have 45.0%",
        "Times from 2001-09-09 to 2003-01-22 (UTC), read as milliseconds.",
        "1,234 interactions (41.1%) have the time of the one before of the same user.",
        "In 43.0% of users (172) the last interaction ties with others: another tie rule can change their test item, and "
        "ties in random order would change that of 25.0% of users. The "
        "rule here: the log's own order.",
        "60 interactions (2.00%) repeat an item that the user had before.",
        "17 rows of the log and 1 row of the catalogue could not be used; they are in quarantine.jsonl, with the reason.",
        "The catalogue has 310 items, of which 200 are kept.",
        "4 items without a title are called by the id.",
        "7 items share a title with another.",
    ):
        assert said in flat
        assert said in words
    assert "genrec 1.2.3" in words
    assert "0a1b2c" in words


sizes = st.dictionaries(st.integers(1, 3000), st.integers(1, 40), min_size=1, max_size=12)


@settings(deadline=None)
@given(sizes)
def test_figures_of_a_curve_are_those_of_its_sizes(counts):
    curve = [[size, number] for size, number in sorted(counts.items())]
    every = np.repeat(*np.array(curve).T)
    text = report_table(
        report(popularity=curve, kept={"interactions": 3000, "users": 400, "items": len(every)})
    )
    median, high = np.quantile(every, [0.5, 0.9], method="inverted_cdf")
    expected = [f"{every.min():,}", f"{median:,}", f"{every.mean():,.1f}", f"{high:,}", f"{every.max():,}"]
    assert line(text, "an item") == expected
    apart = np.abs(every[:, None] - every[None]).mean() / (2 * every.mean())
    assert float(re.search(r"Gini coefficient (-?[\d.]+)", text)[1]) == pytest.approx(apart, abs=0.0051)
    if len(every) >= 10:
        top = np.sort(every)[::-1][: -(-len(every) // 10)].sum() / every.sum()
        said = re.search(r"popular\s+10%\s+\([\d,]+\s+items?\)\s+ha(?:ve|s)\s+([\d.]+)%", text)
        assert float(said[1]) == pytest.approx(100 * top, abs=0.051)


@pytest.mark.parametrize(
    ("curve", "bars"),
    [
        ([[1, 1]], 1),
        ([[3000, 1]], 1),
        ([[7, 3], [8, 2]], 2),
        ([[1, 30], [30, 1]], 30),  # so few sizes have a bar each
        ([[1, 30], [2, 10], [31, 1]], 9),
        ([[1, 10**6], [10**5, 1]], 33),
    ],
)
def test_any_curve_can_be_drawn(page, curve, bars):
    drawn = plots(page(report(lengths=curve, popularity=curve)))
    assert len(drawn) == 4
    assert drawn[1].count('style="fill: var(--m0)') == bars
    assert "nan" not in "".join(re.findall(r' d="([^"]*)"', "".join(drawn)))


def test_the_text_is_at_most_a_hundred_wide():
    long = report(
        source="/" + "long/" * 60,
        log_coverage={"w" * 150: 3},
        steps=[
            {"step": "since 2014-05-01T10:00:00 " * 6, "interactions": 10**10, "users": 10**9, "items": 10**9}
        ]
        * 2,
    )
    assert max(map(len, report_table(long).splitlines())) <= 100
    assert max(map(len, report_table(report()).splitlines())) <= 100


def test_the_same_report_gives_the_same_bytes(page):
    first = page(report())
    assert page(json.loads(json.dumps(report()))) == first
    assert page(report(num_ties=1235)) != first


def test_writing_changes_no_report(page):
    of_report = report()
    before = copy.deepcopy(of_report)
    page(of_report)
    report_table(of_report)
    assert of_report == before


def test_words_of_users_are_words(page):
    steps = report()["steps"]
    steps[1]["step"] = EVIL
    odd = report(source=EVIL, format=EVIL, log_coverage={EVIL: 3, "日本語 \ud800 \x00": 1}, steps=steps)
    text = page(odd)
    assert "<script" not in text
    assert sum(EVIL in words for words in Page(text).words) >= 4
    assert "日本語" in text


def test_what_is_missing_is_left_out(page):
    bare = report(
        time="row",
        num_quarantined=0,
        num_quarantined_items=0,
        num_ties=0,
        num_users_last_tied=0,
        num_repeats=0,
        num_catalogue_rows=0,
        num_untitled_items=200,
        cleaned={},
        steps=report()["steps"][:1],
        split="user-disjoint, seed 0",
    )
    for name in ("over_time", "ratings", "rating_step", "num_unrated"):
        del bare[name]
    text = report_table(bare)
    found = Page(page(bare))
    for said in (text, found.text):
        assert "There are no times: the order is that of the source's rows." in said
        assert "No user has an item twice." in said
        assert "There is no catalogue: items are called by their ids." in said
        assert not re.search("tie rule|quarantine|UTC|[Cc]leaned|[Rr]atings?\\b", said)
    assert len(plots(page(bare))) == 2


def test_a_tie_changes_the_test_item_only_where_each_user_has_one():
    for changes in ({"split": "global temporal, one row an interaction"}, {"num_short_users": 3}):
        assert "can change their last item" in " ".join(report_table(report(**changes)).split())


@pytest.mark.parametrize("days", [0.001, 0.5, 3, 40, 200, 1500, 18_000])
def test_dates_below_a_plot_fit_its_span(page, days):
    begin, steps = 1_000_000_000, 100
    over = {"step": "x", "seconds": days * DAY / steps, "begin": begin, "parts": {"train": [1] * steps}}
    (plot, *_) = plots(page(report(over_time=over, parts={"train": 3000})))
    names = re.findall(r">(\d{4}|\d{4}-\d\d|\d\d-\d\d|\d\d:\d\d)</text>", plot)
    assert 2 <= len(names) <= 6
    assert all(one != other for one, other in pairwise(names))


def test_very_many_ratings_are_drawn_to_scale(page):
    many = [[n / 10, n] for n in range(1, 101)]
    (*_, plot) = plots(page(report(ratings=many, num_unrated=0)))
    assert 'aria-label="Interactions by rating, 100 values"' in plot
    stepped = report(ratings=[[0.5, 2000], [2.75, 1000]], rating_step=0.25, num_unrated=0)
    assert line(report_table(stepped), "from 2.75") == ["1,000", "33.3%"]
    (*_, plot) = plots(page(stepped))
    assert "2 values" in plot


def test_the_text_needs_no_matplotlib_and_the_page_says_so(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "leave-one-out" in report_table(report())
    with pytest.raises(MissingExtraError, match="train"):
        save_page(tmp_path, report())


# ---------------------------------------------------------------- from a log


def prepared(tmp_path, rows, header="user_id,item_id,timestamp", **settings):
    (tmp_path / "log.csv").write_text("\n".join([header, *rows]) + "\n")
    settings = {"user_core": 1, "item_core": 1, "time": "s"} | settings
    return prepare(DataSettings(source=str(tmp_path / "log.csv"), **settings), tmp_path / "out")


@pytest.mark.parametrize(
    ("gap", "step"), [(0, "minute"), (600, "10 minutes"), (DAY, "6 hours"), (60 * DAY, "month")]
)
def test_interactions_are_counted_over_time_by_part(tmp_path, gap, step):
    users, length, begin = 4, 30, 1_200_000_000
    rows = [f"u{user},i{n % 7},{begin + n * gap + user}" for user in range(users) for n in range(length)]
    made = prepared(tmp_path, rows)
    over = made["over_time"]
    assert over["step"] == step
    assert {part: sum(counts) for part, counts in over["parts"].items()} == made["parts"]
    (size,) = {len(counts) for counts in over["parts"].values()}
    assert size <= 120
    held = over["begin"] + over["seconds"] * np.flatnonzero(over["parts"]["test"])
    last = begin + (length - 1) * gap
    assert all(abs(moment - last) <= over["seconds"] for moment in held)
    assert (held.size and over["begin"] <= begin) or size == 1
    assert len(plots(save_page(tmp_path, made).read_text())) == (3 if size > 1 else 2)


def test_numbers_that_are_no_times_are_not_counted_over_time(tmp_path):
    made = prepared(tmp_path, [f"u,i{n},{n + 1}" for n in range(5)], time="number")
    assert "over_time" not in made
    assert "Times are numbers from 1 to 5, of which only the order counts." in report_table(made)


def test_ratings_and_columns_are_counted_where_they_are(tmp_path):
    rows = [f"u,i{n},{10**9 + n},{n / 7 if n else ''},{'<b> </b>' if n % 2 else 'fine'}" for n in range(150)]
    made = prepared(tmp_path, rows, "user_id,item_id,timestamp,rating,review")
    assert made["num_unrated"] == 1
    assert made["rating_step"] == pytest.approx(148 / 7 / 20)
    assert len(made["ratings"]) == 20
    assert sum(size for _, size in made["ratings"]) == 149
    assert made["ratings"][0] == [pytest.approx(1 / 7), 8]
    assert made["log_coverage"] == {"review": 75}
    assert made["text_coverage"] == {"title": 0}
    few = prepared(tmp_path, rows[:4], "user_id,item_id,timestamp,rating,review")
    assert (few["rating_step"], len(few["ratings"]), few["num_unrated"]) == (None, 3, 1)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("postgres://me:secret@host:5432/shop", "postgres://host:5432/shop"),
        ("postgres://me:s@cret@host/a@b", "postgres://host/a@b"),
        ("sqlite:///some/where.db", "sqlite:///some/where.db"),
        ("/data/me@home/log.csv", "/data/me@home/log.csv"),
    ],
)
def test_reports_hold_no_passwords(source, shown):
    assert without_login(source) == shown


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the development data sets are not at {DATA}")
def test_a_real_set_is_reported(tmp_path):
    made = prepare(DataSettings(source=str(DATA / "musical-reviews")), tmp_path)
    text = report_table(made)
    assert "In 44.2% of users (631) the last interaction ties" in text
    assert line(text, "5") == ["6,938", "67.6%"]
    assert len(plots(save_page(tmp_path, made).read_text())) == 4
