"""Float16 inside a graph, between its first and its last product; what stands around them, and the edge, is float32.

    ids → Gather → … → MatMul → Attention → … → MatMul → Cast → last norm, pooling → float32 outputs
          └─────────────── float16 ────────────────┘

A node computes in float16 where it is of HALF, its values come from a weight, a table or such a node, and a product
reads what it makes, however far behind, through others such. So positions and angles, masks, the norm behind the last
product and pooling stay in float32. Norms and softmax of float16 tensors are computed in float32 inside their
operators. A cache that is written in place is float16 at the edge too: to cast it would copy all of it with each token.

Case 1: MatMul or Gemm with a weight, Attention, GroupQueryAttention: a product.
Case 2: an operator of HALF behind one of these, or one that looks rows up in a table, in front of one: rewritten.
Case 3: an operator on constants alone, such as a tied head's Transpose: as all that read it.
Case 4: anything else, products of two activations among it, whose sums may be beyond float16: left alone.
"""

import numpy as np
import onnx_ir as ir

from isoformer.export.edit import array, constant_rank, initializer, remove_unused
from isoformer.export.errors import ExportError

ATTENTION = {"Attention", "GroupQueryAttention"}
PRODUCTS = {"MatMul", "Gemm"}
TABLES = {"Gather", "GatherElements", "Slice"}
HALF = {"Add", "Sub", "Mul", "Neg", "Gelu", "Relu", "Tanh", "Sigmoid", "Swish", "Erf", "Identity"}
HALF |= {"LayerNormalization", "RMSNormalization", "RotaryEmbedding"}
HALF |= {"Transpose", "Reshape", "Split", "Concat", "Squeeze", "Unsqueeze", "Expand"}
HALF |= ATTENTION | PRODUCTS | TABLES
CACHE_IN, CACHE_OUT = (3, 4), (1, 2)  # of GroupQueryAttention


def apply(model: ir.Model) -> int:
    """Rewrites the graph; returns how many nodes compute in float16. Raises ExportError for weights beyond it."""
    graph = model.graph
    _say_types(graph)
    chosen = _chosen(graph)
    narrow: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node in chosen:
            _narrow_inputs(graph, node, chosen, narrow)
    for node in chosen:
        _widen_outputs(graph, node, chosen)
    remove_unused(model)
    return len(chosen)


def _say_types(graph: ir.Graph) -> None:
    """Gives the values that another rewriting has made the dtype of what they are made of."""
    for node in graph:
        for output in node.outputs:
            if output.dtype is None and node.op_type in HALF and any(map(_is_float32, node.inputs)):
                output.dtype = ir.DataType.FLOAT


def _chosen(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that compute in float16."""
    leading: set[ir.Node] = set()  # a product reads what they make
    for node in reversed(graph):
        if _is_product(node) or any(use.node in leading for output in node.outputs for use in output.uses()):
            leading.add(node)
    chosen: set[ir.Node] = set()
    for node in graph:
        if node in leading and node.op_type in HALF and _is_float32(node.outputs[0]):
            behind = any(x is not None and x.producer() in chosen for x in node.inputs)
            table = node.op_type in TABLES and (constant_rank(node.inputs[0]) or 0) > 1
            if _is_product(node) or ((behind or table) and node.op_type not in PRODUCTS):
                chosen.add(node)
    for node in reversed(graph):  # a table of angles leads to a product too, but nothing of float16 reads it
        uses = {use.node for output in node.outputs for use in output.uses()}
        if not _is_product(node) and not uses & chosen:
            chosen.discard(node)
    for node in reversed(graph):  # case 3
        uses = {use.node for output in node.outputs for use in output.uses()}
        if node.op_type in HALF and constant_rank(node.outputs[0]) is not None and uses and uses <= chosen:
            chosen.add(node)
    return chosen


def _is_product(node: ir.Node) -> bool:
    if node.op_type in ATTENTION:
        return True
    return node.op_type in PRODUCTS and any((constant_rank(x) or 0) > 1 for x in node.inputs[:2])


def _is_float32(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _narrow_inputs(graph: ir.Graph, node: ir.Node, chosen: set[ir.Node], narrow: dict[ir.Value, ir.Value]) -> None:
    """Gives the node float16 where it reads float32 from elsewhere."""
    for index, value in enumerate(node.inputs):
        if value is None or not _is_float32(value) or value.producer() in chosen:
            continue
        if node.op_type == "GroupQueryAttention" and index in CACHE_IN:
            value.dtype = ir.DataType.FLOAT16
            continue
        if value not in narrow:
            narrow[value] = _constant(graph, value) if value.const_value is not None else _cast(graph, node, value)
        node.replace_input_with(index, narrow[value])


def _constant(graph: ir.Graph, value: ir.Value) -> ir.Value:
    wide = array(value)
    with np.errstate(over="ignore"):
        values = wide.astype(np.float16)
    if not np.isfinite(values[np.isfinite(wide)]).all():
        raise ExportError(
            f"the weight {value.name} holds {np.abs(wide).max():.3g}, and float16 ends at 65504; "
            "export it without this precision"
        )
    return initializer(graph, f"{value.name}.float16", values)


def _cast(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """The value in float16, in front of the first node that reads it so."""
    cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT16}, name=f"{value.name}.float16")
    cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].dtype = cast.name, value.shape, ir.DataType.FLOAT16
    graph.insert_before(node, cast)
    return cast.outputs[0]


def _widen_outputs(graph: ir.Graph, node: ir.Node, chosen: set[ir.Node]) -> None:
    """The node's outputs are float16, and float32 again for whoever else reads them."""
    for index, output in enumerate(node.outputs):
        if not _is_float32(output):
            continue
        output.dtype = ir.DataType.FLOAT16
        uses = [use for use in output.uses() if use.node not in chosen]
        is_cache = node.op_type == "GroupQueryAttention" and index in CACHE_OUT
        if not uses and (is_cache or not output.is_graph_output()):
            continue
        cast = ir.node("Cast", [output], attributes={"to": ir.DataType.FLOAT}, name=f"{output.name}.float32")
        wide, name = cast.outputs[0], output.name
        wide.shape, wide.dtype, wide.name = output.shape, ir.DataType.FLOAT, cast.name
        graph.insert_after(node, cast)
        for use in uses:
            use.node.replace_input_with(use.idx, wide)
        for place, value in enumerate(graph.outputs):
            if value is output:
                graph.outputs[place], wide.name, output.name = wide, name, f"{name}.float16"
