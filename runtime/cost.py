"""What one run of a batch costs, in tokens: what lists of many lengths are cut into batches by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoformer.runtime.errors import InputError


@dataclass(frozen=True)
class Cost:
    """What one run of a rectangle costs, counted in tokens that go through the layers once.

    call: of every run, whatever its size. pair: of one query and one key. step: widths are rounded up to multiples of
    it, where a shape that was not seen before costs time of its own. packed: padding costs nothing, so only the real
    tokens of a rectangle count. halves: of `packed`, but attention has a rectangle for the longer half of the sequences
    and one for the shorter. crowd: of any two tokens of one run, since what large batches compute leaves the caches.
    """

    call: float = 50.0
    pair: float = 1 / 550
    step: int = 1
    packed: bool = False
    crowd: float = 0.0
    halves: bool = False

    def width(self, length: int) -> int:
        """How wide a rectangle is whose longest sequence is of that length."""
        return -(-length // self.step) * self.step

    def __call__(self, rows: Any, length: int) -> Any:
        """Of a rectangle, or by an array of numbers of rows, of each."""
        width = self.width(length)
        tokens = rows * width
        return self.call + tokens * (1 + self.pair * width + self.crowd * tokens)

    @classmethod
    def fitted(cls, times: Mapping[tuple[int, int], float]) -> "Cost":
        """The cost that explains the times of some rectangles, (rows, width) → seconds; three of unlike sizes or more.

        What `isoformer bench` prints will do. Nothing costs less than nothing: noise that says so counts as 0.
        """
        terms = np.array([(1, rows * width, rows * width**2) for rows, width in times], np.float64)
        call, token, pair = np.linalg.lstsq(terms, np.array(list(times.values())), rcond=None)[0]
        if not token * terms[:, 1].max() > 1e-3 * call:
            raise InputError("these times do not grow with the tokens; measure larger rectangles")
        return cls(max(0.0, float(call / token)), max(0.0, float(pair / token)))

    @classmethod
    def measured(cls, times: Mapping[tuple[int, ...], float], step: int = 1, *, halves: bool = False) -> "Cost | None":
        """The cost that explains the times of padded batches too: the lengths of its sequences → seconds.

        Whether padding costs is whichever explains the times better; each counts by its relative error. halves: where
        it costs nothing, attention has two rectangles. None where the times are too few, or do not grow with the
        tokens.
        """
        if len(times) < 5:
            return None
        seconds = np.array(list(times.values()))
        found: list[tuple[float, Cost]] = []
        for packed in (False, True):
            sizes = np.array([_sizes(lengths, packed=packed, halves=halves) for lengths in times], np.float64)
            tokens, pairs = sizes.T
            terms = np.stack((np.ones_like(tokens), tokens, pairs, tokens**2), 1) / seconds[:, None]
            factors = _least_squares(terms)
            call, token, pair, crowd = factors.tolist()
            if token * tokens.max() > 1e-3 * call:
                error = float(np.abs(terms @ factors - 1).sum())
                found.append((error, cls(call / token, pair / token, step, packed, crowd / token, halves and packed)))
        return min(found, key=lambda one: one[0])[1] if found else None


def _sizes(lengths: Sequence[int], *, packed: bool, halves: bool) -> tuple[int, int]:
    """Tokens and pairs of them in one text that a batch of such sequences computes."""
    rows, ordered = len(lengths), sorted(lengths)
    if not packed:
        return rows * ordered[-1], rows * ordered[-1] ** 2
    if not halves:
        return sum(lengths), sum(length**2 for length in lengths)
    parts = ordered[: rows // 2], ordered[rows // 2 :]
    return sum(lengths), sum(len(part) * part[-1] ** 2 for part in parts if part)


def _least_squares(terms: np.ndarray) -> np.ndarray:
    """(n, m) → m factors, none below 0, with which the terms add up to 1 as closely as they can."""
    kept = np.ones(terms.shape[1], bool)
    while True:
        factors = np.zeros(terms.shape[1])
        factors[kept] = np.linalg.lstsq(terms[:, kept], np.ones(len(terms)), rcond=None)[0]
        if (factors >= 0).all():
            return factors
        kept &= factors >= 0


# From MiniLM's times on two cores, see docs/decisions/openvino.md; others are taken to be like OpenVINO. On CUDA a
# fused kernel takes a mask of a multiple of 4 keys alone, and is at its best at 8: see docs/decisions/cuda.md.
COSTS = {"cpu": Cost(call=16.0, pair=1 / 4700), "openvino": Cost(step=32), "cuda": Cost(step=8)}

# Of OpenVINO's graph on real tokens.
PACKED = Cost(step=32, packed=True, halves=True)


def cost_on(provider: str) -> Cost:
    """What rectangles cost on a provider, roughly; `isoformer tune` measures it."""
    return COSTS.get(provider, Cost())
