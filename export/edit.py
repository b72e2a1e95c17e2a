"""What passes over a graph have in common: constants in and out of it, and nodes that are put in order later."""

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def array(value: ir.Value | None) -> np.ndarray:
    """The numbers of a constant."""
    if value is None or value.const_value is None:
        raise ValueError(f"{'nothing' if value is None else value.name} is not a constant")
    return value.const_value.numpy()


def initializer(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    """A constant that the graph gets, under a name that it does not have yet."""
    tensor = ir.tensor(np.ascontiguousarray(values) if values.ndim else values, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def remove_unused(model: ir.Model) -> bool:
    """Takes out nodes and constants that nothing uses; whether there were any."""
    return RemoveUnusedNodesPass()(model).modified


class Builder:
    """Nodes at the end of a graph, to be sorted later, and constants that they share; names begin with `prefix`."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self.graph, self.prefix = graph, prefix
        self.count = 0
        self.constants: dict[tuple, ir.Value] = {}

    def __call__(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """The one output of a new node."""
        return self.several(kind, 1, *inputs, **attributes)[0]

    def several(self, kind: str, outputs: int, *inputs: ir.Value, **attributes: Any) -> list[ir.Value]:
        """The outputs of a new node."""
        name = f"{self.prefix}.{self.count}.{kind}"
        node = ir.node(kind, list(inputs), attributes=attributes, num_outputs=outputs, name=name)
        for number, output in enumerate(node.outputs):
            output.name = name if outputs == 1 else f"{name}.{number}"
        self.graph.append(node)
        self.count += 1
        return list(node.outputs)

    def constant(self, value: Any) -> ir.Value:
        values = np.asarray(value)
        key = (values.dtype, values.shape, values.tobytes())
        if key not in self.constants:
            self.constants[key] = initializer(self.graph, f"{self.prefix}.constant.{len(self.constants)}", values)
        return self.constants[key]


def take_over(node: ir.Node, results: list[ir.Value]) -> None:
    """`results` in the place of the node's first outputs, under their names; it goes, and others must be unused."""
    graph, outputs = node.graph, list(node.outputs)
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{node.name} stands in no graph")
    for old, new in zip(outputs, results, strict=False):
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    names = [old.name for old in outputs]
    graph.remove(node, safe=True)
    for new, name in zip(results, names, strict=False):
        new.name = name
