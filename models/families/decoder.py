"""Decoders: causal Transformers that continue a text. Llama, Mistral, Qwen, SmolLM and GPT-2 are its configurations."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isoformer.models import masks, positions
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.cache import KVCache
from isoformer.models.config import check
from isoformer.models.layers import DecoderBlock, FeedForward, GatedFeedForward
from isoformer.models.signature import Axis, Signature, TensorSpec

BATCH, LENGTH, ASKED = "batch_size", "sequence_length", "num_logits"
PAST, TOTAL = "past_sequence_length", "total_sequence_length"


@dataclass(frozen=True)
class Config:
    """Shape and kind of a decoder.

    norm_kind: "rms" (Llama) or "layer" (GPT-2). position_kind: "rotary" turns queries and keys,
    "learned" adds a table to the embeddings. gated: down(act(gate(x)) * up(x)) instead of
    down(act(up(x))). sliding_window: keys that a query sees, itself among them, in the layers where
    `window_layers` is true (all of them where it is empty); None is no limit. head_dim defaults to
    hidden_size / num_heads. embedding_scale multiplies the embeddings. logit_softcap: cap * tanh(logits / cap).
    """

    vocab_size: int
    hidden_size: int
    num_heads: int
    num_layers: int
    intermediate_size: int
    max_positions: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    norm_kind: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    position_kind: Literal["rotary", "learned"] = "rotary"
    rotary_base: float = 10000.0
    rotary_dim: int | None = None
    rotary_scaling: positions.RotaryScaling | None = None
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    feed_forward_bias: bool = False
    qk_norm: bool = False
    scale: float | None = None
    softcap: float | None = None
    sliding_window: int | None = None
    window_layers: tuple[bool, ...] = ()
    tied_embeddings: bool = True
    embedding_scale: float | None = None
    logit_softcap: float | None = None

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_heads", "num_layers", "intermediate_size", "max_positions")
        check(self, dict.fromkeys((*sizes, "num_kv_heads", "head_dim", "sliding_window"), 1))
        if self.window_layers and len(self.window_layers) != self.num_layers:
            raise ValueError(f"window_layers has {len(self.window_layers)} entries; there are {self.num_layers} layers")

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer."""
        used = self.window_layers or (True,) * self.num_layers
        return tuple(self.sliding_window if layer else None for layer in used)


TINY = Config(
    vocab_size=101,
    hidden_size=24,
    num_heads=4,
    num_layers=2,
    intermediate_size=40,
    max_positions=2048,
    num_kv_heads=2,
    sliding_window=9,
    window_layers=(True, False),
)


def signature(config: Config) -> Signature:
    """One graph for a prompt and for every token after it.

    input_ids (B, L), attention_mask (B, P + L), position_ids (B, L), logits_positions (B, N),
    past_key_values.{i}.key|value (B, K, P, D) → logits (B, N, vocabulary), present.{i}.key|value (B, K, P + L, D)

    logits_positions: the places of input_ids whose next token is asked for; only they go through the head.
    """
    layer = _attention(config)
    inputs = [
        TensorSpec("input_ids", "int64", (BATCH, LENGTH), high=config.vocab_size),
        TensorSpec("attention_mask", "int64", (BATCH, TOTAL), kind="mask", default=1),
        TensorSpec("position_ids", "int64", (BATCH, LENGTH), high=config.max_positions),
        TensorSpec("logits_positions", "int64", (BATCH, ASKED), kind="indices", along=LENGTH),
    ]
    outputs = [TensorSpec("logits", "float32", (BATCH, ASKED, config.vocab_size))]
    for number in range(config.num_layers):
        for kind in ("key", "value"):
            past, present = ((BATCH, layer.num_kv_heads, axis, layer.head_dim) for axis in (PAST, TOTAL))
            inputs.append(TensorSpec(f"past_key_values.{number}.{kind}", "float32", past))
            outputs.append(TensorSpec(f"present.{number}.{kind}", "float32", present))
    axes = {
        LENGTH: Axis(1, config.max_positions),
        PAST: Axis(0, config.max_positions),
        TOTAL: Axis(sum_of=(PAST, LENGTH)),
    }
    # Frequencies that grow with the sequence would turn cached keys again.
    chunked = not isinstance(config.rotary_scaling, positions.DynamicNTKScaling)
    windows = config.windows if chunked else ()
    return Signature(tuple(inputs), tuple(outputs), axes=axes, chunked=chunked, windows=windows)


def task(_config: Config) -> dict[str, Any]:
    """What the runtime needs to know to do the task."""
    return {"name": "generate"}


class Model(nn.Module):
    """The decoder with its head; returns its outputs by name."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = None
        self.rotary = None
        if config.position_kind == "learned":
            self.positions = positions.LearnedPositions(config.max_positions, config.hidden_size)
        else:
            self.rotary = positions.Rotary(
                config.head_dim or config.hidden_size // config.num_heads,
                base=config.rotary_base,
                rotary_dim=config.rotary_dim,
                scaling=config.rotary_scaling,
            )
        self.blocks = nn.ModuleList(_block(config, self.rotary) for _ in range(config.num_layers))
        self.final_norm = _norm(config)(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        logits_positions: Tensor,
        **past: Tensor,
    ) -> dict[str, Tensor]:
        """The inputs of the signature by name → its outputs by name."""
        caches = [
            KVCache(past[f"past_key_values.{i}.key"], past[f"past_key_values.{i}.value"])
            for i in range(self.config.num_layers)
        ]
        x = self.tokens(input_ids)  # (B, L, E)
        if self.config.embedding_scale is not None:
            x = x * self.config.embedding_scale
        turn = None
        if self.positions is not None:
            x = x + self.positions(position_ids)
        elif self.rotary is not None:
            turn = self.rotary.cos_sin(position_ids, x.dtype)  # once for all layers
        seen = self._masks(attention_mask, input_ids.shape[1], caches[0].length + input_ids.shape[1])
        outputs: dict[str, Tensor] = {}
        for i, (block, window) in enumerate(zip(self.blocks, self.config.windows, strict=True)):
            x, cache = block(x, seen[window], turn, caches[i])
            outputs |= {f"present.{i}.key": cache.key, f"present.{i}.value": cache.value}
        asked = logits_positions[:, :, None].expand(-1, -1, x.shape[2])  # (B, N, E)
        logits = self.head(self.final_norm(x.gather(1, asked)))  # (B, N, vocabulary)
        if self.config.logit_softcap is not None:
            logits = self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)
        return {"logits": logits} | outputs

    def _masks(self, attention_mask: Tensor, query_length: int, key_length: int) -> dict[int | None, Tensor]:
        """Window → (B, 1, Lq, Lk), each window's mask once."""
        real, counted = masks.padding(attention_mask), positions.count_real(attention_mask)
        causal = masks.causal(query_length, key_length, attention_mask.device)
        result = {}
        for window in dict.fromkeys(self.config.windows):
            result[window] = real & causal
            if window is not None:  # of tokens, whatever padding stands between them
                near = masks.sliding_window(query_length, key_length, window - 1, None, positions=counted)
                result[window] = result[window] & near
        return result


def _norm(config: Config) -> Any:
    return partial(nn.RMSNorm if config.norm_kind == "rms" else nn.LayerNorm, eps=config.norm_eps)


def _attention(config: Config, rotary: positions.Rotary | None = None) -> MultiHeadAttention:
    return MultiHeadAttention(
        config.hidden_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        bias=config.qkv_bias,
        out_bias=config.out_bias,
        scale=config.scale,
        softcap=config.softcap,
        qk_norm=_norm(config) if config.qk_norm else None,
        rotary=rotary,
    )


def _block(config: Config, rotary: positions.Rotary | None) -> DecoderBlock:
    kind = GatedFeedForward if config.gated else FeedForward
    feed_forward = kind(config.hidden_size, config.intermediate_size, config.activation, bias=config.feed_forward_bias)
    norm = _norm(config)
    return DecoderBlock(_attention(config, rotary), feed_forward, norm(config.hidden_size), norm(config.hidden_size))
