import subprocess
import sys
from importlib.resources import files

import pytest

from genrec.core.errors import RecipeError
from genrec.recipe import dump_recipe, load_recipe, parse_recipe, recipe_keys, shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid_and_opens_with_what_it_is(name):
    recipe = load_recipe(name)
    assert parse_recipe(__import__("yaml").safe_load(dump_recipe(recipe))) == recipe
    text = files("genrec.recipes").joinpath(f"{name}.yaml").read_text()
    for word in (f"# {name}:", "What it is", "Paper", "Hardware", "Launch"):
        assert word in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=2", "Unknown key 'train.epoch'. Did you mean 'train.epochs'"),
        ("trian.epochs=2", "Unknown key 'trian'. Did you mean 'train'"),
        ("epochs=2", "Unknown key 'epochs'. Did you mean 'train.epochs'"),
        ("train.lora_r=0", "train.lora_r: Input should be greater than or equal to 1, got 0"),
        (
            "train.adapter=lra",
            "train.adapter: Input should be 'full', 'lora', 'qlora', 'dora', 'reclora' or 'qreclora', got 'lra'",
        ),
        ("name.x=1", "Unknown key 'name.x'"),
        ("train.epochs", "written key.path=value"),
        ("train.epochs={", "not valid YAML"),
    ],
)
def test_mistakes_are_named_with_the_nearest_valid_key(override, message):
    with pytest.raises(RecipeError) as error:
        load_recipe("quickstart", [override])
    assert message in str(error.value)


def test_overrides_are_yaml():
    recipe = load_recipe(
        "quickstart", ["evaluate.ks=[3, 7]", "model.layers=null", "train.epochs=0.5", "seed=4"]
    )
    assert recipe.evaluate.ks == (3, 7)
    assert recipe.model.layers is None
    assert recipe.train.epochs == 0.5


def test_one_seed_reaches_every_stage_that_has_none_of_its_own():
    recipe = parse_recipe({"seed": 7, "index": {"seed": 1}})
    assert (recipe.index.seed, recipe.tasks.seed, recipe.train.seed) == (1, 7, 7)


def test_every_key_is_described():
    for key, default, description in recipe_keys():
        assert len(description) > 10, key
        assert default, key


@pytest.mark.parametrize("text", ["- a\n", "a: [", "x"])
def test_files_that_are_no_recipe(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "r.yaml")


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'quickstart'"):
        load_recipe("quikstart")


def test_the_command_line_reports_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "genrec", "run", "quickstart", "train.epoch=2"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Did you mean 'train.epochs'" in done.stderr
    assert "Traceback" not in done.stderr


def test_rows_from_a_teacher_need_one(tiny_backbone, log, items, tmp_path):
    from genrec.data_prep import leave_one_out
    from genrec.indexing import build_index
    from genrec.tasks import build_dataset
    from genrec.training import ModelSettings, finetune

    split = leave_one_out(log)
    index = build_index("independent", items, split.train)
    data = build_dataset(split, items, index)
    model = ModelSettings(rows_start="text+teacher")
    with pytest.raises(RecipeError, match=r"needs a train\.teacher"):
        finetune(tiny_backbone, data, index, items, split, tmp_path, model=model)


def test_recipes_that_name_tasks_as_before_are_read():
    recipe = parse_recipe({"tasks": {"names": ["next_item", "item_to_text"]}})
    assert recipe.tasks.mixture == {"next_item": 1, "item_to_text": 1}
    assert parse_recipe({"tasks": {"mixture": ["next_item"]}}).tasks == parse_recipe({}).tasks
    assert recipe.tasks.texts.seed == recipe.tasks.seed == recipe.seed


def test_a_dictionary_that_recipes_are_made_of_stays_as_it_is():
    base = {"train": {"epochs": 2}, "tasks": {}}
    seeds = [parse_recipe({**base, "seed": seed}, ["train.lora_r=4"]).train.seed for seed in (0, 1, 2)]
    assert seeds == [0, 1, 2]
    assert base == {"train": {"epochs": 2}, "tasks": {}}
