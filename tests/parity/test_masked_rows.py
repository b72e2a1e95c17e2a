"""A query row without any key is exactly zero: in PyTorch and in every graph that is exported from it."""

import numpy as np
import pytest
import torch
from torch import nn

from isoformer.export import ExportError, export, reference
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.layers import EncoderBlock, FeedForward
from isoformer.models.signature import Signature, TensorSpec
from isoformer.runtime import Session

E, HEADS = 33, 3


class Cross(nn.Module):
    """Attention from one sequence to another, as somebody builds it from the blocks."""

    def __init__(self, num_kv_heads: int) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(E, HEADS, num_kv_heads, bias=False)

    def forward(self, query, memory, mask):
        return self.attention(query, memory, memory, mask)


def cross_signature(mask_axes: tuple[str, ...]) -> Signature:
    return Signature(
        inputs=(
            TensorSpec("query", "float32", ("batch_size", "query_length", E)),
            TensorSpec("memory", "float32", ("batch_size", "key_length", E)),
            TensorSpec("mask", "int64", mask_axes, kind="mask"),
        ),
        outputs=(TensorSpec("out", "float32", ("batch_size", "query_length", E)),),
    )


def rows_mask(batch: int, queries: int, keys: int) -> np.ndarray:
    mask = np.random.default_rng(5).integers(0, 2, (batch, queries, keys))
    mask[:, :, 0] = 1
    mask[0, 2] = 0
    mask[1] = 0
    return mask


@pytest.mark.parametrize("opset", [20, 23, 25])
@pytest.mark.parametrize("num_kv_heads", [3, 1])
def test_rows_without_keys_are_zero(tmp_path, opset, num_kv_heads):
    model = Cross(num_kv_heads)
    axes = ("batch_size", "query_length", "key_length")
    package = export(model, cross_signature(axes), tmp_path / "cross", opset=opset)
    assert any(case.startswith("row-") for case in package.manifest["grid"])
    rng = np.random.default_rng(0)
    inputs = {
        "query": rng.standard_normal((2, 7, E)).astype(np.float32),
        "memory": rng.standard_normal((2, 11, E)).astype(np.float32),
        "mask": rows_mask(2, 7, 11),
    }
    with torch.no_grad():
        expected = model(*(torch.from_numpy(array) for array in inputs.values())).numpy()
    for run in (Session(package).run, reference.runner(package.model)):
        out = run(inputs)["out"]
        assert (out[0, 2] == 0).all()
        assert (out[1] == 0).all()
        assert (out[0, [0, 1, 3, 4, 5, 6]] != 0).all()
        np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("axes", [("batch_size", "key_length"), ("query_length", "key_length")])
def test_masks_of_two_axes_mean_what_their_names_say(tmp_path, axes):
    model = Cross(3)
    package = export(model, cross_signature(axes), tmp_path / "cross")
    rng = np.random.default_rng(1)
    sizes = {"batch_size": 2, "query_length": 7, "key_length": 11}
    inputs = {
        "query": rng.standard_normal((2, 7, E)).astype(np.float32),
        "memory": rng.standard_normal((2, 11, E)).astype(np.float32),
        "mask": rng.integers(0, 2, [sizes[axis] for axis in axes]),
    }
    inputs["mask"][0] = 0
    out = Session(package).run(inputs)["out"]
    zero = out[0] if axes[0] == "batch_size" else out[:, 0]
    rest = out[1] if axes[0] == "batch_size" else out[:, 1:]
    assert (zero == 0).all()
    assert (rest != 0).any()


@pytest.mark.parametrize("opset", [20, 23])
def test_block_grid_has_the_fully_masked_row(tmp_path, opset):
    """The whole grid, the single masked row among it, through a block with residuals and norms."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            attention, feed_forward = MultiHeadAttention(E, HEADS), FeedForward(E, 53)
            self.block = EncoderBlock(attention, feed_forward, nn.LayerNorm(E), nn.LayerNorm(E), norm_order="pre")

        def forward(self, x, mask):
            return self.block(x, mask)

    signature = Signature(
        inputs=(
            TensorSpec("x", "float32", ("batch_size", "length", E)),
            TensorSpec("mask", "bool", ("batch_size", 1, "length", "length"), kind="mask"),
        ),
        outputs=(TensorSpec("y", "float32", ("batch_size", "length", E)),),
    )
    package = export(Block(), signature, tmp_path / "block", opset=opset)
    table = package.manifest["parity"]["onnxruntime cpu"]["by_mask_and_length"]
    assert {"row", "sample", "holes", "left", "right", "ragged", "none"} == table.keys()


def test_a_branch_on_a_size_fails_the_export(tmp_path):
    """A size that the tracer bakes in gives another answer elsewhere, and parity sees it."""

    class Baked(nn.Module):
        def forward(self, x):
            return x * 2 if x.shape[1] == 1 else x

    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("batch_size", "length", 3)),),
        outputs=(TensorSpec("y", "float32", ("batch_size", "length", 3)),),
    )
    with pytest.raises(ExportError, match=r"axis|compute the same"):
        export(Baked(), signature, tmp_path / "baked")
    assert not list(tmp_path.iterdir())
