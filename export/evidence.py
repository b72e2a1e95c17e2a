"""Measures an exported graph against the module it came from, and keeps what is needed to do so again without torch."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from isoformer.export import golden
from isoformer.export.errors import ExportError
from isoformer.export.graph import in_order
from isoformer.models.signature import Signature
from isoformer.runtime import cases
from isoformer.runtime.cases import Arrays, Case
from isoformer.runtime.errors import IsoformerError
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.parity import FACTOR, Comparison, bound, comparable, compare, largest_error, sample_indices
from isoformer.runtime.verify import is_small

Progress = Callable[[str, int, int], None]


@dataclass
class Evidence:
    """Comparisons with the float64 reference, and the arrays that `verify` replays.

    records: case → output → shape, error of PyTorch's own and bound, of the grid and of the golden vectors.
    golden: case → inputs, outputs of the reference.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    grid: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    grid_arrays: Arrays = field(default_factory=dict)
    golden: dict[str, tuple[Arrays, Arrays]] = field(default_factory=dict)
    tolerances: dict[str, dict[str, float]] = field(default_factory=dict)


def torch_runner(
    model: nn.Module, signature: Signature, dtype: torch.dtype, *, copied: bool = True
) -> Callable[[Arrays], Arrays]:
    """The module in `dtype` on the CPU, arrays in and arrays out; a copy of it unless it is to be watched."""
    model = (copy.deepcopy(model) if copied else model).to(dtype).eval()

    def run(inputs: Arrays) -> Arrays:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        try:
            with torch.inference_mode():
                outputs = in_order(model(**tensors), signature)
        except RuntimeError as error:
            raise ExportError(f"the model cannot run in {dtype}: {' '.join(str(error).split())[:300]}") from error
        # numpy has no bfloat16
        outputs = [out.float() if out.dtype == torch.bfloat16 else out for out in outputs]
        return {spec.name: out.numpy() for spec, out in zip(signature.outputs, outputs, strict=True)}

    return run


def gather(
    model: nn.Module, signature: Signature, runners: dict[str, Callable[[Arrays], Arrays]], progress: Progress
) -> Evidence:
    """Every case of the grid, and the golden ones beyond it, through the float64 reference, PyTorch float32 (float16,
    if inputs or outputs are) and each runner.

    A runner whose name begins with "onnx reference" is given the cases of up to SMALL tokens.
    """
    evidence = Evidence()
    plain = RuntimeSignature.read(signature.to_dict())
    half = any(spec.dtype == "float16" for spec in (*signature.inputs, *signature.outputs))
    own = torch.float16 if half else torch.float32  # what PyTorch's own rounding is measured in
    reference, rounded = (torch_runner(model, signature, dtype) for dtype in (torch.float64, own))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    grid = list(cases.grid(plain, *cases.extent(parameters)))
    kept = {case.name: case for case in golden.choose(plain, grid)}
    every = {case.name: ("grid", case) for case in grid}
    every |= {name: ("golden", case) for name, case in kept.items() if name not in every}
    for number, (check, case) in enumerate(every.values()):
        progress("parity", number, len(every))
        inputs = case.inputs(plain)
        answer = reference(inputs)
        expected, torch_outputs = comparable(plain, answer), comparable(plain, rounded(inputs))
        evidence.records[case.name] = {
            name: {
                "shape": list(value.shape),
                "torch_error": largest_error(torch_outputs[name], value),
                "bound": bound(largest_error(torch_outputs[name], value), value),
            }
            for name, value in expected.items()
        }
        for runtime, run in runners.items():
            if runtime.startswith("onnx reference") and not is_small(plain, inputs, parameters):
                continue
            try:
                outputs = comparable(plain, run(inputs))
            except IsoformerError as error:
                if not runtime.startswith("onnx reference"):
                    raise
                evidence.notes.append(str(error))  # numpy has limits of its own; the runtime is what counts
                continue
            for name, value in expected.items():
                evidence.comparisons.append(compare(runtime, check, case.name, name, outputs[name], value, 0.0))
        if check == "grid":
            _keep(evidence.grid_arrays, case, inputs, expected)
        if case.name in kept:
            evidence.golden[case.name] = (inputs, {name: _as_float32(value) for name, value in answer.items()})
    progress("parity", len(every), len(every))
    evidence.golden = {name: evidence.golden[name] for name in kept}
    _pool_bounds(evidence, [case for _, case in every.values()])
    evidence.grid = {case.name: evidence.records[case.name] for case in grid}
    evidence.comparisons = [replace(c, bound=evidence.records[c.case][c.output]["bound"]) for c in evidence.comparisons]
    evidence.tolerances = {
        spec.name: {
            "absolute": max(record[spec.name]["bound"] for record in evidence.records.values()),
            "torch_float32_max_error": max(record[spec.name]["torch_error"] for record in evidence.records.values()),
            "factor": FACTOR,
        }
        for spec in signature.outputs
    }
    return evidence


def _pool_bounds(evidence: Evidence, every: list[Case]) -> None:
    """Gives all batches and mask patterns of one length the largest of their bounds.

    The error of a single small case is largely chance; over all cases of one length it is steady.
    """
    lengths: dict[int, list[str]] = {}
    for case in every:
        lengths.setdefault(case.length, []).append(case.name)
    for names in lengths.values():
        for output in evidence.records[names[0]]:
            records = [evidence.records[name][output] for name in names]
            finite = [record for record in records if np.isfinite(record["bound"])]  # nothing passes the others
            for record in finite:
                record["bound"] = max(other["bound"] for other in finite)


def _keep(arrays: Arrays, case: Case, inputs: Arrays, expected: Arrays) -> None:
    """The inputs as small as they go and the reference at the sampled places; all of it where that is not more."""
    for name, value in inputs.items():
        small = value.astype(np.min_scalar_type(int(value.max()))) if value.dtype.kind == "i" else value
        arrays[f"{case.name}/{name}"] = small if (small == value).all() else value
    for name, value in expected.items():
        places = sample_indices(value.size)
        arrays[f"{case.name}/{name}"] = value if len(places) == value.size else value.reshape(-1)[places]


def _as_float32(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype == np.float64 else value
