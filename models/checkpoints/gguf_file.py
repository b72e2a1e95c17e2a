"""Reads the GGUF container: typed metadata and tensors, each range checked against the file before it is touched.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoformer.models.checkpoints import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_AXES = 4
MAX_NAME = 256  # characters
# The value types of metadata, by their number: their code in `struct`, whose sizes and numpy's are the same.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file and how: `kind` is the number of its quantisation."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class GGUFFile:
    """The metadata of the file by key, and the places of its tensors by name.

    Raises CheckpointError for a file that is cut off or contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise self.error(str(error)) from None
        self._place = 0
        if self._take(4) != MAGIC:
            raise self.error("it does not begin with GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            big = int.from_bytes(version.to_bytes(4, "big"), "little") in VERSIONS
            raise self.error("it is big-endian" if big else f"version {version} is not one of {VERSIONS}")
        tensors, keys = self._count(32), self._count(13)  # the fewest bytes that one takes
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._name()
            if key in self.metadata:
                raise self.error(f"it has the key {key} twice")
            self.metadata[key] = self._value(self._number("I"))
        self.tensors = self._tensors(tensors)

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path} cannot be read as GGUF: {problem}")

    def read(self, name: str) -> Tensor:
        """The tensor in float32. Raises CheckpointError when its kind cannot be read."""
        # Imported here because it takes longer than all other imports of this package's checkpoints together.
        from gguf import GGMLQuantizationType, dequantize

        tensor = self.tensors[name]
        raw = np.frombuffer(self._data, np.uint8, tensor.size, tensor.start)
        try:
            with np.errstate(all="ignore"):  # a scale may overflow; the numbers are the file's
                values = dequantize(raw.reshape(*tensor.shape[:-1], -1), GGMLQuantizationType(tensor.kind))
        except NotImplementedError:
            kind = GGMLQuantizationType(tensor.kind).name
            raise self.error(f"the tensor {name} is of kind {kind}, which is not supported") from None
        return torch.from_numpy(np.array(values, np.float32).reshape(tensor.shape))

    def _tensors(self, count: int) -> dict[str, StoredTensor]:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        found: dict[str, StoredTensor] = {}
        for _ in range(count):
            name, axes = self._name(), self._number("I")
            if name in found:
                raise self.error(f"it has the tensor {name} twice")
            if not 1 <= axes <= MAX_AXES:
                raise self.error(f"the tensor {name} has {axes} axes; there are 1 to {MAX_AXES}")
            shape = tuple(self._number("Q") for _ in range(axes))[::-1]  # the file's first axis varies fastest
            kind, offset = self._number("I"), self._number("Q")
            if kind not in [known.value for known in GGML_QUANT_SIZES]:
                raise self.error(f"the tensor {name} is of kind {kind}, which is unknown")
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            if not all(shape) or shape[-1] % block:
                raise self.error(f"the tensor {name} of shape {shape} is not made of blocks of {block}")
            found[name] = StoredTensor(shape, kind, offset, math.prod(shape) // block * block_bytes)
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 2**20:
            raise self.error(f"general.alignment is {alignment!r}")
        start = -(-self._place // alignment) * alignment
        found = {n: StoredTensor(t.shape, t.kind, start + t.start, t.size) for n, t in found.items()}
        end = start
        # In order and apart from each other: else a small file could ask for any amount of memory.
        for name, tensor in sorted(found.items(), key=lambda item: item[1].start):
            if tensor.start < end or tensor.start + tensor.size > len(self._data):
                raise self.error(
                    f"the tensor {name} lies at {tensor.start} … {tensor.start + tensor.size}; "
                    f"it must be within {end} … {len(self._data)} (is the file whole?)"
                )
            end = tensor.start + tensor.size
        return found

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._place:
            raise self.error(f"{size} bytes are expected at {self._place}, and the file has {len(self._data)}")
        self._place += size
        return self._data[self._place - size : self._place]

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def _count(self, least_bytes: int) -> int:
        """A count of things, each of which takes `least_bytes` or more of what follows."""
        count = self._number("Q")
        if count * least_bytes > len(self._data) - self._place:
            raise self.error(f"{count} entries are announced at {self._place}, more than the file can hold")
        return count

    def _string(self) -> str:
        start = self._place
        try:
            return self._take(self._count(1)).decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"the text at {start} is not UTF-8") from None

    def _name(self) -> str:
        name = self._string()
        if not name.isprintable() or len(name) > MAX_NAME:
            raise self.error(f"{name[:60]!r} is no name")
        return name

    def _value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self._number(NUMBERS[kind])
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            raise self.error(f"{kind} is not a type of metadata")
        items = self._number("I")
        if items == STRING:
            return [self._string() for _ in range(self._count(8))]
        if items not in NUMBERS:
            raise self.error(f"{items} is not a type of the entries of an array")
        size = struct.calcsize(f"<{NUMBERS[items]}")
        return np.frombuffer(self._take(self._count(size) * size), np.dtype(f"<{NUMBERS[items]}")).tolist()
