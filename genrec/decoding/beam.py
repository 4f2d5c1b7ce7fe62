"""Beam search under the trie of all items: every result exists, is distinct and is allowed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch

from genrec.core.errors import ModelError
from genrec.core.processes import divided
from genrec.core.progress import progress
from genrec.data_prep import ItemId
from genrec.indexing import ItemIndex, ItemTrie
from genrec.models.recommender_model import Prefixes, RecommenderModel
from genrec.tasks import Renderer

Ranking = list[tuple[ItemId, float]]
Scores = Literal["trained", "vocabulary", "allowed"]

NEVER = float("-inf")
# Prefixes that exact search reads at once.
AT_ONCE = 256
# Batches that are put in order of length together, so that any number of users can be streamed.
BATCHES_AT_ONCE = 64


@dataclass(frozen=True)
class BeamLevel:
    """What was kept at one level of a beam search, of each prompt.

    An item whose code is complete is a beam of the level at which it became so, and of no later one.

    Attributes:
        nodes: ``(prompts, beams)`` nodes of the trie.
        scores: ``(prompts, beams)`` log-probabilities, best first; minus infinity is no beam.
        parents: ``(prompts, beams)`` which beam of the level before each goes on from.
    """

    nodes: np.ndarray
    scores: np.ndarray
    parents: np.ndarray


@dataclass(frozen=True)
class ExactRanking:
    """The best items, and why none is missing.

    Attributes:
        ranking: Items with their scores, best first.
        best_unopened: Score of the best prefix that was not gone on from. Going on only lowers a score, so no item
            below it is better than the last of the ranking; minus infinity is that every prefix was read.
        opened: Prefixes that were read.
    """

    ranking: Ranking
    best_unopened: float
    opened: int


class ConstrainedDecoder:
    """Ranks items for histories with a tuned model.

    A prompt is encoded once. At each level the beams' next tokens are scored, and only children of the trie below which
    an item may come are kept. The score of an item is the sum of the log-probabilities of its tokens, of which there
    are three conventions (``scores``):

    - ``"trained"``: what training maximises, ``log p(token | prompt, tokens before, level, not excluded)``: among the
      identifier tokens of the level (or all words, ``train.softmax_over``) but those below which every item is excluded.
    - ``"vocabulary"``: among all words, whatever is excluded; what transformers' ``generate`` adds up.
    - ``"allowed"``: among the children of the trie below which an item may come; ``generate``'s with
      ``renormalize_logits``. Scores of all items then are the logarithms of probabilities that add up to 1.

    The beams of a prompt that are kept are those that transformers' beam search keeps. Of equal scores, a complete item
    comes before a prefix, then the order of the prefixes decides, then that of the tokens. Items that share a code have its
    score, and come in catalogue order.
    """

    def __init__(self, model: RecommenderModel, renderer: Renderer) -> None:
        self.model, self.renderer = model, renderer
        self.index: ItemIndex = renderer.index
        self.item_ids = self.index.item_ids
        trie = self.index.trie_of_tokens
        self.depth, self.num_items = trie.depth, trie.num_items
        self.device = next(model.parameters()).device

        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).to(self.device)

        self._child_start, self._child_token = tensor(trie.child_start), tensor(trie.child_token)
        self._leaf_start, self._leaf_end = tensor(trie.leaf_start), tensor(trie.leaf_end)
        self._leaf_of_item = trie.leaf_of_item
        self._position = {item: row for row, item in enumerate(self.item_ids)}

    def rank(
        self,
        histories: Sequence[Sequence[ItemId]],
        k: int,
        exclude: Sequence[Collection[ItemId]] | None = None,
        beams: int | None = None,
        *,
        allow: Sequence[Collection[ItemId] | None] | None = None,
        users: np.ndarray | None = None,
        scores: Scores = "trained",
        trace: list[BeamLevel] | None = None,
    ) -> list[Ranking]:
        """Returns, for each history, the best allowed items that beam search finds, with their scores, best first.

        A list has ``min(k, allowed items)`` entries: with at least k beams no branch without an allowed
        item is ever kept, so k items remain whatever is excluded.

        Args:
            histories: Items each user took, oldest first; may be empty.
            k: Items wanted.
            exclude: Items that must not come, for each history; None excludes nothing.
            beams: Prefixes kept at each level, at least k; default ``max(k, 20)`` (LC-Rec's width).
            allow: The only items that may come, for each history; None allows all, also of a single history.
            users: ``(histories, user_size)`` vectors, for a model of personal adapters.
            scores: The convention, see above.
            trace: Receives what was kept at each level.

        Raises:
            UnknownItemError: If a history, an exclusion or an allow-list names an unknown item.
            ModelError: If the model's scores are no numbers, or it needs vectors of users and there are none.
        """
        if not histories:
            return []
        width = max(k, beams or 20)
        wanted = _Filter.of(self, len(histories), exclude, allow)
        prompts = [self.renderer.prompt_ids(history) for history in histories]
        # Users who ask the same are answered once.
        first: dict[tuple[Any, ...], int] = {}
        who = _keys(users, len(prompts))
        asked = [(tuple(prompt), who[row], wanted.key(row)) for row, prompt in enumerate(prompts)]
        for row, key in enumerate(asked):
            first.setdefault(key, row)
        rows = list(first.values()) if trace is None else list(range(len(prompts)))
        read = self._read([prompts[row] for row in rows], None if users is None else users[rows])
        found = self._search(read, wanted.rows(rows), k, width, scores, trace)
        answers = dict(zip(rows, found, strict=True))
        return [
            self._items(answers[row if trace is not None else first[key]], wanted, row, k)
            for row, key in enumerate(asked)
        ]

    @torch.inference_mode()
    def _search(
        self,
        read: tuple[torch.Tensor, Prefixes],
        wanted: _Filter,
        k: int,
        width: int,
        convention: Scores,
        trace: list[BeamLevel] | None,
    ) -> list[list[tuple[int, float]]]:
        """Returns the finished nodes of each prompt that was read with their scores, best first."""
        states, prefixes = read
        batch = len(states)
        answers: list[list[tuple[int, float]]] = [[]] * batch
        alive = list(range(batch))
        nodes = torch.zeros(batch, 1, dtype=torch.long, device=self.device)
        scores = torch.zeros(batch, 1, device=self.device)
        # Beams that go on, by their place among all beams.
        going = torch.zeros(batch, 1, dtype=torch.long, device=self.device)
        done_nodes = torch.zeros(batch, 0, dtype=torch.long, device=self.device)
        done_scores = torch.zeros(batch, 0, device=self.device)
        for level in range(self.depth):
            ended = scores.masked_fill(self._inner(nodes), NEVER)
            tokens, children, grown = self._children(
                states, nodes.gather(1, going), level, wanted, convention
            )
            grown = grown + scores.gather(1, going)[..., None]
            best, order = _best(torch.cat([ended, grown.flatten(1)], 1), 2 * width)
            beams, fan = nodes.shape[1], grown.shape[-1]
            # As in transformers' beam search: an item is complete when it is among the best in the step after its last
            # token, and as many prefixes go on as beams were asked for.
            is_end = order < beams
            complete, place = best.masked_fill(~is_end, NEVER), order.clamp(max=beams - 1)
            done_nodes, done_scores = _merged(
                (done_nodes, done_scores), (nodes.gather(1, place)[:, :width], complete[:, :width]), width
            )
            scores, kept = _best(best.masked_fill(is_end, NEVER), width)
            edge = (order.gather(1, kept) - beams).clamp(min=0)
            nodes, token = children.flatten(1).gather(1, edge), tokens.flatten(1).gather(1, edge)
            parents = edge // fan
            if trace is not None:
                kept_at = (nodes, scores, going.gather(1, parents))
                trace.append(BeamLevel(*(values.cpu().numpy() for values in kept_at)))

            inner = self._inner(nodes) & (scores > NEVER)
            over = ~inner.any(1)
            if trace is None and done_scores.shape[1] >= k:
                # Of log-probabilities the best prefix bounds every item below it.
                over |= done_scores[:, k - 1] >= scores[:, 0]
            if bool(over.all()) or (trace is None and bool(over.any())):
                ends = (nodes, scores.masked_fill(inner, NEVER))
                for row, *found in zip(alive, *_merged((done_nodes, done_scores), ends, width), strict=True):
                    answers[row] = _pairs(*found)
                going_on = (~over).nonzero()[:, 0]
                if not len(going_on):
                    return answers
                rows = going_on.tolist()
                alive, wanted = [alive[row] for row in rows], wanted.rows(rows)
                prefixes = prefixes.select(going_on)
                nodes, scores, token, parents, inner, done_nodes, done_scores = (
                    values[going_on]
                    for values in (nodes, scores, token, parents, inner, done_nodes, done_scores)
                )
            # Only prefixes that go on are read; those of a row that has fewer are read for nothing.
            most = int(inner.sum(1).max())
            going = torch.sort(inner, dim=1, descending=True, stable=True)[1][:, :most]
            states, prefixes = self.model.go_on(
                prefixes, parents.gather(1, going), token.gather(1, going) + self.model.first_id
            )
        raise AssertionError("a code is longer than the trie is deep")

    def rank_exact(
        self,
        histories: Sequence[Sequence[ItemId]],
        k: int,
        exclude: Sequence[Collection[ItemId]] | None = None,
        *,
        allow: Sequence[Collection[ItemId] | None] | None = None,
        users: np.ndarray | None = None,
        scores: Scores = "trained",
    ) -> list[ExactRanking]:
        """Returns, for each history, the k best allowed items of the whole catalogue, with proof that none is missing.

        Beam search gives k items and so a score to beat. A prefix whose score is not above the k-th best so far cannot lead
        to a better item, since log-probabilities only lower it; every other prefix is read, the best first. What beam search
        of a given width misses is what this finds. The cost is that of the prefixes that are better than the k-th item:
        few where a model is sure, most of the trie where it is not.

        Args:
            histories: As ``rank``.
            k: Items wanted.
            exclude: As ``rank``.
            allow: As ``rank``.
            users: As ``rank``.
            scores: As ``rank``.

        Raises:
            UnknownItemError: As ``rank``.
            ModelError: As ``rank``.
        """
        wanted = _Filter.of(self, len(histories), exclude, allow)
        found = []
        for row, history in enumerate(histories):
            who = None if users is None else users[[row]]
            read, own = self._read([self.renderer.prompt_ids(history)], who), wanted.rows([row])
            (beams,) = self._search(read, own, k, max(k, 20), scores, None)
            search = _ExactSearch(self, own, k, scores, dict(beams))
            search.run(*read)
            ranking = self._items(search.best(), wanted, row, k)
            found.append(ExactRanking(ranking, search.best_unopened, search.opened))
        return found

    def score(
        self,
        histories: Sequence[Sequence[ItemId]],
        items: Sequence[Sequence[ItemId]],
        exclude: Sequence[Collection[ItemId]] | None = None,
        *,
        allow: Sequence[Collection[ItemId] | None] | None = None,
        users: np.ndarray | None = None,
        scores: Scores = "trained",
    ) -> list[list[float]]:
        """Returns, for each history, the scores of given items, in their order: those that ``rank_exact`` would give them.

        A prefix that several of the items share is read once. An item that may not come has minus infinity.

        Args:
            histories: As ``rank``.
            items: To score, for each history.
            exclude: As ``rank``.
            allow: As ``rank``.
            users: As ``rank``.
            scores: As ``rank``.

        Raises:
            UnknownItemError: As ``rank``, also for an item to score.
            ModelError: As ``rank``.
        """
        if not histories:
            return []
        wanted = _Filter.of(self, len(histories), exclude, allow)
        trie = self.index.trie_of_tokens
        asked: list[list[int]] = []  # rows of items, of each history
        for each in items:
            for item in each:
                self.index.code(item)  # says what is wrong with an unknown one
            asked.append([self._position[item] for item in each])
        paths = {row: _path(trie, int(trie.leaf_of_item[row])) for each in asked for row in set(each)}
        states, prefixes = self._read([self.renderer.prompt_ids(history) for history in histories], users)
        found = []
        for number, wished in enumerate(asked):
            own, one = wanted.rows([number]), torch.tensor([number], device=self.device)
            # In the order of the codes, so that what shares a prefix is read together.
            open_rows = sorted(
                {row for row in wished if wanted.lets(number, row)},
                key=lambda row: int(trie.leaf_of_item[row]),
            )
            known: dict[int, float] = {}
            for start in range(0, len(open_rows), AT_ONCE):
                rows = open_rows[start : start + AT_ONCE]
                values = self._follow(
                    states[one], prefixes.select(one), [paths[row] for row in rows], own, scores
                )
                known.update(zip(rows, values, strict=True))
            found.append([known.get(row, NEVER) for row in wished])
        return found

    @torch.inference_mode()
    def _follow(
        self,
        states: torch.Tensor,
        prefixes: Prefixes,
        paths: Sequence[Sequence[int]],
        wanted: _Filter,
        convention: Scores,
    ) -> list[float]:
        """Returns the log-probabilities of paths of nodes from the root, after one prompt that was read."""
        nodes, scores = [0], torch.zeros(1, 1, device=self.device)
        ended: dict[int, float] = {}
        for level in range(self.depth):
            steps = sorted({(path[level], path[level + 1]) for path in paths if len(path) > level + 1})
            place = {node: number for number, node in enumerate(nodes)}
            parent = torch.tensor([[place[above] for above, _ in steps]], device=self.device)
            at = torch.tensor([nodes], device=self.device)
            tokens, _, grown = self._children(states, at, level, wanted, convention)
            nodes = [below for _, below in steps]
            # The node behind edge e is e + 1.
            edge = torch.tensor([nodes], device=self.device) - 1 - self._child_start[at.gather(1, parent)]
            of_child = parent * grown.shape[-1] + edge
            scores = scores.gather(1, parent) + grown.flatten(1).gather(1, of_child)
            ended.update(zip(nodes, scores[0].tolist(), strict=True))
            going = self._inner(torch.tensor(nodes, device=self.device)).nonzero()[:, 0]
            if not len(going):
                break
            token = tokens.flatten(1).gather(1, of_child)[:, going]
            nodes, scores = [nodes[step] for step in going.tolist()], scores[:, going]
            states, prefixes = self.model.go_on(prefixes, parent[:, going], token + self.model.first_id)
        return [ended[path[-1]] for path in paths]

    def missed_by_beams(
        self,
        histories: Sequence[Sequence[ItemId]],
        k: int = 10,
        exclude: Sequence[Collection[ItemId]] | None = None,
        widths: Sequence[int] = (20, 50, 100),
        label: str = "exact search",
        users: np.ndarray | None = None,
    ) -> dict[str, float]:
        """Returns how often beam search of a width misses an item that ``rank_exact`` finds.

        ``missed@W``: share of the true top-k items that W beams do not return; ``users_missing@W``: share of histories for
        which they miss one or more; ``prefixes``: mean number that exact search read.

        Args:
            histories: As ``rank``.
            k: Items of a list.
            exclude: As ``rank``.
            widths: Of beam search, each at least k.
            label: Of the progress bar; an empty one shows none.
            users: As ``rank``.
        """
        missed = {width: np.zeros((len(histories), 2)) for width in widths}
        opened = []
        rows: Iterable[int] = range(len(histories))
        for row in progress(rows, len(histories), label) if label else rows:
            history, out = [histories[row]], None if exclude is None else [exclude[row]]
            who = None if users is None else users[[row]]
            (exact,) = self.rank_exact(history, k, out, users=who)
            best = {item for item, _ in exact.ranking}
            opened.append(exact.opened)
            for width in widths:
                (found,) = self.rank(history, k, out, width, users=who)
                missed[width][row] = len(best - {item for item, _ in found}), len(best)
        about = {"users": float(len(histories)), "k": float(k), "prefixes": float(np.mean(opened))}
        for width, counts in missed.items():
            about[f"missed@{width}"] = float(counts[:, 0].sum() / counts[:, 1].sum())
            about[f"users_missing@{width}"] = float((counts[:, 0] > 0).mean())
        return about

    def stream(
        self,
        histories: Iterable[Sequence[ItemId]],
        k: int,
        exclude: Iterable[Collection[ItemId]] | None = None,
        beams: int | None = None,
        batch_size: int = 32,
        *,
        allow: Iterable[Collection[ItemId] | None] | None = None,
        users: Iterable[np.ndarray] | None = None,
        scores: Scores = "trained",
    ) -> Iterator[Ranking]:
        """Yields ``rank`` of any number of histories, in their order, in batches of near lengths.

        No more than ``64 * batch_size`` of them are held at once.
        """
        source, out = iter(histories), None if exclude is None else iter(exclude)
        only = None if allow is None else iter(allow)
        who = None if users is None else iter(users)
        size = batch_size * BATCHES_AT_ONCE
        while held := list(islice(source, size)):
            held_out = None if out is None else list(islice(out, size))
            held_only = None if only is None else list(islice(only, size))
            held_users = None if who is None else np.stack(list(islice(who, size)))
            order = np.argsort([len(history) for history in held], kind="stable").tolist()
            results: dict[int, Ranking] = {}
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                found = self.rank(
                    [held[row] for row in rows],
                    k,
                    None if held_out is None else [held_out[row] for row in rows],
                    beams,
                    allow=None if held_only is None else [held_only[row] for row in rows],
                    users=None if held_users is None else held_users[rows],
                    scores=scores,
                )
                results.update(zip(rows, found, strict=True))
            yield from (results[row] for row in range(len(held)))

    def rank_all(
        self,
        histories: Sequence[Sequence[ItemId]],
        k: int,
        exclude: Sequence[Collection[ItemId]] | None = None,
        beams: int | None = None,
        batch_size: int = 32,
        label: str = "ranking",
        *,
        allow: Sequence[Collection[ItemId] | None] | None = None,
        users: np.ndarray | None = None,
        scores: Scores = "trained",
    ) -> list[Ranking]:
        """Returns ``rank`` of any number of histories, divided among the processes of ``accelerate launch``.

        Every process has to call it, with the same histories, and gets the rankings of all.

        Args:
            histories: As ``rank``.
            k: Items wanted.
            exclude: As ``rank``.
            beams: As ``rank``.
            batch_size: Histories that are ranked at once.
            label: Of the progress bar; an empty one shows none.
            allow: As ``rank``.
            users: As ``rank``.
            scores: As ``rank``.
        """

        def work(rows: Sequence[int]) -> Iterable[Ranking]:
            found = self.stream(
                (histories[row] for row in rows),
                k,
                None if exclude is None else (exclude[row] for row in rows),
                beams,
                batch_size,
                allow=None if allow is None else (allow[row] for row in rows),
                users=None if users is None else (users[row] for row in rows),
                scores=scores,
            )
            return progress(found, len(rows), label) if label else found

        return divided(len(histories), work)

    @torch.inference_mode()
    def _read(
        self, prompts: Sequence[Sequence[int]], users: np.ndarray | None = None
    ) -> tuple[torch.Tensor, Prefixes]:
        """Returns what the model says of each prompt; equal ones of one user are read once."""
        keys = list(zip(map(tuple, prompts), _keys(users, len(prompts)), strict=True))
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        rows = sorted(first.values())
        words = who = None
        if self.model.whole_words is not None:
            words = [self.renderer.whole_word_ids(prompts[row]) for row in rows]
        if users is not None:
            who = torch.from_numpy(users[rows]).to(self.device)
        asked = [prompts[row] for row in rows]
        states, prefixes = self.model.read(asked, words, keep=self.depth > 1, users=who)
        if len(rows) == len(prompts):
            return states, prefixes
        place = {row: number for number, row in enumerate(rows)}
        of = torch.tensor([place[first[key]] for key in keys], device=self.device)
        return states[of], prefixes.select(of)

    def _inner(self, nodes: torch.Tensor) -> torch.Tensor:
        return self._child_start[nodes + 1] > self._child_start[nodes]

    def _children(
        self, states: torch.Tensor, nodes: torch.Tensor, level: int, wanted: _Filter, convention: Scores
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns tokens, nodes and log-probabilities of the children of nodes, each ``(prompts, beams, children)``.

        A log-probability is minus infinity where there is no child, or no allowed item below it.
        """
        start = self._child_start[nodes]
        count = self._child_start[nodes + 1] - start
        edge = torch.arange(int(count.max()), device=self.device)
        real = edge < count[..., None]
        edge = (start[..., None] + edge).clamp(max=len(self._child_token) - 1)
        # The trie's integers are small; torch gathers by int64 alone.
        tokens, children = self._child_token[edge].long(), (edge + 1).long()
        allowed = real
        if wanted.is_needed:
            allowed = real & wanted.has_any(self._leaf_start[children], self._leaf_end[children])
        of_all = (*nodes.shape, len(self.index.tokens))
        if convention == "vocabulary":
            log_probs = self.model.level_log_probs(states, level, over="vocabulary")
        elif convention == "allowed":
            out = torch.ones(of_all, dtype=torch.bool, device=self.device)
            out[(*torch.nonzero(allowed, as_tuple=True)[:2], tokens[allowed])] = False
            log_probs = self.model.level_log_probs(states, level, out, over="level")
        else:
            excluded = None
            if allowed is not real:
                gone = real & ~allowed
                excluded = torch.zeros(of_all, dtype=torch.bool, device=self.device)
                excluded[(*torch.nonzero(gone, as_tuple=True)[:2], tokens[gone])] = True
            log_probs = self.model.level_log_probs(states, level, excluded)
        found = log_probs.gather(-1, tokens).float().masked_fill(~allowed, NEVER)
        if bool(found.isnan().any()):
            raise ModelError(
                f"The model's scores of identifier tokens of level {level} are not numbers (NaN). Its weights have overflowed "
                "or were broken in training: look for NaN in the run's losses, lower train.learning_rate, or load it "
                "with dtype='float32'."
            )
        return tokens, children, found

    def _items(self, found: Sequence[tuple[int, float]], wanted: _Filter, row: int, k: int) -> Ranking:
        """Returns the items that end at nodes, with the scores of these."""
        trie = self.index.trie_of_tokens
        ranking: Ranking = []
        for node, score in found:
            if not self.index.shared:
                ranking.append((self.item_ids[trie.node_item[node]], score))
            else:
                ranking += [
                    (self.item_ids[item], score) for item in trie.items_at(node) if wanted.lets(row, item)
                ]
            if len(ranking) >= k:
                break
        return ranking[:k]


class _Filter:
    """Which items may come, for each prompt: all but some, or only some.

    Attributes:
        leaves: For each prompt, the leaves of the trie that are named, in order.
        only: For each prompt, whether these alone may come; else they may not.
        is_needed: Whether any prompt has a filter.
    """

    def __init__(self, decoder: ConstrainedDecoder, leaves: list[np.ndarray], only: list[bool]) -> None:
        self.decoder, self.leaves, self.only = decoder, leaves, only
        self.is_needed = any(only) or any(map(len, leaves))
        if self.is_needed:
            named = [torch.from_numpy(found) for found in leaves]
            self._named = torch.nn.utils.rnn.pad_sequence(
                named, batch_first=True, padding_value=decoder.num_items
            ).to(decoder.device)
            self._only = torch.tensor(only, device=decoder.device)[:, None]

    @classmethod
    def of(
        cls,
        decoder: ConstrainedDecoder,
        num_prompts: int,
        exclude: Sequence[Collection[ItemId]] | None,
        allow: Sequence[Collection[ItemId] | None] | None,
    ) -> _Filter:
        """Returns the filter of exclusions and allow-lists; raises UnknownItemError for an item that is unknown."""
        known: dict[int, np.ndarray] = {}

        def leaves_of(items: Collection[ItemId]) -> np.ndarray:
            # One list is often given to many.
            if id(items) not in known:
                try:
                    rows = [decoder._position[item] for item in items]
                except KeyError:
                    rows = [decoder._position[item] for item in items if decoder.index.code(item)]
                known[id(items)] = np.unique(decoder._leaf_of_item[rows].astype(np.int64))
            return known[id(items)]

        leaves, only = [], []
        for row in range(num_prompts):
            out = leaves_of(exclude[row]) if exclude is not None else np.zeros(0, np.int64)
            alone = allow[row] if allow is not None else None
            only.append(alone is not None)
            leaves.append(out if alone is None else np.setdiff1d(leaves_of(alone), out, assume_unique=True))
        return cls(decoder, leaves, only)

    def rows(self, rows: Sequence[int]) -> _Filter:
        """Returns the filter of these prompts."""
        return _Filter(self.decoder, [self.leaves[row] for row in rows], [self.only[row] for row in rows])

    def key(self, row: int) -> bytes:
        """Returns what is equal for equal filters."""
        return bytes([self.only[row]]) + self.leaves[row].tobytes()

    def lets(self, row: int, item: int) -> bool:
        """Returns whether an item, by its row number, may come."""
        leaves, leaf = self.leaves[row], self.decoder._leaf_of_item[item]
        place = int(np.searchsorted(leaves, leaf))
        return (place < len(leaves) and leaves[place] == leaf) == self.only[row]

    def has_any(self, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Returns whether any leaf of ``first : last`` may come; each ``(prompts, beams, children)``."""
        # How many of the named ones lie in a range is a difference of two places among them, whatever the catalogue's size.
        first, last = first.long(), last.long()
        below_last = torch.searchsorted(self._named, last.flatten(1))
        named = below_last - torch.searchsorted(self._named, first.flatten(1))
        left = torch.where(self._only, named, (last - first).flatten(1) - named)
        return (left > 0).view(first.shape)


class _ExactSearch:
    """Branch and bound below the trie, for one prompt.

    Attributes:
        best_unopened: As ``ExactRanking``.
        opened: As ``ExactRanking``.
    """

    def __init__(
        self,
        decoder: ConstrainedDecoder,
        wanted: _Filter,
        k: int,
        convention: Scores,
        found: dict[int, float],
    ) -> None:
        self._decoder, self._wanted, self._k, self._convention = decoder, wanted, k, convention
        self._found = found
        self.best_unopened, self.opened = NEVER, 0

    def best(self) -> list[tuple[int, float]]:
        """Returns the k best nodes so far with their scores; equal ones in the order of their codes."""
        leaf = self._decoder.index.trie_of_tokens.leaf_start
        ordered = sorted(self._found.items(), key=lambda pair: (-pair[1], leaf[pair[0]]))
        return ordered[: self._k]

    @torch.inference_mode()
    def run(self, states: torch.Tensor, prefixes: Prefixes) -> None:
        """Reads whatever may lead to an item above the k-th best, from a prompt that was read."""
        root = torch.zeros(1, 1, dtype=torch.long, device=self._decoder.device)
        self._open(states, prefixes, root, root.float(), 0)

    def _open(
        self,
        states: torch.Tensor,
        prefixes: Prefixes,
        nodes: torch.Tensor,
        scores: torch.Tensor,
        level: int,
    ) -> None:
        decoder = self._decoder
        self.opened += nodes.shape[1]
        tokens, children, grown = decoder._children(states, nodes, level, self._wanted, self._convention)
        fan = grown.shape[-1]
        flat, order = torch.sort((grown + scores[..., None]).flatten(), descending=True, stable=True)
        order = order[flat > NEVER]
        flat, nodes = flat[: len(order)], children.flatten()[order]
        inner = decoder._inner(nodes)
        self._found.update(zip(nodes[~inner].tolist(), flat[~inner].tolist(), strict=True))
        best = self.best()
        self._found = dict(best)
        flat, nodes, order = flat[inner], nodes[inner], order[inner]
        tokens, parents = tokens.flatten()[order], order // fan
        for start in range(0, len(nodes), AT_ONCE):
            best = self.best()
            bound = best[-1][1] if len(best) >= self._k else NEVER
            part = slice(start, start + int((flat[start : start + AT_ONCE] > bound).sum()))
            if part.stop > start:
                states, grown_prefixes = decoder.model.go_on(
                    prefixes, parents[None, part], tokens[None, part] + decoder.model.first_id
                )
                self._open(states, grown_prefixes, nodes[None, part], flat[None, part], level + 1)
            if part.stop < min(start + AT_ONCE, len(nodes)):
                self.best_unopened = max(self.best_unopened, float(flat[part.stop]))
                break


def _keys(users: np.ndarray | None, num: int) -> list[bytes]:
    """Returns what is equal for equal users."""
    return [b""] * num if users is None else [vector.tobytes() for vector in users]


def _path(trie: ItemTrie, leaf: int) -> list[int]:
    """Returns the nodes from the root down to a leaf."""
    path, node = [0], 0
    while trie.child_start[node] < trie.child_start[node + 1]:
        first, last = int(trie.child_start[node]) + 1, int(trie.child_start[node + 1]) + 1
        node = first + int(np.searchsorted(trie.leaf_end[first:last], leaf, side="right"))
        path.append(node)
    return path


def _best(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the greatest values of each row and their places, ``(rows, min(count, columns))``, of equal ones the first."""
    if count < values.shape[1]:
        found, places = values.topk(count + 1)
        # topk gives any of equal values; where there are none it is quicker than a sort.
        if not bool(((found[:, 1:] == found[:, :-1]) & (found[:, 1:] > NEVER)).any()):
            return found[:, :count], places[:, :count]
    found, places = torch.sort(values, dim=1, descending=True, stable=True)
    return found[:, :count], places[:, :count]


def _merged(
    a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor], count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the best ``count`` nodes of two lists of them and their scores, each ``(prompts, nodes)``."""
    scores, kept = _best(torch.cat([a[1], b[1]], 1), count)
    return torch.cat([a[0], b[0]], 1).gather(1, kept), scores


def _pairs(nodes: torch.Tensor, scores: torch.Tensor) -> list[tuple[int, float]]:
    pairs = zip(nodes.tolist(), scores.tolist(), strict=True)
    return [(node, score) for node, score in pairs if score > NEVER]
