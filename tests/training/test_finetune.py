import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trained import hit_rate, trained_bytes, tuned

from genrec.core.errors import ModelError, RecipeError, RunError
from genrec.data_prep import leave_one_out
from genrec.indexing import build_index
from genrec.tasks import TaskSettings, build_dataset
from genrec.training import finetune
from genrec.training.finetune import load_trained
from genrec.training.trainer import LengthGroupedSampler

pytestmark = pytest.mark.model


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_the_sampler_gives_every_row_and_full_steps_of_near_lengths(lengths, batch_size, epoch):
    lengths = np.array(lengths)
    sampler = LengthGroupedSampler(lengths, batch_size, seed=0)
    sampler.set_epoch(epoch)
    rows = list(sampler)
    assert set(rows) == set(range(len(lengths)))
    assert len(rows) == len(sampler) == -(-len(lengths) // batch_size) * batch_size
    assert rows == list(sampler)
    spread = sorted((min(s), max(s)) for s in lengths[np.array(rows)].reshape(-1, batch_size))
    if len(lengths) % batch_size == 0:
        assert all(high <= low for (_, high), (low, _) in itertools.pairwise(spread))


@pytest.mark.parametrize(("method", "epochs"), [("independent", 8), ("rq_kmeans", 20)])
def test_it_learns_the_planted_rule(method, epochs, tiny_backbone, log, items, tmp_path):
    run = tuned(tiny_backbone, log, items, tmp_path / "run", method, epochs=epochs)
    assert hit_rate(run, log) > 0.9
    about = json.loads((run / "training.json").read_text())
    assert about["losses"][-1][1] < about["losses"][0][1]
    assert not (run / "checkpoints").exists()


def test_prompts_and_item_texts_learn_it_too(tiny_backbone, log, items, tmp_path):
    """Chance is 5 in 24; a random two-layer model is slow to find the last item among the words."""
    names = ("next_item", "text_to_item", "item_to_text")
    run = tuned(
        tiny_backbone, log, items, tmp_path / "run", form="prompt", names=names, epochs=8, adapter="full"
    )
    assert hit_rate(run, log, k=5) > 0.6


def test_it_learns_where_items_come_again(tiny_backbone, items, tmp_path):
    """A rule that only leads round and round among four items, which the loss must not leave out."""
    from genrec.data_prep import InteractionLog

    rows = [(f"u{u}", f"i{(u + t) % 4 + 4 * (u % 6)}", float(t)) for u in range(60) for t in range(16)]
    log = InteractionLog.from_rows(rows)
    run = tuned(tiny_backbone, log, items, tmp_path / "run", epochs=8, exclude_history=False)
    assert hit_rate(run, log, exclude_history=False) > 0.9


def test_full_tuning_learns_it_too(tiny_backbone, log, items, tmp_path):
    run = tuned(tiny_backbone, log, items, tmp_path / "run", adapter="full", epochs=8)
    assert hit_rate(run, log) > 0.9


@pytest.mark.parametrize(("method", "epochs"), [("independent", 12), ("rq_kmeans", 16)])
def test_a_model_made_from_nothing_learns_it_and_comes_back_the_same(method, epochs, log, items, tmp_path):
    run = tuned("new", log, items, tmp_path / "run", method, adapter="full", epochs=epochs)
    assert hit_rate(run, log) > 0.9
    assert not (run / "model" / "adapter_model.safetensors").exists()


TIGER = {"kind": "encoder_decoder", "width": 32, "heads": 2, "head_size": 16, "feed_forward": 64, "layers": 1}


@pytest.mark.parametrize("whole_words", [False, True])
def test_an_encoder_decoder_learns_it_by_lora(whole_words, tiny_t5, log, items, tmp_path):
    run = tuned(
        tiny_t5,
        log,
        items,
        tmp_path / "run",
        "rq_kmeans",
        form="windows",
        epochs=8,
        max_history=4,
        model={"whole_words": whole_words},
        rows_learning_rate=3e-2,
    )
    assert hit_rate(run, log) > 0.9
    recommender, _, index, _ = load_trained(run)
    assert (recommender.whole_words is not None) == whole_words
    if whole_words:
        # A word is an identifier of two tokens; there are four at most, and 0 is the end.
        used = recommender.whole_words.detach().abs().sum(1) > 0
        assert used.nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    assert index.num_levels == 2


def test_an_encoder_decoder_made_from_nothing_learns_it(log, items, tmp_path):
    run = tuned(
        "new",
        log,
        items,
        tmp_path / "run",
        "rq_kmeans",
        form="windows",
        epochs=12,
        max_history=4,
        adapter="full",
        model={"new": {**TIGER, "dropout": 0.0}, "rows_start": "random"},
    )
    assert hit_rate(run, log) > 0.9
    assert load_trained(run)[0].backbone.config.d_kv == 16


def test_an_encoder_decoder_reads_prompts_and_writes_texts(tiny_t5, log, items, tmp_path):
    names = ("next_item", "item_to_text")
    run = tuned(tiny_t5, log, items, tmp_path / "run", form="prompt", names=names, epochs=0.05)
    recommender, renderer, _, _ = load_trained(run)
    ids, labels = renderer.row_ids("Which item?", " red lamp")
    prompt = renderer.tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label == -100])
    assert prompt == "Which item?</s>"
    assert renderer.tokenizer.decode([label for label in labels if label != -100]) == "red lamp</s>"
    assert recommender.decoder_start == renderer.tokenizer.pad_token_id
    assert renderer.prompt_ids(["i1"])[-1] == renderer.tokenizer.eos_token_id


@pytest.mark.parametrize("form", ["packed", "messages"])
def test_a_form_that_an_encoder_decoder_does_not_read_is_refused(form, tiny_t5, log, items, tmp_path):
    with pytest.raises(RecipeError, match=rf"tasks\.form={form} is for decoders.*Set tasks\.form=windows"):
        tuned(tiny_t5, log, items, tmp_path / "run", form=form)


def test_whole_words_without_an_encoder_are_refused(tiny_backbone, log, items, tmp_path):
    with pytest.raises(ModelError, match=r"model\.whole_words=true needs an encoder-decoder"):
        tuned(tiny_backbone, log, items, tmp_path / "run", model={"whole_words": True})


@pytest.mark.parametrize(
    ("form", "max_history", "reads"),
    [("packed", 50, 13), ("prompt", 50, 13), ("packed", 5, 4), ("prompt", 5, 5), ("packed", 1, 1)],
)
def test_a_new_model_reads_no_farther_than_it_was_trained(form, max_history, reads, log, items, tmp_path):
    """Training histories have 14 items, the last a target; a packed row's last is a target too."""
    run = tuned(
        "new", log, items, tmp_path / "run", form=form, max_history=max_history, adapter="full", epochs=0.01
    )
    assert load_trained(run)[1].max_history == reads


def test_a_pretrained_model_reads_as_much_as_it_is_asked_to(tiny_backbone, log, items, tmp_path):
    run = tuned(tiny_backbone, log, items, tmp_path / "run", epochs=0.01)
    assert load_trained(run)[1].max_history == 50


def test_a_new_model_that_would_stay_random_is_refused(log, items, tmp_path):
    with pytest.raises(RecipeError, match=r"random weights.*Set train\.adapter=full"):
        tuned("new", log, items, tmp_path / "run", adapter="lora")


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tiny_backbone, log, items, tmp_path):
    one, two, other = (
        trained_bytes(tuned(tiny_backbone, log, items, tmp_path / name, epochs=1, seed=seed))
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    assert one == two != other


RECIPE = """
name: cut
run_dir: {run}
data: {{source: {data}, item_core: 1}}
index: {{method: independent}}
model: {{backbone: {backbone}, dtype: float32}}
train: {{epochs: {epochs}, checkpoint_steps: 5, lora_dropout: 0.1}}
evaluate: {{ks: [1, 5], baselines: [popularity]}}
"""


def write_recipe(tmp_path, backbone, log, items, run, epochs):
    data = tmp_path / "data"
    if not data.exists():
        data.mkdir()
        log.write(data / "interactions.parquet")
        items.write(data / "items.parquet")
    path = tmp_path / f"{run}.yaml"
    path.write_text(RECIPE.format(run=tmp_path / run, data=data, backbone=backbone, epochs=epochs))
    return path


def genrec(*arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "genrec", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def test_a_killed_run_goes_on_and_ends_with_the_weights_of_an_uncut_one(tiny_backbone, log, items, tmp_path):
    whole = write_recipe(tmp_path, tiny_backbone, log, items, "whole", 6)
    cut = write_recipe(tmp_path, tiny_backbone, log, items, "cut", 6)
    process = genrec("train", whole)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    process = genrec("train", cut)
    checkpoints = tmp_path / "cut" / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("checkpoint-1[05]/COMPLETE")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "cut" / "model").exists(), "the run ended before it was killed"
    process = genrec("train", cut)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert "going on from checkpoint-" in out
    assert "prepare: done already" in out
    assert trained_bytes(tmp_path / "cut") == trained_bytes(tmp_path / "whole")


def test_a_checkpoint_keeps_what_another_process_wrote_first(
    tiny_backbone, log, items, tmp_path, monkeypatch
):
    """Each process writes its own random state; a fast second one does so before the first saves weights."""
    from genrec.training import checkpoints, trainer

    save = trainer.ItemTrainer._save

    def late(self, output_dir=None, state_dict=None):
        Path(output_dir).mkdir(parents=True)
        (Path(output_dir) / "rng_state_1.pth").touch()
        save(self, output_dir, state_dict)

    monkeypatch.setattr(trainer.ItemTrainer, "_save", late)
    kept = []
    monkeypatch.setattr(
        checkpoints.MarkComplete,
        "on_save",
        lambda self, args, state, control, **_: kept.extend(
            path.name for path in Path(args.output_dir).glob("checkpoint-*/rng_state_1.pth")
        ),
    )
    tuned(tiny_backbone, log, items, tmp_path / "run", epochs=1, checkpoint_steps=5)
    assert kept


CONFIG = Path(__file__).parents[2] / "recipes" / "accelerate" / "cpu_2.yaml"


def test_processes_and_accumulation_only_divide_a_step(tiny_backbone, log, items, tmp_path):
    """A recipe gives the rows of a step: one process takes four, two take two each, or one takes one four times."""
    import pyarrow.parquet as pq
    from safetensors.torch import load_file

    launcher = [
        "accelerate.commands.launch",
        "--config_file",
        str(CONFIG),
        "--main_process_port",
        "0",
        "-m",
    ]
    runs = {"one": ([], 1), "two": (launcher, 1), "four": ([], 4)}
    for name, (launch, accumulation) in runs.items():
        recipe = write_recipe(tmp_path, tiny_backbone, log, items, name, 1)
        told = [f"train.accumulation={accumulation}", "train.lora_dropout=0", "train.batch_size=4"]
        command = [sys.executable, "-m", *launch, "genrec", "run", str(recipe), *told]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    reports = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in runs]
    assert [r["training"]["processes"] for r in reports] == [1, 2, 1]
    losses = [json.loads((tmp_path / run / "training.json").read_text())["losses"] for run in runs]
    assert len(losses[0]) >= 3
    tables = [pq.read_table(tmp_path / run / "rankings.parquet") for run in runs]
    for other in (1, 2):
        assert reports[0]["training"]["num_steps"] == reports[other]["training"]["num_steps"]
        assert reports[0]["model"] == reports[other]["model"]
        assert np.allclose(losses[0], losses[other], atol=1e-4)
        assert tables[0]["item_ids"].to_pylist() == tables[other]["item_ids"].to_pylist()
        assert np.allclose(*(np.array(tables[t]["scores"].to_pylist()) for t in (0, other)), atol=1e-4)
    for name in ("adapter_model.safetensors", "identifier_rows.safetensors"):
        a, *others = (load_file(tmp_path / run / "model" / name) for run in runs)
        assert all(np.allclose(a[key], b[key], atol=1e-4) for b in others for key in a)


def test_a_batch_that_cannot_be_divided_is_refused(tiny_backbone, log, items, tmp_path):
    with pytest.raises(RecipeError, match="batch_size=5 cannot be divided over 1 processes times 2"):
        tuned(tiny_backbone, log, items, tmp_path / "run", batch_size=5, accumulation=2)


def test_rows_longer_than_the_context_are_refused(tiny_backbone, items, tmp_path):
    from genrec.data_prep import InteractionLog

    rows = [("u", f"i{t % 24}", t) for t in range(700)]
    split = leave_one_out(InteractionLog.from_rows(rows))
    index = build_index("independent", items, split.train)
    tasks = TaskSettings(max_history=600)
    data = build_dataset(split, items, index, tasks)
    with pytest.raises(RecipeError, match="reads at most 512"):
        finetune(tiny_backbone, data, index, items, split, tmp_path / "run", tasks=tasks)


def test_a_full_disk_while_saving_is_a_clear_error(tiny_backbone, log, items, tmp_path, monkeypatch):
    import errno

    import genrec.models.recommender_model as module

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(RunError, match=r"No space left on device.*Nothing half-written"):
        tuned(tiny_backbone, log, items, tmp_path / "run", epochs=0.1)
    assert not (tmp_path / "run" / "model").exists()


def test_an_index_of_another_catalogue_is_refused(tiny_backbone, log, items, tmp_path):
    from genrec.data_prep import ItemCatalog

    split = leave_one_out(log)
    index = build_index("independent", items, split.train)
    data = build_dataset(split, items, index)
    fewer = ItemCatalog(items.table.slice(0, 20))
    with pytest.raises(RunError, match="names 24 items, the catalogue has 20"):
        finetune(tiny_backbone, data, index, fewer, split, tmp_path / "run")
