"""ONNX's own node tests, from the installed onnx wheel."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.case import node
from onnx.backend.test.runner import Runner

# The operators that are compared and how many cases onnx ships for each (1.23.2; later releases add to them).
NUMBERS = {"Attention": 93, "RotaryEmbedding": 8, "RMSNormalization": 19, "TensorScatter": 3}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One node with its inputs and the outputs that ONNX's reference gives for them."""

    name: str
    op: str
    opset: int
    attributes: dict[str, Any]
    inputs: Arrays = field(repr=False)
    outputs: Arrays = field(repr=False)
    model: onnx.ModelProto = field(repr=False)
    rtol: float
    atol: float

    def __str__(self) -> str:
        return self.name.removeprefix("test_")

    @property
    def bfloat16(self) -> bool:
        return any(array.dtype.name == "bfloat16" for array in self.inputs.values())

    def compare(self, answers: Sequence[np.ndarray]) -> None:
        """AssertionError unless the answers have the number, shapes, dtypes and values of the case.

        The comparison is ONNX's own, with the tolerances of the case.
        """
        Runner.assert_similar_outputs(list(self.outputs.values()), answers, self.rtol, self.atol)


@cache
def collect() -> tuple[Case, ...]:
    """Every case of the operators in NUMBERS, but for the "expanded" ones, which repeat them without the operator.

    Raises RuntimeError when onnx ships fewer than expected: what is not compared must not pass.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of the overflows that onnx's cases are about
        for op in NUMBERS:
            import_module(f"{node.__name__}.{op.lower()}")  # each import fills the list; all modules take 6 s
    cases = tuple(_case(test) for test in node._NodeTestCases if "_expanded" not in test.name)
    cases = tuple(case for case in cases if case.op in NUMBERS)
    for op, number in NUMBERS.items():
        found = sum(case.op == op for case in cases)
        if found < number:
            raise RuntimeError(f"onnx {onnx.__version__} ships {found} node tests of {op}; {number} are expected")
    return cases


def _case(test: Any) -> Case:
    (operator,) = test.model.graph.node
    ((inputs, outputs),) = test.data_sets
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in operator.attribute}
    return Case(
        name=test.name,
        op=operator.op_type,
        opset=test.model.opset_import[0].version,
        attributes={name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()},
        inputs=dict(zip(filter(None, operator.input), inputs, strict=True)),
        outputs=dict(zip(filter(None, operator.output), outputs, strict=True)),
        model=test.model,
        rtol=test.rtol,
        atol=test.atol,
    )
