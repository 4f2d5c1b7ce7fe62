"""Every shipped recipe runs through the real pipeline: tiny models and logs, all else as it is shipped."""

import json
import shutil

import pytest

from genrec.pipeline import pipeline_of
from genrec.recipe import load_recipe, shipped_recipes

from planted import rich_catalog, rich_log

pytestmark = pytest.mark.model

SIZES = [
    "data.user_core=2",
    "data.item_core=1",
    "index.text_encoder=words",
    "index.levels=2",
    "index.codebook_size=8",
    "index.vector_size=8",
    "index.rq_vae.hidden=[16]",
    "index.rq_vae.code_size=4",
    "index.rq_vae.epochs=2",
    "tasks.candidates=5",
    "train.max_steps=2",
    "train.batch_size=4",
    "train.accumulation=1",
    "sasrec.epochs=1",
    "evaluate.resamples=10",
    "evaluate.test_resamples=10",
]


def smaller(recipe):
    """What differs from the shipped recipe: counts of samples that its log does not have, and sizes of a new model."""
    for name, weight in recipe.tasks.mixture.items():
        yield f"tasks.mixture.{name}={weight if isinstance(weight, float) else {'count': 8}}"
    if recipe.model.layers is not None:
        yield "model.layers=1"
    if recipe.evaluate.task == "click":
        yield "tasks.retrieve.encoder=words"
        yield from ("click.epochs=1", "click.hidden=16", "evaluate.max_rows=20")
        yield from (f"evaluate.search.{name}={{}}" for name in recipe.evaluate.search)
    if recipe.model.backbone == "new":
        yield from (f"model.new.{key}=16" for key in ("width", "head_size", "feed_forward"))
        yield from ("model.new.layers=1", "model.new.heads=2")


@pytest.fixture(scope="module")
def rich_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rich")
    rich_log().write(folder / "interactions.parquet")
    rich_catalog().write(folder / "items.parquet")
    return folder


def talking(backbone, folder):
    """A copy of a tiny backbone with a chat template."""
    from transformers import AutoTokenizer

    shutil.copytree(backbone, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_trains_two_steps_and_is_evaluated(
    name, tiny_backbone, tiny_t5, rich_folder, tmp_path
):
    shipped = load_recipe(name)
    backbone = {"google-t5/t5-small": tiny_t5, "new": "new"}.get(shipped.model.backbone, tiny_backbone)
    if shipped.tasks.form == "messages":
        backbone = talking(backbone, tmp_path / "talking")
    where = [f"data.source={rich_folder}", f"run_dir={tmp_path / name}", f"model.backbone={backbone}"]
    recipe = load_recipe(name, [*where, *SIZES, *smaller(shipped)])
    run = pipeline_of(recipe).run_until("evaluate")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["training"]["num_steps"] == 2
    report = json.loads((run / "tasks" / "report.json").read_text())
    assert set(report["families"]) == set(shipped.tasks.mixture), report
