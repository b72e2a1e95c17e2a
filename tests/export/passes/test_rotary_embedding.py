"""Rotary positions as one operator: the rewrite, and every graph that it must leave alone."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from isoformer.export.graph import to_onnx
from isoformer.export.passes import rotary_embedding
from isoformer.models import positions
from isoformer.models.signature import Signature, TensorSpec


class Turn(nn.Module):
    """x (B, 3, L, 10) turned by its positions; `twist` spoils the formula in one place."""

    def __init__(self, twist: str = "", **options) -> None:
        super().__init__()
        self.rotary = positions.Rotary(10, **options)
        self.twist = twist

    def forward(self, x, position_ids):
        cos, sin = self.rotary.cos_sin(position_ids, x.dtype)
        if self.twist == "conjugate":
            half = cos.shape[-1]
            a, b = x[..., :half], x[..., half : 2 * half]
            return torch.cat((a * cos + b * sin, b * cos - a * sin), -1)
        if self.twist == "other half":
            half = cos.shape[-1]
            a, b = x[..., :half], x[..., half : 2 * half]
            return torch.cat((b * cos - a * sin, a * cos + b * sin), -1)
        if self.twist == "one row of angles":
            cos, sin = cos[:1], sin[:1]
        if self.twist == "angles of each head":
            cos, sin = (table * torch.tensor([1.0, 2.0, 3.0])[:, None, None] for table in (cos, sin))
        if self.twist == "one token's angles":
            cos, sin = cos[:, :, :1], sin[:, :, :1]
        return positions.rotate(x, cos, sin, interleaved=self.rotary.interleaved)


SIGNATURE = Signature(
    (
        TensorSpec("x", "float32", ("batch_size", 3, "length", 10)),
        TensorSpec("position_ids", "int64", ("batch_size", "length"), high=50),
    ),
    (TensorSpec("y", "float32", ("batch_size", 3, "length", 10)),),
)


def exported(module: nn.Module, opset: int = 23) -> tuple[list[str], float]:
    """The operators of the exported graph, and its largest difference from the module."""
    graph = to_onnx(module.eval(), SIGNATURE, opset)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((4, 3, 6, 10)).astype(np.float32)
    places = rng.integers(0, 50, (4, 6))
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    answer = np.asarray(session.run(None, {"x": x, "position_ids": places})[0])
    with torch.no_grad():
        expected = module(torch.from_numpy(x), torch.from_numpy(places)).numpy()
    return [node.op_type for node in graph.graph], float(np.abs(answer - expected).max())


@pytest.mark.parametrize("rotary_dim", [None, 10, 6, 2])
def test_half_layout_is_one_operator_from_opset_23(rotary_dim):
    for opset in (23, 25):
        kinds, error = exported(Turn(rotary_dim=rotary_dim), opset)
        assert kinds.count("RotaryEmbedding") == 1
        assert not {"Slice", "Concat"} & set(kinds)
        assert error < 2e-6


@pytest.mark.parametrize(
    ("module", "opset"),
    [
        (Turn(), 20),
        (Turn(interleaved=True), 23),
        (Turn("conjugate"), 23),
        (Turn("other half"), 23),
        (Turn("one row of angles"), 23),
        (Turn("angles of each head"), 23),
        (Turn("one token's angles"), 23),
    ],
)
def test_anything_else_is_left_alone(module, opset):
    kinds, error = exported(module, opset)
    assert "RotaryEmbedding" not in kinds
    assert error < 2e-6


def test_layers_share_their_tables():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.rotary = positions.Rotary(10)

        def forward(self, x, position_ids):
            cos, sin = self.rotary.cos_sin(position_ids, x.dtype)
            return positions.rotate(positions.rotate(x, cos, sin).exp(), cos, sin)

    kinds, error = exported(Twice())
    assert kinds.count("RotaryEmbedding") == 2
    assert kinds.count("Squeeze") == 2
    assert error < 2e-5


def test_a_graph_without_positions_stays_as_it_is():
    graph = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[N] x) => (float[N] y) { y = Relu (x) }'
    )
    assert rotary_embedding.apply(graph) == 0
