"""How attention is written in ONNX, per opset. The modules stay as they are.

From opset 23 there is a standard Attention operator, which gives zero for a row without keys. Below
it attention is taken apart here so that it gives zero as well: the translation that torch brings
leaves such a row with the mean of the values.
"""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import onnxscript
import torch

# The stubs of onnxscript know types of constants and of tensors but not of what one makes of the other.
op20: Any = onnxscript.opset20
op23: Any = onnxscript.opset23

SDPA = torch.ops.aten.scaled_dot_product_attention.default


def table(opset: int) -> dict[Any, Callable]:
    """The custom_translation_table of torch.onnx.export for that opset."""
    return {SDPA: _attention if opset >= 23 else _attention_taken_apart}


def _attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale=None,
    enable_gqa: bool = False,
):
    """Attention-23, which broadcasts key/value heads over query heads by itself."""
    _refuse(dropout_p, is_causal)
    del enable_gqa  # the operator sees it by the head counts
    if scale is not None and scale <= 0:  # the operator takes positive ones alone
        query = op23.Mul(query, op23.CastLike(op23.Constant(value_float=float(scale)), query))
        scale = 1.0
    return op23.Attention(query, key, value, attn_mask, scale=scale)[0]


def _attention_taken_apart(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale=None,
    enable_gqa: bool = False,
):
    """softmax(scale * query @ key^T where mask, else -inf) @ value where the row has a key, else 0.

    A mask of numbers is added instead; it leaves a key out where it is -inf. Float16 is computed in
    float32: its scores end at 65504, and two infinite ones make a NaN.
    """
    _refuse(dropout_p, is_causal)
    del enable_gqa  # it is plain from the head counts
    heads, kv_heads, head_dim = query.shape[1], key.shape[1], query.shape[3]
    half = query.dtype == ir.DataType.FLOAT16
    if half:
        query, key, value = (op20.Cast(x, to=ir.DataType.FLOAT) for x in (query, key, value))
        if attn_mask is not None and attn_mask.dtype == ir.DataType.FLOAT16:
            attn_mask = op20.Cast(attn_mask, to=ir.DataType.FLOAT)
    if heads != kv_heads:
        key, value = _repeat_heads(key, heads // kv_heads), _repeat_heads(value, heads // kv_heads)
    factor = op20.CastLike(op20.Constant(value_float=float(head_dim**-0.5 if scale is None else scale)), query)
    scaled = query if scale == 1.0 else op20.Mul(query, factor)
    scores = op20.MatMul(scaled, op20.Transpose(key, perm=[0, 1, 3, 2]))  # (B, H, Lq, Lk)
    if attn_mask is None:
        out = op20.MatMul(op20.Softmax(scores, axis=-1), value)
        return op20.Cast(out, to=ir.DataType.FLOAT16) if half else out
    lowest = op20.CastLike(op20.Constant(value_float=float("-inf")), query)
    if attn_mask.dtype == ir.DataType.BOOL:
        seen, scores = attn_mask, op20.Where(attn_mask, scores, lowest)
    else:
        seen, scores = op20.Greater(attn_mask, lowest), op20.Add(scores, attn_mask)
    weights = op20.Softmax(scores, axis=-1)
    # A row without keys is NaN up to here; Where leaves nothing of it.
    has_key = op20.Cast(op20.ReduceMax(op20.Cast(seen, to=6), op20.Constant(value_ints=[-1])), to=9)
    zero = op20.CastLike(op20.Constant(value_float=0.0), query)
    out = op20.Where(has_key, op20.MatMul(weights, value), zero)
    return op20.Cast(out, to=ir.DataType.FLOAT16) if half else out


def _repeat_heads(x, times: int):
    """(B, K, L, D) → (B, K * times, L, D), each head `times` times in a row."""
    batch_and_heads = op20.Shape(x, end=2)
    length_and_size = op20.Shape(x, start=2)
    wide = op20.Expand(
        op20.Unsqueeze(x, op20.Constant(value_ints=[2])),
        op20.Concat(batch_and_heads, op20.Constant(value_ints=[times]), length_and_size, axis=0),
    )
    return op20.Reshape(
        wide, op20.Concat(op20.Shape(x, end=1), op20.Constant(value_ints=[-1]), length_and_size, axis=0)
    )


def _refuse(dropout_p: float, is_causal: bool) -> None:
    if dropout_p:
        raise ValueError("attention with dropout cannot be exported; put the model in eval mode")
    if is_causal:
        raise ValueError("is_causal means another alignment in every runtime; pass masks.causal(...) as the mask")
