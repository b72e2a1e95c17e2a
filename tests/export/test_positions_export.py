"""Rotary positions and biases for distances in ONNX: as accurate as PyTorch, for every batch, length and position."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from isoformer.export.graph import to_onnx
from isoformer.models.positions import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    RelativeBias,
    Rotary,
    ShawBias,
    YarnScaling,
    alibi,
)
from isoformer.models.signature import Signature, TensorSpec

Arrays = dict[str, np.ndarray]
BATCH, QUERIES, KEYS = "batch_size", "sequence_length", "key_length"
HEADS, HEAD_DIM = 3, 14
OPSETS = [20, 23]
ROTARIES = {
    "plain": Rotary(HEAD_DIM),
    "partial": Rotary(HEAD_DIM, rotary_dim=6, base=500000.0),
    "interleaved": Rotary(HEAD_DIM, rotary_dim=10, interleaved=True),
    "linear": Rotary(HEAD_DIM, scaling=LinearScaling(3.0)),
    "dynamic": Rotary(HEAD_DIM, scaling=DynamicNTKScaling(2.0, 17)),
    "yarn": Rotary(HEAD_DIM, scaling=YarnScaling(4.0, 64)),
    "llama3": Rotary(HEAD_DIM, scaling=Llama3Scaling(8.0, 1.0, 4.0, 64)),
}
BY_LENGTH = ("plain", "dynamic")
BUCKETS = [(32, 128, True), (32, 128, False), (9, 33, False), (48, 81, False), (64, 512, True)]


class Model(nn.Module):
    """Every rotary by positions and by length, and every bias by the offset of each row or bottom-right."""

    def __init__(self) -> None:
        super().__init__()
        self.rotaries = nn.ModuleDict(ROTARIES)
        self.shaw = ShawBias(HEAD_DIM, 5)
        self.relative = nn.ModuleList(
            RelativeBias(HEADS, num_buckets=n, max_distance=m, bidirectional=both) for n, m, both in BUCKETS
        )

    def forward(self, query: Tensor, positions: Tensor, keys: Tensor, offset: Tensor) -> dict[str, Tensor]:
        queries, count, dtype = query.shape[2], keys.shape[1], query.dtype
        out = {name: rotary(query, positions) for name, rotary in self.rotaries.items()}
        out |= {f"{name}_by_length": self.rotaries[name](query, queries) for name in BY_LENGTH}
        out["alibi"] = alibi(HEADS, queries, count, dtype=dtype)
        out["relative"] = self.relative[0](queries, count)
        out["shaw"] = self.shaw(query, count)
        out["alibi_by_offset"] = alibi(HEADS, queries, count, offset=offset, dtype=dtype)
        out["shaw_by_offset"] = self.shaw(query, count, offset=offset)
        for i, relative in enumerate(self.relative):
            out[f"relative_{i}_by_offset"] = relative(queries, count, offset=offset)
        return out


def signature() -> Signature:
    turned = [*ROTARIES, *(f"{name}_by_length" for name in BY_LENGTH)]
    each_row = ["alibi_by_offset", "shaw_by_offset", *(f"relative_{i}_by_offset" for i in range(len(BUCKETS)))]
    biases = {"alibi": 1, "relative": 1, "shaw": BATCH} | dict.fromkeys(each_row, BATCH)
    return Signature(
        (
            TensorSpec("query", "float32", (BATCH, HEADS, QUERIES, HEAD_DIM)),
            TensorSpec("positions", "int64", (BATCH, QUERIES), high=1_000_000),
            TensorSpec("keys", "float32", (BATCH, KEYS)),  # counted, not read
            TensorSpec("offset", "int64", (BATCH,), high=1_000_000),
        ),
        (
            *(TensorSpec(name, "float32", (BATCH, HEADS, QUERIES, HEAD_DIM)) for name in turned),
            *(TensorSpec(name, "float32", (rows, HEADS, QUERIES, KEYS)) for name, rows in biases.items()),
        ),
    )


@dataclass(frozen=True)
class Exported:
    model: Model
    graph: ir.Model
    session: onnxruntime.InferenceSession

    def run(self, inputs: Arrays) -> Arrays:
        names = [output.name for output in self.session.get_outputs()]
        feeds = {name: value for name, value in inputs.items() if name in {i.name for i in self.session.get_inputs()}}
        return dict(zip(names, map(np.asarray, self.session.run(names, feeds)), strict=True))

    def torch(self, inputs: Arrays, dtype: torch.dtype) -> Arrays:
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        outputs = self.model.to(dtype)(**tensors)
        self.model.float()
        return {name: output.detach().numpy() for name, output in outputs.items()}


@pytest.fixture(scope="module", params=OPSETS, ids=lambda opset: f"opset {opset}")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(7)
    model = Model()
    graph = to_onnx(model, signature(), request.param)
    path = tmp_path_factory.mktemp("positions") / "model.onnx"
    ir.save(graph, path)
    return Exported(model, graph, onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]))


def draw(batch: int, queries: int, keys: int, highest: int) -> Arrays:
    rng = np.random.default_rng(7)
    positions = rng.integers(0, highest + 1, (batch, queries))
    positions[0, -1] = highest
    return {
        "query": rng.standard_normal((batch, HEADS, queries, HEAD_DIM)).astype(np.float32),
        "positions": positions,
        "keys": np.zeros((batch, keys), np.float32),
        "offset": rng.integers(0, keys + 1, batch),
    }


@pytest.mark.parametrize("highest", [0, 23, 100_003, 2**24], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 5, 11), (3, 13, 7), (1, 37, 131)], ids=str)
def test_onnx_is_as_accurate_as_pytorch(exported: Exported, sizes: tuple[int, int, int], highest: int) -> None:
    """Both round the same angles; what the runtime may add is a unit or two of its cosine and its products.

    The error that both share grows with the position, as float32 angles do; it is not what is bounded here.
    """
    inputs = draw(*sizes, highest)
    found, single, exact = exported.run(inputs), *(exported.torch(inputs, t) for t in (torch.float32, torch.float64))
    assert list(found) == list(single) == list(exact)
    unit = np.finfo(np.float32).eps * np.abs(inputs["query"]).max()
    for name, value in found.items():
        assert value.dtype == np.float32
        assert value.shape == exact[name].shape
        np.testing.assert_allclose(value, single[name], rtol=0, atol=2 * unit, err_msg=name)
        error, allowed = (np.abs(x - exact[name]).max() for x in (value, single[name]))
        assert error <= allowed + 2 * unit, name


def test_distances_are_pytorchs_bit_for_bit(exported: Exported) -> None:
    """Every distance from -2000 to 2000, which are the rows at 0 and at 2000."""
    inputs = draw(2, 1, 2001, 0) | {"offset": np.array([0, 2000])}
    found, wanted = exported.run(inputs), exported.torch(inputs, torch.float32)
    names = [name for name in found if name.startswith(("alibi", "relative"))]
    assert len(names) == 3 + len(BUCKETS)
    for name in names:
        assert np.array_equal(found[name], wanted[name]), name


def test_the_graph_holds_plain_operators_and_exact_frequencies(exported: Exported) -> None:
    nodes, constants = list(exported.graph.graph), exported.graph.graph.initializers
    assert {node.domain for node in nodes} == {""}
    assert not {node.op_type for node in nodes} & {"Log", "If", "Loop", "Scan", "ScatterND", "NonZero", "GatherND"}
    values = [constant.const_value for constant in constants.values() if constant.const_value is not None]
    assert ir.DataType.DOUBLE not in {value.dtype for value in values}
    assert ir.DataType.DOUBLE not in {value.dtype for node in nodes for value in node.outputs}
    for name, rotary in ROTARIES.items():
        rounded = rotary.inv_freq.float().numpy()
        assert any(np.array_equal(value.numpy(), rounded) for value in values), name


def test_a_model_in_half_precision_keeps_its_frequencies(tmp_path: Path) -> None:
    """Angles of float16 would be off by whole turns at this position."""
    batch, length = "batch_size", "sequence_length"
    names = Signature(
        (
            TensorSpec("x", "float16", (batch, HEADS, length, HEAD_DIM)),
            TensorSpec("positions", "int64", (batch, length), high=1_000_000),
        ),
        (TensorSpec("turned", "float16", (batch, HEADS, length, HEAD_DIM)),),
    )
    rotary = Rotary(HEAD_DIM).half()
    ir.save(to_onnx(rotary, names, 23), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = draw(2, 5, 1, 2003)
    x, positions = inputs["query"].astype(np.float16), inputs["positions"]
    (found,) = map(np.asarray, session.run(None, {"x": x, "positions": positions}))
    wanted = rotary(torch.from_numpy(x).double(), torch.from_numpy(positions)).numpy()
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, wanted, rtol=0, atol=4 * np.finfo(np.float16).eps * np.abs(x).max())
