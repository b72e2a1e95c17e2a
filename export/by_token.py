"""Encoders whose layers run on packed tokens: which nodes compute something for each token by itself.

What the tokens are packed into, and how attention finds its sequences there, is the caller's: see `padding_free` for
ONNX Runtime's own kernels and `packed` for OpenVINO's.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import onnx_ir as ir

from isoformer.export.edit import array, constant_rank, remove_unused, take_over, width
from isoformer.export.errors import ExportError

POINTWISE = {"Gelu", "Relu", "Tanh", "Sigmoid", "Erf", "Identity", "Neg", "Abs", "Sqrt", "Swish"}
BINARY = {"Add", "Sub", "Mul", "Div", "Pow"}
NORMS = {"LayerNormalization", "RMSNormalization"}


class Packing(Protocol):
    """Where the tokens that are computed stand."""

    def packed(self, value: ir.Value) -> ir.Value:
        """(B, L, E) → (1, N, E), (B, L) → (1, N); (L, E), a row for each place, → (1, N, E)"""
        ...

    def unpacked(self, value: ir.Value) -> ir.Value:
        """(1, N, E) → (B, L, E), 0 at padding"""
        ...

    def attention(self, node: ir.Node) -> ir.Value:
        """The node's attention, of packed queries, keys and values."""
        ...


def apply(model: ir.Model, make: Callable[[ir.Graph, ir.Value], Packing]) -> list[str]:
    """Rewrites the graph; returns the outputs that are 0 at padding from now on.

    make: of the graph and its (B, L), bool, the real tokens. Raises ExportError for a graph that is no encoder under
    key padding alone: other masks, a cache, attention between two sequences, a bias, weights as outputs.
    """
    graph = model.graph
    layers = [node for node in graph if node.op_type == "Attention" and node.domain == ""]
    real = _real(layers)
    region = _region(graph, layers, real)
    packing = make(graph, real)
    inside = [output for node in region for output in node.outputs]
    outside = [(value, [use for use in value.uses() if use.node not in region]) for value in inside]
    entered: dict[ir.Value, ir.Value] = {}
    for node in region:
        for index, value in enumerate(node.inputs):
            if value is not None and value not in inside and _enters(value, real):
                if value not in entered:
                    entered[value] = packing.packed(value)
                node.replace_input_with(index, entered[value])
    changed = [str(value.name) for value in inside if value.is_graph_output()]
    for value, uses in outside:
        if uses or value.is_graph_output():
            _take_outside(graph, value, uses, packing.unpacked(value))
    for node in layers:
        _run_packed(node, packing)
    for value in inside:
        value.shape = ir.Shape([None, None, width(value)])
    remove_unused(model)
    graph.sort()
    return changed


def _real(layers: Sequence[ir.Node]) -> ir.Value:
    """(B, L), bool: the tokens that every layer's mask keeps as keys."""
    found = {_keys(node) for node in layers}
    if len(found) != 1 or None in found:
        raise ExportError("padding-free graphs are for encoders whose only mask is padding, the same in each layer")
    return found.pop()  # pyright: ignore[reportReturnType]


def _keys(node: ir.Node) -> ir.Value | None:
    """The (B, L) that Expand(Unsqueeze(…)) makes the node's mask of; None for other attention."""
    plain = all(value is None for value in node.inputs[4:]) and "q_num_heads" in node.attributes
    alone = all(not output.uses() and not output.is_graph_output() for output in node.outputs[1:])
    causal, cap = node.attributes.get("is_causal"), node.attributes.get("softcap")
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    expand = mask.producer() if mask is not None else None
    if not plain or not alone or (causal and causal.as_int()) or (cap and cap.as_float()):
        return None
    if expand is None or expand.op_type != "Expand" or expand.inputs[0] is None:
        return None
    unsqueeze = expand.inputs[0].producer()
    if unsqueeze is None or unsqueeze.op_type != "Unsqueeze" or list(array(unsqueeze.inputs[1])) != [1, 2]:
        return None
    real = unsqueeze.inputs[0]
    return real if real is not None and real.shape is not None and len(real.shape) == 2 else None


def _region(graph: ir.Graph, layers: Sequence[ir.Node], real: ir.Value) -> dict[ir.Node, None]:
    """The nodes that compute something for each token by itself, and attention; in the graph's order."""
    found: dict[ir.Node, None] = {}
    for node in graph:
        tokens = all(_is_tokens(output, real) for output in node.outputs if output.uses() or output.is_graph_output())
        if tokens and (node in layers or _is_by_token(node, real)):
            found[node] = None
    if not all(node in found for node in layers):
        raise ExportError("padding-free graphs are for attention over (batch, length, width)")
    return found


def _enters(value: ir.Value, real: ir.Value) -> bool:
    """Whether a value has something for each token, or for each place of a sequence."""
    return _is_tokens(value, real) or _is_ids(value, real) or _is_places(value, real)


def _is_ids(value: ir.Value, real: ir.Value) -> bool:
    """Whether it is (B, L), of whole numbers."""
    shape = value.shape
    whole = value.dtype in (ir.DataType.INT64, ir.DataType.INT32)
    return whole and shape is not None and real.shape is not None and list(shape) == list(real.shape)


def _is_places(value: ir.Value, real: ir.Value) -> bool:
    """Whether it is (L, width), of floats, such as the positions' vectors."""
    shape = value.shape
    if shape is None or real.shape is None or len(shape) != 2 or value.dtype != ir.DataType.FLOAT:
        return False
    return shape[0] == real.shape[1] and isinstance(shape[1], int)


def _is_tokens(value: ir.Value, real: ir.Value) -> bool:
    """Whether it is (B, L, width), of floats."""
    shape = value.shape
    if shape is None or real.shape is None or len(shape) != 3 or value.dtype != ir.DataType.FLOAT:
        return False
    return list(shape[:2]) == list(real.shape) and isinstance(shape[2], int)


def _is_by_token(node: ir.Node, real: ir.Value) -> bool:
    if node.domain != "" or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type == "MatMul":
        return _is_tokens(node.inputs[0], real) and constant_rank(node.inputs[1]) == 2
    if node.op_type == "Gather":
        axis, (table, ids) = node.attributes.get("axis"), node.inputs[:2]
        on_rows = axis is None or axis.as_int() == 0
        return on_rows and constant_rank(table) == 2 and ids is not None and _is_ids(ids, real)
    if node.op_type in NORMS:
        axis = node.attributes.get("axis")
        return axis is None or axis.as_int() == -1
    if node.op_type == "Split":
        return node.attributes["axis"].as_int() == -1
    if node.op_type in BINARY:
        kinds = (_is_tokens, _is_places)
        return all(
            x is not None and (constant_rank(x) in (0, 1) or any(kind(x, real) for kind in kinds)) for x in node.inputs
        )
    return node.op_type in POINTWISE


def _take_outside(graph: ir.Graph, value: ir.Value, uses: Sequence[Any], result: ir.Value) -> None:
    """The unpacked result for those uses, and for the graph's output, whose name it takes."""
    name, result.type, result.shape = value.name, value.type, value.shape
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = result
            value.name, result.name = f"{name}.packed", name


def _run_packed(node: ir.Node, packing: Packing) -> None:
    result, columns = packing.attention(node), width(node.outputs[0])
    take_over(node, [result])
    result.name, result.shape = f"{result.name}.tokens", ir.Shape([None, None, columns])
