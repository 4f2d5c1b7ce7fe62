"""Measures what identifiers are worth: ``python benchmarks/indexing/worth.py DATASET [--seed N] [--schemes NAME ...]``.

Every scheme names the same items, and one and the same small decoder is trained on each, from nothing and in the same
way. Beside next-item quality stand the measures of the index that need no model. Schemes may be measured in several
calls, each of which adds a result file; ``--table`` measures nothing and shows what all of them found.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from genrec.core.errors import GenrecError, RunError, nearest
from genrec.core.files import read_json, write_json
from genrec.core.progress import say
from genrec.evaluation.report import read_values
from genrec.evaluation.significance import compare_models
from genrec.indexing import ItemIndex
from genrec.indexing.encoders import FIELDS, encode
from genrec.indexing.quality import purities
from genrec.pipeline import METRICS, PREPARED_INDEX, VALUES, Pipeline
from genrec.recipe import Recipe, parse_recipe
from genrec.runs import versions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, hardware, working_tree
from run import data_source

RESULTS = ROOT / "benchmarks" / "indexing" / "results"

# Data of the recipe, what differs in index.*, and the schemes that cannot be built on it.
DATASETS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "beauty": ({"source": "shared:beauty", "user_core": 1, "item_core": 1}, {}, ()),
    "movielens-100k": ({"source": "movielens-100k", "item_core": 1}, {"categories": "flat"}, ()),
    "office": (  # has no categories, and times are given as an order
        {
            "source": "shared:office",
            "columns": {"timestamp": "order"},
            "time": "number",
            "user_core": 1,
            "item_core": 1,
        },
        {},
        ("semantic", "semantic+independent"),
    ),
}
# What differs from the defaults of index.*; titles are cut so that codes stay below ten tokens.
SCHEMES: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "sequential": {"method": "sequential"},
    "independent": {"method": "independent"},
    "title": {"method": "title", "max_words": 6},
    "text_id": {"method": "text_id"},
    "semantic": {"method": "semantic"},
    "collaborative": {"method": "collaborative", "branching": 10, "leaf_size": 256},
    "collaborative+independent": {"method": "hybrid", "join": "collaborative+independent", "leaf_size": 256},
    "semantic+independent": {"method": "hybrid", "join": "semantic+independent"},
    "rq_kmeans, text": {"method": "rq_kmeans", "vectors": "text"},
    "rq_kmeans, collaborative": {"method": "rq_kmeans", "vectors": "collaborative"},
    "rq_kmeans, both": {"method": "rq_kmeans"},
    "rq_kmeans, both, balanced": {"method": "rq_kmeans", "balanced": True},
    "rq_vae, text": {"method": "rq_vae", "vectors": "text"},
    "rq_vae, text, LETTER": {
        "method": "rq_vae",
        "vectors": "text",
        "rq_vae": {"collaborative_weight": 0.1, "diversity_weight": 0.0001},
    },
    "rq_vae, both": {"method": "rq_vae"},
}
# As in the experiment beauty-small-codes, without a teacher and without vectors in the starting rows, either of which
# would tell the model what the identifiers are to tell it.
SMALL: dict[str, Any] = {
    "tasks": {"form": "packed", "max_history": 50, "cuts": 1},
    "model": {
        "backbone": "new",
        "new": {"width": 64, "layers": 2, "heads": 2, "dropout": 0.2},
        "rows_start": "random",
    },
    "train": {
        "adapter": "full",
        "epochs": 12,
        "batch_size": 64,
        "learning_rate": 0.003,
        "rows_learning_rate": 0.006,
    },
    "evaluate": {"ks": [1, 5, 10, 20], "baselines": ["popularity"]},
}


def slug(scheme: str) -> str:
    """Returns a scheme's name as it stands in a path."""
    return scheme.replace(", ", "-").replace("+", "-")


def worth_recipe(dataset: str, scheme: str, seed: int) -> Recipe:
    """Returns the recipe of one row of the table."""
    data, index, _ = DATASETS[dataset]
    return parse_recipe(
        {
            **SMALL,
            "name": f"{dataset}, {scheme}",
            "seed": seed,
            "run_dir": f"runs/worth/{dataset}-seed{seed}/{slug(scheme)}",
            "data": data,
            "index": index | SCHEMES[scheme],
        }
    )


def measure(recipe: Recipe) -> dict[str, Any]:
    """Returns what is known of one scheme: its index's measures and the model's."""
    source = data_source(recipe.data.source)
    pipeline = Pipeline(
        recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update={"source": source}),
                "run_dir": str(ROOT / recipe.run_dir),
            }
        )
    )
    folder = pipeline.run_until("evaluate")
    report = read_json(folder / METRICS)
    index = ItemIndex.load(folder / PREPARED_INDEX)
    items = pipeline.items
    # One encoder for all schemes, so that their semantic purities are of one kind.
    text = encode(items.texts(FIELDS), "minilm")
    seconds = {stage: record["seconds"] for stage, record in pipeline.run.stages.items()}
    kept = ("num_tokens", "mean_length", "max_length", "collision_rate", "collision_rate_before", "levels")
    return {
        "index": {name: index.report[name] for name in kept if name in index.report},
        "num_items_touched": index.report.get("num_items_touched", 0),
        "purities": purities(
            list(index.codes.values()), items, pipeline.split.train, text, recipe.index.window
        ),
        "model": {key: value for key, value in report["model"].items() if key != "slices"},
        "popularity": report["baselines"]["popularity"]["metrics"],
        "protocol": report["protocol"],
        "seconds": seconds,
        "values": str(folder / VALUES),
        "recipe": recipe.model_dump(mode="json"),
    }


def table(result: Mapping[str, Any]) -> str:
    """Returns a result as Markdown, the best in NDCG@10 last."""
    lines = [
        "| scheme | tokens | mean length | collided | cosine | together | HR@10 | NDCG@10 | minutes |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    rows = sorted(result["schemes"].items(), key=lambda entry: entry[1]["model"]["metrics"]["NDCG@10"])
    for name, row in rows:
        index, metrics = row["index"], row["model"]["metrics"]
        first = row["purities"][0] if row["purities"] else None
        pure = f"{first['semantic']:.2f}" if first else ""
        together = f"{first['collaborative'] / first['collaborative_all']:.1f}" if first else ""
        lines.append(
            f"| {name} | {index['num_tokens']:,} | {index['mean_length']:.1f} "
            f"| {index.get('collision_rate_before', index['collision_rate']):.1%} | {pure} | {together} "
            f"| {metrics['HR@10']:.4f} | {metrics['NDCG@10']:.4f} "
            f"| {(row['seconds']['index'] + row['seconds']['train']) / 60:.1f} |"
        )
    return "\n".join(lines)


def joined(dataset: str, seed: int) -> dict[str, Any]:
    """Returns the schemes of all results of a data set and seed as one result, the later measured of a kind.

    Raises:
        RunError: If there is none, or the rows were not trained in the same way on the same interactions.
    """
    results = [read_json(path) for path in sorted(RESULTS.glob(f"worth-{dataset}-seed{seed}-*.json"))]
    if not results:
        raise RunError(f"{RESULTS} holds no result of {dataset} with seed {seed}: measure one first.")
    schemes = {
        name: row
        for result in sorted(results, key=lambda result: str(result["date"]))
        for name, row in result["schemes"].items()
    }
    same = {
        name: {part: row["recipe"][part] for part in (*SMALL, "data")} | {"protocol": row["protocol"]}
        for name, row in schemes.items()
    }
    first = next(iter(same))
    if unlike := [name for name in same if same[name] != same[first]]:
        raise RunError(f"{', '.join(unlike)} were not measured as {first} was: measure them again.")
    return {"schemes": schemes}


def order_tests(schemes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns paired tests over users of the order random < sequential < collaborative, corrected together."""
    names = [name for name in ("random", "sequential", "collaborative") if name in schemes]
    if len(names) < 2:
        return []
    read = {name: read_values(Path(schemes[name]["values"])) for name in names}
    pairs = [(later, earlier) for earlier, later in combinations(names, 2)]
    return compare_models(
        {name: values for name, (_, values) in read.items()}, read[names[0]][0], pairs, ["HR@10", "NDCG@10"]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is asked for, adds a result file, prints the table and returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python benchmarks/indexing/worth.py", description=__doc__)
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), metavar="NAME")
    parser.add_argument(
        "--table", action="store_true", help="show what was found so far, and measure nothing"
    )
    options = parser.parse_args(arguments)
    try:
        if options.table:
            print(table(joined(options.dataset, options.seed)))
            return 0
        for name in options.schemes:
            if name not in SCHEMES:
                raise RunError(f"There is no scheme {name!r}: {', '.join(SCHEMES)}.{nearest(name, SCHEMES)}")
        commit, dirty = working_tree()
        if dirty:
            raise RunError("The working tree has changes that are not committed: commit or stash them.")
        part = "" if options.schemes == list(SCHEMES) else "-" + slug(options.schemes[0])
        path = RESULTS / f"worth-{options.dataset}-seed{options.seed}-{commit[:8]}{part}.json"
        if path.exists():
            raise RunError(f"{path} is there already, and results are added, never edited.")
        machine, began = hardware(), time.perf_counter()
        schemes = {}
        for name in options.schemes:
            if name in DATASETS[options.dataset][2]:
                say(f"== {options.dataset} has no categories: {name} is left out")
                continue
            say(f"== {options.dataset}, {name}")
            schemes[name] = measure(worth_recipe(options.dataset, name, options.seed))
        result = {
            "dataset": options.dataset,
            "seed": options.seed,
            "commit": commit,
            "command": shlex.join(["python", "benchmarks/indexing/worth.py", *arguments]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": machine,
            "versions": versions(),
            "wall_seconds": round(time.perf_counter() - began, 1),
            "schemes": schemes,
            "tests": order_tests(schemes),
        }
        write_json(path, result)
        print(table(result))
        for test in result["tests"]:
            low, high = test["interval"]
            print(
                f"{test['metric']} of {test['a']} - {test['b']}: {test['difference']:+.4f} [{low:+.4f}, {high:+.4f}], "
                f"p {test['p_holm']:.4f}"
            )
    except GenrecError as error:
        print(f"worth: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
