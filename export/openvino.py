"""openvino-float32 and openvino-bfloat16: one graph for OpenVINO's provider, in the precisions that it computes in.

The graph is the canonical one with attention taken apart, and reads its file of weights. It is held to the float64
reference here, on the CPU provider, within the canonical graph's bounds; `isoformer verify --provider openvino` does it
again where the plugin is. bfloat16 may be off by a few times what PyTorch is in bfloat16.
"""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from isoformer.export import taken_apart
from isoformer.export.errors import ExportError
from isoformer.export.evidence import Evidence, Progress, torch_runner
from isoformer.export.variants import Made
from isoformer.models.signature import Signature
from isoformer.runtime.onnx_file import operators
from isoformer.runtime.package import MODEL, VARIANTS, Package
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.parity import FACTOR, comparable, compare, largest_error, sample_indices
from isoformer.runtime.session import Session

PROVIDER = "openvino"
NAME = f"{PROVIDER}-float32"


def make(
    folder: Path, model: nn.Module, signature: Signature, evidence: Evidence, made: Made, progress: Progress
) -> None:
    """Writes the graph below variants/ and adds it to `made`, and its comparisons to the evidence.

    Raises ExportError for a model that is no encoder, and when an answer differs.
    """
    graph = ir.load(folder / f"{MODEL}.onnx")
    if not taken_apart.apply(graph):
        raise ExportError("a graph for OpenVINO is made from Attention, which this one does not have (--opset 23)")
    entry: dict[str, Any] = {"path": f"{VARIANTS}/{NAME}/{MODEL}.onnx", "provider": PROVIDER, "cache": "plain"}
    path = folder / entry["path"]
    path.parent.mkdir(parents=True)
    ir.save(graph, path)
    entry |= {"decoding": {}, "operators": dict(sorted(operators(path).items()))}
    plain = RuntimeSignature.read(signature.to_dict())
    on_cpu = {"cpu": entry | {"provider": "cpu", "precision": "float32"}}
    _compare(Session(Package(folder, {"variants": on_cpu}, plain), variant="cpu"), plain, evidence, progress)
    for precision, tolerances in (
        ("float32", evidence.tolerances),
        ("bfloat16", _bfloat16(model, signature, plain, evidence)),
    ):
        made.variants[f"{PROVIDER}-{precision}"] = entry | {"precision": precision, "tolerances": tolerances}


def _compare(session: Session, signature: RuntimeSignature, evidence: Evidence, progress: Progress) -> None:
    """Adds the grid's comparisons to the evidence."""
    for number, (case, records) in enumerate(evidence.grid.items()):
        progress(NAME, number, len(evidence.grid))
        inputs = {
            spec.name: evidence.grid_arrays[f"{case}/{spec.name}"].astype(spec.dtype) for spec in signature.inputs
        }
        for name, value in comparable(signature, session.run(inputs)).items():
            reference = evidence.grid_arrays[f"{case}/{name}"]
            if reference.shape != value.shape:
                value = value.reshape(-1)[sample_indices(value.size)]
            runtime = f"{NAME} on onnxruntime cpu"
            evidence.comparisons.append(compare(runtime, "grid", case, name, value, reference, records[name]["bound"]))
    progress(NAME, len(evidence.grid), len(evidence.grid))


def _bfloat16(
    model: nn.Module, signature: Signature, plain: RuntimeSignature, evidence: Evidence
) -> dict[str, dict[str, float]]:
    """Of each output, FACTOR times PyTorch's own largest error in bfloat16 on the golden vectors."""
    run = torch_runner(model, signature, torch.bfloat16)
    errors = {spec.name: 0.0 for spec in plain.outputs}
    for inputs, outputs in evidence.golden.values():
        expected, found = comparable(plain, outputs), comparable(plain, run(inputs))
        for name, value in expected.items():
            errors[name] = max(errors[name], largest_error(found[name], value))
    return {
        name: {"absolute": FACTOR * error, "torch_bfloat16_max_error": error, "factor": FACTOR}
        for name, error in errors.items()
    }
