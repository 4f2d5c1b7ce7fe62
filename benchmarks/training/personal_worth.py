"""Measures what personal adapters are worth: ``python benchmarks/training/personal_worth.py [--seeds 0 1 2]``.

MovieLens-100K and the first layers of SmolLM2-135M-Instruct, next items among all: RecLoRA, made from SASRec's state, against plain LoRA of
equal rank, of equal parameters, and of equal parameters with the rows with which it was best on validation; and against RecLoRA that
is told nothing of its users. Everything else is the same in all ways;
settings were chosen on validation (docs/reclora.md). The table has means over seeds, the tests are paired over users, whose values
are means over seeds.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from genrec.core.errors import GenrecError, RunError
from genrec.core.files import read_json, write_json
from genrec.core.progress import say
from genrec.evaluation.report import read_values
from genrec.evaluation.significance import compare_models
from genrec.pipeline import METRICS, PAGE, VALUES, Pipeline
from genrec.recipe import Recipe, parse_recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, begin_result

RESULTS = ROOT / "benchmarks" / "training" / "results"
SEEDS = (0, 1, 2)
MEASURES = ("HR@10", "NDCG@10")
BASE: dict[str, Any] = {
    "data": {"source": "movielens-100k", "user_core": 5, "item_core": 1},
    "index": {"method": "independent"},
    "tasks": {"form": "packed", "max_history": 50, "context": 25, "cuts": 2},
    "model": {"backbone": "smollm2-135m-instruct", "layers": 4, "rows_start": "text+collaborative"},
    "train": {
        "epochs": 1,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "rows_learning_rate": 5e-3,
        "report_to": "none",
    },
    "sasrec": {"normalise": False, "epochs": 60},
    "evaluate": {"ks": [1, 5, 10], "baselines": ["popularity", "sasrec"]},
}
PERSONAL = {"adapter": "reclora", "lora_r": 4, "lora_alpha": 8, "reclora": {"experts": 4}}
# What differs from the base. Gates have four to five thousand weights a layer, for which a LoRA of equal parameters gets ranks.
WAYS: dict[str, dict[str, Any]] = {
    "LoRA, equal rank": {"train": {"lora_r": 4, "lora_alpha": 8}},
    "LoRA, equal parameters": {"train": {"lora_r": 18, "lora_alpha": 36}},
    "LoRA, equal parameters, its own rows": {
        "train": {"lora_r": 18, "lora_alpha": 36},
        "tasks": {"context": 0},
    },
    "RecLoRA": {"train": PERSONAL},
    "RecLoRA, one vector for everyone": {"train": PERSONAL},
}
TAUGHT = {"teacher": "sasrec", "teacher_weight": 0.8}
WAYS |= {
    "LoRA, its own rows, taught by SASRec": {
        "train": {"lora_r": 18, "lora_alpha": 36, **TAUGHT},
        "model": {"rows_start": "text+teacher"},
        "tasks": {"context": 0, "cuts": 3},
    },
    "RecLoRA, taught by SASRec": {"train": PERSONAL | TAUGHT, "model": {"rows_start": "text+teacher"}},
}
OWN, ALIKE = "RecLoRA", "RecLoRA, one vector for everyone"
PAIRS = [(OWN, other) for other in WAYS if other != OWN and "taught" not in other]
PAIRS += [(OWN, "sasrec"), ("RecLoRA, taught by SASRec", "LoRA, its own rows, taught by SASRec")]
PAIRS += [("RecLoRA, taught by SASRec", "sasrec")]


def recipe_of(way: str, seed: int) -> Recipe:
    """Returns the recipe of a way. All of a seed have one folder, so that SASRec is trained once."""
    folder = ROOT / f"runs/personal-seed{seed}"
    tree: dict[str, Any] = {**BASE, "name": f"movielens-100k, {way}", "seed": seed, "run_dir": str(folder)}
    for part, values in WAYS[way].items():
        tree[part] = tree[part] | values
    if way == ALIKE:
        pipeline = Pipeline(parse_recipe({**BASE, "seed": seed, "run_dir": str(folder)}))
        pipeline.run_until("prepare")
        users = list(pipeline.split.train)
        file = folder / "alike.parquet"
        pa_parquet.write_table(pa.table({"user_id": users, "vector": [[1.0, -1.0]] * len(users)}), file)
        gates = PERSONAL["reclora"] | {"vectors": "file", "file": str(file)}
        tree["train"] = tree["train"] | {"reclora": gates}
    return parse_recipe(tree)


def measure(way: str, seed: int, commit: str, collect: bool) -> dict[str, Any]:
    """Returns what is known of a way with a seed; every row's values under ``values``.

    A run is kept when it is measured, so that a cut benchmark goes on: it is measured again where its recipe or the commit is
    another, or with ``collect`` where its recipe is.

    Raises:
        RunError: If there is nothing to collect.
    """
    kept = ROOT / "runs" / "personal-worth" / f"seed{seed}" / re.sub(r"\W+", "-", way)
    wanted = recipe_of(way, seed).model_dump(mode="json")
    about = read_json(kept / "about.json") if (kept / "about.json").exists() else {}
    if about.get("recipe") != wanted or not (collect or about["commit"] == commit):
        if collect:
            raise RunError(f"{kept} holds no run of {way} with seed {seed}: measure it first.")
        folder = Pipeline(recipe_of(way, seed)).run_until("evaluate")
        kept.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, VALUES, PAGE):
            shutil.copyfile(folder / name, kept / name)
        about = {"recipe": wanted, "commit": commit}
        write_json(kept / "about.json", about)
    report = read_json(kept / METRICS)
    users, values = read_values(kept / VALUES)
    return {
        "commit": about["commit"],
        "model": {key: value for key, value in report["model"].items() if key != "slices"},
        "gates": report.get("gates"),
        "weights": report["training"]["num_trainable"],
        "seconds": {"train": report["training"]["train_s"], "rank": report["rank_s"]},
        "baselines": {name: entry["metrics"] for name, entry in report["baselines"].items()},
        "protocol": report["protocol"],
        "recipe": wanted,
        "users": users,
        "values": {name: values[name] for name in MEASURES},
        "sasrec": {name: read_values(kept / VALUES, "sasrec")[1][name] for name in MEASURES},
    }


def table(result: Mapping[str, Any]) -> str:
    """Returns a result as Markdown."""
    lines = ["| model | trained weights | HR@10 | NDCG@10 | training, s |", "|---|--:|--:|--:|--:|"]
    for way, seeds in result["ways"].items():
        rows = list(seeds.values())
        cells = [f"{rows[0]['weights']:,}"]
        for name in MEASURES:
            found = [row["model"]["metrics"][name] for row in rows]
            spread = f" ± {np.std(found, ddof=1):.4f}" if len(found) > 1 else ""
            cells.append(f"{np.mean(found):.4f}{spread}")
        cells.append(f"{np.mean([row['seconds']['train'] for row in rows]):.0f}")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measures, prints, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="NAME")
    parser.add_argument("--collect", action="store_true", help="only what was measured, at whatever commit")
    parser.add_argument("--allow-dirty", action="store_true")
    options = parser.parse_args()
    try:
        path, result = begin_result(
            RESULTS,
            f"personal-worth-seeds{'-'.join(map(str, options.seeds))}"
            + (f"-{len(options.ways)}-ways" if options.ways != list(WAYS) else ""),
            "benchmarks/training/personal_worth.py",
            sys.argv[1:],
            changed=False,
            allow_dirty=options.allow_dirty,
        )
        ways: dict[str, dict[int, dict[str, Any]]] = {way: {} for way in options.ways}
        for seed in options.seeds:
            for way in options.ways:
                say(f"== seed {seed}, {way}")
                ways[way][seed] = measure(way, seed, result["commit"], options.collect)
        means = {
            way: {name: np.mean([row["values"][name] for row in rows.values()], 0) for name in MEASURES}
            for way, rows in ways.items()
        }
        own = ways[OWN]
        means["sasrec"] = {
            name: np.mean([row["sasrec"][name] for row in own.values()], 0) for name in MEASURES
        }
        pairs = [(a, b) for a, b in PAIRS if a in means and b in means]
        tests = compare_models(means, next(iter(own.values()))["users"], pairs, list(MEASURES))
        for rows in ways.values():
            for row in rows.values():
                for name in ("users", "values", "sasrec"):
                    del row[name]
        result |= {"ways": ways, "tests": tests}
        write_json(path, result)
        print(table(result))
        for test in tests:
            low, high = test["interval"]
            print(
                f"{test['metric']} of {test['a']} - {test['b']}: {test['difference']:+.4f} [{low:+.4f}, {high:+.4f}], "
                f"p {test['p_holm']:.4f}"
            )
    except GenrecError as error:
        print(f"personal_worth.py: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
