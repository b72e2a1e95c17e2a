"""One copy of equal weights. The values are small integers, so that every product is exact in float32."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from isoformer.export.passes import tie_weights
from isoformer.export.passes.tie_weights import SMALLEST, digest

Arrays = dict[str, np.ndarray]


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(-9, 10, shape).astype(np.float32)


TABLE = integers(29, 11)  # 319 values: a table of 29 words


def parse(body: str, arrays: Arrays, outputs: str, inputs: str = "int64[B,L] ids, float[B,L,29] x") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 23]> tied ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def run(model: ir.Model, feeds: Arrays | None = None) -> list[np.ndarray]:
    """The outputs for ids and x, or for the feeds given; the graph is checked first."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    every = feeds or {"ids": np.arange(14).reshape(2, 7) * 2, "x": integers(2, 7, 29, seed=1)}
    return [np.asarray(v) for v in session.run(None, {value.name: every[value.name] for value in session.get_inputs()})]


def tied(model: ir.Model, changes: int, feeds: Arrays | None = None) -> None:
    """The pass makes that many changes, and every output is what it was."""
    before = run(model, feeds)
    assert tie_weights.apply(model) == changes
    for old, new in zip(before, run(model, feeds), strict=True):
        np.testing.assert_array_equal(new, old)


def left_alone(model: ir.Model) -> None:
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert tie_weights.apply(model) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


# ------------------------------------------------------------------------------------------------- case 1


def test_equal_weights_become_one() -> None:
    body = "y = MatMul (x, a) z = MatMul (x, b)"
    model = parse(body, {"a": TABLE, "b": TABLE.copy()}, "float[B,L,11] y, float[B,L,11] z", "float[B,L,29] x")
    tied(model, 1)
    assert list(model.graph.initializers) == ["a"]
    assert kinds(model) == ["MatMul", "MatMul"]
    assert all(node.inputs[1] is model.graph.initializers["a"] for node in model.graph)


def test_three_equal_weights_become_one() -> None:
    body = "p = MatMul (x, a) q = MatMul (x, b) r = MatMul (x, c) s = Add (p, q) y = Sub (r, s)"
    model = parse(body, dict.fromkeys("abc", TABLE), "float[B,L,11] y", "float[B,L,29] x")
    tied(model, 2)
    assert list(model.graph.initializers) == ["a"]


def test_weight_used_in_several_places() -> None:
    body = "p = MatMul (x, a) q = MatMul (x, b) r = Gather (b, ids) s = Add (p, q) y = Add (r, s)"
    model = parse(body, {"a": TABLE, "b": TABLE}, "float[B,L,11] y")
    tied(model, 1)
    assert list(model.graph.initializers) == ["b"]  # the table that is looked up is the one that stays


def test_biases_of_one_axis_are_tied_too() -> None:
    long = integers(257)
    body = "p = Add (x, a) y = Mul (p, b)"
    model = parse(body, {"a": long, "b": long}, "float[B,L,257] y", "float[B,L,1] x")
    assert tie_weights.apply(model) == 1
    assert list(model.graph.initializers) == ["a"]


# ------------------------------------------------------------------------------------------------- case 2


@pytest.mark.parametrize("order", ["at", "ta"])
def test_transposed_weight_gives_way_to_a_transpose(order: str) -> None:
    """A tied decoder: the table is looked up at one end and multiplied at the other, in either order."""
    body = "e = Gather (a, ids) y = MatMul (e, t)"
    arrays = {"a": TABLE, "t": np.ascontiguousarray(TABLE.T)}
    model = parse(body, {name: arrays[name] for name in order}, "float[B,L,29] y", "int64[B,L] ids")
    tied(model, 1)
    assert list(model.graph.initializers) == ["a"]
    assert sorted(kinds(model)) == ["Gather", "MatMul", "Transpose"]
    (transpose,) = (node for node in model.graph if node.op_type == "Transpose")
    assert transpose.inputs[0] is model.graph.initializers["a"]
    assert list(transpose.attributes["perm"].as_ints()) == [1, 0]
    assert transpose.outputs[0].shape == ir.Shape([11, 29])
    assert transpose.outputs[0].dtype == ir.DataType.FLOAT


def test_second_time_nothing_is_left_to_do() -> None:
    body = "e = Gather (a, ids) y = MatMul (e, t)"
    model = parse(body, {"a": TABLE, "t": np.ascontiguousarray(TABLE.T)}, "float[B,L,29] y", "int64[B,L] ids")
    tie_weights.apply(model)
    left_alone(model)


def test_two_transposed_weights() -> None:
    """Two decoders tied to one table."""
    body = "e = Gather (a, ids) y = MatMul (e, t) z = MatMul (e, u)"
    flipped = np.ascontiguousarray(TABLE.T)
    outputs = "float[B,L,29] y, float[B,L,29] z"
    model = parse(body, {"a": TABLE, "t": flipped, "u": flipped.copy()}, outputs, "int64[B,L] ids")
    tied(model, 2)
    assert list(model.graph.initializers) == ["a"]


def test_equal_and_transposed() -> None:
    body = "e = Gather (a, ids) f = Gather (b, ids) g = Add (e, f) y = MatMul (g, t)"
    arrays = {"a": TABLE, "b": TABLE, "t": np.ascontiguousarray(TABLE.T)}
    model = parse(body, arrays, "float[B,L,29] y", "int64[B,L] ids")
    tied(model, 2)
    assert list(model.graph.initializers) == ["a"]


def test_square_weights() -> None:
    square = integers(17, 17)
    body = "p = MatMul (x, a) q = MatMul (p, t) r = MatMul (q, b) y = Relu (r)"
    arrays = {"a": square, "t": np.ascontiguousarray(square.T), "b": square}
    model = parse(body, arrays, "float[B,L,17] y", "float[B,L,17] x")
    tied(model, 2, {"x": np.eye(17, dtype=np.float32)[None]})
    assert list(model.graph.initializers) == ["a"]


def test_symmetric_weight_is_left_alone() -> None:
    square = integers(17, 17)
    symmetric = square + square.T
    model = parse("y = MatMul (x, a)", {"a": symmetric}, "float[B,L,17] y", "float[B,L,17] x")
    left_alone(model)


# --------------------------------------------------------------------------------------------- left alone


@pytest.mark.parametrize(("size", "changes"), [(SMALLEST - 1, 0), (SMALLEST, 1)])
def test_small_weights_are_left_alone(size: int, changes: int) -> None:
    small = integers(size)
    model = parse(
        "p = Add (x, a) y = Mul (p, b)", {"a": small, "b": small}, f"float[B,L,{size}] y", f"float[B,L,{size}] x"
    )
    assert tie_weights.apply(model) == changes
    assert len(model.graph.initializers) == 2 - changes


def test_small_transposed_weights_are_left_alone() -> None:
    small = integers(5, 51)
    assert small.size == SMALLEST - 1
    body = "p = MatMul (x, a) y = MatMul (p, t)"
    model = parse(body, {"a": small, "t": np.ascontiguousarray(small.T)}, "float[B,L,5] y", "float[B,L,5] x")
    left_alone(model)


def other_value() -> np.ndarray:
    other = TABLE.copy()
    other[17, 5] += 1
    return other


@pytest.mark.parametrize(
    "other",
    [other_value(), TABLE.reshape(11, 29), TABLE[None], np.where(TABLE == 0, np.float32(-0.0), TABLE)],
    ids=["one value", "another shape", "another axis", "negative zeros"],
)
def test_different_weights_are_left_alone(other: np.ndarray) -> None:
    body = "n = Size (a) m = Size (b) y = Add (n, m)"
    left_alone(parse(body, {"a": TABLE, "b": other}, "int64 y", "int64 unused"))


def test_other_dtypes_are_left_alone() -> None:
    zeros = np.zeros((29, 11), np.float32)
    body = "n = Size (a) m = Size (b) y = Add (n, m)"
    left_alone(parse(body, {"a": zeros, "b": zeros.view(np.int32)}, "int64 y", "int64 unused"))


def test_weights_that_are_returned_keep_their_names() -> None:
    """Two outputs of the graph are equal constants."""
    model = parse("y = Relu (x)", {"a": TABLE, "b": TABLE}, "float[B,L,29] y, float[29,11] a, float[29,11] b")
    tied(model, 0)
    assert [value.name for value in model.graph.outputs] == ["y", "a", "b"]


# ------------------------------------------------------------------------------------------------- digest


def test_digest_tells_shape_dtype_and_values_apart() -> None:
    array = np.zeros((3, 5), np.float32)
    others = [array.T, array.reshape(15), array.astype(np.float16), array.view(np.int32), array + 1, array[:2]]
    prints = [digest(a) for a in (array, *others)]
    assert len(set(prints)) == len(prints)


def test_digest_does_not_see_the_layout() -> None:
    array = integers(7, 11)
    assert digest(array) == digest(np.asfortranarray(array)) == digest(np.ascontiguousarray(array.T).T)
