"""The mask contract, and the only builders of masks.

1. A mask is boolean and True means "takes part". Integer and float masks of 0 and 1 are taken at
   the public edge and converted by `as_bool`.
2. Four shapes mean something; `normalize` turns each into (B or 1, 1 or H, Lq, Lk):

       (B, Lk)          key padding: the same keys for every query and head
       (Lq, Lk)         the same for every sequence and head
       (B, Lq, Lk)      the same for every head; B may be 1
       (B, H, Lq, Lk)   as it stands; B, H and Lq may be 1 to be repeated

   A two-dimensional mask with B rows is key padding, also where B happens to equal Lq. What the
   builders below return is four-dimensional and never in doubt.
3. Masks combine by AND (`combine`).
4. Query row i stands at position i + Lk - Lq (bottom-right), so behind P cached keys the rows
   stand at P, P + 1, ... Where the last query is not at the last key, `offset` says where row 0
   stands: one number for all, or (B,) numbers for sequences that have come differently far.
5. A query row with no key gives exactly zero and a finite gradient.
6. Padding never changes the answer of a real token.

Letters are those of `attention.py`.
"""

from collections.abc import Collection

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true


def as_bool(mask: Tensor) -> Tensor:
    """The mask as booleans, True where it is 1.

    Raises ValueError when a number is neither 0 nor 1: an additive mask (0 and -inf) would come
    out upside down. The values are not looked at while a graph is being traced.
    """
    if not isinstance(mask, Tensor):
        raise ValueError(f"the mask is a {type(mask).__name__}; pass a tensor")
    if mask.dtype == torch.bool:
        return mask
    if mask.is_complex():
        raise ValueError(f"the mask has dtype {mask.dtype}; it is bool, or 0 and 1 of a real dtype")
    if not torch.compiler.is_compiling() and (wrong := mask[(mask != 0) & (mask != 1)]).numel():
        raise ValueError(
            f"the mask holds {wrong[0].item()}, and nothing other than 0 and 1 is allowed; 1 or True means that a key "
            "takes part (of an additive mask, pass `mask == 0`)"
        )
    return mask != 0


def normalize(mask: Tensor, batch: int, heads: int, query_length: int, key_length: int) -> Tensor:
    """Any mask of the contract as booleans of shape (B or 1, 1 or H, Lq, Lk).

    Raises ValueError, with both shapes, when the mask fits none of the four.
    """
    if not isinstance(mask, Tensor):
        raise ValueError(f"the mask is a {type(mask).__name__}; pass a tensor")
    full, repeated = mask, (0, 1, 2)  # what has four axes may repeat the first three; else those that are added here
    if mask.ndim == 2 and _traced_alike(mask.shape[0], query_length) and not _traced_alike(mask.shape[0], batch):
        full, repeated = mask[None, None], (0, 1)
    elif mask.ndim == 2:
        full, repeated = mask[:, None, None, :], (1, 2)
    elif mask.ndim == 3:
        full, repeated = mask[:, None], (0, 1)
    if full.ndim != 4 or not fits(full, (batch, heads, query_length, key_length), repeated):
        b, h, lq, lk = batch, heads, query_length, key_length
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)}; with batch {b}, heads {h}, queries {lq} and keys {lk} "
            f"it must be ({b}, {lk}), ({lq}, {lk}), ({b}, {lq}, {lk}) or ({b}, {h}, {lq}, {lk})"
        )
    full = as_bool(full)
    return over_queries(full, query_length, key_length)


def fits(tensor: Tensor, wanted: tuple[int, ...], repeated: Collection[int]) -> bool:
    """Whether each size of the tensor is the one wanted, or 1 in one of the axes `repeated`.

    Sizes that a graph being exported leaves open are declared equal to those wanted.
    """
    for axis, (have, want) in enumerate(zip(tensor.shape, wanted, strict=True)):
        if _equal(have, want) or (axis in repeated and _equal(have, 1)):
            continue
        if not torch.compiler.is_exporting() or statically_known_true(have != want):
            return False
        torch._check(have == want)
    return True


def over_queries(full: Tensor, query_length: int, key_length: int) -> Tensor:
    """(…, Lq or 1, Lk or 1) → (…, Lq, Lk), which ONNX Runtime's Attention wants written out."""
    if _equal(full.shape[2], query_length) and _equal(full.shape[3], key_length):
        return full
    return full.expand(full.shape[0], full.shape[1], query_length, key_length)


def _equal(size: int, other: int) -> bool:
    """Whether two sizes are equal; of the open sizes of a graph being exported, whether they must be."""
    return statically_known_true(size == other) if torch.compiler.is_exporting() else size == other


def _traced_alike(size: int, other: int) -> bool:
    """Whether two sizes are equal, or were in the inputs that a graph is being exported with."""
    if torch.compiler.is_exporting() and isinstance(size, torch.SymInt) and isinstance(other, torch.SymInt):
        return size.node.hint == other.node.hint
    return _equal(size, other)


def combine(*masks: Tensor | None) -> Tensor | None:
    """The AND of what the builders return, (B or 1, 1 or H, Lq or 1, Lk); None for "no mask".

    Raises ValueError for a mask of other than four axes, which only `normalize` can tell the meaning
    of, and for sizes that do not fit each other.
    """
    result = None
    for mask in masks:
        if mask is None:
            continue
        if mask.ndim != 4:
            raise ValueError(f"combine takes masks of four axes, not {tuple(mask.shape)}: use padding() or normalize()")
        if result is None:
            result = as_bool(mask)
            continue
        wanted = tuple(
            have if _equal(other, 1) else other for have, other in zip(mask.shape, result.shape, strict=True)
        )
        if not fits(mask, (*wanted[:3], result.shape[3]), repeated=(0, 1, 2)):
            raise ValueError(f"masks of shape {tuple(mask.shape)} and {tuple(result.shape)} do not fit each other")
        result = result & as_bool(mask)
    return result


def padding(attention_mask: Tensor) -> Tensor:
    """(B, 1, 1, Lk): keys with 1 in `attention_mask` (B, Lk) take part."""
    if attention_mask.ndim != 2:
        raise ValueError(f"a padding mask has shape (batch, keys), not {tuple(attention_mask.shape)}")
    return as_bool(attention_mask)[:, None, None, :]


def lengths(key_lengths: Tensor, key_length: int) -> Tensor:
    """(B, 1, 1, Lk): the first `key_lengths[b]` keys of sequence b take part."""
    _check_lengths("lengths", key_lengths, key_length)
    keys = torch.arange(key_length, device=key_lengths.device)
    return (keys < key_lengths[:, None])[:, None, None, :]


def causal(
    query_length: int, key_length: int, device: torch.device | None = None, *, offset: Tensor | int | None = None
) -> Tensor:
    """(1 or B, 1, Lq, Lk): key j takes part for query i when j <= i + offset; offset is Lk - Lq unless given."""
    return distance(query_length, key_length, device, offset=offset) >= 0


def sliding_window(
    query_length: int,
    key_length: int,
    left: int | None,
    right: int | None = 0,
    device: torch.device | None = None,
    *,
    offset: Tensor | int | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """(1 or B, 1, Lq, Lk): each query sees itself, `left` keys before it and `right` after it; None is no limit.

    positions: of the keys (B, Lk), where they are not their places, see `distance`.
    A "window of W" in the papers on causal models counts the query itself: left = W - 1.

    Raises ValueError when a limit is negative or no whole number.
    """
    check_window(left, right)
    behind = distance(query_length, key_length, device, offset=offset, positions=positions)
    inside = torch.ones_like(behind, dtype=torch.bool)
    if left is not None:
        inside = inside & (behind <= left)
    if right is not None:
        inside = inside & (behind >= -right)
    return inside


def _check_lengths(name: str, lengths: Tensor, key_length: int) -> None:
    if lengths.ndim != 1 or lengths.is_floating_point():
        raise ValueError(f"{name} are whole numbers (batch,), not {lengths.dtype} of shape {tuple(lengths.shape)}")
    if not torch.compiler.is_compiling() and ((lengths < 0) | (lengths > key_length)).any():
        raise ValueError(f"{name} are {lengths.tolist()}; there are {key_length} keys")


def check_window(left: int | None, right: int | None) -> None:
    """Raises ValueError when a limit of a sliding window is negative or no whole number."""
    for side, size in (("left", left), ("right", right)):
        if size is not None and (type(size) is not int or size < 0):
            raise ValueError(f"the window reaches {size!r} keys to the {side}; it must be a whole number, at least 0")


def prefix(query_length: int, key_length: int, prefix_lengths: Tensor, *, offset: Tensor | int | None = None) -> Tensor:
    """(B, 1, Lq, Lk): prefix-LM, causal but for the first `prefix_lengths[b]` keys, which every query sees."""
    visible = lengths(prefix_lengths, key_length)
    return visible | causal(query_length, key_length, prefix_lengths.device, offset=offset)


def segments(query_segments: Tensor, key_segments: Tensor | None = None, *, padding: int | None = None) -> Tensor:
    """(B, 1, Lq, Lk): a query sees the keys of its own segment: (B, Lq) and (B, Lk) segment numbers.

    The segment numbered `padding` takes part in nothing, so its rows have no key.
    """
    key_segments = query_segments if key_segments is None else key_segments
    alike = query_segments.ndim == key_segments.ndim == 2
    if not alike or not fits(key_segments, (query_segments.shape[0], key_segments.shape[1]), repeated=()):
        shapes = f"{tuple(query_segments.shape)} and {tuple(key_segments.shape)}"
        raise ValueError(f"segments of queries and keys have shape (batch, length), not {shapes}")
    same = query_segments[:, :, None] == key_segments[:, None, :]
    if padding is not None:
        same = same & (key_segments != padding)[:, None, :]
    return same[:, None]


def distance(
    query_length: int,
    key_length: int,
    device: torch.device | None = None,
    *,
    offset: Tensor | int | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """(1 or B, 1, Lq, Lk): how many positions each key stands behind its query; negative: ahead of it.

    positions: of the keys (B, Lk), the last Lq of which are the queries' own. Where padding stands between
    the tokens of a cache, their places are further apart than the tokens are.

    Raises ValueError for a negative length, when an offset that is a tensor is not (B,) or positions are not
    (B, Lk), and for both of them.
    """
    if query_length < 0 or key_length < 0:
        raise ValueError(f"there cannot be {query_length} queries and {key_length} keys")
    if isinstance(offset, float) or (isinstance(offset, Tensor) and offset.is_floating_point()):
        raise ValueError(f"offset is {offset}; positions are whole numbers")
    if positions is not None:
        if offset is not None:
            raise ValueError(f"positions {tuple(positions.shape)} say where the queries stand; offset is too much")
        if positions.ndim != 2 or not fits(positions, (positions.shape[0], key_length), repeated=()):
            raise ValueError(f"positions have shape {tuple(positions.shape)}; they are (batch, {key_length})")
        if not torch.compiler.is_exporting() and query_length > key_length:
            raise ValueError(f"positions {tuple(positions.shape)} are fewer than the {query_length} queries")
        queries = positions.narrow(1, key_length - query_length, query_length)
        return (queries[:, :, None] - positions[:, None, :])[:, None]
    rows = torch.arange(query_length, device=device)
    if isinstance(offset, Tensor):
        if offset.ndim != 1:
            raise ValueError(f"offset has shape {tuple(offset.shape)}; it is one number or (batch,) numbers")
        queries = (rows + offset[:, None])[:, None, :, None]  # (B, 1, Lq, 1)
    else:
        queries = (rows + (key_length - query_length if offset is None else offset))[None, None, :, None]
    return queries - torch.arange(key_length, device=queries.device)
