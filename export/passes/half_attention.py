"""Attention on float16 tensors computes in float32, between Casts.

    q, k, v (float16) → Attention                  becomes    Cast → Attention (float32) → Cast

ONNX Runtime adds the lowest float16, -65504, to the score of a key that the mask leaves out. A score of
60000 there still beats one of -60000 elsewhere, and the query reads a key that it must not see. In
float32 the same sum is out of every score's reach.

Case 1: the node computes in float16: its inputs are cast, a boolean mask is not.
Case 2: anything else: left alone.
"""

import onnx_ir as ir


def apply(model: ir.Model) -> int:
    count = 0
    for node in list(model.graph):
        if node.op_type == "Attention" and node.domain == "" and _is_half(node.inputs[0]):
            _widen(model.graph, node)
            count += 1
    return count


def _is_half(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT16


def _widen(graph: ir.Graph, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and _is_half(value):
            cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT})
            cast.outputs[0].shape, cast.outputs[0].dtype = value.shape, ir.DataType.FLOAT
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
    for output in node.outputs:
        if not (output.uses() or output.is_graph_output()):
            continue
        name, output.name = output.name, f"{output.name}_float32"
        cast = ir.node("Cast", [output], attributes={"to": ir.DataType.FLOAT16})
        narrow = cast.outputs[0]
        narrow.name, narrow.shape, narrow.dtype = name, output.shape, ir.DataType.FLOAT16
        ir.convenience.replace_all_uses_with(output, narrow, replace_graph_outputs=True)
        cast.replace_input_with(0, output)
        graph.insert_after(node, cast)
        output.dtype = ir.DataType.FLOAT
