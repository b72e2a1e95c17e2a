"""One attention layer as a model of its own: every kind of attention and of mask, with or without a cache.

For apps that compute attention alone, and for the tests that hold every combination to its reference.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isoformer.models import masks, positions
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.cache import KVCache
from isoformer.models.config import check
from isoformer.models.mask_rule import MaskRule
from isoformer.models.signature import Axis, Signature, TensorSpec

PositionKind = Literal["none", "rotary", "alibi", "relative"]


@dataclass(frozen=True)
class Config:
    """The sizes and kinds of the layer; mask_inputs … right_window are those of `MaskRule`.

    cross: queries attend to another sequence, `key_size` wide. cache: earlier keys and values go in
    and come out. Positions by their rule: rotary counts the real tokens of a two-axis
    attention_mask, and places elsewhere; alibi and relative (T5) are biases by distances counted so.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    value_head_dim: int | None = None
    key_size: int | None = None
    cross: bool = False
    cache: bool = False
    mask_inputs: tuple[str, ...] = ("attention_mask",)
    mask_rank: int = 2
    mask_heads: int = 1
    causal: bool = False
    left_window: int | None = None
    right_window: int | None = None
    position_kind: PositionKind = "none"
    rotary_base: float = 10000.0
    rotary_dim: int | None = None
    rotary_interleaved: bool = False
    rotary_scaling: positions.RotaryScaling | None = None
    relative_buckets: int = 32
    relative_distance: int = 128
    bias: bool = True
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    qk_norm: bool = False
    norm_eps: float = 1e-6
    output_attentions: bool = False

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "value_head_dim", "key_size", "mask_heads")
        check(self, dict.fromkeys(sizes, 1))
        if self.mask_heads not in (1, self.num_heads):
            raise ValueError(f"mask_heads is {self.mask_heads}; it is 1 or num_heads {self.num_heads}")
        _ = self.masks  # refuses what cannot be combined
        windows = (self.left_window, self.right_window) != (None, None)
        if self.cross and (self.cache or self.causal or windows or self.position_kind != "none"):
            raise ValueError(
                "cross has no order of queries and keys in common: no cache, causal, window or position_kind with it"
            )
        if self.cross and self.masks.inputs not in ((), ("attention_mask",), ("sequence_lengths",)):
            raise ValueError(f"cross takes attention_mask or sequence_lengths, not {', '.join(self.mask_inputs)}")
        if self.key_size is not None and not self.cross:
            raise ValueError(f"key_size {self.key_size} is for cross; else keys are as wide as hidden_size")
        if self.cache and not self.causal and self.mask_rank == 2:
            raise ValueError("with a cache the layer is causal, or an attention_mask of rank 3 or 4 says who sees whom")
        if not 0 < self.norm_eps < 1:
            raise ValueError(f"norm_eps is {self.norm_eps}; it is between 0 and 1")
        with torch.device("meta"):  # refuses what its parts refuse, and computes nothing
            Model(self)

    @property
    def masks(self) -> MaskRule:
        """The masks that the graph builds."""
        window = (self.left_window, self.right_window)
        return MaskRule(tuple(self.mask_inputs), self.mask_rank, self.mask_heads, self.causal, *window)


BATCH, LENGTH = "batch_size", "sequence_length"
PAST, TOTAL, ENCODER = "past_sequence_length", "total_sequence_length", "encoder_sequence_length"
HIDDEN, CROSS = "hidden_states", "encoder_hidden_states"
PAST_KEY, PAST_VALUE = "past_key_values.0.key", "past_key_values.0.value"


def signature(config: Config) -> Signature:
    """hidden_states (and encoder_hidden_states or past_key_values), mask inputs → attention_output, present."""
    layer = _layer(config)
    keys = ENCODER if config.cross else TOTAL if config.cache else LENGTH
    inputs = [TensorSpec(HIDDEN, "float32", (BATCH, LENGTH, config.hidden_size))]
    outputs = [TensorSpec("attention_output", "float32", (BATCH, LENGTH, config.hidden_size))]
    axes = {}
    if config.cross:
        inputs.append(TensorSpec(CROSS, "float32", (BATCH, ENCODER, config.key_size or config.hidden_size)))
    inputs += config.masks.specs(LENGTH, keys, prefix="encoder_" if config.cross else "")
    if config.cache:
        for name, size in (("key", layer.head_dim), ("value", layer.value_head_dim)):
            past, present = ((BATCH, layer.num_kv_heads, axis, size) for axis in (PAST, TOTAL))
            inputs.append(TensorSpec(f"past_key_values.0.{name}", "float32", past))
            outputs.append(TensorSpec(f"present.0.{name}", "float32", present))
        axes = {PAST: Axis(0), TOTAL: Axis(sum_of=(PAST, LENGTH))}
    if config.output_attentions:
        outputs.append(TensorSpec("attentions.0", "float32", (BATCH, config.num_heads, LENGTH, keys)))
    in_order = config.causal and set(config.mask_inputs) <= {"attention_mask", "segment_ids"} and config.mask_rank == 2
    chunked = config.cache and in_order and not _grows(config)
    return Signature(tuple(inputs), tuple(outputs), axes=axes, padding=_ignored_padding(config), chunked=chunked)


def _ignored_padding(config: Config) -> tuple[Literal["right", "left"], ...]:
    """The sides on which padding changes nothing, not even the keys that a cache holds."""
    by_place = config.position_kind == "rotary" and not _counts_tokens(config)
    if by_place and _grows(config):
        return ()
    from_left = {"sequence_lengths", "prefix_lengths"} & set(config.mask_inputs)
    return ("right",) if from_left or (by_place and config.cache) else ("right", "left")


def _counts_tokens(config: Config) -> bool:
    """Whether positions count the tokens of attention_mask, not places."""
    return not config.cross and config.mask_rank == 2 and "attention_mask" in config.mask_inputs


def _grows(config: Config) -> bool:
    """Whether the frequencies depend on how long the sequence is, so that cached keys would have to turn again."""
    return config.position_kind == "rotary" and isinstance(config.rotary_scaling, positions.DynamicNTKScaling)


def task(_config: Config) -> dict[str, Any] | None:
    """There is none: the package computes attention and nothing more."""
    return None


class Model(nn.Module):
    """The layer; returns its outputs by name."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.attention = _layer(config)
        self.relative = None
        if config.position_kind == "relative":
            self.relative = positions.RelativeBias(
                config.num_heads,
                num_buckets=config.relative_buckets,
                max_distance=config.relative_distance,
                bidirectional=not config.causal,
            )

    def forward(self, hidden_states: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """hidden_states (B, Lq, E) and the other inputs of the signature by name → its outputs by name."""
        source = inputs.get(CROSS, hidden_states)
        missing = [name for name in (PAST_KEY, PAST_VALUE) if self.config.cache and name not in inputs]
        if missing:
            raise ValueError(f"{', '.join(missing)} is not given: with a cache it goes in, at first with no positions")
        past = KVCache(inputs[PAST_KEY], inputs[PAST_VALUE]) if self.config.cache else None
        query_length, key_length = hidden_states.shape[1], source.shape[1] + (past.length if past is not None else 0)
        prefix = "encoder_" if self.config.cross else ""
        batch, device = hidden_states.shape[0], hidden_states.device
        mask = self.config.masks.build(inputs, query_length, key_length, prefix=prefix, batch=batch, device=device)
        if mask is not None:
            sizes = (batch, self.config.num_heads, query_length, key_length)
            mask = masks.normalize(mask, *sizes)
        output, shares, cache = self.attention.compute(
            hidden_states,
            source,
            source,
            mask,
            bias=self._bias(inputs, query_length, key_length, hidden_states),
            positions=self._positions(inputs, query_length),
            cache=past,
            need_weights=self.config.output_attentions,
        )
        outputs = {"attention_output": output}
        if cache is not None:
            outputs |= {"present.0.key": cache.key, "present.0.value": cache.value}
        if shares is not None:
            outputs["attentions.0"] = shares
        return outputs

    def _positions(self, inputs: dict[str, Tensor], query_length: int) -> Tensor | None:
        """(B, Lq) of the queries; None where they count places."""
        counted = self._counted(inputs)
        if self.config.position_kind != "rotary" or counted is None:
            return None
        return counted.narrow(1, counted.shape[1] - query_length, query_length)

    def _counted(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """(B, P + Lq) positions that count the tokens of a two-axis attention_mask; None where places count."""
        return positions.count_real(inputs["attention_mask"]) if _counts_tokens(self.config) else None

    def _bias(self, inputs: dict[str, Tensor], query_length: int, key_length: int, x: Tensor) -> Tensor | None:
        lengths, counted = (query_length, key_length), self._counted(inputs)
        if self.config.position_kind == "alibi":
            return positions.alibi(self.config.num_heads, *lengths, positions=counted, dtype=x.dtype, device=x.device)
        return self.relative(*lengths, positions=counted) if self.relative is not None else None


def _layer(config: Config) -> MultiHeadAttention:
    head_dim = config.head_dim or config.hidden_size // config.num_heads
    rotary = None
    if config.position_kind == "rotary":
        rotary = positions.Rotary(
            head_dim,
            base=config.rotary_base,
            rotary_dim=config.rotary_dim,
            interleaved=config.rotary_interleaved,
            scaling=config.rotary_scaling,
        )
    return MultiHeadAttention(
        config.hidden_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        value_head_dim=config.value_head_dim,
        key_size=config.key_size,
        bias=config.bias,
        scale=config.scale,
        softcap=config.softcap,
        sinks=config.sinks,
        qk_norm=partial(nn.RMSNorm, eps=config.norm_eps) if config.qk_norm else None,
        rotary=rotary,
    )


TINY = Config(
    hidden_size=24,
    num_heads=4,
    num_kv_heads=2,
    causal=True,
    cache=True,
    left_window=9,
    position_kind="rotary",
    qk_norm=True,
)
