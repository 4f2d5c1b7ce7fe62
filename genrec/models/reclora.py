"""RecLoRA: adapters that a user's vector mixes from a few shared low-rank ones, as a method of peft.

After "Lifelong Personalized Low-Rank Adaptation of Large Language Models for Recommendation" (Zhu et al., arXiv
2408.03533), with iLoRA's (Kong et al., NeurIPS 2024) division of one adapter among experts as a setting. Importing this
module makes the method known to peft: ``get_peft_model``, ``save_pretrained`` and ``PeftModel.from_pretrained`` work with it.

    model = get_peft_model(backbone, RecLoraConfig(user_size=64, target_modules=["q_proj", "v_proj"]))
    model(input_ids=ids, user_vectors=vectors)     # (rows, tokens), (rows, 64)
    with model.users(vectors):                     # for what calls the backbone by other doors, such as generate
        backbone.generate(ids)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    PeftType,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from genrec.core.errors import ModelError

# peft's register_peft_method takes members of its own enumeration only, for which a string stands everywhere else.
METHOD = cast(PeftType, "RECLORA")
PREFIX = "reclora_"


@dataclass
class RecLoraConfig(PeftConfig):
    """Settings of one adapter.

    Attributes:
        r: Rank of each meta-LoRA; with ``slices`` the rank of all of them together. The paper's 8.
        lora_alpha: An update is scaled by ``lora_alpha / rank of a meta-LoRA``. The paper's 16.
        lora_dropout: Dropout on the adapter's input, in [0, 1).
        target_modules: Names, or one regular expression, of the linear layers that get an adapter, or ``"all-linear"``; none
            is what peft gives a LoRA of such a model.
        exclude_modules: Of these, names or a regular expression of what gets none.
        experts: Meta-LoRAs of a layer, 8 or 16 in the released scripts. One is a plain LoRA, without a gate.
        user_size: Width of the users' vectors; must be given with two experts or more.
        temperature: Divides the gate's scores before their softmax; 1, 5 or 10 in the released scripts.
        routing: ``"soft"`` weighs all experts; ``"top_k"`` the ``top_k`` of greatest score, among which the softmax is taken.
        top_k: Experts a user has with ``routing="top_k"``.
        mixing: ``"weights"`` mixes A and B each, ``(sum w_k B_k)(sum w_k A_k) x``, as the released class does;
            ``"outputs"`` mixes their products, ``sum w_k B_k A_k x``, as summaries of the paper write and iLoRA does.
        gate: ``"layer"``, a gate for every adapted layer, as released; or ``"shared"``, one for all.
        gate_hidden: Width of the gate's hidden layer, the released class's 60; 0 is one linear layer alone, as in iLoRA.
        gate_dropout: Dropout behind it, in [0, 1).
        slices: Whether the ranks of one LoRA of rank ``r`` are divided among the experts, as in iLoRA, so that there are as
            many weights as in that LoRA, and the gates'.

    Raises:
        ModelError: If a value is not allowed.
    """

    r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    experts: int = 8
    user_size: int | None = None
    temperature: float = 1.0
    routing: Literal["soft", "top_k"] = "soft"
    top_k: int = 2
    mixing: Literal["weights", "outputs"] = "weights"
    gate: Literal["layer", "shared"] = "layer"
    gate_hidden: int = 60
    gate_dropout: float = 0.1
    slices: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = METHOD
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        for name in ("r", "experts"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check(
            "user_size",
            self.experts == 1 or (self.user_size is not None and self.user_size >= 1),
            "the width of the users' vectors, which more than one expert need",
        )
        for name in ("lora_dropout", "gate_dropout"):
            self._check(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._check("temperature", self.temperature > 0, "greater than 0")
        self._check("gate_hidden", self.gate_hidden >= 0, "0 (no hidden layer) or more")
        for name, allowed in (
            ("routing", ("soft", "top_k")),
            ("mixing", ("weights", "outputs")),
            ("gate", ("layer", "shared")),
        ):
            self._check(name, getattr(self, name) in allowed, f"{allowed[0]!r} or {allowed[1]!r}")
        self._check(
            "top_k",
            self.routing == "soft" or 1 <= self.top_k <= self.experts,
            f"from 1 to experts={self.experts}",
        )
        self._check(
            "r",
            not self.slices or self.r % self.experts == 0,
            f"a multiple of experts={self.experts} to be cut in slices",
        )

    def _check(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ModelError(f"RecLoraConfig: {name} is {getattr(self, name)!r}; it must be {allowed}.")

    @property
    def expert_rank(self) -> int:
        """Rank of one meta-LoRA."""
        return self.r // self.experts if self.slices else self.r

    @property
    def scaling(self) -> float:
        """What an update is multiplied by."""
        return self.lora_alpha / self.expert_rank


class RecLoraGate(nn.Module):
    """Users' vectors to weights of experts, which add up to 1."""

    def __init__(self, config: RecLoraConfig) -> None:
        super().__init__()
        assert config.user_size is not None
        self.temperature = config.temperature
        self.top_k = config.top_k if config.routing == "top_k" else config.experts
        last = nn.Linear(config.gate_hidden or config.user_size, config.experts)
        if config.gate_hidden:
            hidden = nn.Linear(config.user_size, config.gate_hidden)
            dropout = nn.Dropout(config.gate_dropout)
            self.layers = nn.Sequential(nn.LayerNorm(config.user_size), hidden, nn.ReLU(), dropout, last)
        else:
            self.layers = nn.Sequential(last)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Returns ``(users, experts)`` weights of vectors ``(users, user_size)``."""
        weight = next(self.parameters())
        scores = self.layers(vectors.to(weight.device, weight.dtype)) / self.temperature
        if self.top_k < scores.shape[-1]:
            kept, places = scores.topk(self.top_k, -1)
            scores = torch.full_like(scores, float("-inf")).scatter(-1, places, kept)
        return scores.softmax(-1)


class _Users:
    """The users of a forward pass."""

    def __init__(self, vectors: torch.Tensor) -> None:
        self.vectors = vectors.detach()
        self._known: dict[RecLoraGate, torch.Tensor] = {}

    def weights(self, gate: RecLoraGate) -> torch.Tensor:
        # Kept where nothing is learned, since decoding asks at every step. A layer that is computed again for its gradient
        # must do all that it did before, so nothing is kept there.
        if gate.training or torch.is_grad_enabled():
            return gate(self.vectors)
        if gate not in self._known:
            self._known[gate] = gate(self.vectors)
        return self._known[gate]


class _Channel:
    """What the layers of one model share: who its users are at the moment, and gates that are one for all layers.

    The users stand in a context variable, so that threads do not see each other's, under the model's own channel, so that
    models do not either.
    """

    def __init__(self) -> None:
        self.gates: dict[str, RecLoraGate] = {}

    @property
    def users(self) -> _Users | None:
        return _USERS.get().get(self)

    @contextmanager
    def holding(self, users: _Users) -> Iterator[None]:
        token = _USERS.set({**_USERS.get(), self: users})
        try:
            yield
        finally:
            _USERS.reset(token)


_USERS: ContextVar[Mapping[_Channel, _Users]] = ContextVar("reclora_users", default=MappingProxyType({}))


class _Recomputed:
    """A function for activation checkpointing that computes a layer again for the users that it was computed for.

    The backward pass runs after the users' context was left, in another thread on a GPU, or within the next users' context.
    """

    def __init__(self, checkpoint: Callable[..., Any], channel: _Channel) -> None:
        self.checkpoint, self.channel = checkpoint, channel

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        users = self.channel.users
        if users is None:
            return self.checkpoint(function, *args, **options)

        def for_users(*inner: Any, **named: Any) -> Any:
            with self.channel.holding(users):
                return function(*inner, **named)

        return self.checkpoint(for_users, *args, **options)


class RecLoraLinear(nn.Module, BaseTunerLayer):
    """A linear layer, its meta-LoRAs and its gate.

    The A of all experts lie below each other in one matrix ``(experts * rank, in)``, their B beside each other in one
    ``(out, experts * rank)``.
    """

    adapter_layer_names = ("reclora_A", "reclora_B", "reclora_gate")
    other_param_names = ("reclora_dropout", "configs")

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: RecLoraConfig,
        channel: _Channel,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.base_layer, self.channel = base_layer, channel
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer(), **kwargs)
        base = self.get_base_layer()
        if isinstance(base, Conv1D):
            self.in_features, self.out_features = (int(size) for size in base.weight.shape)
        else:
            self.in_features, self.out_features = cast(int, base.in_features), cast(int, base.out_features)
        self.reclora_A, self.reclora_B = nn.ModuleDict(), nn.ModuleDict()
        self.reclora_gate, self.reclora_dropout = nn.ModuleDict(), nn.ModuleDict()
        self.configs: dict[str, RecLoraConfig] = {}
        self.merged_adapters: list[str] = []
        self._merged_weights: dict[str, torch.Tensor | None] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: RecLoraConfig) -> None:
        """Adds an adapter, whose update is zero for every user until it is trained."""
        self.configs[adapter_name] = config
        ranks = config.experts * config.expert_rank
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.reclora_dropout[adapter_name] = dropout
        # In this order, so that one expert starts as a LoRA of peft does from the same seed.
        down = self.reclora_A[adapter_name] = nn.Linear(self.in_features, ranks, bias=False)
        up = self.reclora_B[adapter_name] = nn.Linear(ranks, self.out_features, bias=False)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
        if config.experts > 1 and adapter_name not in self.channel.gates:
            # The first layer carries the gate that all share, so that it is saved, moved and frozen once.
            gate = self.reclora_gate[adapter_name] = RecLoraGate(config)
            if config.gate == "shared":
                self.channel.gates[adapter_name] = gate
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _pair(self, adapter_name: str) -> tuple[nn.Linear, nn.Linear]:
        return cast(nn.Linear, self.reclora_A[adapter_name]), cast(nn.Linear, self.reclora_B[adapter_name])

    def gate_of(self, adapter_name: str) -> RecLoraGate | None:
        """Returns the gate that weighs an adapter's experts in this layer; None is one expert."""
        if self.configs[adapter_name].experts == 1:
            return None
        own = adapter_name in self.reclora_gate
        return cast(RecLoraGate, self.reclora_gate[adapter_name] if own else self.channel.gates[adapter_name])

    def _weights(self, adapter_name: str) -> torch.Tensor | None:
        """Returns ``(users, experts)`` of the present users, or None of one expert."""
        gate = self.gate_of(adapter_name)
        if gate is None:
            return None
        users = self.channel.users
        if users is None:
            raise ModelError(
                "A personalised model was asked without users. Give user_vectors=..., of shape (rows, user_size), to its "
                "forward, or call it within `with model.users(vectors):`; model.disable_adapter() asks the backbone alone."
            )
        return users.weights(gate)

    def _update(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        config = self.configs[adapter_name]
        down, up = self._pair(adapter_name)
        x = self.reclora_dropout[adapter_name](self._cast_input_dtype(x, down.weight.dtype))
        weights = self._weights(adapter_name)
        if weights is None:
            return up(down(x)) * config.scaling
        num_users, rank = len(weights), config.expert_rank
        if len(x) % num_users:
            raise ModelError(
                f"A batch of {len(x)} rows came with {num_users} users' vectors. Give one vector for each row; where a row "
                "has become several rows of beams, they must lie beside each other and be as many for each."
            )
        # Beams of a row that lie beside each other are so many more tokens of its user.
        tokens = x.reshape(num_users, -1, self.in_features)
        weights = weights.to(x.device)
        if config.mixing == "outputs":
            ranks = down(tokens)
            scale = (weights * config.scaling).repeat_interleave(rank, -1)
            update = up(ranks * scale[:, None].to(ranks.dtype))
        else:
            weights = weights.to(down.weight.dtype)
            mixed_down = (weights @ down.weight.view(config.experts, -1)).view(num_users, rank, -1)
            experts_up = up.weight.view(self.out_features, config.experts, rank)
            mixed_up = torch.einsum("un,onr->uro", weights * config.scaling, experts_up)
            update = tokens @ mixed_down.mT @ mixed_up
        return update.reshape(*x.shape[:-1], self.out_features)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns ``(batch, ..., out)`` of ``(batch, ..., in)``, the rows of a user beside each other.

        Raises:
            ModelError: If there are no users, or the batch is no multiple of them.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for adapter_name in self.active_adapters:
            if adapter_name in self.configs:
                result = result + self._update(adapter_name, x)
        return result.to(dtype)

    @torch.no_grad()
    def get_delta_weight(self, adapter_name: str, weights: torch.Tensor | None) -> torch.Tensor:
        """Returns what an adapter adds to the base layer's weight, in its shape, for one user.

        Args:
            adapter_name: The adapter.
            weights: ``(experts,)`` the user's, or None of one expert.
        """
        config = self.configs[adapter_name]
        shape = (config.experts, config.expert_rank)
        down_layer, up_layer = self._pair(adapter_name)
        down = down_layer.weight.float().view(*shape, self.in_features)
        up = up_layer.weight.float().view(self.out_features, *shape)
        weights = down.new_ones(1) if weights is None else weights.float().to(down.device)
        if config.mixing == "outputs":
            delta = torch.einsum("n,onr,nri->oi", weights, up, down)
        else:
            delta = torch.einsum("n,onr->or", weights, up) @ torch.einsum("n,nri->ri", weights, down)
        delta = delta * config.scaling
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the update of the one present user to the base layer's weight.

        Raises:
            ModelError: If there is none or more than one, or ``safe_merge`` finds the sum not finite.
        """
        for adapter_name in check_adapters_to_merge(self, adapter_names):
            if adapter_name not in self.configs:
                continue
            weights = self.weights_of(adapter_name)
            self._add(self.get_delta_weight(adapter_name, weights), safe_merge)
            self._merged_weights[adapter_name] = weights
            self.merged_adapters.append(adapter_name)

    def weights_of(self, adapter_name: str) -> torch.Tensor | None:
        """Returns ``(experts,)`` of the one present user, None of one expert; raises ModelError if there are several."""
        weights = self._weights(adapter_name)
        if weights is not None and len(weights) != 1:
            raise ModelError(
                f"An adapter can be merged for one user; there are {len(weights)}. Call model.merge_for(vector)."
            )
        return None if weights is None else weights[0]

    def unmerge(self) -> None:
        """Takes away again what ``merge`` added."""
        while self.merged_adapters:
            adapter_name = self.merged_adapters.pop()
            self._add(-self.get_delta_weight(adapter_name, self._merged_weights.pop(adapter_name)))

    def _add(self, delta: torch.Tensor, safe: bool = False) -> None:
        weight = self.get_base_weight()
        total = (weight.float() + delta.to(weight.device)).to(weight.dtype)
        if safe and not torch.isfinite(total).all():
            raise ModelError("The merged weights are not all finite; the adapter is broken.")
        self.set_base_weight(total)

    def __repr__(self) -> str:
        return "reclora." + super().__repr__()


class RecLoraModel(BaseTuner):
    """A model with RecLoRA adapters in its linear layers; ``get_peft_model`` makes it."""

    prefix = PREFIX
    tuner_layer_cls = RecLoraLinear
    target_module_mapping = cast(dict[str, list[str]], TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)
    uses_shared_state = True

    def _pre_injection_hook(self, model: nn.Module, *_: Any) -> None:
        self.channel = _Channel()
        # peft hands all arguments on to the backbone, which does not know this one.
        self._door = model.register_forward_pre_hook(_without_users, with_kwargs=True)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,  # noqa: ARG002
    ) -> None:
        config = cast(RecLoraConfig, peft_config)
        if ".experts." in f".{current_key}.":
            raise ModelError(
                f"{current_key} is an expert of a mixture, whose rows are tokens of many users. Leave it out with "
                "exclude_modules, such as '.*experts.*'."
            )
        if isinstance(target, RecLoraLinear):
            target.update_layer(adapter_name, config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, (nn.Linear, Conv1D)):
            raise ModelError(
                f"{current_key} is a {type(base).__name__}. RecLoRA goes beside linear layers (torch.nn.Linear, plain or of "
                "bitsandbytes, and transformers' Conv1D): name such in target_modules."
            )
        layer = RecLoraLinear(target, adapter_name, config, self.channel, **get_quantization_kwargs(self))
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter, as peft's own."""
        super().delete_adapter(adapter_name)
        self.channel.gates.pop(adapter_name, None)

    @contextmanager
    def users(self, user_vectors: torch.Tensor) -> Iterator[None]:
        """Within it the model answers these users.

        Row by row, or several rows beside each other for each user. Gradients do not flow into the vectors. Between two steps
        of an optimizer enter it anew: without gradients a user's weights are calculated once in it.

        Args:
            user_vectors: ``(rows, user_size)``.

        Raises:
            ModelError: If they have another shape than an active adapter's ``user_size`` says.
        """
        for name in self.active_adapters:
            config = cast(RecLoraConfig, self.peft_config[name])
            if config.experts > 1 and (user_vectors.ndim != 2 or user_vectors.shape[1] != config.user_size):
                raise ModelError(
                    f"User vectors have the shape {tuple(user_vectors.shape)}; the adapter {name!r} takes (rows, "
                    f"{config.user_size}), one for each row of a batch."
                )
        if self.training:
            for module in self.model.modules():
                checkpoint = module.__dict__.get("_gradient_checkpointing_func")
                if checkpoint is not None and not isinstance(checkpoint, _Recomputed):
                    module._gradient_checkpointing_func = _Recomputed(checkpoint, self.channel)
        with self.channel.holding(_Users(user_vectors)):
            yield

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        """What peft enters around forward and generate, with all their arguments."""
        if kwargs.get("user_vectors") is None:
            yield
        else:
            with self.users(kwargs["user_vectors"]):
                yield

    @torch.no_grad()
    def gate_weights(
        self, user_vectors: torch.Tensor, adapter_name: str | None = None
    ) -> dict[str, torch.Tensor]:
        """Returns ``{layer: (users, experts)}``, the weights of experts, without dropout; nothing of one expert.

        Args:
            user_vectors: ``(users, user_size)``.
            adapter_name: Whose gates; default is the first active one's.
        """
        name, found = adapter_name or self.active_adapters[0], {}
        for key, layer in self.model.named_modules():
            if isinstance(layer, RecLoraLinear) and name in layer.configs:
                gate = layer.gate_of(name)
                if gate is not None:
                    found[key] = copy.deepcopy(gate).eval()(user_vectors)
        return found

    def merge_for(self, user_vector: torch.Tensor, adapter_names: list[str] | None = None) -> nn.Module:
        """Returns a copy of the model without adapters, whose weights are those of one user; this one stays as it is.

        In place it is ``with model.users(vector[None]): model.merge_adapter()`` and later ``model.unmerge_adapter()``. Weights
        of 4 or 8 bits are rounded again.

        Args:
            user_vector: ``(user_size,)``.
            adapter_names: Which adapters; default are the active ones.
        """
        copied = copy.deepcopy(self)
        with copied.users(user_vector[None]):
            return copied.merge_and_unload(adapter_names=adapter_names)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        super()._unload_and_optionally_merge(*args, **kwargs)
        self._door.remove()
        for module in self.model.modules():
            checkpoint = module.__dict__.get("_gradient_checkpointing_func")
            if isinstance(checkpoint, _Recomputed):
                module._gradient_checkpointing_func = checkpoint.checkpoint
        return self.model

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Also where the name stands before the layers of a gate."""
        before, mark, after = key.partition(f".{PREFIX}gate.{adapter_name}.")
        if mark:
            return f"{before}.{PREFIX}gate.{after}"
        return super()._remove_adapter_name_from_key(key, adapter_name)


def _without_users(
    _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {key: value for key, value in kwargs.items() if key != "user_vectors"}


PEFT_TYPE_TO_CONFIG_MAPPING[METHOD] = RecLoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[METHOD] = RecLoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[METHOD] = PREFIX
