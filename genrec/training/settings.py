"""Settings of backbone and training, described once: this text is help and documentation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from genrec.models.settings import NewModelSettings, RecLoraSettings


class ModelSettings(BaseModel):
    """Which language model is tuned, and how its new tokens start."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    backbone: str = Field(
        "smollm2-135m-instruct",
        description="A Hub name (org/model), a folder, a .gguf file, a packaged model "
        "(smollm2-135m-instruct), or new: a small model with random weights, trained from nothing (needs "
        "train.adapter=full). Decoders and encoder-decoders of T5's kind; the latter need tasks.form=windows or prompt.",
    )
    new: NewModelSettings = Field(
        default_factory=NewModelSettings, description="Size of the model that backbone=new makes."
    )
    layers: int | None = Field(
        None, ge=1, description="Keep only so many of the first transformer layers; null keeps all."
    )
    whole_words: bool = Field(
        False,
        description="Whether an encoder-decoder's encoder is told which tokens belong to one word or identifier, as P5's whole-word "
        "embedding does: a table of 512 rows, added to the tokens' vectors and trained like identifier rows.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Type of the frozen weights, and of the products of 4-bit ones; auto is bfloat16 where the machine has it in "
        "hardware.",
    )
    rows_start: Literal["random", "mean", "text", "text+collaborative", "text+teacher"] = Field(
        "text+collaborative",
        description="Start of the identifier rows: random, spread as the old rows; their mean; mean of the title's token rows; that "
        "plus a projection of co-occurrence vectors from training histories, or of the teachers' item vectors.",
    )


class TrainSettings(BaseModel):
    """How the model is tuned."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapter: Literal["full", "lora", "qlora", "dora", "reclora", "qreclora"] = Field(
        "lora",
        description="What is trained beside the identifier rows. full: every weight. lora (Hu et al., 2021): two small matrices "
        "beside each linear layer of the body, which stays as it is. qlora (Dettmers et al., 2023): lora beside a body held in 4 bits "
        "(NF4), a seventh of float32's memory, for models that do not fit otherwise; needs genrec[quantization], and is slow on a "
        "CPU. dora (Liu et al., 2024): lora that learns the length of each layer's weights apart from their direction; slower. reclora (Zhu et "
        "al., 2024): an adapter for each user, mixed from a few by a gate that reads the user's vector (train.reclora); qreclora: "
        "that beside a body in 4 bits.",
    )
    lora_r: int = Field(
        16,
        ge=1,
        description="Rank of lora, qlora and dora, and of each expert of reclora (with slices of all experts together).",
    )
    lora_alpha: int = Field(32, ge=1, description="Their scale is lora_alpha / lora_r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on their input.")
    lora_targets: tuple[str, ...] = Field(
        (),
        description="Names of the linear layers that get them, such as q_proj and v_proj; none is every linear layer of the body. "
        "A wrong name is answered with those of the backbone.",
    )
    reclora: RecLoraSettings = Field(
        default_factory=RecLoraSettings, description="What reclora and qreclora have beyond a LoRA."
    )
    double_quantisation: bool = Field(
        False,
        description="Whether qlora and qreclora hold the scales of 4-bit blocks in 8 bits too: about 0.4 bits less a weight.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Whether layers forget their activations and compute them again in the backward pass: the same gradients in "
        "less memory, for one more forward pass.",
    )
    softmax_over: Literal["level", "vocabulary"] = Field(
        "level",
        description="Among what an identifier token is predicted, in the loss and in decoding alike. level: the identifier tokens of "
        "its place in the code. vocabulary: all tokens of the model, words too, as P5, TIGER and LC-Rec do; it costs the whole output "
        "layer at every target. Items that exclude_history leaves out are no candidates either way.",
    )
    exclude_history: bool = Field(
        True,
        description="Whether the loss of an item leaves out those of its history, as ranking does with "
        "evaluate.exclude_history. Turn both off where users take items again.",
    )
    teacher: Literal["none", "sasrec", "gru4rec", "sasrec+gru4rec"] = Field(
        "none",
        description="Sequence recommenders, trained on the same training histories, whose mean distribution "
        "over items is learned beside the item that came.",
    )
    teacher_weight: float = Field(
        0.5, ge=0, le=1, description="Share of the teachers in the loss, where there are any."
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(
        None,
        ge=1,
        description="Optimizer steps after which training ends, whatever epochs says; null ends by epochs.",
    )
    batch_size: int = Field(
        16, ge=1, description="Rows in one optimizer step, over all processes and accumulated batches."
    )
    accumulation: int = Field(1, ge=1, description="Batches whose gradients are added up for one step.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak rate of the adapter (or of all weights).")
    rows_learning_rate: float = Field(5e-3, gt=0, description="Peak rate of the identifier rows.")
    warmup_steps: float = Field(
        10,
        ge=0,
        description="Steps of rising rate before the schedule begins; below 1 it is a share of all steps.",
    )
    schedule: Literal["linear", "cosine", "inverse_sqrt", "constant"] = Field(
        "linear",
        description="How rates go on after the warm-up: down to 0 linearly or by a cosine, as one over the root of the steps, "
        "or not at all.",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay on the adapter.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="Further arguments of transformers' TrainingArguments, by its names, such as adam_beta2, optim or torch_compile; "
        "what keys above say is refused here.",
    )
    lora_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Further arguments of peft's LoraConfig, by its names, such as use_rslora or init_lora_weights.",
    )
    checkpoint_steps: int = Field(
        100, ge=0, description="Steps between checkpoints to resume from; 0 writes none."
    )
    validate_steps: int = Field(
        0,
        ge=0,
        description="Steps between validations: next items of validation users are ranked as in evaluation, and the weights with the "
        "best NDCG@10 are kept in the end; 0 never validates, and keeps the last.",
    )
    validate_users: int = Field(
        500,
        ge=1,
        description="Validation rows that are ranked each time, drawn by the seed; all where there are fewer.",
    )
    patience: int = Field(
        0,
        ge=0,
        description="Validations without a better NDCG@10 after which training ends; 0 trains to the end.",
    )
    report_to: tuple[str, ...] = Field(
        ("tensorboard",),
        description="Trackers to log to, any that transformers knows (tensorboard, wandb, mlflow, ...), or none. TensorBoard's "
        "files lie in the run's logs/ and need no network.",
    )
    seed: int = Field(0, ge=0, description="Seed of adapter start, order of rows and dropout.")

    @field_validator("report_to", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        """Takes one name for a list of one, and ``none`` for none."""
        return () if value in ("none", None) else (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _keys_that_belong_together(self) -> TrainSettings:
        if self.lora_targets and self.adapter == "full":
            raise ValueError(
                "train.lora_targets needs an adapter, such as train.adapter=lora: full trains every weight. Leave one of them out"
            )
        if self.double_quantisation and not self.four_bit:
            raise ValueError(
                f"train.double_quantisation=true needs train.adapter=qlora or qreclora, got {self.adapter}. Leave one of them out"
            )
        r = self.reclora
        if self.personal and r.slices and self.lora_r % r.experts:
            raise ValueError(
                f"train.reclora.slices=true cuts a LoRA of rank train.lora_r={self.lora_r} among {r.experts} experts: make it a "
                "multiple of them"
            )
        if self.personal and r.routing == "top_k" and r.top_k > r.experts:
            raise ValueError(f"train.reclora.top_k={r.top_k} is more than the {r.experts} experts. Lower it")
        if self.lora_options and self.personal:
            raise ValueError(
                f"train.lora_options are arguments of peft's LoraConfig, which train.adapter={self.adapter} does not take. What it "
                "takes stands in train.reclora. Leave them out"
            )
        return self

    @property
    def four_bit(self) -> bool:
        """Whether the body is held in 4 bits."""
        return self.adapter in ("qlora", "qreclora")

    @property
    def personal(self) -> bool:
        """Whether there is an adapter for each user."""
        return self.adapter in ("reclora", "qreclora")

    @property
    def teachers(self) -> tuple[str, ...]:
        """Kinds of the teachers."""
        return () if self.teacher == "none" else tuple(self.teacher.split("+"))
