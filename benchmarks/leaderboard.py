"""Writes the leaderboard in README.md from the result files alone: ``python benchmarks/leaderboard.py [--check]``."""

import argparse
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genrec.core.errors import GenrecError, RunError
from genrec.core.files import atomic_path, read_json
from genrec.evaluation.report import protocol_line

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
OPENING, CLOSING = "<!-- leaderboard -->", "<!-- /leaderboard -->"

METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10")
SORTED_BY = "NDCG@10"
LANGUAGE_MODEL = ("index", "tasks", "model", "train")
SAME_PROTOCOL = ("on", "candidates", "exclude_history", "rows_hash", "data_hash")

Result = Mapping[str, Any]


def read_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Returns the results that count, by date: those of committed code and of experiments as they stand."""
    found = [read_json(path) for path in sorted(folder.glob("*.json"))]
    counted = [result for result in found if not result["dirty"] and not result["overrides"]]
    return sorted(counted, key=lambda result: result["date"])


def current(results: Iterable[Result]) -> list[Result]:
    """Returns the latest result of each experiment and seed, of seeds with the settings of the latest only.

    Args:
        results: By date, oldest first.
    """
    latest = {(result["experiment"], result["seed"]): result for result in results}
    newest = {result["experiment"]: result for result in sorted(latest.values(), key=lambda r: r["date"])}
    return [result for result in latest.values() if _same_settings(result, newest[result["experiment"]])]


def _same_settings(one: Result, other: Result) -> bool:
    """Returns whether two recipes agree but for seeds, in every key that both commits' genrec has.

    Results of baselines need not agree in the keys of a language model, which was not trained for them.
    """

    def settings(result: Result) -> dict[tuple[str, str], Any]:
        passed_over = LANGUAGE_MODEL if result["until"] == "baselines" else ()
        sections = {
            name: keys
            for name, keys in result["recipe"].items()
            if isinstance(keys, dict) and name not in passed_over
        }
        return {
            (name, key): value
            for name, keys in sections.items()
            for key, value in keys.items()
            if key != "seed"
        }

    a, b = settings(one), settings(other)
    return all(a[key] == b[key] for key in a.keys() & b.keys())


def leaderboard(results: Iterable[Result]) -> str:
    """Returns the tables as Markdown, one for each data set and protocol."""
    tables: dict[str, dict[tuple[Any, ...], list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in current(results):
        protocol = tuple(result["protocol"][key] for key in SAME_PROTOCOL)
        tables[result["dataset"]][protocol].append(result)
    if not tables:
        return "No results yet: `python benchmarks/run.py EXPERIMENT` adds one."
    parts = []
    for dataset in sorted(tables):
        parts.append(f"**{dataset}**")
        for protocol in sorted(tables[dataset], key=repr):
            parts += [_sentence(tables[dataset][protocol]), _table(tables[dataset][protocol])]
    return "\n\n".join(parts)


def _sentence(results: Sequence[Result]) -> str:
    p = results[0]["protocol"]
    seeds = ", ".join(map(str, sorted({result["seed"] for result in results})))
    line = f"{protocol_line({'protocol': p, 'seed': seeds})} Data {p['data_hash'][:8]}, rows {p['rows_hash'][:8]}."
    if all(result["until"] != "baselines" for result in results):
        line += " No baselines were run under this protocol yet."
    return line


def _table(results: Sequence[Result]) -> str:
    rows: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        # A generative run brings baselines of its own; each is shown once, from the baselines' experiment.
        for key in result["models"] if result["until"] == "baselines" else ("model",):
            rows[result["experiment"], key].append(result)
    values = {row: _means(row[1], runs) for row, runs in rows.items()}
    shown = [metric for metric in METRICS if any(metric in means for means in values.values())]
    best = {m: max(f"{means[m]:.4f}" for means in values.values() if m in means) for m in shown}
    ordered = sorted(rows, key=lambda row: (values[row].get(SORTED_BY, 0.0), row))
    lines = [
        f"| model | {' | '.join(shown)} | seeds | minutes | experiment | hardware | commit |",
        f"|---|{'--:|' * (len(shown) + 2)}---|---|---|",
    ]
    for row in ordered:
        experiment, key = row
        runs = rows[row]
        cells = [runs[-1]["models"][key]["name"]]
        for metric in shown:
            cell = f"{values[row][metric]:.4f}" if metric in values[row] else ""
            bold = "**" if cell == best[metric] else ""
            if cell and len(runs) > 1:
                cell += f" ± {statistics.stdev(r['models'][key]['metrics'][metric] for r in runs):.4f}"
            cells.append(f"{bold}{cell}{bold}")
        minutes = statistics.mean(r["models"][key]["seconds"] for r in runs) / 60
        cut = any(r["calls"] > 1 for r in runs)
        cells += [
            str(len(runs)),
            f"{'≥ ' if cut else ''}{minutes:.1f}",
            experiment,
            ", ".join(dict.fromkeys(_machine(r["hardware"]) for r in runs)),
            ", ".join(dict.fromkeys(r["commit"][:8] for r in runs)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _means(key: str, results: Sequence[Result]) -> dict[str, float]:
    metrics = [result["models"][key]["metrics"] for result in results]
    return {
        m: statistics.mean(each[m] for each in metrics) for m in METRICS if all(m in each for each in metrics)
    }


def _machine(hardware: Mapping[str, Any]) -> str:
    if hardware["gpu"]:
        return str(hardware["gpu"])
    name = re.sub(r"\((R|TM)\)|\b(CPU|Processor|\d+-Core)\b|@.*", "", hardware["cpu"])
    return f"{' '.join(name.split())}, {hardware['threads']} threads"


def renewed(text: str, results: Iterable[Result]) -> str:
    """Returns a README's text with the leaderboard of these results between the marks.

    Raises:
        RunError: If the two marks are not there once each, in order.
    """
    before, opening, rest = text.partition(OPENING)
    _, closing, after = rest.partition(CLOSING)
    if not opening or not closing or OPENING in rest or CLOSING in before + after:
        raise RunError(
            f"The README must have {OPENING} and then {CLOSING} once each, where the leaderboard goes between."
        )
    return f"{before}{OPENING}\n\n{leaderboard(results)}\n\n{CLOSING}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes README.md, or with ``--check`` only compares it, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python benchmarks/leaderboard.py", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if README.md is not what would be written"
    )
    options = parser.parse_args(arguments)
    try:
        old = README.read_text(encoding="utf-8")
        new = renewed(old, read_results())
        if options.check and old != new:
            raise RunError("README.md is not what the result files say. Run: make leaderboard")
        if not options.check:
            with atomic_path(README) as part:
                part.write_text(new, encoding="utf-8")
    except GenrecError as error:
        print(f"leaderboard: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
