"""Graphs to files. Weights that do not fit into a graph's own file, or that several graphs have, stand beside them."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir

from isoformer.export.passes.tie_weights import digest
from isoformer.runtime.package import WEIGHTS

# Smaller ones may stand in each graph's file: what they cost is less than a look into another file.
SHARED_BYTES = 2**16
PAGE = 4096  # of memory: weights that begin with one can be mapped


def save(graphs: dict[str, ir.Model], folder: Path, beside: int) -> None:
    """Writes each graph as <name>.onnx, and where needed their weights as model.onnx_data, each of them once.

    beside: the bytes of weights from which on a graph leaves all of them to that file.
    """
    if len(graphs) == 1:
        ((name, graph),) = graphs.items()
        ir.save(graph, folder / f"{name}.onnx", external_data=WEIGHTS if _bytes(graph) > beside else None)
        return
    alone = {name for name, graph in graphs.items() if _bytes(graph) > beside}
    keys = {name: {value: digest(_array(value)) for value in _large(graph)} for name, graph in graphs.items()}
    count = Counter(key for found in keys.values() for key in set(found.values()))
    out = {value: key for name in graphs for value, key in keys[name].items() if count[key] > 1 or name in alone}
    _write(out, folder)
    for name, graph in graphs.items():
        ir.save(graph, folder / f"{name}.onnx")


def _large(graph: ir.Model) -> list[ir.Value]:
    found = (value for value in graph.graph.initializers.values() if value.const_value is not None)
    return [value for value in found if value.const_value.nbytes >= SHARED_BYTES]  # pyright: ignore[reportOptionalMemberAccess]


def _array(value: ir.Value) -> np.ndarray:
    return np.ascontiguousarray(value.const_value.numpy())  # pyright: ignore[reportOptionalMemberAccess]


def _bytes(graph: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)


def _write(out: dict[ir.Value, bytes], folder: Path) -> None:
    """Writes the weights, those with the same key once, and makes their graphs refer to them."""
    if not out:
        return
    places: dict[bytes, tuple[int, int]] = {}
    with (folder / WEIGHTS).open("wb") as file:
        for value, key in out.items():
            if key not in places:
                file.write(b"\0" * (-file.tell() % PAGE))
                content = _array(value).tobytes()
                places[key] = file.tell(), len(content)
                file.write(content)
    for value, key in out.items():
        tensor, (offset, length) = value.const_value, places[key]
        if tensor is not None:
            value.const_value = ir.ExternalTensor(
                WEIGHTS,
                offset,
                length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=folder,
            )
