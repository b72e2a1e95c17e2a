"""Products of 8 bits on processors that add them up in 16: `make test-avx2` runs these as such a processor."""

import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from isoformer.runtime import providers, saturation
from isoformer.runtime.providers import open_session

SIZE, COLUMNS = 37, 11
W = np.random.default_rng(2).integers(-127, 128, (SIZE, COLUMNS)).astype(np.int8)
W[:2] = 127
CONVERTED = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")


def save(path: Path, nodes: list[onnx.NodeProto], x: int, **constants: np.ndarray) -> str:
    """A graph from x (rows, SIZE) to y."""
    values = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    kind = TensorProto.INT32 if nodes[-1].op_type == "MatMulInteger" else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", x, ["rows", SIZE])]
    outputs = [helper.make_tensor_value_info("y", kind, ["rows", COLUMNS])]
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "products", inputs, outputs, values)
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return str(path)


def integers(path: Path) -> str:
    node = helper.make_node("MatMulInteger", ["x", "w", "zero"], ["y"])
    return save(path, [node], TensorProto.UINT8, w=W, zero=np.array(3, np.uint8))


def run(session: onnxruntime.InferenceSession, x: np.ndarray) -> np.ndarray:
    (found,) = session.run(None, {"x": x})
    assert isinstance(found, np.ndarray)
    return found


def of_bytes(rows: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(rows).integers(0, 256, (rows, SIZE)).astype(np.uint8)
    x[:, :2] = 255
    return x, (x.astype(np.int64) - 3) @ W


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_the_probe_says_what_larger_products_do(tmp_path, rows):
    """Whatever the processor is, and for the kernels of one row and of many."""
    session = onnxruntime.InferenceSession(integers(tmp_path / "p.onnx"), providers=["CPUExecutionProvider"])
    x, want = of_bytes(rows)
    wrong = bool((run(session, x) != want).any())
    assert saturation.products_saturate(providers.onnxruntime_module()) == wrong


def test_the_probe_is_the_largest_product():
    model = onnx.load_from_string(saturation._PRODUCT)
    onnx.checker.check_model(model, full_check=True)
    (node,) = model.graph.node
    assert (node.op_type, list(node.input)) == ("MatMulInteger", ["a", "b"])
    kinds = [value.type.tensor_type.elem_type for value in model.graph.input]
    assert kinds == [TensorProto.UINT8, TensorProto.INT8]


def test_a_session_asks_for_exact_products_where_they_saturate_and_only_there(tmp_path, monkeypatch):
    file = integers(tmp_path / "p.onnx")
    monkeypatch.setattr(providers, "products_saturate", lambda _ort: True)
    assert open_session(file).get_session_options().get_session_config_entry(saturation.EXACT) == "1"
    monkeypatch.setattr(providers, "products_saturate", lambda _ort: False)
    options = open_session(file).get_session_options()
    with pytest.raises(RuntimeError, match="does not have configuration"):
        options.get_session_config_entry(saturation.EXACT)


@pytest.mark.parametrize("asked", [None, True])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_products_are_exact(tmp_path, monkeypatch, asked, rows):
    """As this processor needs it, and as another would."""
    if asked is not None:
        monkeypatch.setattr(providers, "products_saturate", lambda _ort: asked)
    x, want = of_bytes(rows)
    np.testing.assert_array_equal(run(open_session(integers(tmp_path / "p.onnx")), x), want)
    scale = np.linspace(0.01, 0.02, COLUMNS, dtype=np.float32)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "step", "zero"]),
        helper.make_node("MatMulIntegerToFloat", ["q", "w", "step", "scale", "zero"], ["y"], domain="com.microsoft"),
    ]
    session = open_session(save(tmp_path / "f.onnx", nodes, TensorProto.FLOAT, w=W, scale=scale))
    floats = x.astype(np.float32) / 64
    step = floats.max() / 255
    want = np.rint(floats / step) @ W.astype(np.float64) * step * scale
    np.testing.assert_allclose(run(session, floats), want, rtol=1e-5, atol=1e-4)


def test_the_option_reaches_a_table_that_is_also_looked_up(tmp_path):
    """Tied embeddings are turned in front of the product: it must be a constant when the option looks for constants."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "step", "zero"]),
        helper.make_node("Transpose", ["table"], ["w"], perm=[1, 0]),
        helper.make_node("MatMulIntegerToFloat", ["q", "w", "step", "scale", "zero"], ["y"], domain="com.microsoft"),
    ]
    file = save(tmp_path / "t.onnx", nodes, TensorProto.FLOAT, table=W.T.copy(), scale=np.ones(COLUMNS, np.float32))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # that the optimized graph is this machine's alone
    options.add_session_config_entry(saturation.EXACT, "1")
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    kinds = {value.name: value.data_type for value in graph.initializer}
    (product,) = (node for node in graph.node if node.op_type in CONVERTED)
    x86 = platform.machine() in ("x86_64", "AMD64")
    assert kinds[product.input[1]] == (TensorProto.UINT8 if x86 else TensorProto.INT8)
