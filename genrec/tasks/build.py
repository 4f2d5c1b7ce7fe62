"""Rows of every task, written from a split, a catalogue and an index."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from genrec.core.errors import RecipeError, RunError, lookup, require
from genrec.core.files import write_json
from genrec.core.progress import say
from genrec.data_prep import ItemCatalog, ItemId, Split, UserId
from genrec.indexing import ItemIndex
from genrec.tasks.arrow import arrow_dataset, in_order
from genrec.tasks.families import Family, Template, load_families
from genrec.tasks.render import BARE, MESSAGES, Asker, Renderer, longest
from genrec.tasks.retrieve import Retriever
from genrec.tasks.samplers import SAMPLERS, Sample, Sampler, keyed, text_request
from genrec.tasks.settings import Count, TaskSettings
from genrec.tasks.source import Part, Source
from genrec.tasks.views import ItemBook, Items
from genrec.tasks.writers import TEMPLATE, Load, write_texts

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]

# Interactions, or items, that one job writes rows of.
_JOB = 20_000
_RANGE = 2**64
# Users or items that a preview goes through for a row.
_TRIED = 2_000

PARTS, REPORT, TEXTS = ("train", "validation"), "report.json", "texts.jsonl"
COUNTS = (
    "samples",
    "rows",
    "without_template",
    "too_long",
    "histories_cut",
    "items_dropped",
    "items_untrained",
)


class Share(NamedTuple):
    """How often the samples of a family are drawn: so many times, and those below a hash once more."""

    times: int
    below: int


class Job(NamedTuple):
    """A stretch of users, or of items, of one family."""

    family: str
    start: int
    stop: int


class TaskRows:
    """The instruction data of a mixture, row by row.

    Training rows are a function of training rows of the split, the catalogue, the index and the settings alone.
    Families over the catalogue may name any item of it, since a title is content, not interaction; the report
    counts those that nobody took in training.

    Attributes:
        families: ``{name: family}`` of the mixture, in its order.
        source: The training interactions.
        asker: What asks for the next item in validation and serving.
        counts: ``{family: counts}`` of what was built so far (``COUNTS``).

    Args:
        split: Its training rows make training samples.
        items: Texts of the items.
        index: Their identifiers.
        settings: The mixture and how it is written.
        tokenizer: The backbone's, identifier tokens included; needed for ``max_tokens`` alone.
        load: Reads the language model of ``texts.writer=lm:NAME``; default: transformers' Auto classes.
        evaluate: Whether only held-out rows are written, so that families need nothing to train on.
        text_to_text: Whether they are for an encoder-decoder.

    Raises:
        RecipeError: If a family is unknown or has held-out templates only, a budget has no tokenizer or no room, or the form
            is none that an encoder-decoder reads.
        DataError: If the log has nothing that a family is drawn from.
        UnknownItemError: If the log has an item that the index lacks.
    """

    def __init__(
        self,
        split: Split,
        items: ItemCatalog,
        index: ItemIndex,
        settings: TaskSettings | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        load: Load | None = None,
        evaluate: bool = False,
        text_to_text: bool = False,
    ) -> None:
        self._load = load
        self.settings = settings or TaskSettings()
        self.split, self.index = split, index
        known = load_families(self.settings.files)
        self.families = {
            name: cast(Family, lookup(known, name, "family of tasks")) for name in self.settings.mixture
        }
        for family in self.families.values():
            if not family.seen and not evaluate:
                raise RecipeError(
                    f"The family {family.name!r} has held-out templates only: it is for evaluation, and cannot be in "
                    "tasks.mixture."
                )
        self.asker = make_asker(self.settings, strict=False, text_to_text=text_to_text)
        self.renderer: Renderer | None = None
        if (most := self.settings.max_tokens) is not None:
            if tokenizer is None:
                raise RecipeError(f"tasks.max_tokens={most} needs the tokenizer whose tokens are counted.")
            self.renderer = Renderer(
                tokenizer, index, self.asker, self.settings.max_history, most, text_to_text
            )
            asks = self.asker.form in BARE or any(each.asks_from_history for each in self.families.values())
            if most < (fewest := self.renderer.fewest_tokens if asks else index.num_levels + 2):
                raise RecipeError(
                    f"tasks.max_tokens={most} has no room for what asks for the next item and its code of up to "
                    f"{index.num_levels} tokens. Set it to more than {fewest}."
                )
        self._book = ItemBook(index, items)
        self.source = Source(split, self._book, self.settings)
        self.retriever: Retriever | None = None
        if self.settings.retrieve.how == "similar" and any(
            SAMPLERS[family.samples].strictly_before for family in self.families.values()
        ):
            self.retriever = Retriever.of_catalog(items.select(index.item_ids), self.settings.retrieve)
        self.source.retriever = self.retriever
        for family in self.families.values():
            if (column := SAMPLERS[family.samples].column) and not evaluate:
                self.source.require(column, family.samples)
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in self.families}

    def dataset(self, folder: str | Path | None = None, workers: int | None = None) -> DatasetDict:
        """Returns ``train`` and ``validation``; see ``build_dataset``."""
        datasets = require("datasets", "train")
        place = Path(folder) if folder is not None else None
        self.write_texts(place and place / TEXTS)
        tables = (self._tables(workers or self.settings.workers), self._in_stretches(self.validation()))
        return datasets.DatasetDict(
            {
                name: arrow_dataset(each, self.schema, place and place / f"{name}.arrow")
                for name, each in zip(PARTS, tables, strict=True)
            }
        )

    def stream(self) -> IterableDataset:
        """Returns the training rows one by one, as they are asked for; see ``stream_dataset``."""
        datasets = require("datasets", "train")
        self.write_texts()
        # IterableDataset.from_generator would pickle all data to hash them.
        examples = require("datasets.iterable_dataset", "train").ExamplesIterable
        features = datasets.Features.from_arrow_schema(self.schema)
        return datasets.IterableDataset(
            examples(_Stream(self), {"jobs": list(self.jobs)}), info=datasets.DatasetInfo(features=features)
        )

    def write_texts(self, cache: Path | None = None) -> None:
        """Has the intentions and preferences written that rows print, where another than the rule writes them.

        Args:
            cache: File of a language model's texts, from which a cut run goes on.

        Raises:
            GenrecError: As ``genrec.tasks.writers.write_texts``.
        """
        if self.settings.texts.writer == TEMPLATE or self.source.texts:
            return
        asked = {}
        for family in self.families.values():
            sampler, share = SAMPLERS[family.samples], self.shares[family.name]
            printed = {slot for template in family.seen for slot, _ in template.needs}
            kinds = [kind for slot, kind in sampler.written.items() if slot in printed]
            for user, place in self._places(family, 0, self._num_units(sampler)) if kinds else ():
                sample = Sample(sampler, self.source, family.name, user, place)
                if self._times(share, family.name, sample.key):
                    requests = (text_request(sample, kind) for kind in kinds)
                    asked.update({(request.kind, request.key): request for request in requests})
        self.source.texts = write_texts(asked.values(), self.settings.texts, cache, self._load)

    def rows(self, job: Job) -> Iterator[Row]:
        """Yields the rows of a job, and counts them."""
        family = self.families[job.family]
        if family.name == "next_item" and self.settings.form in BARE:
            yield from self._packed(job) if self.settings.form == "packed" else self._windows(job)
            return
        share, count = self.shares[job.family], self.counts[job.family]
        for user, place in self._places(family, job.start, job.stop):
            key = SAMPLERS[family.samples].key(self.source, user, place)
            for repetition in range(self._times(share, family.name, key)):
                sample = Sample(SAMPLERS[family.samples], self.source, family.name, user, place, repetition)
                count["samples"] += 1
                if row := self.write(family, sample, self.draw(family.seen, sample), count):
                    yield row

    def draw(self, templates: Sequence[Template], sample: Sample) -> Template | None:
        """Returns a template of which the sample has everything, each as likely; None if there is none."""
        # Without a table of users the draw is what it was before there were wordings with a profile.
        left = [t for t in templates if sample.source.profiles or ("user", "profile") not in t.needs]
        while left:
            template = left.pop(sample.draw(f"template {len(left)}") * len(left) // _RANGE)
            if fits(template, sample):
                return template
        return None

    def write(
        self, family: Family, sample: Sample, template: Template | None, count: Counter[str]
    ) -> Row | None:
        """Returns a sample's row in a template, None where it has no template or does not fit the budget."""
        if template is None:
            count["without_template"] += 1
            return None
        shown = self._fitted(sample, template)
        if shown is None:
            count["too_long"] += 1
            return None
        prompt, completion = shown
        dropped = min(sample.num_before, self.settings.max_history) - sample.shown_items
        if dropped > 0:
            count["histories_cut"] += 1
            count["items_dropped"] += dropped
        count["rows"] += 1
        if sample.user < 0 and not sample.repetition:
            count["items_untrained"] += not self._trained[sample.place]
        return self._row(family.name, template.id, sample.key, prompt, completion)

    def preview(self, name: str, num_rows: int, templates: Sequence[Template] | None = None) -> list[Row]:
        """Returns rows of a family of the mixture, of samples from all over it, for a reader.

        Args:
            name: The family.
            num_rows: Rows wanted, fewer where there are fewer.
            templates: One row in each of these instead, of samples that have what it prints.
        """
        family, count = self.families[name], Counter[str]()
        found: list[Row] = []
        for template in templates if templates is not None else [None] * num_rows:
            # Jobs and units are gone through from another place for each row, so that rows differ in users.
            for sample in self._scattered(family, len(found), (templates and len(templates)) or num_rows):
                chosen = self.draw(family.seen, sample) if template is None else template
                if (
                    chosen is not None
                    and fits(chosen, sample)
                    and (row := self.write(family, sample, chosen, count))
                ):
                    found.append(row)
                    break
        return found

    def _scattered(self, family: Family, number: int, of: int) -> Iterator[Sample]:
        sampler = SAMPLERS[family.samples]
        units = self._num_units(sampler)
        begin = units * number // of
        for unit in [*range(begin, units), *range(begin)][:_TRIED]:
            places = [place for _, place in self._places(family, unit, unit + 1)]
            if places:
                user = unit if sampler.over == "users" else -1
                yield Sample(sampler, self.source, family.name, user, places[len(places) // 2])

    def held_out(
        self, name: str, templates: str | Sequence[str] = "seen", on: Part = "valid"
    ) -> Iterator[Row]:
        """Yields rows that ask for held-out interactions; see ``held_out_rows``."""
        family, count = self.families[name], Counter[str]()
        source = Source(self.split, self._book, self.settings, on)
        source.retriever = self.retriever
        if column := SAMPLERS[family.samples].column:
            source.require(column, family.samples)
        sampler = SAMPLERS[family.samples]
        for user in range(len(source.user_ids)):
            for place in sampler.places(source, user):
                for template in family.select(templates):
                    sample = Sample(sampler, source, name, user, place)
                    if fits(template, sample) and (row := self.write(family, sample, template, count)):
                        yield row

    def _row(self, task: str, template: str, key: str, prompt: str, completion: str) -> Row:
        return {
            "task": task,
            "template": template,
            "key": key,
            "prompt": self.asker.wrap(prompt, "user"),
            "completion": self.asker.wrap(completion, "assistant"),
        }

    def _fitted(self, sample: Sample, template: Template) -> tuple[str, str] | None:
        """Returns prompt and completion, the history cut to the budget, None where they never fit it."""

        def shown() -> tuple[str, str]:
            return template.render({slot: sample[slot] for slot, _ in template.needs})

        def fitting(num_items: int) -> bool:
            sample.show(num_items)
            return self._within(*shown(), template)

        if self.renderer is None:
            return shown()
        if all(slot != "history" for slot, _ in template.needs):
            return whole if self._within(*(whole := shown()), template) else None
        kept = longest(min(sample.num_before, self.settings.max_history), fitting)
        if not kept:
            return None
        sample.show(kept)
        return shown()

    def _within(self, prompt: str, completion: str, template: Template) -> bool:
        assert self.renderer is not None
        assert self.settings.max_tokens is not None
        texts = self.asker.wrap(prompt, "user"), self.asker.wrap(completion, "assistant")
        return self.renderer.num_tokens(*texts, template.answers_with_code) <= self.settings.max_tokens

    def _packed(self, job: Job) -> Iterator[Row]:
        """Yields rows of users' histories, every item a target but those of the context before them.

        A history is cut, counted from its end, into stretches of ``max_history`` items less the context; in all cuts but
        the first the last stretch is shortened by a random number of items.
        """
        share, count, context = self.shares[job.family], self.counts[job.family], self.settings.context
        size = self.settings.max_history - context
        for name, history in self._histories(job):
            for cut in range(self.settings.cuts):
                end = len(history)
                stretch = int(_rng(self.settings.seed, name, cut).integers(1, size + 1)) if cut else size
                while end > 0:
                    start = self._fitting(history, max(0, end - stretch), end)
                    key = f"{name}/{start}-{end}"
                    for _ in range(self._times(share, job.family, f"{cut}/{key}")):
                        count["samples"] += 1
                        count["rows"] += 1
                        count["histories_cut"] += start > max(0, end - stretch)
                        shown = self._fitting(history, max(0, start - context), end) if context else start
                        codes = [self._book.codes[item] for item in history[min(shown, start) : end]]
                        known = start - min(shown, start)
                        yield self._row(job.family, "", key, "".join(codes[:known]), "".join(codes[known:]))
                    end, stretch = start, size

    def _windows(self, job: Job) -> Iterator[Row]:
        """Yields a row a position, the first one too, whose prompt is the bare history before it."""
        share, count, size = self.shares[job.family], self.counts[job.family], self.settings.max_history
        for name, history in self._histories(job):
            for end in range(len(history)):
                earliest = max(0, end - size)
                start = self._fitting(history, earliest, end + 1)
                key = f"{name}/{end}"
                for _ in range(self._times(share, job.family, key)):
                    count["samples"] += 1
                    count["rows"] += 1
                    count["histories_cut"] += start > earliest
                    count["items_dropped"] += start - earliest
                    codes = [self._book.codes[item] for item in history[start : end + 1]]
                    yield self._row(job.family, "", key, "".join(codes[:-1]), codes[-1])

    def _histories(self, job: Job) -> Iterator[tuple[UserId, list[int]]]:
        for user in range(job.start, job.stop):
            rows = slice(int(self.source.start[user]), int(self.source.start[user + 1]))
            yield self.source.user_ids[user], self.source.item[rows].tolist()

    def _fitting(self, history: Sequence[int], start: int, end: int) -> int:
        """Returns the first place from ``start`` on from where the codes up to ``end`` fit the budget."""
        if self.settings.max_tokens is None:
            return start
        room, place = self.settings.max_tokens - 1 - self.index.num_levels, end - 1
        while place > start and (room := room - self._code_size[history[place - 1]]) >= 0:
            place -= 1
        return place

    @cached_property
    def _code_size(self) -> list[int]:
        return list(map(len, self.index.codes.values()))

    @cached_property
    def _trained(self) -> np.ndarray:
        """``(items,)`` whether somebody took an item in training."""
        return np.bincount(self.source.item, minlength=len(self._book.ids)) > 0

    def _places(self, family: Family, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yields ``(user, place)`` of every sample of a stretch; the user is -1 for those of items."""
        sampler = SAMPLERS[family.samples]
        for unit in range(start, stop):
            for place in sampler.places(self.source, unit):
                yield (unit if sampler.over == "users" else -1), place

    def _times(self, share: Share, family: str, key: str) -> int:
        return share.times + (
            share.below > 0 and keyed(self.settings.seed, family, key, "kept") < share.below
        )

    @cached_property
    def shares(self) -> dict[str, Share]:
        """How often each family's samples are drawn.

        A weight of w draws every sample floor(w) times, and those whose hash is below the rest once more. A count
        of n takes the n samples of the smallest hashes, after whole rounds where there are fewer.
        """
        found = {}
        for name, weight in self.settings.mixture.items():
            if not isinstance(weight, Count):
                found[name] = Share(int(weight), int((weight - int(weight)) * _RANGE))
                continue
            hashes = np.fromiter(self._hashes(self.families[name]), np.uint64)
            rounds, rest = divmod(weight.count, max(1, len(hashes)))
            below = int(np.partition(hashes, rest)[rest]) if rest and len(hashes) else 0
            found[name] = Share(rounds, below)
        return found

    def _hashes(self, family: Family) -> Iterator[int]:
        sampler, seed = SAMPLERS[family.samples], self.settings.seed
        if family.name == "next_item" and self.settings.form in BARE:
            raise RecipeError(
                f"tasks.mixture gives next_item a count, but tasks.form={self.settings.form} writes whole histories. "
                "Give it a weight, or choose tasks.form=prompt."
            )
        for user, place in self._places(family, 0, self._num_units(sampler)):
            yield keyed(seed, family.name, sampler.key(self.source, user, place), "kept")

    def _num_units(self, sampler: Sampler) -> int:
        return len(self.source.user_ids) if sampler.over == "users" else len(self._book.ids)

    @cached_property
    def jobs(self) -> list[Job]:
        """All rows in pieces, family after family, users in the order of the log."""
        found = []
        for name, family in self.families.items():
            sampler = SAMPLERS[family.samples]
            units = self._num_units(sampler)
            cuts = np.arange(_JOB, units, _JOB)
            if sampler.over == "users":
                cuts = np.searchsorted(self.source.start[:-1], np.arange(_JOB, len(self.source), _JOB))
            edges = np.unique([0, *cuts, units]).tolist()
            found += [Job(name, start, stop) for start, stop in pairwise(edges)]
        return found

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the rows: texts, or lists of messages."""
        text: pa.DataType = pa.string()
        if self.settings.form == MESSAGES:
            text = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
        names = ("task", "template", "key")
        return pa.schema([*((name, pa.string()) for name in names), ("prompt", text), ("completion", text)])

    def _in_stretches(self, rows: Iterator[Row]) -> Iterator[pa.Table]:
        while stretch := list(islice(rows, _JOB)):
            yield self.table(stretch)

    def table(self, rows: Iterable[Row]) -> pa.Table:
        """Returns rows as a table with the columns of ``schema``."""
        return pa.Table.from_pylist(list(rows), self.schema)

    def done(self, job: Job) -> tuple[pa.Table, Counter[str]]:
        """Returns a job's rows, and what they count for."""
        self.counts[job.family] = Counter()
        return self.table(self.rows(job)), self.counts[job.family]

    def _tables(self, workers: int) -> Iterator[pa.Table]:
        # Made once, before there are several processes.
        self.shares  # noqa: B018
        self._trained  # noqa: B018
        total: dict[str, Counter[str]] = {name: Counter() for name in self.families}
        results = in_order(self.done, self.jobs, workers, "training rows")
        for job, (table, count) in zip(self.jobs, results, strict=True):
            total[job.family].update(count)
            yield table
        self.counts = total

    def validation(self) -> Iterator[Row]:
        """Yields a row for each held-out row of validation, asked as serving asks, for the first of its items."""
        held_out, number = self.split.valid, self._book.number
        template = "" if self.asker.form in BARE else self.asker.template.id
        for user, history, targets in zip(
            held_out.user_ids, held_out.histories, held_out.targets, strict=True
        ):
            if self.renderer:
                prompt = self.renderer.prompt(history)
            else:
                shown = [number[item] for item in history[-self.settings.max_history :]]
                prompt = self.asker.text(Items(self._book, shown))
            code = "".join(self.index.code(targets[0]))
            yield {
                "task": "next_item",
                "template": template,
                "key": f"{user}/{len(history)}",
                "prompt": prompt,
                "completion": self.asker.wrap(code, "assistant"),
            }

    @property
    def report(self) -> dict[str, Any]:
        """What was built: the counts of each family, and how serving asks."""
        profiles = self.source.profiles
        about = {"profile": {"columns": profiles.columns, "left_out": profiles.left_out}} if profiles else {}
        return about | {
            "form": self.settings.form,
            "seed": self.settings.seed,
            "texts": self.settings.texts.writer,
            "serving": self.asker.form if self.asker.form in BARE else self.asker.template.id,
            "families": {name: {key: count[key] for key in COUNTS} for name, count in self.counts.items()},
        }

    def summary(self) -> str:
        """Returns the report in a line."""
        total: Counter[str] = Counter()
        for count in self.counts.values():
            total.update(count)
        families = f"{len(self.counts)} families" if len(self.counts) > 1 else next(iter(self.counts))
        parts = [f"{total['rows']:,} rows of {families}"]
        if none := [name for name, count in self.counts.items() if not count["rows"]]:
            parts.append(f"none of {', '.join(none)}")
        return ", ".join(parts + [f"{total[key]:,} {words}" for key, words in _NOTES.items() if total[key]])


def fits(template: Template, sample: Sample) -> bool:
    """Returns whether a sample has everything that a template prints."""
    return all(sample.has(slot, field) for slot, field in template.needs)


def build_dataset(
    split: Split,
    items: ItemCatalog,
    index: ItemIndex,
    settings: TaskSettings | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    folder: str | Path | None = None,
    workers: int | None = None,
    load: Load | None = None,
    text_to_text: bool = False,
) -> DatasetDict:
    """Returns the instruction data as ``datasets.DatasetDict`` with ``train`` and ``validation``.

    Rows have ``task`` (the family), ``template`` (its id, empty for bare histories), ``key`` (what the row was drawn
    from), ``prompt`` and ``completion``: text, or lists of messages (TRL's prompt-completion form, plain or
    conversational). Training rows are written from the split's training rows only; families over the catalogue may
    name any item of it, since a title is content, not interaction. Validation rows ask for the first of
    ``split.valid``'s targets as serving will. Each row is drawn by the seed and its own key, so that the order of
    rows, number of workers and resuming change nothing.

    Args:
        split: Training histories and held-out sets.
        items: The catalogue.
        index: Its identifiers.
        settings: The mixture and how it is written.
        tokenizer: The backbone's, identifier tokens included; needed for ``tasks.max_tokens`` alone.
        folder: Where rows are written and mapped from (``train.arrow``, ``validation.arrow``), with
            ``report.json``; None keeps them in memory.
        workers: Processes; default is ``settings.workers``.
        load: Reads the language model of ``tasks.texts.writer=lm:NAME``; default: transformers' Auto classes.
        text_to_text: Whether they are for an encoder-decoder.

    Raises:
        RecipeError: As ``TaskRows``.
        DataError: If the log lacks what a family is drawn from.
        MissingExtraError: If ``datasets`` is not installed.
        RunError: If the disk refuses.
    """
    require("datasets", "train")
    rows = TaskRows(split, items, index, settings, tokenizer, load, text_to_text=text_to_text)
    data = rows.dataset(folder, workers)
    if folder is not None:
        write_json(Path(folder) / REPORT, rows.report)
        say(f"  {rows.summary()}")
    return data


def read_rows(folder: str | Path) -> DatasetDict:
    """Returns the rows that ``build_dataset`` wrote into a folder, mapped from there.

    Raises:
        RunError: If they are not there.
    """
    datasets = require("datasets", "train")
    paths = {name: Path(folder) / f"{name}.arrow" for name in PARTS}
    if missing := [str(path) for path in paths.values() if not path.is_file()]:
        raise RunError(f"{missing[0]} is missing: genrec train RECIPE writes it.")
    return datasets.DatasetDict({name: datasets.Dataset.from_file(str(path)) for name, path in paths.items()})


def stream_dataset(
    split: Split,
    items: ItemCatalog,
    index: ItemIndex,
    settings: TaskSettings | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_to_text: bool = False,
) -> IterableDataset:
    """Returns the training rows of ``build_dataset``, in the same order, written as they are asked for.

    For sets larger than the disk shall hold. Families come one after the other: ``shuffle(buffer_size=...)`` mixes
    the stretches of users and items that they are written in, and the rows within a buffer.
    """
    require("datasets", "train")
    return TaskRows(split, items, index, settings, tokenizer, text_to_text=text_to_text).stream()


def held_out_rows(
    split: Split,
    items: ItemCatalog,
    index: ItemIndex,
    settings: TaskSettings | None,
    family: str,
    templates: str | Sequence[str] = "seen",
    on: Part = "valid",
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_to_text: bool = False,
) -> Dataset:
    """Returns rows of a family that ask for held-out interactions, each in every one of the given templates.

    So seen and held-out (zero-shot) templates can be measured apart, and a mean over templates taken, as LC-Rec
    does. A history is all that the user did before, up to ``tasks.max_history``. Scores are not smoothed. What is drawn (candidates, items
    that were not taken) is a function of seed and key; a user's held-out items up to ``on`` are no negatives.

    Args:
        split: With held-out interactions.
        items: The catalogue.
        index: Its identifiers.
        settings: How rows are written; its mixture is ignored.
        family: A family whose samples are interactions.
        templates: ``"seen"``, ``"held_out"``, ``"all"``, or ids.
        on: ``"valid"`` or ``"test"``.
        tokenizer: As ``build_dataset``.
        text_to_text: As ``build_dataset``.

    Raises:
        RecipeError: If the family or a template is unknown, or the family's samples are no interactions.
        DataError: If the held-out interactions lack what the family is about.
    """
    settings = settings or TaskSettings()
    form = "prompt" if settings.form in BARE else settings.form
    known = load_families(settings.files)
    found = cast(Family, lookup(known, family, "family of tasks"))
    if not SAMPLERS[found.samples].held_out:
        allowed = [name for name, each in known.items() if SAMPLERS[each.samples].held_out]
        raise RecipeError(
            f"The family {family!r} does not ask for interactions, so that none is held out from it. Families that do: "
            f"{', '.join(allowed)}."
        )
    found.select(templates)
    settings = settings.model_copy(update={"mixture": {family: 1.0}, "form": form})
    rows = TaskRows(split, items, index, settings, tokenizer, evaluate=True, text_to_text=text_to_text)
    return arrow_dataset([rows.table(rows.held_out(family, templates, on))], rows.schema, None)


def make_asker(settings: TaskSettings, strict: bool = True, text_to_text: bool = False) -> Asker:
    """Returns what asks for the next item in serving: the mixture's first way to ask from a history alone.

    Args:
        settings: Form and mixture.
        strict: Whether a mixture without such a way is an error; otherwise it is asked by the family ``next_item``.
        text_to_text: Whether an encoder-decoder is asked.

    Raises:
        RecipeError: If no family of the mixture asks for an identifier, given nothing but identifiers, or the form is none that
            an encoder-decoder reads.
    """
    if text_to_text and settings.form in ("packed", MESSAGES):
        raise RecipeError(
            f"tasks.form={settings.form} is for decoders; this backbone is an encoder-decoder, whose encoder reads the history "
            "and whose decoder writes the answer. Set tasks.form=windows (bare identifiers, as TIGER has them) or prompt."
        )
    if "next_item" in settings.mixture and settings.form in BARE:
        return Asker(settings.form)
    form = "prompt" if settings.form in BARE else settings.form
    if template := _first_template(settings, "asks_from_history"):
        return Asker(form, template)
    if strict:
        known = load_families(settings.files)
        able = [name for name, family in known.items() if family.asks_from_history]
        raise RecipeError(
            "No family of tasks.mixture asks for the next item from a history of identifiers alone, as ranking and "
            f"serving do. Add one that does: {', '.join(able)}."
        )
    return Asker(form)


def title_template(settings: TaskSettings) -> Template | None:
    """Returns the mixture's first wording that asks for the title of the next item from titles alone, if there is one."""
    return _first_template(settings, "asks_for_title")


def click_family(settings: TaskSettings) -> Family | None:
    """Returns the mixture's first family that answers yes or no to an item, if there is one."""
    known = load_families(settings.files)
    families = (cast(Family, lookup(known, name, "family of tasks")) for name in settings.mixture)
    return next((family for family in families if family.samples == "click"), None)


def asks_for_identifiers(settings: TaskSettings) -> bool:
    """Returns whether the mixture asks for the next item's identifier from identifiers alone, as ``make_asker`` wants it."""
    return "next_item" in settings.mixture or _first_template(settings, "asks_from_history") is not None


def _first_template(settings: TaskSettings, kind: str) -> Template | None:
    known = load_families(settings.files)
    families = (lookup(known, name, "family of tasks") for name in settings.mixture)
    return next((template for family in families if (template := getattr(family, kind))), None)


def make_renderer(
    tokenizer: PreTrainedTokenizerBase, index: ItemIndex, settings: TaskSettings, text_to_text: bool = False
) -> Renderer:
    """Returns the renderer that serves what was trained with these settings; errors as ``make_asker``.

    A mixture that asks for titles alone is served by them (``TitlePrompts``), and one that answers yes or no by both answers'
    probabilities; neither need ask for identifiers.
    """
    strict = title_template(settings) is None and click_family(settings) is None
    asker = make_asker(settings, strict, text_to_text)
    return Renderer(tokenizer, index, asker, settings.max_history, settings.max_tokens, text_to_text)


def known_before(
    tasks: Sequence[str], keys: Sequence[str], split: Split, settings: TaskSettings
) -> Iterator[tuple[UserId | None, list[ItemId]]]:
    """Yields, for each row, its user and what the user had taken before the first thing that the row learns.

    A row of an item has no user, and nothing before it.

    Args:
        tasks: Families of the rows.
        keys: Their keys: ``user/position``, ``user/first-last``, or the item.
        split: Whose training rows they are of.
        settings: That they were written by.
    """
    known = load_families(settings.files)
    of_users = {name: SAMPLERS[known[name].samples].over == "users" for name in set(tasks)}
    for task, key in zip(tasks, keys, strict=True):
        if not of_users[task]:
            yield None, []
            continue
        user, _, place = key.rpartition("/")
        yield user, split.train[user][: int(place.partition("-")[0])]


class _Stream:
    """The rows of jobs, each with a key, as ``datasets`` wants them: from a callable that is told by name which ones."""

    def __init__(self, rows: TaskRows) -> None:
        self._rows = rows

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[tuple[Any, ...], Row]]:
        for job in jobs:
            yield from (((*job, number), row) for number, row in enumerate(self._rows.rows(Job(*job))))


_NOTES = {
    "without_template": "samples left out that lack what every template prints",
    "too_long": "left out that do not fit tasks.max_tokens",
    "histories_cut": "histories cut to tasks.max_tokens",
    "items_dropped": "items dropped by that",
    "items_untrained": "rows on items that nobody took in training",
}


def _rng(seed: int, key: str, draw: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(key.encode()), draw])
