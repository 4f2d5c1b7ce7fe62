"""What a person reads at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from genrec.data_prep import ItemCatalog, ItemId

_NAMES = {"popularity": "Popularity", "sasrec": "SASRec (full cross-entropy)"}


def metric_names(metrics: dict[str, Any]) -> list[str]:
    """Returns the names of the ranking metrics in a report, HR before NDCG."""
    return [name for name in metrics if name.startswith(("HR@", "NDCG@"))]


def rows(report: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Returns ``(name, metrics)`` of every baseline and then of the run itself."""
    training = report["training"]
    label = f"{training['backbone']}, {training['layers']} layers, {report['index']['method']} ids"
    found = [(_NAMES.get(name, name), entry["metrics"]) for name, entry in report["baselines"].items()]
    return [*found, (label, report["metrics"])]


def protocol_line(report: dict[str, Any]) -> str:
    """Returns one sentence that says how the numbers were made."""
    p = report["protocol"]
    learned = [p["losses_exclude_history"][name] for name in ("train", "sasrec")]
    seen = "left out" if p["exclude_history"] else "allowed"
    if p["exclude_history"]:
        seen += f" of rankings{', of losses too' if all(learned) else ' only' if not any(learned) else ''}"
    k = max(int(name.split("@")[1]) for name in metric_names(report["metrics"]))
    rate = report["metrics"][f"HR@{k}"]
    interval = 1.96 * math.sqrt(rate * (1 - rate) / p["num_users"])
    return (
        f"{p['split']}, {p['on']} items; all {p['num_items']:,} items ranked for all {p['num_users']:,} users, "
        f"items of the history {seen}; seed {report['seed']}. 95% interval of the last row's HR@{k} over users: "
        f"+-{interval:.3f}."
    )


def comparison_table(report: dict[str, Any]) -> str:
    """Returns the metrics of baselines and model as a table of text."""
    table = rows(report)
    names = metric_names(report["metrics"])
    width = max(len(name) for name, _ in table)
    lines = ["", " " * width + "".join(f"{name:>10}" for name in names)]
    lines.append("-" * (width + 10 * len(names)))
    for name, metrics in table:
        lines.append(f"{name:<{width}}" + "".join(f"{metrics[m]:>10.4f}" for m in names))
    return "\n".join([*lines, "", protocol_line(report), ""])


def examples(
    rankings: Sequence[dict[str, Any]], histories: Sequence[Sequence[ItemId]], items: ItemCatalog
) -> str:
    """Returns some users' last items, what they took next and what they were recommended, by title."""
    lines: list[str] = []
    for ranking, history in zip(rankings, histories, strict=True):
        lines.append(f"User {ranking['user_id']} ({len(history)} items), the last five:")
        lines += [f"    {items.title(item)}" for item in history[-5:]]
        lines.append(f"  took next: {items.title(ranking['target'])}; recommended:")
        for place, (item, score) in enumerate(
            zip(ranking["item_ids"][:5], ranking["scores"][:5], strict=True), start=1
        ):
            mark = "  <- taken" if item == ranking["target"] else ""
            lines.append(f"  {place}. {items.title(item)} (p {math.exp(score):.3f}){mark}")
        lines.append("")
    return "\n".join(lines)
