"""The trainable whole: backbone, identifier rows and adapter, with a loss only where there is a label."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from genrec.core.errors import DataError, ModelError, RunError
from genrec.core.files import atomic_path, read_json
from genrec.core.processes import process_state
from genrec.indexing import ItemIndex
from genrec.models.backbone import Dtype, load_backbone
from genrec.models.loss import cross_entropy
from genrec.models.settings import NewModelSettings
from genrec.models.vocabulary import ExtendedEmbedding, extend_vocabulary, new_rows

Adapter = Literal["lora", "full"]

ABOUT_FILE = "genrec_model.json"
ROWS_FILE = "identifier_rows.safetensors"
LORA_FILE = "adapter_model.safetensors"
FULL_FILE = "model.safetensors"


class RecommenderModel(nn.Module):
    """A causal language model that writes items.

    Attributes:
        backbone: The model with identifier rows and, for ``"lora"``, adapters injected in place.
        tokenizer: Its tokenizer, identifier tokens included.
        about: What ``load`` needs to build it again: backbone name, layers, adapter settings, hashes of index and data.
        token_level: ``(new tokens,)`` level of each identifier token.
    """

    token_level: torch.Tensor
    _other_level: torch.Tensor

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        index: ItemIndex,
        about: dict[str, Any],
        rows: torch.Tensor,
    ) -> None:
        super().__init__()
        extend_vocabulary(backbone, tokenizer, index.tokens, rows)
        self.tokenizer, self.about = tokenizer, about
        self.first_id = cast(ExtendedEmbedding, backbone.get_input_embeddings()).first_id
        self.register_buffer("token_level", torch.tensor(index.token_levels), persistent=False)
        other_level = torch.arange(index.num_levels)[:, None] != self.token_level
        self.register_buffer("_other_level", other_level, persistent=False)
        self.peft: PeftModel | None = None
        if about["adapter"] == "lora":
            backbone.requires_grad_(False)
            with warnings.catch_warnings():
                # peft 0.21 asks transformers 5.23 for a property under its old name.
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
                self.peft = get_peft_model(backbone, LoraConfig(**about["lora"]))
        for row in new_rows(backbone).values():
            row.requires_grad_(True)
        self.backbone = backbone

    @classmethod
    def create(
        cls,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        index: ItemIndex,
        rows: torch.Tensor,
        *,
        name: str,
        layers: int | None,
        new: NewModelSettings | None = None,
        adapter: Adapter = "lora",
        lora_r: int = 16,
        lora_alpha: int = 32,
        lora_dropout: float = 0.0,
        data_sha256: str | None = None,
    ) -> RecommenderModel:
        """Returns a model ready to train: new tokens in, adapter on, everything else frozen.

        Args:
            backbone: From ``load_backbone``.
            tokenizer: Its tokenizer.
            index: The items' codes.
            rows: ``(tokens, width)`` start values of the identifier rows.
            name: The backbone's name, to load it by again.
            layers: The backbone's ``layers``.
            new: The size of a new backbone, else None.
            adapter: ``"lora"`` on every linear layer of the body, or ``"full"``.
            lora_r: Rank.
            lora_alpha: Scale is ``lora_alpha / lora_r``.
            lora_dropout: Dropout on the adapter's input, in [0, 1).
            data_sha256: Of the prepared data that it will be trained on, if known.
        """
        about: dict[str, Any] = {
            "backbone": name,
            "layers": layers,
            "shape": _shape(backbone),
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "adapter": adapter,
            "index_hash": index.hash,
            "data_sha256": data_sha256,
        }
        if new is not None:
            about["new"] = new.model_dump()
        if adapter == "lora":
            about["lora"] = {
                "r": lora_r,
                "lora_alpha": lora_alpha,
                "lora_dropout": lora_dropout,
                "target_modules": _linear_names(backbone),
            }
        return cls(backbone, tokenizer, index, about, rows)

    @property
    def token_ids(self) -> dict[str, int]:
        """``{identifier token: id}``."""
        first = self.first_id
        return {
            token: first + row
            for row, token in enumerate(
                self.tokenizer.convert_ids_to_tokens(list(range(first, len(self.tokenizer))))
            )
        }

    def check_data(self, split_sha256: str) -> None:
        """Does nothing where a prepared data set is the one that the model was trained on, or that is not known.

        Args:
            split_sha256: From the data set's ``manifest.json``.

        Raises:
            DataError: If it is another, or was split in another way, so that what it holds out may have been learned.
        """
        trained_on = self.about.get("data_sha256")
        if trained_on is not None and trained_on != split_sha256:
            raise DataError(
                f"The model was trained on a data set whose split_sha256 is {trained_on[:16]}, not on this one "
                f"({split_sha256[:16]}): what is held out here may have been learned. Give the data set that it was "
                "trained on, or train on this one."
            )

    @property
    def num_trainable(self) -> int:
        """Number of weights that training changes."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def row_parameters(self) -> list[nn.Parameter]:
        """Returns the identifier rows, which learn at a rate of their own."""
        return list(new_rows(self.backbone).values())

    def hidden(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        """Returns the body's output (``last_hidden_state``, cache) without any vocabulary logits."""
        return self.backbone.base_model(input_ids=input_ids, **inputs)

    def level_log_probs(
        self, hidden: torch.Tensor, level: int, excluded: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns log-probabilities ``(..., new tokens)`` over the identifier tokens of one level.

        Tokens of other levels, and the ``excluded`` ones, are at minus infinity. This is what training
        maximises and what decoding adds up: the probability of a token given that an identifier token of
        that level comes, below which there is an item that may come.

        Args:
            hidden: ``(..., width)`` states of the body.
            level: Position in a code.
            excluded: ``(..., new tokens)`` bool, or None.
        """
        out = self.token_level != level
        if excluded is not None:
            out = out | excluded
        scores = self.backbone.get_output_embeddings().new_scores(hidden)
        return scores.masked_fill(out, float("-inf")).log_softmax(-1)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        excluded: torch.Tensor | None = None,
        soft_targets: torch.Tensor | None = None,
        soft_weight: float = 0.0,
        **_: Any,
    ) -> dict[str, torch.Tensor]:
        """Returns ``{"loss": ...}``, the mean over labels of the negative log-probability.

        A label that is an identifier token is predicted among the identifier tokens of its level, any
        other label among the whole vocabulary; no logits are made where there is no label.

        Args:
            input_ids: ``(batch, length)``, padded on the right.
            attention_mask: ``(batch, length)``, 0 at padding.
            labels: ``(batch, length)``, -100 where nothing is learned; the label at a position is that
                position's own token, predicted from the one before.
            num_items_in_batch: Number of labels of the whole step over all processes and accumulated
                batches, by which the sum is divided; None divides by this batch's own.
            excluded: ``(identifier labels, new tokens)`` bool, tokens that are no candidates there, or None.
            soft_targets: ``(identifier labels, new tokens)`` distributions of a teacher, or None.
            soft_weight: Share of the cross-entropy to the teacher in the loss of identifier labels.
        """
        states = self.hidden(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        learned = labels[:, 1:] != -100
        states, targets = states[:, :-1][learned], labels[:, 1:][learned]
        identifier = targets >= self.first_id
        head = self.backbone.get_output_embeddings()
        new = targets[identifier] - self.first_id
        out = self._other_level[self.token_level[new]]
        if excluded is not None:
            out = out | excluded
        own_states = states[identifier].to(head.rows.dtype)
        loss = cross_entropy(own_states, head.rows, new, out, soft_targets, soft_weight)
        if not bool(identifier.all()):
            scores = head(states[~identifier]).float()
            loss = loss + nn.functional.cross_entropy(scores, targets[~identifier], reduction="sum")
        return {"loss": loss / (len(targets) if num_items_in_batch is None else num_items_in_batch)}

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Returns every trained tensor by name: adapter (or all weights) and identifier rows."""
        rows = {f"rows.{name}": row.detach() for name, row in new_rows(self.backbone).items()}
        if self.peft is not None:
            # Without save_embedding_layers=False peft adds the whole embedding to a 4 MB adapter.
            return rows | get_peft_model_state_dict(self.peft, save_embedding_layers=False)
        own = {id(row) for row in new_rows(self.backbone).values()}
        return rows | {
            name: parameter.detach()
            for name, parameter in self.backbone.named_parameters()
            if id(parameter) not in own
        }

    def load_trained_state(self, state: dict[str, torch.Tensor]) -> None:
        """Sets every trained tensor.

        Raises:
            RunError: If one is missing, left over or of another shape.
        """
        expected = {name: tensor.shape for name, tensor in self.trained_state().items()}
        found = {name: tensor.shape for name, tensor in state.items()}
        if expected != found:
            wrong = sorted(set(expected.items()) ^ set(found.items()), key=str)
            raise RunError(f"The saved weights do not fit the model; first difference: {wrong[0]}.")
        with torch.no_grad():
            for name, row in new_rows(self.backbone).items():
                row.copy_(state[f"rows.{name}"])
            rest = {name: tensor for name, tensor in state.items() if not name.startswith("rows.")}
            if self.peft is not None:
                set_peft_model_state_dict(self.peft, rest)
            else:
                parameters = dict(self.backbone.named_parameters())
                for name, tensor in rest.items():
                    parameters[name].copy_(tensor)

    def save(self, folder: str | Path) -> None:
        """Writes what training changed, and the tokenizer, whole or not at all.

        LoRA is written as a peft adapter (``adapter_config.json``, ``adapter_model.safetensors``), full
        weights as ``model.safetensors``, the identifier rows as ``identifier_rows.safetensors``. No frozen
        weight is written.

        Raises:
            RunError: If the disk refuses.
        """
        state = {name: tensor.cpu().contiguous() for name, tensor in self.trained_state().items()}
        rows = {name: tensor for name, tensor in state.items() if name.startswith("rows.")}
        rest = {name: tensor for name, tensor in state.items() if name not in rows}
        with atomic_path(folder) as part:
            part.mkdir()
            try:
                save_file(rows, part / ROWS_FILE)
                save_file(rest, part / (LORA_FILE if self.peft is not None else FULL_FILE))
            except SafetensorError as error:
                raise OSError(str(error)) from error
            if self.peft is not None:
                config = self.peft.peft_config["default"]
                config.base_model_name_or_path = self.about["backbone"]
                config.save_pretrained(str(part))
            self.tokenizer.save_pretrained(part)
            (part / ABOUT_FILE).write_text(json.dumps(self.about, indent=2) + "\n")

    def load_weights(self, folder: str | Path) -> None:
        """Sets every trained tensor from files that ``save`` wrote.

        Raises:
            RunError: If a file is missing, broken or does not fit the model.
        """
        folder = Path(folder)
        try:
            state = load_file(folder / ROWS_FILE)
            state |= load_file(folder / (LORA_FILE if self.peft is not None else FULL_FILE))
        except (OSError, SafetensorError) as error:
            raise RunError(f"The weights in {folder} are incomplete or broken: {error}") from error
        self.load_trained_state(state)

    @classmethod
    def load(cls, folder: str | Path, index: ItemIndex, dtype: Dtype = "auto") -> RecommenderModel:
        """Returns the model that ``save`` wrote, its backbone loaded by name, on the GPU where there is one.

        Args:
            folder: What ``save`` wrote.
            index: The index it was trained with.
            dtype: Of the frozen weights; ``"auto"`` is what they were trained beside, on any machine, since
                another type gives other scores.

        Raises:
            RunError: If files are missing or broken, or the index is not the one it was trained with.
            ModelError: If the backbone cannot be loaded or has another shape now.
        """
        about = read_json(Path(folder) / ABOUT_FILE)
        if about["index_hash"] != index.hash:
            raise RunError(
                f"{folder} was trained with the index {about['index_hash'][:12]}, not with the given one "
                f"({index.hash[:12]}). Use the index saved beside it."
            )
        backbone, tokenizer = load_backbone(
            about["backbone"],
            about["layers"],
            about["dtype"] if dtype == "auto" else dtype,
            NewModelSettings(**about["new"]) if "new" in about else None,
        )
        if (now := _shape(backbone)) != about["shape"]:
            raise ModelError(
                f"{about['backbone']} has the shape {now} now; {folder} was trained on {about['shape']}."
            )
        rows = torch.zeros(len(index.tokens), backbone.config.hidden_size)
        model = cls(backbone, tokenizer, index, about, rows)
        model.load_weights(folder)
        return model.to(process_state().device).eval()


def _shape(backbone: PreTrainedModel) -> dict[str, Any]:
    return {k: getattr(backbone.config, k, None) for k in ("model_type", "hidden_size", "vocab_size")}


def _linear_names(backbone: PreTrainedModel) -> list[str]:
    """Returns the names of the linear layers inside the body, such as ``q_proj``."""
    return sorted(
        {name.split(".")[-1] for name, m in backbone.base_model.named_modules() if isinstance(m, nn.Linear)}
    )
