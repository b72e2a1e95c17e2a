"""cuda-float16: the graph in float16 for ONNX Runtime's CUDA provider, behind the gate of its task.

encoders    attention under a mask that is added, see `half` and `additive_mask`
decoders    GroupQueryAttention on one cache, which is float16 too, see `shared_cache`

The machine that exports need not have a GPU. The graph is measured on the CPU provider, which keeps float32 between
neighbouring operators that it has no float16 for, so its error is the least that float16 can cost. The bounds come
from PyTorch in float16, which rounds after every operator as a GPU does, and its answers must pass the gate as well.
The manifest says where that was (`measured_on`); `isoformer verify --provider cuda` holds a GPU to it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from isoformer.export import additive_mask, encoder_variants, golden, half, residual_norm, shared_cache, variants
from isoformer.export.edit import loaded
from isoformer.export.encoder_variants import compared, gate_sentences
from isoformer.export.errors import ExportError
from isoformer.export.evidence import Evidence, Progress, torch_runner
from isoformer.export.tolerances import of_torch
from isoformer.export.variants import GATES, Made, Run, described, file_of, keep
from isoformer.models.signature import Signature
from isoformer.runtime import decoding
from isoformer.runtime.binding import Decoder
from isoformer.runtime.errors import IsoformerError
from isoformer.runtime.package import MODEL, PAST, WEIGHTS, Package
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.parity import FACTOR, largest_error, sample_indices
from isoformer.runtime.session import Session

PROVIDER, PRECISION = "cuda", "float16"
NAME = f"{PROVIDER}-{PRECISION}"
_NONE = f"there is no graph in {PRECISION} for {PROVIDER}"
ON_CPU = "cpu"  # what the variant is measured on
HEAD_MULTIPLE = 8  # of GroupQueryAttention


def refuse(task: dict[str, Any] | None, signature: Signature) -> None:
    """Raises ExportError, before the long work, for a task without a measure and heads that its cache does not take."""
    if not signature.windows:
        encoder_variants.refuse(task, PRECISION)
        return
    size = next(spec.axes[3] for spec in signature.inputs if spec.name.startswith(PAST))
    if not isinstance(size, int) or size % HEAD_MULTIPLE:
        raise ExportError(
            f"a cache that {PROVIDER} writes in place has heads of a multiple of {HEAD_MULTIPLE}, not of {size}"
        )


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
    texts = gate_sentences(folder, plain, text, PRECISION)
    progress(NAME, 0, 3)
    graph, entry = _in_half(loaded(folder / f"{MODEL}.onnx")), _described("none")
    additive_mask.apply(graph)
    ir.save(graph, file_of(folder, entry), external_data=WEIGHTS)
    low, exact = _on_cpu(folder, plain, entry), Session(Package(folder, {}, plain)).run
    progress(NAME, 1, 3)
    rounded = torch_runner(model, signature, torch.float16)
    gates = (encoder_variants.gate(task, plain, exact, run, texts, PRECISION) for run in (low.run, rounded))
    entry["gate"] = _both(*gates)
    progress(NAME, 2, 3)
    entry["tolerances"] = of_torch(model, signature, evidence, torch.float16)
    evidence.comparisons += compared(f"{NAME} on onnxruntime cpu", low, [], evidence, entry["tolerances"])
    keep(made, folder, NAME, entry, [])
    progress(NAME, 3, 3)


def make_decoder(
    folder: Path,
    model: nn.Module,
    signature: Signature,
    windows: Sequence[Sequence[int]],
    made: Made,
    progress: Progress,
) -> None:
    """Writes the graph below variants/ and adds it to `made`, whose references it is held to step by step.

    windows: of the gate's text, see `variants.windows`. Raises ExportError when the gate or a bound is missed, and for
    attention that cannot write its cache in place.
    """
    plain = RuntimeSignature.read(signature.to_dict())
    progress(NAME, 0, 2)
    graph, entry = loaded(folder / f"{MODEL}.onnx"), _described("shared") | {"cache_dtype": PRECISION}
    if not made.arrays:
        raise ExportError(f"{_NONE}: a model of so few positions makes no steps that it could be held to")
    try:
        shared_cache.apply(graph, signature.windows, variants.max_positions(signature))
    except ExportError as error:
        raise ExportError(f"{_NONE}: {error}") from None
    residual_norm.apply(_in_half(graph))
    ir.save(graph, file_of(folder, entry), external_data=WEIGHTS)
    exact = "cpu-float32" if "cpu-float32" in made.variants else None
    reference = Decoder(Session(Package(folder, {"variants": made.variants}, plain), variant=exact))
    low, rounded = Decoder(_on_cpu(folder, plain, entry)), torch_runner(model, signature, torch.float16)
    try:
        low.start([[0]])  # the operator says only when it runs what it does not take
    except IsoformerError as error:
        raise ExportError(f"{_NONE}: {error}") from None
    progress(NAME, 1, 2)
    candidates = low, _Whole(signature, rounded)
    entry["gate"] = _both(*(variants.gate(reference, one, windows, GATES[PRECISION]) for one in candidates))
    progress(NAME, 2, 2)
    references = [(case, made.arrays[case.name]) for case in decoding.cases(low.limit)]
    error = max(_torch_error(signature, rounded, case, sampled, low.vocab_size or 1) for case, sampled in references)
    bounds = {case.name: {"torch_error": error, "bound": FACTOR * error} for case, _ in references}
    keep(made, folder, NAME, entry, list(variants.steps(low, references, bounds, progress, NAME)))
    runs = [torch_runner(model, signature, dtype) for dtype in (torch.float64, torch.float32)]
    variants.keep_golden(made, folder, NAME, low.session, runs, FACTOR * error)


class _Whole:
    """A decoder in PyTorch, by whole passes."""

    def __init__(self, signature: Signature, run: Run) -> None:
        self._signature, self._run = signature, run

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The logits (length, vocabulary) behind every token of each sequence."""
        rows = ((list(one), list(range(len(one)))) for one in sequences)
        return golden.logits_alone(self._signature, self._run, rows)


def _torch_error(signature: Signature, run: Run, case: decoding.Case, sampled: np.ndarray, vocabulary: int) -> float:
    """PyTorch's own largest error in float16 at the places of a case whose logits are compared."""
    rows = zip(case.sequences(vocabulary), case.asked(), strict=True)
    found = np.stack(golden.logits_alone(signature, run, rows))
    return largest_error(found.reshape(-1)[sample_indices(found.size)], sampled)


def _in_half(graph: ir.Model) -> ir.Model:
    if not half.apply(graph):
        raise ExportError(f"there is no product in this graph that {PRECISION} is for")
    return graph


def _both(here: dict[str, Any], in_torch: dict[str, Any]) -> dict[str, Any]:
    """The gate's record of the graph as it runs here, and the figures of PyTorch's float16."""
    return here | {"torch_float16": {key: value for key, value in in_torch.items() if isinstance(value, float)}}


def _described(cache: str) -> dict[str, Any]:
    """What the manifest says of the variant before it is measured."""
    return described(PRECISION, cache, provider=PROVIDER) | {"measured_on": ON_CPU}


def _on_cpu(folder: Path, signature: RuntimeSignature, entry: dict[str, Any]) -> Session:
    """The variant's graph as it is measured here."""
    return Session(Package(folder, {"variants": {NAME: entry | {"provider": ON_CPU}}}, signature), variant=NAME)
