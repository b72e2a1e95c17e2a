"""The cache as inputs and outputs of Attention: the rewrite, and every graph that it must leave alone."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from isoformer.export.passes import cached_attention

LAYER = """
<ir_version: 10, opset_import: ["" : 23]>
layer (float[B,6,Lq,5] q, float[B,3,Lq,5] k, float[B,3,Lq,7] v, float[B,3,P,5] past_key, float[B,3,P,7] past_value,
       bool[B,1,Lq,T] mask) => (float[B,6,Lq,7] y, float[B,3,T,5] present_key, float[B,3,T,7] present_value) {
    present_key = Concat <axis = 2> (past_key, k)
    present_value = Concat <axis = 2> (past_value, v)
    y = Attention <scale = 0.3> (q, present_key, present_value, mask)
}
"""


def parse(text: str) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), data_prop=True))


def run(model: ir.Model, past: int, length: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    sizes = {"q": (2, 6, length, 5), "k": (2, 3, length, 5), "v": (2, 3, length, 7)}
    sizes |= {"past_key": (2, 3, past, 5), "past_value": (2, 3, past, 7)}
    inputs: dict[str, np.ndarray] = {n: rng.standard_normal(size).astype(np.float32) for n, size in sizes.items()}
    inputs["mask"] = rng.random((2, 1, length, past + length)) < 0.6
    inputs["mask"][1, 0, 0] = False
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return [np.asarray(x) for x in session.run(None, {name: x for name, x in inputs.items() if name in names})]


@pytest.mark.parametrize(("past", "length"), [(0, 1), (0, 4), (3, 1), (5, 4)])
def test_cache_goes_into_the_operator(past: int, length: int) -> None:
    model = parse(LAYER)
    before = run(model, past, length)
    names = [value.name for value in model.graph.outputs]
    assert cached_attention.apply(model) == 1
    assert [node.op_type for node in model.graph] == ["Attention"]
    assert [value.name for value in model.graph.outputs] == names
    for old, new in zip(before, run(model, past, length), strict=True):
        assert new.shape == old.shape
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-6)
    assert not before[0][1, :, 0].any()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Concat <axis = 2> (past_value, v)", "Concat <axis = 2> (past_value, v, v)"),
        ("Concat <axis = 2> (past_value, v)", "Identity (past_value)"),
        (", float[B,3,T,7] present_value)", ")"),
        ("y = Attention", "extra = Relu (present_key)\n    y = Attention"),
        ("mask) => (", "mask) => (float[B,3,T,5] extra, "),
    ],
)
def test_anything_else_is_left_alone(old: str, new: str) -> None:
    text = LAYER.replace(old, new)
    if "extra," in new:
        text = text.replace("y = Attention", "extra = Neg (present_key)\n    y = Attention")
    model = ir.from_onnx_text(text)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert cached_attention.apply(model) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
