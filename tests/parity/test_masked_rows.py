"""A query row without any key is exactly zero: in PyTorch and in every graph that is exported from it."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from isoformer.export import ExportError, export, reference
from isoformer.export.graph import to_onnx
from isoformer.models.attention import MultiHeadAttention, attend
from isoformer.models.layers import EncoderBlock, FeedForward
from isoformer.models.signature import Signature, TensorSpec
from isoformer.runtime import Session
from isoformer.runtime.providers import open_session
from tests.conftest import export_small, require_gpu

E, HEADS = 33, 3


class Cross(nn.Module):
    """Attention from one sequence to another, as somebody builds it from the blocks; keys with and without groups."""

    def __init__(self) -> None:
        super().__init__()
        self.full = MultiHeadAttention(E, HEADS, bias=False)
        self.grouped = MultiHeadAttention(E, HEADS, 1, bias=False)

    def forward(self, query, memory, mask):
        return {name: layer(query, memory, memory, mask) for name, layer in self.named_children()}


def cross_signature(mask_axes: tuple[str, ...]) -> Signature:
    return Signature(
        inputs=(
            TensorSpec("query", "float32", ("batch_size", "query_length", E)),
            TensorSpec("memory", "float32", ("batch_size", "key_length", E)),
            TensorSpec("mask", "int64", mask_axes, kind="mask"),
        ),
        outputs=tuple(TensorSpec(name, "float32", ("batch_size", "query_length", E)) for name in ("full", "grouped")),
    )


def rows_mask(batch: int, queries: int, keys: int) -> np.ndarray:
    mask = np.random.default_rng(5).integers(0, 2, (batch, queries, keys))
    mask[:, :, 0] = 1
    mask[0, 2] = 0
    mask[1] = 0
    return mask


@pytest.mark.parametrize("opset", [20, 23, 25])
def test_rows_without_keys_are_zero(tmp_path, opset):
    model = Cross()
    axes = ("batch_size", "query_length", "key_length")
    package = export_small(model, cross_signature(axes), tmp_path / "cross", opset=opset)
    assert any(case.startswith("row-") for case in package.manifest["grid"])
    rng = np.random.default_rng(0)
    inputs = {
        "query": rng.standard_normal((2, 7, E)).astype(np.float32),
        "memory": rng.standard_normal((2, 11, E)).astype(np.float32),
        "mask": rows_mask(2, 7, 11),
    }
    with torch.no_grad():
        expected = model(*(torch.from_numpy(array) for array in inputs.values()))
    assert not torch.allclose(expected["full"], expected["grouped"], atol=1e-2)
    for run in (Session(package).run, reference.runner(package.model)):
        for name, out in run(inputs).items():
            assert (out[0, 2] == 0).all()
            assert (out[1] == 0).all()
            assert (out[0, [0, 1, 3, 4, 5, 6]] != 0).all()
            np.testing.assert_allclose(out, expected[name].numpy(), atol=1e-6)


@pytest.mark.parametrize("axes", [("batch_size", "key_length"), ("query_length", "key_length")])
def test_masks_of_two_axes_mean_what_their_names_say(tmp_path, axes):
    package = export_small(Cross(), cross_signature(axes), tmp_path / "cross")
    rng = np.random.default_rng(1)
    sizes = {"batch_size": 2, "query_length": 7, "key_length": 11}
    inputs = {
        "query": rng.standard_normal((2, 7, E)).astype(np.float32),
        "memory": rng.standard_normal((2, 11, E)).astype(np.float32),
        "mask": rng.integers(0, 2, [sizes[axis] for axis in axes]),
    }
    inputs["mask"][0] = 0
    for out in Session(package).run(inputs).values():
        zero = out[0] if axes[0] == "batch_size" else out[:, 0]
        rest = out[1] if axes[0] == "batch_size" else out[:, 1:]
        assert (zero == 0).all()
        assert (rest != 0).any()


@pytest.mark.parametrize("opset", [20, 23])
def test_block_grid_has_the_fully_masked_row(tmp_path, opset):
    """Every mask, the single masked row among them, through a block with residuals and norms; at 23 the whole grid."""

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
    package = (export if opset == 23 else export_small)(Block(), signature, tmp_path / "block", opset=opset)
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


# attend by itself: every dtype, runtime and way to leave a row without keys

B, H, K, LQ, LK, D = 2, 6, 2, 5, 7, 8
DTYPES = {"float64": 1e-12, "float32": 1e-6, "float16": 4e-3, "bfloat16": 4e-2}  # how far from float64
KINDS = ["masked", "biased", "sunk", "all"]


class Kinds(nn.Module):
    """attend with every kind of option, from inputs that they share; `mask` and `bias` say the same."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, bias: Tensor, sinks: Tensor) -> Any:
        return {
            "masked": attend(query, key, value, mask),
            "biased": attend(query, key, value, bias=bias),
            "sunk": attend(query, key, value, mask, sinks=sinks),
            "all": attend(query, key, value, mask, bias=bias, sinks=sinks, softcap=1.5),
        }


def kinds_inputs(size: tuple[int, int, int] = (B, LQ, LK), large: bool = False) -> dict[str, Tensor]:
    """In float64. Sequence 1 has no key; of sequence 0 a row of every head, and one row of one head."""
    batch, queries, keys = size
    generator = torch.Generator().manual_seed(queries)
    shapes = {"query": (batch, H, queries, D), "key": (batch, K, keys, D), "value": (batch, K, keys, D)}
    made = {name: torch.randn(shape, generator=generator).double() for name, shape in shapes.items()}
    made = {name: x.half().double() for name, x in made.items()}  # the same numbers in every precision
    if large:  # scores of 60000 and more
        made["query"], made["key"] = made["query"].sign() * 150, made["key"].sign() * 150
    mask = torch.rand(batch, H, queries, keys, generator=generator) < 0.6
    mask[..., 0] = True
    mask[0, :, 2] = False
    mask[0, 4, 0] = False
    mask[1] = False
    bias = torch.randn(batch, H, queries, keys, generator=generator).half().double()
    sinks = torch.randn(H, generator=generator).half().double()
    return made | {"mask": mask, "bias": bias.masked_fill(~mask, float("-inf")), "sinks": sinks}


def in_dtype(inputs: dict[str, Tensor], dtype: str, device: str = "cpu") -> dict[str, Tensor]:
    return {
        n: x.to(device, getattr(torch, dtype)) if x.is_floating_point() else x.to(device) for n, x in inputs.items()
    }


def assert_masked_rows(outputs: dict[str, Any], inputs: dict[str, Tensor], atol: float) -> None:
    """Rows without keys are zero, every bit of them; the others are float64's, and not zero."""
    blind = ~inputs["mask"].any(-1).numpy()
    wanted = Kinds()(**inputs)
    assert list(outputs) == KINDS
    for name, output in outputs.items():
        value = output.detach().cpu().double().numpy() if isinstance(output, Tensor) else output.astype(np.float64)
        assert not value[blind].any(), name
        assert (value[~blind] != 0).any(-1).all(), name
        np.testing.assert_allclose(value, wanted[name].numpy(), rtol=atol, atol=atol, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gradient", [True, False])
def test_masked_rows_in_pytorch(dtype, gradient):
    inputs = kinds_inputs()
    given = {name: x.clone() for name, x in in_dtype(inputs, dtype).items()}
    for name in ("query", "key", "value", "sinks"):
        given[name].requires_grad_(gradient)
    outputs = Kinds()(**given)
    assert {x.dtype for x in outputs.values()} == {getattr(torch, dtype)}
    assert_masked_rows(outputs, inputs, DTYPES[dtype])
    if gradient:
        torch.stack([x.float().sum() for x in outputs.values()]).sum().backward()
        gradients = {name: cast(Tensor, given[name].grad) for name in ("query", "key", "value", "sinks")}
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        assert not gradients["query"][~inputs["mask"].any(-1)].any()


def kinds_signature(dtype: str) -> Signature:
    axes = ("batch_size", H, "query_length", "key_length")
    return Signature(
        (
            TensorSpec("query", dtype, ("batch_size", H, "query_length", D)),
            TensorSpec("key", dtype, ("batch_size", K, "key_length", D)),
            TensorSpec("value", dtype, ("batch_size", K, "key_length", D)),
            TensorSpec("mask", "bool", axes, kind="mask"),
            TensorSpec("bias", dtype, axes),
            TensorSpec("sinks", dtype, (H,)),
        ),
        tuple(TensorSpec(name, dtype, ("batch_size", H, "query_length", D)) for name in KINDS),
    )


@pytest.fixture(scope="session", params=[(20, "float32"), (20, "float16"), (23, "float32"), (23, "float16")], ids=str)
def kinds_graph(request, tmp_path_factory) -> tuple[Path, str]:
    """The graph of every kind at an opset, and its precision."""
    opset, dtype = request.param
    path = tmp_path_factory.mktemp("kinds") / "model.onnx"
    graph = to_onnx(Kinds().to(getattr(torch, dtype)), kinds_signature(dtype), opset)
    ir.save(graph, path)
    return path, dtype


def run(path: Path, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {name: x.numpy() for name, x in inputs.items()}
    return dict(zip(KINDS, map(np.asarray, session.run(KINDS, feeds)), strict=True))


@pytest.mark.parametrize("size", [(B, LQ, LK), (3, 11, 13), (2, 3, 1)], ids=str)
def test_masked_rows_in_onnx_runtime(kinds_graph, size):
    path, dtype = kinds_graph
    inputs = kinds_inputs(size)
    outputs = run(path, in_dtype(inputs, dtype))
    assert {x.dtype for x in outputs.values()} == {np.dtype(dtype)}
    assert_masked_rows(outputs, inputs, DTYPES[dtype])


def test_large_scores_do_not_reach_over_the_mask(kinds_graph):
    """Scores of ±60000, where float16 has no room left for a mask that is added, and float32 steps of 2^-8."""
    path, dtype = kinds_graph
    inputs = kinds_inputs(large=True)
    outputs = run(path, in_dtype(inputs, dtype))
    assert_masked_rows(outputs, inputs, 2**-6)


@pytest.mark.gpu
def test_masked_rows_on_a_gpu_in_pytorch(kinds_graph):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here for this PyTorch")
    _, dtype = kinds_graph
    for large in (False, True):
        inputs = kinds_inputs(large=large)
        outputs = Kinds()(**in_dtype(inputs, dtype, "cuda"))
        assert_masked_rows(outputs, inputs, 2**-6 if large else DTYPES[dtype])


@pytest.mark.gpu
def test_masked_rows_on_a_gpu_in_onnx_runtime(kinds_graph):
    path, dtype = kinds_graph
    require_gpu()
    session = open_session(str(path), "cuda")
    for large in (False, True):
        inputs = kinds_inputs(large=large)
        feeds = {name: x.numpy() for name, x in in_dtype(inputs, dtype).items()}
        outputs = dict(zip(KINDS, map(np.asarray, session.run(KINDS, feeds)), strict=True))
        assert_masked_rows(outputs, inputs, 2**-6 if large else DTYPES[dtype])
