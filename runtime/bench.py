"""Latency of a package on this machine, at chosen batches and lengths."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoformer.runtime.cases import BATCH_AXIS, sample
from isoformer.runtime.errors import InputError
from isoformer.runtime.session import Session

WARMUP = 3
LEAST_RUNS = 10
LEAST_SECONDS = 1.0


def measure(session: Session, batches: Sequence[int], lengths: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One dict a batch and length: median and 90th percentile in ms, tokens a second, peak memory in MB.

    Inputs are random and without padding. Raises InputError for a length that the model does not take.
    """
    signature = session.signature
    for batch in batches:
        for length in lengths:
            # a cache, which alone may be empty, is measured empty
            sizes = {name: length if signature.axes[name][0] else 0 for name in signature.free_axes}
            sizes = signature.complete(sizes | {BATCH_AXIS: batch})
            for name, (low, high) in signature.axes.items():
                if not low <= sizes[name] <= (sizes[name] if high is None else high):
                    upwards = "up" if high is None else f"to {high}"
                    raise InputError(f"{name} {sizes[name]} is out of range; this model takes {low} {upwards}")
            inputs = sample(signature, sizes, "none", np.random.default_rng(0))
            times = time_runs(lambda inputs=inputs: session.run(inputs))
            median = float(np.median(times))
            yield {
                "batch": batch,
                "length": length,
                "median_ms": median * 1e3,
                "p90_ms": float(np.quantile(times, 0.9)) * 1e3,
                "tokens_per_s": batch * length / median,
                "peak_mb": peak_mb(),
                "runs": len(times),
            }


def time_runs(
    function: Callable[[], Any], least_runs: int = LEAST_RUNS, least_seconds: float = LEAST_SECONDS
) -> np.ndarray:
    """Seconds of each call, after a warm-up: at least that many calls, and that many seconds in all."""
    for _ in range(min(WARMUP, least_runs)):
        function()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < least_runs or time.perf_counter() - start < least_seconds:
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return np.array(times)


def waited() -> float:
    """Seconds that this process's threads were ready and had no processor, so far; 0 where the system does not tell."""
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(file.read_bytes().split()[1])
        except (OSError, IndexError):  # the thread has ended
            continue
    return total / 1e9


def peak_mb() -> float:
    """The largest resident size of this process so far, in MB (10^6 bytes); NaN on Windows, which does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there begins with the size of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
