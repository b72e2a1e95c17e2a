"""How far a graph of a lower precision may be off, output by output.

tolerances    twice what it is off where it is exported, by the provider that it is for
of_torch      a few times what PyTorch is off in that precision, of a graph for a provider that is not there
"""

from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import nn

from isoformer.export.errors import ExportError
from isoformer.export.evidence import Evidence, torch_runner
from isoformer.models.signature import Signature as ModelSignature
from isoformer.runtime import padding
from isoformer.runtime.cases import Arrays
from isoformer.runtime.package import Signature
from isoformer.runtime.parity import FACTOR, comparable, largest_error, sample_indices
from isoformer.runtime.session import Session


def tolerances(session: Session, evidence: Evidence, zero: Collection[str] = ()) -> dict[str, dict[str, float]]:
    """Of each output the largest error over the grid, kept in samples, and the golden vectors; and twice that.

    zero: outputs that are 0 at padding.
    """
    signature = session.signature
    worst = {spec.name: 0.0 for spec in signature.outputs}
    kept = ((inputs, expected) for _, inputs, expected in grid_cases(signature, evidence))
    for inputs, expected in (*kept, *evidence.golden.values()):
        reference = padding.without(signature, zero, inputs, expected)
        for name, value in session.run(inputs).items():
            whole = value.shape == reference[name].shape
            found = value if whole else value.reshape(-1)[sample_indices(value.size)]
            worst[name] = max(worst[name], largest_error(found, reference[name]))
    if wrong := [name for name, error in worst.items() if not np.isfinite(error)]:
        raise ExportError(
            f"{session.variant} makes {', '.join(wrong)} something that is not a number; "
            "export it without this precision"
        )
    return {name: {"error": error, "absolute": 2 * error} for name, error in worst.items()}


def of_torch(
    model: nn.Module, signature: ModelSignature, evidence: Evidence, dtype: torch.dtype
) -> dict[str, dict[str, float]]:
    """Of each output, FACTOR times PyTorch's own largest error in `dtype` on the golden vectors.

    Where that is no number, as a vector without a token is, normalised in float16, it says nothing.
    """
    plain, run = Signature.read(signature.to_dict()), torch_runner(model, signature, dtype)
    errors = {spec.name: 0.0 for spec in plain.outputs}
    for inputs, outputs in evidence.golden.values():
        expected, found = comparable(plain, outputs), comparable(plain, run(inputs))
        for name, value in expected.items():
            finite = np.isfinite(found[name])
            errors[name] = max(errors[name], largest_error(found[name][finite], value[finite]))
    label = f"torch_{str(dtype).removeprefix('torch.')}_max_error"
    return {name: {"absolute": FACTOR * error, label: error, "factor": FACTOR} for name, error in errors.items()}


def grid_cases(signature: Signature, evidence: Evidence) -> Iterator[tuple[str, Arrays, Arrays]]:
    """Each case of the grid: its name, inputs, and the kept values of the reference."""
    for case in evidence.grid:
        inputs = {spec.name: evidence.grid_arrays[f"{case}/{spec.name}"] for spec in signature.inputs}
        yield (
            case,
            {spec.name: inputs[spec.name].astype(spec.dtype) for spec in signature.inputs},
            {spec.name: evidence.grid_arrays[f"{case}/{spec.name}"] for spec in signature.outputs},
        )
