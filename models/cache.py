"""The keys and values of earlier tokens, as plain tensors that go into a graph and come out of it.

Rows of a batch may have come differently far: positions that hold nothing yet, on the left or on the
right or between, are left out by the mask, whose last axis counts all P + Lq keys.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class KVCache(NamedTuple):
    """What one layer keeps: key (B, K, P, D) and value (B, K, P, V); P may be 0.

    Nothing is changed in place: `append` returns a new cache.
    """

    key: Tensor
    value: Tensor

    @property
    def length(self) -> int:
        """P, the number of cached positions."""
        return self.key.shape[2]

    def append(self, key: Tensor, value: Tensor) -> "KVCache":
        """The cache with key (B, K, L, D) and value (B, K, L, V) behind what it holds.

        Raises ValueError when batch, heads, head size or dtype differ, or the lengths of key and value.
        """
        for old, new in ((self.key, key), (self.value, value)):
            if old.ndim != 4 or new.ndim != 4 or (old.shape[:2], old.shape[3]) != (new.shape[:2], new.shape[3]):
                raise ValueError(f"{tuple(new.shape)} cannot be appended to a cache of {tuple(old.shape)}")
            if old.dtype != new.dtype:
                raise ValueError(f"{new.dtype} cannot be appended to a cache of {old.dtype}")
        for k, v in (self, (key, value)):
            if k.shape[2] != v.shape[2]:
                raise ValueError(f"key {tuple(k.shape)} and value {tuple(v.shape)} differ in length")
        return KVCache(torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2))


def empty(
    batch: int,
    num_kv_heads: int,
    head_dim: int,
    value_head_dim: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> KVCache:
    """The cache before the first token: P = 0."""
    sizes = (head_dim, head_dim if value_head_dim is None else value_head_dim)
    return KVCache(*(torch.empty(batch, num_kv_heads, 0, size, dtype=dtype, device=device) for size in sizes))


def scatter(
    past: Tensor, update: Tensor, write_indices: Tensor | None = None, *, axis: int = -2, circular: bool = False
) -> Tensor:
    """`past` with `update` written over it along `axis`, sequence b from write_indices[b] on:

        out[b, ..., (write_indices[b] + l) mod M, ...] = update[b, ..., l, ...]

    past (B, ..., M, ...), update the same but for L <= M at `axis`; write_indices (B,), 0 unless given.
    Without `circular` nothing wraps around: write_indices[b] + L <= M. This is ONNX's TensorScatter
    (opset 24): a cache of a fixed size, each row filled as far as it has come. What stands behind must be
    finite, since attention under a mask multiplies it with 0.

    Raises ValueError for shapes that do not fit and indices that leave the cache.
    """
    axis = axis + past.ndim if axis < 0 else axis
    around = [size for i, size in enumerate(past.shape) if i != axis]
    if (
        not 0 < axis < past.ndim
        or update.ndim != past.ndim
        or around != [size for i, size in enumerate(update.shape) if i != axis]
    ):
        raise ValueError(f"update {tuple(update.shape)} does not fit {tuple(past.shape)} along axis {axis}")
    size, length = past.shape[axis], update.shape[axis]
    if length > size:
        raise ValueError(f"update has {length} positions along axis {axis}, the cache {size}")
    if write_indices is None:
        write_indices = torch.zeros(past.shape[0], dtype=torch.int64, device=past.device)
    if write_indices.shape != past.shape[:1]:
        raise ValueError(f"write_indices has shape {tuple(write_indices.shape)}; it is ({past.shape[0]},)")
    where = write_indices[:, None] + torch.arange(length, device=past.device)  # (B, L)
    if circular:
        where = where % size
    elif not torch.compiler.is_compiling() and ((where < 0) | (where >= size)).any():
        raise ValueError(f"writing {length} positions from {write_indices.tolist()} on leaves a cache of {size}")
    shape = [1] * past.ndim
    shape[0], shape[axis] = where.shape[0], length
    return past.scatter(axis, where.reshape(shape).expand(update.shape), update)
