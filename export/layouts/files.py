"""Files of a package in another folder: links where nothing changes, and small graphs beside large weights."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from isoformer.export.errors import ExportError
from isoformer.runtime.onnx_file import external_files
from isoformer.runtime.package import WEIGHTS, Package

Edit = Callable[[ir.Model], None]
# What a package carries of its checkpoint that other programs read.
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the two places do not share a file system that has them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def carry(package: Package, folder: Path, names: tuple[str, ...] = TEXT_FILES) -> None:
    """Those of the files that the package has."""
    for name in names:
        if (package.path / name).is_file():
            link(package.path / name, folder / name)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ExportError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} cannot be read as JSON: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ExportError(f"{path} holds {type(found).__name__}, not a JSON object")
    return found


def place(package: Package, name: str, target: Path, edit: Edit | None = None) -> bool:
    """The package's graph `name`, a path in it, at `target`; whether it has weights outside its file.

    They are linked beside it as `<target>_data`, which is what ONNX Runtime, transformers.js and onnxruntime-genai
    look for, and the graph names that file. edit: changes the graph.
    """
    source = package.path / name
    locations = sorted(external_files(source))
    if len(locations) > 1:
        raise ExportError(f"{source} has weights in several files; a layout takes one")
    data = f"{target.name}_data"
    target.parent.mkdir(parents=True, exist_ok=True)
    if edit is None and set(locations) <= {data}:
        link(source, target)
    else:
        model = ir.load(source)
        for value in _external(model):
            value.const_value = _moved(value.const_value, data)  # pyright: ignore[reportArgumentType]
        if edit is not None:
            edit(model)
        ir.save(model, target)
    for location in locations:
        link(_weights(package, source, location), target.with_name(data))
    return bool(locations)


def _external(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (value for value in graph.initializers.values() if isinstance(value.const_value, ir.ExternalTensor))


def _moved(tensor: ir.ExternalTensor, location: str) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name or ""
    )


def _weights(package: Package, graph: Path, location: str) -> Path:
    """The file: beside the graph, or the canonical graph's, which variants in float32 share."""
    own = graph.parent / location
    return package.path / WEIGHTS if location == WEIGHTS and not own.is_file() else own
