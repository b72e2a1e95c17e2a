"""The mask contract, and the only builders of masks.

1. A mask is boolean and True means "takes part". Integer and float masks of 0 and 1 are taken at
   the public edge and converted by `as_bool`.
2. Four shapes mean something; `normalize` turns each into (B or 1, 1 or H, Lq, Lk):

       (B, Lk)          key padding: the same keys for every query and head
       (Lq, Lk)         the same for every sequence and head
       (B, Lq, Lk)      the same for every head
       (B, H, Lq, Lk)   as it stands; B, H and Lq may be 1 to be repeated

   A two-dimensional mask with B rows is key padding, also where B happens to equal Lq. What the
   builders below return is four-dimensional and never in doubt.
3. Masks combine by AND (`combine`).
4. Query row i stands at position i + Lk - Lq (bottom-right), so behind P cached keys the rows
   stand at P, P + 1, ...
5. A query row with no key gives exactly zero and a finite gradient.
6. Padding never changes the answer of a real token.

Letters are those of `attention.py`.
"""

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true as known


def as_bool(mask: Tensor) -> Tensor:
    """The mask as booleans, True where it is 1.

    Raises ValueError when a number is neither 0 nor 1: an additive mask (0 and -inf) would come
    out upside down. The values are not looked at while a graph is being traced.
    """
    if mask.dtype == torch.bool:
        return mask
    if not torch.compiler.is_compiling() and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            "the mask holds numbers other than 0 and 1; True or 1 means that a key takes part "
            "(of an additive mask, pass `mask == 0`)"
        )
    return mask != 0


def normalize(mask: Tensor, batch: int, heads: int, query_length: int, key_length: int) -> Tensor:
    """Any mask of the contract as booleans of shape (B or 1, 1 or H, Lq, Lk).

    Raises ValueError, with both shapes, when the mask fits none of the four. (`known` is plain
    equality of ints; of the symbolic sizes of a traced graph it tells whether they must be equal.)
    """
    full = mask
    if mask.ndim == 2 and _alike(mask.shape[0], query_length) and not _alike(mask.shape[0], batch):
        full = mask[None, None]
    elif mask.ndim == 2:
        full = mask[:, None, None, :]
    elif mask.ndim == 3:
        full = mask[:, None]
    wanted = (batch, heads, query_length, key_length)
    for axis in range(4):
        have = full.shape[axis] if full.ndim == 4 else None
        if have is not None and (known(have == wanted[axis]) or (axis < 3 and known(have == 1))):
            continue
        if have is not None and torch.compiler.is_compiling():
            torch._check(have == wanted[axis])  # settled by the sizes that the graph is traced with
            continue
        b, h, lq, lk = wanted
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)}; with batch {b}, heads {h}, queries {lq} and keys {lk} "
            f"it must be ({b}, {lk}), ({lq}, {lk}), ({b}, {lq}, {lk}) or ({b}, {h}, {lq}, {lk})"
        )
    full = as_bool(full)
    if known(full.shape[2] == query_length):
        return full
    # ONNX Runtime's Attention does not repeat a mask along the queries: write it out.
    return full.expand(full.shape[0], full.shape[1], query_length, key_length)


def _alike(size: int, other: int) -> bool:
    """Whether two sizes are equal, or were in the inputs that a graph is being traced with."""
    if isinstance(size, torch.SymInt) and isinstance(other, torch.SymInt):
        return size.node.hint == other.node.hint
    return known(size == other)


def combine(*masks: Tensor | None) -> Tensor | None:
    """The AND of the masks, None for "no mask"; they must broadcast, as what the builders return does."""
    result = None
    for mask in masks:
        if mask is not None:
            result = as_bool(mask) if result is None else result & as_bool(mask)
    return result


def padding(attention_mask: Tensor) -> Tensor:
    """(B, 1, 1, Lk): keys with 1 in `attention_mask` (B, Lk) take part."""
    if attention_mask.ndim != 2:
        raise ValueError(f"a padding mask has shape (batch, keys), not {tuple(attention_mask.shape)}")
    return as_bool(attention_mask)[:, None, None, :]


def lengths(key_lengths: Tensor, key_length: int) -> Tensor:
    """(B, 1, 1, Lk): the first `key_lengths[b]` keys of sequence b take part."""
    keys = torch.arange(key_length, device=key_lengths.device)
    return (keys < key_lengths[:, None])[:, None, None, :]


def causal(query_length: int, key_length: int, device: torch.device | None = None) -> Tensor:
    """(1, 1, Lq, Lk): key j takes part for query i when j <= i + Lk - Lq."""
    return _distance(query_length, key_length, device) >= 0


def sliding_window(
    query_length: int, key_length: int, left: int | None, right: int | None = 0, device: torch.device | None = None
) -> Tensor:
    """(1, 1, Lq, Lk): each query sees itself, `left` keys before it and `right` after it; None is no limit.

    Raises ValueError when a limit is negative.
    """
    for side, size in (("left", left), ("right", right)):
        if size is not None and size < 0:
            raise ValueError(f"the window reaches {size} keys to the {side}; it cannot be negative")
    distance = _distance(query_length, key_length, device)
    inside = torch.ones_like(distance, dtype=torch.bool)
    if left is not None:
        inside = inside & (distance <= left)
    if right is not None:
        inside = inside & (distance >= -right)
    return inside


def prefix(query_length: int, key_length: int, prefix_lengths: Tensor) -> Tensor:
    """(B, 1, Lq, Lk): prefix-LM, causal but for the first `prefix_lengths[b]` keys, which every query sees."""
    visible = lengths(prefix_lengths, key_length)
    return visible | causal(query_length, key_length, prefix_lengths.device)


def segments(query_segments: Tensor, key_segments: Tensor | None = None) -> Tensor:
    """(B, 1, Lq, Lk): a query sees the keys of its own segment: (B, Lq) and (B, Lk) segment numbers."""
    key_segments = query_segments if key_segments is None else key_segments
    return (query_segments[:, :, None] == key_segments[:, None, :])[:, None]


def _distance(query_length: int, key_length: int, device: torch.device | None) -> Tensor:
    """(1, 1, Lq, Lk): how far behind its query each key stands."""
    queries = torch.arange(query_length, device=device) + (key_length - query_length)
    return (queries[:, None] - torch.arange(key_length, device=device))[None, None]
