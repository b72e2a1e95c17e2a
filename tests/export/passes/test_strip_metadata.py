"""What the tracer noted down is gone from the file; what the graph computes stays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from isoformer.export.passes import strip_metadata

NOTE = "/home/somebody/secret/model.py line 7"
TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
graph (float[B,3] x, bool condition) => (float[B,3] y) {
    h = Add (x, bias)
    i = If (condition) <
        then_branch = yes () => (float[B,3] p) { p = Mul (h, factor) },
        else_branch = no () => (float[B,3] q) { q = Neg (h) }
    >
    y = Relu (i)
}
"""


def graph() -> ir.Model:
    proto = onnx.parser.parse_model(TEXT)
    arrays = {"bias": np.array([1, 2, 3], np.float32), "factor": np.array([5, 7, 11], np.float32)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    model = ir.from_proto(proto)
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(arrays[value.name or ""], name=value.name)
    return model


def run(model: ir.Model) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.array([[-3, 0, 5], [7, -11, 2]], np.float32)
    return [np.asarray(session.run(None, {"x": x, "condition": np.array(c)})[0]) for c in (True, False)]


def branch(model: ir.Model) -> ir.Graph:
    chosen = next(node for node in model.graph if node.op_type == "If")
    return chosen.attributes["then_branch"].as_graph()


PLACES: dict[str, Callable[[ir.Model], Any]] = {
    "the model": lambda model: model,
    "the graph": lambda model: model.graph,
    "a node": lambda model: model.graph[0],
    "a node's output": lambda model: model.graph[0].outputs[0],
    "an input": lambda model: model.graph.inputs[0],
    "an output": lambda model: model.graph.outputs[0],
    "an initializer": lambda model: model.graph.initializers["bias"],
    "an initializer's tensor": lambda model: model.graph.initializers["bias"].const_value,
    "a branch": branch,
    "a node of a branch": lambda model: branch(model)[0],
    "a value of a branch": lambda model: branch(model)[0].outputs[0],
}


def written(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString()


@pytest.mark.parametrize("kind", ["metadata", "documentation"])
@pytest.mark.parametrize("place", PLACES)
def test_note_is_gone_from_the_file(place: str, kind: str) -> None:
    model = graph()
    noted = PLACES[place](model)
    if kind == "metadata":
        noted.metadata_props["pkg.torch.onnx.stack_trace"] = NOTE
    else:
        noted.doc_string = NOTE
    assert NOTE.encode() in written(model)
    strip_metadata.apply(model)
    assert NOTE.encode() not in written(model)


def test_the_file_is_the_one_without_notes() -> None:
    model = graph()
    for place in PLACES.values():
        place(model).metadata_props["note"] = NOTE
        place(model).doc_string = NOTE
    before = run(model)
    strip_metadata.apply(model)
    assert written(model) == written(graph())
    for old, new, plain in zip(before, run(model), run(graph()), strict=True):
        np.testing.assert_array_equal(new, old)
        np.testing.assert_array_equal(new, plain)


def test_count_is_the_number_of_nodes_with_notes() -> None:
    model = graph()
    assert strip_metadata.apply(model) == 0
    model.graph[0].metadata_props["note"] = NOTE
    model.graph[2].doc_string = NOTE
    assert strip_metadata.apply(model) == 2
    assert strip_metadata.apply(model) == 0


def test_parameters_get_their_own_names_back() -> None:
    model = graph()
    model.graph.initializers["bias"].name = "model.blocks.0.bias"
    before = run(model)
    strip_metadata.apply(model)
    assert set(model.graph.initializers) == {"blocks.0.bias", "factor"}
    for old, new in zip(before, run(model), strict=True):
        np.testing.assert_array_equal(new, old)


def test_only_the_wrapper_is_taken_from_a_name() -> None:
    model = graph()
    model.graph.initializers["bias"].name = "model.model.bias"
    model.graph.initializers["factor"].name = "remodel.factor"
    strip_metadata.apply(model)
    assert set(model.graph.initializers) == {"model.bias", "remodel.factor"}


@pytest.mark.parametrize("names", [("model.model.a", "model.a"), ("model.a", "model.model.a")])
def test_names_of_a_model_within_the_model(names: tuple[str, str]) -> None:
    """A module whose own part is called `model` too: the new name of one parameter is the old name of another."""
    model = graph()
    for initializer, name in zip(list(model.graph.initializers.values()), names, strict=True):
        initializer.name = name
    before = run(model)
    strip_metadata.apply(model)
    assert set(model.graph.initializers) == {"a", "model.a"}
    for old, new in zip(before, run(model), strict=True):
        np.testing.assert_array_equal(new, old)
