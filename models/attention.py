"""Scaled dot-product attention as pure functions, and the layer around them.

Letters used in shape comments here and in every other file:

    B batch   H query heads   K key/value heads   Lq query length   Lk key length
    D size of a query or key head   V size of a value head   E hidden size   P cached length
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoformer.models import masks
from isoformer.models.cache import KVCache
from isoformer.models.positions import Rotary, rotate


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Masked scaled dot-product attention [1]:

        s = scale * query @ key^T
        s = softcap * tanh(s / softcap)                   where softcap is given [2]
        out = softmax(s + bias  where mask, else -inf) @ value

    and exactly zero for a query row that mask and bias leave without any key.

    query (B, H, Lq, D), key (B, K, Lk, D), value (B, K, Lk, V) with H a multiple of K: head h
    reads key/value head h // (H // K). mask: any shape of the contract in `masks.py`, True = takes
    part. scale: 1/sqrt(D) unless given. bias: added to the scores, (B or 1, H or 1, Lq or 1, Lk or 1);
    -inf leaves a key out. sinks (H,): one more score a head that takes its share of the softmax and
    has no value [3]. Returns (B, H, Lq, V).

    Raises ValueError when shapes do not fit, with the shapes, and when softcap is not positive.

    [1] Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1.
    [2] Gemma Team 2024, https://arxiv.org/abs/2408.00118, section 2.
    [3] Xiao et al. 2024, https://arxiv.org/abs/2309.17453, as a learned score: OpenAI 2025,
        https://arxiv.org/abs/2508.10925, section 2.
    """
    # Rounded to half precision, a bias of float32 would be another one, or infinite.
    rounded = bias is not None and bias.dtype != query.dtype and query.dtype in (torch.float16, torch.bfloat16)
    if softcap is not None or sinks is not None or rounded:
        return attend_with_weights(query, key, value, mask, scale=scale, bias=bias, softcap=softcap, sinks=sinks)[0]
    _check_shapes(query, key, value)
    _check_numbers(scale, softcap)
    grouped = True if key.shape[1] != query.shape[1] else False  # noqa: SIM210  bool() stays open where compiled
    full = _mask_and_bias(query, key, mask, bias, query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=full, scale=scale, enable_gqa=grouped)


def attend_with_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`attend` and the weights (B, H, Lq, Lk) that the values are summed with, zero where masked."""
    _check_shapes(query, key, value)
    shares = weights(scores(query, key, mask, scale=scale, bias=bias, softcap=softcap), sinks)
    out = shares @ _for_heads(value, query.shape[1]).to(shares.dtype)  # (B, H, Lq, V)
    return out.to(query.dtype), shares.to(query.dtype)


def scores(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """What the softmax of `attend` is taken of: (B, H, Lq, Lk), -inf where a key does not take part.

    Arguments as in `attend`. Computed and returned in float32 at least, where float16 would overflow.
    """
    _check_shapes(query, key, key)
    _check_numbers(scale, softcap)
    wide = torch.promote_types(query.dtype, torch.float32)
    scaled = query.to(wide) * (query.shape[3] ** -0.5 if scale is None else scale)
    full = _mask_and_bias(query, key, mask, bias, wide)
    result = scaled @ _for_heads(key, query.shape[1]).to(wide).transpose(2, 3)  # (B, H, Lq, Lk)
    if softcap is not None:
        result = softcap * torch.tanh(result / softcap)
    if full is None:
        return result
    return result.masked_fill(~full, float("-inf")) if full.dtype == torch.bool else result + full


def weights(scores: Tensor, sinks: Tensor | None = None) -> Tensor:
    """The softmax of `attend` over the keys: (B, H, Lq, Lk), zero in a row of nothing but -inf.

    Raises ValueError when sinks are not (H,).
    """
    batch, heads, query_length, _ = scores.shape
    empty = (scores == float("-inf")).all(-1, keepdim=True)  # (B, H, Lq, 1)
    filled = scores.masked_fill(empty, 0.0)  # the softmax of -inf alone is NaN, and so is its gradient
    if sinks is None:
        return filled.softmax(-1).masked_fill(empty, 0.0)
    if sinks.shape != (heads,):
        raise ValueError(f"sinks have shape {tuple(sinks.shape)}; with {heads} heads it is ({heads},)")
    column = sinks.to(scores.dtype)[None, :, None, None].expand(batch, heads, query_length, 1)
    return torch.cat([filled, column], dim=-1).softmax(-1)[..., :-1].masked_fill(empty, 0.0)


Positions = Tensor | tuple[Tensor, Tensor]


class Attended(NamedTuple):
    """What `MultiHeadAttention.compute` returns; weights and cache are None unless asked for."""

    output: Tensor  # (B, Lq, E)
    weights: Tensor | None = None  # (B, H, Lq, Lk)
    cache: KVCache | None = None  # P + Lq positions


class MultiHeadAttention(nn.Module):
    """Multi-head attention over (B, L, E) sequences, self or cross, with any mask of the contract.

        out_linear(concat_h attend(query_linear(query)_h, key_linear(key)_h, value_linear(value)_h, mask))

    `num_kv_heads` below `num_heads` is grouped-query attention (1: multi-query). `head_dim` defaults
    to hidden_size / num_heads, `value_head_dim` to head_dim; `key_size` is the width of `key` and
    `value` where it differs from `hidden_size`. `bias`: of the linear layers, `out_bias` of the last
    one where it differs. `scale` multiplies the scores: 1/sqrt(head_dim)
    unless given, 1.0 for layers that do not scale. `softcap` and `sinks` as in `attend`, the sinks
    learned. `qk_norm(head_dim)` makes the norms that queries and keys go through, each head by
    itself; `rotary` turns them by their positions after that.

    Raises ValueError when head counts do not divide or sizes are not positive.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        value_head_dim: int | None = None,
        key_size: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        qk_norm: Callable[[int], nn.Module] | None = None,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        key_size = hidden_size if key_size is None else key_size
        if key_size < 1:
            raise ValueError(f"key_size is {key_size}; it must be at least 1")
        check_heads(hidden_size, num_heads, num_kv_heads, head_dim)
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = hidden_size // num_heads if head_dim is None else head_dim
        self.value_head_dim = self.head_dim if value_head_dim is None else value_head_dim
        if self.value_head_dim < 1:
            raise ValueError(f"value_head_dim is {self.value_head_dim}; it must be at least 1")
        _check_numbers(scale, softcap)
        if rotary is not None and rotary.head_dim != self.head_dim:
            raise ValueError(f"rotary is for heads of {rotary.head_dim}, the layer has heads of {self.head_dim}")
        self.scale = scale
        self.softcap = softcap
        self.query_linear = nn.Linear(hidden_size, num_heads * self.head_dim, bias=bias)
        self.key_linear = nn.Linear(key_size, num_kv_heads * self.head_dim, bias=bias)
        self.value_linear = nn.Linear(key_size, num_kv_heads * self.value_head_dim, bias=bias)
        self.out_linear = nn.Linear(
            num_heads * self.value_head_dim, hidden_size, bias=bias if out_bias is None else out_bias
        )
        self.sinks = nn.Parameter(torch.zeros(num_heads)) if sinks else None
        self.query_norm = qk_norm(self.head_dim) if qk_norm is not None else None
        self.key_norm = qk_norm(self.head_dim) if qk_norm is not None else None
        self.rotary = rotary

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """query (B, Lq, E), key and value (B, Lk, key_size), mask of the contract → (B, Lq, E)."""
        return self.compute(query, key, value, mask, bias=bias, positions=positions).output

    def compute(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        positions: Positions | None = None,
        cache: KVCache | None = None,
        need_weights: bool = False,
    ) -> Attended:
        """`forward` with the weights, and behind the keys and values of a cache.

        mask and bias are over all Lk = P + L keys, cached ones first. positions (B, Lq), for rotary:
        of queries and keys alike, or what its `cos_sin` makes of them, which serves every layer; they
        count on from the cache unless given.

        Raises ValueError for widths that are not the layer's, for rotary positions where queries and keys
        are not the same sequence, and for positions without rotary or of another shape.
        """
        inputs = (
            ("query", query, self.query_linear),
            ("key", key, self.key_linear),
            ("value", value, self.value_linear),
        )
        for name, x, linear in inputs:
            if x.ndim != 3 or x.shape[2] != linear.in_features:
                raise ValueError(f"{name} has shape {tuple(x.shape)}; it is (batch, length, {linear.in_features})")
        if positions is not None and self.rotary is None:
            raise ValueError("positions are for layers with rotary, and this one has none")
        q = self._split(self.query_linear(query), self.num_heads, self.head_dim)  # (B, H, Lq, D)
        k = self._split(self.key_linear(key), self.num_kv_heads, self.head_dim)  # (B, K, L, D)
        v = self._split(self.value_linear(value), self.num_kv_heads, self.value_head_dim)  # (B, K, L, V)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rotary is not None:
            if key is not query and key.shape[1] != query.shape[1]:
                raise ValueError(
                    f"rotary positions need self-attention, not {query.shape[1]} queries and {key.shape[1]} keys"
                )
            if positions is None:
                past = 0 if cache is None else cache.length
                positions = torch.arange(past, past + query.shape[1], device=query.device)[None]
            if isinstance(positions, Tensor):
                self.rotary.check(q, positions)
                positions = self.rotary.cos_sin(positions, q.dtype)
            cos, sin = positions
            self.rotary.check_turns(q, cos, sin)
            q, k = (rotate(x, cos, sin, interleaved=self.rotary.interleaved) for x in (q, k))
        if cache is not None:
            cache = cache.append(k, v)
            k, v = cache.key, cache.value
        options: dict[str, Any] = {"scale": self.scale, "bias": bias, "softcap": self.softcap, "sinks": self.sinks}
        shares = None
        if need_weights:
            out, shares = attend_with_weights(q, k, v, mask, **options)
        else:
            out = attend(q, k, v, mask, **options)  # (B, H, Lq, V)
        return Attended(self.out_linear(out.transpose(1, 2).flatten(2)), shares, cache)

    def keys_values(self, key: Tensor, value: Tensor) -> KVCache:
        """What `attend_to` reads of key and value (B, Lk, key_size): (B, K, Lk, D) and (B, K, Lk, V).

        Cross-attention needs it once a sentence. Raises ValueError for a layer with rotary, whose keys have positions.
        """
        if self.rotary is not None:
            raise ValueError("keys of a layer with rotary have positions; give it the sequence through `compute`")
        k = self._split(self.key_linear(key), self.num_kv_heads, self.head_dim)
        v = self._split(self.value_linear(value), self.num_kv_heads, self.value_head_dim)
        return KVCache(k if self.key_norm is None else self.key_norm(k), v)

    def attend_to(
        self, query: Tensor, known: KVCache, mask: Tensor | None = None, *, bias: Tensor | None = None
    ) -> Tensor:
        """`forward` over keys and values that `keys_values` made: query (B, Lq, E) → (B, Lq, E)."""
        q = self._split(self.query_linear(query), self.num_heads, self.head_dim)  # (B, H, Lq, D)
        q = q if self.query_norm is None else self.query_norm(q)
        options: dict[str, Any] = {"scale": self.scale, "bias": bias, "softcap": self.softcap, "sinks": self.sinks}
        out = attend(q, known.key, known.value, mask, **options)  # (B, H, Lq, V)
        return self.out_linear(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor, heads: int, size: int) -> Tensor:
        return x.unflatten(-1, (heads, size)).transpose(1, 2)  # (B, L, heads * size) → (B, heads, L, size)


def check_heads(hidden_size: int, num_heads: int, num_kv_heads: int | None, head_dim: int | None) -> None:
    """Raises ValueError when a layer of such heads cannot be built."""
    sizes = {"hidden_size": hidden_size, "num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    for name, size in sizes.items():
        if size is not None and (type(size) is not int or size < 1):
            raise ValueError(f"{name} is {size!r}; it must be a whole number, at least 1")
    if num_kv_heads is not None and num_heads % num_kv_heads:
        raise ValueError(f"num_heads {num_heads} is not a multiple of num_kv_heads {num_kv_heads}")
    if head_dim is None and hidden_size % num_heads:
        raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}; give head_dim")


def _for_heads(x: Tensor, heads: int) -> Tensor:
    """(B, K, L, D) → (B, H, L, D), each head H // K times in a row."""
    if x.shape[1] == heads:
        return x
    return x[:, :, None].expand(-1, -1, heads // x.shape[1], -1, -1).flatten(1, 2)


def _mask_and_bias(
    query: Tensor, key: Tensor, mask: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """The two as one mask for SDPA: boolean without a bias, else additive in `dtype`, -inf where the mask is False."""
    sizes = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    if mask is not None:
        mask = masks.normalize(mask, *sizes)
    if bias is None:
        return mask
    if not bias.is_floating_point():
        raise ValueError(f"the bias has dtype {bias.dtype}; it is added to scores of {query.dtype} (a mask is `mask`)")
    if bias.ndim != 4 or not masks.fits(bias, sizes, repeated=range(4)):
        raise ValueError(f"the bias has shape {tuple(bias.shape)}, which does not broadcast to {sizes}")
    bias = bias.to(dtype)
    if mask is None:
        return masks.over_queries(bias, *sizes[2:])
    return torch.where(mask, bias, float("-inf"))


def _check_numbers(scale: float | None, softcap: float | None) -> None:
    for name, number in (("scale", scale), ("softcap", softcap)):
        if number is not None and not isinstance(number, int | float):
            raise ValueError(f"{name} is {number!r}; it must be a number")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; it must be finite")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap}; it must be positive and finite")


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if query.ndim != 4 or key.ndim != 4 or value.ndim != 4:
        raise ValueError(f"attend takes (batch, heads, length, head size) tensors, not {shapes}")
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        raise ValueError(f"the batch sizes differ: {shapes}")
    if not query.is_floating_point() or 0 in (query.shape[3], value.shape[3]):
        raise ValueError(f"queries, keys and values are vectors of floats: {shapes}, {query.dtype}")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"the dtypes differ: query {query.dtype}, key {key.dtype}, value {value.dtype}")
    if key.shape[1] != value.shape[1] or key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(f"query heads must be a multiple of key heads, and key heads equal value heads: {shapes}")
    if key.shape[2] != value.shape[2]:
        raise ValueError(f"key and value lengths differ: {shapes}")
    if query.shape[3] != key.shape[3]:
        raise ValueError(f"query and key head sizes differ: {shapes}")
