"""Two graphs of one process in turn: what the spinning threads of the one do to the other.

    python -m benchmarks.alternation PACKAGE [--one cpu-int8] [--other cpu-float32] [--runs 150]

One text of 128 tokens in the first graph and one of 16 in the other, in turn; then the first alone. Each with threads
that stop spinning when a run ends, and without, in a process of its own. One JSON object a line: medians in ms.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from isoformer.runtime import load, session
from isoformer.runtime.by_shape import ByShape
from isoformer.runtime.tune.inputs import inputs_of
from isoformer.runtime.tuning import Choice, Shape

LONG, SHORT = Shape(1, 128, 128), Shape(1, 16, 16)


def measure(package: Path, one: str, other: str, runs: int, *, stop: bool) -> dict[str, float]:
    """Median milliseconds of the first in turn with the other, of the other, and of the first alone."""
    loaded = load(package)
    table = {LONG: Choice(one), SHORT: Choice(other)}
    if stop:
        both = session.Session(loaded, chooser=ByShape(loaded.signature, table))
        run = dict.fromkeys((LONG, SHORT), both.run)
    else:
        run = {shape: session.Session(loaded, **choice.options()).run for shape, choice in table.items()}
    inputs = {shape: inputs_of(loaded.signature, shape) for shape in run}
    times: dict[str, list[float]] = {"in_turn_ms": [], "other_ms": [], "alone_ms": []}
    for name, shape in [("in_turn_ms", LONG), ("other_ms", SHORT)] * runs + [("alone_ms", LONG)] * runs:
        start = time.perf_counter()
        run[shape](inputs[shape])
        times[name].append(time.perf_counter() - start)
    return {name: round(float(np.median(found)) * 1e3, 2) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--one", default="cpu-int8")
    parser.add_argument("--other", default="cpu-float32")
    parser.add_argument("--runs", type=int, default=150)
    parser.add_argument("--stop", choices=("yes", "no"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stop:
        stop = arguments.stop == "yes"
        found = measure(arguments.package, arguments.one, arguments.other, arguments.runs, stop=stop)
        print(json.dumps({"threads_stop_spinning": stop} | found))
        return
    for stop in ("no", "yes") * 3:
        command = [sys.executable, "-m", "benchmarks.alternation", *sys.argv[1:], "--stop", stop]
        subprocess.run(command, check=True)  # noqa: S603


if __name__ == "__main__":
    main()
