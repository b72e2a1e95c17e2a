"""cuda-float16: the graph in float16 for ONNX Runtime's CUDA provider, behind the gate of its task.

The machine that exports need not have a GPU. The graph is measured on the CPU provider, which keeps float32 between
neighbouring operators that it has no float16 for, so its error is the least that float16 can cost. The bounds come
from PyTorch in float16, which rounds after every operator as a GPU does, and its answers must pass the gate as well.
The manifest says where that was (`measured_on`); `isoformer verify --provider cuda` holds a GPU to it.
"""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from isoformer.export import additive_mask, encoder_variants, half
from isoformer.export.encoder_variants import compared, gate, sentences
from isoformer.export.errors import ExportError
from isoformer.export.evidence import Evidence, Progress, torch_runner
from isoformer.export.tolerances import of_torch
from isoformer.export.variants import Made, file_of, keep
from isoformer.models.signature import Signature
from isoformer.runtime.package import MODEL, VARIANTS, WEIGHTS, Package
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.session import Session

PROVIDER, PRECISION = "cuda", "float16"
NAME = f"{PROVIDER}-{PRECISION}"
ON_CPU = "cpu"  # what the variant is measured on


def refuse(task: dict[str, Any] | None, *, decodes: bool) -> None:
    """Raises ExportError unless the quality of the model can be measured."""
    if not decodes:
        encoder_variants.refuse(task, PRECISION)


def make_encoder(
    folder: Path,
    model: nn.Module,
    signature: Signature,
    task: dict[str, Any],
    text: str | None,
    evidence: Evidence,
    made: Made,
    progress: Progress,
) -> None:
    """Writes the graph below variants/ and adds it to `made`, and its comparisons to the evidence.

    text: sentences of the gate, or the text that comes with isoformer. Raises ExportError when the gate is missed, and
    for a graph that is not made for float16 or float16 not for it.
    """
    plain = RuntimeSignature.read(signature.to_dict())
    texts = sentences(folder, plain, text, PRECISION)
    progress(NAME, 0, 3)
    graph = _in_half(ir.load(folder / f"{MODEL}.onnx"))
    entry = _described("none")
    ir.save(graph, file_of(folder, entry), external_data=WEIGHTS)
    low, exact = _on_cpu(folder, plain, entry), Session(Package(folder, {}, plain)).run
    progress(NAME, 1, 3)
    rounded = torch_runner(model, signature, torch.float16)
    entry["gate"] = gate(task, plain, exact, low.run, texts, PRECISION)
    in_torch = gate(task, plain, exact, rounded, texts, PRECISION)
    entry["gate"]["torch_float16"] = {key: value for key, value in in_torch.items() if isinstance(value, float)}
    progress(NAME, 2, 3)
    entry["tolerances"] = of_torch(model, signature, evidence, torch.float16)
    evidence.comparisons += compared(f"{NAME} on onnxruntime cpu", low, [], evidence, entry["tolerances"])
    keep(made, folder, NAME, entry, [])
    progress(NAME, 3, 3)


def _in_half(graph: ir.Model) -> ir.Model:
    """The canonical graph in float16, its weights in memory."""
    ir.external_data.load_to_model(graph)
    if not half.apply(graph):
        raise ExportError(f"there is no product in this graph that {PRECISION} is for")
    additive_mask.apply(graph)
    return graph


def _described(cache: str) -> dict[str, Any]:
    """What the manifest says of the variant before it is measured."""
    path = f"{VARIANTS}/{NAME}/{MODEL}.onnx"
    return {"path": path, "provider": PROVIDER, "precision": PRECISION, "cache": cache, "measured_on": ON_CPU}


def _on_cpu(folder: Path, signature: RuntimeSignature, entry: dict[str, Any]) -> Session:
    """The variant's graph as it is measured here."""
    return Session(Package(folder, {"variants": {NAME: entry | {"provider": ON_CPU}}}, signature), variant=NAME)
