"""The one place where a prompt, a history or an answer becomes text and token ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

import yaml

from genrec.core.errors import DataError
from genrec.data_prep import ItemId
from genrec.indexing import ItemIndex

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKED = "packed"


@cache
def templates(task: str) -> list[dict[str, Any]]:
    """Returns the templates of a task, each with ``id`` and ``prompt``, in file order."""
    text = files("genrec.tasks").joinpath(f"templates/{task}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["templates"]


def fill(template: str, **slots: str) -> str:
    """Returns a template with its ``{slot}`` places filled; braces in the values are left alone."""
    for slot, value in slots.items():
        template = template.replace("{" + slot + "}", value)
    return template


class Renderer:
    """Writes histories and rows as token ids, the same way in training, evaluation and serving.

    Attributes:
        form: ``"packed"``: a history is the bare sequence of its codes, after a start token.
            ``"prompt"``: a history stands in the first next-item template.
        max_history: Most items of a history that are written; the oldest are left out.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, index: ItemIndex, form: str, max_history: int
    ) -> None:
        self.tokenizer, self.index = tokenizer, index
        self.form, self.max_history = form, max_history
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise DataError("The tokenizer has neither a start nor an end token; genrec needs one of them.")
        self._start: int = start
        self._end: int | None = tokenizer.eos_token_id
        ids = cast(list[int], tokenizer.convert_tokens_to_ids(index.tokens))
        self.token_ids: dict[str, int] = dict(zip(index.tokens, ids, strict=True))
        self._codes = set(self.token_ids.values())

    def prompt_text(self, history: Sequence[ItemId]) -> str:
        """Returns the prompt that asks for the item after a history, oldest first.

        Raises:
            UnknownItemError: If the history names an item that the index does not have.
        """
        codes = "".join("".join(self.index.code(item)) for item in history[-self.max_history :])
        return codes if self.form == PACKED else fill(templates("next_item")[0]["prompt"], history=codes)

    def prompt_ids(self, history: Sequence[ItemId]) -> list[int]:
        """Returns the token ids of ``prompt_text``, start token first."""
        if self.form == PACKED:
            kept = history[-self.max_history :]
            return [self._start, *(self.token_ids[t] for item in kept for t in self.index.code(item))]
        return [self._start, *self._encode(self.prompt_text(history))]

    def row_ids(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """Returns ``(input_ids, labels)`` of a row: prompt ids, then completion ids.

        Labels are -100 on the prompt and the ids themselves on the completion. An answer that is text
        is closed by the end token; codes need none, since no code is the beginning of another.
        """
        before = [self._start, *self._encode(prompt)]
        answer = self._encode(completion)
        if self._end is not None and (not answer or answer[-1] not in self._codes):
            answer.append(self._end)
        return before + answer, [-100] * len(before) + answer

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
