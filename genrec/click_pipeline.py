"""Click prediction in two stages (RecLoRA's Few2Many): a click model on every training row, adapters on a fixed few."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
from pydantic import ValidationError

from genrec.core.errors import DataError, RecipeError, require
from genrec.core.files import atomic_path, hash_value, megabytes, read_json, write_json
from genrec.core.processes import divided, is_main_process
from genrec.core.progress import say
from genrec.evaluation.baselines import search
from genrec.evaluation.beyond import reliability
from genrec.evaluation.click import PREDICTIONS_FILE, click_table, compare_clicks, measure_clicks
from genrec.evaluation.click_baselines import CLICK_BASELINES, ClickTask, check_click_baselines
from genrec.evaluation.gates import gate_lines, gate_report
from genrec.evaluation.page import write_click_page
from genrec.evaluation.report import model_label
from genrec.evaluation.slices import history_slices
from genrec.models.settings import ClickSettings
from genrec.pipeline import (
    BASELINE_RANKINGS,
    CARD,
    DECODING,
    METRICS,
    PAGE,
    REPORT,
    SEARCH,
    Pipeline,
    Steps,
)
from genrec.runs import versions
from genrec.serving.card import write_click_card
from genrec.tasks import Family, TaskRows, click_family
from genrec.tasks.build import fits
from genrec.tasks.retrieve import Retriever
from genrec.tasks.samplers import SAMPLERS, Sample
from genrec.tasks.source import Part, Source
from genrec.tasks.views import ItemBook
from genrec.training.finetune import (
    CURVES,
    HISTORIES,
    INDEX,
    ITEMS,
    MODEL,
    SERVING_FILE,
    TRAINING_FILE,
    load_trained,
)

CLICK = "click"
# By which settings and epochs are chosen.
CLICK_METRIC = "AUC"


class Question(NamedTuple):
    """A prompt that is answered yes or no: its tokens, and the first token in which either answer is another."""

    prompt: list[int]
    yes: int
    no: int


class ClickPipeline(Pipeline):
    """The stages of a recipe with ``evaluate.task=click``; each is done once and read from the run directory afterwards.

    The click model, ``click``, learns from every training row; the language model's adapters from those that
    ``tasks.mixture`` draws, with the click model frozen where they are personal.
    """

    def _check(self) -> None:
        settings = self.recipe.evaluate
        grids = {name: grid for name, grid in settings.search.items() if name != CLICK}
        check_click_baselines(settings.baselines, grids)
        self._family  # noqa: B018  which refuses a mixture without one
        for key, values in settings.search.get(CLICK, {}).items():
            if key not in ClickSettings.model_fields or not values:
                raise RecipeError(
                    f"evaluate.search.click.{key} must be a setting of click with values to try. Settings: "
                    f"{', '.join(ClickSettings.model_fields)}."
                )

    def _steps(self) -> Steps:
        before = super()._steps()
        trained = [MODEL, INDEX, ITEMS, HISTORIES, SERVING_FILE, TRAINING_FILE, CURVES]
        teachers = {kind: before[kind] for kind in before if kind in ("sasrec", "gru4rec")}
        return {
            "prepare": before["prepare"],
            **teachers,
            CLICK: (self._click, [CLICK]),
            "index": before["index"],
            "train": (self._train, trained),
            "baselines": (self._baselines, [BASELINE_RANKINGS]),
            "evaluate": (self._evaluate, [DECODING, PREDICTIONS_FILE, METRICS, PAGE, CARD]),
        }

    def _skipped(self, last: str) -> set[str]:
        teachers = {self.recipe.index.teacher} | ({*self.recipe.train.teachers} if last != "index" else set())
        return ({"sasrec", "gru4rec"} - teachers) | ({CLICK} if last == "index" else set())

    def inputs(self, stage: str) -> dict[str, Any]:
        """Returns everything that a stage's outputs depend on: its keys, and the inputs before it."""
        e = self.recipe.evaluate.model_dump(mode="json")
        if stage == CLICK:
            return {"click": self._click_settings, "search": e["search"].get(CLICK), **self._asked}
        if stage == "train" and self.recipe.train.personal:
            return {**super().inputs("train"), CLICK: self.inputs(CLICK)}
        if stage == "baselines":
            keys = ("on", "max_rows", "baselines", "seed")
            grids = {name: grid for name, grid in e["search"].items() if name != CLICK}
            return {
                "evaluate": {key: e[key] for key in keys} | {"search": grids},
                "click": self._click_settings,
                **self._asked,
            }
        if stage == "evaluate":
            before = [self.inputs(name) for name in ("train", "baselines", CLICK)]
            return {"evaluate": e, "name": self.recipe.name, "before": before}
        return super().inputs(stage)

    @property
    def _click_settings(self) -> dict[str, Any]:
        return self.recipe.click.model_dump(mode="json")

    @property
    def _asked(self) -> dict[str, Any]:
        """What samples of clicks depend on beside their rows."""
        tasks = self.recipe.tasks
        about: dict[str, Any] = {
            "like_from": tasks.like_from,
            "seed": tasks.seed,
            "family": self._family.name,
        }
        if self.recipe.click.kind == "sim":
            about["retrieve"] = tasks.retrieve.model_dump(mode="json", exclude={"how", "order"})
        return {"asked": about, "before": self.inputs("prepare")}

    @cached_property
    def _family(self) -> Family:
        family = click_family(self.recipe.tasks)
        if family is None:
            raise RecipeError(
                "evaluate.task=click needs a family of tasks.mixture that answers yes or no to an item with its history, such as "
                "click; its sampler is click."
            )
        return family

    @cached_property
    def _book(self) -> ItemBook:
        return ItemBook(None, self.items)

    def _source(self, part: Part) -> Source:
        return Source(self.split, self._book, self.recipe.tasks, part)

    def _samples(self, part: Part) -> Any:
        """Returns all samples of a part."""
        from genrec.models.click import ClickSamples

        return ClickSamples.of(self._source(part), family=self._family.name)

    @cached_property
    def measured(self) -> Any:
        """The samples that every model is measured on: those that prompts may ask, at most ``evaluate.max_rows`` drawn by the seed."""
        from genrec.models.click import ClickSamples

        settings = self.recipe.evaluate
        source = self._source(settings.on)
        places = SAMPLERS["click"].places
        every = np.array([p for user in range(len(source.user_ids)) for p in places(source, user)], np.int64)
        drawn = np.random.default_rng(settings.seed).permutation(len(every))[: settings.max_rows]
        samples = ClickSamples.of(source, every[np.sort(drawn)], self._family.name)
        if not len(samples):
            raise DataError(
                f"No {settings.on} row has anything before it, so that there is nothing to measure."
            )
        return samples

    def _click_model(self) -> Any:
        from genrec.models.click import load_click_model

        return load_click_model(self.run.path / CLICK, self.items.item_ids, self._histories)

    @cached_property
    def _histories(self) -> Any:
        """What the click model reads: None for the latest behaviours."""
        if self.recipe.click.kind == "din":
            return None
        from genrec.models.click import retrieved

        return retrieved(Retriever.of_catalog(self.items, self.recipe.tasks.retrieve))

    # ------------------------------------------------------------ stages

    def _click(self) -> None:
        """Trains the click model, every combination of its search, and keeps the best on validation."""
        if not is_main_process():
            return
        require("torch", "train")
        from genrec.models.click import save_click_model, train_click

        settings = self.recipe.click
        train, valid = self._samples("train"), self._samples("valid")
        say(
            f"  {len(train):,} training samples of {len(set(train.user_ids)):,} users, {train.label.mean():.1%} yes"
        )
        grid = self.recipe.evaluate.search.get(CLICK, {})

        def attempt(values: dict[str, Any]) -> tuple[float, tuple[Path, ClickSettings]]:
            try:
                tried = ClickSettings(**(settings.model_dump() | values))
            except ValidationError as error:
                raise RecipeError(
                    f"evaluate.search.click: {error.errors()[0]['msg']}, got {values}."
                ) from error
            place = self.run.path / SEARCH / CLICK / hash_value([self._asked, tried.model_dump()])[:16]
            if not (place / "training.json").exists():
                state = place.with_suffix(".state")
                model, about = train_click(train, valid, tried, self._histories, state)
                save_click_model(model, place)
                write_json(place / "training.json", about)
                state.unlink(missing_ok=True)
            return read_json(place / "training.json")["valid_auc"], (place, tried)

        _, trials, (place, chosen) = search(CLICK, grid, attempt)
        with atomic_path(self.run.path / CLICK) as part:
            shutil.copytree(place, part)
        tuning = {"settings": chosen.model_dump(), "trials": trials, "on": "valid", "metric": CLICK_METRIC}
        about = read_json(self.run.path / CLICK / "training.json")
        write_json(self.run.path / CLICK / "training.json", about | {"tuning": tuning})
        shutil.rmtree(self.run.path / SEARCH / CLICK)
        if not any((self.run.path / SEARCH).iterdir()):  # another search may have been cut
            (self.run.path / SEARCH).rmdir()

    def _check_tasks(self, seq2seq: bool) -> None:  # noqa: ARG002
        """Raises RecipeError where personal adapters would learn what no click model has a vector for."""
        tasks, families = self.recipe.tasks, {self._family.name}
        if self.recipe.train.personal and (others := set(tasks.mixture) - families):
            raise RecipeError(
                f"train.reclora.vectors=click has vectors for rows of the family {self._family.name!r} alone; tasks.mixture has "
                f"{', '.join(sorted(others))} too. Take them out."
            )

    def _user_vectors(self) -> Any:
        """Returns None: adapters are made from the click model's vectors, which are of a user and an item."""
        return None

    def _row_vectors(self, rows: Any, users: Any) -> np.ndarray | None:  # noqa: ARG002
        """Returns the click model's vectors of training rows, None where adapters are the same for everyone."""
        if not self.recipe.train.personal:
            return None
        from genrec.models.click import ClickSamples

        source, keys = self._source("train"), rows["key"]
        if len(set(keys)) < len(keys) and not source.rated.all():
            raise RecipeError(
                "tasks.mixture draws a sample more than once, and without ratings each time another item is asked for, of which "
                "the row does not tell. Give the family a count of at most its samples, or a weight of at most 1."
            )
        first = {user: int(start) for user, start in zip(source.user_ids, source.start, strict=False)}
        pairs = (key.rpartition("/") for key in keys)
        places = np.array([first[user] + int(place) for user, _, place in pairs], np.int64)
        samples = ClickSamples.of(source, places, self._family.name)
        return self._click_model().vectors(samples)

    def _baselines(self) -> None:
        if not is_main_process():
            return
        from genrec.models.click import ClickFields

        settings, measured = self.recipe.evaluate, self.measured
        train, valid = self._samples("train"), self._samples("valid")
        task = ClickTask(train, valid, ClickFields.learn(train.source), self.recipe.click)
        folder = self.run.path / BASELINE_RANKINGS
        folder.mkdir(parents=True, exist_ok=True)
        for name in settings.baselines:
            began, baseline = time.perf_counter(), CLICK_BASELINES[name]

            def attempt(values: dict[str, Any], baseline: Any = baseline) -> tuple[float, Any]:
                predict = baseline.fit(task, settings.seed, **values)
                return measure_clicks(valid.label, predict(valid))[CLICK_METRIC], predict

            grid = settings.search.get(name, baseline.grid)
            chosen, trials, predict = search(name, grid, attempt)
            tuning = {"settings": chosen, "trials": trials, "on": "valid", "metric": CLICK_METRIC}
            _write_predictions(folder / f"{name}.parquet", measured, predict(measured))
            seconds = round(time.perf_counter() - began, 1)
            write_json(folder / f"{name}.json", {"tuning": tuning, "seconds": seconds})
            say(f"  {baseline.title}: {seconds:.0f} s")

    def _questions(
        self, renderer: Any, tokenizer: Any, seq2seq: bool
    ) -> tuple[list[int], list[Question], Counter[str]]:
        """Returns which of the measured samples a prompt can ask, those prompts, and counts of the rows written.

        Each is worded as training draws wordings, by seed and key.

        Raises:
            RecipeError: If no token tells both answers apart (an encoder-decoder: if both begin with the same one).
        """
        tasks, family = self.recipe.tasks, self._family
        alone = tasks.model_copy(update={"mixture": {family.name: 1.0}})
        rows = TaskRows(
            self.split, self.items, self.index, alone, tokenizer, evaluate=True, text_to_text=seq2seq
        )
        measured, count = self.measured, Counter[str]()
        source = Source(self.split, rows.source.book, tasks, self.recipe.evaluate.on)
        source.retriever = rows.retriever
        answer = next(slot for slot, kind in family.slots.items() if kind == "answer")
        asked, questions = [], []
        for number, (user, place) in enumerate(
            zip(measured.user.tolist(), measured.place.tolist(), strict=True)
        ):
            sample = Sample(SAMPLERS["click"], source, family.name, user, place)
            template = rows.draw([each for each in family.seen if fits(each, sample)], sample)
            row = rows.write(family, sample, template, count)
            if row is None or template is None:
                continue
            slots = {slot: sample[slot] for slot, _ in template.needs}
            answers = [template.render(slots | {answer: word})[1] for word in ("yes", "no")]
            wrapped = [rows.asker.wrap(each, "assistant") for each in answers]
            (ids, length), (other, _) = renderer.rows_ids([row["prompt"]] * 2, wrapped)
            # Tokens that both answers begin with, such as a space of its own, tell nothing apart.
            while length < min(len(ids), len(other)) and ids[length] == other[length] and not seq2seq:
                length += 1
            if length == min(len(ids), len(other)) or ids[length] == other[length]:
                raise RecipeError(
                    f"The answers of the template {template.id!r}, {answers[0]!r} and {answers[1]!r}, are not told apart by a token of "
                    "this backbone, so that it cannot be asked which it would write. Word them otherwise."
                )
            asked.append(number)
            questions.append(Question(ids[:length], ids[length], other[length]))
        return asked, questions, count

    def _answers(
        self, model: Any, renderer: Any, questions: Sequence[Question], vectors: np.ndarray | None
    ) -> np.ndarray:
        """Returns the language model's ``(questions,)`` probabilities of yes, between yes and no alone."""
        import torch

        size = self.recipe.evaluate.batch_size

        def work(mine: Sequence[int]) -> list[float]:
            # Neighbours are of one wording's answers and of near lengths.
            order = sorted(mine, key=lambda row: (*questions[row][1:], len(questions[row].prompt)))
            found: dict[int, float] = {}
            first = 0
            while first < len(order):
                tokens = questions[order[first]][1:]
                batch = [row for row in order[first : first + size] if questions[row][1:] == tokens]
                first += len(batch)
                prompts = [questions[row].prompt for row in batch]
                users = (
                    None if vectors is None else torch.from_numpy(vectors[batch]).to(model.token_level.device)
                )
                words = (
                    [renderer.whole_word_ids(each) for each in prompts]
                    if self.recipe.model.whole_words
                    else None
                )
                chosen = model.choose(prompts, tokens, users, words)
                found |= dict(zip(batch, chosen[:, 0].double().exp().tolist(), strict=True))
            return [found[row] for row in mine]

        return np.array(divided(len(questions), work))

    def _evaluate(self) -> None:
        r, settings, measured = self.recipe, self.recipe.evaluate, self.measured
        model, renderer, index, _ = load_trained(self.run.path, r.model.dtype)
        data = read_json(self.run.path / REPORT)
        model.check_data(data.get("split_sha256", ""))
        click_model = self._click_model()
        asked, questions, count = self._questions(renderer, model.tokenizer, model.is_encoder_decoder)
        samples = measured.take(np.array(asked, np.int64))
        vectors = click_model.vectors(samples) if model.user_size is not None else None
        began = time.perf_counter()
        own = self._answers(model, renderer, questions, vectors)
        seconds = time.perf_counter() - began
        if not is_main_process():
            return
        if left := len(measured) - len(samples):
            say(f"  {left:,} of {len(measured):,} rows are measured for nobody: no prompt can ask them")
        training = read_json(self.run.path / TRAINING_FILE)
        found = {"model": own}
        kept: dict[str, dict[str, Any]] = {"model": {"name": self._label(training, index.method)}}
        for name in settings.baselines:
            stored = self.run.path / BASELINE_RANKINGS / name
            table = pa_parquet.read_table(f"{stored}.parquet")
            found[name] = table["probability"].to_numpy()[asked]
            kept[name] = {"name": CLICK_BASELINES[name].title, **read_json(f"{stored}.json")}
        about = read_json(self.run.path / CLICK / "training.json")
        found[CLICK] = click_model.probabilities(samples)
        kept[CLICK] = {
            "name": f"{r.click.kind.upper()} (the click model)",
            "tuning": about["tuning"],
            "seconds": about["train_s"],
            "curve": about["curve"],
        }
        pairs = [("model", name) for name in found if name != "model"]
        users = np.array(samples.user_ids)
        intervals, tests = compare_clicks(
            samples.label, found, users, pairs, settings.resamples, settings.seed
        )
        entries: dict[str, dict[str, Any]] = {
            name: kept[name]
            | {
                "metrics": measure_clicks(samples.label, each),
                "intervals": {metric: list(ends) for metric, ends in intervals[name].items()},
                "reliability": reliability(samples.label, each),
            }
            for name, each in found.items()
        }
        report = {
            "run": r.name,
            "protocol": self._protocol(samples, left, data),
            "seed": r.seed,
            "data": data,
            "index": {"method": index.method, "hash": index.hash, **index.report},
            "training": {key: value for key, value in training.items() if key != "losses"},
            "click": {key: value for key, value in about.items() if key not in ("curve", "tuning")},
            "prompts": dict(count),
            "model_mb": round(megabytes(self.run.path / MODEL), 1),
            "answer_s": round(seconds, 1),
            "model": entries.pop("model"),
            "baselines": entries,
            "tests": tests,
            "versions": versions(),
        }
        if vectors is not None:
            report["gates"] = self._click_gates(model, vectors, samples)
        columns = {name: pa.array(each) for name, each in found.items()}
        _write_predictions(self.run.path / PREDICTIONS_FILE, samples, **columns)
        write_json(self.run.path / METRICS, report)
        self._write_decoding(None, 0.0)
        write_click_page(self.run.path / PAGE, report, curve=training["losses"])
        write_click_card(self.run.path, r, report)

    def _label(self, training: Mapping[str, Any], method: str) -> str:
        return f"{model_label(training, method).removesuffix(f', {method} ids')}, {self.recipe.train.adapter}"

    def _protocol(self, samples: Any, left: int, data: Mapping[str, Any]) -> dict[str, Any]:
        settings = self.recipe.evaluate
        rated = bool(samples.source.rated[samples.place].any())
        return {
            "task": "click",
            "split": data["split"],
            "on": settings.on,
            "num_rows": len(samples),
            "num_users": len(set(samples.user_ids)),
            "drawn_rows": settings.max_rows,
            "left_out_rows": left,
            "yes": f"a rating of {self.recipe.tasks.like_from:g} or more"
            if rated
            else "taken, not drawn by chance",
            "share_of_yes": float(samples.label.mean()),
            "data_hash": data["log_sha256"],
        }

    def _click_gates(self, model: Any, vectors: np.ndarray, samples: Any) -> dict[str, Any] | None:
        """Returns what the gates do with the measured samples, None of a single expert."""
        import torch

        weights = model.peft.gate_weights(torch.from_numpy(vectors))
        if not weights:
            return None
        groups = history_slices(samples.end - samples.source.start[samples.user], quantiles=4)
        groups |= {"answer": (["no", "yes"], samples.label.astype(np.int64))}
        report = gate_report({name: each.cpu().numpy() for name, each in weights.items()}, groups)
        for line in gate_lines(report):
            say(f"  gates: {line}")
        return report

    def judge_file(self, *_: Any, **__: Any) -> Path:
        """Raises RecipeError: rankings are no probabilities of clicks."""
        raise RecipeError(
            "Rankings in a file are judged by a recipe with evaluate.task=ranking; this one has click."
        )

    def print_results(self) -> None:
        """Prints the table, and where everything is."""
        if is_main_process():
            print(click_table(read_json(self.run.path / METRICS)))
            print(
                f"Run directory: {self.run.path}  (report: {self.run.path / PAGE}, model card: {self.run.path / CARD})"
            )


def _write_predictions(
    path: Path, samples: Any, probability: np.ndarray | None = None, **columns: Any
) -> None:
    """Writes samples with their labels and what models said of them."""
    ids = samples.source.book.ids
    table = {
        "key": samples.keys,
        "user_id": samples.user_ids,
        "item_id": [ids[item] for item in samples.item.tolist()],
        "label": samples.label.astype(np.int8),
    }
    if probability is not None:
        columns = {"probability": probability}
    with atomic_path(path) as part:
        pa_parquet.write_table(pa.table(table | columns), part)
