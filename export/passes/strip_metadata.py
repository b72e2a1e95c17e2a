"""Drops what the tracer noted down: stack traces with paths of the machine, documentation strings, value notes.

Parameters of the traced module stand under `model.` of a wrapper; they get their own names back.
"""

from typing import Any

import onnx_ir as ir

WRAPPER = "model."


def apply(model: ir.Model) -> int:
    count = _clear(model)
    graphs = [model.graph, *model.graph.subgraphs()]
    for graph in graphs:
        values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        tensors = [value.const_value for value in graph.initializers.values() if value.const_value is not None]
        count += sum(_clear(thing) for thing in (graph, *graph, *values, *tensors))
    wrapped = [value for value in model.graph.initializers.values() if value.name and value.name.startswith(WRAPPER)]
    # The shortest first: one parameter's new name may be another's old one.
    for value in sorted(wrapped, key=lambda value: len(value.name or "")):
        value.name = (value.name or "").removeprefix(WRAPPER)
    return count


def _clear(thing: Any) -> bool:
    """Empties the notes of a model, graph, node, value or tensor; whether there were any."""
    found = bool(thing.metadata_props or thing.doc_string)
    thing.metadata_props.clear()
    thing.doc_string = None
    return found
