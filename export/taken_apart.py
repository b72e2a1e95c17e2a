"""Attention written in plain operators, as OpenVINO fuses it into one kernel; its provider has none for Attention.

    query, key, value → Reshape, Transpose → MatMul → Mul scale → Add bias → Softmax → MatMul → Mul seen → Transpose

bias is 0 where a key takes part and -1e30 elsewhere; a query without any key has then equal weights on all of them, and
seen, 1 or 0 for each query, makes exactly 0 of it. A mask of padding alone stays (B, 1, 1, Lk). The weights keep their
names, so that a graph may read the canonical one's file. docs/decisions/openvino.md says what was measured.
"""

import numpy as np
import onnx_ir as ir

from isoformer.export.build import Build
from isoformer.export.edit import axis_size, remove_unused, take_over, width
from isoformer.export.errors import ExportError

# Below every score, and finite in bfloat16 too, where the lowest float32 is not.
LOWEST = -1e30
_SWAP = (0, 2, 1, 3)


def apply(model: ir.Model) -> int:
    """Rewrites every Attention; returns how many there were.

    Raises ExportError for one with a cache, causality of its own, a soft cap or scores as an output.
    """
    graph = model.graph
    layers = [node for node in graph if node.op_type == "Attention" and node.domain == ""]
    build = _Build(graph, "taken_apart")
    masks: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node in layers:
        _refuse(node)
        take_over(node, [build.attention(node, masks)])
    if layers:
        _end_with_a_product(graph, build)
    remove_unused(model)
    graph.sort()
    return len(layers)


def _refuse(node: ir.Node) -> None:
    attributes = node.attributes
    causal, cap = attributes.get("is_causal"), attributes.get("softcap")
    if (
        any(value is not None for value in node.inputs[4:])
        or any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
        or (causal and causal.as_int())
        or (cap and cap.as_float())
    ):
        raise ExportError("a graph for OpenVINO is for encoders: attention without a cache, a soft cap or its scores")


def _end_with_a_product(graph: ir.Graph, build: Build) -> None:
    """Puts a product with the identity behind a norm that is an output.

    OpenVINO leaves in float32 whatever stands between an output and the products before it, and along the residual
    stream that is every sum and every norm of the model. The product changes no number of float32.
    """
    for index, value in enumerate(graph.outputs):
        node, width = value.producer(), value.shape[-1] if value.shape is not None and len(value.shape) == 3 else None
        if node is None or node.op_type not in ("LayerNormalization", "RMSNormalization") or not isinstance(width, int):
            continue
        uses, name = list(value.uses()), value.name
        whole = through_identity(build, value, width)
        for use in uses:
            use.node.replace_input_with(use.idx, whole)
        graph.outputs[index] = whole
        whole.type, whole.shape = value.type, value.shape
        value.name, whole.name = f"{name}.norm", name


def through_identity(build: Build, value: ir.Value, width: int) -> ir.Value:
    """(B, L, width) times the identity, in pieces of 32 columns at most."""
    size = np.gcd(width, 32)
    parts = build("Reshape", value, build.constant([0, 0, width // size, size]))
    product = build("MatMul", parts, build.constant(np.eye(size, dtype=np.float32)))
    return build("Reshape", product, build.constant([0, 0, width]))


class _Build(Build):
    """The nodes of attention."""

    def attention(self, node: ir.Node, masks: dict[ir.Value, tuple[ir.Value, ir.Value]]) -> ir.Value:
        """The node's output. masks: bias and seen of the masks that were met already."""
        query, key, value = (source for source in node.inputs[:3] if source is not None)
        flat = "q_num_heads" in node.attributes
        heads, kv_heads = (
            (node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int())
            if flat
            else (axis_size(query, 1), axis_size(key, 1))
        )
        head_dim = width(query) // heads if flat else width(query)
        scale = node.attributes["scale"].as_float() if "scale" in node.attributes else head_dim**-0.5
        value_dim = width(value) // kv_heads if flat else width(value)
        if flat:
            query, key, value = (
                self("Transpose", self("Reshape", x, self.constant([0, 0, count, -1])), perm=_SWAP)
                for x, count in ((query, heads), (key, kv_heads), (value, kv_heads))
            )
        if heads != kv_heads:
            times = heads // kv_heads
            key, value = self._repeated(key, times, heads, head_dim), self._repeated(value, times, heads, value_dim)
        scores = self("MatMul", query, self("Transpose", key, perm=(0, 1, 3, 2)))  # (B, H, Lq, Lk)
        if scale != 1:
            scores = self("Mul", scores, self.constant(np.float32(scale)))
        mask, seen = node.inputs[3] if len(node.inputs) > 3 else None, None
        if mask is not None:
            if mask not in masks:
                masks[mask] = self._mask(mask)
            bias, seen = masks[mask]
            scores = self("Add", scores, bias)
        out = self("MatMul", self("Softmax", scores, axis=-1), value)  # (B, H, Lq, D)
        if seen is not None:
            out = self("Mul", out, seen)
        if flat:
            out = self("Reshape", self("Transpose", out, perm=_SWAP), self.constant([0, 0, -1]))
        return out

    def _repeated(self, x: ir.Value, times: int, heads: int, size: int) -> ir.Value:
        """(B, K, L, D) → (B, K * times, L, D), each head `times` times in a row."""
        wide = self("Concat", *[self("Unsqueeze", x, self.constant([2]))] * times, axis=2)  # (B, K, times, L, D)
        return self("Reshape", wide, self.constant([0, heads, -1, size]))

    def _mask(self, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
        """What is added to the scores, and 1 for each query that has a key and 0 for others, (…, Lq or 1, 1)."""
        mask = _narrow(mask)
        lowest = self.constant(np.float32(LOWEST))
        if mask.dtype == ir.DataType.BOOL:
            keys, bias = mask, self("Where", mask, self.constant(np.float32(0)), lowest)
        else:
            keys, bias = self("Greater", mask, lowest), self("Max", mask, lowest)
        seen = self("ReduceMax", self("Cast", keys, to=ir.DataType.FLOAT), self.constant([-1]), keepdims=1)
        return bias, seen


def _narrow(mask: ir.Value) -> ir.Value:
    """The mask before it was spread over the queries: adding spreads it by itself."""
    node = mask.producer()
    if node is None or node.op_type != "Expand" or node.inputs[0] is None:
        return mask
    before = node.inputs[0].shape
    return node.inputs[0] if before is not None and len(before) == 4 else mask
