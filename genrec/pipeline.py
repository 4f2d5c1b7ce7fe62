"""The main job: prepare, index, train, baselines, evaluate, in one run directory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from genrec.core.errors import DataError, RecipeError, require
from genrec.core.files import atomic_path, hash_file, hash_value, megabytes, read_json, write_json
from genrec.core.processes import (
    divided,
    from_main,
    gather_dict,
    is_main_process,
    num_processes,
    rank,
    wait,
)
from genrec.core.progress import say
from genrec.data_prep import HeldOut, InteractionLog, ItemCatalog, Split, prepare, read_split, read_users
from genrec.evaluation.baselines import (
    BASELINES,
    SEQUENCE_MODELS,
    Scorer,
    TrainingLog,
    check_baselines,
    check_search,
    search,
    sequence_scorer,
)
from genrec.evaluation.gates import gate_lines, gate_report
from genrec.evaluation.metrics import ranking_metrics
from genrec.evaluation.page import write_page
from genrec.evaluation.protocol import SEARCH_METRIC, Judge
from genrec.evaluation.rankings import Rankings, align, read_rankings
from genrec.evaluation.report import comparison_table, example_text, examples, model_label, write_values
from genrec.evaluation.significance import compare_models
from genrec.evaluation.slices import history_slices
from genrec.indexing import ItemIndex, build_index
from genrec.recipe import Recipe, dump_recipe
from genrec.runs import RunDir, versions
from genrec.serving.card import write_model_card
from genrec.tasks import (
    TitlePrompts,
    asks_for_identifiers,
    build_dataset,
    known_before,
    make_asker,
    read_rows,
    title_template,
)
from genrec.training import finetune
from genrec.training.finetune import (
    CHECKPOINTS,
    CURVES,
    DECODING,
    HISTORIES,
    INDEX,
    ITEMS,
    MODEL,
    SERVING_FILE,
    TRAINING_FILE,
    USERS,
    load_trained,
    seal,
)

DATA, BASELINE_RANKINGS = "data", "baselines"
PREPARED = ("interactions.parquet", "items.parquet", "report.json", "manifest.json")
LOG, CATALOG, REPORT, MANIFEST = (f"{DATA}/{name}" for name in PREPARED)
PREPARED_INDEX, SEARCH = "prepared_index", "search"
TASKS = "tasks"
PROFILES = f"{DATA}/users.parquet"  # only where something is known of users
RANKINGS, METRICS, CARD = "rankings.parquet", "metrics.json", "README.md"
VALUES, PAGE, JUDGED = "values.parquet", "report.html", "judged"

# What a stage does, and the files and folders that it writes.
Steps = dict[str, tuple[Callable[[], None], list[str]]]


class Pipeline:
    """The stages of one recipe; each is done once and read from the run directory afterwards."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.run = RunDir(recipe.run_dir)

    def run_until(self, last: str) -> Path:
        """Does every stage up to ``last`` that is not done yet, and returns the run directory."""
        steps = self._steps()
        if last not in steps:
            raise RecipeError(f"Unknown stage {last!r}. Allowed: {', '.join(steps)}.")
        self._check()
        if is_main_process():
            with atomic_path(self.run.path / "recipe.yaml") as part:
                part.write_text(dump_recipe(self.recipe), encoding="utf-8")
        skipped = self._skipped(last)
        wanted = [name for name in steps if name not in skipped]
        for number, name in enumerate(wanted[: wanted.index(last) + 1], start=1):
            work, outputs = steps[name]
            inputs = self.inputs(name)
            if from_main(self.run.is_done(name, inputs)):
                say(f"[{number}/{len(wanted)}] {name}: done already")
                continue
            say(f"[{number}/{len(wanted)}] {name}")
            with self.run.stage(name, inputs, outputs, [PROFILES] if name == "prepare" else []):
                wait()
                work()
                wait()
            if is_main_process():
                say(f"  {name} took {self.run.stages[name]['seconds']:.0f} s")
            wait()
        return self.run.path

    def _check(self) -> None:
        """Raises RecipeError if the recipe asks for what there is not; before anything is done."""
        check_baselines(self.recipe.evaluate.baselines)
        check_search(self.recipe.evaluate.search)

    @property
    def stages(self) -> list[str]:
        """The names of all stages, in their order."""
        return list(self._steps())

    def _steps(self) -> Steps:
        """Returns the stages in their order."""
        return {
            "prepare": (self._prepare, [LOG, CATALOG, REPORT, MANIFEST]),
            **{kind: (partial(self._sequence, kind), [kind]) for kind in SEQUENCE_MODELS},
            "index": (self._index, [PREPARED_INDEX]),
            "train": (
                self._train,
                [MODEL, INDEX, ITEMS, HISTORIES, SERVING_FILE, TRAINING_FILE, CURVES]
                + [USERS] * self.recipe.train.personal,
            ),
            "baselines": (self._baselines, [BASELINE_RANKINGS]),
            "evaluate": (self._evaluate, [DECODING, RANKINGS, VALUES, METRICS, PAGE, CARD]),
        }

    def _skipped(self, last: str) -> set[str]:
        """Returns the stages that this recipe does without on the way to one."""
        if last == "index":
            return set(SEQUENCE_MODELS) - {self.recipe.index.teacher}
        skipped = {kind for kind in SEQUENCE_MODELS if not self._needs(kind)}
        if last == "baselines":  # for judging rankings of others, which need no language model
            skipped |= {"index", "train"}
        return skipped

    def inputs(self, stage: str) -> dict[str, Any]:
        """Returns everything that a stage's outputs depend on: its keys, and the inputs before it."""
        r = self.recipe.model_dump(mode="json")
        if stage == "prepare":
            source = Path(r["data"]["source"])
            files = [source] if source.is_file() else sorted(source.glob("*.*")) if source.is_dir() else []
            files += [Path(r["data"][table]) for table in ("items", "users") if r["data"][table]]
            # On which engine rows are prepared does not change them.
            data = {key: value for key, value in r["data"].items() if key != "engine"}
            # A run of before there were profiles is not done again where none are asked for.
            for key in ("users", "user_columns"):
                if not data[key]:
                    del data[key]
            return {"data": data, "files": {f.name: hash_file(f) for f in files if f.is_file()}}
        if stage == "index":
            teacher = self.recipe.index.teacher
            before = [self.inputs("prepare"), *([self.inputs(teacher)] if teacher else [])]
            return {"index": r["index"], "before": before}
        if stage == "train":
            # Where checkpoints lie, how often and what is logged do not change what is trained.
            train = {k: v for k, v in r["train"].items() if k not in ("checkpoint_steps", "report_to")}
            before = [self.inputs("index")]
            before += [self.inputs(kind) for kind in self.recipe.train.teachers]
            before += [self.inputs(kind) for kind in self._encoder]
            if not self.recipe.train.personal:
                del train["reclora"]
            elif self.recipe.train.reclora.file is not None:
                train["reclora"]["file"] = hash_file(self.recipe.train.reclora.file)
            tasks = {k: v for k, v in r["tasks"].items() if k != "workers"}
            read = [*tasks["files"], tasks["texts"]["writer"].removeprefix("file:")]
            tasks["files"] = [hash_file(file) for file in read if Path(file).is_file()]
            inputs = {"tasks": tasks, "model": r["model"], "train": train, "before": before}
            if train["validate_steps"]:
                inputs["evaluate"] = {key: r["evaluate"][key] for key in ("exclude_history", "candidates")}
                inputs["decoding"] = r["decoding"]
            return inputs
        if stage in SEQUENCE_MODELS:
            searched = r["evaluate"]["search"].get(stage)
            return {stage: r[stage], "search": searched, "before": self.inputs("prepare")}
        if stage == "baselines":
            e = r["evaluate"]
            keys = (
                "on",
                "ks",
                "exclude_history",
                "candidates",
                "candidate_sampling",
                "baselines",
                "search",
                "seed",
            )
            before = [self.inputs(kind) for kind in SEQUENCE_MODELS if kind in e["baselines"]]
            return {"evaluate": {k: e[k] for k in keys}, "before": [*before, self.inputs("prepare")]}
        before = [self.inputs("train"), self.inputs("baselines")]
        before += [self.inputs(kind) for kind in self._injected]
        return {"evaluate": r["evaluate"], "decoding": r["decoding"], "name": r["name"], "before": before}

    @cached_property
    def split(self) -> Split:
        """The split of the prepared log."""
        log = InteractionLog.load(self.run.path / LOG)
        return read_split(log.table, self.recipe.data.split, read_users(self.run.path / DATA))

    @cached_property
    def items(self) -> ItemCatalog:
        """The prepared catalogue."""
        return ItemCatalog.load(self.run.path / CATALOG)

    @cached_property
    def index(self) -> ItemIndex:
        """The index of the prepared catalogue."""
        return ItemIndex.load(self.run.path / PREPARED_INDEX)

    @cached_property
    def judge(self) -> Judge:
        """What measures every model of the run."""
        return Judge(self.split, self.items, self.recipe.evaluate)

    @property
    def held_out(self) -> HeldOut:
        """The held-out items that the recipe evaluates on."""
        return self.judge.held_out

    def _needs(self, kind: str) -> bool:
        r = self.recipe
        others = (*self._injected, *self._encoder, r.index.teacher)
        return kind in (*r.train.teachers, *r.evaluate.baselines, *others)

    @property
    def _probabilities(self) -> bool:
        """Whether scores of the model's lists are logarithms of probabilities: others are distances, or sums of ranks."""
        return self.recipe.decoding.method == "constrained"

    @property
    def _injected(self) -> list[str]:
        """Names the sequence recommender whose scores re-weight distances, if there is one."""
        d = self.recipe.decoding
        used = d.method != "constrained" and d.grounding.inject == "collaborative"
        return [d.grounding.collaborative] if used else []

    @property
    def _encoder(self) -> list[str]:
        """Names the sequence recommender whose states are the users' vectors, if there is one."""
        train = self.recipe.train
        return [train.reclora.teacher] if train.personal and train.reclora.teacher else []

    def _user_vectors(self) -> Any:
        """Returns what personal adapters are made from, None where adapters are the same for everyone."""
        train = self.recipe.train
        if not train.personal:
            return None
        from genrec.models.users import UserVectors

        r = train.reclora
        if r.file is not None:
            return UserVectors.of_file(r.file, self.split)
        levels = r.code_levels if r.vectors == "codes" else 0
        return UserVectors.of_model(
            self._trained(self._encoder[0]),
            self.items.item_ids,
            self.split,
            levels,
            r.codebook_size,
            train.seed,
        )

    def _trained(self, kind: str) -> Any:
        from genrec.models.sequence import load_sequence_model

        return load_sequence_model(self.run.path / kind, self.items.item_ids)

    def _sequence(self, kind: str) -> None:
        """Trains a sequence recommender, every combination of its search, and keeps the best on validation."""
        if not is_main_process():
            return
        require("torch", "train")
        from genrec.models.sequence import save_sequence_model, train_sequence

        settings = getattr(self.recipe, kind)
        grid = self.recipe.evaluate.search.get(kind, {})

        def folder(values: dict[str, Any]) -> Path:
            about = [self.inputs("prepare"), settings.model_dump() | values]
            return self.run.path / SEARCH / kind / hash_value(about)[:16]

        def attempt(values: dict[str, Any]) -> tuple[float, Path]:
            try:
                tried = type(settings)(**(settings.model_dump() | values))
            except ValidationError as error:
                raise RecipeError(
                    f"evaluate.search.{kind}: {error.errors()[0]['msg']}, got {values}."
                ) from error
            place = folder(values)
            if not (place / "training.json").exists():
                state = place.with_suffix(".state")
                model, about = train_sequence(self.split, self.items.item_ids, tried, state)
                save_sequence_model(model, self.items.item_ids, place)
                write_json(place / "training.json", about | {"settings": values})
                state.unlink(missing_ok=True)
            return read_json(place / "training.json")["valid_ndcg@10"], place

        best, trials, place = search(kind, grid, attempt)
        with atomic_path(self.run.path / kind) as part:
            shutil.copytree(place, part)
        about = read_json(self.run.path / kind / "training.json")
        chosen = type(settings)(**(settings.model_dump() | best)).model_dump()
        tuning = {"settings": chosen, "trials": trials, "on": "valid", "metric": SEARCH_METRIC}
        write_json(self.run.path / kind / "training.json", about | {"tuning": tuning})
        shutil.rmtree(self.run.path / SEARCH / kind)
        if not any((self.run.path / SEARCH).iterdir()):  # another search may have been cut
            (self.run.path / SEARCH).rmdir()

    def _prepare(self) -> None:
        if not is_main_process():
            return
        report = prepare(self.recipe.data, self.run.path / DATA)
        read, kept = report["read"], report["kept"]
        if aside := sum(report.get(f"num_quarantined{of}", 0) for of in ("", "_items", "_users")):
            say(f"  {aside:,} bad rows were put aside in {self.run.path / DATA / 'quarantine.jsonl'}")
        say(
            f"  {kept['interactions']:,} interactions of {kept['users']:,} users and {kept['items']:,} items "
            f"({read['interactions'] - kept['interactions']:,} filtered, {report['num_quarantined']:,} put aside); "
            f"{report['split']}: {report['num_test_rows']:,} test rows of {report['num_evaluated_users']:,} users, "
            f"{report['num_short_users']:,} without anything before them"
        )

    def _index(self) -> None:
        if not is_main_process():
            return
        settings = self.recipe.index
        vectors = None
        if settings.teacher:
            vectors = self._trained(settings.teacher).item_vectors()
        state = self.run.path / "index.state"
        index = build_index(
            settings.method, self.items, self.split.train, settings.plain, collaborative=vectors, state=state
        )
        index.save(self.run.path / PREPARED_INDEX)
        state.unlink(missing_ok=True)
        touched = index.report.get("num_items_touched", 0)
        say(
            f"  {self.recipe.index.method}: {len(index.codes):,} items, {len(index.tokens):,} tokens, codes of "
            f"{index.num_levels} tokens at most; the collision policy touched {touched:,} items"
        )

    def report_index(self, out: str | Path | None = None) -> Path | None:
        """Makes the index if need be, prints its table per level, and returns the page that says what it is like.

        Args:
            out: Folder of ``index_report.html`` and ``index_report.json``; None is the run directory.

        Returns:
            None in processes other than the main one, which does it alone.
        """
        from genrec.indexing.page import save_report
        from genrec.indexing.report import index_report, report_table

        require("matplotlib", "train")
        self.run_until("index")
        if not is_main_process():
            return None
        name = f"{self.recipe.name}: {self.index.method}"
        report = index_report(
            self.index, self.items, self.split.train, name=name, seed=self.recipe.index.seed
        )
        page = save_report(out or self.run.path, report)
        print(report_table(report))
        print(f"Report: {page}")
        return page

    def _train(self) -> None:
        r = self.recipe
        require("torch", "train")
        from genrec.models.backbone import is_encoder_decoder, load_backbone, load_tokenizer

        seq2seq = is_encoder_decoder(r.model.backbone, r.model.new)
        self._check_tasks(seq2seq)  # before anything long
        folder = self.run.path / TASKS
        if is_main_process():
            from genrec.models.vocabulary import add_identifier_tokens

            tokenizer = None
            if r.tasks.max_tokens is not None:
                tokenizer = load_tokenizer(r.model.backbone)
                add_identifier_tokens(tokenizer, self.index.tokens)
            build_dataset(
                self.split,
                self.items,
                self.index,
                r.tasks,
                tokenizer,
                folder,
                load=load_backbone,
                text_to_text=seq2seq,
            )
        wait()
        data = read_rows(folder)
        users = self._user_vectors()
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
            teachers=[self._trained(kind) for kind in r.train.teachers],
            data_sha256=read_json(self.run.path / REPORT).get("split_sha256"),
            validate=self._validator(users) if r.train.validate_steps else None,
            row_vectors=self._row_vectors(data["train"], users),
        )
        if is_main_process():
            say(f"  saved {self.run.path / MODEL} ({megabytes(self.run.path / MODEL):.1f} MB)")

    def _check_tasks(self, seq2seq: bool) -> None:
        """Raises RecipeError if the mixture trains nothing that can be ranked."""
        r = self.recipe
        make_asker(r.tasks, r.decoding.method != "grounded", seq2seq)
        if r.decoding.method != "constrained" and title_template(r.tasks) is None:
            raise RecipeError(
                f"decoding.method={r.decoding.method} needs a model that writes titles, and no family of tasks.mixture asks "
                "for the title of the next item from titles alone. Add one that does, such as bigrec."
            )

    def _row_vectors(self, rows: Any, users: Any) -> np.ndarray | None:
        """Returns the vectors of training rows' users, and keeps what they come from; None where there are none."""
        if users is None:
            return None
        known = known_before(rows["task"], rows["key"], self.split, self.recipe.tasks)
        user_ids, histories = zip(*known, strict=True)
        if is_main_process():
            users.save(self.run.path / USERS)
        return users.of(histories, user_ids)

    def _validator(self, users: Any) -> Callable[[Any, Any], dict[str, float]]:
        """Returns what ranks a sample of validation rows with a model while it is trained."""
        judge = Judge(self.split, self.items, self.recipe.evaluate, on="valid")
        held_out, settings = judge.held_out, self.recipe.train
        drawn = np.random.default_rng(settings.seed).permutation(len(held_out))[: settings.validate_users]
        sample = sorted(drawn.tolist())
        left_out = judge.left_out_ids
        k = min(10, len(self.items))
        vectors = _vectors_of(users, held_out, sample)

        def validate(model: Any, renderer: Any) -> dict[str, float]:
            # A tuned model's vectors of titles are others at every step, and are not kept.
            folder = self.run.path / CHECKPOINTS / "titles"
            ranker = self._ranker(model, renderer, folder)
            found = divided(
                len(sample),
                lambda mine: ranker.rank_all(
                    [held_out.histories[sample[place]] for place in mine],
                    k,
                    [left_out[sample[place]] for place in mine] if left_out is not None else None,
                    batch_size=self.recipe.evaluate.batch_size,
                    label="",
                    users=None if vectors is None else vectors[list(mine)],
                ),
            )
            if is_main_process():
                shutil.rmtree(folder, ignore_errors=True)
            lists = [[item for item, _ in ranking] for ranking in found]
            values = ranking_metrics(lists, [held_out.targets[row] for row in sample], (10,))
            return {name: float(values[name]) for name in ("HR@10", "NDCG@10")}

        return validate

    def _ranker(self, model: Any, renderer: Any, folder: Path | None = None) -> Any:
        """Returns what ranks with a model as the recipe says; a weight of an injection that is not given yet is 0.

        Args:
            model: Tuned.
            renderer: That of its training.
            folder: Where vectors of titles lie, if not in the cache.
        """
        from genrec.decoding.beam import ConstrainedDecoder
        from genrec.decoding.fusion import Ranker
        from genrec.decoding.grounding import Grounder, Injection

        d = self.recipe.decoding
        constrained = ConstrainedDecoder(model, renderer) if d.method != "grounded" else None
        grounder = None
        if d.method != "constrained":
            ids, injection = self.items.item_ids, None
            if d.grounding.inject == "popularity":
                injection = Injection.of_counts(ids, self.judge.counts)
            elif self._injected:
                injection = Injection(ids, sequence_scorer(self._trained(self._injected[0])))
            template = title_template(self.recipe.tasks)
            assert template is not None, "_train refuses a mixture without one"
            prompts = TitlePrompts(renderer, template, self.items)
            grounder = Grounder(model, prompts, self.items, d.grounding, injection, folder=folder)
        return Ranker(d, self.items, constrained, grounder)

    def _choose_gamma(self, grounder: Any, users: Any) -> dict[str, Any]:
        """Returns the weight of an injection with the best NDCG@10 on validation, and the value of each."""
        from genrec.decoding.grounding import GAMMAS

        settings = self.recipe.decoding.grounding
        judge = Judge(self.split, self.items, self.recipe.evaluate, on="valid")
        held_out, left_out, gammas = judge.held_out, judge.left_out_ids, GAMMAS[settings.inject]
        if not len(held_out):
            raise DataError(
                "There is no validation row to choose decoding.grounding.gamma on. Set it to a number."
            )
        drawn = np.random.default_rng(self.recipe.evaluate.seed).permutation(len(held_out))
        mine = sorted(drawn[: settings.gamma_rows].tolist())[rank() :: num_processes()]
        histories = [held_out.histories[row] for row in mine]
        vectors = _vectors_of(users, held_out, mine)
        written = grounder.write(
            histories, self.recipe.evaluate.batch_size, "writing for validation", vectors
        )
        exclude = [left_out[row] for row in mine] if left_out is not None else None
        targets, values = [held_out.targets[row] for row in mine], np.zeros(len(gammas))
        if mine:
            for number, lists in enumerate(grounder.match_each(histories, written, 10, exclude, gammas)):
                ids = [[item for item, _ in ranking] for ranking in lists]
                values[number] = len(mine) * float(ranking_metrics(ids, targets, (10,))[SEARCH_METRIC])
        parts = gather_dict({rank(): (len(mine), values)})
        num = sum(rows for rows, _ in parts.values())
        means = sum(value for _, value in parts.values()) / num
        best = int(np.argmax(means))
        say(
            f"  gamma {gammas[best]:g}: {SEARCH_METRIC} {means[best]:.4f} on {num:,} validation rows, {means[0]:.4f} without"
        )
        trials = [{"gamma": g, "value": float(v)} for g, v in zip(gammas, means, strict=True)]
        return {
            "gamma": gammas[best],
            "on": "valid",
            "metric": SEARCH_METRIC,
            "num_rows": num,
            "trials": trials,
        }

    def _missed_by_beams(self, decoder: Any, users: Any) -> dict[str, float]:
        """Returns how often beam search misses one of the ten best items, on some rows."""
        settings, held_out, left_out = self.recipe.evaluate, self.held_out, self.judge.left_out_ids
        drawn = np.random.default_rng(settings.seed).permutation(len(held_out))[: settings.exact_rows]
        rows = sorted(drawn.tolist())
        found = decoder.missed_by_beams(
            [held_out.histories[row] for row in rows],
            min(10, len(self.items)),
            [left_out[row] for row in rows] if left_out is not None else None,
            users=_vectors_of(users, held_out, rows),
        )
        for width in (20, 50, 100):
            say(
                f"  {width} beams miss {found[f'missed@{width}']:.1%} of the best items, one or more of "
                f"{found[f'users_missing@{width}']:.1%} of {len(rows):,} rows"
            )
        return found

    def _gates(self, model: Any, vectors: np.ndarray) -> dict[str, Any] | None:
        """Returns what the gates do with the evaluated users, None of a single expert."""
        import torch

        weights = model.peft.gate_weights(torch.from_numpy(vectors))
        if not weights:
            return None
        held_out = self.held_out
        counts = dict(zip(self.items.item_ids, self.judge.counts, strict=True))
        taste = [
            float(np.mean([counts[item] for item in each])) if each else 0.0 for each in held_out.histories
        ]
        half = (np.array(taste) > np.median(taste)).astype(np.int64)
        groups = history_slices(np.array([len(each) for each in held_out.histories]), quantiles=4)
        groups |= {"taste": (["less popular items", "more popular items"], half)}
        report = gate_report({name: each.cpu().numpy() for name, each in weights.items()}, groups)
        for line in gate_lines(report):
            say(f"  gates: {line}")
        return report

    def _write_decoding(self, tuning: dict[str, Any] | None, gamma: float) -> None:
        """Writes what serving needs to rank as evaluation did."""
        r = self.recipe
        template = title_template(r.tasks)
        with atomic_path(self.run.path / DECODING) as part:
            part.mkdir()
            if r.decoding.method != "constrained" and r.decoding.grounding.inject == "popularity":
                np.save(part / "popularity.npy", self.judge.counts)
            about = {
                "task": r.evaluate.task,
                "settings": r.decoding.model_dump(mode="json"),
                "gamma": gamma,
                "tuning": tuning,
                "writes_identifiers": asks_for_identifiers(r.tasks),
                "template": template
                and {"id": template.id, "prompt": template.prompt, "completion": template.completion},
            }
            write_json(part / "decoding.json", about)

    def _baselines(self) -> None:
        if not is_main_process():
            return
        settings = self.recipe.evaluate
        log = TrainingLog.of(self.split, self.items.item_ids)
        valid = Judge(self.split, self.items, settings, on="valid")
        folder = self.run.path / BASELINE_RANKINGS
        folder.mkdir(parents=True, exist_ok=True)
        for name in settings.baselines:
            began = time.perf_counter()
            baseline = BASELINES[name]
            if baseline.fit is None:
                scorer = sequence_scorer(self._trained(name))
                about = read_json(self.run.path / name / "training.json")
                tuning, seconds, curve = about["tuning"], about["train_s"], about["curve"]
            else:
                fit = baseline.fit

                def attempt(values: dict[str, Any], fit: Any = fit) -> tuple[float, Scorer]:
                    tried = fit(log, settings.seed, **values)
                    return valid.search_value(tried), tried

                grid = settings.search.get(name, baseline.grid)
                chosen, trials, scorer = search(name, grid, attempt)
                tuning = {"settings": chosen, "trials": trials, "on": "valid", "metric": SEARCH_METRIC}
                seconds, curve = 0.0, []
            ranked = Rankings(self.held_out.row_ids, self.judge.rank(scorer))
            ranked.write(folder / f"{name}.parquet")
            seconds = round(seconds + time.perf_counter() - began, 1)
            write_json(folder / f"{name}.json", {"tuning": tuning, "seconds": seconds, "curve": curve})
            say(f"  {baseline.title}: {seconds:.0f} s")

    def _evaluate(self) -> None:
        r, settings = self.recipe, self.recipe.evaluate
        if is_main_process():
            seal(self.run.path)  # what an earlier evaluation wrote is gone
        model, renderer, index, items = load_trained(self.run.path, r.model.dtype)
        model.check_data(read_json(self.run.path / REPORT).get("split_sha256", ""))
        judge, held_out, users = self.judge, self.held_out, None
        if model.user_size is not None:
            from genrec.models.users import UserVectors

            users = UserVectors.load(self.run.path / USERS)
        vectors = _vectors_of(users, held_out, range(len(held_out)))
        ranker = self._ranker(model, renderer)
        grounder, tuning = ranker.grounder, None
        if (
            grounder is not None
            and r.decoding.grounding.inject != "none"
            and r.decoding.grounding.gamma is None
        ):
            tuning = self._choose_gamma(grounder, users)
            grounder.gamma = tuning["gamma"]
        k = min(judge.k, len(items))
        if k < judge.k:
            say(f"  the catalogue has {len(items)} items: lists are that long, not {judge.k}")
        left_out = judge.left_out_ids
        began = time.perf_counter()
        written = None
        if grounder is not None:
            written = divided(
                len(held_out),
                lambda mine: grounder.write(
                    [held_out.histories[row] for row in mine],
                    settings.batch_size,
                    users=None if vectors is None else vectors[list(mine)],
                ),
            )
        lists = divided(
            len(held_out),
            lambda mine: ranker.rank_all(
                [held_out.histories[row] for row in mine],
                k,
                [left_out[row] for row in mine] if left_out is not None else None,
                settings.beams,
                settings.batch_size,
                written=None if written is None else [written[row] for row in mine],
                users=None if vectors is None else vectors[list(mine)],
            ),
        )
        seconds = time.perf_counter() - began
        if not is_main_process():
            return
        rankings = Rankings(
            held_out.row_ids,
            [[item for item, _ in ranking] for ranking in lists],
            [[score for _, score in ranking] for ranking in lists],
        )
        rankings.write(self.run.path / RANKINGS)
        training = read_json(self.run.path / TRAINING_FILE)
        about = {
            "index": {"method": index.method, "hash": index.hash, **index.report},
            "training": {key: value for key, value in training.items() if key != "losses"},
            "model_mb": round(megabytes(self.run.path / MODEL), 1),
            "losses_exclude_history": r.train.exclude_history,
            "decoding": r.decoding.method,
            "rank_s": round(seconds, 1),
        }
        label = model_label(training, index.method)
        if r.decoding.method != "grounded":
            about["beams"] = max(settings.beams, k)
        if settings.exact_rows and ranker.constrained is not None:
            about["beam_search"] = self._missed_by_beams(ranker.constrained, users)
        if vectors is not None:
            about["gates"] = self._gates(model, vectors)
        if grounder is not None:
            label += f", {r.decoding.method}"
            about["grounding"] = grounder.figures(held_out.histories, written, lists)
        self._write_decoding(tuning, grounder.gamma if grounder is not None else 0.0)
        seal(self.run.path, self._injected)
        report = self._report(r.name, label, rankings.item_ids, self.run.path, about)
        self._write_page(self.run.path, report, rankings, training["losses"])
        write_model_card(self.run.path, r, report)

    def baseline_entries(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Returns all that is measured of each baseline's rankings, and every row's values, after ``baselines``."""
        entries, values = {}, {}
        for name in self.recipe.evaluate.baselines:
            stored = self.run.path / BASELINE_RANKINGS / name
            theirs, _ = align(read_rankings(f"{stored}.parquet"), self.held_out.row_ids, None)
            kept = read_json(f"{stored}.json")
            entry, values[name] = self.judge.measure(BASELINES[name].title, theirs)
            entries[name] = entry | kept
        return entries, values

    def _report(
        self, run: str, label: str, lists: list[list[str]], folder: Path, about: dict[str, Any]
    ) -> dict[str, Any]:
        """Measures lists beside the baselines' and writes ``metrics.json`` and every row's values."""
        judge, settings = self.judge, self.recipe.evaluate
        entries, baseline_values = self.baseline_entries()
        entry, own_values = judge.measure(label, lists)
        values = {"model": own_values, **baseline_values}
        last = [name for name in judge.names if name.endswith(f"@{judge.k}")]
        pairs = [("model", name) for name in settings.baselines]
        data = read_json(self.run.path / REPORT)
        report = {
            "run": run,
            "protocol": judge.protocol() | {"data_hash": data["log_sha256"]},
            "seed": self.recipe.seed,
            "data": data,
            **about,
            "model": entry,
            "baselines": entries,
            "tests": compare_models(values, judge.users, pairs, last, settings.test_resamples, settings.seed),
            "versions": versions(),
        }
        write_values(folder / VALUES, self.held_out, values)
        write_json(folder / METRICS, report)
        return report

    def _write_page(
        self, folder: Path, report: dict[str, Any], rankings: Rankings, losses: list[tuple[int, float]]
    ) -> None:
        shown = examples(rankings, self.held_out, self.items, probabilities=self._probabilities)
        write_page(folder / PAGE, report, curve=losses, examples=shown)

    def judge_file(
        self, path: str | Path, name: str, on_missing: Any = "error", on_unknown: Any = "error"
    ) -> Path:
        """Measures the rankings in a file beside the recipe's baselines, and returns the folder of the report.

        Args:
            path: A file that ``read_rankings`` reads.
            name: Name of the model in tables; the folder is ``judged/NAME`` below the run.
            on_missing: As ``align``.
            on_unknown: As ``align``.

        Raises:
            DataError: As ``read_rankings`` and ``align``.
            RecipeError: If the name cannot be that of a folder.
        """
        if name in ("", "..") or Path(name).name != name:
            raise RecipeError(
                f"The name of judged rankings must be one that a folder can have, got {name!r}."
            )
        given = read_rankings(path)  # before anything long: a broken file should be known at once
        self.run_until("baselines")
        folder = self.run.path / JUDGED / name
        if not is_main_process():
            return folder
        lists, counts = align(given, self.held_out.row_ids, set(self.items.item_ids), on_missing, on_unknown)
        say("  " + ", ".join(f"{count:,} {key[4:].replace('_', ' ')}" for key, count in counts.items()))
        rankings = Rankings(self.held_out.row_ids, lists)
        about = {"judged": {"file": Path(path).name, "sha256": hash_file(path), **counts}}
        report = self._report(name, name, lists, folder, about)
        rankings.write(folder / RANKINGS)
        self._write_page(folder, report, rankings, [])
        print(comparison_table(report))
        print(f"Report: {folder / PAGE}")
        return folder

    def print_results(self) -> None:
        """Prints the table, three users with titles, and where everything is."""
        if not is_main_process():
            return
        report = read_json(self.run.path / METRICS)
        print(comparison_table(report))
        rankings = read_rankings(self.run.path / RANKINGS)
        for entry in examples(rankings, self.held_out, self.items, 3, probabilities=self._probabilities):
            print(example_text(entry))
        print(
            f"Run directory: {self.run.path}  (report: {self.run.path / PAGE}, model card: {self.run.path / CARD})"
        )


def _vectors_of(users: Any, held_out: HeldOut, rows: Sequence[int]) -> np.ndarray | None:
    """Returns the vectors of the users of some rows, None where adapters are the same for everyone."""
    if users is None:
        return None
    histories, names = [held_out.histories[row] for row in rows], [held_out.user_ids[row] for row in rows]
    return users.of(histories, names)


def pipeline_of(recipe: Recipe) -> Pipeline:
    """Returns the stages of a recipe, which ranks items or predicts clicks (``evaluate.task``)."""
    if recipe.evaluate.task == "ranking":
        return Pipeline(recipe)
    from genrec.click_pipeline import ClickPipeline

    return ClickPipeline(recipe)
