"""Whether training runs as its launcher was told, and weights that an engine has divided among processes.

accelerate and transformers fall back to something else without a word where they cannot do what was asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from genrec.core.errors import RecipeError, RunError

# What accelerate's launcher sets, how the engine is called, its DistributedType, and the classes that wrap a model then.
ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "DEEPSPEED", {"DeepSpeedEngine"}),
    "ACCELERATE_USE_FSDP": ("FSDP", "FSDP", {"FSDPModule", "FullyShardedDataParallel"}),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", "MEGATRON_LM", {"MegatronEngine"}),
}
PLAIN = "another configuration: recipes/accelerate/gpus_4.yaml for several GPUs, cpu_2.yaml for CPUs"


def check_launch(trainer: Any, processes: int, validates: bool = False) -> None:
    """Returns if training has the processes and the engine that its launcher was asked for, else stops.

    Whether the model is wrapped by that engine is looked at when training begins, before its first step.

    Args:
        trainer: A transformers Trainer, before ``train``.
        processes: Number of processes that the launcher started.
        validates: Whether users are ranked while the model is trained.

    Raises:
        RunError: If fewer or more processes would train than were asked for, if accelerate left out DeepSpeed, FSDP or
            Megatron-LM (FSDP without an accelerator, all of them with ``use_cpu``), or if transformers would spread the batch of one
            process over several GPUs.
        RecipeError: If users are to be ranked by a model of which each process has only a part.
    """
    # Asked for several processes on CPUs, accelerate's launcher leaves it to MPI and starts one; it then says where they
    # would have met, and not how many they are.
    launched = "ACCELERATE_DYNAMO_BACKEND" in os.environ
    if launched and processes == 1 and "MASTER_ADDR" in os.environ and "LOCAL_RANK" not in os.environ:
        raise RunError(
            "accelerate launch was asked for several processes, but started one alone, as it does on CPUs without MPI. "
            "Use --config_file recipes/accelerate/cpu_2.yaml, with --num_processes for another number than 2."
        )
    if trainer.args.world_size != processes:
        raise RunError(
            f"{processes} processes were asked for, but training would use {trainer.args.world_size}. "
            "Check the accelerate configuration."
        )
    engine, kind, wrappers = next(
        (about for name, about in ENGINES.items() if os.environ.get(name, "").lower() == "true"),
        ("DistributedDataParallel", None, {"DistributedDataParallel"}),
    )
    there = trainer.accelerator.distributed_type.value
    if kind and there != kind:
        whole = "one process" if processes == 1 else f"{processes} processes, each with the whole model"
        raise RunError(
            f"The launcher was asked for {engine}, but training would go on without it, in {whole} ({there} on "
            f"{trainer.args.device.type}): accelerate leaves {engine} out here without a word. Use a machine with a GPU and a "
            f"configuration without use_cpu, or {PLAIN}."
        )
    if trainer.args.n_gpu > 1:
        raise RunError(
            f"One process was started and sees {trainer.args.n_gpu} GPUs, over which transformers would spread each batch. "
            "Use accelerate launch --config_file recipes/accelerate/gpus_4.yaml (--num_processes for another number), or "
            "show it one: CUDA_VISIBLE_DEVICES=0."
        )
    state = trainer.accelerator.state
    if validates and (there == "FSDP" or (there == "DEEPSPEED" and state.deepspeed_plugin.zero_stage == 3)):
        raise RecipeError(
            f"train.validate_steps ranks users with the model, of which each process has only a part under {engine}. Set "
            "train.validate_steps=0, or take recipes/accelerate/gpus_4_zero2.yaml or gpus_4.yaml, which leave it whole."
        )
    if kind or processes > 1:
        trainer.add_callback(_Wrapped(trainer, engine, wrappers))


class _Wrapped(TrainerCallback):
    """Stops training before its first step if none of these classes wraps the model."""

    def __init__(self, trainer: Any, engine: str, wrappers: set[str]) -> None:
        self.trainer, self.engine, self.wrappers = trainer, engine, wrappers

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        found = type(self.trainer.model_wrapped)
        if self.wrappers.isdisjoint(kind.__name__ for kind in found.__mro__):
            raise RunError(
                f"The launcher was asked for {self.engine}, and accelerate says that it is there, but the model is a plain "
                f"{found.__name__}. Allowed are wrappers of the kind {', '.join(sorted(self.wrappers))}. Use {PLAIN}, and "
                "report this with the versions of accelerate and transformers."
            )


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Has every trained weight whole in every process while it lasts; every process has to enter.

    ZeRO-3 and FSDP2 leave a part of each weight in each process: what one process saved of it would be empty or broken.
    """
    with ExitStack() as stack:
        if divided := [
            weight for weight in model.parameters() if weight.requires_grad and hasattr(weight, "ds_id")
        ]:
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(divided))
        whole: dict[nn.Parameter, nn.Parameter] = {}  # a weight that two modules share stays one
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                if weight.requires_grad and isinstance(weight, DTensor):
                    if weight not in whole:
                        whole[weight] = nn.Parameter(weight.full_tensor())
                    setattr(module, name, whole[weight])
                    stack.callback(setattr, module, name, weight)
        yield
