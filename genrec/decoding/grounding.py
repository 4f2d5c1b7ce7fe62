"""BIGRec's two steps: a title is written freely, and the real items nearest to it are found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

from genrec.core.errors import DataError, ModelError
from genrec.core.files import hash_array, hash_value
from genrec.core.progress import progress
from genrec.data_prep import ItemCatalog, ItemId
from genrec.decoding.beam import Ranking
from genrec.decoding.settings import GroundingSettings
from genrec.decoding.titles import Queries, TitleEncoder, TitleVectors, clean
from genrec.indexing.encoders import encoder_identity
from genrec.models.recommender_model import RecommenderModel, padded
from genrec.tasks import Renderer, TitlePrompts

# The paper's, both from its code: popularity in whole steps, collaborative scores in hundredths below 1 too.
GAMMAS = {
    "popularity": tuple(float(gamma) for gamma in range(100)),
    "collaborative": (*(step / 100 for step in range(100)), *(float(gamma) for gamma in range(1, 100))),
}
_ENTRIES_AT_ONCE = 2**25
_MAX_TOKENS = 512


class Written(NamedTuple):
    """What a model wrote for one history: texts, best first, and the scores of their beams."""

    texts: list[str]
    scores: list[float]


@dataclass(frozen=True)
class Injection:
    """What re-weights distances.

    Attributes:
        item_ids: The items that are known of, in the order of the values.
        values: ``(histories, items)`` for histories of these items: training interactions, or scores; higher is better.
    """

    item_ids: Sequence[ItemId]
    values: Callable[[Sequence[Sequence[int]]], np.ndarray]

    @classmethod
    def of_counts(cls, item_ids: Sequence[ItemId], counts: np.ndarray) -> Injection:
        """Returns the injection of popularity, by ``(items,)`` training interactions."""
        return cls(item_ids, lambda histories: np.broadcast_to(counts, (len(histories), len(counts))))


def normalised(values: np.ndarray) -> np.ndarray:
    """Returns each row of ``(..., n)`` scaled to [0, 1] by its least and greatest value; 0 where these are equal."""
    values = np.asarray(values, np.float64)
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    return (values - low) / np.where(high > low, high - low, 1)


def reweighted(distances: np.ndarray, injected: np.ndarray, gamma: float) -> np.ndarray:
    """Returns BIGRec's re-weighted distances of one history: normalised ``(n,)`` times ``(1 + injected)^-gamma``.

    Args:
        distances: ``(n,)``, at least 0.
        injected: ``(n,)`` in [0, 1], as ``normalised`` has them.
        gamma: At least 0.
    """
    return normalised(distances) * (1 + injected) ** -gamma


class Grounder:
    """Ranks items for histories by what the model writes freely.

    The model writes ``settings.beams`` texts by beam search, identifier tokens left out. A text, cleaned as titles are, becomes
    a vector; a text that is a title has that title's own, so that its distance is 0. The distance D of an item combines
    those of its title to the texts t with scores s:

    - ``first``: D(t_1). ``min``: min_t D(t).
    - ``soft_min``: -T log sum_t p(t) exp(-D(t) / T), with p the softmax of s and T = ``temperature`` times the catalogue's
      ``spread``. It is at least ``min``, grows with every distance, and scales as they do. This is genrec's own.

    With an injection D becomes ``reweighted``; its least and greatest D are over all items, those left out too, or, with an
    approximate search, over the candidates. On the order these have no influence but through the least, which is that of
    the nearest item either way. The score is minus the distance. Equal distances go by beam (``min``), then by catalogue order,
    as do items of one title.

    Attributes:
        settings: How.
        prompts: What asks for a title.
        items: The catalogue; items that the index lacks are among the candidates too.
        vectors: Of its titles.
        gamma: Weight of the injection.
    """

    def __init__(
        self,
        model: RecommenderModel,
        prompts: TitlePrompts,
        items: ItemCatalog,
        settings: GroundingSettings | None = None,
        injection: Injection | None = None,
        gamma: float | None = None,
        folder: Path | None = None,
        encoder: TitleEncoder | None = None,
    ) -> None:
        """Makes the catalogue's vectors, unless they are kept from another time.

        Args:
            model: Tuned to write titles.
            prompts: What asks for a title, as training did.
            items: The catalogue.
            settings: How.
            injection: What ``settings.inject`` names.
            gamma: Default is ``settings.gamma``, or 0.
            folder: Of the vectors; default as ``TitleVectors.make``.
            encoder: In place of the one that ``settings.encoder`` names.

        Raises:
            DataError: If an injection is asked for and not given, or the other way round.
            ModelError: If the base model's vectors are asked for and all weights were trained.
        """
        self.settings = s = settings or GroundingSettings()
        if (s.inject == "none") != (injection is None):
            raise DataError(
                f"inject={s.inject!r}, but {'no' if injection is None else 'an'} injection was given. Give one exactly "
                "where the settings name it."
            )
        self.model, self.prompts, self.items = model, prompts, items
        self.gamma = gamma if gamma is not None else s.gamma or 0.0
        if encoder is None and s.encoder in ("base", "tuned"):
            encoder = model_encoder(model, prompts.renderer, s.encoder == "tuned", s.pooling)
        titles = [items.title(item) for item in items.item_ids]
        self.vectors = TitleVectors.make(titles, encoder or TitleEncoder.of(s.encoder), s.distance, folder)
        self._position = {item: place for place, item in enumerate(items.item_ids)}
        self._injection = injection
        if injection is not None:
            known = [(self._position.get(item, -1), n) for n, item in enumerate(injection.item_ids)]
            self._place, self._column = np.array([pair for pair in known if pair[0] >= 0]).reshape(-1, 2).T
            self._injected = {item: number for number, item in enumerate(injection.item_ids)}
        # Items by title: those of row r are order[start[r] : start[r + 1]], in catalogue order.
        rows = self.vectors.row_of_item
        self._order = np.argsort(rows, kind="stable")
        self._start = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(self.vectors)))])

    def write(
        self,
        histories: Sequence[Sequence[ItemId]],
        batch_size: int = 32,
        label: str = "writing",
        users: np.ndarray | None = None,
    ) -> list[Written]:
        """Returns what the model writes after each history, in batches of near lengths, behind a progress bar of this label.

        Args:
            histories: Items each user took, oldest first; may be empty.
            batch_size: Histories at a time.
            label: An empty one shows no bar.
            users: ``(histories, user_size)`` vectors, for a model of personal adapters.

        Raises:
            UnknownItemError: If an item is not in the catalogue.
        """
        prompts = [self.prompts.prompt_ids(each, self.settings.max_new_tokens) for each in histories]
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
        starts = range(0, len(order), batch_size)
        steps = (order[start : start + batch_size] for start in starts)
        found: list[Written] = [Written([], [])] * len(order)
        for rows in progress(steps, len(starts), label) if label else steps:
            asked = [prompts[row] for row in rows]
            with self.model.answering(None if users is None else torch.from_numpy(users[rows])):
                found_here = self._generate(asked)
            for row, written in zip(rows, found_here, strict=True):
                found[row] = written
        return found

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[list[int]]) -> list[Written]:
        model, s = self.model, self.settings
        backbone, tokenizer = model.backbone, model.tokenizer
        words = self._words(prompts)
        ids, mask = padded(prompts, "right" if model.is_encoder_decoder else "left", model.token_level.device)
        inputs: dict[str, Any] = {"attention_mask": mask}
        if model.is_encoder_decoder:
            inputs["encoder_outputs"] = BaseModelOutput(model._encode(ids, mask, words))
        else:
            inputs["input_ids"] = ids
            if ids.shape[1] > 1:
                # generate would read a prompt once for each beam.
                read = backbone.base_model(
                    input_ids=ids[:, :-1],
                    attention_mask=mask[:, :-1],
                    position_ids=(mask[:, :-1].cumsum(1) - 1).clamp(min=0),
                    use_cache=True,
                )
                read.past_key_values.batch_repeat_interleave(s.beams)
                inputs["past_key_values"] = read.past_key_values
        beams = {"num_return_sequences": s.beams, "length_penalty": s.length_penalty} if s.beams > 1 else {}
        end = tokenizer.eos_token_id
        config = GenerationConfig(
            max_new_tokens=s.max_new_tokens,
            num_beams=s.beams,
            do_sample=False,
            early_stopping=False,
            use_cache=True,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end or 0,
            decoder_start_token_id=model.decoder_start,
            return_dict_in_generate=True,
            output_scores=True,
            **beams,
        )
        generate: Any = backbone.generate
        with _without_defaults(backbone):
            output = generate(
                **inputs,
                generation_config=config,
                logits_processor=LogitsProcessorList([_NoIdentifiers(model.first_id)]),
            )
        answers = output.sequences[:, 1 if model.is_encoder_decoder else ids.shape[1] :]
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        titles = [clean(self.prompts.title(text)) for text in texts]
        scores = output.sequences_scores.tolist() if s.beams > 1 else [0.0] * len(titles)
        edges = range(0, len(titles), s.beams)
        return [Written(titles[at : at + s.beams], scores[at : at + s.beams]) for at in edges]

    def _words(self, prompts: Sequence[list[int]]) -> torch.Tensor | None:
        return _whole_words(self.model, self.prompts.renderer, prompts)

    def match(
        self,
        histories: Sequence[Sequence[ItemId]],
        written: Sequence[Written],
        k: int,
        exclude: Sequence[Collection[ItemId]] | None = None,
    ) -> list[Ranking]:
        """Returns, for each history, the ``min(k, allowed items)`` nearest items with their scores, best first.

        Args:
            histories: Which an injection scores; items it does not know are passed over there.
            written: From ``write``.
            k: Items wanted.
            exclude: Items that must not come, for each history; None excludes nothing.

        Raises:
            UnknownItemError: If an item to exclude is not in the catalogue.
        """
        return self.match_each(histories, written, k, exclude, (self.gamma,))[0]

    def match_each(
        self,
        histories: Sequence[Sequence[ItemId]],
        written: Sequence[Written],
        k: int,
        exclude: Sequence[Collection[ItemId]] | None,
        gammas: Sequence[float],
    ) -> list[list[Ranking]]:
        """Returns ``match`` for each of several weights, which share the distances."""
        found: list[list[Ranking]] = [[] for _ in gammas]
        ids = self.items.item_ids
        for rows in self._blocks(len(written)):
            injected = self._injected_values([histories[row] for row in rows])
            every = self._distances(written, rows, k, exclude)
            for row, (distances, beam, places) in zip(rows, every, strict=True):
                out = self._places(exclude[row]) if exclude is not None else []
                for lists, gamma in zip(found, gammas, strict=True):
                    values = distances
                    if injected is not None:
                        values = reweighted(distances, injected[row - rows[0]][places], gamma)
                    best = _least(values, beam, places, out, k)
                    lists.append([(ids[place], -value) for place, value in best])
        return found

    def _blocks(self, num: int) -> Iterator[range]:
        """Yields stretches of histories, so few that their distances to all items fit into memory."""
        size = max(1, _ENTRIES_AT_ONCE // max(len(self.vectors) * self._used, len(self.items)))
        for first in range(0, num, size):
            yield range(first, min(first + size, num))

    @property
    def _used(self) -> int:
        """How many of a history's texts count."""
        return 1 if self.settings.combine == "first" else self.settings.beams

    def _places(self, items: Collection[ItemId]) -> list[int]:
        for item in items:
            if item not in self._position:
                self.items.title(item)  # says what is wrong with it
        return [self._position[item] for item in items]

    def _injected_values(self, histories: Sequence[Sequence[ItemId]]) -> np.ndarray | None:
        """Returns ``(histories, items of the catalogue)`` in [0, 1], 0 for items that nothing is known of."""
        if self._injection is None:
            return None
        known = [[self._injected[item] for item in each if item in self._injected] for each in histories]
        values = normalised(self._injection.values(known))
        found = np.zeros((len(histories), len(self.items)))
        found[:, self._place] = values[:, self._column]
        return found

    def _distances(
        self,
        written: Sequence[Written],
        rows: range,
        k: int,
        exclude: Sequence[Collection[ItemId]] | None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray]]:
        """Yields of each history the combined distances, the beams that ties go by, and the items they are of, in order."""
        s, used = self.settings, self._used
        texts = [text for row in rows for text in written[row].texts[:used]]
        queries = self.vectors.queries(texts)
        all_items = np.arange(len(self.items))
        if s.search == "exact":
            every = self.vectors.distances(queries)
            titles = self.vectors.row_of_item
            for number, row in enumerate(rows):
                value, beam = self._combined(every[number * used : (number + 1) * used], written[row].scores)
                yield value[titles], None if beam is None else beam[titles], all_items
            return
        num_out = max((len(exclude[row]) for row in rows), default=0) if exclude is not None else 0
        candidates = self.vectors.nearest(queries, max(s.candidates, k) + num_out, s.search, s.search_width)
        for number, row in enumerate(rows):
            own = slice(number * used, (number + 1) * used)
            titles = np.unique(np.concatenate(candidates[own]))
            places = self._items_of(titles)
            out = set(self._places(exclude[row])) if exclude is not None else set()
            if len(places) - np.isin(places, list(out)).sum() < min(k, len(self.items) - len(out)):
                titles, places = np.arange(len(self.vectors)), all_items
            part = Queries(queries.vectors[own], queries.row[own])
            value, beam = self._combined(self.vectors.distances(part, titles), written[row].scores)
            at = np.searchsorted(titles, self.vectors.row_of_item[places])
            yield value[at], None if beam is None else beam[at], places

    def _items_of(self, titles: np.ndarray) -> np.ndarray:
        found = [self._order[self._start[row] : self._start[row + 1]] for row in titles]
        return np.sort(np.concatenate(found))

    def _combined(
        self, distances: np.ndarray, scores: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns of ``(beams, titles)`` distances one for each title, and the beam that ties go by, if they do."""
        if self.settings.combine == "first":
            return distances[0], None
        if self.settings.combine == "min":
            return distances.min(0), distances.argmin(0)
        temperature = self.settings.temperature * (self.vectors.spread or 1.0)
        return soft_min(distances, scores, temperature), None

    def figures(
        self, histories: Sequence[Sequence[ItemId]], written: Sequence[Written], rankings: Sequence[Ranking]
    ) -> dict[str, Any]:
        """Returns what can be said of texts and where they led.

        ``exact_match_rate``: share of first texts that are a title, the analogue of a valid-identifier rate;
        ``any_match_rate``: of histories with one among all beams; ``empty_rate``: of first texts that are empty;
        ``nearest_distance``: mean distance of first texts to the nearest title; ``num_grounded``: different first items;
        ``num_titles`` and ``num_shared_titles``: different titles, and items whose title others have too; ``gamma``, and
        ``gamma_changed``: share of histories whose list the injection changed.

        Args:
            histories: That were ranked.
            written: From ``write``.
            rankings: From ``match``, without exclusions or with.
        """
        titles = set(self.vectors.titles)
        first = [each.texts[0] for each in written]
        near: list[float] = []
        for rows in self._blocks(len(first)):
            queries = self.vectors.queries([first[row] for row in rows])
            near += self.vectors.distances(queries).min(1).tolist()
        counts = np.bincount(self.vectors.row_of_item)
        figures: dict[str, Any] = {
            "exact_match_rate": float(np.mean([text in titles for text in first])),
            "any_match_rate": float(np.mean([bool(titles & set(each.texts)) for each in written])),
            "empty_rate": float(np.mean([not text for text in first])),
            "nearest_distance": float(np.mean(near)),
            "num_grounded": len({ranking[0][0] for ranking in rankings if ranking}),
            "num_titles": len(self.vectors),
            "num_shared_titles": int(counts[counts > 1].sum()),
            "num_untitled": self.items.num_untitled,
        }
        if self._injection is not None:
            k = max(1, *map(len, rankings))
            plain, own = self.match_each(histories, written, k, None, (0.0, self.gamma))
            changed = [
                [item for item, _ in one] != [item for item, _ in two]
                for one, two in zip(plain, own, strict=True)
            ]
            figures |= {"gamma": self.gamma, "gamma_changed": float(np.mean(changed))}
        return figures


def soft_min(distances: np.ndarray, scores: Sequence[float], temperature: float) -> np.ndarray:
    """Returns ``-T log sum_b p_b exp(-D_b / T)`` of ``(beams, n)`` distances, p the softmax of the beams' scores."""
    distances, score = distances.astype(np.float64), np.asarray(scores, np.float64)[:, None]
    p = np.exp(score - score.max())
    p /= p.sum()
    least = distances.min(0)
    return least - temperature * np.log((p * np.exp((least - distances) / temperature)).sum(0))


def model_encoder(model: RecommenderModel, renderer: Renderer, tuned: bool, pooling: str) -> TitleEncoder:
    """Returns the encoder by a model's own last hidden states, of the backbone alone or of what training made of it.

    A decoder reads the start token and the text; an encoder-decoder's encoder the text and the end token, which is its last.

    Raises:
        ModelError: If the backbone alone is asked for and all weights were trained.
    """
    if not tuned and model.peft is None:
        raise ModelError(
            "encoder=base is the backbone as it was before training, and train.adapter=full trains all of it. Set "
            "decoding.grounding.encoder to tuned, or to a text encoder such as minilm."
        )
    if tuned and model.user_size is not None:
        raise ModelError(
            "encoder=tuned gives every title one vector, and the adapters of this model are made for each user. Set "
            "decoding.grounding.encoder to base, or to a text encoder such as minilm."
        )
    about = {
        key: model.about.get(key) for key in ("backbone", "layers", "shape", "dtype", "double_quantisation")
    }
    made_of: list[Any] = [about, encoder_identity(model.about["backbone"]), pooling]
    if tuned:
        made_of.append({name: hash_array(_numpy(value)) for name, value in model.trained_state().items()})

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        off = (
            model.peft.disable_adapter() if not tuned and model.peft is not None else contextlib.nullcontext()
        )
        device = model.token_level.device
        rows = [renderer.text_ids(text)[:_MAX_TOKENS] for text in texts]
        order = np.argsort([len(row) for row in rows], kind="stable")
        vectors: np.ndarray | None = None
        size = 64
        steps = (order[first : first + size] for first in range(0, len(order), size))
        many = len(rows) > size
        with off:
            for chosen in progress(steps, -(-len(rows) // size), "vectors") if many else steps:
                part = [rows[row] for row in chosen]
                if model.is_encoder_decoder:
                    ids, mask = padded(part, "right", device)
                    states = model._encode(ids, mask, _whole_words(model, renderer, part))
                else:
                    ids, mask = padded(part, "left", device)
                    output = model.backbone.base_model(
                        input_ids=ids,
                        attention_mask=mask,
                        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                        use_cache=False,
                    )
                    states = output.last_hidden_state
                states = states.float()
                if pooling == "mean":
                    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                else:
                    last = mask.cumsum(1).argmax(1)  # the first place at which all tokens have been counted
                    pooled = states[torch.arange(len(part), device=device), last]
                if vectors is None:
                    vectors = np.zeros((len(rows), pooled.shape[1]), np.float32)
                vectors[chosen] = pooled.cpu().numpy()
        return vectors if vectors is not None else np.zeros((0, 1), np.float32)

    return TitleEncoder(hash_value(made_of), lambda: encode)


def _numpy(value: torch.Tensor) -> np.ndarray:
    return value.detach().float().cpu().numpy()


def _whole_words(
    model: RecommenderModel, renderer: Renderer, rows: Sequence[Sequence[int]]
) -> torch.Tensor | None:
    if model.whole_words is None:
        return None
    return padded([renderer.whole_word_ids(row) for row in rows], "right", model.token_level.device)[0]


class _NoIdentifiers(LogitsProcessor):
    """Leaves identifier tokens out of what is written freely; they are the last of the vocabulary."""

    def __init__(self, first_id: int) -> None:
        self._first = first_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        scores[:, self._first :] = float("-inf")
        return scores


@contextlib.contextmanager
def _without_defaults(backbone: Any) -> Iterator[None]:
    """A checkpoint's own generation settings fill in, in transformers, whatever a call leaves open."""
    own, backbone.generation_config = backbone.generation_config, GenerationConfig()
    try:
        yield
    finally:
        backbone.generation_config = own


def _least(
    values: np.ndarray, beam: np.ndarray | None, places: np.ndarray, out: Sequence[int], k: int
) -> list[tuple[int, float]]:
    """Returns the places of the k least values but those left out, best first; equal ones by beam, then by place.

    Args:
        values: ``(n,)``.
        beam: ``(n,)``, or None where all are equal.
        places: ``(n,)`` growing.
        out: Places that must not come.
        k: Wanted; fewer come where fewer are left.
    """
    if len(out):
        at = np.searchsorted(places, out).clip(max=len(places) - 1)
        at = at[places[at] == out]
        values = values.copy()
        values[at] = np.inf
        k = min(k, len(values) - len(np.unique(at)))
    if k < len(values):
        keep = np.flatnonzero(values <= np.partition(values, k - 1)[k - 1]) if k else np.zeros(0, np.int64)
        values, places = values[keep], places[keep]
        beam = beam[keep] if beam is not None else None
    order = np.lexsort((places, places if beam is None else beam, values))[:k]
    return list(zip(places[order].tolist(), values[order].tolist(), strict=True))
