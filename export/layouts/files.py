"""Files of a package in another folder: links where nothing changes, and small graphs beside large weights."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir

from isoformer.export.errors import ExportError
from isoformer.runtime.onnx_file import external_files
from isoformer.runtime.package import Package, weights_folder

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
    """A hard link, or a copy where the two places do not share a file system that has them.

    Raises FileExistsError for a target that is there, which may be a link into a package: a copy would write to that.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def carry(package: Package, folder: Path, names: tuple[str, ...] = TEXT_FILES) -> None:
    """Those of the files that the package has."""
    for name in names:
        if package.has(name):
            link(package.file(name), folder / name)


def place(package: Package, name: str, target: Path, edit: Edit | None = None) -> bool:
    """The package's graph `name`, a path in it, at `target`; whether it has weights outside its file.

    They are linked beside it as `<target>_data`, which is what ONNX Runtime, transformers.js and onnxruntime-genai
    look for, and the graph names that file. edit: changes the graph.
    """
    source = package.file(name)
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
        link(package.file((weights_folder(name, package.files) / location).as_posix()), target.with_name(data))
    return bool(locations)


def _external(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (value for value in graph.initializers.values() if isinstance(value.const_value, ir.ExternalTensor))


def _moved(tensor: ir.ExternalTensor, location: str) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name or ""
    )
