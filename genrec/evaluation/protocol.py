"""The protocol: who is ranked what for, the same for every model, and all that is measured of the lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from genrec.core.errors import DataError, RecipeError, nearest
from genrec.data_prep import HeldOut, ItemCatalog, ItemId, Split
from genrec.data_prep.tables import read_table, rename_columns
from genrec.evaluation.baselines import Histories, Scorer
from genrec.evaluation.beyond import ListContext, category_shares, generated_rates, list_metrics
from genrec.evaluation.lists import NO_ITEM, RankedLists, top_columns
from genrec.evaluation.metrics import RANKING_METRICS, user_metrics
from genrec.evaluation.propensity import ips_weights, popularity_propensities, propensity_metrics
from genrec.evaluation.significance import bootstrap_intervals
from genrec.evaluation.slices import (
    cold_slices,
    history_slices,
    item_slice_metrics,
    popularity_slices,
    share_slices,
    slice_metrics,
    user_slices,
)

SEARCH_METRIC = "NDCG@10"


class EvaluateSettings(BaseModel):
    """What is measured, and beside what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["ranking", "click"] = Field(
        "ranking",
        description="ranking: the next items out of the catalogue. click: yes or no to one item (docs/click.md); of the keys below on, "
        "max_rows, baselines, search, resamples, batch_size and seed count.",
    )
    max_rows: int | None = Field(
        None,
        ge=1,
        description="task=click: most rows that are measured, drawn by the seed, the same for every model; null is all.",
    )
    on: Literal["test", "valid"] = Field(
        "test", description="Held-out items that are ranked; choose settings on valid, report on test once."
    )
    metrics: tuple[str, ...] = Field(
        ("HR", "NDCG"), min_length=1, description=f"Ranking metrics: {', '.join(RANKING_METRICS)}."
    )
    ks: tuple[int, ...] = Field((1, 5, 10), min_length=1, description="Cut-offs of the metrics.")
    beams: int = Field(20, ge=1, description="Beam width; never less than the largest cut-off.")
    exact_rows: int = Field(
        0,
        ge=0,
        description="Rows, drawn at random, whose ten best items are found by exact search too, to say how many of them 20, 50 "
        "and 100 beams miss. Of no effect on what is reported otherwise.",
    )
    exclude_history: bool = Field(
        True, description="Whether items of the user's history are left out of every row's ranking."
    )
    candidates: int | None = Field(
        None,
        ge=1,
        description="null ranks all items. A number ranks the relevant items among so many sampled others only, "
        "which is marked in every table: such figures can reverse the order of models (Krichene and Rendle, "
        "KDD 2020).",
    )
    candidate_sampling: Literal["uniform", "popularity"] = Field(
        "uniform",
        description="How candidates are sampled, where they are: uniformly, or by training interactions.",
    )
    baselines: tuple[str, ...] = Field(
        ("popularity", "sasrec"),
        description="Baselines beside the model: popularity, recent_popularity, item_knn, ease, implicit_als, "
        "gru4rec, sasrec. task=click: constant, logistic_regression, deepfm, autoint, dcnv2.",
    )
    search: dict[str, dict[str, list[Any]]] = Field(
        default_factory=dict,
        description="Values of a baseline's settings that are tried on validation, every combination, such as "
        "{sasrec: {dropout: [0.3, 0.5]}}; replaces what the baseline tries by itself.",
    )
    resamples: int = Field(1000, ge=1, description="Bootstrap samples of the 95% intervals.")
    test_resamples: int = Field(10_000, ge=1, description="Random draws of the paired tests.")
    propensity_power: float = Field(
        0.5, gt=0, description="Propensity of an item: (interactions / most interactions) to this power."
    )
    propensity_clip: float = Field(0.01, ge=0, le=1, description="Least propensity that is divided by.")
    propensities: str | None = Field(
        None, description="File with item_id and propensity, in place of those from popularity."
    )
    user_groups: str | None = Field(
        None, description="File with user_id and group, for a slice of the metrics."
    )
    price: str | None = Field(
        None, description="Column of the catalogue with each item's price or value, for value@k."
    )
    batch_size: int = Field(32, ge=1, description="Histories ranked together.")
    seed: int = Field(0, ge=0, description="Seed of intervals, tests, candidates and matrix factorisation.")


def best_positions(
    scorer: Scorer, histories: Histories, k: int, left_out: Sequence[np.ndarray] | None
) -> np.ndarray:
    """Returns ``(histories, min(k, items))`` item positions, best first, equal scores by position.

    Args:
        scorer: Scores of all items.
        histories: Item positions, oldest first.
        k: Items wanted; fewer come where fewer are left, ``NO_ITEM`` fills up.
        left_out: Positions that are no candidates, for each history, or None.

    Raises:
        DataError: If a score is NaN.
    """
    found = []
    for first in range(0, len(histories), 512):
        part = histories[first : first + 512]
        scores = np.array(scorer(part))
        if left_out is not None:
            out = left_out[first : first + 512]
            rows = np.repeat(np.arange(len(out)), [len(items) for items in out])
            scores[rows, np.concatenate([np.asarray(items, np.int64) for items in out])] = -np.inf
        found.append(top_columns(scores, k))
    return np.concatenate(found)


class Judge:
    """Measures lists of one held-out set under one protocol: the same rows, candidates and metrics for all.

    Attributes:
        held_out: The rows.
        item_ids: The catalogue.
        settings: The protocol.
    """

    def __init__(
        self, split: Split, items: ItemCatalog, settings: EvaluateSettings, on: str | None = None
    ) -> None:
        self.split, self.items, self.settings = split, items, settings
        self.held_out: HeldOut = split.test if (on or settings.on) == "test" else split.valid
        self.item_ids = items.item_ids
        self._position = {item: column for column, item in enumerate(self.item_ids)}
        unknown = [
            item for targets in self.held_out.targets for item in targets if item not in self._position
        ]
        if unknown:
            raise DataError(
                f"{len(unknown):,} held-out items are not in the catalogue of {len(items):,} items, first "
                f"{unknown[0]!r}. Give a catalogue with every item of the log."
            )
        self.names = [
            f"{metric}@{k}" for metric in settings.metrics for k in settings.ks if (metric, k) != ("NDCG", 1)
        ]
        self.k = max(settings.ks)
        owner = {user: number for number, user in enumerate(dict.fromkeys(self.held_out.user_ids))}
        several = len(owner) < len(self.held_out)
        self.users = np.array([owner[user] for user in self.held_out.user_ids]) if several else None

    @cached_property
    def histories(self) -> list[np.ndarray]:
        """Item positions of each row's history."""
        return [np.array([self._position[i] for i in h], np.int64) for h in self.held_out.histories]

    @cached_property
    def left_out(self) -> list[np.ndarray] | None:
        """Item positions that are no candidates in each row, or None where all are."""
        s = self.settings
        if s.candidates is None:
            return self.histories if s.exclude_history else None
        weights = self.counts + 1.0 if s.candidate_sampling == "popularity" else np.ones(len(self.item_ids))
        out = []
        for row, (history, targets) in enumerate(zip(self.histories, self.held_out.targets, strict=True)):
            rng = np.random.default_rng([s.seed, row])
            wanted = [self._position[item] for item in targets]
            free = weights.copy()
            free[wanted] = 0
            if s.exclude_history:
                free[history] = 0
            num = min(s.candidates, int((free > 0).sum()))
            kept = np.zeros(len(free), bool)
            kept[rng.choice(len(free), num, replace=False, p=free / free.sum()) if num else []] = True
            kept[wanted] = True
            if s.exclude_history:
                kept[history] = False
            out.append(np.flatnonzero(~kept))
        return out

    @property
    def left_out_ids(self) -> list[list[ItemId]] | None:
        """``left_out`` as item ids."""
        if self.left_out is None:
            return None
        return [[self.item_ids[place] for place in places] for places in self.left_out]

    @cached_property
    def counts(self) -> np.ndarray:
        """``(items,)`` training interactions."""
        found = Counter(item for history in self.split.train.values() for item in history)
        return np.array([found[item] for item in self.item_ids], np.int64)

    def rank(self, scorer: Scorer, k: int | None = None) -> list[list[ItemId]]:
        """Returns the best items of each row by a scorer's scores."""
        places = best_positions(scorer, self.histories, k or self.k, self.left_out)
        return [[self.item_ids[place] for place in row if place != NO_ITEM] for row in places.tolist()]

    def search_value(self, scorer: Scorer) -> float:
        """Returns the mean NDCG@10 of a scorer, by which settings are chosen."""
        places = best_positions(scorer, self.histories, 10, self.left_out)
        lists = RankedLists.from_arrays(places, self._relevant, self._start)
        return float(np.nanmean(user_metrics(lists, [SEARCH_METRIC])[SEARCH_METRIC]))

    @cached_property
    def _relevant(self) -> np.ndarray:
        return np.array([self._position[i] for targets in self.held_out.targets for i in targets], np.int64)

    @cached_property
    def _start(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum([len(t) for t in self.held_out.targets])]).astype(np.int64)

    def lists(self, rankings: Sequence[Sequence[ItemId]]) -> RankedLists:
        """Returns the rankings as numbers; an item outside the catalogue keeps its rank, as a miss.

        Raises:
            DataError: If there are not as many rankings as rows, or one names an item twice.
        """
        if len(rankings) != len(self.held_out):
            raise DataError(
                f"{len(rankings):,} rankings for {len(self.held_out):,} rows; each row needs one. One that got "
                "nothing has an empty ranking."
            )
        items = np.full((len(rankings), max(1, *map(len, rankings))), NO_ITEM, np.int64)
        for row, ranking in enumerate(rankings):
            items[row, : len(ranking)] = [self._position.get(item, NO_ITEM) for item in ranking]
        return RankedLists.from_arrays(items, self._relevant, self._start)

    def measure(
        self, name: str, rankings: Sequence[Sequence[ItemId]]
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Returns all that is measured of one model's rankings, and ``(rows,)`` values of every ranking metric.

        ``metrics``: the ranking metrics, then those of ``list_metrics`` at the largest cut-off and the rates
        of ``generated_rates``. ``intervals``: 95% bootstrap intervals of the ranking metrics over users.
        ``unbiased``: Recall and NDCG at the largest cut-off with every relevant item weighted by the inverse
        of its propensity, plain (IPS) and divided by the sum of weights over all rows (SNIPS).
        ``slices``: the ranking metrics at the largest cut-off within groups.

        Args:
            name: What tables call the model.
            rankings: A list for each row; errors as ``lists``.
        """
        s = self.settings
        lists = self.lists(rankings)
        values = user_metrics(lists, self.names)
        intervals = bootstrap_intervals(values, self.users, s.resamples, seed=s.seed)
        shown = [ranking[: self.k] for ranking in rankings]
        rates = generated_rates(shown, self._position, self.held_out.histories)
        last = [name for name in self.names if name.endswith(f"@{self.k}")]
        chosen = {metric: values[metric] for metric in last}
        slices = {
            label: slice_metrics(chosen, groups, self.users, s.resamples, s.seed)
            for label, groups in self._row_slices.items()
        } | {
            label: item_slice_metrics(lists, groups, last, self.users, s.resamples, s.seed)
            for label, groups in self._item_slices.items()
        }
        entry = {
            "name": name,
            "metrics": {metric: float(np.nanmean(value)) for metric, value in values.items()}
            | {"num_rows": len(self.held_out), "num_users": self.held_out.num_users}
            | list_metrics(lists, self.k, self._context)
            | rates,
            "intervals": {metric: list(interval) for metric, interval in intervals.items()},
            "unbiased": self._unbiased(lists),
            "slices": slices,
        }
        return entry, values

    def _unbiased(self, lists: RankedLists) -> dict[str, float]:
        names = [f"Recall@{self.k}", f"NDCG@{self.k}"]
        clip = self.settings.propensity_clip
        plain = propensity_metrics(lists, self._propensities, names, clip, normalise="none")
        weight = ips_weights(self._propensities, clip)[self._relevant].sum() / len(lists.relevant)
        means = {name: float(np.nanmean(value)) for name, value in plain.items()}
        # Rows of one relevant item each are their own norm, so the norm is over all rows (Swaminathan and
        # Joachims, NeurIPS 2015).
        return {f"IPS {name}": value for name, value in means.items()} | {
            f"SNIPS {name}": value / float(weight) for name, value in means.items()
        }

    @cached_property
    def _propensities(self) -> np.ndarray:
        if self.settings.propensities is None:
            return popularity_propensities(self.counts, self.settings.propensity_power)
        given = _column_of(self.settings.propensities, "item_id", "propensity", "evaluate.propensities")
        missing = [item for item in self.item_ids if item not in given]
        if missing:
            raise DataError(
                f"{self.settings.propensities} has no propensity of {len(missing):,} items of the catalogue, first "
                f"{missing[0]!r}. Give one for every item."
            )
        try:
            return np.array([float(given[item]) for item in self.item_ids])
        except (TypeError, ValueError) as error:
            raise DataError(
                f"A propensity in {self.settings.propensities} is not a number: {error}."
            ) from error

    @cached_property
    def _row_slices(self) -> dict[str, Any]:
        found = history_slices(np.array([len(history) for history in self.held_out.histories]))
        if self.settings.user_groups is not None:
            groups = _column_of(self.settings.user_groups, "user_id", "group", "evaluate.user_groups")
            found |= user_slices(self.held_out.user_ids, {user: str(group) for user, group in groups.items()})
        return found

    @cached_property
    def _item_slices(self) -> dict[str, Any]:
        return (
            popularity_slices(self.counts, self._relevant)
            | cold_slices(self.counts, self._relevant)
            | share_slices(self.counts, self._relevant)
        )

    @cached_property
    def _context(self) -> ListContext:
        from genrec.indexing.encoders import word_vectors

        users_of_item = Counter(item for h in self.split.train.values() for item in set(h))
        table = self.items.table
        categories = shares = None
        if "categories" in table.column_names and pa.types.is_list(table["categories"].type):
            flat = pc.fill_null(pc.list_flatten(table["categories"].combine_chunks()), "")
            names = pc.dictionary_encode(flat)
            owner = pc.list_parent_indices(table["categories"].combine_chunks()).to_numpy()
            if len(names.dictionary):
                categories = np.zeros((len(self.item_ids), len(names.dictionary)), bool)
                categories[owner, names.indices.to_numpy()] = True
                longest = max(1, *map(len, self.histories))
                padded = np.full((len(self.histories), longest), NO_ITEM, np.int64)
                for row, history in enumerate(self.histories):
                    padded[row, : len(history)] = history
                shares = category_shares(padded, longest, categories)
        prices = None
        if (price := self.settings.price) is not None:
            if price not in table.column_names:
                raise RecipeError(
                    f"evaluate.price={price!r} is no column of the catalogue. It has: "
                    f"{', '.join(table.column_names)}.{nearest(price, table.column_names)}"
                )
            prices = pc.cast(table[price], pa.float64()).to_numpy()
        return ListContext(
            num_items=len(self.item_ids),
            num_users=len(self.split.train),
            counts=self.counts,
            users_of_item=np.array([users_of_item[item] for item in self.item_ids]),
            vectors=word_vectors(self.items.texts(), 64, 0)[0]
            if self.items.num_untitled < len(self.items)
            else None,
            categories=categories,
            history_shares=shares,
            prices=prices,
        )

    def protocol(self) -> dict[str, Any]:
        """Returns what must agree for two results to be comparable, and what they were measured on."""
        s = self.settings
        sampled = f"{s.candidates} sampled ({s.candidate_sampling}, seed {s.seed}) and the relevant ones"
        return {
            "split": self.split.rule,
            "on": "test" if self.held_out is self.split.test else "valid",
            "candidates": "all items" if s.candidates is None else sampled,
            "exclude_history": s.exclude_history,
            "relevant": "one" if max(map(len, self.held_out.targets)) == 1 else "many",
            "num_rows": len(self.held_out),
            "num_users": self.held_out.num_users,
            "num_items": len(self.item_ids),
            "num_unreachable": sum(
                bool(set(history) & set(targets))
                for history, targets in zip(self.held_out.histories, self.held_out.targets, strict=True)
            )
            if s.exclude_history
            else 0,
            "tie_rule": "equal scores by catalogue order",
            "rows_hash": self.held_out.hash,
        }


def _column_of(path: str, key: str, value: str, what: str) -> Mapping[str, Any]:
    """Returns ``{key: value}`` of two columns of a table file.

    Raises:
        DataError: If the file or a column is missing.
    """
    if not Path(path).is_file():
        raise DataError(f"{what}={path!r} does not exist. Give a file with the columns {key} and {value}.")
    table = read_table(path)
    rename_columns(table.column_names, None, (key, value), path)
    keys = pc.cast(table[key], pa.string()).to_pylist()
    return dict(zip(keys, table[value].to_pylist(), strict=True))
