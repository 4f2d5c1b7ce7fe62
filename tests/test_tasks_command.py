import json
from pathlib import Path

import pytest

from genrec.cli import main
from genrec.tasks import SAMPLERS, load_families

from planted import rich_catalog, rich_log


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "data").mkdir()
    rich_log().write(tmp_path / "data" / "interactions.parquet")
    rich_catalog().write(tmp_path / "data" / "items.parquet")
    path = tmp_path / "r.yaml"
    path.write_text(f"""
name: rich
data: {{source: {tmp_path / "data"}, item_core: 1, user_core: 1}}
index: {{method: random, levels: 2, codebook_size: 8}}
""")
    return str(path)


def test_every_family_is_listed(capsys):
    assert main(["tasks"]) == 0
    out = capsys.readouterr().out
    for name, family in load_families().items():
        assert f"{name}  [{family.samples}; {len(family.seen)} templates" in out
    assert "click  [click; 4 templates + 1 held out]" in out


def test_a_family_shows_slots_and_templates(capsys):
    assert main(["tasks", "p5_rating"]) == 0
    out = capsys.readouterr().out
    assert "shown_score (score): the rating, or another of the scale, as likely" in out
    assert all(template.id in out for template in load_families()["p5_rating"].templates)
    assert "p5_rating-10 (held out)" in out


def test_rows_of_real_data_are_previewed(recipe, capsys):
    assert main(["tasks", "p5_explanation", "--recipe", recipe, "tasks.max_history=3"]) == 0
    out = capsys.readouterr().out
    assert out.count("p5_explanation-") == out.count(" => ") == 3
    assert main(["tasks", "lcrec_item_to_text", "--recipe", recipe, "--templates", "all"]) == 0
    assert capsys.readouterr().out.count(" => ") >= 18
    assert main(["tasks", "p5_zero_shot_rating", "--recipe", recipe, "tasks.form=messages"]) == 0
    assert capsys.readouterr().out.count("p5_zero_shot_rating-") == 4
    assert main(["tasks", "p5_zero_shot_rating", "--recipe", "quickstart"]) == 0
    assert "No sample has what these print: p5_zero_shot_rating-1, " in capsys.readouterr().out


def test_mistakes_are_named(recipe, capsys):
    for arguments, message in (
        (["tasks", "p5_ratin"], "Unknown family of tasks 'p5_ratin'"),
        (["tasks", "--recipe", recipe], "Name the family"),
        (["tasks", "click", "tasks.seed=3"], "add --recipe"),
        (["tasks", "click", "--recipe", recipe, "--samples", "0"], "--samples must be 1 or more"),
        (["tasks", "--files", "none.yaml"], "no family file"),
    ):
        assert main(arguments) == 1
        assert message in capsys.readouterr().err


def test_check_shows_every_family_and_what_is_cut(recipe, tiny_backbone, capsys):
    mixture = "tasks.mixture={next_item: 1, text_to_item: 0.5, item_to_text: {count: 4}}"
    changes = [f"model.backbone={tiny_backbone}", mixture, "tasks.form=prompt", "tasks.max_tokens=72"]
    assert main(["check", recipe, *changes]) == 0
    out = capsys.readouterr().out
    assert "histories cut to tasks.max_tokens" in out
    for family in ("next_item-", "text_to_item-", "item_to_text-"):
        assert out.count(f"\n{family}") >= 1


@pytest.mark.model
def test_a_run_leaves_its_rows_and_their_report(recipe, tiny_backbone, tmp_path, capsys):
    changes = [f"model.backbone={tiny_backbone}", "train.epochs=0.1", f"run_dir={tmp_path / 'run'}"]
    changes += ["tasks.mixture={next_item: 1, p5_rating: 0.5}", "tasks.workers=2", "tasks.max_tokens=60"]
    assert main(["train", recipe, *changes, "model.dtype=float32"]) == 0
    report = json.loads((tmp_path / "run" / "tasks" / "report.json").read_text())
    assert report["families"]["next_item"]["rows"] > 0
    assert report["serving"] == "packed"
    assert "rows of 2 families" in capsys.readouterr().err
    serving = json.loads((tmp_path / "run" / "serving.json").read_text())
    template = {"max_history": 50, "max_tokens": 60, "text_to_text": False, "template": None}
    assert serving == {"form": "packed", **template}


def test_the_page_names_every_family_and_sampler():
    page = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text()
    for name, family in load_families().items():
        held_out = f" + {len(family.held_out)}" if family.held_out else ""
        assert f"| `{name}` | `{family.samples}` | {len(family.seen)}{held_out} |" in page
    for name, sampler in SAMPLERS.items():
        assert (
            f"| `{name}` | {sampler.about} | {', '.join(f'{k}: {v.type}' for k, v in sampler.slots.items())} |"
            in page
        )
