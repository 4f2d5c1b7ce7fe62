"""The main job: prepare, index, train, baselines, evaluate, in one run directory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from genrec.core.errors import DataError, RecipeError, require
from genrec.core.files import atomic_path, hash_file, megabytes, read_json, write_json
from genrec.core.processes import from_main, gather_dict, is_main_process, num_processes, rank, wait
from genrec.core.progress import say
from genrec.data_prep import InteractionLog, ItemCatalog, Split, leave_one_out, load_dataset
from genrec.evaluation import BASELINES, evaluate_rankings
from genrec.evaluation.protocol import HeldOut, top_items
from genrec.evaluation.report import comparison_table, examples
from genrec.indexing import ItemIndex, build_index
from genrec.recipe import Recipe, dump_recipe
from genrec.runs import RunDir, versions
from genrec.serving.card import write_card
from genrec.tasks import build_dataset
from genrec.training import finetune
from genrec.training.finetune import (
    HISTORIES,
    INDEX,
    ITEMS,
    MODEL,
    SERVING_FILE,
    TRAINING_FILE,
    load_trained,
)

LOG, REPORT, BASELINE_RANKINGS = "data/interactions.parquet", "data/report.json", "baselines"
CATALOG, PREPARED_INDEX, SASREC = "data/items.parquet", "prepared_index", "sasrec"
RANKINGS, METRICS, CARD = "rankings.parquet", "metrics.json", "README.md"

STAGES = ("prepare", "index", "sasrec", "train", "baselines", "evaluate")


class Pipeline:
    """The stages of one recipe; each is done once and read from the run directory afterwards."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.run = RunDir(recipe.run_dir)

    def run_until(self, last: str) -> Path:
        """Does every stage up to ``last`` that is not done yet, and returns the run directory."""
        if last not in STAGES:
            raise RecipeError(f"Unknown stage {last!r}. Allowed: {', '.join(STAGES)}.")
        if is_main_process():
            with atomic_path(self.run.path / "recipe.yaml") as part:
                part.write_text(dump_recipe(self.recipe), encoding="utf-8")
        steps: dict[str, tuple[Callable[[], None], list[str]]] = {
            "prepare": (self._prepare, [LOG, CATALOG, REPORT]),
            "index": (self._index, [PREPARED_INDEX]),
            "sasrec": (self._sasrec, [SASREC]),
            "train": (
                self._train,
                [MODEL, INDEX, ITEMS, HISTORIES, SERVING_FILE, TRAINING_FILE],
            ),
            "baselines": (self._baselines, [BASELINE_RANKINGS]),
            "evaluate": (self._evaluate, [RANKINGS, METRICS, CARD]),
        }
        wanted = [name for name in STAGES if name != "sasrec" or self._needs_sasrec]
        for number, name in enumerate(wanted[: wanted.index(last) + 1], start=1):
            work, outputs = steps[name]
            inputs = self.inputs(name)
            if from_main(self.run.is_done(name, inputs)):
                say(f"[{number}/{len(wanted)}] {name}: done already")
                continue
            say(f"[{number}/{len(wanted)}] {name}")
            with self.run.stage(name, inputs, outputs):
                wait()
                work()
                wait()
            if is_main_process():
                say(f"  {name} took {self.run.stages[name]['seconds']:.0f} s")
            wait()
        return self.run.path

    def inputs(self, stage: str) -> dict[str, Any]:
        """Returns everything that a stage's outputs depend on: its keys, and the inputs before it."""
        r = self.recipe.model_dump(mode="json")
        if stage == "prepare":
            source = Path(r["data"]["source"])
            files = [source] if source.is_file() else sorted(source.glob("*.*")) if source.is_dir() else []
            files += [Path(r["data"]["items"])] if r["data"]["items"] else []
            return {"data": r["data"], "files": {f.name: hash_file(f) for f in files if f.is_file()}}
        if stage == "index":
            return {"index": r["index"], "before": self.inputs("prepare")}
        if stage == "train":
            # Where checkpoints lie, how often and what is logged do not change what is trained.
            train = {k: v for k, v in r["train"].items() if k not in ("checkpoint_steps", "report_to")}
            before = [self.inputs("index")]
            before += [self.inputs("sasrec")] if r["train"]["teacher"] == "sasrec" else []
            return {"tasks": r["tasks"], "model": r["model"], "train": train, "before": before}
        if stage == "sasrec":
            return {"sasrec": r["sasrec"], "before": self.inputs("prepare")}
        if stage == "baselines":
            keys = ("on", "ks", "exclude_history", "baselines")
            before = [self.inputs("sasrec" if "sasrec" in r["evaluate"]["baselines"] else "prepare")]
            return {"evaluate": {k: r["evaluate"][k] for k in keys}, "before": before}
        return {
            "evaluate": r["evaluate"],
            "name": r["name"],
            "before": [self.inputs("train"), self.inputs("baselines")],
        }

    @cached_property
    def split(self) -> Split:
        """The split of the prepared log."""
        return leave_one_out(InteractionLog.read(self.run.path / LOG))

    @cached_property
    def items(self) -> ItemCatalog:
        """The prepared catalogue."""
        return ItemCatalog.read(self.run.path / CATALOG)

    @cached_property
    def index(self) -> ItemIndex:
        """The index of the prepared catalogue."""
        return ItemIndex.load(self.run.path / PREPARED_INDEX)

    @property
    def held_out(self) -> HeldOut:
        """The held-out items that the recipe evaluates on."""
        return self.split.test if self.recipe.evaluate.on == "test" else self.split.valid

    @property
    def _needs_sasrec(self) -> bool:
        return self.recipe.train.teacher == "sasrec" or "sasrec" in self.recipe.evaluate.baselines

    def _trained_sasrec(self) -> Any:
        from genrec.models.sasrec import load_sasrec

        return load_sasrec(self.run.path / SASREC, self.items.item_ids) if self._needs_sasrec else None

    def _sasrec(self) -> None:
        if not is_main_process():
            return
        require("torch", "train")
        from genrec.models.sasrec import save_sasrec, train_sasrec

        model, about = train_sasrec(self.split, self.items.item_ids, self.recipe.sasrec)
        save_sasrec(model, self.items.item_ids, self.run.path / SASREC)
        write_json(self.run.path / SASREC / "training.json", about)

    def _prepare(self) -> None:
        if not is_main_process():
            return
        settings = self.recipe.data
        quarantine = self.run.path / "quarantine.jsonl"
        quarantine.unlink(missing_ok=True)
        log, items = load_dataset(
            settings.source, settings.items, settings.columns, settings.on_bad_rows, quarantine
        )
        kept = log.k_core(settings.user_core, settings.item_core)
        items = items.restrict_to_log(kept)
        split = leave_one_out(kept)
        if quarantine.exists():
            say(f"  bad rows were put aside in {quarantine}")
        report = {
            "source": settings.source,
            "read": {"interactions": len(log), "users": log.num_users, "items": log.num_items},
            "kept": {"interactions": len(kept), "users": kept.num_users, "items": kept.num_items},
            "num_quarantined": log.num_quarantined,
            "num_ties": kept.num_ties,
            "tie_rule": "the log's own order",
            "num_evaluated_users": len(split.test),
            "num_short_users": split.num_short,
            "num_untitled_items": items.num_untitled,
            "num_items_with_shared_title": items.num_shared_titles,
        }
        kept.write(self.run.path / LOG)
        items.write(self.run.path / CATALOG)
        report["log_sha256"] = hash_file(self.run.path / LOG)
        write_json(self.run.path / REPORT, report)
        say(
            f"  {len(kept):,} interactions of {kept.num_users:,} users and {kept.num_items:,} items "
            f"({len(log) - len(kept):,} filtered, {log.num_quarantined:,} put aside); "
            f"{len(split.test):,} users are evaluated, {split.num_short:,} are too short for it"
        )

    def _index(self) -> None:
        if not is_main_process():
            return
        index = build_index(self.recipe.index.method, self.items, self.split.train, self.recipe.index)
        index.save(self.run.path / PREPARED_INDEX)
        touched = index.report.get("num_items_touched", 0)
        say(
            f"  {self.recipe.index.method}: {len(index.codes):,} items, {len(index.tokens):,} tokens, codes of "
            f"{index.num_levels} tokens at most; the collision policy touched {touched:,} items"
        )

    def _train(self) -> None:
        r = self.recipe
        data = build_dataset(self.split, self.items, self.index, r.tasks)
        finetune(
            r.model.backbone,
            data,
            self.index,
            self.items,
            self.split,
            self.run.path,
            tasks=r.tasks,
            model=r.model,
            settings=r.train,
            teacher=self._trained_sasrec() if r.train.teacher == "sasrec" else None,
        )
        if is_main_process():
            say(f"  saved {self.run.path / MODEL} ({megabytes(self.run.path / MODEL):.1f} MB)")

    def _baselines(self) -> None:
        if not is_main_process():
            return
        settings = self.recipe.evaluate
        unknown = [name for name in settings.baselines if name not in BASELINES]
        if unknown:
            raise RecipeError(f"Unknown baseline {unknown[0]!r}. Available: {', '.join(BASELINES)}.")
        held_out, ids = self.held_out, self.items.item_ids
        exclude = held_out.histories if settings.exclude_history else None
        for name in settings.baselines:
            trained = self._trained_sasrec() if name == "sasrec" else None
            scores = BASELINES[name](self.split, held_out, ids, trained)
            ranked = top_items(scores, ids, max(settings.ks), exclude)
            metrics = evaluate_rankings(ranked, held_out, ids, settings.ks)
            write_json(self.run.path / BASELINE_RANKINGS / f"{name}.json", {"metrics": metrics})
        (self.run.path / BASELINE_RANKINGS).mkdir(exist_ok=True)

    def _evaluate(self) -> None:
        r, settings = self.recipe, self.recipe.evaluate
        model, renderer, index, items = load_trained(self.run.path, r.model.dtype)
        from genrec.decoding.beam import ConstrainedDecoder

        held_out = self.held_out
        mine = range(rank(), len(held_out), num_processes())
        histories = [held_out.histories[user] for user in mine]
        decoder = ConstrainedDecoder(model, renderer)
        k = min(max(settings.ks), len(items))
        if k < max(settings.ks):
            say(f"  the catalogue has {len(items)} items: lists are that long, not {max(settings.ks)}")
        found = decoder.rank_all(
            histories, k, histories if settings.exclude_history else None, settings.beams, settings.batch_size
        )
        everyone = gather_dict(dict(zip(mine, found, strict=True)))
        if not is_main_process():
            return
        if sorted(everyone) != list(range(len(held_out))):
            raise DataError(f"{len(everyone):,} of {len(held_out):,} users were ranked; every user must be.")
        rankings = [everyone[user] for user in range(len(held_out))]
        names = [[item for item, _ in ranking] for ranking in rankings]
        columns = {
            "user_id": held_out.user_ids,
            "target": held_out.targets,
            "item_ids": names,
            "scores": [[score for _, score in ranking] for ranking in rankings],
        }
        with atomic_path(self.run.path / RANKINGS) as part:
            pa_parquet.write_table(pa.table(columns), part)
        training = read_json(self.run.path / TRAINING_FILE)
        baselines = {
            name: read_json(self.run.path / BASELINE_RANKINGS / f"{name}.json") for name in settings.baselines
        }
        report = {
            "run": r.name,
            "protocol": {
                "split": "leave-one-out",
                "on": settings.on,
                "candidates": "all items",
                "exclude_history": settings.exclude_history,
                "losses_exclude_history": {
                    "train": r.train.exclude_history,
                    "sasrec": r.sasrec.exclude_history,
                },
                "beams": max(settings.beams, k),
                "num_users": len(held_out),
                "num_items": len(items),
            },
            "seed": r.seed,
            "data": read_json(self.run.path / REPORT),
            "index": {"method": index.method, "hash": index.hash, **index.report},
            "training": {key: value for key, value in training.items() if key != "losses"},
            "model_mb": round(megabytes(self.run.path / MODEL), 1),
            "metrics": evaluate_rankings(names, held_out, items.item_ids, settings.ks),
            "baselines": baselines,
            "versions": versions(),
        }
        write_json(self.run.path / METRICS, report)
        write_card(self.run.path, r, report)

    def print_results(self) -> None:
        """Prints the table, three users with titles, and where everything is."""
        if not is_main_process():
            return
        report = read_json(self.run.path / METRICS)
        print(comparison_table(report))
        rankings = pa_parquet.read_table(self.run.path / RANKINGS).slice(0, 3).to_pylist()
        print(examples(rankings, self.held_out.histories[:3], self.items))
        print(f"Run directory: {self.run.path}  (model card: {self.run.path / CARD})")
