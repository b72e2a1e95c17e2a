"""Attention in float16 under a mask: no key that is masked out can win, whatever its score.

    mask (B, H, Lq, Lk) → bias: 0 where a key takes part, else -inf
    key, value → Where(some query sees it, …, 0)
    Attention(query, key, value, bias) → Where(the query has a key, …, 0)

ONNX Runtime makes a boolean mask of float16 attention into a sum with -65504, which scores can outweigh; added to a
finite score -inf cannot be outweighed. A key that no query sees, as padding is, becomes a zero vector, whose score is
0 and not, beyond 65504, infinite; and so does its value. A query without any key is NaN up to the last Where, which
leaves nothing of it. docs/decisions/cuda.md says which kernels take such a bias.

Case 1: Attention on float16 with a mask, boolean or added, of four axes: rewritten.
Case 2: without a mask, or on float32: left alone.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from isoformer.export.build import Build
from isoformer.export.edit import remove_unused
from isoformer.export.errors import ExportError


@dataclass(frozen=True)
class _Mask:
    """bias (B, H, Lq, Lk) float16; keys (B, Lk) that some query sees; rows (B, H, Lq, 1) that have a key; B or 1."""

    bias: ir.Value
    keys: ir.Value
    rows: ir.Value
    by_head: bool


def apply(model: ir.Model) -> int:
    """Rewrites each such Attention; returns how many. Raises ExportError for one with a cache."""
    graph, count = model.graph, 0
    build, masks = Build(graph, "additive_mask"), dict[ir.Value, _Mask]()
    for node in list(graph):
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if node.op_type != "Attention" or node.domain != "" or mask is None:
            continue
        if node.inputs[0] is None or node.inputs[0].dtype != ir.DataType.FLOAT16:
            continue
        if any(value is not None for value in node.inputs[4:]):
            raise ExportError("attention in float16 has its cache written in place, or none")
        if mask not in masks:
            masks[mask] = _mask(build, mask)
        _rewrite(graph, build, node, masks[mask])
        count += 1
    remove_unused(model)
    graph.sort()
    return count


def _mask(build: Build, mask: ir.Value) -> _Mask:
    if mask.shape is None or len(mask.shape) != 4:
        raise ExportError(f"the mask {mask.name} of attention in float16 has not four axes")
    lowest, zero = build.constant(np.array(-np.inf, np.float16)), build.constant(np.array(0, np.float16))
    if mask.dtype == ir.DataType.BOOL:
        seen, bias = mask, build("Where", mask, zero, lowest)
        bias.shape, bias.dtype = mask.shape, ir.DataType.FLOAT16
    else:
        seen, bias = build("Greater", mask, lowest), mask
    numbers = build("Cast", seen, to=ir.DataType.INT32)
    keys = build("ReduceMax", numbers, build.constant([1, 2]), keepdims=0)
    rows = build("ReduceMax", numbers, build.constant([3]), keepdims=1)
    keys, rows = (build("Cast", x, to=ir.DataType.BOOL) for x in (keys, rows))
    return _Mask(bias, keys, rows, by_head=mask.shape[1] != 1)


def _rewrite(graph: ir.Graph, build: Build, node: ir.Node, mask: _Mask) -> None:
    flat = "q_num_heads" in node.attributes  # (B, L, H * D), else (B, H, L, D)
    zero, key, out = build.constant(np.array(0, np.float16)), node.inputs[1], node.outputs[0]
    uses, name = list(out.uses()), out.name
    keys = build("Unsqueeze", mask.keys, build.constant([2] if flat else [1, 3]))
    for place, x in ((1, key), (2, node.inputs[2])):  # 0 · ∞ is NaN: neither a score nor a weighted value may be
        kept = build("Where", keys, x, zero)
        if x is not None:
            kept.shape, kept.dtype = x.shape, ir.DataType.FLOAT16
        node.replace_input_with(place, kept)
    node.replace_input_with(3, mask.bias)
    if flat and mask.by_head:
        heads = node.attributes["q_num_heads"].as_int()
        rows = build("Transpose", mask.rows, perm=[0, 2, 1, 3])  # (B, Lq, H, 1)
        parted = build("Reshape", out, build.constant([0, 0, heads, -1]))
        result = build("Reshape", build("Where", rows, parted, zero), build.constant([0, 0, -1]))
    else:
        rows = build("Squeeze", mask.rows, build.constant([1])) if flat else mask.rows
        result = build("Where", rows, out, zero)
    result.shape, result.dtype = out.shape, ir.DataType.FLOAT16
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    for place, value in enumerate(graph.outputs):
        if value is out:
            graph.outputs[place] = result
            result.name, out.name = name, f"{name}.rows"
