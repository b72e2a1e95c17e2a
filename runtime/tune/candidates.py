"""What is measured: the graphs that compute the same within a bound of precision, and settings of their sessions."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from isoformer.runtime.manifest import PRECISIONS
from isoformer.runtime.package import Package
from isoformer.runtime.providers import has_fusions_off
from isoformer.runtime.tuning import Choice, cores, reproducible


def graphs(package: Package, provider: str, bound: str) -> list[Choice]:
    """The graphs of a provider in precisions down to the bound, as `Session` opens them by default.

    The first is what the others are held against: the canonical graph, or, for OpenVINO, which does not run that, the
    one that was made for it. Where a reproducible graph is what runs, it alone: others give other tokens.
    """
    if (alone := reproducible(package, provider, bound)) is not None:
        return [Choice(alone)]
    lowest = PRECISIONS.index(bound)
    names = [
        name
        for name, variant in package.variants.items()
        if variant["provider"] == provider and PRECISIONS.index(variant["precision"]) <= lowest
    ]
    names.sort(key=lambda name: PRECISIONS.index(package.variants[name]["precision"]))
    return [Choice(name) for name in (names if provider == "openvino" else ["", *names])]


def with_threads(choices: Iterable[Choice], provider: str) -> list[Choice]:
    """Each of them, and with 1, 2, 4, … threads up to one a processor."""
    counts = [] if provider == "cuda" else thread_counts(cores(), physical_cores())
    return [one for choice in choices for one in (choice, *(replace(choice, threads=count) for count in counts))]


def thread_counts(processors: int, default: int | None) -> list[int]:
    """Powers of two up to the processors, and all of them; the provider's own default is not named again."""
    counts = {2**power for power in range(processors.bit_length()) if 2**power <= processors} | {processors}
    return sorted(counts - {default})


def with_settings(choices: Iterable[Choice], provider: str) -> list[Choice]:
    """Each of them, and with threads that sleep, with all fusions, with both."""
    found = []
    for choice in choices:
        spinning = [True, False] if provider == "cpu" and choice.threads != 1 else [True]
        fusions = [False, True] if has_fusions_off(provider) else [False]
        found += [replace(choice, spinning=one, fusions=other) for one in spinning for other in fusions]
    return found


def expanded(choices: Collection[Choice], stage: int, provider: str) -> list[Choice]:
    """What the survivors of the stage before are measured as in stage 1 (threads) and 2 (settings)."""
    return with_threads(choices, provider) if stage == 1 else with_settings(choices, provider)


def physical_cores() -> int | None:
    """How many threads ONNX Runtime starts by itself, None where that is not known."""
    siblings = set()
    for place in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list"):
        siblings.add(place.read_text(encoding="ascii").strip())
    return min(len(siblings), cores()) if siblings else None
