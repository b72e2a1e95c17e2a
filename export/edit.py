"""What passes over a graph have in common: constants in and out of it, sizes, nodes taken out and replaced."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from isoformer.export.errors import ExportError


def loaded(path: Path) -> ir.Model:
    """The graph, its weights in memory."""
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    return model


def array(value: ir.Value | None) -> np.ndarray:
    """The numbers of a constant."""
    if value is None or value.const_value is None:
        raise ValueError(f"{'nothing' if value is None else value.name} is not a constant")
    return value.const_value.numpy()


def constant_rank(value: ir.Value | None) -> int | None:
    """The rank of a constant, or of what is made of constants: a tied head's transpose, some of its columns,
    columns that are scaled. None for anything else.
    """
    if value is None:
        return None
    if value.const_value is not None:
        return len(value.const_value.shape)
    producer = value.producer()
    if producer is None or producer.op_type not in ("Transpose", "Mul", "Slice"):
        return None
    others = (constant_rank(other) for other in producer.inputs[1:])
    return None if None in others else constant_rank(producer.inputs[0])


def axis_size(value: ir.Value, axis: int) -> int:
    """Raises ExportError for an axis of any length."""
    size = value.shape[axis] if value.shape is not None else None
    if not isinstance(size, int):
        raise ExportError(f"axis {axis} of {value.name} has no known size")
    return size


def width(value: ir.Value) -> int:
    """The size of the last axis. Raises ExportError for one of any length."""
    return axis_size(value, -1)


def initializer(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    """A constant that the graph gets, under a name that it does not have yet."""
    tensor = ir.tensor(np.ascontiguousarray(values) if values.ndim else values, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def remove_unused(model: ir.Model) -> bool:
    """Takes out nodes and constants that nothing uses; whether there were any."""
    return RemoveUnusedNodesPass()(model).modified


def replace(old: ir.Value, new: ir.Value) -> None:
    """`new` for all who read `old`, and as the graph's output, under its name and with its type and shape."""
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def take_over(node: ir.Node, results: Sequence[ir.Value]) -> None:
    """`results` in the place of the node's first outputs; it goes, and others must be unused."""
    if node.graph is None:
        raise ValueError(f"{node.name} stands in no graph")
    for old, new in zip(node.outputs, results, strict=False):
        replace(old, new)
    node.graph.remove(node, safe=True)
