"""The one place where a prompt, a history or an answer becomes token ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from genrec.core.errors import DataError, ModelError, UnknownItemError, nearest
from genrec.data_prep import ItemCatalog, ItemId
from genrec.indexing import ItemIndex
from genrec.tasks.arrow import arrow_dataset, in_order
from genrec.tasks.families import Template, load_families
from genrec.tasks.views import LIST_FILTERS, ItemBook, Items

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# A row's prompt or completion: text, or the messages of a chat.
Text = str | Sequence[dict[str, str]]

BARE = ("packed", "windows")
MESSAGES = "messages"

_IDENTIFIER = re.compile(r"(<[^<>]+>)")
_MOST_PIECES = 200_000
# Of SentencePiece, and of byte-level pieces: space, line break, tabulator.
_WORD_MARKS = ("\u2581", "\u0120", "\u010a", "\u0109")


class Asker:
    """Writes what asks for the next item after a history.

    Attributes:
        form: As ``tasks.form``. ``"packed"`` and ``"windows"``: a history is the bare sequence of its codes.
            ``"prompt"``: it stands in a template. ``"messages"``: in a template, in a chat.
        template: The template, where the form is not bare.
    """

    def __init__(self, form: str, template: Template | None = None) -> None:
        self.form = form
        self.template = template or load_families()["next_item"].templates[0]

    def text(self, history: Items) -> Text:
        """Returns the prompt."""
        if self.form in BARE:
            return LIST_FILTERS["bare"][1](history)
        return self.wrap(self.template.render_prompt({"history": history}), "user")

    def wrap(self, text: str, role: str) -> Text:
        """Returns a text as the message of a role where the form is ``"messages"``, else as it is."""
        return [{"role": role, "content": text.strip()}] if self.form == MESSAGES else text


class Renderer:
    """Writes histories and rows as token ids, the same way in training, evaluation and serving.

    Text is cut at its identifiers, and each piece of text between two of them is tokenised once: pieces such as
    ``", "`` come again and again. A tokenizer does no other thing with the tokens that were added to it, so that
    the ids are those of the whole text.

    Attributes:
        asker: What asks for the next item.
        max_history: Most items of a history that are written; the oldest are left out.
        max_tokens: Most tokens of a prompt and the code that answers it; None is no limit.
        text_to_text: Whether prompt and answer are texts of their own, as an encoder-decoder reads and writes them: no start
            token, since its decoder begins by itself and T5's encoder has none, and an end behind the prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        index: ItemIndex,
        asker: Asker | str,
        max_history: int,
        max_tokens: int | None = None,
        text_to_text: bool = False,
    ) -> None:
        self.tokenizer, self.index, self.text_to_text = tokenizer, index, text_to_text
        self.asker = Asker(asker) if isinstance(asker, str) else asker
        self.max_history, self.max_tokens = max_history, max_tokens
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise DataError("The tokenizer has neither a start nor an end token; genrec needs one of them.")
        self._end: int | None = tokenizer.eos_token_id
        self._before: list[int] = [] if text_to_text else [start]
        self._after: list[int] = [self._end] if text_to_text and self._end is not None else []
        ids = cast(list[int], tokenizer.convert_tokens_to_ids(index.tokens))
        self.token_ids: dict[str, int] = dict(zip(index.tokens, ids, strict=True))
        self._level = dict(zip(ids, index.token_levels, strict=True))
        self._book = ItemBook(index)
        # Tokens of another shape, as published indices may have, are found by the tokenizer itself.
        self._cut = all(map(_IDENTIFIER.fullmatch, index.tokens))
        self._first: dict[str, list[int]] = {}
        self._behind: dict[str, list[int]] = {}

    def with_index(self, index: ItemIndex) -> Renderer:
        """Returns a renderer of the same form for a changed index."""
        return Renderer(
            self.tokenizer, index, self.asker, self.max_history, self.max_tokens, self.text_to_text
        )

    def about(self) -> dict[str, Any]:
        """Returns what ``from_about`` makes the renderer of again, as plain data."""
        template = self.asker.template
        texts = {"id": template.id, "prompt": template.prompt, "completion": template.completion}
        return {
            "form": self.asker.form,
            "max_history": self.max_history,
            "max_tokens": self.max_tokens,
            "text_to_text": self.text_to_text,
            "template": None if self.asker.form in BARE else texts,
        }

    @classmethod
    def from_about(
        cls, about: dict[str, Any], tokenizer: PreTrainedTokenizerBase, index: ItemIndex
    ) -> Renderer:
        """Returns the renderer that ``about`` describes; earlier versions wrote form and ``max_history`` alone."""
        texts, template = about.get("template"), None
        if texts:
            needs = (("history", "code"), ("target", "code"))
            template = Template(texts["id"], texts["prompt"], texts["completion"], False, needs, True)
        asker = Asker(about["form"], template)
        text_to_text = about.get("text_to_text", False)
        return cls(tokenizer, index, asker, about["max_history"], about.get("max_tokens"), text_to_text)

    def prompt(self, history: Sequence[ItemId]) -> Text:
        """Returns the prompt that asks for the item after a history, oldest first.

        It is cut to ``max_history`` items, and on to ``max_tokens``, a code of the longest kind behind it.

        Raises:
            UnknownItemError: If the history names an item that the index does not have.
        """
        numbers = [self._number(item) for item in history[-self.max_history :]]
        if self.max_tokens is not None:
            room = self.max_tokens - self.index.num_levels - self._closing
            kept = longest(len(numbers), lambda n: len(self.text_ids(self._asked(numbers, n))) <= room)
            return self._asked(numbers, kept)
        return self._asked(numbers, len(numbers))

    def prompt_ids(self, history: Sequence[ItemId]) -> list[int]:
        """Returns the token ids of ``prompt``, start token first, or end token last; errors as ``prompt``."""
        return self.text_ids(self.prompt(history))

    def row_ids(self, prompt: Text, completion: Text) -> tuple[list[int], list[int]]:
        """Returns ``(input_ids, labels)`` of a row: prompt ids, then completion ids, which a decoder may read apart.

        Labels are -100 on the prompt and the ids themselves on the completion. An answer that is text
        is closed by the end token; codes need none, since no code is the beginning of another. A chat is closed
        as its template closes it.

        Raises:
            ModelError: If messages are given and the tokenizer has no chat template, or one that does not write a
                prompt as the beginning of the whole.
        """
        ((ids, length),) = self.rows_ids([prompt], [completion])
        return ids, [-100] * length + ids[length:]

    def rows_ids(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[tuple[list[int], int]]:
        """Returns of each row its ids and how many of them are the prompt's; as ``row_ids``, which it is quicker than."""
        texts: list[str] = []
        for prompt, completion in zip(prompts, completions, strict=True):
            if isinstance(prompt, str):
                completion = cast(str, completion)
                texts += [prompt, completion.lstrip() if self.text_to_text else completion]
            else:
                texts += self._chat(prompt, completion)
        ids, rows = self._encode(texts), []
        for place, prompt in enumerate(prompts):
            before, after = ids[2 * place], ids[2 * place + 1]
            if isinstance(prompt, str):
                before = self._before + before + self._after
                end = [] if self._end is None or (after and after[-1] in self._level) else [self._end]
                rows.append((before + after + end, len(before)))
            else:
                if after[: len(before)] != before:
                    raise ModelError(
                        "The tokenizer's chat template does not write a prompt as the beginning of prompt and answer, so "
                        "that there is no telling which tokens are learned. Choose tasks.form=prompt or another backbone."
                    )
                rows.append((after, len(before)))
        return rows

    def whole_word_ids(self, input_ids: Sequence[int]) -> list[int]:
        """Returns the number of the word that each token belongs to, from 1, as P5 counts them.

        All tokens of one identifier are one word. Other words begin where the tokenizer marks a beginning:
        SentencePiece's mark, or the space (or line break) of byte-level pieces. End and padding tokens have 0.
        Source: P5 (Geng et al., RecSys 2022), section 4, and its released code; there identifiers are text.
        """
        special = {self._end, self.tokenizer.pad_token_id}
        pieces = self.tokenizer.convert_ids_to_tokens(list(input_ids))
        words, word, in_code = [], 0, True
        for token, piece in zip(input_ids, pieces, strict=True):
            if token in special:
                words.append(0)
                continue
            level = self._level.get(token)
            word += level == 0 or (level is None and (in_code or piece.startswith(_WORD_MARKS)))
            in_code = level is not None
            words.append(word)
        return words

    def num_tokens(self, prompt: Text, completion: Text, answers_with_code: bool) -> int:
        """Returns the tokens that a row counts for in a budget: its own, and any code as one of the longest kind.

        So a history is cut at the same item whatever comes after it, in training as in serving.
        """
        ((ids, length),) = self.rows_ids([prompt], [completion])
        if answers_with_code:
            return length + self.index.num_levels + self._closing
        return len(ids)

    @property
    def fewest_tokens(self) -> int:
        """Tokens of the shortest row that asks for an item: after no history at all."""
        return len(self.text_ids(self._asked([], 0))) + self.index.num_levels + self._closing

    @cached_property
    def _closing(self) -> int:
        """Tokens that the form writes behind a code."""
        code = next(iter(self.index.codes.values()))
        asker = self.asker
        ((ids, length),) = self.rows_ids([asker.wrap("?", "user")], [asker.wrap("".join(code), "assistant")])
        return len(ids) - length - len(code)

    def _asked(self, numbers: list[int], kept: int) -> Text:
        return self.asker.text(Items(self._book, numbers[len(numbers) - kept :]))

    def text_ids(self, prompt: Text) -> list[int]:
        """Returns the token ids of any prompt, with what the form writes around it."""
        if isinstance(prompt, str):
            return self._before + self._encode([prompt])[0] + self._after
        return self._encode([self._chat(prompt, None)[0]])[0]

    def _number(self, item: ItemId) -> int:
        if item not in self._book.number:
            self.index.code(item)  # which says what is near
        return self._book.number[item]

    def _chat(self, prompt: Any, completion: Any) -> list[str]:
        """Returns the chat template's text of a prompt, and of prompt and completion together."""
        if not self.tokenizer.chat_template:
            raise ModelError(
                "tasks.form=messages needs a tokenizer with a chat template, and this backbone's has none. Choose a "
                "backbone that is tuned for chats, or tasks.form=prompt."
            )
        write: Callable[..., Any] = self.tokenizer.apply_chat_template
        texts = [write(list(prompt), tokenize=False, add_generation_prompt=True)]
        if completion is not None:
            texts.append(write([*prompt, *completion], tokenize=False))
        return texts

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts, as the tokenizer gives them without special tokens."""
        if not self._cut:
            return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        rows = [self._parted(text) for text in texts]
        inner: set[str] = set()
        for parts, _ in rows:
            inner.update(parts[1:])
        self._learn({parts[0] for parts, _ in rows}, inner)
        first, behind, found = self._first, self._behind, []
        for parts, codes in rows:
            ids = [*first[parts[0]]]
            for text, code in zip(parts[1:], codes, strict=True):
                ids.append(code)
                if text:
                    ids += behind[text]
            found.append(ids)
        return found

    def _learn(self, first: set[str], behind: set[str]) -> None:
        """Has the tokenizer read the pieces that are not known: those that begin a text, and those behind identifiers.

        Some tokenizers mark the beginning of a text as a word's, so that the two differ.
        """
        token, number = next(iter(self.token_ids.items()))
        for known, pieces, before in ((self._first, first, ""), (self._behind, behind, token)):
            new = sorted(pieces - known.keys())
            if len(known) + len(new) > _MOST_PIECES:
                known.clear()
                new = sorted(pieces)
            if new:
                found = self.tokenizer([before + text for text in new], add_special_tokens=False)["input_ids"]
                skipped = [ids.index(number) + 1 if before else 0 for ids in found]
                known |= {text: ids[n:] for text, ids, n in zip(new, found, skipped, strict=True)}

    def _parted(self, text: str) -> tuple[list[str], list[int]]:
        """Returns the texts around the identifiers of a text, empty ones too, and the identifiers' ids."""
        parts = _IDENTIFIER.split(text)
        texts, names = parts[::2], parts[1::2]
        codes: list[Any] = list(map(self.token_ids.get, names))
        if None in codes:  # what looks like an identifier and is none is text
            for place in [place for place, code in enumerate(codes) if code is None][::-1]:
                texts[place : place + 2] = [texts[place] + names[place] + texts[place + 1]]
                del codes[place]
        return texts, codes


class TitlePrompts:
    """Asks for the title of the next item after titles, as BIGRec does, and reads the title in what is written.

    Items that are called by their id only are left out of prompts, since training has no row with one of them.

    Attributes:
        renderer: Of the same form, tokens and budget.
        template: Whose prompt needs titles of a history alone, and whose completion one title.
    """

    def __init__(self, renderer: Renderer, template: Template, items: ItemCatalog) -> None:
        self.renderer, self.template = renderer, template
        self._book = ItemBook(None, items)
        self._before, self._after = (part.strip() for part in template.around_title())

    def prompt_ids(self, history: Sequence[ItemId], answer_tokens: int) -> list[int]:
        """Returns the token ids of what asks for the title after a history, oldest first, which may be empty.

        Args:
            history: Items of the catalogue.
            answer_tokens: Room that ``max_tokens`` leaves for the answer.

        Raises:
            UnknownItemError: If an item is not in the catalogue.
        """
        numbers = []
        for item in history:
            if item not in self._book.number:
                raise UnknownItemError(
                    f"Item {item!r} is not in the catalogue of {len(self._book.ids):,} items.{nearest(item, self._book.ids)}"
                )
            numbers.append(self._book.number[item])
        numbers = [n for n in numbers if self._book.has(n, "title")][-self.renderer.max_history :]

        def ids(kept: int) -> list[int]:
            shown = Items(self._book, numbers[len(numbers) - kept :])
            text = self.template.render_prompt({"history": shown})
            return self.renderer.text_ids(self.renderer.asker.wrap(text, "user"))

        most = self.renderer.max_tokens
        if most is None:
            return ids(len(numbers))
        return ids(longest(len(numbers), lambda kept: len(ids(kept)) <= most - answer_tokens))

    def title(self, text: str) -> str:
        """Returns the title in a written answer, without what the template has around it."""
        return text.strip().removeprefix(self._before).removesuffix(self._after).strip()


class _Tokenised:
    """The token ids of stretches of rows, as a job of ``in_order``."""

    def __init__(self, rows: Dataset, renderer: Renderer) -> None:
        self._rows, self._renderer = rows.select_columns(["prompt", "completion"]), renderer

    def __call__(self, stretch: tuple[int, int]) -> pa.Table:
        rows = self._rows[slice(*stretch)]
        found = self._renderer.rows_ids(rows["prompt"], rows["completion"])
        ids, lengths = zip(*found, strict=True)
        # Through one array: pyarrow reads lists of lists of Python numbers slowly.
        edges = np.cumsum([0, *map(len, ids)], dtype=np.int32)
        flat = np.fromiter(chain.from_iterable(ids), np.int32, edges[-1])
        column = pa.ListArray.from_arrays(edges, flat)
        return pa.table([column, pa.array(lengths, pa.int32())], schema=TOKEN_SCHEMA)


TOKEN_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("prompt_tokens", pa.int32())])
_STRETCH = 10_000


def tokenise(rows: Dataset, renderer: Renderer, workers: int = 1, file: Path | None = None) -> Dataset:
    """Returns of each row its ``input_ids`` and ``prompt_tokens``, how many of them are the prompt's.

    Args:
        rows: From ``build_dataset``.
        renderer: Of the same tokenizer and index.
        workers: Processes.
        file: Where they are written and mapped from; None keeps them in memory.

    Raises:
        ModelError: As ``Renderer.row_ids``.
        RunError: If the disk refuses.
    """
    stretches = [(start, min(start + _STRETCH, len(rows))) for start in range(0, len(rows), _STRETCH)]
    tables = in_order(_Tokenised(rows, renderer), stretches, workers, "tokenised rows")
    return arrow_dataset(tables, TOKEN_SCHEMA, file)


def longest(most: int, fits: Callable[[int], bool]) -> int:
    """Returns the largest number in [0, most] that fits, 0 where none does; whatever is below one that fits does too."""
    if most <= 0 or fits(most):
        return max(most, 0)
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
