"""The one object for use: histories in, real items with titles and scores out."""

from __future__ import annotations

import asyncio
import math
import operator
import shutil
import tempfile
from collections.abc import Collection, Container, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args, overload

import numpy as np
import pyarrow.parquet as pa_parquet

from genrec._version import __version__
from genrec.core.errors import (
    DataError,
    GenrecError,
    IndexingError,
    RunError,
    UnknownItemError,
    nearest,
)
from genrec.core.files import hash_folder, hash_value, megabytes, read_json, write_json
from genrec.core.hub import check_repo_id, pull, push, without_private_paths
from genrec.core.progress import say
from genrec.data_prep import ItemCatalog, ItemId, UserId, check_manifest
from genrec.data_prep.card import terms_in_words
from genrec.decoding.settings import DecodingSettings, Method
from genrec.evaluation.baselines import sequence_scorer
from genrec.indexing import Code, ItemIndex
from genrec.tasks import Template, TitlePrompts
from genrec.training.finetune import (
    DECODING,
    HISTORIES,
    INDEX,
    ITEMS,
    MODEL,
    SEAL,
    SERVING_FILE,
    USERS,
    check_seal,
    load_trained,
    seal,
)

if TYPE_CHECKING:
    import torch

    from genrec.decoding.beam import BeamLevel, ConstrainedDecoder
    from genrec.decoding.explain import BeamTree
    from genrec.decoding.export import Engine
    from genrec.decoding.fusion import Ranker
    from genrec.decoding.grounding import Grounder
    from genrec.models.users import UserVectors

Unknown = Literal["error", "skip", "title"]

# What another machine needs to recommend. User histories are not among it: they are nobody else's.
_SHARED = (MODEL, INDEX, ITEMS, SERVING_FILE, DECODING, USERS, "README.md", "recipe.yaml", "metrics.json")
# Vectors of single users, which came from a file.
_OF_USERS = shutil.ignore_patterns("vectors.parquet")


@dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item_id: The item.
        title: Its title.
        score: Higher is better. Constrained: log-probability of its code, at most 0. Grounded: minus its (re-weighted)
            distance. Fused: the sum of what both lists give it.
        code: The tokens that name it; none for an item that has a title only.
    """

    item_id: ItemId
    title: str
    score: float
    code: Code


@dataclass(frozen=True)
class Explanation:
    """What one history was given, and why.

    Attributes:
        history: The items gone on from, oldest first, with their titles.
        recommendations: The list, best first.
        tree: The prefixes of codes that beam search kept.
    """

    history: list[tuple[ItemId, str]]
    recommendations: list[Recommendation]
    tree: BeamTree

    def write_picture(self, path: str | Path) -> None:
        """Writes the tree as a picture: ``.svg``, or ``.html`` with history and list; both follow light and dark.

        Raises:
            DataError: If the file's name ends otherwise.
            RunError: If the file system refuses.
        """
        from genrec.core.page import escaped, section, title_span, write_html, write_svg
        from genrec.decoding.explain import TREE_STYLE, probability, tree_svg

        path = Path(path)
        if path.suffix not in (".svg", ".html"):
            raise DataError(f"A picture is an .svg or an .html file, got {str(path)!r}.")
        if path.suffix == ".svg":
            write_svg(path, tree_svg(self.tree), TREE_STYLE)
            return
        taken = "".join(f"<li>{title_span(title)}</li>" for _, title in self.history)
        given = "".join(
            f'<li>{title_span(item.title)}<span class="score">p {probability(item.score)} · '
            f"{escaped(''.join(item.code))}</span></li>"
            for item in self.recommendations
        )
        lists = (
            f'<div class="cards"><div class="card"><h3>History, oldest first</h3><ol>{taken}</ol></div>'
            f'<div class="card"><h3>Recommended</h3><ol>{given}</ol></div></div>'
        )
        note = (
            '<p class="note">From left to right the tokens of the codes, with their probabilities so far; a line is as thick as '
            "its prefix is likely, beside the best first token. Above each column: how many prefixes of that length were kept, "
            "of how many, and the probability that they have together. Grey lines lead to nothing in the list; behind every end "
            "stand titles below it.</p>"
        )
        picture = f'<div class="scroll" tabindex="0" role="region" aria-label="Beam tree">{tree_svg(self.tree)}</div>{note}'
        write_html(
            path,
            "Why these items",
            "Recommendation",
            "",
            [section("From what to what", lists), section("What the search kept", picture)],
            version=__version__,
            style=f".beams {{ min-width: 46rem; }}{TREE_STYLE}",
        )


@dataclass(frozen=True)
class Ask:
    """A request of its own among several: the arguments of ``Recommender.recommend`` for one history."""

    history: Sequence[ItemId]
    k: int = 10
    exclude_history: bool = True
    exclude: Collection[ItemId] = ()
    allow: Collection[ItemId] | None = None
    beams: int | None = None
    method: Method | None = None
    unknown: Unknown = "error"
    user_id: UserId | None = None


class _Ready(NamedTuple):
    """A request that was checked."""

    method: Method
    k: int
    beams: int | None
    history: list[ItemId]
    left_out: set[ItemId]
    only: set[ItemId] | None
    user: np.ndarray | None


# Whoever asks several models of a process at once shares its cores, and torch uses them all for each.
_ONE_AT_A_TIME = ThreadPoolExecutor(1, "genrec")


class Recommender:
    """A tuned model with its index and catalogue.

    Attributes:
        items: The catalogue.
        run_dir: The folder it was loaded from.
    """

    def __init__(
        self,
        decoder: ConstrainedDecoder,
        items: ItemCatalog,
        run_dir: Path,
        users: UserVectors | None = None,
    ) -> None:
        self._decoder, self.items, self.run_dir, self._users = decoder, items, run_dir, users
        self._told_of_long_histories = False
        file = run_dir / DECODING / "decoding.json"
        # Runs of before grounding have no such file.
        self._decoding: dict[str, Any] = read_json(file) if file.exists() else {}
        self._settings = DecodingSettings.model_validate(self._decoding.get("settings", {}))

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | Path, dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    ) -> Recommender:
        """Returns the recommender of a finished run, or of a Hub repository that one was pushed to.

        Args:
            path_or_hub_id: Folder, or ``org/name`` on the Hub.
            dtype: Type of the frozen weights; ``"auto"`` is what they were trained beside. In bfloat16 the scores of a history
                differ by some hundredths with what is asked together with it; in float32 by rounding, as 1e-5.

        Raises:
            RunError: If it is neither, its files do not belong together or are not those that were written, or it was trained to
                predict clicks.
            ModelError: If the backbone cannot be loaded.
        """
        run = Path(path_or_hub_id)
        if not run.is_dir():
            run = pull(str(path_or_hub_id), "model", "a finished run")
        decoding = run / DECODING / "decoding.json"
        if decoding.exists() and read_json(decoding).get("task") == "click":
            raise RunError(
                f"The model in {run} answers yes or no to one item (evaluate.task=click) and recommends nothing. genrec evaluate "
                f"{run} measures it; to recommend, run a recipe with evaluate.task=ranking."
            )
        if (run / MODEL).is_dir() and not check_seal(run):
            say(
                f"  {run} is of before runs had {SEAL}: whether its files are as they were written is not known"
            )
        model, renderer, _, items = load_trained(run, dtype)
        from genrec.decoding.beam import ConstrainedDecoder

        users = None
        if model.user_size is not None:
            from genrec.models.users import UserVectors

            users = UserVectors.load(run / USERS)
        return cls(ConstrainedDecoder(model, renderer), items, run, users)

    def recommend(
        self,
        histories: Sequence[Sequence[ItemId]] | None = None,
        *,
        user_ids: Sequence[UserId | None] | None = None,
        k: int = 10,
        exclude_history: bool = True,
        exclude: Collection[ItemId] = (),
        allow: Collection[ItemId] | None = None,
        beams: int | None = None,
        method: Method | None = None,
        exact: bool = False,
        unknown: Unknown = "error",
    ) -> list[list[Recommendation]]:
        """Returns, for each history or user, the k best items: real, distinct, best first.

        Fewer than k come only where fewer are allowed, which is said. An empty history gets what the model expects first. Of a history
        that is longer than the model reads (``tasks.max_history`` items, or as many as ``tasks.max_tokens`` holds) the
        newest items are read; none of its items is recommended all the same.

        Args:
            histories: Items each user took, oldest first.
            user_ids: Users of the run instead, with the history that evaluation gave them (everything
                but the held-out last item). Beside histories: whose they are, None for nobody known, which a model asks for
                whose adapters are made from a file of users' vectors.
            k: Items wanted.
            exclude_history: Whether items of the history are left out.
            exclude: Items that nobody shall get.
            allow: The only items that may come; None allows all.
            beams: Beam width of the constrained search, default ``max(k, 20)``.
            method: ``"constrained"``, ``"grounded"`` or ``"fused"``; default is that of the run.
            exact: Whether the constrained search goes on until no better item can be left (``rank_exact``), instead of by beams.
            unknown: What happens to an item of a history that the index does not have: ``"error"``; ``"skip"`` leaves it out
                and says which; ``"title"`` takes it for the title of the one item that has it, whatever the case and spaces.

        Raises:
            UnknownItemError: If an item is not in the catalogue, or with
                ``unknown="title"`` no item has that title.
            RunError: If the model was not trained to be asked in this way.
            DataError: If k or beams is below 1, neither histories nor user_ids are given or they are not as many, a history is no
                list of item ids, a user is unknown, or several items have the title.
        """
        method = self._method(method)
        if exact and method != "constrained":
            raise DataError(f"exact=True is of the method 'constrained'; this one is {method!r}.")
        histories, users, k, left_out, beams = self._asked(
            histories, user_ids, k, exclude_history, exclude, beams, unknown, titles=not exact
        )
        only = None if allow is None else [set(_item_ids(allow, "allow"))] * len(histories)
        if exact:
            self._check_identifiers()
            found = self._decoder.rank_exact(histories, k, left_out, allow=only, users=users)
            rankings = [each.ranking for each in found]
        else:
            rankings = self._ranker(method).rank_all(
                histories, k, left_out, beams, label="", method=method, allow=only, users=users
            )
        if fewer := sum(len(ranking) < k for ranking in rankings):
            say(f"  {fewer:,} of {len(rankings):,} lists have fewer than {k:,} items: no more are allowed")
        return [self._recommendations(ranking) for ranking in rankings]

    @cached_property
    def _grounder(self) -> Grounder | None:
        """What grounds the model's titles, as evaluation did; None where the model writes none."""
        texts, settings = self._decoding.get("template"), self._settings.grounding
        if not texts:
            return None
        from genrec.decoding.grounding import Grounder, Injection

        if self._settings.method == "constrained":
            # Evaluation chose no weight.
            settings = settings.model_copy(update={"inject": "none"})
        ids, injection = ItemCatalog.load(self.run_dir / ITEMS).item_ids, None
        if settings.inject == "popularity":
            injection = Injection.of_counts(ids, np.load(self.run_dir / DECODING / "popularity.npy"))
        elif settings.inject == "collaborative":
            from genrec.models.sequence import load_sequence_model

            teacher = load_sequence_model(self.run_dir / settings.collaborative, ids)
            injection = Injection(ids, sequence_scorer(teacher))
        needs = (("history", "title"), ("target", "title"))
        template = Template(texts["id"], texts["prompt"], texts["completion"], False, needs, False)
        prompts = TitlePrompts(self._decoder.renderer, template, self.items)
        return Grounder(
            self._decoder.model, prompts, self.items, settings, injection, self._decoding["gamma"]
        )

    def _asked(
        self,
        histories: Sequence[Sequence[ItemId]] | None,
        user_ids: Sequence[UserId | None] | None,
        k: int,
        exclude_history: bool,
        exclude: Collection[ItemId],
        beams: int | None,
        unknown: Unknown,
        titles: bool = False,
    ) -> tuple[list[list[ItemId]], np.ndarray | None, int, list[set[ItemId]], int | None]:
        """Returns histories of the index's items, vectors of their users, k, what is left out, and beams; errors as ``recommend``."""
        k = min(_at_least_one("k", k), len(self.items))
        beams = None if beams is None else _at_least_one("beams", beams)
        nobody = set(_item_ids(exclude, "exclude"))
        if histories is None and user_ids is None:
            raise DataError("Give histories or user_ids.")
        if user_ids is not None and (not isinstance(user_ids, Iterable) or isinstance(user_ids, str)):
            raise DataError(f"user_ids is a list of users, got {user_ids!r}. Write [...].")
        if histories is None:
            assert user_ids is not None
            histories = [self.history(cast(UserId, user)) for user in user_ids]
        found = self.resolve(histories, unknown, titles)
        if user_ids is not None and len(user_ids) != len(found):
            raise DataError(
                f"{len(found):,} histories came with {len(user_ids):,} user_ids. Give one for each, None for nobody known."
            )
        users = None if self._users is None else self._users.of(found, user_ids)
        left_out = [nobody | (set(history) if exclude_history else set()) for history in found]
        return found, users, k, left_out, beams

    def _recommendations(self, ranking: Sequence[tuple[ItemId, float]]) -> list[Recommendation]:
        index = self._decoder.index
        return [
            Recommendation(item, self.items.title(item), score, index.codes.get(item, ()))
            for item, score in ranking
        ]

    def resolve(
        self,
        histories: Sequence[Sequence[ItemId]],
        unknown: Unknown = "error",
        titles: bool = False,
    ) -> list[list[ItemId]]:
        """Returns histories of items of the index alone.

        Args:
            histories: As ``recommend``.
            unknown: As ``recommend``.
            titles: Whether items of the catalogue that have no code stay, as ``recommend`` wants it: beam search passes
                them over, grounding reads their titles.

        Raises:
            UnknownItemError: As ``recommend``.
            DataError: As ``recommend``.
        """
        if unknown not in get_args(Unknown):
            raise DataError(f"unknown is one of {', '.join(get_args(Unknown))}, got {unknown!r}.")
        if isinstance(histories, str | Mapping) or not isinstance(histories, Iterable):
            raise DataError(f"Histories are a list of histories, got {histories!r}. Write [[...]].")
        read = []
        for number, history in enumerate(histories):
            if isinstance(history, Set):
                raise DataError(
                    f"History {number} is a set, which has no order. Give a list, oldest item first."
                )
            read.append(_item_ids(history, f"History {number}"))
        index, most = self._decoder.index, self._decoder.renderer.max_history
        known: Container[ItemId] = self.items if titles else index.codes
        skipped: list[ItemId] = []
        found = []
        for history in read:
            if unknown == "title":
                history = [item if item in known else self._item_of_title(item) for item in history]
            elif unknown == "skip":
                skipped += [item for item in history if item not in known]
                history = [item for item in history if item in known]
            else:
                for item in history:
                    if item not in known:
                        index.code(item)  # says what is wrong with it
            found.append(history)
        if skipped:
            named = list(dict.fromkeys(skipped))
            more = f" and {len(named) - 10:,} others" if len(named) > 10 else ""
            say(
                f"  warning: left out of histories, not in the index: {', '.join(map(repr, named[:10]))}{more}"
            )
        longest = max(map(len, found), default=0)
        if longest > most and not self._told_of_long_histories:
            self._told_of_long_histories = True
            say(
                f"  a history has {longest:,} items: the model reads the newest {most:,} (tasks.max_history). Said once."
            )
        return found

    def _item_of_title(self, text: str) -> ItemId:
        items = self._items_of_title.get(_folded(text), [])
        if not items:
            titles = [self.items.title(item) for item in self.items.item_ids]
            raise UnknownItemError(
                f"{text!r} is neither an item of the {len(titles):,} nor the title of one.{nearest(text, titles)}"
            )
        if len(items) > 1:
            raise DataError(
                f"{len(items):,} items have the title {text!r}: {', '.join(map(repr, items[:5]))}. Give the item's id."
            )
        return items[0]

    @cached_property
    def _items_of_title(self) -> dict[str, list[ItemId]]:
        found: dict[str, list[ItemId]] = {}
        for item in self._decoder.index.item_ids:
            found.setdefault(_folded(self.items.title(item)), []).append(item)
        return found

    def explain(
        self,
        history: Sequence[ItemId],
        *,
        k: int = 10,
        exclude_history: bool = True,
        exclude: Collection[ItemId] = (),
        allow: Collection[ItemId] | None = None,
        beams: int | None = None,
        unknown: Unknown = "error",
        user_id: UserId | None = None,
    ) -> Explanation:
        """Returns what ``recommend`` gives for one history, and the prefixes of codes that led there.

        Args:
            history: Items a user took, oldest first.
            k: As ``recommend``.
            exclude_history: As ``recommend``.
            exclude: As ``recommend``.
            allow: As ``recommend``.
            beams: As ``recommend``.
            unknown: As ``recommend``.
            user_id: Whose history it is, if known; see ``recommend``.

        Raises:
            UnknownItemError: As ``recommend``.
            DataError: As ``recommend``.
            RunError: If the model writes no identifiers.
        """
        from genrec.decoding.explain import beam_tree

        ((history,), users, k, (left_out,), beams) = self._asked(
            [history], [user_id], k, exclude_history, exclude, beams, unknown
        )
        only = None if allow is None else set(_item_ids(allow, "allow"))
        self._check_identifiers()
        levels: list[BeamLevel] = []
        (ranking,) = self._decoder.rank(
            [history], k, [left_out], beams, allow=[only], users=users, trace=levels
        )
        if only is not None:
            left_out = left_out | (self._decoder.index.codes.keys() - only)
        tree = beam_tree(levels, self._decoder.index, self.items, ranking, left_out)
        titles = [(item, self.items.title(item)) for item in history]
        return Explanation(titles, self._recommendations(ranking), tree)

    @cached_property
    def identity(self) -> str:
        """Digest of what decides a list: the model's files and type of weights, the index and the catalogue as it stands."""
        index, titles, dtype = self._decoder.index, self.items.item_ids, self._decoder.model.about["dtype"]
        return hash_value([hash_folder(self.run_dir / MODEL), dtype, index.hash, titles])

    def gate_weights(
        self,
        histories: Sequence[Sequence[ItemId]] | None = None,
        *,
        user_ids: Sequence[UserId | None] | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns ``{layer: (users, experts)}``, how much of each expert these users' adapters have; rows add up to 1.

        Args:
            histories: As ``recommend``.
            user_ids: As ``recommend``.

        Raises:
            RunError: If adapters are the same for everyone.
        """
        model = self._decoder.model
        if self._users is None or model.peft is None:
            raise RunError(
                "The adapters of this model are the same for everyone: it was not trained with adapter=reclora."
            )
        import torch

        vectors = self._asked(histories, user_ids, 1, False, (), None, "error")[1]
        found = cast(Any, model.peft).gate_weights(torch.from_numpy(vectors))
        return {layer: weights.cpu().numpy() for layer, weights in found.items()}

    @property
    def index(self) -> ItemIndex:
        """The codes of its items."""
        return self._decoder.index

    async def arecommend(
        self, histories: Sequence[Sequence[ItemId]] | None = None, **options: Any
    ) -> list[list[Recommendation]]:
        """Returns ``recommend`` without keeping the event loop waiting; errors as there.

        Several may be awaited at once. They take turns in one thread: a model answers one call at a time, and torch
        divides each among the cores by itself.

        Args:
            histories: As ``recommend``.
            options: As ``recommend``.
        """
        work = partial(self.recommend, histories, **options)
        return await asyncio.get_running_loop().run_in_executor(_ONE_AT_A_TIME, work)

    @overload
    def score(self, histories: list[ItemId], items: Sequence[ItemId], **options: Any) -> list[float]: ...

    @overload
    def score(
        self, histories: Sequence[Sequence[ItemId]], items: Sequence[ItemId], **options: Any
    ) -> list[list[float]]: ...

    def score(
        self, histories: Sequence[Any], items: Sequence[ItemId], **options: Any
    ) -> list[float] | list[list[float]]:
        """Returns the model's score of each item after a history: the one that ``recommend(..., exact=True)`` gives it.

        Constrained: the log-probability of its code, as decoding adds it up. Grounded: minus its (re-weighted) distance.
        An item that may not come, such as one of the history, has minus infinity.

        Args:
            histories: One history, oldest item first, or a list of them.
            items: To score, the same for each history.
            options: ``exclude_history``, ``exclude``, ``allow``, ``method`` and ``unknown``, as ``recommend``; ``user_id``: whose
                histories they are, if known.

        Raises:
            UnknownItemError: As ``recommend``, also for an item to score.
            DataError: As ``recommend``, or if the method is fused: a fused score is of a place in two lists.
            RunError: As ``recommend``.
        """
        one = isinstance(histories, list | tuple) and all(isinstance(item, str) for item in histories)
        asked = [Ask(each, **options) for each in ([histories] if one else histories)]
        found = self.score_each([(ask, items) for ask in asked])
        for each in found:
            if isinstance(each, GenrecError):
                raise each
        scores = cast("list[list[float]]", found)
        return scores[0] if one else scores

    def recommend_each(self, asked: Sequence[Ask]) -> list[list[Recommendation] | GenrecError]:
        """Returns the answer of ``recommend`` to each of several different requests, which are ranked together.

        A request that ``recommend`` would refuse has its error as its answer; the others have theirs all the same.
        """
        found: list[list[Recommendation] | GenrecError] = [[] for _ in asked]
        groups: dict[tuple[Method, int, int | None], list[tuple[int, _Ready]]] = {}
        for number, ask in enumerate(asked):
            try:
                ready = self._ready(ask)
            except GenrecError as error:
                found[number] = error
                continue
            groups.setdefault((ready.method, ready.k, ready.beams), []).append((number, ready))
        for (method, k, beams), group in groups.items():
            rankings = self._ranker(method).rank_all(
                [ready.history for _, ready in group],
                k,
                [ready.left_out for _, ready in group],
                beams,
                label="",
                method=method,
                allow=[ready.only for _, ready in group],
                users=_stacked([ready.user for _, ready in group]),
            )
            for (number, _), ranking in zip(group, rankings, strict=True):
                found[number] = self._recommendations(ranking)
        return found

    def score_each(self, asked: Sequence[tuple[Ask, Sequence[ItemId]]]) -> list[list[float] | GenrecError]:
        """Returns the answer of ``score`` to each of several different requests, as ``recommend_each`` does."""
        found: list[list[float] | GenrecError] = [[] for _ in asked]
        groups: dict[Method, list[tuple[int, _Ready, list[ItemId]]]] = {}
        for number, (ask, items) in enumerate(asked):
            try:
                if self._method(ask.method) == "fused":
                    raise DataError(
                        "A fused score is of a place in two lists, so single items have none: ask by "
                        "method='constrained' or 'grounded'."
                    )
                ready, wanted = self._ready(ask), _item_ids(items, "items")
                for item in wanted:
                    self._check_item(item, ready.method)
            except GenrecError as error:
                found[number] = error
                continue
            groups.setdefault(ready.method, []).append((number, ready, wanted))
        for method, group in groups.items():
            histories = [ready.history for _, ready, _ in group]
            users = _stacked([ready.user for _, ready, _ in group])
            if method == "constrained":
                codes = self._decoder.index.codes
                values = self._decoder.score(
                    [[item for item in history if item in codes] for history in histories],
                    [items for _, _, items in group],
                    [ready.left_out & codes.keys() for _, ready, _ in group],
                    allow=[ready.only for _, ready, _ in group],
                    users=users,
                )
            else:
                # Distances to all items, of which those asked for are named.
                only = [
                    set(items) if ready.only is None else ready.only & set(items) for _, ready, items in group
                ]
                left_out = [ready.left_out for _, ready, _ in group]
                rankings = self._ranker(method).rank_all(
                    histories, len(self.items), left_out, label="", method=method, allow=only, users=users
                )
                named = [dict(ranking) for ranking in rankings]
                values = [
                    [scores.get(item, -math.inf) for item in items]
                    for scores, (_, _, items) in zip(named, group, strict=True)
                ]
            for (number, _, _), scores in zip(group, values, strict=True):
                found[number] = scores
        return found

    def _ready(self, ask: Ask) -> _Ready:
        """Returns a request as ranking takes it; errors as ``recommend``, all of them before the model is asked."""
        method = self._method(ask.method)
        (history,), users, k, (left_out,), beams = self._asked(
            [ask.history],
            [ask.user_id],
            ask.k,
            ask.exclude_history,
            ask.exclude,
            ask.beams,
            ask.unknown,
            titles=True,
        )
        for item in left_out:
            self.items.title(item)  # says what is wrong with an unknown one
        only = None if ask.allow is None else set(_item_ids(ask.allow, "allow"))
        for item in only or ():
            self._check_item(item, method)
        if method != "grounded":
            self._check_identifiers()
        if method != "constrained" and self._grounder is None:
            self._ranker(method).rank_all([], k, method=method)  # says what the model lacks
        return _Ready(method, k, beams, history, left_out, only, None if users is None else users[0])

    def _method(self, method: Method | None) -> Method:
        method = method or self.method
        if method not in get_args(Method):
            raise DataError(f"method is {', '.join(get_args(Method))}, got {method!r}.")
        return method

    def _check_item(self, item: ItemId, method: Method) -> None:
        """Raises UnknownItemError for an item that a method cannot give."""
        if method == "grounded":
            self.items.title(item)
        else:
            self._decoder.index.code(item)

    def _ranker(self, method: Method) -> Ranker:
        from genrec.decoding.fusion import Ranker

        constrained = self._decoder if self._decoding.get("writes_identifiers", True) else None
        grounder = self._grounder if method != "constrained" else None
        return Ranker(self._settings, self.items, constrained, grounder)

    @property
    def method(self) -> Method:
        """How items are found unless asked otherwise: as evaluation found them."""
        return self._settings.method

    def _check_identifiers(self) -> None:
        if not self._decoding.get("writes_identifiers", True):
            raise RunError(
                "This model writes titles alone: no family of its mixture asks for identifiers. Use recommend() with "
                "method='grounded', or train with next_item in tasks.mixture."
            )

    def extend(self, items: ItemCatalog, titles_only: bool = False) -> Recommender:
        """Returns a recommender that knows these items too, by the codes that ``ItemIndex.extend`` gives them.

        Nothing is trained: an item can be recommended where the model knows all tokens of its code, as those of
        rq_kmeans and rq_vae made from text. The run's files stay as they are.

        Args:
            items: New ones.
            titles_only: Give them no codes: they are found by their titles alone, with the methods grounded and fused.

        Raises:
            IndexingError: If an item is known already, cannot be named, or has a token that the model never learned.
        """
        index = self._decoder.index
        if titles_only:
            return Recommender(self._decoder, self.items.append(items), self.run_dir, self._users)
        longer = index.extend(items)
        unknown = set(longer.tokens[len(index.tokens) :])
        if unknown:
            new = [item for item in items.item_ids if unknown & set(longer.code(item))]
            raise IndexingError(
                f"{len(new):,} of the {len(items):,} new items, first {new[0]!r}, have tokens that the model never "
                f"learned (method {index.method}). Train with an index of the whole catalogue, or name items by a "
                "method whose tokens stay, such as rq_kmeans or rq_vae from text."
            )
        return self._changed(longer, self.items.append(items))

    def remove(self, items: Collection[ItemId]) -> Recommender:
        """Returns a recommender without these items: it neither recommends them nor reads them in histories.

        Raises:
            UnknownItemError: If an item is not in the index.
        """
        for item in items:
            self.items.title(item)  # says what is wrong with an unknown one
        index, gone = self._decoder.index, set(items)
        index = index.remove([item for item in items if item in index.codes])
        return self._changed(index, self.items.select([i for i in self.items.item_ids if i not in gone]))

    def _changed(self, index: ItemIndex, items: ItemCatalog) -> Recommender:
        from genrec.decoding.beam import ConstrainedDecoder

        renderer = self._decoder.renderer.with_index(index)
        return Recommender(
            ConstrainedDecoder(self._decoder.model, renderer), items, self.run_dir, self._users
        )

    def check_data(self, folder: str | Path) -> None:
        """Does nothing where a prepared data set is whole, and the one that the model was trained on.

        Ask before measuring a model that came from elsewhere.

        Args:
            folder: What ``genrec prepare`` wrote.

        Raises:
            DataError: If it is no prepared data set, was changed since, or the model was trained on another or on
                another split of it, so that what it holds out may have been learned.
        """
        self._decoder.model.check_data(check_manifest(folder)["split_sha256"])

    def history(self, user_id: UserId, include_held_out: bool = False) -> list[ItemId]:
        """Returns a user's items, oldest first, as evaluation saw them, the longest where it saw several.

        Args:
            user_id: A user of the run.
            include_held_out: Whether what was held out is appended.

        Raises:
            RunError: If the run carries no histories (a run from the Hub).
            DataError: If the user is unknown, or too short to be evaluated.
        """
        path = self.run_dir / HISTORIES
        if not path.exists():
            raise RunError(f"{self.run_dir} carries no user histories; give the history itself.")
        table = pa_parquet.read_table(path, filters=[("user_id", "=", str(user_id))])
        if table.num_rows == 0:
            users = pa_parquet.read_table(path, columns=["user_id"])["user_id"].to_pylist()
            raise DataError(
                f"User {user_id!r} is not among the {len(users):,} evaluated users of this run."
                f"{nearest(str(user_id), users)} Give a history instead."
            )
        row = max(table.to_pylist(), key=lambda row: len(row["history"]))
        return row["history"] + (row["targets"] if include_held_out else [])

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes what another machine needs to recommend, and says how many MB it is.

        That is the adapter with its identifier rows, tokenizer, index, catalogue (with what ``extend`` and ``remove`` changed), card,
        recipe and metrics; the frozen backbone is named, not written, and user histories stay here. The home folder is called ``~`` in it.

        Raises:
            RunError: If the disk refuses.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            injected = (
                self._settings.method != "constrained" and self._settings.grounding.inject == "collaborative"
            )
            teacher = [self._settings.grounding.collaborative] if injected else []
            for name in (*_SHARED, *teacher):
                source = self.run_dir / name
                if source.is_dir():
                    shutil.copytree(source, folder / name, dirs_exist_ok=True, ignore=_OF_USERS)
                elif source.exists():
                    shutil.copyfile(source, folder / name)
                without_private_paths(folder / name)
            self._write_catalogue(folder)
            seal(folder, teacher)
        except OSError as error:
            raise RunError(f"Could not write {folder}: {error}") from error
        say(f"  saved {folder} ({megabytes(folder):.1f} MB)")
        return folder

    def _write_catalogue(self, folder: Path) -> None:
        """Puts the catalogue and its index in the place of the run's, where they were changed, and says so in the card."""
        from genrec.models.recommender_model import ABOUT_FILE

        index, before = self._decoder.index, ItemCatalog.load(self.run_dir / ITEMS).item_ids
        if index.hash == self._decoder.model.about["index_hash"] and self.items.item_ids == before:
            return
        self.items.write(folder / ITEMS)
        shutil.rmtree(folder / INDEX)
        index.save(folder / INDEX)
        about = read_json(folder / MODEL / ABOUT_FILE)
        write_json(folder / MODEL / ABOUT_FILE, about | {"index_hash": index.hash})
        added, removed = len(set(self.items.item_ids) - {*before}), len(set(before) - {*self.items.item_ids})
        if (card := folder / "README.md").exists():
            with card.open("a", encoding="utf-8") as file:
                file.write(
                    "\n## Changed catalogue\n\nWhat stands above was measured before the catalogue changed: "
                    f"{added:,} item{' was' if added == 1 else 's were'} added and {removed:,} removed, and nothing was trained.\n"
                )

    def merge_and_save(
        self,
        folder: str | Path,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        *,
        history: Sequence[ItemId] | None = None,
        user_id: UserId | None = None,
    ) -> Path:
        """Writes the model as an ordinary transformers folder, which opens without genrec, and says how many MB it is.

        It holds the backbone with the adapter added in, identifier tokens in embedding, output layer and tokenizer. Engines that
        know nothing of genrec run it; ranking by items, and the index that says which tokens name which, stay here.

        Args:
            folder: To write.
            dtype: Type of its weights; ``"auto"`` is that of the backbone in training.
            history: Of the one user whose model it is, where adapters are personal; an empty one is a user of whom nothing is
                known.
            user_id: Who that is, if known; with no history the run's own.

        Raises:
            ModelError: If such a folder cannot hold the model (``model.whole_words``), or adapters are personal and nobody is
                named.
            RunError: If the disk refuses.
        """
        folder = Path(folder)
        self._decoder.model.merge_and_save(folder, dtype, self._vector(history, user_id))
        say(f"  saved {folder} ({megabytes(folder):.1f} MB)")
        return folder

    def _vector(self, history: Sequence[ItemId] | None, user_id: UserId | None) -> torch.Tensor | None:
        """Returns the vector of a user, None where nobody is named or adapters are the same for everyone."""
        if self._users is None or (history is None and user_id is None):
            return None
        import torch

        histories = None if history is None else [history]
        users = self._asked(histories, [user_id], 1, False, (), None, "error")[1]
        return torch.from_numpy(users[0]) if users is not None else None

    def export(
        self,
        folder: str | Path,
        engine: Engine = "transformers",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        *,
        history: Sequence[ItemId] | None = None,
        user_id: UserId | None = None,
    ) -> Path:
        """Writes what another engine needs to recommend with this model, and says how many MB it is.

        That is the folder of ``merge_and_save`` with neutral generation settings, the items with the token ids that name
        them, their trie as flat integer arrays, and a README of how the engine loads it, and of what its beam search can
        and cannot do. ``genrec.decoding.export.ExportedItems.read`` reads the items back.

        Args:
            folder: New, empty, or an earlier export, which is replaced.
            engine: ``"transformers"``, ``"vllm"`` or ``"sglang"``.
            dtype: As ``merge_and_save``.
            history: As ``merge_and_save``.
            user_id: As ``merge_and_save``.

        Raises:
            ModelError: If the engine is unknown, or an ordinary folder cannot hold the model.
            RunError: If the folder holds anything else, or the disk refuses.
        """
        from genrec.decoding.export import write_export

        folder = Path(folder)
        decoder = self._decoder
        user = self._vector(history, user_id)
        write_export(folder, decoder.model, decoder.renderer, self.items, engine, dtype, user)
        say(f"  exported {folder} ({megabytes(folder):.1f} MB)")
        return folder

    def push_to_hub(self, repo_id: str, private: bool = True, dry_run: bool = False) -> dict[str, int]:
        """Uploads what ``save_pretrained`` writes to the Hub and returns ``{file: bytes}``.

        The catalogue goes along: see that its terms allow it.

        Args:
            repo_id: ``org/name``.
            private: Whether a new repository is private.
            dry_run: Only say what would go up.

        Raises:
            RunError: As ``genrec.core.hub.push``.
        """
        check_repo_id(repo_id)
        about = read_json(self.run_dir / "metrics.json") if (self.run_dir / "metrics.json").exists() else {}
        say(
            f"  titles and ids of items go along; terms of their data: {terms_in_words(about.get('data', {}))}"
        )
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save_pretrained(scratch)
            # Of another model that was there before.
            replaces = [f"{name}/*" for name in (MODEL, INDEX, DECODING, USERS)]
            return push(
                folder,
                repo_id,
                "model",
                private=private,
                dry_run=dry_run,
                message="genrec run",
                replaces=replaces,
            )


def _stacked(users: Sequence[np.ndarray | None]) -> np.ndarray | None:
    found = [user for user in users if user is not None]
    return np.stack(found) if found else None


def _item_ids(given: Any, what: str) -> list[ItemId]:
    """Returns a list of item ids; raises DataError where it is none."""
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise DataError(f"{what} must be a list of item ids, got {given!r}. Write [...].")
    items = list(given)
    for item in items:
        if not isinstance(item, str):
            wanted = f" Write {str(item)!r}." if isinstance(item, Integral) else ""
            raise DataError(f"{what} must be a list of item ids, which are texts, and has {item!r}.{wanted}")
    return items


def _at_least_one(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise DataError(f"{name} must be a whole number, got {value!r}.") from error
    if number < 1 or isinstance(value, bool):
        raise DataError(f"{name} must be 1 or more, got {value!r}.")
    return number


def _folded(title: str) -> str:
    return " ".join(title.split()).casefold()
