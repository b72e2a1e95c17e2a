"""Each check finds what it is there for, and lets a good graph pass."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from isoformer.export import ExportError, checks
from isoformer.models.signature import Signature, TensorSpec

Arrays = dict[str, np.ndarray]

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch_size", "length", 17)), TensorSpec("mask", "bool", ("batch_size", "length"))),
    (TensorSpec("y", "float32", ("batch_size", "length", 19)),),
)
EDGE = ("float[batch_size,length,17] x, bool[batch_size,length] mask", "float[batch_size,length,19] y")
WEIGHT = np.random.default_rng(3).standard_normal((17, 19)).astype(np.float32)  # 323 values
BODY = "p = MatMul (x, w) c = Cast <to = 1> (mask) u = Unsqueeze (c, last) y = Mul (p, u)"
GOOD: Arrays = {"w": WEIGHT, "last": np.array([-1])}


def parse(body: str, arrays: Arrays, inputs: str = EDGE[0], outputs: str = EDGE[1], opset: int = 23) -> ir.Model:
    imports = f'["" : {opset}, "com.example" : 1]' if "com.example" in body else f'["" : {opset}]'
    text = f"<ir_version: 10, opset_import: {imports}> graph ({inputs}) => ({outputs}) {{ {body} }}"
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def good(**others: np.ndarray) -> ir.Model:
    return parse(BODY, GOOD | others)


def attention(body: str, opset: int = 23) -> ir.Model:
    """A graph of attention over one tensor of four axes."""
    return parse(body, {}, "float[B,3,L,5] q", "float[B,3,L,5] y", opset)


WHOLE = "y = Attention (q, q, q)"
TAKEN_APART = """
    k = Transpose <perm = [0, 1, 3, 2]> (q)
    scores = MatMul (q, k)
    weights = Softmax <axis = -1> (scores)
    y = MatMul (weights, q)
"""


# ------------------------------------------------------------------------------------------------- check


def test_good_graph() -> None:
    checks.check(good(), SIGNATURE, 23)


def test_first_finding_and_how_many_more() -> None:
    graph = parse(BODY, GOOD | {"unused": np.ones(3, np.float32)}, opset=22)
    with pytest.raises(ExportError) as caught:
        checks.check(graph, SIGNATURE, 23)
    message = "the exported graph is not as promised: the graph is of opset 22, not 23 (and 1 more)"
    assert str(caught.value) == message


def test_only_finding() -> None:
    with pytest.raises(ExportError, match=r"initializer unused is not used$"):
        checks.check(good(unused=np.ones(3, np.float32)), SIGNATURE, 23)


def test_what_onnx_itself_finds() -> None:
    """Everything that is looked at is right, but the shapes within do not fit."""
    graph = good()
    graph.graph.initializers["w"].const_value = ir.tensor(WEIGHT[:, :7].copy(), name="w")
    with pytest.raises(ExportError, match="onnx's checker says") as caught:
        checks.check(graph, SIGNATURE, 23)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- axes


def test_axes_of_a_good_graph() -> None:
    assert checks.axes(good(), SIGNATURE) == []


@pytest.mark.parametrize(
    ("inputs", "finding"),
    [
        ("float[2,length,17] x", "input x has axes [2, 'length', 17]"),
        ("float[batch_size,7,17] x", "input x has axes ['batch_size', 7, 17]"),
        ("float[length,batch_size,17] x", "input x has axes ['length', 'batch_size', 17]"),
        ("float[batch_size,length,width] x", "input x has axes ['batch_size', 'length', 'width']"),
        ("float[batch_size,s0,17] x", "input x has axes ['batch_size', 's0', 17]"),
        ("float[batch_size,length] x", "input x has axes ['batch_size', 'length']"),
        ("float x", "input x has axes []"),
        ("float16[batch_size,length,17] x", "input x is float16; the signature says float32"),
        ("double[batch_size,length,17] x", "input x is float64; the signature says float32"),
        ("int64[batch_size,length,17] x", "input x is int64; the signature says float32"),
    ],
)
def test_input_that_is_not_as_stated(inputs: str, finding: str) -> None:
    graph = parse("y = Identity (x)", {}, f"{inputs}, bool[batch_size,length] mask", EDGE[1])
    (found,) = checks.axes(graph, SIGNATURE)
    assert found.startswith(finding)
    assert "the signature says" in found


def test_output_that_is_not_as_stated() -> None:
    graph = parse("y = Identity (x)", {}, EDGE[0], "float[batch_size,7,19] y")
    assert checks.axes(graph, SIGNATURE) == [
        "output y has axes ['batch_size', 7, 19]; the signature says ['batch_size', 'length', 19]"
    ]


def test_output_without_a_shape() -> None:
    graph = good()
    graph.graph.outputs[0].shape = None
    (finding,) = checks.axes(graph, SIGNATURE)
    assert finding.startswith("output y has axes []")


def test_axes_and_dtype_are_two_findings() -> None:
    graph = parse("y = Identity (x)", {}, f"{EDGE[0]}", "double[batch_size,7,19] y")
    assert len(checks.axes(graph, SIGNATURE)) == 2


@pytest.mark.parametrize(
    ("inputs", "outputs", "finding"),
    [
        (EDGE[0].replace("mask", "other"), EDGE[1], "the inputs are ['x', 'other']; the signature says ['x', 'mask']"),
        (", ".join(EDGE[0].split(", ")[::-1]), EDGE[1], "the inputs are ['mask', 'x']"),
        (EDGE[0].split(", ")[0], EDGE[1], "the inputs are ['x']"),
        (f"{EDGE[0]}, float[3] w", EDGE[1], "the inputs are ['x', 'mask', 'w']"),
        (EDGE[0], f"{EDGE[1]}, {EDGE[1].replace(' y', ' z')}", "the outputs are ['y', 'z']; the signature says ['y']"),
    ],
    ids=["name", "order", "missing", "one more", "one more output"],
)
def test_names_that_are_not_as_stated(inputs: str, outputs: str, finding: str) -> None:
    (found,) = checks.axes(parse("y = Identity (x) z = Identity (x)", {}, inputs, outputs), SIGNATURE)
    assert found.startswith(finding)


# --------------------------------------------------------------------------------------------- operators


@pytest.mark.parametrize("opset", [20, 23, 25])
def test_operators_of_a_good_graph(opset: int) -> None:
    assert checks.operators(parse(BODY, GOOD, opset=opset), opset) == []


def test_operator_of_another_domain() -> None:
    graph = parse("y = com.example.Fused (x)", {})
    assert checks.operators(graph, 23) == ["operator com.example::Fused is not standard ONNX"]


@pytest.mark.parametrize(
    ("node", "opset", "finding"),
    [
        ("com.example.Fused (q)", 23, "operator com.example::Fused is not standard ONNX"),
        ("Attention (q, q, q)", 22, "there is an Attention node, which opset 22 does not have"),
    ],
)
def test_operator_within_a_branch(node: str, opset: int, finding: str) -> None:
    """What If and Loop hold is part of the graph as well."""
    body = f"""
        c = Constant <value = bool {{1}}> ()
        y = If (c) <
            then_branch = one () => (float[B,3,L,5] a) {{ a = {node} }},
            else_branch = two () => (float[B,3,L,5] b) {{ b = Relu (q) }}
        >
    """
    imports = f'["" : {opset}, "com.example" : 1]'
    text = f"<ir_version: 10, opset_import: {imports}> g (float[B,3,L,5] q) => (float[B,3,L,5] y) {{ {body} }}"
    assert checks.operators(ir.from_proto(onnx.parser.parse_model(text)), opset) == [finding]


def test_function() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 23, "local" : 1]>
        graph (float[B] x) => (float[B] y) { y = local.twice (x) }
        <domain: "local", opset_import: ["" : 23]> twice (x) => (y) { y = Add (x, x) }
    """
    findings = checks.operators(ir.from_proto(onnx.parser.parse_model(text)), 23)
    assert len(findings) == 2
    assert "local::twice" in findings[0]
    assert "function" in findings[1]
    assert "twice" in findings[1]


@pytest.mark.parametrize(("made", "asked"), [(22, 23), (23, 22), (25, 23)])
def test_other_opset(made: int, asked: int) -> None:
    assert checks.operators(parse(BODY, GOOD, opset=made), asked) == [f"the graph is of opset {made}, not {asked}"]


def test_no_opset() -> None:
    graph = good()
    del graph.opset_imports[""]
    assert checks.operators(graph, 23) == ["the graph is of opset None, not 23"]


@pytest.mark.parametrize("opset", [23, 24, 25])
def test_attention_from_opset_23(opset: int) -> None:
    assert checks.operators(attention(WHOLE, opset), opset) == []


@pytest.mark.parametrize("opset", [20, 22])
def test_attention_below_opset_23(opset: int) -> None:
    (finding,) = checks.operators(attention(WHOLE, opset), opset)
    assert finding == f"there is an Attention node, which opset {opset} does not have"


@pytest.mark.parametrize("opset", [20, 22, 23])
def test_attention_taken_apart(opset: int) -> None:
    assert checks.operators(attention(TAKEN_APART, opset), opset) == []


@pytest.mark.parametrize("axis", [-1, 1])
def test_softmax_of_an_answer_is_no_attention(axis: int) -> None:
    """A classifier that returns probabilities has attention and a Softmax, and nothing is taken apart."""
    body = f"h = Attention (q, q, q) y = Softmax <axis = {axis}> (h)"
    assert checks.operators(attention(body), 23) == []


# -------------------------------------------------------------------------------------------- duplicates


def with_weight(array: np.ndarray) -> ir.Model:
    return parse(f"{BODY} n = Size (v)", GOOD | {"v": array}, outputs=f"{EDGE[1]}, int64 n")


def other_value() -> np.ndarray:
    other = WEIGHT.copy()
    other[16, 18] += 1
    return other


def test_no_duplicates_in_a_good_graph() -> None:
    assert checks.duplicates(good()) == []


@pytest.mark.parametrize("turn", [np.copy, np.transpose], ids=["equal", "transposed"])
def test_duplicate(turn: Callable[[np.ndarray], np.ndarray]) -> None:
    assert checks.duplicates(with_weight(np.ascontiguousarray(turn(WEIGHT)))) == ["initializer v repeats w"]


def test_two_duplicates_are_two_findings() -> None:
    body = f"{BODY} n = Size (a) m = Size (b)"
    graph = parse(
        body, GOOD | {"a": WEIGHT, "b": np.ascontiguousarray(WEIGHT.T)}, outputs=f"{EDGE[1]}, int64 n, int64 m"
    )
    findings = checks.duplicates(graph)
    assert [finding.split(" repeats ")[0] for finding in findings] == ["initializer a", "initializer b"]


@pytest.mark.parametrize(
    "other",
    [other_value(), WEIGHT.reshape(19, 17), WEIGHT[None], WEIGHT.astype(np.float64), WEIGHT[:7]],
    ids=["one value", "another shape", "another axis", "another dtype", "a part"],
)
def test_different_weights(other: np.ndarray) -> None:
    assert checks.duplicates(with_weight(other)) == []


def test_symmetric_weight_does_not_repeat_itself() -> None:
    assert checks.duplicates(with_weight(np.eye(17, dtype=np.float32))) == []


@pytest.mark.parametrize(("size", "findings"), [(255, 0), (256, 1)])
def test_small_weights_may_repeat(size: int, findings: int) -> None:
    row = np.arange(size, dtype=np.float32)
    body = f"{BODY} n = Size (a) m = Size (b)"
    graph = parse(body, GOOD | {"a": row, "b": row}, outputs=f"{EDGE[1]}, int64 n, int64 m")
    assert len(checks.duplicates(graph)) == findings


def test_weight_that_nothing_uses() -> None:
    assert checks.duplicates(good(v=np.ones(3, np.float32))) == ["initializer v is not used"]


def test_weight_that_is_returned_is_used() -> None:
    assert checks.duplicates(parse(BODY, GOOD | {"v": other_value()}, outputs=f"{EDGE[1]}, float[17,19] v")) == []


# ------------------------------------------------------------------------------------------- well_formed


def test_well_formed() -> None:
    assert checks.well_formed(good()) == []


MALFORMED = {
    "unknown value": "y = Relu (nowhere)",
    "unknown operator": "y = NoSuchOperator (x)",
    "too many inputs": "y = Relu (x, x)",
    "no output": "h = Relu (x)",
    "wrong attribute": "y = Transpose <perm = [0]> (x)",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed(body: str) -> None:
    text = f'<ir_version: 10, opset_import: ["" : 23]> g (float[B,3] x) => (float[B,3] y) {{ {body} }}'
    (finding,) = checks.well_formed(ir.from_proto(onnx.parser.parse_model(text)))
    assert finding.startswith("onnx's checker says: ")
    assert "\n" not in finding
    assert len(finding) < 350
