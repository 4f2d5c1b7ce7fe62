"""What a person reads at the end of a run, and the values that tests can be repeated from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from genrec.core.errors import RunError
from genrec.core.files import atomic_path
from genrec.data_prep import HeldOut, ItemCatalog
from genrec.evaluation.metrics import RANKING_METRICS
from genrec.evaluation.rankings import Rankings


def metric_names(metrics: Mapping[str, Any]) -> list[str]:
    """Returns the names of the ranking metrics in an entry, in its order."""
    return [name for name in metrics if name.partition("@")[0] in RANKING_METRICS and "@" in name]


def model_label(training: Mapping[str, Any], method: str) -> str:
    """Returns what a table calls a tuned language model."""
    name = Path(training["backbone"]).name
    if name == "new":
        name = "encoder-decoder from nothing" if training.get("encoder_decoder") else "decoder from nothing"
    return f"{name}, {training['layers']} layers, {method} ids"


def rows(report: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Returns ``(name, metrics)`` of every baseline and then of the run's own model."""
    entries = [*report["baselines"].values(), report["model"]]
    return [(entry["name"], entry["metrics"]) for entry in entries]


def protocol_line(report: Mapping[str, Any]) -> str:
    """Returns how the numbers were made, in words."""
    p = report["protocol"]
    several = "" if p["num_rows"] == p["num_users"] else f" in {p['num_rows']:,} rows"
    everything = f"all {p['num_items']:,} items" if p["candidates"] == "all items" else p["candidates"]
    seen = "left out" if p["exclude_history"] else "allowed"
    line = (
        f"{p['split']}, {p['on']} items; {everything} ranked for all {p['num_users']:,} users{several}, items of "
        f"the history {seen}; seed {report['seed']}."
    )
    if p["candidates"] != "all items":
        line = f"SAMPLED CANDIDATES, not to be compared with full rankings. {line}"
    return line


def beam_line(report: Mapping[str, Any]) -> str:
    """Returns how many of the best items beam search misses, in words; nothing where it was not compared with exact search."""
    found = report.get("beam_search")
    if not found:
        return ""
    widths = sorted(int(name.removeprefix("missed@")) for name in found if name.startswith("missed@"))
    missed = ", ".join(f"{found[f'missed@{width}']:.1%} by {width} beams" for width in widths)
    return f"Of the {found['k']:.0f} best items of {found['users']:,.0f} rows, found by exact search, are missed: {missed}."


def test_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a line for every baseline that the run's model was tested against."""
    found = []
    for key, entry in report["baselines"].items():
        parts = []
        for test in (test for test in report["tests"] if test["b"] == key):
            low, high = test["interval"]
            numbers = f"{test['metric']} {test['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
            parts.append(f"{numbers} p {test['p_holm']:.4f}")
        if parts:
            found.append(f"{entry['name']}: {'; '.join(parts)}")
    return found


def comparison_table(report: Mapping[str, Any]) -> str:
    """Returns the metrics of baselines and model as a table of text, with intervals and paired tests."""
    table = rows(report)
    names = metric_names(report["model"]["metrics"])
    width = max(len(name) for name, _ in table)
    lines = ["", " " * width + "".join(f"{name:>10}" for name in names)]
    lines.append("-" * (width + 10 * len(names)))
    for name, metrics in table:
        lines.append(f"{name:<{width}}" + "".join(f"{metrics[m]:>10.4f}" for m in names))
    intervals = report["model"]["intervals"]
    bounds = ", ".join(f"{name} [{intervals[name][0]:.4f}, {intervals[name][1]:.4f}]" for name in names[-1:])
    lines += ["", protocol_line(report), f"95% interval of the last row over users: {bounds}."]
    lines += [beam_line(report)] if report.get("beam_search") else []
    if report["tests"]:
        lines += [
            "The last row minus each baseline, 95% interval, p of a paired randomisation test over users (Holm):"
        ]
        lines += [f"  {line}" for line in test_lines(report)]
    return "\n".join([*lines, ""])


def examples(
    rankings: Rankings,
    held_out: HeldOut,
    items: ItemCatalog,
    count: int = 6,
    k: int = 5,
    probabilities: bool = True,
) -> list[dict[str, Any]]:
    """Returns the first rows' last items, what was taken next and what was recommended, by title.

    Scores are in it where they are logarithms of probabilities.

    Each has ``user_id``, ``num_history``, ``history`` (the last five titles), ``targets`` (titles) and
    ``recommended``, ``(title, score or None, whether it was taken)``.
    """
    found = []
    for row, (user, history, targets) in enumerate(
        zip(held_out.user_ids[:count], held_out.histories, held_out.targets, strict=False)
    ):
        listed = rankings.item_ids[row][:k]
        scores = rankings.scores[row][:k] if rankings.scores and probabilities else [None] * len(listed)
        found.append(
            {
                "user_id": user,
                "num_history": len(history),
                "history": [items.title(item) for item in history[-5:]],
                "targets": [items.title(item) for item in targets],
                "recommended": [
                    (items.title(item) if item in items else item, score, item in targets)
                    for item, score in zip(listed, scores, strict=True)
                ],
            }
        )
    return found


def example_text(example: Mapping[str, Any]) -> str:
    """Returns one of ``examples`` as text; a score is shown as the probability that it is the log of."""
    lines = [f"User {example['user_id']} ({example['num_history']} items), the last five:"]
    lines += [f"    {title}" for title in example["history"]]
    lines.append(f"  took next: {'; '.join(example['targets'])}; recommended:")
    for place, (title, score, hit) in enumerate(example["recommended"], start=1):
        chance = "" if score is None else f" (p {math.exp(score):.3f})"
        lines.append(f"  {place}. {title}{chance}{'  <- taken' if hit else ''}")
    return "\n".join([*lines, ""])


def write_values(path: Path, held_out: HeldOut, values: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes every row's value of every metric for every model, so that any test can be repeated.

    Columns are ``model``, ``row_id``, ``user_id`` and the metrics.
    """
    tables = []
    for model, metrics in values.items():
        columns = {"model": [model] * len(held_out), "row_id": held_out.row_ids, "user_id": held_out.user_ids}
        tables.append(pa.table(columns | {name: pa.array(value) for name, value in metrics.items()}))
    with atomic_path(path) as part:
        pa_parquet.write_table(pa.concat_tables(tables), part)


def read_values(path: Path, model: str = "model") -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns ``(rows,)`` whose row each is, as numbers, and the values of one model's metrics.

    Raises:
        RunError: If the file is missing or does not have the model.
    """
    if not path.is_file():
        raise RunError(f"{path} does not exist. Evaluate the run again: genrec evaluate {path.parent}")
    table = pa_parquet.read_table(path, filters=[("model", "=", model)])
    if not table.num_rows:
        raise RunError(f"{path} has no values of {model!r}.")
    users = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    names = metric_names(dict.fromkeys(table.column_names))
    return users, {name: table[name].to_numpy() for name in names}
