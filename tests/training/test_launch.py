"""Launcher configs are what their names say, and a launcher that falls back to something else stops the run."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import yaml
from trained import trained_bytes

from genrec.core.errors import RecipeError, RunError

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"
SHIPPED = {
    # name: distributed type, processes, machines, and what its engine is told
    "cpu_2": ("MULTI_GPU", 2, 1, {}),
    "cpu_4": ("MULTI_GPU", 4, 1, {}),
    "gpu_1": ("NO", 1, 1, {}),
    "gpus_4": ("MULTI_GPU", 4, 1, {}),
    "gpus_4_fsdp2": ("FSDP", 4, 1, {"fsdp_version": 2}),
    "gpus_4_zero2": ("DEEPSPEED", 4, 1, {"zero_stage": 2, "offload_optimizer_device": "none"}),
    "gpus_4_zero3": ("DEEPSPEED", 4, 1, {"zero_stage": 3, "offload_param_device": "none"}),
    "gpus_4_zero3_offload": (
        "DEEPSPEED",
        4,
        1,
        {"zero_stage": 3, "offload_param_device": "cpu", "offload_optimizer_device": "cpu"},
    ),
    "nodes_2": ("MULTI_GPU", 8, 2, {}),
}


def test_every_shipped_config_is_listed_here():
    assert {path.stem for path in CONFIGS.iterdir()} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_accelerate_reads_every_config_as_its_name_says(name):
    from accelerate.commands.config.config_args import load_config_from_file

    path = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))
    kind, processes, machines, engine = SHIPPED[name]
    found = (config.distributed_type.value, config.num_processes, config.num_machines)
    assert found == (kind, processes, machines)
    told = config.fsdp_config | config.deepspeed_config
    assert engine.items() <= told.items()
    assert bool(told) == bool(engine)
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_launcher_knows_every_key_of_an_engine(name):
    """accelerate copies unknown keys of an engine onto its arguments, where nothing reads them."""
    from accelerate.commands.launch import launch_command_parser

    known = vars(launch_command_parser().parse_args(["script.py"]))
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for group in ("fsdp_config", "deepspeed_config"):
        assert set(config.get(group, {})) <= set(known)


RECIPE = """
name: launched
run_dir: {run}
data: {{source: {data}, item_core: 1}}
index: {{method: independent}}
model: {{backbone: {backbone}, dtype: float32}}
train: {{max_steps: 12, batch_size: 4, checkpoint_steps: 0}}
evaluate: {{baselines: [popularity]}}
"""


@pytest.fixture(scope="module")
def recipe(tiny_backbone, log, items, tmp_path_factory):
    folder = tmp_path_factory.mktemp("launched")
    log.write(folder / "interactions.parquet")
    items.write(folder / "items.parquet")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(run=folder / "run", data=folder, backbone=tiny_backbone))
    return path


def launched(recipe, run, *arguments, keys=(), until=None):
    """What a launch said on standard error, and whether it ended well; no arguments run without a launcher.

    ``until`` is a file at whose sight the launcher and all its processes are killed.
    """
    command = [sys.executable, "-m"]
    if arguments:
        command += ["accelerate.commands.launch", *arguments, "--main_process_port", "0", "-m"]
    command += ["genrec", "train", str(recipe), f"run_dir={run}", *keys]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(f"{run}.txt", "w+") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, text=True)
        while until and process.poll() is None and not until.exists():
            time.sleep(0.02)
        if until and process.poll() is None:
            launcher = psutil.Process(
                process.pid
            )  # whose processes lead sessions of their own, and would outlive it
            for each in (launcher, *launcher.children(recursive=True)):
                each.kill()
        process.wait(timeout=600)
        said.seek(0)
        return said.read(), process.returncode == 0


@pytest.mark.model
def test_fsdp_that_accelerate_leaves_out_stops_the_run(recipe, tmp_path):
    config = str(CONFIGS / "gpus_4_fsdp2.yaml")
    told, well = launched(recipe, tmp_path / "run", "--config_file", config, "--num_processes", "2")
    assert not well
    assert not (tmp_path / "run" / "model").exists()
    asked = "The launcher was asked for FSDP, but training would go on without it, in 2 processes"
    assert f"genrec: {asked}, each with the whole model (MULTI_CPU on cpu)" in told
    assert "recipes/accelerate/gpus_4.yaml" in told
    assert 'File "' not in told.split(asked)[0]


@pytest.mark.model
def test_a_launcher_that_starts_one_process_instead_of_two_stops_the_run(recipe, tmp_path):
    told, well = launched(recipe, tmp_path / "run", "--cpu", "--num_processes", "2")
    assert not well
    assert not (tmp_path / "run" / "model").exists()
    assert "genrec: accelerate launch was asked for several processes, but started one alone" in told
    assert "recipes/accelerate/cpu_2.yaml" in told


# ZeRO-3 leaves weights of less than 100,000 elements whole, which are all of a tiny model's.
SMALL = {"stage3_param_persistence_threshold": 0}
AUTO = (
    "train_micro_batch_size_per_gpu",
    "train_batch_size",
    "gradient_accumulation_steps",
    "gradient_clipping",
)


@pytest.mark.model
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or not shutil.which("c++"),
    reason="needs deepspeed, which builds its transport between CPU processes on first use",
)
@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_deepspeed_trains_the_weights_of_a_plain_run_and_resumes_them_exactly(stage, recipe, tmp_path):
    """It runs on CPUs too; it trains at our rates, and no process saves its part of the weights for the whole."""
    from safetensors.torch import load_file

    zero = {"stage": stage} | (SMALL if stage == 3 else {})
    engine = {"zero_optimization": zero} | dict.fromkeys(AUTO, "auto")
    (tmp_path / "engine.json").write_text(json.dumps(engine))
    config = yaml.safe_load((CONFIGS / f"gpus_4_zero{stage}.yaml").read_text()) | {"num_processes": 2}
    config["deepspeed_config"] = {
        "deepspeed_config_file": str(tmp_path / "engine.json"),
        "zero3_init_flag": False,
    }
    del config["mixed_precision"]
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(config))
    launcher = ("--config_file", str(tmp_path / "launch.yaml"))
    plain, whole, cut = (tmp_path / name for name in ("plain", "whole", "cut"))
    keys = ("train.max_steps=24", "train.checkpoint_steps=4")
    for run, arguments in ((plain, ()), (whole, launcher)):
        told, well = launched(recipe, run, *arguments, keys=keys)
        assert well, told
    launched(recipe, cut, *launcher, keys=keys, until=cut / "checkpoints" / "checkpoint-8" / "COMPLETE")
    assert not (cut / "model").exists(), "the run ended before it was killed"
    told, well = launched(recipe, cut, *launcher, keys=keys)
    assert well, told
    assert "going on from checkpoint-" in told
    about = [json.loads((run / "training.json").read_text()) for run in (plain, whole)]
    assert [each["processes"] for each in about] == [1, 2]
    assert about[0]["losses"][0][1] == pytest.approx(about[1]["losses"][0][1], abs=1e-5)
    assert trained_bytes(cut) == trained_bytes(whole)
    for name in trained_bytes(whole):
        one, other = (load_file(run / "model" / name) for run in (plain, whole))
        assert one.keys() == other.keys()
        assert all(np.allclose(one[key], other[key], atol=1e-5) for key in one)


FSDP2 = """
import sys
from pathlib import Path
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import load_fsdp_optimizer, save_fsdp_optimizer
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from genrec.core.processes import process_state
from genrec.data_prep import leave_one_out
from genrec.indexing import build_index
from genrec.models.backbone import load_backbone
from genrec.models.recommender_model import RecommenderModel
from genrec.models.vocabulary import initial_rows
from genrec.training.launch import whole_weights
from planted import planted_catalog, planted_log

processes = process_state()
mesh = init_device_mesh("cpu", (2,))
items, split = planted_catalog(), leave_one_out(planted_log())
index = build_index("independent", items, split.train)
# As recipes/accelerate/gpus_4_fsdp2.yaml has accelerate write checkpoints; its own wrapping wants an accelerator.
plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")


def made(adapter, divided):
    lm, tokenizer = load_backbone(sys.argv[1], dtype="float32")
    rows = initial_rows(lm, tokenizer, index, items, "text", None, 0)
    torch.manual_seed(0)
    model = RecommenderModel.create(lm, tokenizer, index, rows, name=sys.argv[1], layers=None, adapter=adapter)
    if divided:
        assert model._no_split_modules
        for module in model.modules():
            if type(module).__name__ in model._no_split_modules:
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def trained(model, optimizer, steps):
    ids = torch.arange(24).reshape(2, 12) + model.first_id
    for _ in range(steps):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


def state(model):
    with whole_weights(model):
        return {name: weight.clone() for name, weight in model.trained_state().items()}


for adapter in ("lora", "full"):
    (plain, its), (divided, own) = made(adapter, False), made(adapter, True)
    trained(plain, its, 6)
    trained(divided, own, 3)
    held = {name: weight for name, weight in divided.named_parameters() if weight.requires_grad}
    assert any(weight.to_local().numel() < weight.numel() for weight in held.values())
    folder = Path(sys.argv[2]) / adapter
    with whole_weights(divided):
        if processes.process_index == 0:
            divided.save(folder / "weights")
    assert all(weight is held[name] for name, weight in divided.named_parameters() if weight.requires_grad)
    save_fsdp_optimizer(plugin, processes, own, divided, folder)
    trained(divided, own, 3)
    whole, found = plain.trained_state(), state(divided)
    assert whole.keys() == found.keys()
    assert all(torch.allclose(whole[name], found[name], atol=1e-6) for name in whole)

    again, own = made(adapter, True)
    again.load_weights(folder / "weights")
    load_fsdp_optimizer(plugin, processes, own, again, folder)
    trained(again, own, 3)
    resumed = state(again)
    assert all(torch.equal(resumed[name], found[name]) for name in found)
distributed.destroy_process_group()
"""


@pytest.mark.model
def test_weights_that_fsdp2_divides_are_trained_as_whole_ones_and_go_on_from_a_checkpoint(
    tiny_backbone, tmp_path
):
    script = tmp_path / "fsdp2.py"
    script.write_text(FSDP2)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command += [str(script), tiny_backbone, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def stub(there="MULTI_GPU", processes=2, gpus=1, model=None, stage=3):
    """What check_launch reads of a Trainer, for machines that no test has."""
    added = []
    trainer = SimpleNamespace(
        args=SimpleNamespace(world_size=processes, n_gpu=gpus, device=SimpleNamespace(type="cuda")),
        accelerator=SimpleNamespace(
            distributed_type=SimpleNamespace(value=there),
            state=SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage)),
        ),
        model_wrapped=model,
        add_callback=added.append,
    )
    return trainer, added


@pytest.fixture
def plain_environment(monkeypatch):
    from genrec.training.launch import ENGINES

    for name in (*ENGINES, "ACCELERATE_DYNAMO_BACKEND", "MASTER_ADDR", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_batch_that_would_be_spread_over_gpus_is_refused(plain_environment):
    from genrec.training.launch import check_launch

    with pytest.raises(RunError, match=r"sees 3 GPUs.*CUDA_VISIBLE_DEVICES=0"):
        check_launch(stub("NO", 1, gpus=3)[0], 1)


def test_another_number_of_processes_is_refused(plain_environment):
    from genrec.training.launch import check_launch

    with pytest.raises(RunError, match="4 processes were asked for, but training would use 2"):
        check_launch(stub()[0], 4)


@pytest.mark.parametrize(
    ("variable", "there", "wrapper"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DEEPSPEED", "DeepSpeedEngine"),
        ("ACCELERATE_USE_FSDP", "FSDP", "FSDPModule"),
        (None, "MULTI_GPU", "DistributedDataParallel"),
    ],
)
def test_a_model_that_nothing_wraps_is_refused(variable, there, wrapper, plain_environment):
    from genrec.training.launch import check_launch

    if variable:
        plain_environment.setenv(variable, "true")
    trainer, added = stub(there, model=object())
    check_launch(trainer, 2)
    (callback,) = added
    with pytest.raises(RunError, match=rf"the model is a plain object.*{wrapper}"):
        callback.on_train_begin(None, None, None)
    trainer.model_wrapped = type("Sub", (type(wrapper, (), {}),), {})()
    callback.on_train_begin(None, None, None)


def test_one_plain_process_passes(plain_environment):
    from genrec.training.launch import check_launch

    trainer, added = stub("NO", 1)
    check_launch(trainer, 1)
    assert not added


@pytest.mark.parametrize(("variable", "there"), [("DEEPSPEED", "DEEPSPEED"), ("FSDP", "FSDP")])
def test_ranking_while_training_needs_the_model_whole(variable, there, plain_environment):
    from genrec.training.launch import check_launch

    plain_environment.setenv(f"ACCELERATE_USE_{variable}", "true")
    with pytest.raises(RecipeError, match=r"each process has only a part.*train\.validate_steps=0"):
        check_launch(stub(there)[0], 2, validates=True)
    check_launch(stub(there)[0], 2)
    if there == "DEEPSPEED":
        check_launch(stub(there, stage=2)[0], 2, validates=True)
