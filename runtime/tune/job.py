"""The whole of it: stages of turns, saved as they come, so that it goes on where it was stopped."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from isoformer.runtime import tuning
from isoformer.runtime.cost import cost_on
from isoformer.runtime.errors import IsoformerError, PackageError
from isoformer.runtime.package import Package
from isoformer.runtime.tune import candidates, decide
from isoformer.runtime.tuning import Choice, Record, Round, Shape

STAGES = ("graphs", "threads", "settings")
TURNS = (3, 3, 9)  # of each stage; the last ends sooner with the time that was given
SAVE_EVERY = 1.0  # seconds: what a kill loses
Progress = Callable[[str, int, int], None]


class Measuring(Protocol):
    """What `Workers` does."""

    refused: dict[Choice, str]

    def open(self, choice: Choice) -> bool: ...
    def keep(self, choices: Iterable[Choice]) -> None: ...
    def round(self, shape: Shape, choices: Iterable[Choice]) -> tuple[dict[Choice, float], float]: ...


@dataclass(frozen=True)
class Job:
    """precision: the lowest that may be chosen. minutes: after which no turn begins."""

    package: Package
    provider: str
    precision: str
    shapes: tuple[Shape, ...]
    minutes: float

    @property
    def baseline(self) -> Choice:
        """What all others are held against."""
        return candidates.graphs(self.package, self.provider, self.precision)[0]


def begin(job: Job, *, anew: bool = False) -> Record:
    """The record of an earlier run for the same shapes, or a new one; it is written, so that it can be.

    A file or a record that cannot be used is replaced, as its error says; the records of other machines stay.
    """
    tuning.repair(job.package)
    try:
        found = None if anew else tuning.read(job.package, job.provider, job.precision)
    except PackageError:
        found = None
    if found is None or found.shapes != list(job.shapes):
        table = found.table if found is not None else {}  # in use until there is another
        found = Record(list(job.shapes), table=table, cost=found.cost if found is not None else None)
    tuning.write(job.package, job.provider, job.precision, found)
    return found


def run(job: Job, record: Record, workers: Measuring, progress: Progress = lambda _what, _done, _all: None) -> Record:
    """Measures what the record has not yet, as far as the time goes, and decides.

    Whatever ends it, the rounds that were measured are in the file. Raises IsoformerError where the baseline fails.
    """
    deadline, saved = time.monotonic() + 60 * job.minutes, time.monotonic()
    try:
        for stage in range(len(STAGES)):
            done = _done(record, stage)
            left = [place for place in _places(job, stage) if place not in done]
            if not left:
                continue
            lives = {shape: _live(job, record, stage, shape, workers, progress) for shape in job.shapes}
            workers.keep({choice for live in lives.values() for choice in live})
            total = len(job.shapes) * TURNS[stage]
            for count, (turn, shape) in enumerate(left, total - len(left)):
                progress(f"{STAGES[stage]}: turns", count, total)
                if time.monotonic() > deadline:
                    return record
                times, waited = workers.round(shape, lives[shape])
                if job.baseline not in times:
                    raise IsoformerError(f"{job.baseline}: {workers.refused[job.baseline]}")
                record.rounds.append(Round(stage, turn, shape, times, waited))
                if time.monotonic() - saved > SAVE_EVERY:
                    tuning.write(job.package, job.provider, job.precision, record)
                    saved = time.monotonic()
            progress(f"{STAGES[stage]}: turns", total, total)
        record.finished = True
        return record
    finally:
        record.refused |= workers.refused
        _decide(job, record)
        tuning.write(job.package, job.provider, job.precision, record)


def _places(job: Job, stage: int) -> Iterator[tuple[int, Shape]]:
    """The turns of a stage: all shapes have one, then all have the next."""
    return ((turn, shape) for turn in range(TURNS[stage]) for shape in job.shapes)


def _done(record: Record, stage: int) -> set[tuple[int, Shape]]:
    return {(one.turn, one.shape) for one in record.rounds if one.stage == stage}


def _live(job: Job, record: Record, stage: int, shape: Shape, workers: Measuring, progress: Progress) -> list[Choice]:
    """The candidates of a shape in a stage that run here: the baseline, and what the stage before leaves."""
    rounds, asked = (record.rounds, shape) if shape.kind == "run" else (decide.pool(record.rounds), decide.ALL)
    if stage == 0:
        choices = candidates.graphs(job.package, job.provider, job.precision)
    else:
        choices = decide.survivors(rounds, asked, stage - 1, job.baseline)
        choices = candidates.expanded(choices, stage, job.provider)
    choices = list(dict.fromkeys((job.baseline, *choices)))
    live = []
    for count, choice in enumerate(choices):
        progress(f"{STAGES[stage]}: parity", count, len(choices))
        if workers.open(choice):
            record.refused.pop(choice, None)
            live.append(choice)
        elif choice == job.baseline:
            raise IsoformerError(f"{choice} itself fails here, so nothing is tuned: {workers.refused[choice]}")
    progress(f"{STAGES[stage]}: parity", len(choices), len(choices))
    return live


def _decide(job: Job, record: Record) -> None:
    together = any(shape.kind != "run" for shape in job.shapes)
    rounds = [
        replace(one, times={c: t for c, t in one.times.items() if c not in record.refused}) for one in record.rounds
    ]
    table = decide.decide(rounds, job.baseline, together=together)
    if table:
        record.table = table
        halves = tuning.for_padding(job.package, table.values())
        record.cost = decide.cost(rounds, table, job.baseline, cost_on(job.provider).step, halves=halves)
