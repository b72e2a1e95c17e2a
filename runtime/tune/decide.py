"""From times to choices. What is not clearly faster is not chosen: a graph that others know is worth a few percent."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from isoformer.runtime.cost import Cost
from isoformer.runtime.tune.inputs import lengths_of
from isoformer.runtime.tuning import Choice, Round, Shape

LEAST_TURNS = 3
CLEARLY = 1.02  # times faster, in three turns out of four
NOISE = 1.01  # the same: slower than the baseline by more is never chosen
WORTH = 1.05  # the same, for a graph that is opened beside another
NEAR = 1.1  # times slower than the best and still worth trying with other settings
MOST = 3  # choices of a shape that the next stage varies
ALL = Shape(1, 1, 1, "all")


def ratios(rounds: Iterable[Round], shape: Shape, one: Choice, other: Choice) -> np.ndarray:
    """How many times faster `one` was than `other`, turn by turn, where both had the turn."""
    both = [r.times for r in rounds if r.shape == shape and one in r.times and other in r.times]
    return np.array([times[other] / times[one] for times in both])


def clearly_faster(values: np.ndarray, least: float = CLEARLY) -> bool:
    """Whether ratios of turns leave no doubt: enough of them, and three quarters of them above the least."""
    return len(values) >= LEAST_TURNS and float(np.quantile(values, 0.25)) >= least


def survivors(rounds: Iterable[Round], shape: Shape, stage: int, baseline: Choice) -> list[Choice]:
    """The choices of a stage that are nearly as fast as its best, the fastest first."""
    rounds = [one for one in rounds if one.stage == stage and one.shape == shape]
    choices = {choice for one in rounds for choice in one.times}
    if not choices:
        return [baseline]
    speeds = {choice: float(np.median(ratios(rounds, shape, choice, baseline))) for choice in choices}
    order = sorted(speeds, key=lambda c: (-speeds[c], c))
    return [choice for choice in order if speeds[choice] * NEAR >= speeds[order[0]]][:MOST]


def decide(rounds: Sequence[Round], baseline: Choice, *, together: bool = False) -> dict[Shape, Choice]:
    """The choice of each shape that has been measured often enough.

    It starts with the baseline, and whatever is clearly faster takes its place, the simpler settings first. Then as few
    different choices as will do, since each open graph holds weights of its own: of those that the best of a shape
    beats by less than WORTH, the one that serves the most shapes. together: one choice for all, which is at no shape
    clearly slower than the baseline.
    """
    if together:
        return _together(rounds, baseline)
    shapes = list(dict.fromkeys(one.shape for one in rounds))
    shapes = [shape for shape in shapes if sum(one.shape == shape for one in rounds) >= LEAST_TURNS]
    good = {shape: _good(rounds, shape, baseline) for shape in shapes}
    chosen: dict[Shape, Choice] = {}
    while len(chosen) < len(shapes):
        left = [shape for shape in shapes if shape not in chosen]
        served = {c: [s for s in left if c in good[s]] for c in dict.fromkeys(c for s in left for c in good[s])}
        most = max(map(len, served.values()))
        speeds = {
            c: float(np.mean([_speed(rounds, s, c, baseline) for s in there]))
            for c, there in served.items()
            if len(there) == most
        }
        even = [c for c in speeds if speeds[c] > max(speeds.values()) - np.log2(CLEARLY)]
        best = min(even, key=lambda c: (_settings(c), -speeds[c]))
        chosen |= dict.fromkeys(served[best], best)
    return {shape: chosen[shape] for shape in shapes}


def _good(rounds: Sequence[Round], shape: Shape, baseline: Choice) -> list[Choice]:
    """The best choice of a shape, and those that are hardly slower and no slower than the baseline."""
    best = baseline
    for choice in _simple_first(rounds, shape, baseline):
        if clearly_faster(ratios(rounds, shape, choice, best)):
            best = choice
    if not clearly_faster(ratios(rounds, shape, best, baseline)):
        best = baseline
    others = [
        choice
        for choice in (baseline, *_simple_first(rounds, shape, baseline))
        if len(ratios(rounds, shape, choice, best)) >= LEAST_TURNS
        and not clearly_faster(ratios(rounds, shape, best, choice), WORTH)
        and not clearly_faster(ratios(rounds, shape, baseline, choice), NOISE)
    ]
    return list(dict.fromkeys((best, *others)))


def _simple_first(rounds: Sequence[Round], shape: Shape, baseline: Choice) -> list[Choice]:
    """The measured choices: those with fewer settings first, and of these the faster."""
    choices = {choice for one in rounds if one.shape == shape for choice in one.times} - {baseline}
    return sorted(choices, key=lambda c: (_settings(c), -_speed(rounds, shape, c, baseline), c))


def _settings(choice: Choice) -> int:
    """How many settings are not the default's."""
    return bool(choice.threads) + (not choice.spinning) + choice.fusions


def _speed(rounds: Sequence[Round], shape: Shape, choice: Choice, baseline: Choice) -> float:
    """log2 of how many times faster than the baseline."""
    found = ratios(rounds, shape, choice, baseline)
    return float(np.log2(np.median(found))) if len(found) else -np.inf


def _together(rounds: Sequence[Round], baseline: Choice) -> dict[Shape, Choice]:
    shapes = list(dict.fromkeys(one.shape for one in rounds))
    pooled = pool(rounds)
    if len(pooled) < LEAST_TURNS:
        return {}
    slower = {
        choice
        for one in rounds
        for choice in one.times
        if any(clearly_faster(ratios(rounds, shape, baseline, choice)) for shape in shapes)
    }
    kept = [replace(one, times={c: t for c, t in one.times.items() if c not in slower}) for one in pooled]
    return dict.fromkeys(shapes, _good(kept, ALL, baseline)[0])


def pool(rounds: Sequence[Round]) -> list[Round]:
    """The turns that had every shape, each as one round: of each choice the geometric mean over the shapes."""
    shapes = {one.shape for one in rounds}
    turns: dict[tuple[int, int], dict[Shape, Round]] = {}
    for one in rounds:
        turns.setdefault((one.stage, one.turn), {})[one.shape] = one
    pooled = []
    for (stage, turn), parts in turns.items():
        if parts.keys() == shapes:
            choices = set.intersection(*(set(part.times) for part in parts.values()))
            times = {c: float(np.exp(np.mean([np.log(part.times[c]) for part in parts.values()]))) for c in choices}
            pooled.append(Round(stage, turn, ALL, times))
    return pooled


def median_ms(rounds: Iterable[Round], shape: Shape, choice: Choice, baseline: Choice) -> float:
    """The time of a choice: the baseline's, which all turns have, over how many times faster it was in its turns."""
    rounds = list(rounds)
    base = float(np.median([r.times[baseline] for r in rounds if r.shape == shape and baseline in r.times]))
    return base / float(np.median(ratios(rounds, shape, choice, baseline)))


def cost(
    rounds: Sequence[Round], table: dict[Shape, Choice], baseline: Choice, step: int, *, halves: bool = False
) -> Cost | None:
    """What a batch costs in the chosen graphs, None where the shapes do not say. halves: of a graph among them."""
    times = {
        tuple(lengths_of(shape).tolist()): median_ms(rounds, shape, choice, baseline)
        for shape, choice in table.items()
        if shape.kind == "run"
    }
    return Cost.measured(times, step, halves=halves)
