"""Encoder–decoders: a text goes in whole, another comes out token by token. The original Transformer, Marian, BART
and T5 are its configurations.

    encoder_model          input_ids → last_hidden_state, and the keys and values that the decoder's
                           cross-attention reads: computed once a sentence
    decoder_model_merged   the tokens so far, the cache, those keys and values → logits, cache

Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762); T5: Raffel et al. 2020 (https://arxiv.org/abs/1910.10683).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from isoformer.models import masks, positions
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.cache import KVCache
from isoformer.models.config import check
from isoformer.models.layers import DecoderBlock, EncoderBlock, FeedForward, GatedFeedForward, NormOrder
from isoformer.models.signature import Axis, Signature, TensorSpec

ENCODER, DECODER = "encoder_model", "decoder_model_merged"
BATCH, LENGTH, ASKED, SOURCE = "batch_size", "sequence_length", "num_logits", "encoder_sequence_length"
PAST, TOTAL = "past_sequence_length", "total_sequence_length"


@dataclass(frozen=True)
class Config:
    """Shape and kind of an encoder–decoder.

    num_layers is the encoder's, num_decoder_layers the decoder's, which is as deep unless given; so with
    intermediate_size. norm_kind: "layer", or "rms" (T5). norm_order "pre" ends each half with a norm.
    position_kind: "sinusoidal" and "sinusoidal_halves" (Marian) are computed, "learned" are tables (BART),
    "relative" are biases of the scores (T5). embedding_norm: a norm behind the embeddings (BART).
    embedding_scale multiplies the embeddings; logit_scale what goes into the head, which adds a bias with
    logit_bias. scale: of the attention scores, 1/sqrt(head_dim) unless given.

    The rest is for whoever generates: decoder_start_token_id begins every answer, and eos_token_id ends it;
    forced_bos_token_id comes first and forced_eos_token_id last, where the length is used up; suppressed_tokens never.
    """

    vocab_size: int
    hidden_size: int
    num_heads: int
    num_layers: int
    intermediate_size: int
    max_positions: int
    num_decoder_layers: int | None = None
    num_decoder_heads: int | None = None
    decoder_intermediate_size: int | None = None
    head_dim: int | None = None
    norm_kind: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    norm_order: NormOrder = "post"
    position_kind: Literal["sinusoidal", "sinusoidal_halves", "learned", "relative"] = "sinusoidal"
    relative_buckets: int = 32
    relative_max_distance: int = 128
    activation: str = "relu"
    gated: bool = False
    bias: bool = True
    scale: float | None = None
    embedding_scale: float | None = None
    embedding_norm: bool = False
    tied_embeddings: bool = True
    logit_bias: bool = False
    logit_scale: float | None = None
    dropout: float = 0.0
    decoder_start_token_id: int = 0
    eos_token_id: int = 1
    pad_token_id: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    suppressed_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_heads", "num_layers", "intermediate_size", "max_positions")
        optional = ("num_decoder_layers", "num_decoder_heads", "decoder_intermediate_size", "head_dim")
        check(self, dict.fromkeys((*sizes, *optional), 1))
        for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(f"{name} is {getattr(self, name)}; the vocabulary has 0 to {self.vocab_size - 1}")

    @property
    def decoder_layers(self) -> int:
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def decoder_heads(self) -> int:
        return self.num_heads if self.num_decoder_heads is None else self.num_decoder_heads


TINY = Config(
    vocab_size=101,
    hidden_size=24,
    num_heads=3,
    num_layers=2,
    intermediate_size=40,
    max_positions=64,
    num_decoder_layers=2,
)


def signature(config: Config) -> dict[str, Signature]:
    """Graph → its inputs and outputs.

    encoder_model: input_ids (B, S), attention_mask (B, S) → last_hidden_state (B, S, E),
    present.{i}.encoder.key|value (B, H, S, D) for each layer i of the decoder; for the other see `decoder_signature`.
    """
    inputs = (
        TensorSpec("input_ids", "int64", (BATCH, LENGTH), high=config.vocab_size),
        TensorSpec("attention_mask", "int64", (BATCH, LENGTH), kind="mask", default=1),
    )
    outputs = (
        TensorSpec("last_hidden_state", "float32", (BATCH, LENGTH, config.hidden_size)),
        *cross_specs("present", config, LENGTH),
    )
    return {
        ENCODER: Signature(inputs, outputs, axes={LENGTH: Axis(1, config.max_positions)}),
        DECODER: decoder_signature(config),
    }


def decoder_signature(config: Config) -> Signature:
    """One graph for the first tokens and for every token after them.

    input_ids (B, L), attention_mask (B, P + L), position_ids (B, L) but for relative positions,
    logits_positions (B, N), encoder_attention_mask (B, S), past_key_values.{i}.decoder.key|value (B, H, P, D),
    past_key_values.{i}.encoder.key|value (B, H, S, D)
    → logits (B, N, vocabulary), present.{i}.decoder.key|value (B, H, P + L, D)

    logits_positions: the places of input_ids whose next token is asked for.
    """
    layer = _attention(config, config.decoder_heads)
    inputs = [
        TensorSpec("input_ids", "int64", (BATCH, LENGTH), high=config.vocab_size),
        TensorSpec("attention_mask", "int64", (BATCH, TOTAL), kind="mask", default=1),
        TensorSpec("logits_positions", "int64", (BATCH, ASKED), kind="indices", along=LENGTH),
        TensorSpec("encoder_attention_mask", "int64", (BATCH, SOURCE), kind="mask", default=1),
    ]
    if config.position_kind != "relative":
        inputs.insert(2, TensorSpec("position_ids", "int64", (BATCH, LENGTH), high=config.max_positions))
    outputs = [TensorSpec("logits", "float32", (BATCH, ASKED, config.vocab_size))]
    for number in range(config.decoder_layers):
        for kind in ("key", "value"):
            past, present = ((BATCH, layer.num_kv_heads, axis, layer.head_dim) for axis in (PAST, TOTAL))
            inputs.append(TensorSpec(f"past_key_values.{number}.decoder.{kind}", "float32", past))
            outputs.append(TensorSpec(f"present.{number}.decoder.{kind}", "float32", present))
    axes = {
        LENGTH: Axis(1, config.max_positions),
        PAST: Axis(0, config.max_positions),
        TOTAL: Axis(sum_of=(PAST, LENGTH)),
    }
    cross = cross_specs("past_key_values", config, SOURCE)
    return Signature((*inputs, *cross), tuple(outputs), axes=axes, chunked=True)


def cross_specs(prefix: str, config: Config, length: str) -> tuple[TensorSpec, ...]:
    """The keys and values that cross-attention reads, as an encoder gives them or a decoder takes them."""
    layer = _attention(config, config.decoder_heads)
    shape = (BATCH, layer.num_kv_heads, length, layer.head_dim)
    return tuple(
        TensorSpec(f"{prefix}.{number}.encoder.{kind}", "float32", shape)
        for number in range(config.decoder_layers)
        for kind in ("key", "value")
    )


def task(config: Config) -> dict[str, Any]:
    """What the runtime needs to know to do the task."""
    return {"name": "translate", **generation(config)}


def generation(config: Config) -> dict[str, Any]:
    """How an answer begins and ends."""
    return {
        "decoder_start": [config.decoder_start_token_id],
        "eos": [config.eos_token_id],
        "pad": config.pad_token_id,
        "forced_bos": config.forced_bos_token_id,
        "forced_eos": config.forced_eos_token_id,
        "suppressed": list(config.suppressed_tokens),
        "max_length": config.max_positions,
    }


class Model(nn.Module):
    """Both halves; `graph(name)` is the module of each graph that is exported, `forward` is for training."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.embedding_scale is not None:  # as large behind the factor as the positions
            nn.init.normal_(self.tokens.weight, std=1 / config.embedding_scale)
        self.encoder = Encoder(config, self.tokens)
        self.decoder = Decoder(config, self.tokens)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """input_ids and attention_mask (B, S), decoder_input_ids (B, L) and its mask → logits (B, L, vocabulary)."""
        if decoder_attention_mask is None:
            decoder_attention_mask = torch.ones_like(decoder_input_ids)
        x = self.encoder(input_ids, attention_mask)
        caches = self.decoder.empty_caches(x)
        where = positions.count_real(decoder_attention_mask)
        cross = self.decoder.keys_values(x)
        x, _ = self.decoder(decoder_input_ids, decoder_attention_mask, where, caches, attention_mask, cross)
        return self.decoder.logits(x)

    def graph(self, name: str) -> nn.Module:
        """The module that computes the signature's graph of that name."""
        return {ENCODER: EncoderGraph, DECODER: DecoderGraph}[name](self)


class Encoder(nn.Module):
    """input_ids (B, S), attention_mask (B, S) → (B, S, E)."""

    def __init__(self, config: Config, tokens: nn.Embedding) -> None:
        super().__init__()
        self.embeddings = Embeddings(config, tokens)
        self.bias = _relative(config, config.num_heads, bidirectional=True)
        self.blocks = nn.ModuleList(_encoder_block(config) for _ in range(config.num_layers))
        self.final_norm = _final_norm(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        batch, length = input_ids.shape
        mask = masks.normalize(masks.padding(attention_mask), batch, 1, length, length)
        x = self.embeddings(input_ids, positions.count_real(attention_mask))
        bias = None if self.bias is None else self.bias(length, length)
        for block in self.blocks:
            x = block(x, mask, bias)
        return self.final_norm(x)


class Decoder(nn.Module):
    """The tokens so far, behind a cache and beside an encoder's output."""

    def __init__(self, config: Config, tokens: nn.Embedding) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config, tokens)
        self.bias = _relative(config, config.decoder_heads, bidirectional=False)
        self.blocks = nn.ModuleList(_decoder_block(config) for _ in range(config.decoder_layers))
        self.final_norm = _final_norm(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.logit_bias)
        if config.tied_embeddings:
            self.head.weight = tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None,
        caches: list[KVCache],
        encoder_attention_mask: Tensor,
        cross: list[KVCache],
    ) -> tuple[Tensor, list[KVCache]]:
        """input_ids (B, L), attention_mask (B, P + L), caches of P, encoder_attention_mask (B, S), cross of S
        → (B, L, E), caches of P + L."""
        length, total = input_ids.shape[1], caches[0].length + input_ids.shape[1]
        x = self.embeddings(input_ids, position_ids)
        mask = masks.padding(attention_mask) & masks.causal(length, total, input_ids.device)
        bias = None if self.bias is None else self.bias(length, total)
        seen, grown = masks.padding(encoder_attention_mask), []
        for block, cache, known in zip(self.blocks, caches, cross, strict=True):
            x, cache = block(x, mask, None, cache, bias=bias, cross=known, cross_mask=seen)
            grown.append(cache)
        return self.final_norm(x), grown

    def logits(self, x: Tensor) -> Tensor:
        """(B, N, E) → (B, N, vocabulary)."""
        return self.head(x if self.config.logit_scale is None else x * self.config.logit_scale)

    def keys_values(self, encoded: Tensor) -> list[KVCache]:
        """What each layer's cross-attention reads of an encoder's output (B, S, E)."""
        return [cast(DecoderBlock, block).cross_attention.keys_values(encoded, encoded) for block in self.blocks]  # pyright: ignore[reportOptionalMemberAccess]

    def empty_caches(self, like: Tensor) -> list[KVCache]:
        """The caches before the first token, of the batch, dtype and device of `like`."""
        layer = _attention(self.config, self.config.decoder_heads)
        shape = (like.shape[0], layer.num_kv_heads, 0, layer.head_dim)
        return [KVCache(like.new_empty(shape), like.new_empty(shape)) for _ in self.blocks]


class Embeddings(nn.Module):
    """norm(scale * token + position): (B, L) ids and positions → (B, L, E). The two halves share the tokens' table."""

    def __init__(self, config: Config, tokens: nn.Embedding) -> None:
        super().__init__()
        self.tokens = tokens
        self.scale = config.embedding_scale
        self.positions = None
        if config.position_kind == "learned":
            self.positions = positions.LearnedPositions(config.max_positions, config.hidden_size)
        elif config.position_kind != "relative":
            interleaved = config.position_kind == "sinusoidal"
            self.positions = positions.SinusoidalPositions(
                config.max_positions, config.hidden_size, interleaved=interleaved
            )
        self.norm = _norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, where: Tensor | None) -> Tensor:
        x = self.tokens(input_ids)
        if self.scale is not None:
            x = x * self.scale
        if self.positions is not None and where is not None:
            x = x + self.positions(where)
        return self.dropout(self.norm(x))


class EncoderGraph(nn.Module):
    """The graph `encoder_model`."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.decoder = model.decoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.encoder(input_ids, attention_mask)
        return {"last_hidden_state": x} | named("present", "encoder", self.decoder.keys_values(x))


class DecoderGraph(nn.Module):
    """The graph `decoder_model_merged`, of any model with such a `decoder`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder: Decoder = model.decoder

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        logits_positions: Tensor,
        encoder_attention_mask: Tensor,
        position_ids: Tensor | None = None,
        **past: Tensor,
    ) -> dict[str, Tensor]:
        caches, cross = (
            [
                KVCache(past[f"past_key_values.{i}.{part}.key"], past[f"past_key_values.{i}.{part}.value"])
                for i in range(len(self.decoder.blocks))
            ]
            for part in ("decoder", "encoder")
        )
        x, grown = self.decoder(input_ids, attention_mask, position_ids, caches, encoder_attention_mask, cross)
        asked = x.gather(1, logits_positions[:, :, None].expand(-1, -1, x.shape[2]))  # (B, N, E)
        return {"logits": self.decoder.logits(asked)} | named("present", "decoder", grown)


def named(prefix: str, part: str, caches: list[KVCache]) -> dict[str, Tensor]:
    """The tensors of the caches by their names at the edge."""
    return {
        f"{prefix}.{i}.{part}.{kind}": getattr(cache, kind)
        for i, cache in enumerate(caches)
        for kind in ("key", "value")
    }


def _norm(config: Config) -> nn.Module:
    kind = nn.RMSNorm if config.norm_kind == "rms" else nn.LayerNorm
    return kind(config.hidden_size, eps=config.norm_eps)


def _final_norm(config: Config) -> nn.Module:
    return _norm(config) if config.norm_order == "pre" else nn.Identity()


def _relative(config: Config, heads: int, *, bidirectional: bool) -> positions.RelativeBias | None:
    if config.position_kind != "relative":
        return None
    return positions.RelativeBias(
        heads,
        num_buckets=config.relative_buckets,
        max_distance=config.relative_max_distance,
        bidirectional=bidirectional,
    )


def _attention(config: Config, heads: int) -> MultiHeadAttention:
    return MultiHeadAttention(config.hidden_size, heads, head_dim=config.head_dim, bias=config.bias, scale=config.scale)


def _feed_forward(config: Config, size: int | None) -> nn.Module:
    kind = partial(GatedFeedForward if config.gated else FeedForward, config.hidden_size)
    return kind(size or config.intermediate_size, config.activation, bias=config.bias)


def _encoder_block(config: Config) -> EncoderBlock:
    return EncoderBlock(
        _attention(config, config.num_heads),
        _feed_forward(config, None),
        _norm(config),
        _norm(config),
        norm_order=config.norm_order,
        dropout=config.dropout,
    )


def _decoder_block(config: Config) -> DecoderBlock:
    return DecoderBlock(
        _attention(config, config.decoder_heads),
        _feed_forward(config, config.decoder_intermediate_size),
        _norm(config),
        _norm(config),
        config.norm_order,
        cross_attention=_attention(config, config.decoder_heads),
        cross_norm=_norm(config),
        dropout=config.dropout,
    )
