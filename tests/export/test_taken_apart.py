"""Attention in plain operators computes what Attention computes, rows without a key among them."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from isoformer.export import taken_apart
from isoformer.export.errors import ExportError
from isoformer.export.graph import to_onnx
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.families import decoder, encoder
from isoformer.models.signature import Signature, TensorSpec
from isoformer.runtime.cases import Arrays


def run(model: ir.Model, inputs: Arrays) -> list[Any]:
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    return [np.asarray(value) for value in session.run(None, inputs)]


def rewritten(module: nn.Module, signature: Signature) -> tuple[ir.Model, ir.Model]:
    """The graph before and after."""
    torch.manual_seed(2)
    before = to_onnx(module.eval(), signature, 23)
    after = ir.serde.deserialize_model(ir.serde.serialize_model(before))
    assert taken_apart.apply(after)
    assert not any(node.op_type == "Attention" for node in after.graph)
    return before, after


def same(before: ir.Model, after: ir.Model, inputs: Arrays) -> list[np.ndarray]:
    expected, found = run(before, inputs), run(after, inputs)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=4e-6 * max(1, np.abs(one).max()))
    return found


def test_an_encoder_under_padding() -> None:
    before, after = rewritten(encoder.Model(encoder.TINY), encoder.signature(encoder.TINY))
    rng = np.random.default_rng(3)
    mask = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1, 0]])
    inputs = {"input_ids": rng.integers(0, 101, (4, 7)), "attention_mask": mask}
    inputs |= {"token_type_ids": rng.integers(0, 2, (4, 7))}
    hidden, embedding = same(before, after, inputs)
    assert hidden.shape == (4, 7, 33)
    assert not embedding[2].any()
    names = [value.name for value in after.graph.outputs]
    assert names == ["last_hidden_state", "sentence_embedding"]


def test_the_mask_of_padding_is_not_spread_over_the_queries() -> None:
    _, after = rewritten(encoder.Model(encoder.TINY), encoder.signature(encoder.TINY))
    where = [node for node in after.graph if node.op_type == "Where"]
    assert len(where) == 1  # for all layers
    source = where[0].inputs[0]
    assert source is not None
    assert source.shape is not None
    assert list(source.shape)[1:3] == [1, 1]


class Grouped(nn.Module):
    """Queries of 6 heads over 2 of keys, under a mask of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(hidden_size=30, num_heads=6, num_kv_heads=2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, mask)


def test_grouped_heads_and_a_mask_with_a_query_axis() -> None:
    x = TensorSpec("x", "float32", ("batch_size", "length", 30))
    mask = TensorSpec("mask", "int64", ("batch_size", "length", "length"), kind="mask")
    out = TensorSpec("out", "float32", ("batch_size", "length", 30))
    module = Grouped()
    before, after = rewritten(module, Signature((x, mask), (out,)))
    rng = np.random.default_rng(5)
    values = (rng.random((3, 5, 5)) < 0.5).astype(np.int64)
    values[1, 2] = 0
    inputs = {"x": rng.standard_normal((3, 5, 30), dtype=np.float32), "mask": values}
    (found,) = same(before, after, inputs)
    bias = module.attention.out_linear.bias
    assert bias is not None
    np.testing.assert_array_equal(found[1, 2], bias.detach().numpy())  # the attention itself is 0


def test_a_cache_is_refused() -> None:
    graph = to_onnx(decoder.Model(decoder.TINY).eval(), decoder.signature(decoder.TINY), 23)
    with pytest.raises(ExportError, match="encoders"):
        taken_apart.apply(graph)
