"""The first node of a graph that answers otherwise: in another runtime, or in another graph of the same nodes.

Every value between the nodes becomes an output of a copy of the graph, both sides run it on the same inputs, and the
nodes are gone through in their order. Values that only rounding separates agree; what rounding does to a node's
inputs, the node passes on.
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoformer.runtime.errors import IsoformerError
from isoformer.runtime.onnx_file import Node, nodes, with_outputs

Arrays = dict[str, np.ndarray]
# Runs a model file on inputs and returns all its outputs by name; weights: the folder of the files that it names.
Engine = Callable[[Path, Path, Arrays], Arrays]

# Sums of float32 in another order differ by so much of the largest value at most.
ROUNDING = 2e-5
# Values of 8 bits go at least so far; what is smaller counts as numbers of its own.
SMALLEST_STEPS = 16
# A node whose inputs differ by rounding may make up to so many times as much of it: a norm, a softmax.
PASSED_ON = 100.0


@dataclass(frozen=True)
class Difference:
    """node: its name, "" where it has none. error: of `output`, as a share of the largest value there; of what the
    node reads, `inputs`. Infinite for NaN on one side alone, or another shape."""

    node: str
    operator: str
    output: str
    error: float
    inputs: float

    def line(self) -> str:
        name = f" {self.node}" if self.node else ""
        how = "NaN, infinity or another shape on one side" if math.isinf(self.error) else f"{self.error:.1e}"
        of = "" if math.isinf(self.error) else " of its largest value"
        return f"{self.operator}{name} → {self.output}: {how}{of}; what it reads differs by {self.inputs:.1e}"

    def to_dict(self) -> dict[str, Any]:
        numbers = {key: None if math.isinf(value) else value for key, value in (("error", self.error),)}
        return asdict(self) | numbers


@dataclass(frozen=True)
class Side:
    """A model file, the folder of the weights that it names, and what runs it."""

    model: Path
    weights: Path
    engine: Engine


def first_difference(one: Side, other: Side, inputs: Arrays) -> Difference | None:
    """The first node whose outputs differ between the sides while what it reads agrees; None if every value agrees.

    Of two graphs, values are matched by their names. Raises IsoformerError where a side cannot run.
    """
    order = nodes(other.model)
    here, there = _values(one, inputs), _values(other, inputs)
    return search(order, here, there, inputs)


def search(
    order: list[Node], one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], fed: Arrays
) -> Difference | None:
    """The same of values that are known."""
    known = dict.fromkeys(fed, 0.0)  # value → by how much the sides differ

    def apart(name: str) -> float:
        if name not in known:
            known[name] = distance(one[name], other[name]) if name in one and name in other else 0.0
        return known[name]

    for node in order:
        read = max((apart(name) for name in node.inputs), default=0.0)
        for output in node.outputs:
            if output not in one or output not in other:
                continue
            found = apart(output)
            if _whole_numbers(one[output]) and found and _steps(one[output], other[output]) <= 1:
                continue  # a value on the edge between two steps of 8 bits
            if found > max(ROUNDING, PASSED_ON * read):
                return Difference(node.name, node.operator, output, found, read)
    return None


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference as a share of the largest value; infinite for another shape or NaN on one side."""
    if one.shape != other.shape:
        return math.inf
    a, b = (np.asarray(array, dtype=np.float64) for array in (one, other))
    finite = np.isfinite(a)
    if not (finite == np.isfinite(b)).all() or not np.array_equal(
        np.sign(a[~finite]), np.sign(b[~finite]), equal_nan=True
    ):
        return math.inf
    if not finite.any():
        return 0.0
    largest = float(np.abs(b[finite]).max())
    return float(np.abs(a[finite] - b[finite]).max()) / (largest or 1.0)


def _whole_numbers(array: np.ndarray) -> bool:
    """Whether the values are steps of 8 bits, of whatever dtype, as Round leaves them in floats; no mask of 0 and 1."""
    largest = np.abs(array.astype(np.float64)).max(initial=0.0)
    return array.dtype.kind in "iuf" and largest >= SMALLEST_STEPS and bool((array == np.round(array)).all())


def _steps(one: np.ndarray, other: np.ndarray) -> float:
    if one.shape != other.shape:
        return math.inf
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max(initial=0.0))


def _values(side: Side, inputs: Arrays) -> Arrays:
    """Every value that a node of the side's graph makes."""
    names = [name for node in nodes(side.model) for name in node.outputs]
    with tempfile.TemporaryDirectory() as folder:
        exposed = Path(folder) / "exposed.onnx"
        exposed.write_bytes(with_outputs(side.model, names))
        try:
            return side.engine(exposed, side.weights, inputs)
        except IsoformerError as error:
            raise IsoformerError(f"the values between the nodes cannot be had: {error}") from None
