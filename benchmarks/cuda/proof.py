"""What really ran: the provider of each node, and the kernel of each attention, as ONNX Runtime itself says.

    python -m benchmarks.cuda.proof PACKAGE --provider cuda --precision float16 --shapes 1x128,8x128:697

A JSON object a shape. Two things name the kernel: ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO=1, for the operators of
com.microsoft ("SdpaKernel=…"), and the log of Attention at the level "verbose" ("ONNX Attention: using …"). Both are
written by native code, so the file descriptors are caught, in this process alone.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

DEBUG = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"  # read when a session is made
SDPA = re.compile(r"SdpaKernel=([A-Z_0-9]+)")
ATTENTION = re.compile(r"Attention: using (unified unfused) path|ONNX Attention: using ([A-Za-z ]*[A-Za-z])")
UNFUSED = {"MATH", "unified unfused"}


def kernels(text: str) -> dict[str, int]:
    """The kernels that a run's output names, and how often."""
    found = [match.group(1) for match in SDPA.finditer(text)]
    found += [match.group(1) or match.group(2) for match in ATTENTION.finditer(text)]
    return dict(sorted(Counter(found).items()))


def fused(found: dict[str, int]) -> bool:
    """Whether every kernel that was named is a fused one; no name proves nothing."""
    return bool(found) and not UNFUSED & found.keys()


@contextmanager
def caught() -> Iterator[Callable[[], str]]:
    """What anything in this process, native code too, writes to its standard output and error."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryFile() as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield lambda: _read(file)
        finally:
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def placed(session: Any) -> dict[str, dict[str, int]]:
    """Provider → operator → nodes; {} for a session on the CPU, which has no other."""
    if session.provider == "cpu":
        return {}
    found: dict[str, Counter] = {}
    for part in session.inference.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return {name: dict(sorted(count.items())) for name, count in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("package", type=Path)
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--precision", default="float16")
    parser.add_argument("--shapes", required=True)
    given = parser.parse_args()
    os.environ[DEBUG] = "1"
    from benchmarks.cuda import engines
    from isoformer.runtime.providers import onnxruntime_module
    from isoformer.runtime.tuning import Shape

    onnxruntime_module().set_default_logger_severity(0)
    with caught():
        session = engines.opened(given.package, given.provider, given.precision)
        measure = engines.ours(session, seconds=0.0, new=2)
    head = {"proof": f"isoformer-{given.precision}", "variant": session.variant, "nodes": placed(session)}
    for text in given.shapes.split(","):
        with caught() as said:
            measure(Shape.parse(text))
            found = kernels(said())
        print(json.dumps(head | {"shape": text, "kernels": found, "fused": fused(found)}), flush=True)


if __name__ == "__main__":
    main()
