"""Bisecting: the node is named at which two graphs, or two runtimes, part; rounding is not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from isoformer.runtime.bisect import Side, distance, first_difference, search
from isoformer.runtime.onnx_file import Node, nodes, with_outputs
from isoformer.runtime.package import load
from isoformer.runtime.runners import engines
from tests.poisons import WEIGHT, change_weight, ignore_mask

Arrays = dict[str, np.ndarray]
Copy = Callable[..., Path]


def side(package: Path, engine=engines.here) -> Side:
    return Side(package / "model.onnx", package, engine)


def inputs(package: Path, mask: str = "ragged") -> Arrays:
    loaded = load(package)
    wanted = next(case for case, name in loaded.manifest["golden_cases"].items() if name.startswith(f"{mask}-"))
    return next(arrays for case, arrays, _ in loaded.golden() if case == wanted)


def node_of(package: Path, found) -> onnx.NodeProto:
    return next(node for node in onnx.load(package / "model.onnx").graph.node if node.name == found.node)


def test_the_node_that_reads_a_changed_weight_is_named(copy_package: Copy, tiny_package: Path) -> None:
    package = copy_package()
    change_weight(package)
    found = first_difference(side(tiny_package), side(package), inputs(package))
    assert found is not None
    assert found.operator == "MatMul"
    assert WEIGHT in node_of(package, found).input
    assert (found.inputs, found.error > 1e-4) == (0, True)
    assert found.node in found.line()


def test_the_node_that_lost_its_mask_is_named(copy_package: Copy, tiny_package: Path) -> None:
    package = copy_package()
    ignore_mask(package)
    found = first_difference(side(tiny_package), side(package), inputs(package))
    assert found is not None
    first = next(node for node in onnx.load(package / "model.onnx").graph.node if node.op_type == "Attention")
    assert (found.operator, found.node) == ("Attention", first.name)
    assert first_difference(side(tiny_package), side(package), inputs(package, "none")) is None


def test_a_runtime_that_ignores_the_mask_is_found_where_the_mask_is_read(tiny_package: Path) -> None:
    def careless(model: Path, weights: Path, fed: Arrays) -> Arrays:
        return engines.here(model, weights, fed | {"attention_mask": np.ones_like(fed["attention_mask"])})

    found = first_difference(side(tiny_package), side(tiny_package, careless), inputs(tiny_package))
    assert found is not None
    assert "attention_mask" in node_of(tiny_package, found).input


def test_another_runtime_of_the_same_graph_agrees(tiny_package: Path) -> None:
    for mask in ("ragged", "sample", "none"):
        fed = inputs(tiny_package, mask)
        assert first_difference(side(tiny_package), side(tiny_package, engines.reference), fed) is None


def test_a_runtime_whose_masked_rows_are_nan_is_named(tiny_package: Path) -> None:
    """As onnxruntime 1.23 answers rows without keys."""
    attention = [node.outputs[0] for node in nodes(tiny_package / "model.onnx") if node.operator == "Attention"]

    def old(model: Path, weights: Path, fed: Arrays) -> Arrays:
        values = engines.here(model, weights, fed)
        for name in attention:
            some = np.asarray(fed["attention_mask"].any(axis=1, keepdims=True))
            values[name] = np.where(some[..., None], values[name], np.nan)
        return values

    found = first_difference(side(tiny_package), side(tiny_package, old), inputs(tiny_package, "sample"))
    assert found is not None
    assert (found.operator, found.output) == ("Attention", attention[0])
    assert found.to_dict()["error"] is None


def test_every_value_becomes_an_output(tiny_package: Path) -> None:
    model = onnx.load(tiny_package / "model.onnx")
    names = [name for node in model.graph.node for name in node.output]
    exposed = onnx.load_from_string(with_outputs(tiny_package / "model.onnx", names))
    outputs = [value.name for value in exposed.graph.output]
    assert set(outputs) == set(names)
    assert len(outputs) == len(names)
    assert outputs[: len(model.graph.output)] == [value.name for value in model.graph.output]
    assert list(exposed.graph.node) == list(model.graph.node)


def test_nodes_are_those_of_the_graph(tiny_package: Path) -> None:
    model = onnx.load(tiny_package / "model.onnx")
    found = nodes(tiny_package / "model.onnx")
    assert [(n.name, n.operator, list(n.outputs)) for n in found] == [
        (n.name, n.op_type, list(n.output)) for n in model.graph.node
    ]
    assert [list(n.inputs) for n in found] == [[name for name in n.input if name] for n in model.graph.node]


CHAIN = [Node("a", "MatMul", ("x",), ("p",)), Node("b", "Norm", ("p",), ("q",)), Node("c", "Add", ("q", "x"), ("r",))]


def values(**arrays: list[float]) -> Arrays:
    return {name: np.array(array) for name, array in arrays.items()}


def test_rounding_and_what_comes_of_it_are_not_named() -> None:
    one = values(p=[1.0, 2.0], q=[1.0, 2.0], r=[1.0, 2.0])
    other = values(p=[1.0, 2.00001], q=[1.0, 2.0007], r=[1.0, 2.0005])
    assert search(CHAIN, one, other, {}) is None
    found = search(CHAIN, one, other | values(q=[1.0, 2.1]), {})
    assert found is not None
    assert (found.node, found.output) == ("b", "q")


def test_a_step_of_eight_bits_is_rounding_too() -> None:
    order = [Node("round", "Round", ("p",), ("s",)), Node("product", "MatMul", ("s",), ("r",))]
    one, other = values(p=[0.5], s=[3.0, 40.0], r=[1.0]), values(p=[0.5], s=[3.0, 41.0], r=[1.01])
    assert search(order, one, other, {}) is None
    found = search(order, one, other | values(s=[3.0, 42.0]), {})
    assert found is not None
    assert found.node == "round"


def test_a_mask_of_0_and_1_has_no_steps() -> None:
    found = search([Node("cast", "Cast", ("m",), ("f",))], values(f=[1.0, 0.0]), values(f=[1.0, 1.0]), {})
    assert found is not None


def test_values_of_one_side_alone_are_passed_over() -> None:
    found = search(CHAIN, values(p=[1.0], r=[1.0]), values(p=[1.0], q=[7.0], r=[5.0]), {})
    assert found is not None
    assert found.node == "c"


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ([1.0, 4.0], [1.0, 4.0], 0.0),
        ([1.0, 4.0], [2.0, 4.0], 0.25),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [1.0, 1.0], np.inf),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([-np.inf, 1.0], [-np.inf, 2.0], 0.5),
        ([np.nan], [np.nan], 0.0),
        ([0.0], [0.0], 0.0),
        ([1.0], [1.0, 1.0], np.inf),
    ],
)
def test_distance(one: list[float], other: list[float], wanted: float) -> None:
    assert distance(np.array(one), np.array(other)) == wanted
