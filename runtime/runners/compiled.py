"""The runner in C: compiled once with the system's compiler, against the library that onnxruntime's wheel carries."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from isoformer.runtime.errors import IsoformerError
from isoformer.runtime.runners.environments import folder

SOURCE = Path(__file__).resolve().with_name("replay.c")


def command(said: Callable[[str], None]) -> list[str]:
    """The program and the library that it opens. Raises IsoformerError where there is no compiler or no library."""
    return [str(program(said)), "--library", str(library())]


def program(said: Callable[[str], None]) -> Path:
    """The compiled runner, in the cache beside the environments."""
    target = folder().parent / "programs" / f"replay-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}"
    if target.exists():
        return target
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise IsoformerError("--runtime c needs a C compiler, and there is no `cc` here: install gcc")
    said(f"compiling {SOURCE.name} into {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as beside:
        made = Path(beside) / target.name
        words = [compiler, "-std=gnu11", "-O2", "-o", str(made), str(SOURCE), "-ldl", "-lm"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise IsoformerError(f"{SOURCE.name} could not be compiled: {lines[0]}")
        made.replace(target)
    return target


def library() -> Path:
    """ONNX Runtime's library in the installed wheel."""
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        raise IsoformerError("onnxruntime is not installed: pip install 'isoformer[cpu]'")
    beside = Path(found.origin).parent / "capi"
    for pattern in ("libonnxruntime.so*", "libonnxruntime.*.dylib"):
        for file in sorted(beside.glob(pattern)):
            return file
    raise IsoformerError(f"--runtime c: there is no libonnxruntime in {beside}; onnxruntime 1.19 or later carries it")
