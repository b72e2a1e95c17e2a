"""What "computes the same" means here, in numbers.

The reference is the PyTorch module in float64. Beside it stands PyTorch's own float32 on the same
inputs: its error is what float32 costs. A float32 candidate passes where

    max |candidate - reference|  <=  FACTOR * max(max |torch float32 - reference|, 2^-23 * max |reference|)

over all values of one output of one case; the right side is the largest that the mask patterns and batches
of the same length give, since over a handful of values a single error is chance. The second
term is one unit in the last place of the largest value: below it no float32 result can be asked to
be. A NaN or an infinity never passes, and a report without a comparison has not passed.

Outputs that are choices (the best items of a catalogue) are compared by what they choose, see `comparable`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from isoformer.runtime.package import Signature

FACTOR = 4.0
ULP = 2.0**-23
SAMPLES = 1024


@dataclass(frozen=True)
class Comparison:
    """One output of one case: how many values were compared, the largest error, and what was allowed."""

    runtime: str
    check: str
    case: str
    output: str
    values: int
    error: float
    bound: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.values > 0 and math.isfinite(self.bound) and self.error <= self.bound  # False for NaN

    def line(self) -> str:
        what = self.note or f"error {self.error:.2e} is over the bound {self.bound:.2e}"
        return f"{self.runtime}, {self.check} {self.case}, {self.output}: {what}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"error": finite(self.error), "bound": finite(self.bound), "passed": self.passed}


@dataclass
class Report:
    """Comparisons of one or several runtimes with the reference."""

    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.comparisons) and all(c.passed for c in self.comparisons)

    @property
    def failures(self) -> list[Comparison]:
        return [c for c in self.comparisons if not c.passed]

    @property
    def cases(self) -> int:
        return len({(c.runtime, c.check, c.case) for c in self.comparisons})

    @property
    def values(self) -> int:
        return sum(c.values for c in self.comparisons)

    def worst(self) -> float:
        """The largest error as a share of what was allowed."""
        return max((share(c) for c in self.comparisons), default=float("nan"))

    def summary(self) -> dict[str, Any]:
        """What `verify --json` ends with."""
        return {
            "passed": self.passed,
            "cases": self.cases,
            "values": self.values,
            "failures": [c.line() for c in self.failures],
            "worst_share_of_bound": finite(self.worst()),
        }


def finite(number: float) -> float | None:
    """The number, None where it is none: JSON has no NaN and no infinity."""
    return number if math.isfinite(number) else None


def share(comparison: Comparison) -> float:
    """The error as a share of the bound; infinite for a NaN."""
    if not np.isfinite(comparison.error):
        return float("inf")
    if comparison.bound == 0:
        return 0.0 if comparison.error == 0 else float("inf")
    return comparison.error / comparison.bound


def largest_error(candidate: np.ndarray, reference: np.ndarray) -> float:
    """max |candidate - reference| in float64; infinite where a candidate value is not finite or a shape differs."""
    if candidate.shape != reference.shape:
        return float("inf")
    if not np.isfinite(candidate).all() or not np.isfinite(reference).all():
        return float("inf")
    return float(np.abs(candidate.astype(np.float64) - reference.astype(np.float64)).max(initial=0.0))


def bound(torch_error: float, reference: np.ndarray) -> float:
    """What a float32 candidate may be off by, from PyTorch float32's own error on the same inputs."""
    return FACTOR * max(torch_error, ULP * float(np.abs(reference).max(initial=0.0)))


def comparable(signature: Signature, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs with the values that choices lead to, in the same run, in place of the choices.

    Sorted values move no further than the values do, so those of a right run are as close to the reference's as
    any other output; since the values chosen from are compared too, a choice that passes is as good as the
    reference's up to their bounds. A choice that is out of range, or made twice in a row, is NaN, which never passes.
    """
    found = dict(outputs)
    for spec in signature.outputs:
        if spec.kind == "choices":
            found[spec.name] = _chosen(outputs[spec.name], outputs[str(spec.along)])
    return found


def _chosen(places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(…, k) places on the last axis of values (…, n) → (…, k) values."""
    if places.shape[:-1] != values.shape[:-1] or places.dtype.kind != "i":
        return np.full(places.shape, np.nan)
    inside = (places >= 0) & (places < values.shape[-1])
    again = np.diff(np.sort(places, -1), axis=-1, prepend=-1) == 0
    chosen = np.take_along_axis(values, np.where(inside, places, 0), -1)
    return np.where(inside & ~again.any(-1, keepdims=True), chosen, np.nan).astype(values.dtype)


def compare(
    runtime: str, check: str, case: str, output: str, candidate: np.ndarray, reference: np.ndarray, allowed: float
) -> Comparison:
    """The comparison of one output; a shape or a NaN that is wrong is said in words."""
    note = ""
    if candidate.shape != reference.shape:
        note = f"shape {candidate.shape} where the reference has {reference.shape}"
    elif not np.isfinite(reference).all():
        note = "the reference holds NaN or infinity"
    elif not np.isfinite(candidate).all():
        note = f"{np.count_nonzero(~np.isfinite(candidate))} of {candidate.size} values are NaN or infinite"
    elif candidate.size == 0:
        note = "there is no value to compare"
    error = largest_error(candidate, reference)
    return Comparison(runtime, check, case, output, candidate.size, error, allowed, note)


def sample_indices(size: int, samples: int = SAMPLES) -> np.ndarray:
    """At most `samples` indices into a flat array, spread so that they share no period with its axes.

    The multiples of the golden ratio, modulo 1, scaled to the size.
    """
    if size <= samples:
        return np.arange(size)
    steps = np.arange(samples, dtype=np.float64) * ((5**0.5 - 1) / 2)
    return np.unique((steps % 1.0 * size).astype(np.int64))


def by_mask_and_length(comparisons: Iterable[Comparison]) -> dict[str, dict[str, float]]:
    """Grid comparisons as mask → length → largest share of the bound, over batches and outputs."""
    table: dict[str, dict[str, float]] = {}
    for c in comparisons:
        if c.check == "grid":
            mask, _, size = c.case.partition("-")
            cells = table.setdefault(mask, {})
            length = size.partition("x")[2]
            cells[length] = max(cells.get(length, 0.0), share(c))
    return table
