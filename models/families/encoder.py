"""Transformer encoders of the BERT kind, with heads for embeddings, masked words and classes.

    input_ids, attention_mask → embeddings → num_layers × EncoderBlock → head of the task

Devlin et al. 2018 (https://arxiv.org/abs/1810.04805). RoBERTa and DistilBERT are configurations.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoformer.models import masks, positions
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.config import check
from isoformer.models.layers import EncoderBlock, FeedForward, NormOrder, activation
from isoformer.models.mask_rule import MaskRule
from isoformer.models.signature import Axis, Signature, TensorSpec


@dataclass(frozen=True)
class Config:
    """Shape and kind of an encoder.

    position_rule: how positions are numbered. "mask" counts the tokens that the mask inputs keep, in
    each segment from 0, so that padding on either side changes nothing; "index" counts from the left end of the
    rectangle (BERT, DistilBERT: left padding shifts the words); "tokens" counts tokens other than
    `pad_token_id` (RoBERTa).
    mask_inputs, causal, left_window, right_window: which masks the graph builds, see `MaskRule`.
    mask_rank: axes of attention_mask: 2 (batch, keys), 3 (batch, queries, keys), 4 (batch, 1, queries, keys).
    num_token_types: 0 for none, 1 for one vector added everywhere, more for a token_type_ids input.
    head_activation: of the dense layer in front of the classifier or of the masked-word decoder.
    pooler: also compute `pooler_output` (tanh of a dense layer on the first token) in the embed task.
    output_attentions: also return `attentions.{i}` (batch, heads, queries, keys), the weights of layer i,
    exactly zero where masked and in a row without keys, and `attention_visible`
    (batch, 1, queries, keys), the mask as the model applied it.
    """

    vocab_size: int
    hidden_size: int
    num_heads: int
    num_layers: int
    intermediate_size: int
    max_positions: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    num_token_types: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-12
    norm_order: NormOrder = "post"
    position_kind: Literal["learned", "sinusoidal"] = "learned"
    position_rule: Literal["mask", "index", "tokens"] = "mask"
    pad_token_id: int = 0
    mask_inputs: tuple[str, ...] = ("attention_mask",)
    mask_rank: Literal[2, 3, 4] = 2
    causal: bool = False
    left_window: int | None = None
    right_window: int | None = None
    dropout: float = 0.0
    task: Literal["embed", "fill-mask", "classify"] = "embed"
    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    pooler: bool = False
    labels: tuple[str, ...] = ()
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    head_activation: str = "tanh"
    tied_decoder: bool = True
    output_attentions: bool = False

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_heads", "num_layers", "intermediate_size", "max_positions")
        at_least = dict.fromkeys((*sizes, "num_kv_heads", "head_dim"), 1)
        check(self, at_least | {"num_token_types": 0, "pad_token_id": 0})
        if self.position_rule == "mask" and self.mask_rank != 2:
            raise ValueError("position_rule 'mask' counts along a mask of rank 2; use 'index' with mask_rank 3 or 4")
        _ = self.masks  # refuses what cannot be combined
        if self.task == "classify" and not self.labels:
            raise ValueError("the task classify needs labels")
        if self.max_length < 1:
            raise ValueError(f"max_positions {self.max_positions} leaves no position behind pad {self.pad_token_id}")

    @property
    def masks(self) -> MaskRule:
        """The masks that the graph builds."""
        window = (self.left_window, self.right_window)
        return MaskRule(tuple(self.mask_inputs), self.mask_rank, 1, self.causal, *window)

    @property
    def max_length(self) -> int:
        """The longest sequence: RoBERTa's positions begin behind the padding token's."""
        return self.max_positions - (self.pad_token_id + 1 if self.position_rule == "tokens" else 0)


TINY = Config(
    vocab_size=101,
    hidden_size=33,
    num_heads=3,
    num_layers=2,
    intermediate_size=53,
    max_positions=64,
    num_token_types=2,
)


def signature(config: Config) -> Signature:
    """`input_ids`, mask inputs (`attention_mask`) and `token_type_ids` → the outputs of the task."""
    batch, length = "batch_size", "sequence_length"
    pad = config.pad_token_id if config.position_rule == "tokens" else None
    inputs = [
        TensorSpec("input_ids", "int64", (batch, length), high=config.vocab_size, pad=pad),
        *config.masks.specs(length, length, batch=batch),
    ]
    if config.num_token_types > 1:
        inputs.append(TensorSpec("token_type_ids", "int64", (batch, length), high=config.num_token_types, default=0))
    if config.task == "embed":
        outputs = [
            TensorSpec("last_hidden_state", "float32", (batch, length, config.hidden_size)),
            TensorSpec("sentence_embedding", "float32", (batch, config.hidden_size)),
        ]
        if config.pooler:
            outputs.append(TensorSpec("pooler_output", "float32", (batch, config.hidden_size)))
    elif config.task == "fill-mask":
        outputs = [TensorSpec("logits", "float32", (batch, length, config.vocab_size))]
    else:
        outputs = [TensorSpec("logits", "float32", (batch, len(config.labels)))]
    if config.output_attentions:
        weights = (batch, config.num_heads, length, length)
        outputs += [TensorSpec(f"attentions.{layer}", "float32", weights) for layer in range(config.num_layers)]
        outputs.append(TensorSpec("attention_visible", "bool", (batch, 1, length, length)))
    return Signature(
        tuple(inputs),
        tuple(outputs),
        axes={length: Axis(1, config.max_length)},
        padding=("right", "left") if _ignores_left_padding(config) else ("right",),
    )


def _ignores_left_padding(config: Config) -> bool:
    """Whether padding on the left changes nothing: positions and "the first token" must both know of it."""
    if {"sequence_lengths", "prefix_lengths"} & set(config.mask_inputs):
        return False  # lengths count from the left
    reads_first_token = config.task == "classify" or config.pooling == "cls" or config.pooler
    return config.position_rule == "mask" or (config.position_rule == "tokens" and not reads_first_token)


def task(config: Config) -> dict[str, Any]:
    """What the runtime needs to know to do the task."""
    if config.task == "classify":
        return {"name": "classify", "labels": list(config.labels), "problem": config.problem}
    return {"name": config.task}


class Model(nn.Module):
    """The encoder with the head of its task; returns its outputs by name."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))
        self.final_norm = _norm(config) if config.norm_order == "pre" else nn.Identity()
        if config.task == "embed":
            self.head = EmbeddingHead(config)
        elif config.task == "fill-mask":
            self.head = MaskedWordHead(config)
            if config.tied_decoder:
                self.head.decoder.weight = self.embeddings.tokens.weight
        else:
            self.head = ClassificationHead(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **mask_inputs: Tensor,
    ) -> dict[str, Tensor]:
        """input_ids (B, L), attention_mask of rank `mask_rank`, token_type_ids (B, L), and any other of
        the mask inputs by name → the task's outputs."""
        batch, length = input_ids.shape
        if length > self.config.max_length:
            raise ValueError(f"length {length} is over the {self.config.max_length} that the model takes")
        if attention_mask is not None:
            mask_inputs["attention_mask"] = attention_mask
        mask = self.config.masks.build(mask_inputs, length, length, batch=batch, device=input_ids.device)
        if mask is not None:
            mask = masks.normalize(mask, batch, self.config.num_heads, length, length)
        real = self._real(input_ids, mask_inputs, mask)
        x = self.embeddings(input_ids, real, token_type_ids, mask_inputs.get("segment_ids"))  # (B, L, E)
        attentions: dict[str, Tensor] = {}
        for layer, block in enumerate(self.blocks):
            if self.config.output_attentions:
                x, attentions[f"attentions.{layer}"] = cast(EncoderBlock, block).with_weights(x, mask)
            else:
                x = block(x, mask)
        outputs = self.head(self.final_norm(x), real)
        if self.config.output_attentions:
            visible = torch.ones_like(real)[:, None, None].expand(batch, 1, length, length) if mask is None else mask
            outputs |= attentions | {"attention_visible": visible.expand(batch, -1, -1, -1)}
        return outputs

    def _real(self, input_ids: Tensor, mask_inputs: dict[str, Tensor], mask: Tensor | None) -> Tensor:
        """(B, L): the tokens that are no padding. Under a mask with a query axis: those that some query sees."""
        attention_mask, segment_ids = (mask_inputs.get(name) for name in ("attention_mask", "segment_ids"))
        parts = []
        if attention_mask is not None and attention_mask.ndim == 2:
            parts.append(masks.as_bool(attention_mask))
        elif attention_mask is not None and mask is not None:
            parts.append(mask.any(2).any(1))
        if segment_ids is not None:
            parts.append(segment_ids != 0)
        if (lengths := mask_inputs.get("sequence_lengths")) is not None:
            parts.append(masks.lengths(lengths, input_ids.shape[1])[:, 0, 0])
        return reduce(torch.logical_and, parts) if parts else torch.ones_like(input_ids, dtype=torch.bool)


class Embeddings(nn.Module):
    """norm(token + position + token type): (B, L) ids → (B, L, E)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.rule = config.position_rule
        self.pad = config.pad_token_id
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        kind = positions.LearnedPositions if config.position_kind == "learned" else positions.SinusoidalPositions
        self.positions = kind(config.max_positions, config.hidden_size)
        self.token_types = nn.Embedding(config.num_token_types, config.hidden_size) if config.num_token_types else None
        self.norm = _norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, input_ids: Tensor, real: Tensor, token_type_ids: Tensor | None, segment_ids: Tensor | None = None
    ) -> Tensor:
        if self.rule == "mask":
            where = (
                positions.count_real(real) if segment_ids is None else positions.count_in_segments(segment_ids * real)
            )
        elif self.rule == "tokens":
            where = positions.count_not_pad(input_ids, self.pad)  # (B, L)
        else:
            where = input_ids.shape[1]
        x = self.tokens(input_ids) + self.positions(where)
        if self.token_types is not None:
            one = self.token_types.weight[0] if token_type_ids is None else self.token_types(token_type_ids)
            x = x + one
        return self.dropout(self.norm(x))


class FirstToken(nn.Module):
    """The vector that stands for the whole sequence: (B, L, E) → (B, E).

    Under position_rule "mask" it is the first real token's, so that left padding changes nothing;
    else the one at index 0, where the checkpoints of BERT's kind look.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.skip_padding = config.position_rule == "mask"

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        if not self.skip_padding:
            return x[:, 0]
        first = real & (real.to(torch.int64).cumsum(1) == 1)  # (B, L), one True a row
        return (first.to(x.dtype)[:, None] @ x)[:, 0]


class EmbeddingHead(nn.Module):
    """One vector a sequence: the mean of its real tokens or its first token, L2-normalised if so configured.

    A sequence without a real token has the zero vector.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.first = FirstToken(config)
        self.normalize = config.normalize
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if config.pooler else None

    def forward(self, x: Tensor, real: Tensor) -> dict[str, Tensor]:
        if self.pooling == "mean":
            weights = real.to(x.dtype)  # (B, L)
            total = (weights[:, None] @ x)[:, 0]  # (B, E)
            pooled = total / weights.sum(1, keepdim=True).clamp(min=1)
        else:
            pooled = torch.where(real.any(1, keepdim=True), self.first(x, real), 0.0)
        if self.normalize:
            pooled = F.normalize(pooled, dim=-1)
        outputs = {"last_hidden_state": x, "sentence_embedding": pooled}
        if self.pooler is not None:
            outputs["pooler_output"] = torch.tanh(self.pooler(self.first(x, real)))
        return outputs


class MaskedWordHead(nn.Module):
    """decoder(norm(activation(dense(x)))): a score for every word of the vocabulary at every position."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = activation(config.head_activation)
        self.norm = _norm(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor, _real: Tensor) -> dict[str, Tensor]:
        return {"logits": self.decoder(self.norm(self.activation(self.dense(x))))}


class ClassificationHead(nn.Module):
    """classifier(activation(dense(first token))): a score for every class."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.first = FirstToken(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = activation(config.head_activation)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))

    def forward(self, x: Tensor, real: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classifier(self.dropout(self.activation(self.dense(self.first(x, real)))))}


def _norm(config: Config) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


def _block(config: Config) -> EncoderBlock:
    attention = MultiHeadAttention(config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim)
    feed_forward = FeedForward(config.hidden_size, config.intermediate_size, config.activation)
    return EncoderBlock(
        attention, feed_forward, _norm(config), _norm(config), norm_order=config.norm_order, dropout=config.dropout
    )
