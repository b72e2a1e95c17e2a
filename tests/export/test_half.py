"""Which nodes of a graph compute in float16, and that the edge stays as it is."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from isoformer.export import half
from isoformer.export.errors import ExportError

V, E, F, L = 13, 6, 10, 8


def graph(body: str, weights: dict[str, np.ndarray], outputs: str = f"float[B,L,{F}] y") -> ir.Model:
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        model (int64[B,L] ids) => ({outputs}) {{ {body} }}
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def run(model: ir.Model, ids: np.ndarray) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {"ids": ids})]


def halves(model: ir.Model) -> set[str]:
    """The names of what is made in float16, casts aside."""
    made = (output for node in model.graph if node.op_type != "Cast" for output in node.outputs)
    return {str(value.name) for value in made if value.dtype == ir.DataType.FLOAT16}


def array(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


IDS = np.array([[3, 0, 12], [5, 5, 1]])


def test_from_the_table_to_the_last_product_and_no_further() -> None:
    body = """
        rows = Gather (table, ids)
        normed = LayerNormalization (rows, one, zero)
        wide = MatMul (normed, up)
        h = Add (wide, bias)
        square = Mul (h, h)
        y = ReduceSum <keepdims = 0> (square, axis)
    """
    weights = {"table": array(V, E), "one": np.ones(E, np.float32), "zero": np.zeros(E, np.float32)}
    weights |= {"up": array(E, F), "bias": array(F), "axis": np.array([-1])}
    plain, model = (graph(body, weights, "float[B,L] y") for _ in range(2))
    assert half.apply(model) == 3
    assert halves(model) == {"rows", "normed", "wide"}
    assert [node.op_type for node in model.graph].count("Cast") == 1
    (exact,), (found,) = run(plain, IDS), run(model, IDS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=1e-2)
    assert not np.array_equal(found, exact)
    stored = {x.name: x.dtype for x in model.graph.initializers.values()}
    assert stored["table.float16"] == stored["up.float16"] == ir.DataType.FLOAT16
    assert stored["bias"] == ir.DataType.FLOAT
    assert not {"table", "up"} & stored.keys()


def test_positions_and_angles_stay_in_float32() -> None:
    body = """
        numbers = Cast <to = 1> (ids)
        last = Unsqueeze (numbers, axis)
        turns = Mul (last, rates)
        angle = Cos (turns)
        rows = Gather (table, ids)
        both = Mul (rows, angle)
        y = MatMul (both, up)
    """
    weights = {"axis": np.array([-1]), "rates": array(E), "table": array(V, E), "up": array(E, F)}
    model = graph(body, weights)
    half.apply(model)
    assert halves(model) == {"rows", "both", "y.float16"}
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_a_table_of_angles_stays_in_float32() -> None:
    """It is a table as that of the tokens is, and leads to a product; but what reads it is no float16."""
    body = """
        rows = Gather (table, ids)
        angles = Gather (turns, ids)
        more = Add (angles, angles)
        turned = Cos (more)
        h = Mul (rows, turned)
        y = MatMul (h, up)
    """
    turns = np.random.default_rng(1).uniform(0, 1900, (V, E)).astype(np.float32)
    plain, model = (graph(body, {"table": array(V, E), "turns": turns, "up": array(E, F)}) for _ in range(2))
    half.apply(model)
    assert halves(model) == {"rows", "h", "y.float16"}
    (exact,), (found,) = run(plain, IDS), run(model, IDS)
    np.testing.assert_allclose(found, exact, atol=0.02)


def test_a_product_of_activations_stays_in_float32() -> None:
    body = """
        rows = Gather (table, ids)
        k = MatMul (rows, down)
        across = Transpose <perm = [0, 2, 1]> (k)
        scores = MatMul (k, across)
        weights = Softmax (scores)
        mixed = MatMul (weights, k)
        y = MatMul (mixed, up)
    """
    model = graph(body, {"table": array(V, E), "down": array(E, E, seed=5), "up": array(E, F)})
    half.apply(model)
    assert halves(model) == {"rows", "k", "y.float16"}


def test_a_table_that_is_also_the_head_is_held_once() -> None:
    body = """
        rows = Gather (table, ids)
        across = Transpose <perm = [1, 0]> (table)
        y = MatMul (rows, across)
    """
    model = graph(body, {"table": array(V, E)}, f"float[B,L,{V}] y")
    half.apply(model)
    assert list(model.graph.initializers) == ["table.float16"]
    assert halves(model) == {"rows", "across", "y.float16"}


def test_a_constant_that_float32_reads_too_is_not_rounded() -> None:
    body = """
        rates = Unsqueeze (row, axis)
        rows = Gather (table, ids)
        turned = Mul (rows, rates)
        angles = Cos (rates)
        more = Add (turned, angles)
        y = MatMul (more, up)
    """
    weights = {"row": array(E), "axis": np.array([0]), "table": array(V, E), "up": array(E, F)}
    model = graph(body, weights)
    half.apply(model)
    assert halves(model) == {"rows", "turned", "more", "y.float16"}


def test_a_cache_is_float16_at_the_edge() -> None:
    text = f"""
        <ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
        model (float[B,{L},{32}] x, float[B,1,C,16] past_key, float[B,1,C,16] past_value, int32[B] last, int32 total)
        => (float[B,{L},5] y, float[B,1,C,16] key, float[B,1,C,16] value)
        {{
            qkv = MatMul (x, up)
            out, key, value = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1>
                (qkv, , , past_key, past_value, last, total)
            y = MatMul (out, down)
        }}
    """
    proto = onnx.parser.parse_model(text)
    for name, weight in {"up": array(32, 64), "down": array(32, 5)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    model = ir.from_proto(proto)
    assert half.apply(model) == 3
    edge = {str(value.name): value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    caches = {"past_key", "past_value", "key", "value"}
    assert {name for name, dtype in edge.items() if dtype == ir.DataType.FLOAT16} == caches
    assert edge["x"] == edge["y"] == ir.DataType.FLOAT


def test_weights_beyond_float16_are_refused_by_name() -> None:
    table = array(V, E)
    table[2, 3] = -70000
    with pytest.raises(ExportError, match=r"the weight table holds 7e\+04, and float16 ends at 65504"):
        half.apply(graph("rows = Gather (table, ids) y = MatMul (rows, up)", {"table": table, "up": array(E, F)}))


def test_a_graph_without_a_product_is_left_alone() -> None:
    model = graph("rows = Gather (table, ids) y = Add (rows, rows)", {"table": array(V, F)})
    assert half.apply(model) == 0
    assert [node.op_type for node in model.graph] == ["Gather", "Add"]
