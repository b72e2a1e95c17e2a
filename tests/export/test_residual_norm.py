"""A residual and the norm behind it in one operator: what is rewritten, what is not, and that it computes the same."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from isoformer.export import residual_norm


def graph(kind: str = "RMSNormalization", *, other: str = "y", axis: int = -1) -> ir.Model:
    """sum = x + other, norm = kind(sum, w)."""
    tensors = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, "l", 7]) for name in ("x", "y")]
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("norm", "sum")]
    weight = np.random.default_rng(1).standard_normal(7).astype(np.float32)
    nodes = [
        helper.make_node("Add", ["x", other], ["sum"]),
        helper.make_node(kind, ["sum", "w"], ["norm"], epsilon=1e-3, axis=axis),
    ]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight * 2, "bias")]
    made = helper.make_graph(nodes, "residual", tensors, outputs, constants)
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))


def run(model: ir.Model) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 3, 7)).astype(np.float32) for name in ("x", "y")}
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(["norm", "sum"], feeds)]


def test_the_pair_becomes_one_operator_that_computes_both():
    want, model = run(graph()), graph()
    assert residual_norm.apply(model) == 1
    assert [node.op_type for node in model.graph] == ["SkipSimplifiedLayerNormalization"]
    for found, exact in zip(run(model), want, strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model", [graph("LayerNormalization"), graph(other="bias"), graph(axis=1)], ids=["layer", "bias", "two axes"]
)
def test_other_norms_and_sums_are_left_alone(model):
    assert residual_norm.apply(model) == 0
    assert next(node.op_type for node in model.graph) == "Add"
