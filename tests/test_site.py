"""The documentation is fresh, complete, and a site that needs no network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from genrec.core.errors import RunError
from genrec.pipeline import STAGES

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


def test_a_block_that_names_no_writer_or_is_open_is_an_error():
    with pytest.raises(RunError, match="no writer 'nothing'"):
        build_site.renewed("<!-- written: nothing -->\n<!-- /written -->")
    with pytest.raises(RunError, match="must be closed"):
        build_site.renewed("<!-- written: recipes -->\n")


def test_the_picture_has_every_stage_and_only_real_arrows():
    before = build_site.stages_before()
    assert before["evaluate"] == {"train", "baselines"}
    assert before["train"] == {"index", "gru4rec"}
    assert all(f">{stage}</tspan>" in build_site.flow_svg(build_site.LIGHT) for stage in STAGES)


def test_every_key_is_on_the_page_of_keys():
    from genrec.recipe import recipe_keys

    page = build_site.keys_page()
    assert all(f"| `{key}` |" in page for key, _, _ in recipe_keys())


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
    loads = re.compile(r"""<(?:script|img|source|iframe)[^>]*\s(?:src|srcset)=["']?(https?:|//)|<link(?![^>]*canonical)[^>]*\shref=["']?(https?:|//)""")
    for page in pages:
        assert not loads.search(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:|//)", sheet.read_text(encoding="utf-8")), sheet
    api = (site / "reference" / "api" / "genrec.html").read_text(encoding="utf-8")
    assert "recommend_" in api or 'id="genrec.Recommender' in api or "Recommender.recommend" in api
