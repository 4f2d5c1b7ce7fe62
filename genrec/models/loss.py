"""Cross-entropy over a catalogue, the one loss of sequence recommenders and of identifier tokens."""

from __future__ import annotations

from typing import Any

import torch


def rows_at_once(num_candidates: int, device: torch.device) -> int:
    """Returns how many rows of scores are made together: on a CPU so many that they stay in its cache."""
    return max(1, 1_000_000 // num_candidates) if device.type == "cpu" else 65_536


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy with its gradients made in the same pass, a stretch of rows at a time.

    Left to autograd, the ``(targets, candidates)`` scores and five arrays of their size go through memory;
    here a stretch stays in the processor's cache and is overwritten by its own gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        left_out: torch.Tensor,
        soft_targets: torch.Tensor | None,
        soft_weight: float,
        cap: float | None,
    ) -> torch.Tensor:
        size = rows_at_once(len(weight), states.device)
        hard_weight = 1.0 if soft_targets is None else 1.0 - soft_weight
        loss = torch.zeros((), device=states.device)
        d_states, d_weight = torch.empty_like(states), torch.zeros_like(weight)
        # Kept from stretch to stretch: fresh memory costs a page fault for every 4 KB.
        scores, logs = (states.new_empty(min(size, len(states)), len(weight)) for _ in range(2))
        for first in range(0, len(states), size):
            rows = slice(first, first + size)
            part, target = states[rows], targets[rows, None]
            scores, logs = scores[: len(part)], logs[: len(part)]
            torch.mm(part, weight.T, out=scores)
            slope = None
            if cap is not None:
                scores.div_(cap).tanh_()
                slope = 1 - scores.square()
                scores.mul_(cap)
            if left_out.dtype == torch.bool:
                scores.masked_fill_(left_out[rows], float("-inf"))
            else:
                scores.scatter_(1, left_out[rows], float("-inf"))
            torch.log_softmax(scores, 1, out=logs)
            loss -= hard_weight * logs.gather(1, target).sum()
            grads = torch.exp(logs, out=scores)
            grads.scatter_add_(1, target, torch.full_like(target, -hard_weight, dtype=grads.dtype))
            if soft_targets is not None:
                told = soft_targets[rows]
                grads.sub_(told, alpha=soft_weight)
                logs.nan_to_num_(nan=float("nan"), neginf=0.0)  # or 0 times minus infinity would be NaN
                loss -= soft_weight * logs.mul_(told).sum()
            if slope is not None:
                grads.mul_(slope)
            torch.mm(grads, weight, out=d_states[rows])
            d_weight.addmm_(grads.T, part)
        ctx.save_for_backward(d_states, d_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_states, d_weight = ctx.saved_tensors
        return d_states * grads[0], d_weight * grads[0], None, None, None, None, None


def cross_entropy(
    states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    left_out: torch.Tensor,
    soft_targets: torch.Tensor | None = None,
    soft_weight: float = 0.0,
    cap: float | None = None,
) -> torch.Tensor:
    """Returns the sum over targets of -log softmax(states @ weight.T)[target], without what is left out.

    With soft targets it is ``1 - soft_weight`` of that plus ``soft_weight`` of the cross-entropy to them.

    Args:
        states: ``(targets, width)`` float32.
        weight: ``(candidates, width)`` float32.
        targets: ``(targets,)`` candidates.
        left_out: What is no candidate at a target, never the target itself: a mask ``(targets, candidates)``, or
            candidates ``(targets, 1 or more)``, filled up with one that is nobody's target.
        soft_targets: ``(targets, candidates)`` distributions that give nothing to what is left out, or None.
        soft_weight: Their share of the loss, 0 to 1.
        cap: Where a score s becomes ``cap * tanh(s / cap)`` first, as Gemma 2's does; else None.
    """
    # Under autocast the scores would be rounded to bfloat16 in training, and not in serving.
    with torch.autocast(states.device.type, enabled=False):
        return _CrossEntropy.apply(states, weight, targets, left_out, soft_targets, soft_weight, cap)
