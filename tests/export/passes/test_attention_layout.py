"""Attention on (B, L, H * D) tensors: the rewrite, and every graph that it must leave alone."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from isoformer.export.passes import attention_layout

# Sizes: B 2, Lq 5, Lk 7, 6 query heads, 3 key/value heads, D 5, V 11.
LAYER = """
<ir_version: 10, opset_import: ["" : 23]>
layer (float[B,Lq,30] x, float[B,Lk,15] z, float[B,Lk,33] w, bool[B,1,Lq,Lk] mask) => (OUTPUTS) {
    six = Constant <value_ints = [0, 0, 6, -1]> ()
    three = Constant <value_ints = [0, 0, 3, -1]> ()
    flat = Constant <value_ints = [0, 0, -1]> ()
    q4 = Reshape (x, six)
    q = Transpose <perm = [0, 2, 1, 3]> (q4)
    k4 = Reshape (z, three)
    k = Transpose <perm = [0, 2, 1, 3]> (k4)
    v4 = Reshape (w, three)
    v = Transpose <perm = [0, 2, 1, 3]> (v4)
    ATTENTION
    TAIL
}
"""
TAIL = """
    t = Transpose <perm = [0, 2, 1, 3]> (a)
    y = Reshape (t, flat)
"""
OUT = "float[B,Lq,66] y"


def parse(text: str) -> ir.Model:
    return ir.from_proto(
        onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True, data_prop=True)
    )


def layer(attention: str = "a = Attention (q, k, v, mask)", tail: str = TAIL, outputs: str = OUT) -> ir.Model:
    """Cross-attention with a part of it written otherwise."""
    return parse(LAYER.replace("ATTENTION", attention).replace("TAIL", tail).replace("OUTPUTS", outputs))


def feeds(model: ir.Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    mask = rng.random((2, 1, 5, 7)) < 0.6
    mask[1, 0, 2] = False
    sizes = {"x": (2, 5, 30), "z": (2, 7, 15), "w": (2, 7, 33)}
    arrays = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()} | {"mask": mask}
    return {value.name: arrays[value.name] for value in model.graph.inputs if value.name}


def run(model: ir.Model, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, inputs)]


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


def same_numbers(model: ir.Model) -> int:
    """Applies the pass and holds every output to what it was; returns what the pass returned."""
    inputs = feeds(model)
    before = run(model, inputs)
    edge = [(value.name, value.dtype) for value in model.graph.outputs]
    count = attention_layout.apply(model)
    assert [(value.name, value.dtype) for value in model.graph.outputs] == edge
    for old, new in zip(before, run(model, inputs), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=2e-6)
    return count


def left_alone(model: ir.Model) -> None:
    """The pass does nothing to the graph."""
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert attention_layout.apply(model) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


# -------------------------------------------------------------------------------------------- case 1


def test_rewrite() -> None:
    model = layer()
    assert same_numbers(model) == 1
    assert kinds(model) == ["Attention"]
    (node,) = (node for node in model.graph if node.op_type == "Attention")
    assert [value.name if value else None for value in node.inputs] == ["x", "z", "w", "mask"]
    assert {name: attr.value for name, attr in node.attributes.items()} == {"q_num_heads": 6, "kv_num_heads": 3}
    assert node.outputs[0] is model.graph.outputs[0]
    assert node.outputs[0].name == "y"


def test_second_time_nothing_is_left_to_do() -> None:
    model = layer()
    attention_layout.apply(model)
    left_alone(model)


def test_without_a_mask() -> None:
    model = layer("a = Attention (q, k, v)")
    assert same_numbers(model) == 1
    assert kinds(model) == ["Attention"]


def test_row_without_keys_is_exactly_zero_in_both_layouts() -> None:
    model = layer()
    for _ in range(2):
        (y,) = run(model, feeds(model))
        assert not y[1, 2].any()
        assert y[0].any(-1).all()
        attention_layout.apply(model)


@pytest.mark.parametrize(
    "attributes",
    ["scale = 0.25", "softcap = 2.5", "scale = 1.0, softcap = 0.5", "is_causal = 1", "softmax_precision = 1"],
)
def test_attributes_keep_their_meaning(attributes: str) -> None:
    model = layer(f"a = Attention <{attributes}> (q, k, v, mask)")
    same_numbers(model)


@pytest.mark.parametrize("attribute", ["scale", "softcap"])
def test_attributes_that_are_kept(attribute: str) -> None:
    model = layer(f"a = Attention <{attribute} = 0.25> (q, k, v, mask)")
    assert attention_layout.apply(model) == 1
    (node,) = (node for node in model.graph if node.op_type == "Attention")
    assert node.attributes[attribute].as_float() == 0.25


def test_output_goes_on_within_the_graph() -> None:
    model = layer(tail=TAIL.replace("y =", "m =") + "y = Relu (m)")
    assert same_numbers(model) == 1
    assert kinds(model) == ["Attention", "Relu"]


def test_what_else_reads_the_heads_keeps_them() -> None:
    model = layer(tail=TAIL + "other = Relu (k)", outputs=f"{OUT}, float[B,3,Lk,5] other")
    assert same_numbers(model) == 1
    assert sorted(kinds(model)) == ["Attention", "Relu", "Reshape", "Transpose"]


def test_several_layers() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 23]>
    layers (float[B,Lq,30] x, bool[B,1,Lq,Lq] mask) => (float[B,Lq,30] y) {
        six = Constant <value_ints = [0, 0, 6, 5]> ()
        flat = Constant <value_ints = [0, 0, 30]> ()
        q4 = Reshape (x, six)
        q = Transpose <perm = [0, 2, 1, 3]> (q4)
        a = Attention (q, q, q, mask)
        a4 = Transpose <perm = [0, 2, 1, 3]> (a)
        b = Reshape (a4, flat)
        b4 = Reshape (b, six)
        p = Transpose <perm = [0, 2, 1, 3]> (b4)
        c = Attention <scale = 0.5> (q, p, p, mask)
        c4 = Transpose <perm = [0, 2, 1, 3]> (c)
        y = Reshape (c4, flat)
    }
    """
    model = parse(text)
    inputs = {"x": np.random.default_rng(3).standard_normal((2, 5, 30)).astype(np.float32)}
    inputs["mask"] = np.tril(np.ones((2, 1, 5, 5), bool))
    (before,) = run(model, inputs)
    assert attention_layout.apply(model) == 2
    assert kinds(model) == ["Attention", "Attention"]
    np.testing.assert_allclose(run(model, inputs)[0], before, rtol=0, atol=2e-6)


# -------------------------------------------------------------------------------------------- case 2


def test_inputs_of_four_axes_are_left_alone() -> None:
    left_alone(
        parse("""
        <ir_version: 10, opset_import: ["" : 23]>
        attend (float[B,6,Lq,5] q, float[B,3,Lk,5] k, float[B,3,Lk,11] v) => (float[B,Lq,66] y) {
            flat = Constant <value_ints = [0, 0, -1]> ()
            a = Attention (q, k, v)
            t = Transpose <perm = [0, 2, 1, 3]> (a)
            y = Reshape (t, flat)
        }
        """)
    )


@pytest.mark.parametrize("one", ["q", "k", "v"])
def test_one_input_that_is_something_else_is_left_alone(one: str) -> None:
    left_alone(layer(f"other = Relu ({one})\n a = Attention ({'q, k, v'.replace(one, 'other')}, mask)"))


@pytest.mark.parametrize(
    ("before", "shape"),
    [("float[14,30] x", "[2, 7, 6, 5]"), ("float[2,14,15] x", "[2, 7, 6, 5]"), ("float[2,7,5,6] x", "[2, 7, 6, 5]")],
    ids=["two axes", "other lengths", "four axes"],
)
def test_heads_that_are_not_split_off_the_last_axis_are_left_alone(before: str, shape: str) -> None:
    left_alone(
        parse(f"""
        <ir_version: 10, opset_import: ["" : 23]>
        attend ({before}) => (float[2,7,30] y) {{
            split = Constant <value_ints = {shape}> ()
            flat = Constant <value_ints = [0, 0, -1]> ()
            q4 = Reshape (x, split)
            q = Transpose <perm = [0, 2, 1, 3]> (q4)
            a = Attention (q, q, q)
            t = Transpose <perm = [0, 2, 1, 3]> (a)
            y = Reshape (t, flat)
        }}
        """)
    )


@pytest.mark.parametrize(
    ("outer", "inner", "last", "unknown"),
    [("6, 35", "14, 15", "14, 15", ("x", "q4")), ("14, 15", "14, 15", "6, 35", ("t", "y"))],
    ids=["input", "output"],
)
def test_sizes_that_nobody_knows_are_not_taken_for_equal(
    outer: str, inner: str, last: str, unknown: tuple[str, str]
) -> None:
    """Batch and length are regrouped on the way in or on the way out, and no shape says so."""
    model = parse(f"""
        <ir_version: 10, opset_import: ["" : 23]>
        attend (float[{outer},30] x) => (float[{last},30] y) {{
            split = Constant <value_ints = [{inner}, 6, 5]> ()
            joined = Constant <value_ints = [{last}, 30]> ()
            q4 = Reshape (x, split)
            q = Transpose <perm = [0, 2, 1, 3]> (q4)
            a = Attention (q, q, q)
            t = Transpose <perm = [0, 2, 1, 3]> (a)
            y = Reshape (t, joined)
        }}
    """)
    for value in [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]:
        if value.name in unknown and value.shape is not None:
            value.shape = ir.Shape([None, None, *value.shape[2:]])
    left_alone(model)


def reshaped(shape: str) -> str:
    """The tail with another last shape."""
    return f"other = Constant <value_ints = {shape}> () {TAIL.replace('flat', 'other')}"


OTHER_OUTPUTS = {
    "no transpose": ("y = Relu (a)", "float[B,6,Lq,11] y"),
    "no reshape": ("y = Transpose <perm = [0, 2, 1, 3]> (a)", "float[B,Lq,6,11] y"),
    "another transpose": ("t = Transpose <perm = [2, 0, 1, 3]> (a) y = Reshape (t, flat)", "float[Lq,B,66] y"),
    "heads read": (f"{TAIL} u = Relu (a)", f"{OUT}, float[B,6,Lq,11] u"),
    "transposed read": (f"{TAIL} u = Relu (t)", f"{OUT}, float[B,Lq,6,11] u"),
    "heads returned": (TAIL, f"{OUT}, float[B,6,Lq,11] a"),
    "transposed returned": (TAIL, f"{OUT}, float[B,Lq,6,11] t"),
    "two axes": (reshaped("[-1, 66]"), "float[N,66] y"),
    "batch and length joined": (reshaped("[-1, 6, 11]"), "float[N,6,11] y"),
    "length and heads joined": (reshaped("[0, -1, 11]"), "float[B,N,11] y"),
}


@pytest.mark.parametrize("case", OTHER_OUTPUTS)
def test_output_that_is_something_else_is_left_alone(case: str) -> None:
    tail, outputs = OTHER_OUTPUTS[case]
    model = layer(tail=tail, outputs=outputs)
    run(model, feeds(model))  # a good graph to begin with
    left_alone(model)


# -------------------------------------------------------------------------------------------- case 3


CACHED = "bool[B,1,Lq,T] mask, float[B,3,P,5] past_key, float[B,3,P,11] past_value"


@pytest.mark.parametrize("past", [0, 4])
def test_a_past_goes_along_and_what_becomes_of_it_stays_on_four_axes(past: int) -> None:
    text = LAYER.replace("bool[B,1,Lq,Lk] mask", CACHED)
    text = text.replace("ATTENTION", "a, present_key, present_value = Attention (q, k, v, mask, past_key, past_value)")
    outputs = f"{OUT}, float[B,3,T,5] present_key, float[B,3,T,11] present_value"
    model = parse(text.replace("TAIL", TAIL).replace("OUTPUTS", outputs))
    rng = np.random.default_rng(3)
    sizes = {"x": (2, 5, 30), "z": (2, 7, 15), "w": (2, 7, 33), "past_key": (2, 3, past, 5)}
    inputs: dict[str, np.ndarray] = {n: rng.standard_normal(size).astype(np.float32) for n, size in sizes.items()}
    inputs["past_value"] = rng.standard_normal((2, 3, past, 11)).astype(np.float32)
    inputs["mask"] = rng.random((2, 1, 5, 7 + past)) < 0.6
    inputs["mask"][0, 0, 1] = False
    before = run(model, inputs)
    assert attention_layout.apply(model) == 1
    assert kinds(model) == ["Attention"]
    for old, new in zip(before, run(model, inputs), strict=True):
        assert new.shape == old.shape
        np.testing.assert_allclose(new, old, rtol=0, atol=2e-6)
    assert not before[0][0, 1].any()


@pytest.mark.parametrize("dims", [0, 4])
def test_rotary_positions_go_the_same_way(dims: int) -> None:
    """Queries and keys of a self-attention turned by the same tables, all of a head or its first dimensions."""
    half = dims // 2 or 3
    turn = f"RotaryEmbedding <rotary_embedding_dim = {dims}>" if dims else "RotaryEmbedding"
    model = parse(f"""
    <ir_version: 10, opset_import: ["" : 23]>
    layer (float[B,L,24] x, float[B,L,12] z, float[B,L,{half}] cos, float[B,L,{half}] sin) => (float[B,L,24] y) {{
        four = Constant <value_ints = [0, 0, 4, -1]> ()
        two = Constant <value_ints = [0, 0, 2, -1]> ()
        flat = Constant <value_ints = [0, 0, -1]> ()
        q4 = Reshape (x, four)
        q = Transpose <perm = [0, 2, 1, 3]> (q4)
        k4 = Reshape (z, two)
        k = Transpose <perm = [0, 2, 1, 3]> (k4)
        qr = {turn} (q, cos, sin)
        kr = {turn} (k, cos, sin)
        a = Attention (qr, kr, k)
        t = Transpose <perm = [0, 2, 1, 3]> (a)
        y = Reshape (t, flat)
    }}""")
    rng = np.random.default_rng(3)
    sizes = {"x": (2, 5, 24), "z": (2, 5, 12), "cos": (2, 5, half), "sin": (2, 5, half)}
    inputs = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    before = run(model, inputs)
    assert attention_layout.apply(model) == 1
    assert kinds(model) == ["RotaryEmbedding", "RotaryEmbedding", "Attention"]
    np.testing.assert_allclose(run(model, inputs)[0], before[0], rtol=0, atol=2e-6)


def test_a_turned_query_that_something_else_reads_is_left_alone() -> None:
    text = LAYER.replace("bool[B,1,Lq,Lk] mask", "float[B,Lq,2] cos, float[B,Lq,2] sin")
    turn = (
        "qr = RotaryEmbedding <rotary_embedding_dim = 4> (q, cos, sin)\n    a = Attention (qr, k, v)\n    o = Relu (qr)"
    )
    left_alone(
        parse(text.replace("ATTENTION", turn).replace("TAIL", TAIL).replace("OUTPUTS", f"{OUT}, float[B,6,Lq,5] o"))
    )


@pytest.mark.parametrize("used", ["read", "returned"])
def test_second_output_is_left_alone(used: str) -> None:
    """The scores in use, by a node or as an output of the graph."""
    name = "s" if used == "read" else "scores"
    tail = TAIL + ("scores = Relu (s)" if used == "read" else "")
    outputs = f"{OUT}, float[B,6,Lq,Lk] scores"
    model = layer(f"a, , , {name} = Attention (q, k, v, mask)", tail=tail, outputs=outputs)
    run(model, feeds(model))  # a good graph to begin with
    left_alone(model)


def test_second_output_that_nobody_uses_is_no_hindrance() -> None:
    model = layer("a, , , unused = Attention (q, k, v, mask)")
    assert attention_layout.apply(model) == 1
    assert kinds(model) == ["Attention"]


def test_operator_of_another_domain_is_left_alone() -> None:
    text = LAYER.replace('["" : 23]', '["" : 23, "com.example" : 1]').replace("TAIL", TAIL).replace("OUTPUTS", OUT)
    left_alone(ir.from_proto(onnx.parser.parse_model(text.replace("ATTENTION", "a = com.example.Attention (q, k, v)"))))
