"""The cases in ONNX Runtime: as graphs exported from our PyTorch, and as the models that ONNX ships."""

from typing import cast

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from isoformer.export.graph import to_onnx
from isoformer.models.signature import Axis, Signature, TensorSpec
from tests.conformance.cases import Arrays, Case
from tests.conformance.pytorch import Node

# The axes that a graph leaves open, by input and rank; None is fixed to the size that the case has.
OPEN: dict[tuple[str, int], tuple[str | None, ...]] = {
    ("Q", 4): ("batch", None, "queries", None),
    ("Q", 3): ("batch", "queries", None),
    ("K", 4): ("batch", None, "keys", None),
    ("K", 3): ("batch", "keys", None),
    ("past_key", 4): ("batch", None, "past", None),
    ("attn_mask", 4): ("batch", None, "queries", "total"),
    ("attn_mask", 3): (None, "queries", "total"),
    ("attn_mask", 2): ("queries", "total"),
    ("attn_mask", 1): ("total",),
    ("nonpad_kv_seqlen", 1): ("batch",),
    ("input", 4): ("batch", None, "length", None),
    ("input", 3): ("batch", "length", None),
    ("cos_cache", 3): ("batch", "length", None),
    ("cos_cache", 2): ("positions", None),
    ("position_ids", 2): ("batch", "length"),
    ("past_cache", 4): ("batch", None, None, None),
    ("past_cache", 3): ("batch", None, None),
    ("write_indices", 1): ("batch",),
}
ALIKE = {"V": "K", "past_value": "past_key", "sin_cache": "cos_cache", "update": "past_cache"}


def run(case: Case) -> list[np.ndarray]:
    """What ONNX Runtime answers for our graph, exported with the opset of the case.

    Its CPU provider has no bfloat16: such a case is carried in float32 and its outputs are rounded.
    """
    wanted = signature(case)
    graph = to_onnx(Node(case), wanted, case.opset)
    for value, spec in zip(graph.graph.inputs, wanted.inputs, strict=True):
        found = tuple(size if isinstance(size, int) else size.value for size in value.shape or ())
        if found != spec.axes:
            raise AssertionError(f"{spec.name} was exported as {found}, not as {spec.axes}")
    answers = _answers(ir.to_proto(graph).SerializeToString(), _without_bfloat16(case.inputs))
    if case.bfloat16:
        return [answer.astype(ml_dtypes.bfloat16) for answer in answers]
    return answers


def run_alone(case: Case) -> list[np.ndarray]:
    """What ONNX Runtime answers for the case's own model."""
    return _answers(case.model.SerializeToString(), case.inputs)


def signature(case: Case) -> Signature:
    """Inputs and outputs of the case, with every axis open that the node leaves open."""
    arrays = _without_bfloat16(case.inputs)
    inputs = tuple(_spec(case, name, array) for name, array in arrays.items())
    # The graph finds the sizes of its outputs by itself: what stands here is what the case has.
    outputs = tuple(
        TensorSpec(name, str(array.dtype), array.shape) for name, array in _without_bfloat16(case.outputs).items()
    )
    axes = {}
    if "past_key" in arrays:
        axes["total"] = Axis(sum_of=("past", "keys"))
    elif "attn_mask" in arrays:
        axes["keys"] = Axis(min=arrays["attn_mask"].shape[-1])  # no shorter than a short mask
    named = {axis for spec in inputs for axis in spec.axes}
    return Signature(inputs, outputs, {name: axis for name, axis in axes.items() if name in named})


def _spec(case: Case, name: str, array: np.ndarray) -> TensorSpec:
    dtype = str(array.dtype)
    axes = tuple(
        _axis(case, open_axis, size) for open_axis, size in zip(_open(case, name, array), array.shape, strict=True)
    )
    high = int(array.max()) + 1 if array.dtype.kind == "i" else None
    return TensorSpec(name, dtype, axes, high=high)


def _open(case: Case, name: str, array: np.ndarray) -> tuple[str | None, ...]:
    if case.op == "RMSNormalization":  # the axes that the norm goes over are those of its weight
        kept = case.attributes.get("axis", -1) % case.inputs["X"].ndim if name == "X" else 0
        return tuple(f"axis_{i}" if i < kept else None for i in range(array.ndim))
    return OPEN[ALIKE.get(name, name), array.ndim]


def _axis(case: Case, name: str | None, size: int) -> str | int:
    """The name, or the size where the axis is fixed: 1 that is repeated, a mask that is shorter than the keys."""
    if name is None or (name in ("batch", "queries") and size == 1):
        return size
    if name == "total" and "past_key" not in case.inputs:
        return "keys" if size == case.inputs["K"].shape[-2] else size
    return name


def _without_bfloat16(arrays: Arrays) -> Arrays:
    return {name: a.astype(np.float32) if a.dtype.name == "bfloat16" else a for name, a in arrays.items()}


def _answers(model: bytes, inputs: Arrays) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and need not be printed as well
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return cast(list[np.ndarray], session.run(None, inputs))
