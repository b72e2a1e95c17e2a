"""export(): the whole way from a module to a package that has been verified."""

import shutil
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import nn

from isoformer.export import (
    checks,
    cuda,
    encoded_variants,
    encoder_variants,
    evidence,
    openvino,
    package,
    reference,
    variants,
    weights,
)
from isoformer.export.errors import ExportError
from isoformer.export.evidence import Progress
from isoformer.export.graph import to_onnx
from isoformer.export.package import Part
from isoformer.export.variants import PRECISIONS
from isoformer.models import registry
from isoformer.models.checkpoints import TextFile
from isoformer.models.signature import Signature
from isoformer.runtime.package import PAST, Package, load
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.parity import Report
from isoformer.runtime.session import Session

# A protocol-buffer message holds 2 GiB at most; the weights of a larger graph go into a file beside it.
EXTERNAL_DATA_BYTES = 2**31 - 2**26


def export(
    model: nn.Module,
    signature: Signature | dict[str, Signature],
    path: str | Path,
    *,
    task: dict[str, Any] | None = None,
    opset: int = 23,
    files: Iterable[Path | TextFile] = (),
    provenance: dict[str, Any] | None = None,
    force: bool = False,
    precision: str = "float32",
    text: str | None = None,
    sound: Path | None = None,
    providers: Collection[str] = (),
    reproducible: bool = False,
    cache: str = variants.CACHES[0],
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Package:
    """Writes `model` to a package folder at `path` and returns it, verified against the model in float64.

    model: any module whose forward takes the signature's inputs by name and returns its outputs, as
    a tensor, a tuple in order, or a dict by name. With a dict of signatures the package has a graph for each, by
    these names, and `model.graph(name)` is its module. task: JSON data for the runtime, with a "name".
    files: configuration and tokenizer files to carry along. provenance: JSON data for the manifest.
    force: replace a package that stands at `path`. precision: what it runs in unless asked otherwise, as a variant
    beside the canonical graph: float32, int8 or int4 of a decoder, float32 or int8 of an encoder–decoder. text, or of
    transcribe the file sound: what that variant's quality is measured on, see `variants` and `encoded_variants`.
    reproducible: a decoder's int8 gives the same bits natively and in WebAssembly, and is slower, see `reproducible`.
    cache: what a decoder's int8 or int4 keeps keys and values in, float32 or int8, see `int8_cache`.
    providers: those that a graph of their own is made for besides: "openvino" of an encoder, see `openvino`, and
    "cuda", float16, see `cuda`; text is then for its quality too.
    progress: called with a stage, steps done, steps in all.

    The package appears at `path` complete or not at all. Raises ExportError when a weight is NaN, an axis is not
    open, an operator is not standard, a weight is repeated or an answer differs.
    """
    parts = registry.graphs(model, signature)
    _refuse_reproducible(parts, precision, reproducible=reproducible)
    _refuse_precision(parts, precision, task, sound)
    _refuse_cache(parts, precision, cache, reproducible=reproducible)
    _refuse_providers(parts, providers, task)
    _refuse_nan(model)
    with package.staged(Path(path), force=force) as folder:
        training = model.training
        model.eval()
        for file in files:
            if isinstance(file, TextFile):
                (folder / file.name).write_text(file.content, encoding="utf-8")
            else:
                shutil.copyfile(file, folder / file.name)
        decodes = any(edge.windows for _, edge in parts.values())
        low = precision != "float32"
        measured = low or cuda.PROVIDER in providers
        windows = variants.windows(folder, parts[registry.MODEL][1], text) if measured and decodes else []
        wanted = variants.Wanted(precision, windows, reproducible, cache)
        try:
            graphs = _graphs(parts, opset, progress)
            # The variants of one graph read the same file of weights.
            alone = list(parts) == [registry.MODEL] and not decodes
            encodes = alone and encoder_variants.padding_free_form(graphs[registry.MODEL]) is not None
            weights.save(graphs, folder, 0 if decodes or encodes or providers else external_data_bytes)
            written: dict[str, Part] = {}
            for name, (module, edge) in parts.items():
                stage = _in_graph(name, len(parts), progress)
                found = _evidence(folder, name, module, edge, stage)
                made = variants.Made()
                if edge.windows:
                    made = variants.make(folder, module, edge, opset, wanted, found, stage)
                    found.comparisons += made.comparisons
                    _refuse_other_answers(found)
                elif alone and (encodes or low):
                    made = encoder_variants.make(folder, module, edge, opset, task, precision, text, found, stage)
                    found.comparisons += made.comparisons
                if openvino.PROVIDER in providers:
                    openvino.make(folder, module, edge, found, made, stage)
                if cuda.PROVIDER in providers and edge.windows:
                    cuda.make_decoder(folder, module, edge, windows[1:], made, stage)
                elif cuda.PROVIDER in providers:
                    cuda.make_encoder(folder, module, edge, task or {}, text, found, made, stage)
                if providers:
                    _refuse_other_answers(found)
                written[name] = Part(edge, graphs[name], found, made)
            if low and not decodes and not alone:
                for name, made in encoded_variants.make(folder, written, task or {}, sound or text, progress).items():
                    written[name] = replace(written[name], made=made)
        finally:
            model.train(training)
        name = Path(path).name
        package.write(folder, written, task, opset, provenance or {}, precision, name=name)
    return load(path)


def _refuse_nan(model: nn.Module) -> None:
    """Raises ExportError, with the tensor's name, for a weight that is NaN or infinite."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            count = int((~weight.isfinite()).sum())
            raise ExportError(
                f"the weight {name} holds {count} values that are NaN or infinite; no answer would be right"
            )


def _refuse_precision(
    parts: dict[str, tuple[nn.Module, Signature]], precision: str, task: dict[str, Any] | None, sound: Path | None
) -> None:
    edges = {name: edge for name, (_, edge) in parts.items()}
    for edge in edges.values():
        wide = [spec.name for spec in (*edge.inputs, *edge.outputs) if spec.dtype == "float64"]
        if wide:
            raise ExportError(f"{', '.join(wide)} is float64, which is for references; export the model in float32")
    if precision == cuda.PRECISION:
        raise ExportError(
            f"{precision} is for GPUs: --provider {cuda.PROVIDER} without --precision writes a graph in it"
        )
    if precision not in PRECISIONS:
        raise ExportError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "float32":
        return
    if list(edges) == [registry.MODEL] and not edges[registry.MODEL].windows:
        encoder_variants.refuse(task, precision)
    elif not any(edge.windows for edge in edges.values()):
        encoded_variants.refuse(task, edges, precision, sound)
        return
    if sound is not None:
        raise ExportError(f"--sound {sound} is for transcribe; the quality of a decoder is measured on --text")


def _refuse_reproducible(parts: dict[str, tuple[nn.Module, Signature]], precision: str, *, reproducible: bool) -> None:
    alone = list(parts) == [registry.MODEL] and bool(parts[registry.MODEL][1].windows)
    if reproducible and not (alone and precision == variants.REPRODUCIBLE):
        raise ExportError(f"--reproducible is for decoders with --precision {variants.REPRODUCIBLE}")


def _refuse_cache(
    parts: dict[str, tuple[nn.Module, Signature]], precision: str, cache: str, *, reproducible: bool
) -> None:
    if cache not in variants.CACHES:
        raise ExportError(f"--cache {cache} is not one of {', '.join(variants.CACHES)}")
    if cache == variants.CACHES[0]:
        return
    if reproducible:
        raise ExportError(f"--reproducible keeps its cache in float32; leave out --cache {cache}")
    if precision == "float32" or list(parts) != [registry.MODEL] or not parts[registry.MODEL][1].windows:
        raise ExportError(f"--cache {cache} is for decoders with --precision int8 or int4")
    past = next((spec for spec in parts[registry.MODEL][1].inputs if spec.name.startswith(PAST)), None)
    if past is None or not isinstance(past.axes[-1], int) or past.axes[-1] % 8:
        raise ExportError(f"--cache {cache} is for heads of a multiple of 8; leave it out for this model")


def _refuse_providers(
    parts: dict[str, tuple[nn.Module, Signature]], providers: Collection[str], task: dict[str, Any] | None
) -> None:
    alone = list(parts) == [registry.MODEL]
    decodes = any(edge.windows for _, edge in parts.values())
    for provider in providers:
        if provider not in (openvino.PROVIDER, cuda.PROVIDER):
            raise ExportError(
                f"there are graphs of their own for {openvino.PROVIDER} and {cuda.PROVIDER}, not for {provider}"
            )
        if not alone:
            raise ExportError(f"a graph for {provider} is for models of one graph")
        if decodes and provider == openvino.PROVIDER:
            raise ExportError(f"a graph for {provider} is for encoders, which have no cache")
    if cuda.PROVIDER in providers:
        cuda.refuse(task, parts[registry.MODEL][1])


def _graphs(parts: dict[str, tuple[nn.Module, Signature]], opset: int, progress: Progress) -> dict[str, ir.Model]:
    """Every graph, checked."""
    graphs = {}
    for number, (name, (module, signature)) in enumerate(parts.items()):
        progress("graph", number, len(parts))
        graphs[name] = to_onnx(module, signature, opset)
        checks.check(graphs[name], signature, opset)
    progress("graph", len(parts), len(parts))
    return graphs


def _in_graph(name: str, count: int, progress: Progress) -> Progress:
    """The stages of one graph of several carry its name."""
    if count == 1:
        return progress
    return lambda stage, done, total: progress(f"{name}, {stage}", done, total)


def _evidence(
    folder: Path, name: str, module: nn.Module, signature: Signature, progress: Progress
) -> evidence.Evidence:
    """What is measured of the graph in the folder; ExportError when an answer differs."""
    plain = RuntimeSignature.read(signature.to_dict())
    runners = {
        "onnxruntime cpu": Session(Package(folder, {}, plain, name)).run,
        reference.NAME: reference.runner(folder / f"{name}.onnx"),
    }
    found = evidence.gather(module, signature, runners, progress)
    _refuse_other_answers(found)
    return found


def _refuse_other_answers(found: evidence.Evidence) -> None:
    if found.notes:  # what it cannot run, it says nothing about
        found.comparisons = [c for c in found.comparisons if c.runtime != reference.NAME]
    report = Report(found.comparisons)
    if not report.passed:
        first = report.failures[0].line() if report.failures else "nothing was compared"
        raise ExportError(f"the exported graph does not compute the same: {first} ({len(report.failures)} such)")
