"""`isoformer verify --baseline OLD.json`: what has moved since an earlier `verify --json`, and where it begins.

A line of `verify --json` that is of a golden vector carries a few values of the output. What moved is measured on
them; the node at which it begins is looked for where both sides can still be run: the old graph, if its package is
still where it was, or the old release of the runtime, in an environment of its own.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from isoformer.runtime.bisect import Difference, Side, first_difference
from isoformer.runtime.errors import InputError, IsoformerError
from isoformer.runtime.lanes import Found, Lane
from isoformer.runtime.package import Package, sha256
from isoformer.runtime.parity import finite
from isoformer.runtime.runners import engines

SAMPLES = 16  # values kept of each output
Key = tuple[str, str, str, str | None, str, str]  # asked, provider, graph, variant, case, output


@dataclass(frozen=True)
class Moved:
    """One output of a golden vector: by how much its kept values moved at most, beside what its error is allowed."""

    lane: Lane
    case: str
    output: str
    by: float
    bound: float
    was: str  # the version that ran before

    @property
    def share(self) -> float:
        return math.inf if not math.isfinite(self.by) or self.bound == 0 else self.by / self.bound

    def line(self) -> str:
        return f"{self.lane.label}, {self.case}, {self.output}: moved by {self.by:.2e}, {self.share:.2g} of its bound"

    def to_dict(self) -> dict[str, Any]:
        return {
            "runtime": self.lane.label,
            "case": self.case,
            "output": self.output,
            "moved": finite(self.by),
            "bound": self.bound,
            "before": self.was,
            "now": self.lane.version,
        }


@dataclass
class Baseline:
    """What an earlier run printed: its summary, and the line of each output of a golden vector."""

    path: Path
    summary: dict[str, Any]
    lines: dict[Key, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Baseline":
        """Raises InputError for what `verify --json` did not print."""
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            summary = lines.pop()
            kept = {_key(line): line for line in lines if line.get("sample")}
        except (OSError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise InputError(f"--baseline {path} is not what `isoformer verify --json` prints ({error!r})") from None
        if not isinstance(summary, dict) or "fingerprints" not in summary or not kept:
            raise InputError(
                f"--baseline {path} has no values of outputs: print it anew with `isoformer verify --json`"
            )
        return cls(path, summary, kept)


@dataclass
class Compared:
    """moved: the furthest first. still: outputs that did not move. notes: what could not be compared or bisected."""

    moved: list[Moved] = field(default_factory=list)
    still: int = 0
    first: dict[str, Difference] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def within(self) -> bool:
        """Whether nothing moved by more than its error is allowed to be."""
        return all(one.share <= 1 for one in self.moved)

    def to_dict(self) -> dict[str, Any]:
        return {
            "moved": [one.to_dict() for one in self.moved],
            "still": self.still,
            "first_difference": {label: one.to_dict() for label, one in self.first.items()},
            "notes": self.notes,
        }


def sample(value: np.ndarray) -> list[float | None]:
    """A few values of an output, spread by the golden ratio; None for one that is no number. As replay.py has it."""
    places = np.unique((np.arange(SAMPLES) * ((5**0.5 - 1) / 2) % 1.0 * value.size).astype(np.int64))
    chosen = value.reshape(-1)[places[places < value.size]].astype(np.float64)
    return [float(number) if np.isfinite(number) else None for number in chosen]


def fingerprints(package: Package) -> dict[str, str]:
    """The digests of the files that an answer depends on: graphs, weights and the inputs of the golden vectors."""
    files: dict[str, str] = package.manifest["files"]
    return {name: digest for name, digest in files.items() if name.endswith((".onnx", ".onnx_data")) or _is_input(name)}


def _is_input(name: str) -> bool:
    return name.endswith(".pb") and name.rpartition("/")[2].startswith("input_")


def compare(old: Baseline, found: Found, package: Package) -> Compared:
    """What moved since, in the lanes that both have, and the first node of each that differs, where it can be had."""
    compared = Compared()
    before, now = old.summary["fingerprints"], fingerprints(package)
    if {n: d for n, d in before.items() if _is_input(n)} != {n: d for n, d in now.items() if _is_input(n)}:
        raise InputError(f"--baseline {old.path} is of other golden vectors than {package.path} has: of another model")
    for comparison in found.report.comparisons:
        values = found.samples.get((comparison.runtime, comparison.case, comparison.output))
        lane = found.lanes[comparison.runtime]
        line = _line_of(old, lane, comparison.case, comparison.output)
        if comparison.check != "golden" or values is None or line is None:
            continue
        by = _distance(line["sample"], values)
        if by == 0:
            compared.still += 1
        else:
            moved = Moved(lane, comparison.case, comparison.output, by, comparison.bound, str(line["version"]))
            compared.moved.append(moved)
    if not compared.moved and not compared.still:
        raise InputError(f"--baseline {old.path} has no lane that was run now; name its --runtime")
    compared.moved.sort(key=lambda one: -one.share)
    for label in dict.fromkeys(one.lane.label for one in compared.moved):
        worst = next(one for one in compared.moved if one.lane.label == label)
        try:
            difference, note = _bisected(old, worst, package)
        except IsoformerError as error:
            difference, note = None, str(error)
        if difference is not None:
            compared.first[label] = difference
        elif note:
            compared.notes.append(f"{label}: {note}")
    return compared


def _bisected(old: Baseline, moved: Moved, package: Package) -> tuple[Difference | None, str]:
    """The first node that differs, or why there is none to name."""
    part, lane = package.graphs[moved.lane.graph], moved.lane
    file = f"{lane.graph}.onnx" if lane.variant is None else part.variant(lane.variant)["path"]
    own = lane.variant if lane.variant is not None and "golden" in part.variant(lane.variant) else None
    vectors = chain(part.golden(own), part.golden())  # in this Python some variants are held to the graph's own
    inputs = next(inputs for case, inputs, _ in vectors if case == moved.case)
    now = Side(package.path / file, package.path, engines.of(lane.asked))
    before, files = old.summary["fingerprints"], fingerprints(package)
    if any(before.get(name) != digest for name, digest in files.items() if not _is_input(name)):
        place = Path(old.summary["place"])
        if not _is_still_there(place, before):
            return None, f"the graph is another one, and what was measured is no longer at {place}"
        found = first_difference(Side(place / file, place, now.engine), now, inputs)
        return found, "the graphs differ, and none of the values between their nodes by more than rounding"
    if moved.was == lane.version:
        return None, "graph and version are the same: it ran on another machine, or with other threads"
    if lane.runtime != "ort":
        return None, f"{lane.runtime} {moved.was} cannot be had beside {lane.version}"
    found = first_difference(Side(now.model, now.weights, engines.of(f"ort=={moved.was}")), now, inputs)
    return found, "once the values between the nodes are looked at, none differs by more than rounding"


def _is_still_there(place: Path, digests: dict[str, str]) -> bool:
    return all((place / name).is_file() and sha256(place / name) == digest for name, digest in digests.items())


def _line_of(old: Baseline, lane: Lane, case: str, output: str) -> dict[str, Any] | None:
    """What the same runtime printed; where it was not asked for by the same name, what its engine did."""
    rest = (lane.provider, lane.graph, lane.variant, case, output)
    same = [line for key, line in old.lines.items() if key[1:] == rest and line["engine"] == lane.runtime]
    return next((line for line in same if line["asked"] == lane.asked), same[0] if same else None)


def _key(line: dict[str, Any]) -> Key:
    return line["asked"], line["provider"], line["graph"], line["variant"], line["case"], line["output"]


def _distance(one: Sequence[float | None], other: Sequence[float | None]) -> float:
    """The largest difference; infinite where one has a number and the other none."""
    if len(one) != len(other) or any((a is None) != (b is None) for a, b in zip(one, other, strict=True)):
        return math.inf
    return max((abs(a - b) for a, b in zip(one, other, strict=True) if a is not None and b is not None), default=0.0)
