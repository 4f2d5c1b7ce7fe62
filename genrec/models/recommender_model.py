"""The trainable whole: backbone, identifier rows and adapter, with a loss only where there is a label."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.pytorch_utils import Conv1D

from genrec.core.errors import DataError, ModelError, RunError, check_passed_on, nearest
from genrec.core.files import atomic_path, read_json
from genrec.core.processes import process_state
from genrec.indexing import ItemIndex
from genrec.models.backbone import Dtype, load_backbone, quiet, resolve_dtype
from genrec.models.loss import cross_entropy
from genrec.models.reclora import RecLoraConfig, RecLoraLinear
from genrec.models.settings import NewModelSettings
from genrec.models.vocabulary import ExtendedEmbedding, extend_vocabulary, join_vocabulary, new_rows

Adapter = Literal["full", "lora", "qlora", "dora", "reclora", "qreclora"]
SoftmaxOver = Literal["level", "vocabulary"]

ABOUT_FILE = "genrec_model.json"
ROWS_FILE = "identifier_rows.safetensors"
LORA_FILE = "adapter_model.safetensors"
FULL_FILE = "model.safetensors"


WHOLE_WORDS = 512
# A beginning that prompts have in common is read once from so many tokens on: less is not worth a pass of its own.
SHARED_TOKENS = 16


@dataclass(frozen=True)
class Prefixes:
    """What ``RecommenderModel`` has read so far: prompts, and after each prompt as many beams as any has.

    Nothing of it changes when it is gone on from, so that one may go on from it again.

    Attributes:
        cache: Keys and values, None where nothing will go on.
        mask: ``(prompts, length)`` of what a prompt is.
        lengths: ``(prompts,)`` tokens of a prompt.
        num_beams: After each prompt.
        paths: ``(prompts, beams, tokens)`` where in the cache, behind the prompt, the tokens of a beam are, where all
            beams share one row of it with their prompt; None where each has a row of its own.
        num_shared: Tokens of beams in such a row.
        level: Tokens of each beam.
        encoded: ``(rows, length, width)`` states of an encoder, or None.
        users: ``(prompts, width)`` vectors of the users who are answered, or None.
    """

    cache: Any
    mask: torch.Tensor
    lengths: torch.Tensor
    num_beams: int = 1
    paths: torch.Tensor | None = None
    num_shared: int = 0
    level: int = 0
    encoded: torch.Tensor | None = None
    users: torch.Tensor | None = None

    def select(self, prompts: torch.Tensor) -> Prefixes:
        """Returns what was read of these prompts, any of them any number of times, in this order."""
        rows = prompts
        if self.paths is None and self.num_beams > 1:
            rows = prompts[:, None] * self.num_beams + torch.arange(self.num_beams, device=prompts.device)
        return replace(
            self,
            cache=_rows_of(self.cache, rows.flatten()),
            mask=self.mask[prompts],
            lengths=self.lengths[prompts],
            paths=None if self.paths is None else self.paths[prompts],
            encoded=None if self.encoded is None else self.encoded[rows.flatten()],
            users=None if self.users is None else self.users[prompts],
        )


def _copy_of(cache: Any) -> Any:
    """Returns a cache that may grow or be reordered without the given one, whose tensors it shares until then."""
    found = copy.copy(cache)
    if isinstance(cache, EncoderDecoderCache):
        found.self_attention_cache = _copy_of(cache.self_attention_cache)
        found.cross_attention_cache = _copy_of(cache.cross_attention_cache)
        found.is_updated = dict(cache.is_updated)
    else:
        found.layers = [copy.copy(layer) for layer in cache.layers]
    return found


def _rows_of(cache: Any, rows: torch.Tensor) -> Any:
    if cache is None:
        return None
    found = _copy_of(cache)
    found.batch_select_indices(rows)
    return found


class RecommenderModel(nn.Module):
    """A language model, causal or encoder-decoder, that writes items.

    Attributes:
        whole_words: ``(512, width)`` vectors of words by their number, added to the tokens of an encoder-decoder's prompt, or
            None. The last row is that of all words from its number on.
        backbone: The model with identifier rows and, but for ``"full"``, adapters injected in place.
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
        self.is_encoder_decoder = bool(backbone.config.is_encoder_decoder)
        self._scale, self._cap = _around_the_head(backbone)
        extend_vocabulary(backbone, tokenizer, index.tokens, rows)
        self.whole_words: nn.Parameter | None = None
        if about.get("whole_words"):
            # From nothing, so that a pretrained encoder begins with what it knows.
            self.whole_words = nn.Parameter(torch.zeros(WHOLE_WORDS, rows.shape[1]))
        self.tokenizer, self.about = tokenizer, about
        self.first_id = cast(ExtendedEmbedding, backbone.get_input_embeddings()).first_id
        self._depth, self._shares = index.num_levels, cast(bool | None, None)
        self.register_buffer("token_level", torch.tensor(index.token_levels), persistent=False)
        other_level = torch.arange(index.num_levels)[:, None] != self.token_level
        self.register_buffer("_other_level", other_level, persistent=False)
        # Tokens of a level lie beside each other, but for those of items that came later.
        levels = np.array(index.token_levels)
        places = [np.flatnonzero(levels == level) for level in range(index.num_levels)]
        self._level_span = [(int(found[0]), int(found[-1]) + 1) for found in places]
        self.peft: PeftModel | None = None
        if about["adapter"] != "full":
            backbone.requires_grad_(False)
            with warnings.catch_warnings():
                # peft 0.21 asks transformers 5.23 for a property under its old name.
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
                self.peft = get_peft_model(backbone, _adapter_config(about))
        self.backbone = backbone
        self._no_split_modules = backbone._no_split_modules  # the layers by which FSDP divides a model
        for row in self._rows().values():
            row.requires_grad_(True)

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
        lora_targets: Sequence[str] = (),
        lora_options: Mapping[str, Any] | None = None,
        reclora: Mapping[str, Any] | None = None,
        double_quantisation: bool = False,
        softmax_over: SoftmaxOver = "level",
        data_sha256: str | None = None,
        whole_words: bool = False,
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
            adapter: ``"full"`` trains every weight; ``"lora"`` (Hu et al., 2021) and ``"dora"`` (Liu et al., 2024) a small
                adapter beside linear layers of the body; ``"qlora"`` (Dettmers et al., 2023) a LoRA beside a backbone that
                was loaded in 4 bits; ``"reclora"`` (Zhu et al., 2024) an adapter for each user, mixed from a few
                (``genrec.models.reclora``), and ``"qreclora"`` such beside a backbone in 4 bits.
            lora_r: Rank; of RecLoRA that of each expert, with ``slices`` of all together.
            lora_alpha: Scale is ``lora_alpha / lora_r``.
            lora_dropout: Dropout on the adapter's input, in [0, 1).
            lora_targets: Names of the linear layers that get an adapter, such as ``q_proj``; none is all of the body.
            lora_options: Further arguments of ``LoraConfig``, such as ``use_rslora``.
            reclora: Those of ``RecLoraConfig`` that a LoRA has not, ``user_size`` among them.
            double_quantisation: As the backbone was loaded.
            softmax_over: Among what an identifier token is predicted, see ``level_log_probs``.
            data_sha256: Of the prepared data that it will be trained on, if known.
            whole_words: Whether the encoder is told which tokens belong to one word, as P5's is (``Renderer.whole_word_ids``).

        Raises:
            ModelError: If whole words are asked for and there is no encoder, a target is no linear layer of the body, or
                the backbone is in 4 bits for another adapter than ``"qlora"`` and ``"qreclora"``, or not in 4 bits for these.
        """
        if whole_words and not backbone.config.is_encoder_decoder:
            raise ModelError(
                f"model.whole_words=true needs an encoder-decoder; {name} is a decoder. Leave it out, or take a T5."
            )
        about: dict[str, Any] = {
            "backbone": name,
            "layers": layers,
            "shape": _shape(backbone),
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "adapter": adapter,
            "softmax_over": softmax_over,
            "index_hash": index.hash,
            "data_sha256": data_sha256,
            "whole_words": whole_words,
        }
        if new is not None:
            about["new"] = new.model_dump()
        four_bit = adapter in ("qlora", "qreclora")
        if four_bit != _is_four_bit(backbone):
            raise ModelError(
                f"The backbone {name} is {'' if _is_four_bit(backbone) else 'not '}in 4 bits, and adapter is {adapter!r}. "
                "Load it with load_backbone(..., four_bit=True) for 'qlora' and 'qreclora', and without for the others."
            )
        if four_bit:
            about["double_quantisation"] = double_quantisation
        if adapter != "full":
            shape = {
                "r": lora_r,
                "lora_alpha": lora_alpha,
                "lora_dropout": lora_dropout,
                "target_modules": _targets(backbone, name, lora_targets),
            }
            if adapter.endswith("reclora"):
                about["reclora"] = shape | dict(reclora or {})
                return cls(backbone, tokenizer, index, about, rows)
            about["lora"] = shape | {
                "use_dora": adapter == "dora",
                # Where it is not so for every layer, peft corrects it for each by itself.
                "fan_in_fan_out": any(isinstance(layer, Conv1D) for layer in backbone.modules()),
            }
            keys = "(train.lora_r, lora_alpha, lora_dropout, lora_targets and adapter)"
            given = lora_options or {}
            check_passed_on("train.lora_options", given, about["lora"], LoraConfig, keys, ModelError)
            about["lora"] |= given
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
    def user_size(self) -> int | None:
        """Width of the vectors of users that it answers, None where it answers all alike."""
        return self.about["reclora"].get("user_size") if "reclora" in self.about else None

    @contextmanager
    def answering(self, users: torch.Tensor | None) -> Iterator[None]:
        """Within it adapters are those of these users, ``(rows, user_size)``; of a model without personal ones nothing changes."""
        if self.user_size is None:
            yield
            return
        if users is None:
            raise ModelError(
                f"This model's adapters are made for each user, and no vectors of users came. Give one of width {self.user_size} "
                "for each row."
            )
        assert self.peft is not None
        with cast(Any, self.peft).users(users):
            yield

    @property
    def num_trainable(self) -> int:
        """Number of weights that training changes."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def row_parameters(self) -> list[nn.Parameter]:
        """Returns the identifier rows, which learn at a rate of their own."""
        return list(self._rows().values())

    def _rows(self) -> dict[str, nn.Parameter]:
        """Returns what is trained beside the adapter: identifier rows, and whole-word vectors where there are any."""
        rows = new_rows(self.backbone)
        return rows if self.whole_words is None else rows | {"whole_words": self.whole_words}

    @property
    def decoder_start(self) -> int | None:
        """Token that an encoder-decoder's decoder begins with; None is a decoder-only model."""
        if not self.is_encoder_decoder:
            return None
        config = self.backbone.config
        first = getattr(config, "decoder_start_token_id", None)
        return config.pad_token_id if first is None else first

    def states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor | None = None,
        whole_words: torch.Tensor | None = None,
        user_vectors: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns ``(batch, length, width)`` states from which the output layer predicts, without any logits.

        Args:
            input_ids: ``(batch, length)``, padded on the right; an encoder's, if there is one.
            attention_mask: ``(batch, length)``, 0 at padding.
            decoder_input_ids: ``(batch, decoder length)``, ``decoder_start`` first; whose states are returned.
            whole_words: ``(batch, length)`` numbers of words, for a model with ``whole_words``.
            user_vectors: ``(batch, user_size)``, for a model of personal adapters.
        """
        with self.answering(user_vectors):
            if not self.is_encoder_decoder:
                output = self.backbone.base_model(
                    input_ids=input_ids, attention_mask=attention_mask, use_cache=False
                )
                return self._scaled(output.last_hidden_state)
            encoded = self._encode(input_ids, attention_mask, whole_words)
            return self._decode(decoder_input_ids, encoded, attention_mask)[0]

    def _encode(
        self, ids: torch.Tensor, mask: torch.Tensor, whole_words: torch.Tensor | None
    ) -> torch.Tensor:
        vectors = self.backbone.get_input_embeddings()(ids)
        if self.whole_words is not None:
            assert whole_words is not None
            own = self.whole_words[whole_words.clamp(max=WHOLE_WORDS - 1)]
            vectors = vectors + own.to(vectors.dtype)
        return self.backbone.get_encoder()(inputs_embeds=vectors, attention_mask=mask).last_hidden_state

    def _decode(
        self,
        ids: torch.Tensor | None,
        encoded: torch.Tensor,
        mask: torch.Tensor,
        cache: Any = None,
        keep: bool = False,
    ) -> tuple[torch.Tensor, Any]:
        output = self.backbone.get_decoder()(
            input_ids=ids,
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=keep,
        )
        return self._scaled(output.last_hidden_state), output.past_key_values if keep else None

    def _scaled(self, states: torch.Tensor) -> torch.Tensor:
        return states if self._scale == 1.0 else states * self._scale

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        whole_words: Sequence[Sequence[int]] | None = None,
        keep: bool = True,
        users: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Prefixes]:
        """Returns ``(prompts, 1, width)`` states from which the first answered token is predicted, and where to go on.

        A decoder reads what all prompts begin with once, and then the rest of each; one of personal adapters makes
        something else of it for each user, and reads all of each.

        Args:
            prompts: Token ids, from ``Renderer.prompt_ids``.
            whole_words: Of the same lengths, for a model with ``whole_words``.
            keep: Whether ``go_on`` will be called.
            users: ``(prompts, user_size)`` vectors, for a model of personal adapters.
        """
        with self.answering(users):
            states, prefixes = self._read(prompts, whole_words, keep)
        return states, replace(prefixes, users=users)

    def _read(
        self, prompts: Sequence[Sequence[int]], whole_words: Sequence[Sequence[int]] | None, keep: bool
    ) -> tuple[torch.Tensor, Prefixes]:
        device = self.token_level.device
        # On the left before a decoder: a layer that sees a window of the last tokens (Mistral's, Gemma's) would see
        # padding in it otherwise, and nothing of a short prompt beside a long one.
        side = "right" if self.is_encoder_decoder else "left"

        ids, mask = padded(prompts, side, device)
        lengths = mask.sum(1)
        if self.is_encoder_decoder:
            encoded = self._encode(
                ids, mask, None if whole_words is None else padded(whole_words, side, device)[0]
            )
            start = torch.full((len(ids), 1), cast(int, self.decoder_start), device=device)
            states, cache = self._decode(start, encoded, mask, keep=keep)
            return states, Prefixes(cache, mask, lengths, encoded=encoded)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        windowless = self._fits_windows(ids.shape[1] + self._depth)
        shared = _common_beginning(prompts) if windowless and self.user_size is None else 0
        cache = self._cache(windowless) if keep or shared >= SHARED_TOKENS else None
        if shared >= SHARED_TOKENS:
            first = torch.tensor([prompts[0][:shared]], device=device)
            self.backbone.base_model(input_ids=first, past_key_values=cache, use_cache=True)
            assert cache is not None
            cache.batch_repeat_interleave(len(ids))
            ids, mask = padded([prompt[shared:] for prompt in prompts], side, device)
            positions = (shared + mask.cumsum(1) - 1).clamp(min=0)
            mask = nn.functional.pad(mask, (shared, 0), value=1)
        output = self.backbone.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        last = output.last_hidden_state[:, -1:]
        return self._scaled(last), Prefixes(output.past_key_values, mask, lengths)

    def go_on(
        self, prefixes: Prefixes, parents: torch.Tensor, tokens: torch.Tensor, share: bool | None = None
    ) -> tuple[torch.Tensor, Prefixes]:
        """Returns ``(prompts, beams, width)`` states after one more token of each beam, and where to go on from there.

        The beams of a decoder share their prompt's row: they are tokens beside each other in it, each with its own
        position, and a mask shows each what it came from. So nothing that was read of a prompt is copied. Where a model
        cannot be asked so (an encoder-decoder's places of tokens, a window that is too short, attention that takes no
        such mask), each beam has a row of its own.

        Args:
            prefixes: From ``read`` or ``go_on``.
            parents: ``(prompts, beams)`` which beam of ``prefixes`` each of these goes on from.
            tokens: ``(prompts, beams)`` ids.
            share: Whether beams share rows; None decides.
        """
        with self.answering(prefixes.users):
            return self._go_on(prefixes, parents, tokens, share)

    def _go_on(
        self, prefixes: Prefixes, parents: torch.Tensor, tokens: torch.Tensor, share: bool | None
    ) -> tuple[torch.Tensor, Prefixes]:
        p, (num_prompts, num_beams) = prefixes, parents.shape
        device = tokens.device
        if share is None:
            share = p.paths is not None or (p.level == 0 and self._can_share(p))
        if share:
            new = torch.arange(p.num_shared, p.num_shared + num_beams, device=device)
            paths = new.expand(num_prompts, -1)[..., None]
            if p.paths is not None:
                before = p.paths.gather(1, parents[..., None].expand(-1, -1, p.level))
                paths = torch.cat([before, paths], -1)
            behind = torch.zeros(
                num_prompts, num_beams, p.num_shared + num_beams, dtype=torch.bool, device=device
            )
            behind.scatter_(2, paths, True)
            seen = torch.cat([p.mask.bool()[:, None].expand(-1, num_beams, -1), behind], -1)
            dtype = self.backbone.dtype
            hidden = torch.zeros(seen.shape, dtype=dtype, device=device)
            hidden.masked_fill_(~seen, torch.finfo(dtype).min)
            cache = _copy_of(p.cache)
            output = self.backbone.base_model(
                input_ids=tokens,
                attention_mask=hidden[:, None],
                position_ids=(p.lengths[:, None] + p.level).expand(-1, num_beams),
                past_key_values=cache,
                use_cache=True,
            )
            states = output.last_hidden_state
            grown = replace(
                p, cache=cache, num_beams=num_beams, paths=paths, num_shared=p.num_shared + num_beams
            )
            return self._scaled(states), replace(grown, level=p.level + 1)

        rows = torch.arange(num_prompts, device=device)[:, None]
        every = (rows * p.num_beams + parents).flatten()
        encoded, cache = p.encoded, p.cache
        if encoded is not None:
            cache = _copy_of(cache)
            cache.self_attention_cache.batch_select_indices(every)
            # What the encoder said of a prompt is the same for all its beams.
            if num_beams != p.num_beams:
                cache.cross_attention_cache.batch_select_indices(every)
                encoded = encoded[every]
            mask = p.mask.repeat_interleave(num_beams, 0)
            states, cache = self._decode(tokens.reshape(-1, 1), encoded, mask, cache, keep=True)
        else:
            cache = _rows_of(cache, every)
            mask = nn.functional.pad(p.mask.repeat_interleave(num_beams, 0), (0, p.level + 1), value=1)
            output = self.backbone.base_model(
                input_ids=tokens.reshape(-1, 1),
                attention_mask=mask,
                position_ids=(p.lengths + p.level).repeat_interleave(num_beams)[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            states, cache = self._scaled(output.last_hidden_state), output.past_key_values
        grown = replace(p, cache=cache, num_beams=num_beams, level=p.level + 1, encoded=encoded)
        return states.view(num_prompts, num_beams, -1), grown

    @torch.inference_mode()
    def choose(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: Sequence[int],
        user_vectors: torch.Tensor | None = None,
        whole_words: Sequence[Sequence[int]] | None = None,
    ) -> torch.Tensor:
        """Returns ``(prompts, tokens)`` log-probabilities of some tokens as the first of the answer, among these alone.

        Args:
            prompts: As ``read``.
            tokens: Ids of words, such as those of yes and no.
            user_vectors: As ``read``.
            whole_words: As ``read``.
        """
        states, _ = self.read(prompts, whole_words, keep=False, users=user_vectors)
        head = self.backbone.get_output_embeddings()
        scores = self._capped(head.base(states[:, 0])[:, list(tokens)].float())
        return scores.log_softmax(-1)

    def _fits_windows(self, length: int) -> bool:
        """Returns whether every layer sees all of so many tokens, as far as the model's configuration says."""
        layers = DynamicCache(config=self.backbone.config).layers
        return all(
            length < layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)
        )

    def _cache(self, windowless: bool) -> DynamicCache:
        """Returns an empty cache of the model's kind; where no window will be reached, it keeps every token."""
        cache = DynamicCache(config=self.backbone.config)
        if windowless:
            cache.layers = [
                DynamicLayer() if isinstance(layer, DynamicSlidingWindowLayer) else layer
                for layer in cache.layers
            ]
        return cache

    def _can_share(self, prefixes: Prefixes) -> bool:
        if self.is_encoder_decoder or any(type(layer) is not DynamicLayer for layer in prefixes.cache.layers):
            return False
        if self._shares is None:
            self._shares = self._tries_sharing()
        return self._shares

    def _tries_sharing(self) -> bool:
        """Returns whether beams that share a row get the states of beams that do not, on a prompt beside a longer one."""
        first, last = self.first_id, self.first_id + len(self.token_level) - 1
        device = self.token_level.device
        parents, tokens = torch.tensor([[0, 1]], device=device), torch.tensor([[first, last]], device=device)
        users = None if self.user_size is None else torch.zeros(2, self.user_size, device=device)
        states, training = [], self.training
        self.eval()  # dropout would tell any two passes apart
        try:
            for share in (True, False):
                try:
                    _, prefixes = self.read([[last, first, first, last], [first, last]], users=users)
                    for step in (parents * 0, 1 - parents):
                        found, prefixes = self.go_on(
                            prefixes, step.expand(2, -1), tokens.expand(2, -1), share
                        )
                except Exception:  # whatever a model raises that was not written for it
                    if not share:
                        raise
                    return False
                states.append(found.float())
        finally:
            self.train(training)
        tolerance = 1e-3 if self.backbone.dtype == torch.float32 else 0.05
        return bool((states[0] - states[1]).abs().max() <= tolerance * states[1].abs().max())

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Makes layers forget their activations and compute them again in the backward pass, as transformers' own does.

        Args:
            options: Of ``PreTrainedModel.activation_checkpointing_enable``; transformers' Trainer gives them.

        Raises:
            ModelError: If the backbone cannot.
        """
        try:
            self.backbone.activation_checkpointing_enable(**options)
        except ValueError as error:
            raise ModelError(f"train.gradient_checkpointing=true is not possible: {error}") from error
        # Identifier rows are trained, so inputs have gradients; the hook that gives them some refuses tensors of
        # inference mode, in which a model is measured between two steps.
        self.backbone.disable_input_require_grads()

    def level_log_probs(
        self,
        hidden: torch.Tensor,
        level: int,
        excluded: torch.Tensor | None = None,
        over: SoftmaxOver | None = None,
    ) -> torch.Tensor:
        """Returns log-probabilities ``(..., new tokens)`` over the identifier tokens of one level.

        Tokens of other levels, and the ``excluded`` ones, are at minus infinity. This is what training
        maximises and what decoding adds up: the probability of a token given that an identifier token of
        that level comes, below which there is an item that may come; or, of a model with
        ``softmax_over="vocabulary"``, given only that no excluded token comes.

        Args:
            hidden: ``(..., width)`` states of the body.
            level: Position in a code.
            excluded: ``(..., new tokens)`` bool, or None.
            over: Among what, where it is not as the model was trained.
        """
        if over == "vocabulary" or (over is None and self._over_vocabulary):
            out = self._other_level[level]
            return self._vocabulary_log_probs(hidden, excluded).masked_fill(out, float("-inf"))
        first, last = self._level_span[level]
        out = self._other_level[level, first:last]
        if excluded is not None:
            out = out | excluded[..., first:last]
        scores = self._capped(self.backbone.get_output_embeddings().new_scores(hidden, first, last))
        log_probs = scores.masked_fill(out, float("-inf")).log_softmax(-1)
        return nn.functional.pad(log_probs, (first, len(self.token_level) - last), value=float("-inf"))

    @property
    def _over_vocabulary(self) -> bool:
        return self.about.get("softmax_over") == "vocabulary"

    def _vocabulary_log_probs(self, states: torch.Tensor, excluded: torch.Tensor | None) -> torch.Tensor:
        """Returns ``(..., new tokens)`` log-probabilities among all tokens but the excluded ones."""
        head = self.backbone.get_output_embeddings()
        # One after the other: joined, the scores of all words would be copied.
        old = self._capped(head.base(states)[..., : self.first_id].float()).logsumexp(-1, keepdim=True)
        new = self._capped(head.new_scores(states).float())
        if excluded is not None:
            new = new.masked_fill(excluded, float("-inf"))
        return new - torch.logaddexp(old, new.logsumexp(-1, keepdim=True))

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """Returns float32 ``(..., vocabulary)``, the backbone's own logits."""
        return self._capped(self.backbone.get_output_embeddings()(states).float())

    def _capped(self, scores: torch.Tensor) -> torch.Tensor:
        return scores if self._cap is None else self._cap * torch.tanh(scores / self._cap)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        excluded: torch.Tensor | None = None,
        soft_targets: torch.Tensor | None = None,
        soft_weight: float = 0.0,
        decoder_input_ids: torch.Tensor | None = None,
        whole_words: torch.Tensor | None = None,
        user_vectors: torch.Tensor | None = None,
        **_: Any,
    ) -> dict[str, torch.Tensor]:
        """Returns ``{"loss": ...}``, the mean over labels of the negative log-probability.

        A label that is an identifier token is predicted as ``level_log_probs`` says, any other label among
        the whole vocabulary; no logits are made where there is no label.

        Args:
            input_ids: ``(batch, length)``, padded on the right.
            attention_mask: ``(batch, length)``, 0 at padding.
            labels: ``(batch, length)``, -100 where nothing is learned; the label at a position is that
                position's own token, predicted from the one before. Of an encoder-decoder ``(batch, decoder length)``.
            num_items_in_batch: Number of labels of the whole step over all processes and accumulated
                batches, by which the sum is divided; None divides by this batch's own.
            excluded: ``(identifier labels, new tokens)`` bool, tokens that are no candidates there, or None.
            soft_targets: ``(identifier labels, new tokens)`` distributions of a teacher, or None.
            soft_weight: Share of the cross-entropy to the teacher in the loss of identifier labels.
            decoder_input_ids: As ``states``.
            whole_words: As ``states``.
            user_vectors: As ``states``.
        """
        states = self.states(input_ids, attention_mask, decoder_input_ids, whole_words, user_vectors)
        learned = labels[:, 1:] != -100
        states, targets = states[:, :-1][learned], labels[:, 1:][learned]
        identifier = targets >= self.first_id
        head = self.backbone.get_output_embeddings()
        new = targets[identifier] - self.first_id
        if self._over_vocabulary:
            log_probs = self._vocabulary_log_probs(states[identifier], excluded)
            hard_weight = 1.0 if soft_targets is None else 1.0 - soft_weight
            loss = -hard_weight * log_probs.gather(1, new[:, None]).sum()
            if soft_targets is not None:
                # A teacher gives nothing to what is excluded; 0 times minus infinity would be NaN.
                kept = log_probs if excluded is None else log_probs.masked_fill(excluded, 0.0)
                loss = loss - soft_weight * (soft_targets * kept).sum()
        else:
            out = self._other_level[self.token_level[new]]
            if excluded is not None:
                out = out | excluded
            own_states = states[identifier].to(head.rows.dtype)
            loss = cross_entropy(own_states, head.rows, new, out, soft_targets, soft_weight, self._cap)
        if not bool(identifier.all()):
            scores = self._logits(states[~identifier])
            loss = loss + nn.functional.cross_entropy(scores, targets[~identifier], reduction="sum")
        return {"loss": loss / (len(targets) if num_items_in_batch is None else num_items_in_batch)}

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Returns every trained tensor by name: adapter (or all weights) and identifier rows."""
        rows = {f"rows.{name}": row.detach() for name, row in self._rows().items()}
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
        """Sets every trained tensor, a process's part of it where FSDP2 has divided it.

        Raises:
            RunError: If one is missing, left over or of another shape.
        """
        there = self.trained_state()
        expected = {name: tensor.shape for name, tensor in there.items()}
        found = {name: tensor.shape for name, tensor in state.items()}
        if expected != found:
            wrong = sorted(set(expected.items()) ^ set(found.items()), key=str)
            raise RunError(f"The saved weights do not fit the model; first difference: {wrong[0]}.")
        state = {
            name: distribute_tensor(state[name], now.device_mesh, now.placements)
            if isinstance(now, DTensor)
            else state[name]
            for name, now in there.items()
        }
        with torch.no_grad():
            for name, row in self._rows().items():
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

    @torch.no_grad()
    def merge_and_save(
        self, folder: str | Path, dtype: Dtype = "auto", user: torch.Tensor | None = None
    ) -> None:
        """Writes an ordinary transformers folder: adapter in the weights, identifier rows in embedding and output layer.

        ``AutoModelForCausalLM`` or ``AutoModelForSeq2SeqLM`` and ``AutoTokenizer`` open it without genrec. 4-bit
        weights become plain ones, with the rounding that the adapter was trained beside. The model itself stays as it is.

        Args:
            folder: Is written whole or not at all.
            dtype: Type of the written weights; ``"auto"`` is that of the frozen ones. Sums are made in float32.
            user: ``(user_size,)`` vector of the one user whose model is written, where adapters are personal.

        Raises:
            ModelError: If the model has whole-word vectors, for which such a folder has no place, or adapters are personal and
                no user is given.
            RunError: If the disk refuses.
        """
        if self.whole_words is not None:
            raise ModelError(
                "A model with model.whole_words=true cannot be merged: the vectors of its words are added to the tokens' by "
                "genrec, and an ordinary transformers model has no place for them. Use it through genrec."
            )
        if self.user_size is not None and user is None:
            raise ModelError(
                "An ordinary transformers model is the same for everyone, and the adapters of this one are made for each user. "
                "Say for whom it shall be written."
            )
        # Both at once, so that the adapter's layers stay those of the backbone.
        backbone, adapter = copy.deepcopy((self.backbone, self.peft))
        of_user = nullcontext() if user is None or adapter is None else cast(Any, adapter).users(user[None])
        with of_user:
            if _is_four_bit(backbone):
                _dequantise(backbone)
            backbone.float()
            join_vocabulary(backbone)
            if adapter is not None:
                tied = backbone.config.tie_word_embeddings
                backbone = cast(PreTrainedModel, adapter.merge_and_unload())
                backbone.config.tie_word_embeddings = tied  # peft changes it for what it does not see tied
        nn.Module.to(backbone, resolve_dtype(self.about["dtype"] if dtype == "auto" else dtype))
        with atomic_path(folder) as part:
            try:
                with quiet():
                    backbone.save_pretrained(part)
            except SafetensorError as error:
                raise OSError(str(error)) from error
            self.tokenizer.save_pretrained(part)

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
            four_bit=about["adapter"] in ("qlora", "qreclora"),
            double_quantisation=about.get("double_quantisation", False),
        )
        if (now := _shape(backbone)) != about["shape"]:
            raise ModelError(
                f"{about['backbone']} has the shape {now} now; {folder} was trained on {about['shape']}."
            )
        rows = torch.zeros(len(index.tokens), _width(backbone))
        model = cls(backbone, tokenizer, index, about, rows)
        model.load_weights(folder)
        return model.to(process_state().device).eval()


def _adapter_config(about: Mapping[str, Any]) -> PeftConfig:
    return RecLoraConfig(**about["reclora"]) if "reclora" in about else LoraConfig(**about["lora"])


def _shape(backbone: PreTrainedModel) -> dict[str, Any]:
    return {k: getattr(backbone.config, k, None) for k in ("model_type", "hidden_size", "vocab_size")}


def _width(backbone: PreTrainedModel) -> int:
    return cast(nn.Embedding, backbone.get_input_embeddings()).weight.shape[1]


def _is_four_bit(backbone: PreTrainedModel) -> bool:
    return bool(getattr(backbone, "is_loaded_in_4bit", False))


def _targets(backbone: PreTrainedModel, name: str, wanted: Sequence[str]) -> list[str]:
    """Returns the names of the linear layers inside the body, such as ``q_proj``, or those of them that are wanted.

    Raises:
        ModelError: If there is none of a wanted name.
    """
    head = backbone.get_output_embeddings()
    # GPT-2's layers are Conv1D, which is a linear layer with its weight turned round; 4-bit ones are nn.Linear too.
    linear = sorted(
        {
            name.split(".")[-1]
            for name, module in backbone.base_model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
    )
    if unknown := sorted(set(wanted) - set(linear)):
        raise ModelError(
            f"train.lora_targets names {unknown[0]!r}, which is no linear layer in the body of {name}. Allowed: "
            f"{', '.join(linear)}.{nearest(unknown[0], linear)}"
        )
    return sorted(set(wanted)) or linear


def _dequantise(backbone: PreTrainedModel) -> None:
    """Puts plain layers in the place of 4-bit ones and of the adapters around them, which are added in, in place."""
    import bitsandbytes as bnb

    for name, layer in list(backbone.named_modules()):
        base = getattr(layer, "base_layer", layer)
        if not isinstance(base, bnb.nn.Linear4bit) or name.endswith(".base_layer"):
            continue
        quantised: Any = base.weight
        weight = bnb.functional.dequantize_4bit(quantised.data, quantised.quant_state).float()
        if base is not layer:
            of_user = (layer.weights_of("default"),) if isinstance(layer, RecLoraLinear) else ()
            weight = weight + layer.get_delta_weight("default", *of_user).float()
        plain: nn.Module
        if issubclass(base.source_cls, Conv1D):
            plain, weight = Conv1D(base.out_features, base.in_features), weight.T.contiguous()
        else:
            plain = nn.Linear(base.in_features, base.out_features, base.bias is not None)
        plain.weight = nn.Parameter(weight)
        if base.bias is not None:
            plain.bias = nn.Parameter(base.bias.detach())
        backbone.set_submodule(name, plain)
    quantiser: Any = backbone.hf_quantizer
    quantiser.remove_quantization_config(backbone)
    del backbone.is_loaded_in_4bit


def padded(
    rows: Sequence[Sequence[int]], side: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ``(rows, longest)`` of rows of any lengths, padded with 0 on a side, and the mask of what is not padding."""

    def of(values: Sequence[Sequence[int]]) -> torch.Tensor:
        found = [torch.tensor(value, dtype=torch.long) for value in values]
        return nn.utils.rnn.pad_sequence(found, batch_first=True, padding_side=side).to(device)

    return of(rows), of([[1] * len(row) for row in rows])


def _common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all of several prompts begin with, less one where that would be a whole prompt."""
    if len(prompts) < 2:
        return 0
    low, high = min(map(tuple, prompts)), max(map(tuple, prompts))  # what these two have in common, all have
    same = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return min(same, min(map(len, prompts)) - 1)


class _Read(BaseModelOutputWithPastAndCrossAttentions):
    """What a body that was not asked returns: states, and None for all else that a model may look for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@torch.no_grad()
def _around_the_head(backbone: PreTrainedModel) -> tuple[float, float | None]:
    """Returns what a model multiplies its states by before the output layer, and at what its logits are capped, if so.

    T5 scales its states where its embeddings are tied, Cohere and Granite their logits, which is the same; Gemma 2
    turns a logit s into ``cap * tanh(s / cap)``. It is seen, not known by name: the model's own forward is given chosen
    states in the place of its body, and chosen logits in the place of its output layer. No weight takes part.

    Raises:
        ModelError: If it does anything else.
    """
    head = backbone.get_output_embeddings()
    width, vocabulary = _width(backbone), len(head.weight)
    device, seq2seq = backbone.device, bool(backbone.config.is_encoder_decoder)
    states = torch.linspace(-3, 4, 4 * width, device=device, dtype=backbone.dtype).view(1, 4, width)
    raw = torch.tensor([1e6, 2e6, -40.0, 3.0], device=device)[:, None].expand(1, 4, vocabulary)
    seen: list[torch.Tensor] = []

    def body(*_: Any, **__: Any) -> _Read:
        return _Read(last_hidden_state=states)

    def output_layer(given: torch.Tensor) -> torch.Tensor:
        seen.append(given)
        return raw

    bodies = [backbone.get_encoder(), backbone.get_decoder()] if seq2seq else [backbone.base_model]
    replaced = dict.fromkeys(bodies, body) | {head: output_layer}
    ids = torch.zeros(1, 4, dtype=torch.long, device=device)
    try:
        for module, forward in replaced.items():
            module.forward = forward
        logits = backbone(input_ids=ids, **({"decoder_input_ids": ids} if seq2seq else {})).logits.float()
    finally:
        for module in replaced:
            del module.forward
    scale = cap = None
    if len(seen) == 1 and seen[0].shape == states.shape and logits.shape == raw.shape:
        scale = _factor(seen[0], states, width**-0.5)
        if torch.allclose(logits[:, 0], logits[:, 1]):
            cap = float(logits[0, 0, 0])
            after = 1.0 if torch.allclose(logits, cap * torch.tanh(raw / cap), rtol=1e-2) else None
        else:
            after = _factor(logits, raw)
        # A scale of logits is one of states, but for the bias that an output layer may add between the two.
        if scale is not None and after is not None and (after == 1.0 or getattr(head, "bias", None) is None):
            return scale * after, cap
    raise ModelError(
        f"{type(backbone).__name__} changes its states before the output layer or its logits after it in a way that "
        "genrec does not know. It may scale either, and cap its logits as Gemma 2 does."
    )


def _factor(after: torch.Tensor, before: torch.Tensor, *known: float) -> float | None:
    """Returns the number that ``before`` was multiplied by, or None; one of ``known``, or 1, where it is that."""
    after, before = after.double(), before.double()
    found = float((after * before).sum() / before.square().sum())
    found = next((number for number in (1.0, *known) if abs(found / number - 1) < 1e-3), found)
    return found if torch.allclose(after, before * found, rtol=1e-2, atol=1e-2) else None
