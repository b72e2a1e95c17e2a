"""Requests and answers of the Open Inference Protocol, version 2, with its binary tensors.

https://github.com/kserve/open-inference-protocol; the binary extension is Triton's
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from isoformer.runtime.errors import InputError
from isoformer.runtime.package import Signature, TensorSpec
from isoformer.runtime.serve.limits import Limits, too_large
from isoformer.runtime.session import check_inputs

LENGTH_HEADER = "Inference-Header-Content-Length"
DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
MAX_AXES = 8
MAX_ID = 256  # characters
BATCH_AXIS = "batch_size"


@dataclass(frozen=True)
class Request:
    """feeds: checked arrays for every input. outputs: asked for, by name, and whether in binary."""

    feeds: dict[str, np.ndarray]
    outputs: dict[str, bool]
    id: str | None = None


def metadata(name: str, signature: Signature) -> dict[str, Any]:
    """What a model is called, takes and gives."""
    return {
        "name": name,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor_metadata(spec) for spec in signature.inputs],
        "outputs": [_tensor_metadata(spec) for spec in signature.outputs],
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    shape = [axis if isinstance(axis, int) else -1 for axis in spec.axes]
    return {"name": spec.name, "datatype": NAMES[spec.dtype], "shape": shape}


def parse(body: bytes, header_length: str | None, signature: Signature, limits: Limits) -> Request:
    """The request in `body`, whose first `header_length` bytes are JSON (all of them, if None).

    Nothing is reserved for a shape before the data for it are there. Raises InputError for what is not a request
    for this model, and RefusedError (413) for one that is too large to be computed.
    """
    head, tail = _split(body, header_length)
    data = read_json(head)
    entries = data.get("inputs")
    if not isinstance(entries, list) or not entries:
        raise InputError("inputs is not a list of tensors")
    if len(entries) > len(signature.inputs):
        raise InputError(f"there are {len(entries)} inputs; this model takes {len(signature.inputs)} at most")
    specs = {spec.name: spec for spec in signature.inputs}
    arrays: dict[str, np.ndarray] = {}
    used = 0
    for entry in entries:
        name, array, binary = _tensor(entry, tail[used:])
        if name not in specs:
            raise InputError(f"there is no input {shown(name)}; there are {', '.join(specs)}")
        if name in arrays:
            raise InputError(f"the input {name} is given twice")
        arrays[name] = array
        used += binary
    if used != len(tail):
        raise InputError(f"the body has {len(tail)} bytes of binary data; the inputs state {used}")
    outputs = _outputs(data, [spec.name for spec in signature.outputs])
    _refuse_long(signature, arrays, limits)
    feeds = check_inputs(specs, signature.axes, arrays, signature.sums)
    return Request(feeds, outputs, _id(data))


def answer(request: Request, name: str, arrays: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """The body of an answer and its headers."""
    outputs, tail = [], b""
    for output, binary in request.outputs.items():
        array = arrays[output]
        entry: dict[str, Any] = {"name": output, "datatype": NAMES[str(array.dtype)], "shape": list(array.shape)}
        if binary:
            content = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            entry["parameters"] = {"binary_data_size": len(content)}
            tail += content
        else:
            entry["data"] = _finite(array)
        outputs.append(entry)
    data: dict[str, Any] = {"model_name": name, "model_version": "1", "outputs": outputs}
    if request.id is not None:
        data["id"] = request.id
    head = json.dumps(data, allow_nan=False).encode()
    if not any(request.outputs.values()):
        return head, {"Content-Type": "application/json"}
    return head + tail, {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(head))}


def _finite(array: np.ndarray) -> list[Any]:
    """The values, flat; JSON has no NaN and no infinity, so null stands for them."""
    flat = array.ravel()
    if array.dtype.kind == "f" and not np.isfinite(flat).all():
        return [value if math.isfinite(value) else None for value in flat.tolist()]
    return flat.tolist()


def _split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    if not header_length.isascii() or not header_length.isdigit() or len(header_length) > 12:
        raise InputError(f"{LENGTH_HEADER} is {header_length[:20]!r}, not a number of bytes")
    length = int(header_length)
    if length > len(body):
        raise InputError(f"{LENGTH_HEADER} is {length}; the body has {len(body)} bytes")
    return body[:length], memoryview(body)[length:]


def read_json(content: bytes) -> dict[str, Any]:
    """A JSON object. Raises InputError for anything else, NaN and nesting without end among it."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        data = json.loads(content.decode("utf-8"), parse_constant=refuse)
    except RecursionError:
        raise InputError("the body is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise InputError(f"the body is not JSON: {str(error)[:120]}") from None
    if not isinstance(data, dict):
        raise InputError("the body is not a JSON object")
    return data


def _id(data: dict[str, Any]) -> str | None:
    found = data.get("id")
    if found is not None and (not isinstance(found, str) or len(found) > MAX_ID or not found.isprintable()):
        raise InputError(f"id is not a text of at most {MAX_ID} characters")
    return found


def _tensor(entry: Any, tail: memoryview) -> tuple[str, np.ndarray, int]:
    """Name and array of one input, and how many bytes of `tail` it has taken."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise InputError("an input is not an object with a name")
    name = shown(entry["name"])
    dtype = DATATYPES.get(entry["datatype"]) if isinstance(entry.get("datatype"), str) else None
    if dtype is None:
        raise InputError(f"{name}: the datatype is not one of {', '.join(DATATYPES)}")
    shape = entry.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_AXES
        or not all(type(n) is int and 0 <= n < 2**31 for n in shape)
    ):
        raise InputError(f"{name}: the shape is not a list of at most {MAX_AXES} sizes")
    parameters = entry.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InputError(f"{name}: parameters is not an object")
    if "shared_memory_region" in parameters:
        raise InputError(f"{name}: there is no shared memory here; send the data")
    if "binary_data_size" not in parameters:
        return entry["name"], _from_json(name, entry.get("data"), dtype, shape), 0
    if "data" in entry:
        raise InputError(f"{name}: there is data beside binary_data_size; send one of them")
    return entry["name"], *_from_binary(name, parameters["binary_data_size"], dtype, shape, tail)


def _from_binary(name: str, size: Any, dtype: str, shape: list[int], tail: memoryview) -> tuple[np.ndarray, int]:
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    if type(size) is not int or size != wanted:
        raise InputError(f"{name}: binary_data_size is {shown(str(size))}; {dtype} {shape} has {wanted} bytes")
    if size > len(tail):
        raise InputError(f"{name}: binary_data_size is {size}; {len(tail)} bytes are left of the body")
    if dtype == "bool":  # other bytes than 0 and 1 are no booleans to numpy
        return (np.frombuffer(tail[:size], np.uint8) != 0).reshape(shape), size
    array = np.frombuffer(tail[:size], np.dtype(dtype).newbyteorder("<"))
    return array.astype(dtype, copy=False).reshape(shape), size


def _from_json(name: str, data: Any, dtype: str, shape: list[int]) -> np.ndarray:
    if not isinstance(data, list):
        raise InputError(f"{name}: there is neither data, a list, nor binary_data_size")
    try:
        array = np.array(data) if data else np.empty(0, dtype)
    except (ValueError, OverflowError, RecursionError):
        raise InputError(f"{name}: data is not a list of numbers, nor lists of equally many") from None
    kinds = {"b": "bi", "u": "iu", "i": "iu", "f": "iuf"}[np.dtype(dtype).kind]
    if array.size and array.dtype.kind not in kinds:
        raise InputError(f"{name}: data holds other values than {dtype}")
    if array.size != math.prod(shape) or (array.ndim > 1 and list(array.shape) != shape):
        raise InputError(f"{name}: data has {array.size} values; the shape is {shape}")
    _refuse_range(name, array, dtype)
    return array.astype(dtype).reshape(shape)


def _refuse_range(name: str, array: np.ndarray, dtype: str) -> None:
    """Raises InputError for numbers that the dtype does not hold."""
    if not array.size or (dtype == "bool" and array.dtype.kind == "b"):
        return
    if np.dtype(dtype).kind == "f":
        low, high = -float(np.finfo(dtype).max), float(np.finfo(dtype).max)
    else:
        low, high = (0, 1) if dtype == "bool" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    if not low <= array.min().item() <= array.max().item() <= high:
        raise InputError(f"{name}: data has values that {dtype} does not hold")


def _outputs(data: dict[str, Any], known: Sequence[str]) -> dict[str, bool]:
    """The outputs that are asked for, all if none is named, and whether in binary."""
    parameters = data.get("parameters") or {}
    entries = data.get("outputs") or []
    if not isinstance(parameters, dict):
        raise InputError("parameters is not an object")
    default = parameters.get("binary_data_output", False) is True
    if not isinstance(entries, list) or len(entries) > len(known):
        raise InputError(f"outputs is not a list of at most {len(known)} tensors")
    found: dict[str, bool] = {}
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in known or name in found:
            raise InputError(f"outputs are objects, each with one of the names {', '.join(known)}, once")
        own = entry.get("parameters") or {}
        if not isinstance(own, dict) or own.keys() & {"classification", "shared_memory_region"}:
            raise InputError(f"{name}: of the parameters of an output, this server has binary_data alone")
        found[name] = own["binary_data"] is True if "binary_data" in own else default
    return found or dict.fromkeys(known, default)


def _refuse_long(signature: Signature, arrays: Mapping[str, np.ndarray], limits: Limits) -> None:
    """Raises RefusedError for sequences that are long, or many: attention takes memory by length × length."""
    rows, length = size(signature, arrays)
    if length > limits.length:
        raise too_large(f"a sequence has {length} places; this server takes {limits.length} at most")
    if rows * length > limits.tokens:
        raise too_large(f"{rows} × {length} tokens are too many; this server takes {limits.tokens} in a request")


def size(signature: Signature, arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """(rows, the longest axis whose name is one of a length) of a request's arrays."""
    rows, length = 1, 1
    for spec in signature.inputs:
        if spec.name in arrays:
            for axis, count in zip(spec.axes, arrays[spec.name].shape, strict=False):
                if axis == BATCH_AXIS:
                    rows = max(rows, count)
                elif isinstance(axis, str) and axis.endswith("length"):
                    length = max(length, count)
    return rows, length


def shown(name: str) -> str:
    """What a client sent, as it may stand in an answer: short and on one line."""
    return "".join(c if c.isprintable() else "?" for c in name[:60])
