"""A model repository of NVIDIA's Triton Inference Server: NAME/config.pbtxt and NAME/1/model.onnx for each graph.

Sources: the server's model_config.proto, and the README of its ONNX Runtime backend.
"""

import json
import re
from pathlib import Path

import onnx_ir as ir

from isoformer.export.errors import ExportError
from isoformer.export.layouts.choice import Choice
from isoformer.export.layouts.decoders import is_shared, path_of
from isoformer.export.layouts.files import TEXT_FILES, carry, place
from isoformer.runtime.package import MODEL, Package

MAX_BATCH_SIZE = 32
DELAY = 500  # microseconds that a request waits for others
TYPES = {
    ir.DataType.BOOL: "TYPE_BOOL",
    ir.DataType.UINT8: "TYPE_UINT8",
    ir.DataType.INT8: "TYPE_INT8",
    ir.DataType.INT32: "TYPE_INT32",
    ir.DataType.INT64: "TYPE_INT64",
    ir.DataType.FLOAT16: "TYPE_FP16",
    ir.DataType.BFLOAT16: "TYPE_BF16",
    ir.DataType.FLOAT: "TYPE_FP32",
    ir.DataType.DOUBLE: "TYPE_FP64",
}


def write(package: Package, folder: Path, choice: Choice) -> None:
    """Fills the folder, a model for each graph. Raises ExportError for a precision that Triton cannot run."""
    if choice.precision is not None:
        package.refuse_precision(choice.provider, choice.precision)
    models = _models(package)
    for name, part in package.graphs.items():
        model = models[name]
        file = path_of(part, _variant(part, choice))
        place(part, file, folder / model / "1" / "model.onnx")
        text = config(model, ir.load(folder / model / "1" / "model.onnx").graph, choice.provider)
        (folder / model / "config.pbtxt").write_text(text, encoding="utf-8")
        carry(package, folder / model, TEXT_FILES)


def _models(package: Package) -> dict[str, str]:
    """Graph → its model's name. Raises ExportError for two graphs of one."""
    own, found = package.manifest["name"], dict[str, str]()
    for graph in package.graphs:
        model = _name(own if graph == MODEL else f"{own}_{graph}")
        for other, name in found.items():
            if name.casefold() == model.casefold():  # so they are one on some file systems
                raise ExportError(
                    f"{package.path} has graphs {other!r} and {graph!r}, which Triton would both call {name}"
                )
        found[graph] = model
    return found


def _name(text: str) -> str:
    """A name for a folder and an address: what else a manifest may say is replaced."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text).lstrip(".") or MODEL


def _variant(part: Package, choice: Choice) -> str | None:
    """The fastest graph of those that Triton can run: it writes no cache in place."""
    precision = choice.precision if choice.precision in part.precisions(choice.provider) else None
    variant = part.fastest(choice.provider, precision)
    if not is_shared(part, variant):
        return variant
    if precision not in (None, part.manifest["precision"]):
        raise ExportError(f"{variant} writes its cache in place, which Triton does not do; leave out --precision")
    return None


def config(name: str, graph: ir.Graph, provider: str) -> str:
    """The text of config.pbtxt. Axes without a size are -1; the first is the batch where all tensors have it."""
    edge = [*graph.inputs, *graph.outputs]
    batched = len({_first(value) for value in edge}) == 1 and isinstance(_first(edge[0]), str)
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {MAX_BATCH_SIZE if batched else 0}"]
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        lines += [_tensor(kind, value, batched) for value in values]
    if batched:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {DELAY} }}")
    lines.append(f"instance_group [ {{ count: 1 kind: KIND_{'GPU' if provider == 'cuda' else 'CPU'} }} ]")
    if provider == "cpu":  # -1 is basic: without the fusions that Session switches off (docs/decisions/optimizers.md)
        lines.append("optimization { graph { level: -1 } }")
    else:  # as Session: a float32 graph computes in float32
        accelerator = 'name: "cuda" parameters { key: "use_tf32" value: "0" }'
        lines.append(
            f"optimization {{ execution_accelerators {{ gpu_execution_accelerator [ {{ {accelerator} }} ] }} }}"
        )
    return "\n".join(lines) + "\n"


def _first(value: ir.Value) -> str | int | None:
    if value.shape is None or not len(value.shape):
        return None
    axis = value.shape[0]
    return axis if isinstance(axis, int) else axis.value


def _tensor(kind: str, value: ir.Value, batched: bool) -> str:
    axes = [axis if isinstance(axis, int) else -1 for axis in value.shape or ()][batched:]
    # The server takes no tensor without axes: one of a single value is reshaped.
    reshape = "" if axes else " reshape { shape: [ ] }"
    dims = ", ".join(map(str, axes or [1]))
    data_type = TYPES.get(value.dtype) if value.dtype is not None else None
    if data_type is None:
        raise ExportError(f"{value.name} is {value.dtype}, which a configuration of Triton has no name for")
    name = json.dumps(value.name)
    return f"{kind} [ {{ name: {name} data_type: {data_type} dims: [ {dims} ]{reshape} }} ]"
