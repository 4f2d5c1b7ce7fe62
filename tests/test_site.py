"""The documentation is fresh, complete, and a site that needs no network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from genrec.core.errors import RunError

import build_site

ROOT = Path(__file__).parents[1]


def test_what_is_written_is_fresh():
    for path, text in build_site.written():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not fresh: make written"


def test_every_recipe_says_what_it_is_and_on_what_it_runs():
    table = build_site.recipe_table()
    for head in build_site.recipe_heads():
        assert head.sentence, head.name
        assert head.hardware, head.name
        assert f"| `{head.name}` |" in table
        assert head.text("Launch").startswith(f"genrec run {head.name}")


def test_a_paper_s_results_are_those_of_its_recipes_alone():
    text = build_site.method_results("TIGER")
    assert re.findall(r"^### `(\w+)`", text, re.MULTILINE) == ["tiger_beauty", "tiger_movielens"]
    assert build_site.method_results("Nobody") == "Not measured: no shipped recipe is of this paper."


def test_the_columns_of_a_head_become_a_table(tmp_path, monkeypatch):
    """Also where a column begins a letter off, touches the one before it, or goes on below it."""
    (tmp_path / "mine.yaml").write_text(
        """\
# mine: a recipe of a paper.
#
# What it is: one thing.
# Paper: Mine (Somebody, 2020). It
#   has a table, and so has this:
#   data          as much as there is, of all kinds,             little
#                 cut by time
#   a thing of    which nobody has heard of before, ever, at all a held-
#   two words                                                     out one
# Hardware: none. Time: 3 s on nothing.
# Expected metrics, on nothing: 0.
# Launch: genrec run mine
name: mine
"""
    )
    monkeypatch.setattr(build_site, "RECIPES", tmp_path)
    text = build_site.method_results("Mine")
    assert "One thing.\n\nPaper: Mine (Somebody, 2020). It has a table, and so has this:\n\n" in text
    assert "| data | as much as there is, of all kinds, cut by time | little |\n" in text
    assert (
        "| a thing of two words | which nobody has heard of before, ever, at all | a held-out one |\n" in text
    )
    assert "Expected metrics, on nothing: 0.\n\n    genrec run mine" in text
    assert build_site.recipe_table().endswith(
        "| `mine` | a recipe of a paper | Mine (Somebody, 2020) | none | 3 s on nothing |"
    )


def test_blocks_without_arguments_that_stand_after_one_another_are_blocks_of_their_own():
    text = (
        "<!-- written: recipes -->\n<!-- /written -->\nbetween\n<!-- written: recipes -->\n<!-- /written -->"
    )
    assert build_site.renewed(text).count(build_site.recipe_table()) == 2
    assert "\nbetween\n" in build_site.renewed(text)


def test_a_block_that_names_no_writer_or_is_open_is_an_error():
    with pytest.raises(RunError, match="no writer 'nothing'"):
        build_site.renewed("<!-- written: nothing -->\n<!-- /written -->")
    with pytest.raises(RunError, match="must be closed"):
        build_site.renewed("<!-- written: recipes -->\n")


def test_the_picture_has_every_stage_and_only_real_arrows():
    before = build_site.stages_before()
    assert before["evaluate"] == {"train", "baselines"}
    assert before["train"] == {"index", "gru4rec"}
    assert all(f">{stage}</tspan>" in build_site.flow_svg(build_site.LIGHT) for stage in build_site.STAGES)


def test_every_key_is_on_the_page_of_keys():
    from genrec.recipe import recipe_keys

    page = build_site.keys_page()
    assert all(f"| `{key}` |" in page for key, _, _ in recipe_keys())


def test_a_notebook_becomes_a_page_with_its_code():
    for path in build_site.NOTEBOOKS.glob("*.py"):
        page = build_site.notebook_page(path)
        assert page.startswith("# ")
        code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
        written = [
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if line and not line.startswith("#")
        ]
        assert [line for line in code.splitlines() if line and not line.startswith("#")] == written


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="pip install 'genrec[docs]'")
    pytest.importorskip("mkdocstrings")
    if not (ROOT / "build" / "typing" / "genrec").is_dir():
        pytest.skip("make docs makes the links first")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert {"tutorial.html", "troubleshooting.html", "recipes.html"} <= {page.name for page in pages}
    loads = re.compile(
        r"""<(script|img|source|iframe)[^>]*\s(src|srcset)=["']?(https?:|//)"""
        r"""|<link(?![^>]*canonical)[^>]*\shref=["']?(https?:|//)"""
    )
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not loads.search(text), page
        assert 'class="mermaid"' not in text, f"{page}: the theme would fetch what draws it"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:|//)", sheet.read_text(encoding="utf-8")), sheet
    api = (site / "reference" / "api" / "genrec.html").read_text(encoding="utf-8")
    assert "genrec.Recommender.recommend" in api
