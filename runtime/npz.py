"""Archives of arrays (.npz) that strangers made: no pickle, and no more memory than the limits say.

numpy's own reader reserves whatever the header of a member states, and a small archive may state, or unpack to, any
size. Here a member's stated shape, its size in the archive's index and the limits have to agree first.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError

import numpy as np

from isoformer.runtime.errors import PackageError
from isoformer.runtime.forms import one_line, shown

MAX_MEMBERS = 100_000
MAX_ARRAY = 2**30  # bytes of one array
MAX_TOTAL = 2**33  # bytes of all arrays, which are read one at a time
SUFFIX = ".npy"
BROKEN = (OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, SyntaxError, TypeError)
BROKEN = (*BROKEN, AttributeError, MemoryError, OverflowError, TokenError, zipfile.BadZipFile, zlib.error)


class Arrays(Mapping[str, np.ndarray]):
    """The arrays by name, each read when it is asked for. Raises PackageError for one that cannot be read."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        members = archive.infolist()
        if len(members) > MAX_MEMBERS:
            raise ValueError(f"it has {len(members):,} members; {MAX_MEMBERS:,} are the most")
        self._members = {info.filename.removesuffix(SUFFIX): info for info in members}
        if len(self._members) != len(members):
            raise ValueError("it has a name twice")
        if (total := sum(info.file_size for info in members)) > MAX_TOTAL:
            raise ValueError(f"it unpacks to {total:,} bytes; {MAX_TOTAL:,} are the most")

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._members:
            raise PackageError(f"{self._path} cannot be read: it has no array {shown(name)}")
        try:
            return self._read(self._members[name])
        except BROKEN as error:
            raise PackageError(f"{self._path} cannot be read: {shown(name)}: {one_line(error)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def _read(self, info: zipfile.ZipInfo) -> np.ndarray:
        if info.file_size > MAX_ARRAY:
            raise ValueError(f"it unpacks to {info.file_size:,} bytes; {MAX_ARRAY:,} are the most")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its compression {info.compress_type} is not deflate")
        with self._archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version} of the format is not supported")
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = header(file)
            if dtype.kind not in "biufc":
                raise ValueError(f"it holds {dtype}, not numbers")
            if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != info.file_size - file.tell():
                raise ValueError(f"its shape {shown(list(shape))} of {dtype} is not what it holds")
            content = file.read()
        return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")


@contextmanager
def read(path: Path) -> Iterator[Arrays]:
    """The arrays of an archive, which stays open for the block. Raises PackageError for what is none."""
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN as error:
        raise PackageError(f"{path} cannot be read: {one_line(error)}") from None
    with archive:
        try:
            arrays = Arrays(path, archive)
        except ValueError as error:
            raise PackageError(f"{path} cannot be read: {one_line(error)}") from None
        yield arrays
