"""Graphs for OpenVINO's provider, each for the precisions that it computes in.

openvino-float32, openvino-bfloat16                  the canonical graph with attention taken apart
openvino-float32-padded, openvino-bfloat16-padded    on real tokens besides, see `packed`: for batches with padding

They read the canonical graph's file of weights. They are held to the float64 reference here, on the CPU provider,
within the canonical graph's bounds; `isoformer verify --provider openvino` does it again where the plugin is. bfloat16
may be off by a few times what PyTorch is in bfloat16.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from isoformer.export import attention_scale, packed, taken_apart
from isoformer.export.encoder_variants import compared, golden_records
from isoformer.export.errors import ExportError
from isoformer.export.evidence import Evidence, Progress
from isoformer.export.tolerances import of_torch
from isoformer.export.variants import Made
from isoformer.models.signature import Signature
from isoformer.runtime.onnx_file import operators
from isoformer.runtime.package import MODEL, PADDED, VARIANTS, Package
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.session import Session

PROVIDER = "openvino"


def make(
    folder: Path, model: nn.Module, signature: Signature, evidence: Evidence, made: Made, progress: Progress
) -> None:
    """Writes the graphs below variants/ and adds them to `made`, and their comparisons to the evidence.

    The second is for a model that has a padding-free form, whose golden vectors it shares. Raises ExportError for a
    model that is no encoder, and when an answer differs.
    """
    plain = RuntimeSignature.read(signature.to_dict())
    bounds = {"float32": evidence.tolerances, "bfloat16": of_torch(model, signature, evidence, torch.bfloat16)}
    for padded in (False, True) if "cpu-float32" in made.variants else (False,):
        _write(folder, bounds, plain, evidence, made, progress, padded=padded)


def _write(
    folder: Path,
    bounds: dict[str, dict[str, Any]],
    signature: RuntimeSignature,
    evidence: Evidence,
    made: Made,
    progress: Progress,
    *,
    padded: bool,
) -> None:
    """One graph, for whole rectangles or the packed one, and its variants, of a precision each.

    bounds: of each precision the tolerances of the outputs.
    """
    suffix = PADDED if padded else ""
    name = f"{PROVIDER}-float32{suffix}"
    graph = ir.load(folder / f"{MODEL}.onnx")
    attention_scale.into_keys(graph)
    zero = packed.apply(graph) if padded else []
    if not taken_apart.apply(graph):
        raise ExportError("a graph for OpenVINO is made from Attention, which this one does not have (--opset 23)")
    entry: dict[str, Any] = {"path": f"{VARIANTS}/{name}/{MODEL}.onnx", "provider": PROVIDER, "cache": "plain"}
    path = folder / entry["path"]
    path.parent.mkdir(parents=True)
    ir.save(graph, path)
    entry |= {"decoding": {}, "operators": dict(sorted(operators(path).items()))}
    if padded:
        entry |= {"padded": True, "zero_at_padding": zero}
    on_cpu = {"cpu": entry | {"provider": "cpu", "precision": "float32"}}
    session = Session(Package(folder, {"variants": on_cpu}, signature), variant="cpu")
    _compare(name, session, zero, evidence, progress)
    for precision, tolerances in bounds.items():
        found = entry | {"precision": precision, "tolerances": tolerances}
        if zero:
            found |= golden_records(zero, evidence, {name: one["absolute"] for name, one in tolerances.items()})
        made.variants[f"{PROVIDER}-{precision}{suffix}"] = found


def _compare(name: str, session: Session, zero: Sequence[str], evidence: Evidence, progress: Progress) -> None:
    """Adds the grid's comparisons to the evidence."""
    for number, comparison in enumerate(compared(f"{name} on onnxruntime cpu", session, zero, evidence)):
        progress(name, min(number, len(evidence.grid) - 1), len(evidence.grid))
        evidence.comparisons.append(comparison)
    progress(name, len(evidence.grid), len(evidence.grid))
