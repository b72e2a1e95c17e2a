"""Weights that several graphs have stand once beside them; a graph alone keeps its own unless they are too many."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from isoformer.export.weights import PAGE, SHARED_BYTES, save
from isoformer.runtime.package import WEIGHTS

SIDE = int((SHARED_BYTES // 4) ** 0.5)  # of a square of float32 that is just large enough to be shared


def graph(**weights: np.ndarray) -> ir.Model:
    """x → x times each of the weights."""
    x = ir.val("x", ir.DataType.FLOAT, ["n", SIDE])
    values = [ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in weights.items()]
    nodes, last = [], x
    for value in values:
        nodes.append(ir.node("MatMul", [last, value]))
        last = nodes[-1].outputs[0]
    columns = list(weights.values())[-1].shape[1]
    last.name, last.shape, last.type = "y", ir.Shape(["n", columns]), x.type
    made = ir.Graph([x], [last], nodes=nodes, initializers=values, opset_imports={"": 23}, name="main")
    return ir.Model(made, ir_version=10)


def square(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((SIDE, SIDE), np.float32)


def answer(file: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": np.eye(3, SIDE, dtype=np.float32)})[0])


def test_a_shared_weight_is_written_once_under_either_name(tmp_path: Path):
    save({"one": graph(a=square(1), b=square(2)), "two": graph(c=square(1))}, tmp_path, 2**31)
    assert (tmp_path / WEIGHTS).stat().st_size == square(1).nbytes
    assert (tmp_path / "two.onnx").stat().st_size < 2000 < square(2).nbytes < (tmp_path / "one.onnx").stat().st_size
    np.testing.assert_allclose(answer(tmp_path / "two.onnx"), square(1)[:3], rtol=1e-6)
    np.testing.assert_allclose(answer(tmp_path / "one.onnx"), square(1)[:3] @ square(2), rtol=1e-4, atol=1e-4)


def test_graphs_that_share_nothing_keep_their_own(tmp_path: Path):
    save({"one": graph(a=square(1)), "two": graph(a=square(2))}, tmp_path, 2**31)
    assert not (tmp_path / WEIGHTS).exists()
    np.testing.assert_allclose(answer(tmp_path / "two.onnx"), square(2)[:3], rtol=1e-6)


def test_a_small_weight_stands_in_both(tmp_path: Path):
    small = square(1)[:, 1:].copy()
    assert small.nbytes < SHARED_BYTES <= square(1).nbytes
    save({"one": graph(a=small), "two": graph(a=small)}, tmp_path, 2**31)
    assert not (tmp_path / WEIGHTS).exists()
    np.testing.assert_allclose(answer(tmp_path / "two.onnx"), small[:3], rtol=1e-6)


@pytest.mark.parametrize("names", [("model",), ("one", "two")])
def test_all_weights_stand_beside_when_there_is_no_room(tmp_path: Path, names: tuple[str, ...]):
    save({name: graph(a=square(seed), b=square(9)) for seed, name in enumerate(names)}, tmp_path, 0)
    pages = -(-square(0).nbytes // PAGE) * PAGE
    assert pages * len(names) < (tmp_path / WEIGHTS).stat().st_size <= pages * (len(names) + 1)
    for seed, name in enumerate(names):
        assert (tmp_path / f"{name}.onnx").stat().st_size < 2000
        np.testing.assert_allclose(
            answer(tmp_path / f"{name}.onnx"), square(seed)[:3] @ square(9), rtol=1e-4, atol=1e-4
        )
