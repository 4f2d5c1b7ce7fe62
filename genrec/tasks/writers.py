"""Intentions and preferences in words: from a language model the user names, a file, or a stated rule."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from genrec.core.errors import DataError, ModelError, RunError, require
from genrec.core.files import hash_value
from genrec.core.processes import process_state
from genrec.core.progress import progress, say
from genrec.tasks.reviews import FUNCTION_WORDS, OPINIONS, sentences

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["wish", "query", "preference", "preferred"]
Load = Callable[[str], "tuple[PreTrainedModel, PreTrainedTokenizerBase]"]

TEMPLATE = "template"
NUM_STATEMENTS = 5
_NUM_RECENT = 3
_MOST_TITLES = 20
_MOST_REVIEW_LETTERS = 1500
_LONGEST_SAID, _LONGEST_ABOUT = 25, 35


class WriterSettings(BaseModel):
    """Who writes intentions and preferences, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    writer: str = Field(
        TEMPLATE,
        description="template: a rule over titles, categories and reviews, offline. lm:NAME: a causal "
        "language model by Hub name, folder or packaged name. file:PATH: texts of your own, Parquet or JSON "
        "lines with key, kind and text.",
    )
    missing: Literal["error", "template"] = Field(
        "error", description="What file:PATH does for a text that the file lacks."
    )
    batch_size: int = Field(16, ge=1, description="Prompts that a language model answers at a time.")
    max_new_tokens: int = Field(96, ge=1, description="Most tokens of a text from a language model.")
    temperature: float = Field(
        0.0, ge=0, description="0: the likeliest token each time. LC-Rec had 0.4, Mender 0.6 with top_p 0.9."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Share of probability that tokens are drawn from.")
    seed: int = Field(0, ge=0, description="Seed of wordings and of a language model's draws.")

    @field_validator("writer")
    @classmethod
    def _writer_is_known(cls, value: str) -> str:
        way, _, name = value.partition(":")
        if value != TEMPLATE and (way not in ("lm", "file") or not name):
            raise ValueError(f"the writer {value!r} is none of template, lm:NAME, file:PATH")
        return value


@dataclass(frozen=True)
class Taken:
    """An item that a user took, with what is known of it and what the user said of it.

    Attributes:
        title: Of the item.
        categories: Its categories; one may be a path such as ``"Beauty > Makeup"``.
        brand: Who made it.
        description: Of the item.
        review: What this user wrote.
        explanation: The sentence of the review that ``genrec.tasks.reviews.explain`` found.
        feature: The word it is about.
        liked: Whether the user liked it, None where nothing is known.
    """

    title: str | None = None
    categories: tuple[str, ...] = ()
    brand: str | None = None
    description: str | None = None
    review: str | None = None
    explanation: str | None = None
    feature: str | None = None
    liked: bool | None = None


class TextRequest(NamedTuple):
    """A text to be written: for which sample, of what kind, how to ask for it, what the rule would say."""

    key: str
    kind: Kind
    instruction: str
    fallback: str


def intention_requests(key: str, target: Taken, seed: int = 0) -> tuple[TextRequest, TextRequest]:
    """Returns the requests for what a user wants (``wish``) and for what the item is like (``query``).

    LC-Rec's two intentions: both in the first person, from title and review of the target, and without words
    of its title. Give the target of a training sample alone: its review is all that goes in, so an intention
    knows nothing from after it.

    The rule: a sentence of the review that gives an opinion (``explanation`` first), the feature, the most
    specific category and, for the query, a sentence of the description, each only if it shares no word with
    the title but function words and those of the wordings; in the wording that says most of what is there,
    of several the one that seed and key choose.
    """
    unwanted = _content(target.title or "")

    def fit(text: str | None) -> str | None:
        return text if text and not _content(text) & unwanted else None

    specific_first = (name for path in _paths(target) for name in reversed(path))
    parts = {
        "said": next(filter(fit, _opinions(target)), None),
        "feature": fit(target.feature),
        "category": next(filter(fit, specific_first), None),
        "about": next(filter(fit, _statements_about(target)), None),
    }
    bad = target.liked is False
    facts = _facts(target)
    wish = _worded(_WISHES_AFTER_DISLIKE if bad else _WISHES, parts, seed, key)
    query = _worded(_QUERIES, parts if not bad else {**parts, "said": None}, seed, key)
    return (
        TextRequest(key, "wish", f"{facts}\n\n{_ASK_WISH}", wish),
        TextRequest(key, "query", f"{facts}\n\n{_ASK_QUERY}", query),
    )


def preference_request(key: str, history: Sequence[Taken], seed: int = 0) -> TextRequest:
    """Returns the request for what a user prefers, from the items of a history, oldest first.

    LC-Rec's explicit preference, third person, from titles: by seed and key either one general summary, or
    what has been liked all along and what of late. Give what stands before the sample's target, and nothing
    else.

    The rule: categories (of each its most specific name) by how often they come, the latest first among
    equals, in the whole history or before and among its last three items; brands that come twice, or
    features that reviews judge; where there are no categories, words that come twice in the titles; else the
    last titles.
    """
    general = _choice(2, seed, key, "form") == 0

    last_titles = [t.title for t in history[-_NUM_RECENT:] if t.title]
    parts = {
        "kinds": _listed(_themes(history) or last_titles),
        "brands": _listed(_often(Counter(t.brand for t in reversed(history) if t.brand), least=2)),
        "features": _listed(_often(Counter(t.feature for t in reversed(history) if t.feature))),
        "before": _listed(_themes(history[:-_NUM_RECENT])),
        "recent": _listed(_themes(history[-_NUM_RECENT:])),
    }
    changed = parts["before"] and parts["recent"] and parts["before"] != parts["recent"]
    wording = _worded(_TERMS if changed and not general else _SUMMARIES, parts, seed, key)
    titles = "; ".join(t.title for t in history[-_MOST_TITLES:] if t.title)
    ask = _ASK_SUMMARY if general else _ASK_TERMS
    return TextRequest(key, "preference", f"Titles, oldest first: {titles}\n\n{ask}", wording)


def preferred_request(key: str, history: Sequence[Taken], seed: int = 0) -> TextRequest:
    """Returns the request for up to five short likes and dislikes, from items and reviews, oldest first.

    Mender's preferences: no brands and no product names, a line each. Give what stands before the sample's
    target; ``nearest`` then chooses one for the target.

    The rule: up to three features that reviews judge, as a like or a dislike by the rating; then categories,
    by how often they come; then words that come twice in the titles.
    """
    uses: Counter[str] = Counter()
    balance: Counter[str] = Counter()
    for taken in reversed(history):
        if taken.feature:
            uses[taken.feature] += 1
            balance[taken.feature] += -1 if taken.liked is False else 1
    lines = [
        _worded(_DISLIKES if balance[f] < 0 else _LIKES, {"feature": f}, seed, f"{key}/{f}")
        for f in _often(uses)
    ]
    themes = _themes(history, most=NUM_STATEMENTS)
    lines += [_worded(_LIKES, {"kinds": theme}, seed, f"{key}/{theme}") for theme in themes]
    lines = lines[:NUM_STATEMENTS] or [_worded(_LIKES, {}, seed, key)]
    facts = "\n\n".join(_facts(taken) for taken in history[-_MOST_TITLES:])
    return TextRequest(key, "preferred", f"{facts}\n\n{_ASK_LIKES}", "\n".join(lines))


def statements(text: str) -> list[str]:
    """Returns the first five statements of a text: its lines, or a JSON list, without bullets and numbers."""
    start, end = text.find("["), text.rfind("]")
    if 0 <= start < end:
        try:
            listed = json.loads(text[start : end + 1])
            if isinstance(listed, list) and all(isinstance(line, str) for line in listed):
                text = "\n".join(listed)
        except json.JSONDecodeError:
            pass
    lines = (re.sub(r"^\s*(?:[-*\u2022]|\d{1,2}[.)])\s*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line][:NUM_STATEMENTS]


def nearest(text: str, target: Taken) -> str:
    """Returns the statement of a text that is nearest to an item; of equals the first.

    Nearness is the cosine of the sets of content words of the statement and of the item's title, categories
    and description; Mender has that of Sentence-T5 vectors.

    Raises:
        DataError: If the text holds no statement.
    """
    lines = statements(text)
    if not lines:
        raise DataError(f"A text of preferences holds no line with a statement: {text!r}.")
    item = _content(" ".join([target.title or "", *target.categories, target.description or ""]))

    def cosine(line: str) -> float:
        words = _content(line)
        return len(words & item) / max(len(words), 1) ** 0.5

    return max(lines, key=cosine)


def write_texts(
    requests: Iterable[TextRequest],
    settings: WriterSettings | None = None,
    cache: Path | None = None,
    load: Load | None = None,
) -> dict[str, dict[str, str]]:
    """Returns ``{kind: {key: text}}``, a text for every request.

    A language model reads each instruction in its tokenizer's chat template, or plain where there is none. It
    answers in batches of like length, padded on the left; what it draws hangs on the seed and the prompt
    alone, so that order and batches change nothing but the last bits of its numbers. An answer of white space
    is replaced by the rule's text, and the number of these is said.

    Args:
        requests: What is to be written.
        settings: Who writes, and how.
        cache: JSON lines, by hash of the model's name, settings and prompt: a language model's texts are
            appended batch by batch and read again, so that a cut run goes on. A model is known by its name:
            delete the file when its weights change. None: no cache.
        load: Returns model and tokenizer of a name; default: transformers' Auto classes.

    Raises:
        DataError: If ``file:PATH`` lacks a text (and ``missing="error"``) or cannot be read, or two requests
            have one kind and key.
        ModelError: If a prompt is longer than the model reads.
        RunError: If a line of the cache is broken that is not its last.
    """
    settings = settings or WriterSettings()
    asked = list(requests)
    if len({(r.kind, r.key) for r in asked}) < len(asked):
        (kind, key), times = Counter((r.kind, r.key) for r in asked).most_common(1)[0]
        raise DataError(
            f"{times} texts of kind {kind!r} were asked for key {key!r}; keys name one sample each."
        )
    way, _, name = settings.writer.partition(":")
    if way == "lm":
        texts = _from_model(asked, name, settings, cache, load or _load)
    elif way == "file":
        texts = _from_file(asked, Path(name), settings)
    else:
        texts = [request.fallback for request in asked]
    written: dict[str, dict[str, str]] = {}
    for request, text in zip(asked, texts, strict=True):
        written.setdefault(request.kind, {})[request.key] = text
    return written


def _from_file(asked: Sequence[TextRequest], path: Path, settings: WriterSettings) -> list[str]:
    known = {}
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path).to_pylist()
        else:
            rows = [
                json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
            ]
        for row in rows:
            known[row["kind"], str(row["key"])] = str(row["text"]).strip()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as texts ({type(error).__name__}: {error}). It must be Parquet or JSON "
            "lines with the columns key, kind and text."
        ) from error
    lacking = [request for request in asked if not known.get((request.kind, request.key))]
    if lacking and settings.missing == "error":
        some = ", ".join(f"{request.kind} of {request.key}" for request in lacking[:3])
        raise DataError(
            f"{path} lacks {len(lacking):,} of {len(asked):,} texts, such as {some}. Add them, or let the "
            "rule write them with missing=template."
        )
    if lacking:
        say(f"  {path}: {len(lacking):,} of {len(asked):,} texts were missing; the rule wrote them.")
    return [known.get((request.kind, request.key)) or request.fallback for request in asked]


def _from_model(
    asked: Sequence[TextRequest], name: str, settings: WriterSettings, cache: Path | None, load: Load
) -> list[str]:
    how = [name, settings.max_new_tokens]
    if settings.temperature:
        how += [settings.temperature, settings.top_p, settings.seed]
    hashes = [hash_value([how, request.instruction]) for request in asked]
    known = _read_cache(cache) if cache else {}
    todo = {h: request for h, request in zip(hashes, asked, strict=True) if h not in known}
    if todo:
        model, tokenizer = load(name)
        writer = _Model(model, tokenizer, name, settings)
        prompts = [(h, writer.prompt(request)) for h, request in todo.items()]
        prompts.sort(key=lambda prompt: -len(prompt[1]))
        batches = [
            prompts[start : start + settings.batch_size]
            for start in range(0, len(prompts), settings.batch_size)
        ]
        for batch in progress(batches, len(batches), f"texts by {name}"):
            texts = writer.answers([ids for _, ids in batch], [h for h, _ in batch])
            new = {h: text.strip() for (h, _), text in zip(batch, texts, strict=True)}
            known.update(new)
            if cache:
                _append(cache, new)
    empty = sum(not known[h] for h in hashes)
    if empty:
        say(f"  {name} wrote nothing for {empty:,} of {len(asked):,} texts; the rule wrote them.")
    return [known[h] or request.fallback for h, request in zip(hashes, asked, strict=True)]


def _read_cache(path: Path) -> dict[str, str]:
    """Returns the texts of a cache by hash, and cuts a broken last line off the file."""
    if not path.exists():
        return {}
    known: dict[str, str] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            known[row["hash"]] = row["text"]
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise RunError(
                    f"Line {number} of {path} is no text of a language model ({error}). Delete the line, or "
                    "the file to write all texts anew."
                ) from error
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size - len(line))
        else:
            if number == len(lines):
                with path.open("ab") as file:
                    file.write(b"\n")
    return known


def _append(path: Path, texts: Mapping[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for h, text in texts.items():
                file.write(json.dumps({"hash": h, "text": text}, ensure_ascii=False) + "\n")
    except OSError as error:
        raise RunError(
            f"Could not write {path}: {error.strerror or error}. Texts up to here are in it: free some space "
            "and run the same command again."
        ) from error


def _load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    transformers = require("transformers", "train")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype="auto")
        return model, transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The writer {name!r} cannot be read as a causal language model: {error}. Give a Hub name "
            "(org/model) or a folder, or take writer=template."
        ) from error


class _Model:
    """A causal language model that answers prompts, each as if it were alone."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        settings: WriterSettings,
    ) -> None:
        from transformers import GenerationConfig

        self.model: Any = model.to(process_state().device).eval()
        self.tokenizer, self.name, self.settings = tokenizer, name, settings
        theirs = model.generation_config
        end = theirs.eos_token_id if theirs is not None else None
        end = end if end is not None else tokenizer.eos_token_id
        self.end: list[int] = end if isinstance(end, list) else [] if end is None else [end]
        self.padding: int = self.end[0] if self.end else 0
        # The checkpoint's own defaults (sampling, penalties) must not change a text.
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=self.end or None,
            pad_token_id=self.padding,
        )

    def prompt(self, request: TextRequest) -> list[int]:
        """Returns the token ids of a request, ready to be gone on with."""
        if getattr(self.tokenizer, "chat_template", None):
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": request.instruction}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(request.instruction + "\nAnswer:")["input_ids"]
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest and len(ids) + self.settings.max_new_tokens > longest:
            raise ModelError(
                f"The {request.kind} of {request.key} asks {self.name} to read {len(ids):,} tokens and to "
                f"write {self.settings.max_new_tokens}; it has room for {longest:,}. Name a model that reads "
                "more, or lower max_new_tokens."
            )
        return ids

    def answers(self, prompts: Sequence[Sequence[int]], seeds: Sequence[str]) -> list[str]:
        """Returns what follows each prompt, up to an end token."""
        import torch

        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.padding)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        draws = [_Draws(self.settings, seeds, width)] if self.settings.temperature else []
        device = self.model.device
        with torch.inference_mode():
            out = self.model.generate(ids.to(device), attention_mask=mask.to(device), logits_processor=draws)
        return self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)


class _Draws:
    """A logits processor that leaves of each row the one token that its own random numbers draw."""

    def __init__(self, settings: WriterSettings, seeds: Sequence[str], width: int) -> None:
        self.settings, self.width = settings, width
        self.uniform = np.stack(
            [np.random.default_rng(int(seed, 16)).random(settings.max_new_tokens) for seed in seeds]
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        shares = torch.softmax(scores.double() / self.settings.temperature, dim=-1)
        shares, order = shares.sort(dim=-1, descending=True, stable=True)
        sums = shares.cumsum(dim=-1)
        kept = sums - shares < self.settings.top_p
        drawn = torch.as_tensor(self.uniform[:, input_ids.shape[1] - self.width], device=scores.device)
        total = (shares * kept).sum(dim=-1)
        place = (sums < (drawn * total)[:, None]).sum(dim=-1, keepdim=True)
        place = place.minimum(kept.sum(dim=-1, keepdim=True) - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, order.gather(-1, place), 0.0)


def _facts(taken: Taken) -> str:
    lines = {
        "Title": taken.title,
        "Categories": ", ".join(taken.categories),
        "Brand": taken.brand,
        "Review": taken.review and taken.review[:_MOST_REVIEW_LETTERS],
    }
    return "\n".join(f"{name}: {text}" for name, text in lines.items() if text)


def _opinions(taken: Taken) -> Iterator[str]:
    if taken.explanation:
        yield taken.explanation
    for sentence in sentences(taken.review or ""):
        words = sentence.lower().replace(",", " ").rstrip(".!").split()
        if 4 <= len(words) <= _LONGEST_SAID and "?" not in sentence and OPINIONS & set(words):
            yield sentence


def _statements_about(taken: Taken) -> Iterator[str]:
    for sentence in sentences(taken.description or ""):
        if 4 <= len(sentence.split()) <= _LONGEST_ABOUT and sentence.endswith((".", "!")):
            yield sentence


def _paths(taken: Taken) -> list[list[str]]:
    """Returns the categories of an item, each as its names from general to specific."""
    found = [[name.strip() for name in category.split(">") if name.strip()] for category in taken.categories]
    return [path for path in found if path]


def _themes(history: Sequence[Taken], most: int = 3) -> list[str]:
    """Returns what a history is about: its categories, or else words that come twice in its titles."""
    latest_first = list(reversed(history))
    categories = Counter(path[-1] for taken in latest_first for path in _paths(taken))
    if categories:
        return _often(categories, most)
    words: Counter[str] = Counter()
    for taken in latest_first:
        brand = (taken.brand or "").lower()
        found = _WORD.findall((taken.title or "").lower())
        words.update(list(dict.fromkeys(word for word in found if _stem(word) and word not in brand)))
    return _often(words, most, least=2)


def _often(counts: Counter[str], most: int = 3, least: int = 1) -> list[str]:
    return [name for name, times in counts.most_common(most) if times >= least]


def _listed(names: Sequence[str]) -> str | None:
    if len(names) < 2:
        return names[0] if names else None
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _worded(wordings: Sequence[str], parts: Mapping[str, str | None], seed: int, key: str) -> str:
    """Returns a wording with its parts, of those that say most of what is there one by seed and key."""
    there = {name for name, part in parts.items() if part}
    possible = [wording for wording in wordings if _slots(wording) <= there]
    most = max(len(_slots(wording)) for wording in possible)
    best = [wording for wording in possible if len(_slots(wording)) == most]
    return best[_choice(len(best), seed, key, "wording")].format_map(parts)


@cache
def _slots(wording: str) -> set[str]:
    return set(re.findall(r"{(\w+)}", wording))


def _choice(size: int, *parts: object) -> int:
    return zlib.crc32("/".join(map(str, parts)).encode()) % size


_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")

_WISHES = (
    "I want to be able to say this of it: {said}",
    "I would like something that I can describe like this: {said}",
    "What I hope to find is summed up here: {said}",
    "I care about the {feature}, and hope to say: {said}",
    "I look at the {feature} first, and want to be able to say: {said}",
    "With me it all comes down to the {feature}; I would like to say: {said}",
    "I pay attention to the {feature} above all.",
    "I would like something with the right {feature}.",
    "I am in the mood for {category}.",
    "I enjoy {category} and want more of it.",
    "I feel like trying something new.",
    "I am open to a suggestion that fits me.",
)
_WISHES_AFTER_DISLIKE = (
    "I do not want to have to say this again: {said}",
    "I hope for something better than what made me say: {said}",
    "I am fussy about the {feature}, and do not want to say once more: {said}",
    "I look at the {feature}, and would not like to say again: {said}",
    "I am fussy about the {feature}.",
    "I would like more care to be taken of the {feature}.",
    "I would like to give {category} another try.",
    "I have not found what I want in {category} so far.",
    "I want something better than last time.",
    "I have not been lucky so far and hope for a better suggestion.",
)
_QUERIES = (
    "I need something from {category}. It should fit this description: {about}",
    "I am looking in {category} for what is described like this: {about}",
    "I am looking in {category} for something of which people say: {said}",
    "I need something from {category} that makes people say: {said}",
    "Is there something in {category} with the right {feature}?",
    "Show me {category} that get praise for the {feature}.",
    "I am searching for something that is described like this: {about}",
    "Do you have what this text is about? {about}",
    "I am looking for something of which people say: {said}",
    "I need something that makes people say: {said}",
    "I would like an item with the right {feature}.",
    "I need something that gets praise for the {feature}.",
    "I am looking through {category} for the next item to take.",
    "Show me something from {category}.",
    "I would like to see an item that I do not know yet.",
    "Show me something that I have not seen before.",
)
_SUMMARIES = (
    "The user mostly goes for {kinds}. Brands that come back: {brands}.",
    "This is a person with a taste for {kinds}, often from {brands}.",
    "The user mostly goes for {kinds}, and cares about the {features}.",
    "This is a person with a taste for {kinds} who is particular about the {features}.",
    "The user mostly goes for {kinds}.",
    "This is a person with a taste for {kinds}.",
    "What attracts the user is above all {kinds}.",
    "The user cares about the {features}.",
    "This is a person who is particular about the {features}.",
    "Little is known of this user so far.",
)
_TERMS = (
    "All along the user has gone for {before}. Of late it is {recent}.",
    "In the long run the user prefers {before}; at present the choice falls on {recent}.",
    "Lasting interests are {before}, and the latest items are about {recent}.",
)
_LIKES = (
    "Cares about the {feature}.",
    "Is particular about the {feature}.",
    "Chooses by the {feature}.",
    "Likes {kinds}.",
    "Is drawn to {kinds}.",
    "Looks out for {kinds}.",
    "Is open to anything.",
)
_DISLIKES = (
    "Finds fault with the {feature}.",
    "Avoids what fails in the {feature}.",
    "Is easily put off by the {feature}.",
)

_ASK_WISH = (
    "A customer wrote the review above. Say in one or two sentences, in the first person, what this "
    "customer wants and cares about in general. Use no word of the title, and do not mention that "
    "anything was bought or reviewed."
)
_ASK_QUERY = (
    "A customer wrote the review above. Write in one or two sentences, in the first person, how somebody "
    "would ask for such an item who does not know it yet: say what it is like and what it is good for. "
    "Use no word of the title."
)
_ASK_SUMMARY = (
    "A person chose the items above. Say in one or two sentences, in the third person, what this person "
    "prefers. Begin with: The user"
)
_ASK_TERMS = (
    "A person chose the items above. Say in two sentences, in the third person, first what this person "
    "has preferred all along and then what the person turns to now. Begin with: The user"
)
_ASK_LIKES = (
    f"A person took the items above and reviewed some. Write {NUM_STATEMENTS} short statements about what "
    "this person likes or dislikes, each on a line of its own. Name no brand and no product."
)

_OWN_WORDS = FUNCTION_WORDS | {
    word
    for wordings in (_WISHES, _WISHES_AFTER_DISLIKE, _QUERIES)
    for wording in wordings
    for word in _WORD.findall(re.sub(r"{\w+}", "", wording).lower())
}


def _stem(word: str) -> str:
    """Returns a word in small letters without a plural's s, or nothing for one that tells items not apart."""
    return "" if len(word) < 3 or word in _OWN_WORDS else word.removesuffix("s") if len(word) > 3 else word


def _content(text: str) -> set[str]:
    return {stem for word in _WORD.findall(text.lower()) if (stem := _stem(word))}
