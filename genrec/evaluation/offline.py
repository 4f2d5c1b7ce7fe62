"""Evaluation from files alone: rankings against what was relevant, and finished runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from genrec.core.errors import DataError, RunError
from genrec.core.files import read_json
from genrec.evaluation.beyond import generated_rates
from genrec.evaluation.lists import RankedLists
from genrec.evaluation.metrics import user_metrics
from genrec.evaluation.rankings import align, read_rankings, read_relevant
from genrec.evaluation.report import metric_names, protocol_line, read_values
from genrec.evaluation.significance import bootstrap_intervals, compare_models

# What a row is about; two results that differ in one of these answer different questions.
_MUST_AGREE = (
    "data_hash",
    "split",
    "on",
    "rows_hash",
    "candidates",
    "exclude_history",
    "num_items",
    "tie_rule",
)


def score_file(
    rankings: str | Path,
    relevant: str | Path,
    metrics: Sequence[str],
    ks: Sequence[int],
    on_missing: Literal["error", "empty"] = "error",
    resamples: int = 1000,
) -> dict[str, Any]:
    """Returns ``metrics``, ``intervals`` (95%, over users) and ``counts`` of a file of rankings.

    Users for whom nothing is relevant have no value and are counted in ``num_without_relevant``. What the
    catalogue is is not known here, so that every listed item counts as one that exists.

    Args:
        rankings: File for ``read_rankings``.
        relevant: File for ``read_relevant``.
        metrics: Of ``RANKING_METRICS``.
        ks: Cut-offs.
        on_missing: Whether a user without a list is an error or has an empty one, a miss.
        resamples: Of the intervals.

    Raises:
        DataError: As ``read_rankings``, ``read_relevant`` and ``align``; or if nothing is relevant for anybody.
        RecipeError: If a metric is unknown.
    """
    truth = read_relevant(relevant)
    if not any(truth.values()):
        raise DataError(f"{relevant} has no relevant item of any user, so that there is nothing to measure.")
    lists, counts = align(read_rankings(rankings), list(truth), None, on_missing)
    names = [f"{metric}@{k}" for metric in metrics for k in ks if (metric, k) != ("NDCG", 1)]
    values = user_metrics(RankedLists.from_items(lists, list(truth.values())), names)
    listed = {item for items in lists for item in items}
    rates = generated_rates([items[: max(ks)] for items in lists], listed)
    return {
        "metrics": {name: float(np.nanmean(value)) for name, value in values.items()}
        | {"distinct_item_rate": rates["distinct_item_rate"], "empty_list_rate": rates["empty_list_rate"]},
        "intervals": {name: list(v) for name, v in bootstrap_intervals(values, resamples=resamples).items()},
        "counts": counts
        | {"num_users": len(truth), "num_without_relevant": sum(not items for items in truth.values())},
    }


def score_table(scored: dict[str, Any]) -> str:
    """Returns what ``score_file`` found as a table of text."""
    lines = [f"{'metric':<14}{'value':>10}   95% interval"]
    for name, (low, high) in scored["intervals"].items():
        lines.append(f"{name:<14}{scored['metrics'][name]:>10.4f}   [{low:.4f}, {high:.4f}]")
    counts = ", ".join(f"{count:,} {key[4:].replace('_', ' ')}" for key, count in scored["counts"].items())
    return "\n".join([*lines, counts])


def compare_runs(folders: Sequence[str | Path], metrics: Sequence[str] = ()) -> dict[str, Any]:
    """Returns finished runs side by side, with a paired test of each pair, corrected over all of them.

    The result has ``protocol``, ``runs`` (``name``, ``path``, ``seed`` and the ``entry`` of each), ``baselines``
    (entries of the first run) and ``tests``, whose models are named by path.

    Args:
        folders: Runs, or folders of judged rankings.
        metrics: What is tested; default the ranking metrics at the largest cut-off that all runs have.

    Raises:
        RunError: If there are fewer than two, one is not evaluated, comes twice, or they differ in data,
            split, held-out rows, candidates, history rule or catalogue; each difference is named.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2 or len({path.resolve() for path in paths}) < len(paths):
        raise RunError(
            f"Give two or more different runs to compare, got {', '.join(map(str, paths)) or 'none'}."
        )
    reports = []
    for path in paths:
        if not (path / "metrics.json").is_file():
            raise RunError(f"{path} is not evaluated: it has no metrics.json. Run: genrec evaluate {path}")
        reports.append(read_json(path / "metrics.json"))
    first = reports[0]["protocol"]
    for path, report in zip(paths[1:], reports[1:], strict=True):
        different = [key for key in _MUST_AGREE if report["protocol"].get(key) != first.get(key)]
        if different:
            details = "; ".join(
                f"{key}: {first.get(key)} and {report['protocol'].get(key)}" for key in different
            )
            raise RunError(
                f"{paths[0]} and {path} cannot be compared, since they were not measured alike. {details}. Evaluate "
                "them on the same data with the same data.* and evaluate.* keys."
            )
    read = {str(path): read_values(path / "values.parquet") for path in paths}
    values = {path: found for path, (_, found) in read.items()}
    shared = [name for name in values[str(paths[0])] if all(name in found for found in values.values())]
    if not metrics:
        last = max((int(name.split("@")[1]) for name in shared), default=0)
        metrics = [name for name in shared if name.endswith(f"@{last}")]
    if not metrics:
        raise RunError("The runs have no ranking metric in common. Evaluate them with the same evaluate.ks.")
    return {
        "protocol": first,
        "seed": reports[0]["seed"],
        "runs": [
            {"name": report["run"], "path": str(path), "seed": report["seed"], "entry": report["model"]}
            for path, report in zip(paths, reports, strict=True)
        ],
        "baselines": reports[0]["baselines"],
        "tests": compare_models(
            values, read[str(paths[0])][0], list(combinations(map(str, paths), 2)), list(metrics)
        ),
    }


def comparison_text(comparison: dict[str, Any]) -> str:
    """Returns what ``compare_runs`` found as a table of text."""
    entries = [(entry["name"], entry["metrics"]) for entry in comparison["baselines"].values()]
    entries += [
        (f"{run['path']} (seed {run['seed']}): {run['entry']['name']}", run["entry"]["metrics"])
        for run in comparison["runs"]
    ]
    names = [name for name in metric_names(entries[-1][1]) if all(name in metrics for _, metrics in entries)]
    width = max(len(name) for name, _ in entries)
    lines = [" " * width + "".join(f"{name:>10}" for name in names)]
    lines.append("-" * (width + 10 * len(names)))
    for name, metrics in entries:
        lines.append(f"{name:<{width}}" + "".join(f"{metrics[m]:>10.4f}" for m in names))
    lines += ["", protocol_line(comparison).replace(f"; seed {comparison['seed']}.", "."), ""]
    lines.append("First minus second, 95% interval, paired randomisation test over users (Holm over all):")
    for test in comparison["tests"]:
        low, high = test["interval"]
        verdict = (
            "not told apart" if test["p_holm"] >= 0.05 else "ahead" if test["difference"] > 0 else "behind"
        )
        lines.append(
            f"  {test['metric']}: {test['a']} - {test['b']}: {test['difference']:+.4f} [{low:+.4f}, {high:+.4f}], "
            f"p {test['p']:.4f}, corrected {test['p_holm']:.4f}: {verdict}"
        )
    return "\n".join(lines)
