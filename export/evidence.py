"""Measures an exported graph against the module it came from, and keeps what is needed to do so again without torch."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from isoformer.export.errors import ExportError
from isoformer.export.graph import in_order
from isoformer.models.signature import Signature
from isoformer.runtime import cases
from isoformer.runtime.cases import Arrays, Case
from isoformer.runtime.errors import IsoformerError
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.parity import FACTOR, Comparison, bound, comparable, compare, largest_error, sample_indices
from isoformer.runtime.verify import is_small

GOLDEN_BYTES = 4 * 2**20
Progress = Callable[[str, int, int], None]


@dataclass
class Evidence:
    """Comparisons with the float64 reference, and the arrays that `verify` replays."""

    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
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
    """Every case of the grid through the float64 reference, PyTorch float32 (float16, if inputs or outputs are)
    and each runner.

    A runner whose name begins with "onnx reference" is given the cases of up to SMALL tokens.
    """
    evidence = Evidence()
    plain = RuntimeSignature.read(signature.to_dict())
    half = any(spec.dtype == "float16" for spec in (*signature.inputs, *signature.outputs))
    own = torch.float16 if half else torch.float32  # what PyTorch's own rounding is measured in
    reference, rounded = (torch_runner(model, signature, dtype) for dtype in (torch.float64, own))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    grid = list(cases.grid(plain, *cases.extent(parameters)))
    golden = _golden_cases(grid)
    room = GOLDEN_BYTES
    for number, case in enumerate(grid):
        progress("parity", number, len(grid))
        inputs = case.inputs(plain)
        answer = reference(inputs)
        expected, torch_outputs = comparable(plain, answer), comparable(plain, rounded(inputs))
        evidence.grid[case.name] = {
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
                evidence.comparisons.append(compare(runtime, "grid", case.name, name, outputs[name], value, 0.0))
        _keep(evidence.grid_arrays, case, inputs, expected)
        size = sum(array.size * 4 for array in expected.values())
        if case.name in golden and size <= room:
            room -= size
            evidence.golden[case.name] = (inputs, {name: _as_float32(value) for name, value in answer.items()})
    progress("parity", len(grid), len(grid))
    _pool_bounds(evidence, grid)
    evidence.comparisons = [replace(c, bound=evidence.grid[c.case][c.output]["bound"]) for c in evidence.comparisons]
    evidence.tolerances = {
        spec.name: {
            "absolute": max(record[spec.name]["bound"] for record in evidence.grid.values()),
            "torch_float32_max_error": max(record[spec.name]["torch_error"] for record in evidence.grid.values()),
            "factor": FACTOR,
        }
        for spec in signature.outputs
    }
    return evidence


def _pool_bounds(evidence: Evidence, grid: list[Case]) -> None:
    """Gives all batches and mask patterns of one length the largest of their bounds.

    The error of a single small case is largely chance; over all cases of one length it is steady.
    """
    lengths: dict[int, list[str]] = {}
    for case in grid:
        lengths.setdefault(case.length, []).append(case.name)
    for names in lengths.values():
        for output in evidence.grid[names[0]]:
            records = [evidence.grid[name][output] for name in names]
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


def _golden_cases(grid: list[Case]) -> list[str]:
    """For each mask pattern a small batch of short sequences, and the smallest and a middling case besides."""
    batch = max((case.batch for case in grid if case.batch <= 2), default=grid[0].batch)
    length = max((case.length for case in grid if case.length <= 7), default=grid[0].length)
    chosen = [case.name for case in grid if (case.batch, case.length) == (batch, length)]
    chosen += [case.name for case in grid if case.mask == "none" and (case.batch, case.length) == (1, 1)]
    chosen += [case.name for case in grid if case.mask in ("ragged", "holes") and (case.batch, case.length) == (5, 31)]
    return chosen
