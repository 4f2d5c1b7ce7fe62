"""Settings of the instruction data, described once: this text is help and documentation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from genrec.tasks.writers import WriterSettings


class Count(BaseModel):
    """So many samples of a family."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(ge=1, description="Samples; more than there are means that samples come again.")


class RetrieveSettings(BaseModel):
    """Which past behaviours a click is asked after: the Long-Short Modality Retriever of RecLoRA and ReLLa."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    how: Literal["recent", "similar"] = Field(
        "recent",
        description="Which behaviours before a click its prompt shows. recent: the last. similar: those whose texts are most like "
        "the item's; of equal ones the later.",
    )
    encoder: str = Field(
        "minilm",
        description="how=similar: text encoder, as index.text_encoder (minilm, words, a Hub name, lm:NAME).",
    )
    dimensions: int | None = Field(
        512,
        ge=1,
        description="how=similar: dimensions of a PCA of the items' vectors; null, or more than they have, takes them as they are.",
    )
    similarity: Literal["cosine", "inner"] = Field(
        "cosine", description="how=similar: cosine, or inner product."
    )
    order: Literal["time", "relevance"] = Field(
        "time", description="how=similar: in which order they are shown, oldest first or most alike first."
    )


class TaskSettings(BaseModel):
    """Which instruction data are written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mixture: dict[str, float | Count] = Field(
        default_factory=lambda: dict[str, float | Count](next_item=1.0),
        min_length=1,
        description="Families of tasks (genrec tasks lists them), each with a weight (2 writes every sample twice, "
        "0.5 every other one) or {count: n}. A list of names stands for weights of 1.",
    )
    files: tuple[str, ...] = Field((), description="YAML files with families of your own (docs/tasks.md).")
    form: Literal["packed", "windows", "prompt", "messages"] = Field(
        "packed",
        description="How rows are written. packed: next_item as one row a stretch of a user's history, every item of "
        "it a target. windows: next_item as one row a position, after the bare history. prompt: as a prompt and a "
        "completion. messages: as those of a chat, in the tokenizer's own chat template. packed and windows concern "
        "next_item alone; other families are prompts beside them.",
    )
    max_history: int = Field(
        50,
        ge=1,
        description="Most items of a history in a row, and in a prompt when serving, where a model.backbone=new "
        "reads no more than it had before a target in training.",
    )
    cuts: int = Field(
        2,
        ge=1,
        description="Packed form: times that each history is cut into rows, each time at other places. An "
        "epoch goes over each interaction so many times.",
    )
    context: int = Field(
        0,
        ge=0,
        description="Packed form: items that a row shows before those it learns, of the max_history of a row. 0 learns every item "
        "of a row, the first after nothing; more have a history before every item but a user's first.",
    )
    max_tokens: int | None = Field(
        None,
        ge=8,
        description="Most tokens of a row, prompt and completion together. Histories lose their oldest items until "
        "a row fits; rows that never fit are left out, counted. null: no limit.",
    )
    like_from: float = Field(4.0, description="Lowest rating that counts as a like.")
    smooth_ratings: bool = Field(
        False,
        description="P5's smoothing: a score of training is drawn about the middle of its band, such as 3.7 to 4.3 "
        "for 4. For ratings of 1 to 5.",
    )
    retrieve: RetrieveSettings = Field(
        default_factory=RetrieveSettings, description="Histories of clicks (the family click)."
    )
    texts: WriterSettings = Field(
        default_factory=WriterSettings, description="Who writes intentions and preferences."
    )
    candidates: int = Field(100, ge=2, description="Items in a list of candidates, the target among them.")
    workers: int = Field(
        1, ge=1, description="Processes that write and tokenise rows; the rows are the same for any number."
    )
    seed: int = Field(0, ge=0, description="Seed of the mixture, of template choice, of draws and of cuts.")

    @model_validator(mode="before")
    @classmethod
    def _reads_what_it_was_called(cls, values: Any) -> Any:
        """Runs and result files of before ``mixture`` have ``names``."""
        if isinstance(values, dict) and "names" in values and "mixture" not in values:
            values = {"mixture": values["names"]} | {
                key: each for key, each in values.items() if key != "names"
            }
        return values

    @model_validator(mode="after")
    def _a_row_learns_something(self) -> TaskSettings:
        if self.context and self.form != "packed":
            raise ValueError(
                f"tasks.context={self.context} is of tasks.form=packed, got {self.form}. Leave it out"
            )
        if self.context >= self.max_history:
            raise ValueError(
                f"tasks.context={self.context} leaves no item to learn of the tasks.max_history={self.max_history} of a row. Lower it"
            )
        return self

    @field_validator("mixture", mode="before")
    @classmethod
    def _names_have_weight_one(cls, value: Any) -> Any:
        return dict.fromkeys(value, 1.0) if isinstance(value, list | tuple) else value

    @field_validator("mixture")
    @classmethod
    def _weights_are_positive(cls, value: dict[str, float | Count]) -> dict[str, float | Count]:
        for name, weight in value.items():
            if not isinstance(weight, Count) and not 0 < weight < float("inf"):
                raise ValueError(f"the weight of {name} must be above 0")
        return value
