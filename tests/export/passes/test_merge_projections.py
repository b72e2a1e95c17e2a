"""Linear layers over one tensor become one. The weights are small integers, so every sum is exact in float32."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from isoformer.export.passes import merge_projections

Arrays = dict[str, np.ndarray]
Q, K, V = 3, 7, 2  # widths of the layers; the input has 5 columns


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(-9, 10, shape).astype(np.float32)


def weights(biases: str = "qkv", **others: np.ndarray) -> Arrays:
    """The weights of three layers, and the biases of those named."""
    sizes = {"q": Q, "k": K, "v": V}
    found = {f"w{name}": integers(5, size, seed=1) for name, size in sizes.items()}
    return found | {f"b{name}": integers(sizes[name], seed=2) for name in biases} | others


def parse(body: str, arrays: Arrays, inputs: str = "float[B,L,5] x", outputs: str = "") -> ir.Model:
    outputs = outputs or f"float[B,L,{Q}] q, float[B,L,{K}] k, float[B,L,{V}] v"
    text = f'<ir_version: 10, opset_import: ["" : 23]> layers ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def run(model: ir.Model, feeds: Arrays | None = None) -> list[np.ndarray]:
    """The outputs for x, or for the feeds given; the graph is checked first."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds or {"x": integers(2, 11, 5)})]


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def initializer(model: ir.Model, value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    assert model.graph.initializers[value.name or ""] is value
    return value.const_value.numpy()


def merged(model: ir.Model, groups: int = 1, feeds: Arrays | None = None) -> None:
    """The pass merges that many groups, and every output is what it was, under its name."""
    before, names = run(model, feeds), [value.name for value in model.graph.outputs]
    assert merge_projections.apply(model) == groups
    assert [value.name for value in model.graph.outputs] == names
    for old, new in zip(before, run(model, feeds), strict=True):
        np.testing.assert_array_equal(new, old)


def left_alone(model: ir.Model) -> None:
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert merge_projections.apply(model) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


WITH_BIASES = (
    "mq = MatMul (x, wq) q = Add (mq, bq) mk = MatMul (x, wk) k = Add (bk, mk) mv = MatMul (x, wv) v = Add (mv, bv)"
)


def test_three_layers_with_biases() -> None:
    model, arrays = parse(WITH_BIASES, weights()), weights()
    merged(model)
    assert kinds(model) == ["MatMul", "Add", "Split"]
    product, add, split = model.graph
    np.testing.assert_array_equal(
        initializer(model, product.inputs[1]), np.concatenate([arrays["wq"], arrays["wk"], arrays["wv"]], axis=1)
    )
    np.testing.assert_array_equal(
        initializer(model, add.inputs[1]), np.concatenate([arrays["bq"], arrays["bk"], arrays["bv"]])
    )
    np.testing.assert_array_equal(initializer(model, split.inputs[1]), [Q, K, V])
    assert split.attributes["axis"].as_int() == -1
    assert len(model.graph.initializers) == 3  # nothing of the old ones is left


def test_shapes_and_dtypes_are_kept() -> None:
    model = parse(WITH_BIASES, weights())
    merge_projections.apply(model)
    for node, widths in zip(model.graph, ([12], [12], [Q, K, V]), strict=True):
        for value, width in zip(node.outputs, widths, strict=True):
            assert value.dtype == ir.DataType.FLOAT
            assert value.shape == ir.Shape(["B", "L", width])


def test_second_time_nothing_is_left_to_do() -> None:
    model = parse(WITH_BIASES, weights())
    merge_projections.apply(model)
    left_alone(model)


def test_no_biases() -> None:
    model = parse("q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)", weights(""))
    merged(model)
    assert kinds(model) == ["MatMul", "Split"]
    assert len(model.graph.initializers) == 2


@pytest.mark.parametrize("biases", ["q", "k", "v", "qk", "qv", "kv"])
def test_mixed_biases(biases: str) -> None:
    """What has no bias gets zeros."""
    layers = [
        f"m{n} = MatMul (x, w{n}) {n} = Add (m{n}, b{n})" if n in biases else f"{n} = MatMul (x, w{n})" for n in "qkv"
    ]
    model, arrays = parse(" ".join(layers), weights(biases)), weights(biases)
    merged(model)
    assert kinds(model) == ["MatMul", "Add", "Split"]
    _, add, _ = model.graph
    wanted = [arrays.get(f"b{n}", np.zeros(size, np.float32)) for n, size in (("q", Q), ("k", K), ("v", V))]
    np.testing.assert_array_equal(initializer(model, add.inputs[1]), np.concatenate(wanted))


def test_outputs_within_the_graph_and_of_it() -> None:
    body = WITH_BIASES.replace(" q = Add", " p = Add") + "q = Relu (p)"
    model = parse(body, weights())
    merged(model)
    assert kinds(model) == ["MatMul", "Add", "Split", "Relu"]


def test_product_that_is_returned_keeps_its_bias_outside() -> None:
    """The product itself is an output of the graph: it cannot be merged with its bias in it."""
    outputs = f"float[B,L,{Q}] mq, float[B,L,{Q}] q, float[B,L,{K}] k, float[B,L,{V}] v"
    merged(parse(WITH_BIASES, weights(), outputs=outputs))


def test_product_that_is_read_twice_keeps_its_bias_outside() -> None:
    body = WITH_BIASES + "other = Relu (mq)"
    outputs = f"float[B,L,{Q}] other, float[B,L,{Q}] q, float[B,L,{K}] k, float[B,L,{V}] v"
    merged(parse(body, weights(), outputs=outputs))


@pytest.mark.parametrize(
    "add",
    ["q = Add (mq, mq)", "q = Add (mq, other)", "q = Add (mq, one)", "q = Add (mq, wide)", "q = Sub (mq, bq)"],
    ids=["itself", "an input", "one number", "a matrix", "not an Add"],
)
def test_what_is_no_bias_stays_behind(add: str) -> None:
    arrays = weights(one=integers(1, seed=5), wide=integers(1, 1, Q, seed=5))
    body = WITH_BIASES.replace("q = Add (mq, bq)", add)
    used = {name: value for name, value in arrays.items() if name in body}
    model = parse(body, used, inputs=f"float[B,L,5] x, float[{Q}] other")
    merged(model, feeds={"x": integers(2, 11, 5), "other": integers(Q)})
    assert kinds(model) == ["MatMul", "Add", "Split", add.split()[2]]


def test_two_layers() -> None:
    outputs = f"float[B,L,{Q}] q, float[B,L,{K}] k"
    model = parse(
        "q = MatMul (x, wq) k = MatMul (x, wk)", {"wq": integers(5, Q), "wk": integers(5, K)}, outputs=outputs
    )
    merged(model)
    assert kinds(model) == ["MatMul", "Split"]


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_inputs_of_every_rank(rank: int) -> None:
    lead = "".join(f"D{axis}," for axis in range(rank - 1))
    outputs = f"float[{lead}{Q}] q, float[{lead}{K}] k, float[{lead}{V}] v"
    model = parse(WITH_BIASES, weights(), inputs=f"float[{lead}5] x", outputs=outputs)
    merged(model, feeds={"x": integers(*(2, 3, 7)[: rank - 1], 5)})


def test_inputs_in_different_places() -> None:
    """Self-attention, then cross-attention whose keys read another tensor: each input has a group of its own."""
    body = """
        h = Relu (x)
        a = MatMul (x, wa)
        c = MatMul (z, wc)
        b = MatMul (x, wb)
        e = MatMul (h, we)
        d = MatMul (z, wd)
        alone = Relu (e)
    """
    arrays = {f"w{n}": integers(5, size, seed=3) for n, size in zip("abcde", (2, 3, 5, 7, 11), strict=True)}
    outputs = "float[B,L,2] a, float[B,L,3] b, float[B,M,5] c, float[B,M,7] d, float[B,L,11] alone"
    model = parse(body, arrays, inputs="float[B,L,5] x, float[B,M,5] z", outputs=outputs)
    merged(model, 2, {"x": integers(2, 11, 5), "z": integers(2, 13, 5)})
    assert sorted(kinds(model)) == ["MatMul", "MatMul", "MatMul", "Relu", "Relu", "Split", "Split"]


def test_what_is_read_between_the_layers_stands_behind_them() -> None:
    """The first layer's output is used before the second layer is computed."""
    body = "q = MatMul (x, wq) r = Relu (q) t = MatMul (x, wk) k = Add (t, bk) v = Relu (k)"
    arrays = {"wq": integers(5, Q), "wk": integers(5, K), "bk": integers(K)}
    outputs = f"float[B,L,{Q}] r, float[B,L,{K}] v"
    merged(parse(body, arrays, outputs=outputs))


def test_one_weight_twice_over_one_input() -> None:
    body = "q = MatMul (x, wq) k = MatMul (x, wq)"
    model = parse(body, {"wq": integers(5, Q)}, outputs=f"float[B,L,{Q}] q, float[B,L,{Q}] k")
    merged(model)


def test_layers_used_more_than_once() -> None:
    """The same two layers over two tensors: two groups with the same weights."""
    body = " ".join(
        f"m{n}{x} = MatMul ({x}, w{n}) {n}{x} = Add (m{n}{x}, b{n})" for x in ("x", "z") for n in ("q", "k")
    )
    arrays = {"wq": integers(5, Q), "wk": integers(5, K), "bq": integers(Q), "bk": integers(K)}
    outputs = ", ".join(f"float[B,L,{size}] {n}{x}" for x in ("x", "z") for n, size in (("q", Q), ("k", K)))
    model = parse(body, arrays, inputs="float[B,L,5] x, float[B,L,5] z", outputs=outputs)
    merged(model, 2, {"x": integers(2, 11, 5), "z": integers(2, 11, 5, seed=7)})


def test_weight_that_is_used_elsewhere_stays() -> None:
    body = "q = MatMul (x, wq) k = MatMul (x, wk) n = Size (wq)"
    outputs = f"float[B,L,{Q}] q, float[B,L,{K}] k, int64 n"
    model = parse(body, {"wq": integers(5, Q), "wk": integers(5, K)}, outputs=outputs)
    merged(model)
    assert "wq" in model.graph.initializers
    assert "wk" not in model.graph.initializers


@pytest.mark.parametrize(
    ("names", "merged_name"),
    [
        (("blocks.0.attention.query_linear", "blocks.0.attention.key_linear"), "blocks.0.attention.query_key"),
        (("h.3.q_proj", "h.3.k_proj"), "h.3.q_k"),
        (("encoder.up", "encoder.down"), "encoder.up_down"),
        (("one", "two"), "merged.one.bias_two.bias"),
    ],
)
def test_names(names: tuple[str, str], merged_name: str) -> None:
    body = "mq = MatMul (x, wq) q = Add (mq, bq) mk = MatMul (x, wk) k = Add (mk, bk)"
    outputs = f"float[B,L,{Q}] q, float[B,L,{K}] k"
    arrays = {"wq": integers(5, Q), "wk": integers(5, K), "bq": integers(Q), "bk": integers(K)}
    model = parse(body, arrays, outputs=outputs)
    for letter, name in zip("qk", names, strict=True):
        model.graph.initializers[f"b{letter}"].name = f"{name}.bias"
    merged(model)
    assert set(model.graph.initializers) == {f"{merged_name}.{part}" for part in ("weight", "bias", "sizes")}


# -------------------------------------------------------------------------------------------- left alone


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("q = MatMul (x, wq) h = Relu (x) k = MatMul (h, wk)", "float[B,L,5] x"),
        ("q = MatMul (x, wq) k = MatMul (x, w)", f"float[B,L,5] x, float[5,{K}] w"),
        ("q = MatMul (x, wq) k = MatMul (x, w3)", "float[B,L,5] x"),
        ("q = MatMul (x, wq) t = MatMul (wt, x) k = Relu (t)", "float[B,L,5] x"),
    ],
    ids=["other inputs", "weight is an input", "weight of three axes", "weight on the left"],
)
def test_left_alone(body: str, inputs: str) -> None:
    arrays = {"wq": integers(5, Q), "wk": integers(5, K), "w3": integers(1, 5, K), "wt": integers(3, 3)}
    used = {name: value for name, value in arrays.items() if f"{name})" in body or f"({name}," in body}
    left_alone(parse(body, used, inputs=inputs, outputs=f"float[B,L,{Q}] q, float[B,M,N] k"))


def test_one_layer_is_left_alone() -> None:
    left_alone(
        parse(
            "m = MatMul (x, wq) q = Add (m, bq)", {"wq": integers(5, Q), "bq": integers(Q)}, outputs=f"float[B,L,{Q}] q"
        )
    )


def test_other_products_are_left_alone() -> None:
    body = "q = Gemm (x, wq, bq) k = Gemm (x, wk, bk)"
    arrays = {"wq": integers(5, Q), "wk": integers(5, K), "bq": integers(Q), "bk": integers(K)}
    left_alone(parse(body, arrays, inputs="float[B,5] x", outputs=f"float[B,{Q}] q, float[B,{K}] k"))
