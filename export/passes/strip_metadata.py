"""Drops what the tracer noted down: stack traces with paths of the machine, documentation strings, value notes.

Parameters of the traced module stand under `model.` of a wrapper; they get their own names back.
"""

import onnx_ir as ir

WRAPPER = "model."


def apply(model: ir.Model) -> int:
    graph = model.graph
    count = 0
    model.metadata_props.clear()
    model.doc_string = graph.doc_string = None
    graph.metadata_props.clear()
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph:
        count += bool(node.metadata_props or node.doc_string)
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
    for value in list(graph.initializers.values()):
        if value.name and value.name.startswith(WRAPPER):
            value.name = value.name.removeprefix(WRAPPER)
    return count
