"""Runs an experiment and adds its result file: ``python benchmarks/run.py EXPERIMENT [--seed N] [key=value ...]``."""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genrec.core.errors import DataError, GenrecError, RecipeError, RunError, nearest
from genrec.core.files import read_json, write_json
from genrec.core.progress import say
from genrec.recipe import Recipe, load_recipe, shipped_recipes
from genrec.runs import RunDir, versions

from machine import ROOT, git, hardware, peak_memory, working_tree

EXPERIMENTS = ROOT / "benchmarks" / "experiments"
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT.parent / "shared" / "data"
DATA_VARIABLE = "GENREC_TEST_DATA"
SHARED = "shared:"
BEGUN = "benchmark.json"
CODE = ("genrec", "data_prep", "indexing")
OURS = ("name", "seed", "run_dir")


class Experiment(BaseModel):
    """What one experiment's folder holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = Field(min_length=1)
    dataset: str = Field(min_length=1)
    base: str | None
    until: Literal["baselines", "evaluate"]
    recipe: dict[str, Any] = Field(default_factory=dict)


def experiment_names() -> list[str]:
    """Returns the names of all experiments."""
    return sorted(path.parent.name for path in EXPERIMENTS.glob("*/experiment.yaml"))


def read_experiment(name: str) -> Experiment:
    """Returns an experiment as its file has it.

    Raises:
        RecipeError: If there is no such experiment, its file is not valid, or it gives a key that this
            runner sets.
    """
    names = experiment_names()
    if name not in names:
        raise RecipeError(
            f"There is no experiment {name!r}. Available: {', '.join(names)}.{nearest(name, names)}"
        )
    path = EXPERIMENTS / name / "experiment.yaml"
    try:
        found = Experiment.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise RecipeError(f"{path} is not valid: {error}") from error
    _refuse_ours(found.recipe, str(path))
    return found


def experiment_recipe(name: str, seed: int = 0, overrides: Sequence[str] = (), suffix: str = "") -> Recipe:
    """Returns the whole recipe of an experiment, its data still named as the experiment names them.

    Raises:
        RecipeError: As ``read_experiment`` and ``load_recipe``; if a base is neither a shipped recipe nor an
            experiment, or is based on itself; if an override gives ``name`` or ``seed``.
    """
    _refuse_ours({override.partition("=")[0] for override in overrides} - {"run_dir"}, "The command")
    run_dir = f"runs/benchmarks/{name}-seed{seed}{suffix}"
    tree = _tree(name, ()) | {"name": name, "seed": seed, "run_dir": run_dir}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return load_recipe(path, overrides)


def _refuse_ours(keys: Mapping[str, Any] | set[str], source: str) -> None:
    for key in OURS:
        if key in keys:
            raise RecipeError(
                f"{source} gives {key!r}, which benchmarks/run.py sets: the name of the experiment, --seed and "
                "a folder below runs/benchmarks."
            )


def _tree(name: str, above: tuple[str, ...]) -> dict[str, Any]:
    if name in above:
        raise RecipeError(f"The experiment {name} is based on itself: {' -> '.join([*above, name])}.")
    experiment = read_experiment(name)
    base: dict[str, Any] = {}
    if experiment.base in shipped_recipes():
        text = files("genrec.recipes").joinpath(f"{experiment.base}.yaml").read_text(encoding="utf-8")
        base = yaml.safe_load(text)
    elif experiment.base in experiment_names():
        base = _tree(experiment.base, (*above, name))
    elif experiment.base is not None:
        known = [*shipped_recipes(), *experiment_names()]
        raise RecipeError(
            f"The base {experiment.base!r} of {name} is neither a shipped recipe nor an experiment. Available: "
            f"{', '.join(known)}.{nearest(experiment.base, known)}"
        )
    return merged(base, experiment.recipe)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``base`` with ``changes``: mappings are merged, anything else is replaced."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def data_source(source: str) -> str:
    """Returns a recipe's source of data, ``shared:NAME`` as the folder it stands for.

    Raises:
        DataError: If that folder is not there.
    """
    if not source.startswith(SHARED):
        return source
    home = Path(os.environ.get(DATA_VARIABLE) or DATA)
    folder = home / source.removeprefix(SHARED)
    if not folder.is_dir():
        raise DataError(
            f"The data set {source!r} is not there: {folder} is no folder. Put interactions.parquet and "
            f"items.parquet into it, or set {DATA_VARIABLE} to the folder that holds the data sets "
            "(benchmarks/README.md says where they come from)."
        )
    return str(folder)


def count_call(folder: Path, commit: str, dirty: bool) -> int:
    """Returns how many calls have worked in a run directory, this one too, and notes this one.

    Finished stages are not done again, so a directory that other code began would give its numbers to this
    commit.

    Raises:
        RunError: If it was begun at a commit with other code, or with changes that were not committed,
            and the tree is clean now.
    """
    begun: dict[str, Any] = {"commit": commit, "dirty": False, "calls": 0}
    if (folder / BEGUN).exists():
        begun = read_json(folder / BEGUN)
        changed = git("diff", "--quiet", begun["commit"], commit, "--", *CODE).returncode
        if not dirty and (begun["dirty"] or (begun["commit"] != commit and changed)):
            where = f"{begun['commit'][:8]}{' with uncommitted changes' if begun['dirty'] else ''}"
            raise RunError(
                f"{folder} was begun at {where}, whose code is not that of {commit[:8]}. Remove the folder, or go "
                "on from that commit."
            )
    calls: int = begun["calls"] + 1
    write_json(folder / BEGUN, {"commit": commit, "dirty": dirty or begun["dirty"], "calls": calls})
    return calls


def run_experiment(
    name: str,
    seed: int = 0,
    overrides: Sequence[str] = (),
    results: Path = RESULTS,
    allow_dirty: bool = False,
    command: str = "",
) -> Path:
    """Runs an experiment and returns the result file that it added.

    Args:
        name: Folder in ``benchmarks/experiments``.
        seed: Seed of every stage that does not give its own.
        overrides: ``key=value`` changes to the recipe; a result with one, other than ``run_dir``, does not count.
        results: Where the file goes.
        allow_dirty: Run a tree with uncommitted changes, too; such a result does not count.
        command: What was called, as the result file tells it.

    Raises:
        RunError: If the tree is dirty, the result is there already, or as ``working_tree`` and ``count_call``.
        RecipeError: As ``experiment_recipe``.
        DataError: As ``data_source``.
    """
    experiment = read_experiment(name)
    commit, dirty = working_tree()
    changed = sorted(o for o in overrides if not o.startswith("run_dir="))
    suffix = f"{'-changed' if changed else ''}{'-dirty' if dirty else ''}"
    recipe = experiment_recipe(name, seed, overrides, suffix)
    source = data_source(recipe.data.source)
    if dirty and not allow_dirty:
        raise RunError(
            "The working tree has changes that are not committed, so no commit would stand for the result. Commit "
            "or stash them (git status), or try the experiment out with --allow-dirty: the leaderboard ignores it."
        )
    path = results / f"{name}-seed{seed}-{commit[:8]}{suffix}.json"
    if path.exists():
        raise RunError(
            f"{path} is there already, and results are added, never edited. Take another --seed, commit what is "
            "new, or another folder with --results."
        )
    folder = ROOT / recipe.run_dir
    calls = count_call(folder, commit, dirty)
    machine = hardware()
    began = time.perf_counter()
    measured = _measure(recipe, folder, source, experiment.until)
    result = {
        "experiment": name,
        "about": experiment.about,
        "dataset": experiment.dataset,
        "until": experiment.until,
        "seed": seed,
        "commit": commit,
        "dirty": dirty,
        "overrides": changed,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": machine,
        "versions": versions(),
        "data_hash": measured["protocol"]["data_hash"],
        "protocol": measured["protocol"],
        "calls": calls,
        "stage_seconds": {stage: record["seconds"] for stage, record in RunDir(folder).stages.items()},
        "wall_seconds": round(time.perf_counter() - began, 1),
        "peak_memory_gb": peak_memory(),
        "models": measured["models"],
        "tests": measured["tests"],
        "recipe": recipe.model_dump(mode="json"),
    }
    write_json(path, result)
    return path


def _measure(recipe: Recipe, folder: Path, source: str, until: str) -> dict[str, Any]:
    from genrec.pipeline import METRICS, REPORT, Pipeline

    data = recipe.data.model_copy(update={"source": source})
    pipeline = Pipeline(recipe.model_copy(update={"run_dir": str(folder), "data": data}))
    pipeline.run_until(until)
    if until == "baselines":
        entries, _ = pipeline.baseline_entries()
        protocol = pipeline.judge.protocol() | {"data_hash": read_json(folder / REPORT)["log_sha256"]}
        tests = []
    else:
        report = read_json(folder / METRICS)
        seconds = {stage: record["seconds"] for stage, record in pipeline.run.stages.items()}
        needed = ("index", "train", *recipe.train.teachers)
        model_seconds = round(sum(seconds[stage] for stage in needed) + report["rank_s"], 1)
        entries = {"model": report["model"] | {"seconds": model_seconds}, **report["baselines"]}
        protocol, tests = report["protocol"], report["tests"]
    models = {
        key: {field: value for field, value in entry.items() if field != "slices"}
        for key, entry in entries.items()
    }
    return {"models": models, "protocol": protocol, "tests": tests}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs an experiment and returns the exit status: 0, or 1 with a message for an error genrec knows."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python benchmarks/run.py", description=__doc__)
    parser.add_argument("experiment", help=f"one of {', '.join(experiment_names())}")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes; the result does not count"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of every stage (default 0)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the result goes")
    parser.add_argument(
        "--allow-dirty", action="store_true", help="run uncommitted changes; the result does not count"
    )
    options = parser.parse_intermixed_args(arguments)
    command = shlex.join(["python", "benchmarks/run.py", *arguments])
    try:
        path = run_experiment(
            options.experiment,
            options.seed,
            options.overrides,
            options.results,
            options.allow_dirty,
            command,
        )
    except GenrecError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbenchmarks: stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    say(f"Result: {path}  (make leaderboard puts what counts into the README)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
