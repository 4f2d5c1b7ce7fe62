"""Launcher configs are what their names say, and a launcher that falls back to something else stops the run."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from genrec.core.errors import RunError

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
train: {{max_steps: 2, checkpoint_steps: 0}}
evaluate: {{baselines: [popularity]}}
"""


def launch(tmp_path, backbone, log, items, *arguments):
    data = tmp_path / "data"
    data.mkdir()
    log.write(data / "interactions.parquet")
    items.write(data / "items.parquet")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(run=tmp_path / "run", data=data, backbone=backbone))
    command = [sys.executable, "-m", "accelerate.commands.launch", *arguments]
    command += ["--main_process_port", "29631", "-m", "genrec", "train", str(recipe)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert not (tmp_path / "run" / "model").exists()
    assert done.returncode != 0
    return done.stderr


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "engine"), [("gpus_4_zero2", "DeepSpeed"), ("gpus_4_zero3", "DeepSpeed"), ("gpus_4_fsdp2", "FSDP")]
)
def test_an_engine_that_accelerate_leaves_out_stops_the_run(name, engine, tiny_backbone, log, items, tmp_path):
    if engine == "DeepSpeed":
        pytest.importorskip("deepspeed")
    config = CONFIGS / f"{name}.yaml"
    told = launch(tmp_path, tiny_backbone, log, items, "--config_file", str(config), "--num_processes", "2")
    assert f"The launcher was asked for {engine}, but training would go on without it, in 2 processes" in told
    assert "MULTI_CPU on cpu" in told
    assert "recipes/accelerate/gpus_4.yaml" in told
    assert "Traceback" not in told.split("genrec: ")[1].split("\n")[0]


@pytest.mark.model
def test_a_launcher_that_starts_one_process_instead_of_two_stops_the_run(tiny_backbone, log, items, tmp_path):
    told = launch(tmp_path, tiny_backbone, log, items, "--cpu", "--num_processes", "2")
    assert "accelerate launch was asked for several processes, but started one alone" in told
    assert "recipes/accelerate/cpu_2.yaml" in told


def stub(there="MULTI_GPU", processes=2, gpus=1, model=None):
    """What check_launch reads of a Trainer, for machines that no test has."""
    added = []
    trainer = SimpleNamespace(
        args=SimpleNamespace(world_size=processes, n_gpu=gpus, device=SimpleNamespace(type="cuda")),
        accelerator=SimpleNamespace(distributed_type=SimpleNamespace(value=there)),
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
