"""How good probabilities of clicks are, how sure that is, and whether two models differ: everything over users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pa_parquet

from genrec.core.errors import DataError, RecipeError, RunError
from genrec.core.files import read_json
from genrec.evaluation.beyond import probability_metrics
from genrec.evaluation.metrics import click_metrics, labelled
from genrec.evaluation.significance import LEVEL, holm

CLICK_METRICS = ("AUC", "LogLoss", "Accuracy", "ECE")
# In which less is better.
FALLING = ("LogLoss", "ECE")
TEST = "bootstrap over users"
METRICS_FILE, PREDICTIONS_FILE = "metrics.json", "predictions.parquet"
_CHUNK = 2_000_000


def measure_clicks(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Returns ``CLICK_METRICS`` of probabilities of yes, as ``click_metrics`` and ``probability_metrics`` have them.

    Args:
        labels: ``(rows,)`` 0 or 1, both of them.
        probabilities: ``(rows,)`` in [0, 1].

    Raises:
        DataError: As ``click_metrics``.
    """
    return click_metrics(labels, probabilities) | {"ECE": probability_metrics(labels, probabilities)["ECE"]}


def compare_clicks(
    labels: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    users: np.ndarray,
    pairs: Sequence[tuple[str, str]] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, dict[str, tuple[float, float]]], list[dict[str, Any]]]:
    """Returns every model's 95% intervals, and an entry for each pair and metric with the difference and how sure it is.

    Users are drawn again with all their rows, the same ones for every model (percentile bootstrap; Efron, Annals of
    Statistics 1979). A difference's ``p`` is two-sided: twice the smaller share of draws in which it is on the one side of
    zero or on the other, each share with one draw added, so that it is never 0; ``p_holm`` is corrected over all entries.
    Draws that hold one answer only have no AUC and do not count. ECE has no interval: drawn again, rows come several times,
    and any model looks worse calibrated.

    Args:
        labels: ``(rows,)`` 0 or 1.
        probabilities: ``(rows,)`` of each model.
        users: ``(rows,)`` whose row each is, as numbers or names.
        pairs: Models compared, a - b.
        resamples: Draws.
        seed: Of the draws.

    Raises:
        DataError: As ``click_metrics``.
        RecipeError: If there is no resample.
    """
    if resamples < 1:
        raise RecipeError(f"A bootstrap takes 1 resample or more, got {resamples}.")
    checked = {name: labelled(labels, each) for name, each in probabilities.items()}
    found = {name: measure_clicks(*pair) for name, pair in checked.items()}
    if len(users) != len(labels):
        raise DataError(f"{len(users):,} users for {len(labels):,} rows; each row needs one.")
    owner = np.unique(users, return_inverse=True)[1]
    num_users, rng = int(owner.max()) + 1, np.random.default_rng(seed)
    statistics = {name: _Weighted(*pair) for name, pair in checked.items()}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    step = max(1, _CHUNK // len(owner))
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        weights = rng.multinomial(num_users, np.full(num_users, 1 / num_users), size)[:, owner]
        for name, each in statistics.items():
            drawn[name].append(each(weights))
    draws = {name: np.concatenate(parts) for name, parts in drawn.items()}
    sides = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    names = CLICK_METRICS[:3]

    def interval(values: np.ndarray) -> tuple[float, float]:
        low, high = np.nanpercentile(values, sides) if not np.isnan(values).all() else (np.nan, np.nan)
        return float(low), float(high)

    intervals = {
        name: {metric: interval(values[:, place]) for place, metric in enumerate(names)}
        for name, values in draws.items()
    }
    entries: list[dict[str, Any]] = []
    for a, b in pairs:
        for place, metric in enumerate(names):
            apart = draws[a][:, place] - draws[b][:, place]
            apart = apart[~np.isnan(apart)]
            below, above = (int((apart <= 0).sum()), int((apart >= 0).sum()))
            entries.append(
                {
                    "metric": metric,
                    "a": a,
                    "b": b,
                    "difference": found[a][metric] - found[b][metric],
                    "interval": list(interval(apart)) if len(apart) else [float("nan")] * 2,
                    "p": min(1.0, 2 * (1 + min(below, above)) / (1 + len(apart))),
                    "test": TEST,
                    "num_users": num_users,
                }
            )
    for entry, corrected in zip(entries, holm([entry["p"] for entry in entries]), strict=True):
        entry["p_holm"] = corrected
    return intervals, entries


def click_protocol(report: Mapping[str, Any]) -> str:
    """Returns how the numbers of a report were made, in words."""
    p = report["protocol"]
    drawn = "" if p["drawn_rows"] is None else ", drawn by the seed"
    left = f"; {p['left_out_rows']:,} rows that no prompt can ask are left out" if p["left_out_rows"] else ""
    return (
        f"{p['split']}, {p['on']} rows: {p['num_rows']:,} of {p['num_users']:,} users{drawn}, the same for every model{left}; yes is "
        f"{p['yes']}, {p['share_of_yes']:.1%} of them; seed {report['seed']}."
    )


def click_table(report: Mapping[str, Any]) -> str:
    """Returns the metrics of baselines and model as a table of text, with intervals and tests."""
    entries = [*report["baselines"].values(), report["model"]]
    lines = _table([(entry["name"], entry["metrics"]) for entry in entries])
    low, high = report["model"]["intervals"]["AUC"]
    lines += [
        "",
        click_protocol(report),
        f"95% interval of the last row's AUC over users: [{low:.4f}, {high:.4f}].",
    ]
    lines.append("The last row minus each other, 95% interval, p of a bootstrap over users (Holm):")
    lines += [f"  {line}" for line in click_test_lines(report)]
    return "\n".join([*lines, ""])


def click_test_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for every model that the run's own was compared with."""
    found = []
    for key, entry in report["baselines"].items():
        parts = []
        for test in (test for test in report["tests"] if test["b"] == key):
            low, high = test["interval"]
            numbers = f"{test['metric']} {test['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
            parts.append(f"{numbers} p {test['p_holm']:.4f}")
        found.append(f"{entry['name']}: {'; '.join(parts)}")
    return found


def predicts_clicks(folder: str | Path) -> bool:
    """Returns whether a folder is an evaluated run that predicts clicks."""
    file = Path(folder) / METRICS_FILE
    return file.is_file() and read_json(file).get("protocol", {}).get("task") == "click"


def compare_click_runs(folders: Sequence[str | Path], resamples: int = 10_000) -> str:
    """Returns evaluated runs of clicks side by side as text: metrics, then each pair's differences, corrected over all of them.

    Raises:
        RunError: If there are fewer than two, one comes twice or predicts no clicks, or they did not answer the same rows.
        DataError: As ``compare_clicks``.
    """
    paths = [str(folder) for folder in folders]
    if len({Path(path).resolve() for path in paths}) < max(2, len(paths)):
        raise RunError(f"Give two or more different runs to compare, got {', '.join(paths) or 'none'}.")
    reports, tables = [], []
    for path in paths:
        if not predicts_clicks(path):
            raise RunError(f"{path} is no evaluated run of evaluate.task=click, as {paths[0]} is.")
        reports.append(read_json(Path(path) / METRICS_FILE))
        tables.append(pa_parquet.read_table(Path(path) / PREDICTIONS_FILE))
    first = tables[0]
    for path, report, table in zip(paths, reports, tables, strict=True):
        same = report["protocol"]["data_hash"] == reports[0]["protocol"]["data_hash"]
        if not same or any(table[name] != first[name] for name in ("key", "item_id", "label")):
            raise RunError(
                f"{paths[0]} and {path} were not measured on the same rows. Evaluate them on the same data with the same data.*, "
                "tasks.like_from, evaluate.max_rows and evaluate.seed."
            )
    found = {path: table["model"].to_numpy() for path, table in zip(paths, tables, strict=True)}
    pairs = list(combinations(paths, 2))
    _, tests = compare_clicks(first["label"].to_numpy(), found, first["user_id"].to_numpy(), pairs, resamples)
    names = [f"{path} (seed {report['seed']})" for path, report in zip(paths, reports, strict=True)]
    lines = _table([(name, report["model"]["metrics"]) for name, report in zip(names, reports, strict=True)])
    lines += ["", click_protocol(reports[0]).rpartition("; seed")[0] + ".", ""]
    lines.append(f"First minus second, 95% interval, {TEST} (Holm over all):")
    for test in tests:
        low, high = test["interval"]
        better = (test["difference"] > 0) != (test["metric"] in FALLING)
        verdict = "not told apart" if test["p_holm"] >= 0.05 else "ahead" if better else "behind"
        lines.append(
            f"  {test['metric']}: {test['a']} - {test['b']}: {test['difference']:+.4f} [{low:+.4f}, {high:+.4f}], "
            f"p {test['p']:.4f}, corrected {test['p_holm']:.4f}: {verdict}"
        )
    return "\n".join(lines)


def _table(rows: Sequence[tuple[str, Mapping[str, float]]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    lines = ["", " " * width + "".join(f"{name:>10}" for name in CLICK_METRICS)]
    lines.append("-" * (width + 10 * len(CLICK_METRICS)))
    for name, metrics in rows:
        lines.append(f"{name:<{width}}" + "".join(f"{metrics[metric]:>10.4f}" for metric in CLICK_METRICS))
    return lines


class _Weighted:
    """AUC, log loss and accuracy of rows that each come so many times."""

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        self._order = np.argsort(probabilities, kind="stable")
        held = probabilities[self._order]
        # Where each group of equal probabilities begins.
        self._start = np.flatnonzero(np.append(True, held[1:] != held[:-1]))
        self._liked = labels[self._order].astype(np.float64)
        cut = np.clip(probabilities, 1e-15, 1 - 1e-15)  # as click_metrics
        self._loss = -np.where(labels == 1, np.log(cut), np.log1p(-cut))
        self._right = ((probabilities >= 0.5) == (labels == 1)).astype(np.float64)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Returns ``(draws, 3)`` values for ``(draws, rows)`` weights, NaN where there is no AUC."""
        ordered = weights[:, self._order]
        liked = np.add.reduceat(ordered * self._liked, self._start, 1)
        other = np.add.reduceat(ordered * (1 - self._liked), self._start, 1)
        below = np.cumsum(other, 1) - other / 2
        pairs = liked.sum(1) * other.sum(1)
        with np.errstate(invalid="ignore"):
            area = np.where(pairs > 0, (liked * below).sum(1) / pairs, np.nan)
        total = weights.sum(1)
        return np.stack([area, weights @ self._loss / total, weights @ self._right / total], 1)
