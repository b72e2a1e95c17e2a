"""Just enough of ONNX's file format to read tensors, operators and external files without onnx.

An ONNX file is a protocol-buffer message: a run of (field number, wire type, value). The field
numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

import mmap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoformer.runtime.errors import PackageError

# TensorProto.data_type → numpy
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}

# The messages in which nodes and tensors stand: kind → {field number: kind of the message in it}
CHILDREN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
    "external": {},
}
MAX_DEPTH = 64
MAX_AXES = 32
MAX_NODES = 200_000  # of a file; a decoder of 30 layers has 2,000
MAX_FIELDS = 3_000_000  # of a file: what there is to read of nodes, attributes and tensors, without their data


def read_tensor(path: Path) -> np.ndarray:
    """The array in a TensorProto file, such as input_0.pb of a test data set.

    Raises PackageError when the file is not a tensor with raw data of a known type.
    """
    dims: list[int] = []
    data_type, raw = 0, memoryview(b"")
    for number, value in _fields(memoryview(path.read_bytes()), path):
        if number == 1:
            dims += [value] if isinstance(value, int) else _packed(value[: 10 * MAX_AXES + 1], path)
            if len(dims) > MAX_AXES:
                raise PackageError(f"{path} holds a tensor of more than {MAX_AXES} axes")
        elif number == 2 and isinstance(value, int):
            data_type = value
        elif number == 9 and isinstance(value, memoryview):
            raw = value
    if data_type not in DTYPES:
        raise PackageError(f"{path} holds a tensor of ONNX type {data_type}, which is not supported")
    dtype = np.dtype(DTYPES[data_type])
    if any(d < 0 for d in dims) or int(np.prod(dims, dtype=object)) * dtype.itemsize != len(raw):
        raise PackageError(f"{path} holds {len(raw)} bytes, which is not a {dtype} tensor of shape {tuple(dims)}")
    try:
        return np.frombuffer(raw, dtype).reshape(dims)
    except ValueError as error:  # more axes than numpy has, sizes beyond memory beside a zero
        raise PackageError(f"{path} has the shape {tuple(dims[:8])}…: {error}") from None


def external_files(path: Path) -> set[str]:
    """The locations of all external data that the model refers to, as written in it."""
    found = set()
    for kind, message in _walk(path):
        if kind == "external":
            # A field of another wire type is unknown to protobuf, so the text before it holds.
            entry = {number: value for number, value in _fields(message, path) if isinstance(value, memoryview)}
            if _text(entry.get(1)) == "location":
                found.add(_text(entry.get(2)))
    return found


def operators(path: Path) -> Counter[str]:
    """How often each operator stands in the model, as `domain::Op` outside the standard domain."""
    counts: Counter[str] = Counter()
    for kind, message in _walk(path):
        if kind == "node":
            node = {number: value for number, value in _fields(message, path) if number in (4, 7)}
            domain = _text(node.get(7))
            counts[f"{domain}::{_text(node.get(4))}" if domain not in ("", "ai.onnx") else _text(node.get(4))] += 1
    return counts


@dataclass(frozen=True)
class Node:
    """A node of the graph itself, not of a graph inside it: its name ("" for none), operator, inputs and outputs."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def nodes(path: Path) -> list[Node]:
    """The nodes of the model's graph, in the order in which they stand, which is one in which they can run."""
    found = []
    with path.open("rb") as file:
        whole = memoryview(file.read())
    for number, graph in _fields(whole, path):
        if number != 7 or not isinstance(graph, memoryview):
            continue
        for kind, message in _fields(graph, path):
            if kind == 1 and isinstance(message, memoryview):
                parts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
                for field, value in _fields(message, path):
                    if field in parts:
                        parts[field].append(_text(value))
                inputs, outputs, name, operator = (parts[field] for field in (1, 2, 3, 4))
                found.append(
                    Node(
                        "".join(name[-1:]),
                        "".join(operator[-1:]),
                        tuple(filter(None, inputs)),
                        tuple(filter(None, outputs)),
                    )
                )
    return found


def with_outputs(path: Path, names: Iterable[str]) -> bytes:
    """The model with these values among its outputs, without types, which a runtime infers.

    A message that is repeated is merged (https://protobuf.dev/programming-guides/encoding/#last-one-wins), so what
    is to be added to the graph can be written behind the model.
    """
    content = path.read_bytes()
    there = set()
    for number, graph in _fields(memoryview(content), path):
        if number == 7 and isinstance(graph, memoryview):
            for kind, value in _fields(graph, path):
                if kind == 12 and isinstance(value, memoryview):
                    there.add(_text(dict(_fields(value, path)).get(1)))
    infos = b"".join(_delimited(12, _delimited(1, name.encode())) for name in dict.fromkeys(names) if name not in there)
    return content + _delimited(7, infos)


def _delimited(number: int, content: bytes) -> bytes:
    """A field of bytes."""
    size, length = bytearray(), len(content)
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2]) + bytes(size) + bytes([length]) + content


def _walk(path: Path) -> Iterator[tuple[str, memoryview]]:
    """Every message of the kinds above in the model file, parents first."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            raise PackageError(f"{path} is empty")
        # Freed with the last view into it: closing it here would pull it from under those.
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    stack = [("model", whole, 0)]
    read, seen = 0, 0
    while stack:
        kind, message, depth = stack.pop()
        yield kind, message
        seen += kind == "node"
        if seen > MAX_NODES:
            raise PackageError(f"{path} has more than {MAX_NODES:,} nodes")
        for number, value in _fields(message, path):
            read += 1
            if read > MAX_FIELDS:
                raise PackageError(f"{path} has more than {MAX_FIELDS:,} fields")
            child = CHILDREN[kind].get(number)
            if child and isinstance(value, memoryview):
                if depth == MAX_DEPTH:
                    raise PackageError(f"{path} nests graphs more than {MAX_DEPTH} deep")
                stack.append((child, value, depth + 1))


def _fields(message: memoryview, path: Path) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of one message: an int for a varint, else the bytes."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at, path)
        wire = key & 7
        if not 8 <= key < 1 << 32:  # protobuf reads 32 bits of it, and so another field than is written here
            raise PackageError(f"{path} is not an ONNX file (there is no field {key >> 3})")
        if wire == 0:
            value, at = _varint(message, at, path)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(message, at, path)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise PackageError(f"{path} is not an ONNX file (wire type {wire})")
        if size < 0 or at + size > end:
            raise PackageError(f"{path} is cut short")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int, path: Path) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise PackageError(f"{path} is cut short")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return (value if value < 1 << 63 else value - (1 << 64)), at
    raise PackageError(f"{path} is not an ONNX file (a number of more than 10 bytes)")


def _packed(values: memoryview, path: Path) -> list[int]:
    numbers, at = [], 0
    while at < len(values):
        number, at = _varint(values, at, path)
        numbers.append(number)
    return numbers


def _text(value: int | memoryview | None) -> str:
    return bytes(value).decode("utf-8", "replace") if isinstance(value, memoryview) else ""
