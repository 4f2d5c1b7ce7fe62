"""The main job itself. The whole of it is slow; its parts on the real log and model are not."""

import json
import os
from pathlib import Path

import pytest

from genrec.cli import main
from genrec.core.packages import cache_dir
from genrec.data_prep import leave_one_out, load_dataset
from genrec.models.backbone import PACKAGED_MODELS, load_backbone

CACHED = all(
    (cache_dir() / files.package / Path(member).name).exists()
    for files in PACKAGED_MODELS.values()
    for member in files.members
)
needs_model = pytest.mark.skipif(
    not CACHED, reason="the packaged model is not in the cache: run make quickstart once"
)


@pytest.mark.skipif(
    not (cache_dir() / "recbole==1.2.1" / "ml-100k.inter").exists(),
    reason="MovieLens-100K is not in the cache: run make quickstart once",
)
def test_the_real_log_is_whole():
    log, items = load_dataset("movielens-100k")
    assert (len(log), log.num_users, len(items)) == (100_000, 943, 1_682)
    assert items.title("1") == "Toy Story (1995)"
    split = leave_one_out(log.k_core(5, 1))
    assert len(split.test) == 943
    assert split.num_short == 0


@needs_model
@pytest.mark.model
def test_the_real_model_answers_sanely():
    import torch

    model, tokenizer = load_backbone("smollm2-135m-instruct")
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = model(input_ids=ids).logits[0, -1].topk(5).indices
    assert " Paris" in [tokenizer.decode([i]) for i in best]


@pytest.mark.slow
def test_the_quickstart_beats_popularity_clearly(tmp_path):
    assert main(["run", "quickstart", f"run_dir={tmp_path / 'run'}"]) == 0
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    ours, popular = report["model"]["metrics"], report["baselines"]["popularity"]["metrics"]
    assert ours["num_users"] == popular["num_users"] == 943
    assert ours["HR@10"] > 1.5 * popular["HR@10"]
    assert ours["NDCG@10"] > 1.5 * popular["NDCG@10"]
    assert ours["valid_item_rate"] == ours["distinct_item_rate"] == 1
    assert ours["history_repeat_rate"] == 0
    size = sum(p.stat().st_size for p in (tmp_path / "run" / "model").iterdir())
    assert size < 25e6, os.listdir(tmp_path / "run" / "model")
