"""Scaled dot-product attention as a pure function, and the layer around it.

Letters used in shape comments here and in every other file:

    B batch   H query heads   K key/value heads   Lq query length   Lk key length
    D size of a query or key head   V size of a value head   E hidden size   P cached length
"""

import torch.nn.functional as F
from torch import Tensor, nn

from isoformer.models import masks


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """Masked scaled dot-product attention [1]:

        out = softmax(scale * query @ key^T  where mask, else -inf) @ value

    and exactly zero for a query row that the mask leaves without any key.

    query (B, H, Lq, D), key (B, K, Lk, D), value (B, K, Lk, V) with H a multiple of K: head h
    reads key/value head h // (H // K). mask: any shape of the contract in `masks.py`, True = takes
    part. scale: 1/sqrt(D) unless given. Returns (B, H, Lq, V).

    Raises ValueError when shapes do not fit, with the shapes.

    [1] Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1.
    """
    _check_shapes(query, key, value)
    batch, heads, query_length, _ = query.shape
    if mask is not None:
        mask = masks.normalize(mask, batch, heads, query_length, key.shape[2])
    grouped = key.shape[1] != heads
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)


class MultiHeadAttention(nn.Module):
    """Multi-head attention over (B, L, E) sequences, self or cross, with any mask of the contract.

        out_linear(concat_h attend(query_linear(query)_h, key_linear(key)_h, value_linear(value)_h, mask))

    `num_kv_heads` below `num_heads` is grouped-query attention (1: multi-query). `head_dim` defaults
    to hidden_size / num_heads; `key_size` is the width of `key` and `value` where it differs from
    `hidden_size`. `scale` multiplies the scores: 1/sqrt(head_dim) unless given, 1.0 for layers that
    do not scale.

    Raises ValueError when head counts do not divide.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        key_size: int | None = None,
        bias: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(f"num_heads {num_heads} is not a multiple of num_kv_heads {num_kv_heads}")
        if head_dim is None and hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}; give head_dim")
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = hidden_size // num_heads if head_dim is None else head_dim
        self.scale = scale
        key_size = hidden_size if key_size is None else key_size
        self.query_linear = nn.Linear(hidden_size, num_heads * self.head_dim, bias=bias)
        self.key_linear = nn.Linear(key_size, num_kv_heads * self.head_dim, bias=bias)
        self.value_linear = nn.Linear(key_size, num_kv_heads * self.head_dim, bias=bias)
        self.out_linear = nn.Linear(num_heads * self.head_dim, hidden_size, bias=bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query (B, Lq, E), key and value (B, Lk, key_size), mask of the contract → (B, Lq, E)."""
        q = self._split(self.query_linear(query), self.num_heads)  # (B, H, Lq, D)
        k = self._split(self.key_linear(key), self.num_kv_heads)  # (B, K, Lk, D)
        v = self._split(self.value_linear(value), self.num_kv_heads)  # (B, K, Lk, D)
        out = attend(q, k, v, mask, scale=self.scale)  # (B, H, Lq, D)
        return self.out_linear(out.transpose(1, 2).flatten(2))  # (B, Lq, E)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)  # (B, L, heads * D) → (B, heads, L, D)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if query.ndim != 4 or key.ndim != 4 or value.ndim != 4:
        raise ValueError(f"attend takes (batch, heads, length, head size) tensors, not {shapes}")
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        raise ValueError(f"the batch sizes differ: {shapes}")
    if key.shape[1] != value.shape[1] or query.shape[1] % key.shape[1]:
        raise ValueError(f"query heads must be a multiple of key heads, and key heads equal value heads: {shapes}")
    if key.shape[2] != value.shape[2]:
        raise ValueError(f"key and value lengths differ: {shapes}")
    if query.shape[3] != key.shape[3]:
        raise ValueError(f"query and key head sizes differ: {shapes}")
