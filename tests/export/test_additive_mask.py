"""Float16 attention under a mask: what leaks without the rewrite, and every form of mask with it."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from isoformer.export import additive_mask
from isoformer.export.errors import ExportError

B, H, LQ, LK, D = 2, 3, 5, 7, 11
FLAT = f"<q_num_heads = {H}, kv_num_heads = {H}>"


def attention(mask: str = "bool", heads: str | int = 1, *, flat: bool = False, half: str = "float16") -> ir.Model:
    q, k, y = (f"B,{L},{H * D}" if flat else f"B,{H},{L},{D}" for L in ("Lq", "Lk", "Lq"))
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        attend ({half}[{q}] q, {half}[{k}] k, {half}[{k}] v, {mask}[B,{heads},Lq,Lk] mask) => ({half}[{y}] y)
        {{ y = Attention {FLAT if flat else ""} (q, k, v, mask) }}
    """
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True))


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def leaking(masked_key: float, mask: str = "bool") -> dict[str, np.ndarray]:
    """One query of 200: a key that is masked, and one that is seen with a score of -60000; values 1 and 2."""
    seen = np.array([False, True])[None, None, None]
    return {
        "q": np.full((1, 1, 1, 1), 200, np.float16),
        "k": np.array([masked_key, -300], np.float16).reshape(1, 1, 2, 1),
        "v": np.array([1, 2], np.float16).reshape(1, 1, 2, 1),
        "mask": seen if mask == "bool" else np.where(seen, 0, -np.inf).astype(np.float16),
    }


def leaking_graph(mask: str = "bool") -> ir.Model:
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        attend (float16[1,1,1,1] q, float16[1,1,Lk,1] k, float16[1,1,Lk,1] v, {mask}[1,1,1,Lk] mask)
        => (float16[1,1,1,1] y) {{ y = Attention <scale = 1.0> (q, k, v, mask) }}
    """
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True))


def test_without_the_rewrite_a_masked_key_answers() -> None:
    """The reason for the rewrite; the day it fails, ONNX Runtime has mended it."""
    assert run(leaking_graph(), leaking(300)).item() == 1


@pytest.mark.parametrize("mask", ["bool", "float16"])
def test_neither_key_nor_value_of_a_masked_key_spoils_the_answer(mask: str) -> None:
    model = leaking_graph(mask)
    additive_mask.apply(model)
    arrays = leaking(np.inf, mask)
    arrays["v"][0, 0, 0] = np.inf
    assert run(model, arrays).item() == 2


@pytest.mark.parametrize("mask", ["bool", "float16"])
@pytest.mark.parametrize("masked_key", [300, 40000, 65504, -65504])
def test_no_score_of_a_masked_key_wins_or_spoils_the_answer(masked_key: float, mask: str) -> None:
    """200 times the last three is beyond float16."""
    model = leaking_graph(mask)
    assert additive_mask.apply(model) == 1
    assert run(model, leaking(masked_key, mask)).item() == 2


@pytest.mark.parametrize("flat", [False, True], ids=["4 axes", "3 axes"])
@pytest.mark.parametrize("heads", [1, H])
@pytest.mark.parametrize("mask", ["bool", "float16"])
def test_every_form_of_mask_computes_the_same(mask: str, heads: int, flat: bool) -> None:
    rng = np.random.default_rng(7)
    q, k, v = (rng.standard_normal((B, H, length, D)).astype(np.float16) for length in (LQ, LK, LK))
    seen = rng.random((B, heads, LQ, LK)) < 0.6
    seen[..., 3] = False  # a key that nobody sees
    seen[1, :, 2] = False  # a query without keys
    seen[0, -1, 4] = False  # in one head
    bias = np.where(seen, 0.0, -np.inf)
    if mask == "float16":
        bias += rng.standard_normal(bias.shape).astype(np.float16)
    scores = D**-0.5 * q.astype(np.float64) @ k.astype(np.float64).swapaxes(2, 3) + bias
    weights = np.where(bias == -np.inf, 0.0, np.exp(scores - 9))
    expected = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300) @ v.astype(np.float64)
    arrays: dict[str, Any] = {"q": q, "k": k, "v": v}
    if flat:
        arrays = {name: x.swapaxes(1, 2).reshape(B, -1, H * D) for name, x in arrays.items()}
        expected = expected.swapaxes(1, 2).reshape(B, LQ, H * D)
    arrays["mask"] = seen if mask == "bool" else bias.astype(np.float16)
    model = attention(mask, heads, flat=flat)
    assert additive_mask.apply(model) == 1
    found = run(model, arrays)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-3)
    whole = np.asarray(expected == 0).all(-1)
    assert whole.any() or (flat and heads > 1)
    assert not found[whole].any()


def test_layers_share_what_is_made_of_their_mask() -> None:
    text = f"""
        <ir_version: 10, opset_import: ["" : 23]>
        attend (float16[B,{H},L,{D}] x, bool[B,1,L,L] mask) => (float16[B,{H},L,{D}] y)
        {{ h = Attention (x, x, x, mask) y = Attention (h, h, h, mask) }}
    """
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True))
    assert additive_mask.apply(model) == 2
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("ReduceMax") == 2
    assert kinds.count("Where") == 1 + 2 * 3
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_what_is_left_alone_and_what_is_refused() -> None:
    wide = attention(half="float")
    assert additive_mask.apply(wide) == 0
    assert [node.op_type for node in wide.graph] == ["Attention"]
    text = """
        <ir_version: 10, opset_import: ["" : 23]>
        attend (float16[B,3,L,5] x, bool[L,L] mask) => (float16[B,3,L,5] y) { y = Attention (x, x, x, mask) }
    """
    with pytest.raises(ExportError, match="the mask mask of attention in float16 has not four axes"):
        additive_mask.apply(ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))))
    text = """
        <ir_version: 10, opset_import: ["" : 23]>
        attend (float16[B,3,L,5] x, bool[B,1,L,T] mask, float16[B,3,P,5] past)
        => (float16[B,3,L,5] y, float16[B,3,T,5] a, float16[B,3,T,5] b)
        { y, a, b = Attention (x, x, x, mask, past, past) }
    """
    with pytest.raises(ExportError, match="has its cache written in place, or none"):
        additive_mask.apply(ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))))
