"""What the gates of personal adapters do: who gets how much of which expert, and whether they tell users apart at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from genrec.core.errors import DataError
from genrec.core.page import (
    NUM_COLOURS,
    SERIES,
    colour_legend,
    escaped,
    fitted,
    number,
    plural,
    section,
    share,
)
from genrec.evaluation.slices import Groups

# An expert that has so much of all users' weight in a layer has it alone there.
COLLAPSED = 0.9
# Users whose weights are, on average, no farther from everyone's mean than this have one adapter, near enough.
ALIKE = 0.01


def gate_report(weights: Mapping[str, np.ndarray], groups: Mapping[str, Groups]) -> dict[str, Any]:
    """Returns what the gates of a model do with some users.

    ``between_users``: how far a user's weights are from the layer's mean, half the sum of absolute differences, over users and
    layers: 0 is one adapter for everyone; ``between_by_layer`` has it for each. ``entropy``: of a user's weights, on average, as
    a share of the greatest there is (0: one expert each, 1: all alike); ``mean_entropy``: that of the mean weights of a
    layer. ``collapsed``: layers in which one expert has at least 0.9 of the mean weight. ``alike``: whether ``between_users`` is
    at most 0.01. Experts of different layers have nothing in common but their number, so that ``mean``, each expert's mean
    weight, and ``groups``, the same of each group of users, are those of one ``layer``: that which tells users apart most.

    Args:
        weights: ``{layer: (users, experts)}``, from ``RecLoraModel.gate_weights``.
        groups: ``{slice: (labels, group of each user)}``, as ``genrec.evaluation.slices`` makes them.

    Raises:
        DataError: If there are no gates or no users, or layers or groups are not of the same users.
    """
    sizes = {np.shape(each) for each in weights.values()}
    if len(sizes) != 1 or 0 in next(iter(sizes)):
        raise DataError(
            f"Weights of gates must be (users, experts), the same in every layer; got {sorted(sizes)}."
        )
    num_users, num_experts = next(iter(sizes))
    for name, (labels, of_user) in groups.items():
        if len(of_user) != num_users or max(of_user, default=0) >= len(labels):
            raise DataError(
                f"The groups {name!r} are of {len(of_user):,} users, the weights of {num_users:,}."
            )
    every = np.stack([np.asarray(each, np.float64) for each in weights.values()])
    means = every.mean(1)
    distances = 0.5 * np.abs(every - means[:, None]).sum(-1).mean(1)
    distance, place_of = float(distances.mean()), int(distances.argmax())
    leading = means.max(1)
    collapsed = [layer for layer, most in zip(weights, leading, strict=True) if most >= COLLAPSED]
    of_users = every[place_of]
    return {
        "users": num_users,
        "layers": len(weights),
        "experts": num_experts,
        "mean": of_users.mean(0).tolist(),
        "entropy": float(_entropy(every).mean()),
        "mean_entropy": float(_entropy(means).mean()),
        "between_users": distance,
        "between_by_layer": dict(zip(weights, distances.tolist(), strict=True)),
        "layer": list(weights)[place_of],
        "largest_share": float(leading.max()),
        "collapsed": collapsed if num_experts > 1 else [],
        "alike": bool(distance <= ALIKE),
        "groups": {
            name: {
                label: {
                    "users": int((of_user == place).sum()),
                    "mean": of_users[of_user == place].mean(0).tolist(),
                }
                for place, label in enumerate(labels)
                if (of_user == place).any()
            }
            for name, (labels, of_user) in groups.items()
        },
    }


def _entropy(weights: np.ndarray) -> np.ndarray:
    """Returns the entropy of weights ``(..., experts)`` as a share of the greatest; 0 of a single expert."""
    most = np.log(max(2, weights.shape[-1]))
    return -(weights * np.log(np.maximum(weights, 1e-30))).sum(-1) / most


def gate_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns in words what a report of gates says of collapse."""
    layers = f"{report['layers']:,} layers" if report["layers"] != 1 else "one layer"
    found = []
    if report["collapsed"]:
        found.append(
            f"Collapsed: in {len(report['collapsed']):,} of {layers} one expert has {COLLAPSED:.0%} or more of all users' "
            f"weight, first {report['collapsed'][0]}."
        )
    else:
        found.append(
            f"No collapse: the largest mean weight of an expert in any of {layers} is {report['largest_share']:.3f} "
            f"({1 / report['experts']:.3f} would be even)."
        )
    if report["alike"]:
        found.append(
            f"The gates hardly tell users apart: weights are {report['between_users']:.4f} from their mean (0 to 1), so that "
            "everyone has one adapter, near enough."
        )
    else:
        found.append(f"Users differ: weights are {report['between_users']:.3f} from their mean (0 to 1).")
    return found


def gate_section(report: Mapping[str, Any] | None) -> str:
    """Returns the part of a page that shows a report of gates, nothing for None."""
    if not report:
        return ""
    rows = [("everyone", report["users"], report["mean"])]
    rows += [
        (f"{name}: {label}", entry["users"], entry["mean"])
        for name, labels in report["groups"].items()
        for label, entry in labels.items()
    ]
    legend = colour_legend(
        (SERIES[place % NUM_COLOURS], f"expert {place + 1}") for place in range(report["experts"])
    )
    said = " ".join(map(escaped, gate_lines(report)))
    note = (
        f'<p class="note">Mean weights of {plural(report["users"], "user")} in the layer that tells users apart most, '
        f"{escaped(report['layer'])} ({report['between_by_layer'][report['layer']]:.3f} from their mean). A user's weights have {share(report['entropy'])} of the greatest entropy, a layer's mean weights "
        f"{share(report['mean_entropy'])}.</p>"
    )
    picture = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Weights of experts by group of users">'
        f"{_bars(rows)}</div>"
    )
    return section("Who gets which expert", f"<p>{said}</p>{legend}{picture}{note}")


def _bars(rows: list[tuple[str, int, list[float]]]) -> str:
    left, width, height = 230, 430, 26
    parts = []
    for line, (name, users, weights) in enumerate(rows):
        top, at = line * height + 4, float(left)
        label = fitted(f"{name} ({users:,})", 13, left - 12)
        parts.append(
            f'<text x="{left - 10}" y="{top + 14}" text-anchor="end" font-size="13" style="fill:var(--text)">{escaped(label)}</text>'
        )
        for place, weight in enumerate(weights):
            size = weight * width
            title = f"expert {place + 1}: {number(weight, 3)}"
            parts.append(
                f'<rect x="{at:.1f}" y="{top}" width="{max(0.0, size - 1):.1f}" height="{height - 8}" '
                f'style="fill:var(--m{place % NUM_COLOURS})"><title>{title}</title></rect>'
            )
            if size > 40:
                parts.append(
                    f'<text x="{at + size / 2:.1f}" y="{top + 13}" text-anchor="middle" font-size="11" '
                    f'style="fill:var(--paper)">{weight:.2f}</text>'
                )
            at += size
    total = len(rows) * height + 4
    return (
        f'<svg viewBox="0 0 {left + width + 4} {total}" role="img" aria-label="Mean weights of experts" '
        f'style="max-width:{left + width + 4}px;width:100%;min-width:34rem">{"".join(parts)}</svg>'
    )
