"""Clicks through whole runs: a click model on everything, adapters on a few, everyone measured on the same rows."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from genrec.cli import main
from genrec.core.errors import RecipeError, RunError
from genrec.evaluation.click import measure_clicks
from genrec.pipeline import pipeline_of
from genrec.recipe import parse_recipe
from genrec.serving import Recommender

from pages import Page
from tastes import taste_catalog, taste_log, taste_rows

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tastes")
    taste_log(taste_rows(40)).write(place / "interactions.parquet")
    taste_catalog().write(place / "items.parquet")
    return place


def recipe(run_dir, folder, backbone, adapter="reclora", **changes):
    tree = {
        "run_dir": str(run_dir),
        "data": {"source": str(folder), "item_core": 1, "split": {"rule": "global_temporal"}},
        "index": {"method": "independent"},
        "tasks": {"form": "prompt", "max_history": 6, "mixture": {"click": {"count": 60}}},
        "model": {"backbone": str(backbone), "dtype": "float32"},
        "train": {"adapter": adapter, "epochs": 1, "report_to": "none"},
        "click": {"embedding": 8, "hidden": 16, "layers": 1, "max_history": 12, "epochs": 2},
        "evaluate": {
            "task": "click",
            "max_rows": 50,
            "resamples": 50,
            "baselines": ["constant", "logistic_regression", "deepfm"],
            "search": {"deepfm": {"embedding": [8]}, "click": {"dropout": [0.1, 0.3]}},
        },
    }
    if adapter == "reclora":
        tree["train"]["reclora"] = {"vectors": "click", "experts": 2}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree[section][name] = value
    return parse_recipe(tree)


@pytest.fixture(scope="module")
def done(folder, tiny_backbone, tmp_path_factory):
    wanted = recipe(tmp_path_factory.mktemp("run") / "run", folder, tiny_backbone)
    return pipeline_of(wanted).run_until("evaluate"), wanted


def test_every_model_is_measured_on_the_same_rows_and_can_be_measured_again(done, capsys):
    run, wanted = done
    report = json.loads((run / "metrics.json").read_text())
    table = pq.read_table(run / "predictions.parquet")
    assert table.num_rows == report["protocol"]["num_rows"] == 50
    labels = table["label"].to_numpy()
    names = ["constant", "logistic_regression", "deepfm", "click"]
    assert list(report["baselines"]) == names
    for name, entry in [("model", report["model"]), *report["baselines"].items()]:
        assert entry["metrics"] == pytest.approx(measure_clicks(labels, table[name].to_numpy()))
    assert [test["b"] for test in report["tests"][::3]] == names
    assert len(report["baselines"]["click"]["tuning"]["trials"]) == 2
    assert report["training"]["num_rows"] == 60
    assert report["gates"]
    assert not (run / "search").exists()
    assert pipeline_of(wanted).run_until("evaluate") == run
    assert "prepare: done already" in (shown := capsys.readouterr().err)
    assert shown.count("done already") == 6
    said = Page((run / "report.html").read_text()).text
    assert "DIN (the click model)" in said
    assert "Can probabilities be trusted?" in said
    card = (run / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["model-index"][0]["results"][0]["metrics"][0]["type"] == "AUC"


def test_the_command_prints_the_table(done, capsys):
    run, _ = done
    assert main(["run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "Logistic regression" in out
    assert "DIN (the click model)" in out
    assert "the same for every model" in out


def test_runs_on_the_same_rows_are_compared(done, tmp_path, capsys):
    import shutil

    run, _ = done
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert main(["compare", str(run), str(other)]) == 0
    out = capsys.readouterr().out
    assert out.count("not told apart") == 3
    assert "+0.0000 [+0.0000, +0.0000], p 1.0000" in out
    assert main(["compare", str(run), str(other), "--metrics", "AUC"]) != 0
    table = pq.read_table(other / "predictions.parquet")
    pq.write_table(table.slice(1), other / "predictions.parquet")
    assert main(["compare", str(run), str(other)]) != 0
    assert "not measured on the same rows" in capsys.readouterr().err
    assert main(["compare", str(run), str(run)]) != 0
    (other / "metrics.json").write_text("{}")
    assert main(["compare", str(run), str(other)]) != 0
    assert "is no evaluated run" in capsys.readouterr().err


def test_probabilities_are_those_of_the_two_answers_and_know_the_click_model(done):
    import torch

    from genrec.training.finetune import load_trained

    run, wanted = done
    pipeline = pipeline_of(wanted)
    model, renderer, _, _ = load_trained(run, "float32")
    asked, questions, _ = pipeline._questions(renderer, model.tokenizer, False)
    samples = pipeline.measured.take(np.array(asked))
    vectors = pipeline._click_model().vectors(samples)
    saved = pq.read_table(run / "predictions.parquet")["model"].to_numpy()
    for row in (0, 7, 30):
        question = questions[row]
        text = renderer.tokenizer.decode(question.prompt)
        assert samples.source.book.title[samples.item[row]] in text
        words = [renderer.tokenizer.decode([token]).strip() for token in (question.yes, question.no)]
        assert "Yes".startswith(words[0])
        assert "No".startswith(words[1])
        with torch.inference_mode(), model.answering(torch.from_numpy(vectors[[row]])):
            logits = model.backbone(torch.tensor([question.prompt])).logits[0, -1]
        two = logits[[question.yes, question.no]].softmax(0)
        assert float(two[0]) == pytest.approx(saved[row], abs=1e-5)


def test_rows_are_trained_with_the_vectors_of_their_own_samples(done):
    run, wanted = done
    pipeline = pipeline_of(wanted)
    from genrec.tasks import read_rows

    rows = read_rows(run / "tasks")["train"]
    vectors = pipeline._row_vectors(rows, None)
    samples = pipeline._samples("train")
    every = dict(zip(samples.keys, pipeline._click_model().vectors(samples), strict=True))
    for row in range(0, 60, 11):
        assert vectors[row] == pytest.approx(every[rows["key"][row]], abs=1e-5)
    labels = dict(zip(samples.keys, samples.label, strict=True))
    said = [{"Yes": 1.0, "No": 0.0}[each.strip()] for each in rows["completion"]]
    assert said == [labels[key] for key in rows["key"]]


def test_a_plain_adapter_beside_a_click_model_of_retrieved_histories(folder, tiny_backbone, tmp_path):
    changes = {"evaluate__baselines": ["constant"], "evaluate__search": {}, "click__kind": "sim"}
    retrieve = {"how": "similar", "encoder": "words"}
    wanted = recipe(tmp_path / "run", folder, tiny_backbone, "lora", tasks__retrieve=retrieve, **changes)
    run = pipeline_of(wanted).run_until("evaluate")
    report = json.loads((run / "metrics.json").read_text())
    assert "gates" not in report
    assert list(report["baselines"]) == ["constant", "click"]
    assert report["baselines"]["click"]["name"] == "SIM (the click model)"
    with pytest.raises(RunError, match="answers yes or no"):
        Recommender.from_pretrained(run)
    with pytest.raises(RecipeError, match=r"evaluate\.task=ranking"):
        pipeline_of(wanted).judge_file("any.parquet", "any")


def test_what_contradicts_itself_is_told_before_anything_is_done(folder, tiny_backbone, tmp_path):
    def refused(said, **changes):
        with pytest.raises(RecipeError, match=said):
            pipeline_of(recipe(tmp_path / "run", folder, tiny_backbone, **changes)).run_until("train")
        assert not (tmp_path / "run").exists()

    refused("exactly|takes no others", train__reclora={"vectors": "sasrec"})
    refused("takes no others", evaluate__task="ranking")
    refused("ranks none", train__validate_steps=5)
    refused("Unknown baseline 'popularity'", evaluate__baselines=["popularity"])
    refused("answers yes or no to an item", tasks__mixture={"next_item": 1})
    refused("must be a setting of click", evaluate__search={"click": {"width": [3]}})


def test_a_mixture_with_rows_of_other_families_has_no_vectors(folder, tiny_backbone, tmp_path):
    mixture = {"click": {"count": 8}, "item_to_text": 1}
    with pytest.raises(RecipeError, match="item_to_text too"):
        pipeline_of(recipe(tmp_path / "run", folder, tiny_backbone, tasks__mixture=mixture)).run_until(
            "train"
        )
