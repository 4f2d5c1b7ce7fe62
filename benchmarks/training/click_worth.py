"""Measures click prediction: ``python benchmarks/training/click_worth.py [--rows N --measured N]``.

The recipe reclora_movielens: a click model on every training rating of MovieLens-100K, then adapters of SmolLM2-135M-Instruct on a fixed sample of
prompts; RecLoRA beside LoRA of equal rank and of equal parameters, the click model alone and library baselines, all on the same
test rows. Intervals and p are of a bootstrap over users.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pa_parquet

from genrec.core.errors import GenrecError
from genrec.core.files import read_json, write_json
from genrec.core.progress import say
from genrec.evaluation.click import CLICK_METRICS, compare_clicks
from genrec.pipeline import METRICS, pipeline_of
from genrec.recipe import load_recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, begin_result

RESULTS = ROOT / "benchmarks" / "training" / "results"
ROWS, MEASURED = 400, 1000
OWN = "RecLoRA"
# Eight experts of rank 8 with their gates, beside two layers of each of thirty, have as many weights as a LoRA of rank 81.
WAYS: dict[str, list[str]] = {
    "LoRA, equal rank": ["train.adapter=lora"],
    "LoRA, equal parameters": ["train.adapter=lora", "train.lora_r=81", "train.lora_alpha=162"],
    OWN: [],
}


def main() -> int:
    """Measures, prints, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--measured", type=int, default=MEASURED)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allow-dirty", action="store_true")
    options = parser.parse_args()
    try:
        path, result = begin_result(
            RESULTS,
            f"click-worth-seed{options.seed}",
            "benchmarks/training/click_worth.py",
            sys.argv[1:],
            changed=(options.rows, options.measured) != (ROWS, MEASURED),
            allow_dirty=options.allow_dirty,
        )
        ways: dict[str, dict[str, Any]] = {}
        said: dict[str, np.ndarray] = {}
        for way, overrides in WAYS.items():
            say(f"== {way}")
            recipe = load_recipe(
                "reclora_movielens",
                [
                    f"run_dir={ROOT / f'runs/click-worth-seed{options.seed}'}",
                    f"seed={options.seed}",
                    f"tasks.mixture.click.count={options.rows}",
                    f"evaluate.max_rows={options.measured}",
                    *overrides,
                ],
            )
            folder = pipeline_of(recipe).run_until("evaluate")
            report, table = read_json(folder / METRICS), pa_parquet.read_table(folder / "predictions.parquet")
            said[way] = table["model"].to_numpy()
            labels, users = table["label"].to_numpy(), np.array(table["user_id"].to_pylist())
            ways[way] = {
                "model": report["model"],
                "weights": report["training"]["num_trainable"],
                "seconds": {"train": report["training"]["train_s"], "answer": report["answer_s"]},
                "gates": report.get("gates"),
                "recipe": recipe.model_dump(mode="json"),
            }
            others: dict[str, Any] = report["baselines"]
            said |= {name: table[name].to_numpy() for name in others}
        pairs = [(OWN, name) for name in said if name != OWN]
        intervals, tests = compare_clicks(labels, said, users, pairs, 2000)
        result |= {"protocol": report["protocol"], "ways": ways, "baselines": others}
        result |= {"intervals": intervals, "tests": tests}
        write_json(path, result)
        for name, entry in [*others.items(), *((way, ways[way]["model"]) for way in WAYS)]:
            values = "  ".join(f"{metric} {entry['metrics'][metric]:.4f}" for metric in CLICK_METRICS)
            print(f"{entry.get('name', name) if name in others else name}: {values}")
        for test in tests:
            low, high = test["interval"]
            print(
                f"{test['metric']} of {test['a']} - {test['b']}: {test['difference']:+.4f} [{low:+.4f}, {high:+.4f}], "
                f"p {test['p_holm']:.4f}"
            )
    except GenrecError as error:
        print(f"click_worth.py: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
