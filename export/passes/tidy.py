"""Removes what nothing uses any more, and gives weights the names of their layers.

Case 1: nodes and initializers without a use are removed.
Case 2: the second input of a MatMul whose result is added to `layer.bias` was transposed by the tracer
        and lost its name: it becomes `layer.weight`.
"""

import onnx_ir as ir

from isoformer.export.edit import remove_unused


def apply(model: ir.Model) -> int:
    return int(remove_unused(model)) + sum(_name_weight(model.graph, node) for node in model.graph)


def _name_weight(graph: ir.Graph, node: ir.Node) -> bool:
    if node.op_type != "Add":
        return False
    for bias, product in (node.inputs, reversed(node.inputs)):
        producer = product.producer() if product is not None else None
        if bias is None or bias.name is None or producer is None or producer.op_type != "MatMul":
            continue
        weight, name = producer.inputs[1], bias.name.removesuffix(".bias") + ".weight"
        if bias.name.endswith(".bias") and bias.is_initializer() and weight is not None and weight.is_initializer():
            if weight.name == name or name in graph.initializers:
                return False
            weight.name = name
            return True
    return False
