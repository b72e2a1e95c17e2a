"""What `isoformer tune` found out about a package on this machine: tuning.json, beside the manifest.

It is no part of what was exported: manifest and digests stay as they are, and a package without it, or on another
machine, runs its default graph. A machine is its processor, its cores and its release of onnxruntime.
"""

import json
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from isoformer.runtime.cost import Cost
from isoformer.runtime.errors import IsoformerError, PackageError
from isoformer.runtime.forms import (
    FormError,
    anything,
    flag,
    listed,
    mapped,
    nullable,
    number,
    one_line,
    read_object,
    record,
    refuse,
    text,
    whole,
)
from isoformer.runtime.manifest import PRECISIONS
from isoformer.runtime.package import MANIFEST, Package, sha256
from isoformer.runtime.providers import onnxruntime_module

FILE = "tuning.json"
SCHEMA = 1
DISTURBED = 0.25  # of a turn spent waiting for a processor
MACHINES = 1000  # as many sections of the file, and records in one of them


@dataclass(frozen=True, order=True)
class Choice:
    """A graph of a package and how its session is set up.

    variant: by its name, "" is the canonical graph. threads: of one operator, 0 leaves them to the provider. spinning:
    threads that wait for work keep a core busy. fusions: also the graph optimizers that are off by default.
    """

    variant: str = ""
    threads: int = 0
    spinning: bool = True
    fusions: bool = False

    def __str__(self) -> str:
        words = [self.variant or "canonical"]
        words += [f"threads={self.threads}"] if self.threads else []
        words += [] if self.spinning else ["spinning=off"]
        words += ["fusions=all"] if self.fusions else []
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> "Choice":
        """What `str` wrote. Raises ValueError."""
        name, *words = text.split()
        found = cls("" if name == "canonical" else name)
        for word in words:
            option, _, value = word.partition("=")
            if option == "threads" and int(value) > 0:
                found = replace(found, threads=int(value))
            elif word == "spinning=off":
                found = replace(found, spinning=False)
            elif word == "fusions=all":
                found = replace(found, fusions=True)
            else:
                raise ValueError(f"{word!r} is no setting of a session")
        return found

    def options(self) -> dict[str, Any]:
        """The arguments of Session."""
        return {
            "variant": self.variant or None,
            "threads": self.threads or None,
            "spinning": self.spinning,
            "fusions": self.fusions,
        }


@dataclass(frozen=True, order=True)
class Shape:
    """A batch that is measured: rows, places in a row, real tokens in all.

    kind: "run"; of a decoder "prefill" (a prompt of that length) or "step" (a token after it).
    """

    batch: int
    length: int
    real: int
    kind: str = "run"

    def __str__(self) -> str:
        padded = "" if self.real == self.batch * self.length else f":{self.real}"
        return f"{'' if self.kind == 'run' else f'{self.kind} '}{self.batch}x{self.length}{padded}"

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """`8x128`, or `8x128:697` where 697 of the 1024 are real. Raises ValueError."""
        match = re.fullmatch(r"(?:(prefill|step) )?(\d{1,9})[x×](\d{1,9})(?::(\d{1,18}))?", text.strip())
        if match is None:
            raise ValueError(f"{text!r} is no shape such as 8x128, or 8x128:697 where 697 tokens are real")
        batch, length = int(match[2]), int(match[3])
        real = batch * length if match[4] is None else int(match[4])
        if not (batch > 0 and length > 0 and length + batch - 1 <= real <= batch * length):
            raise ValueError(f"{text!r}: one row fills its {length} places, and every row has a token")
        return cls(batch, length, real, match[1] or "run")


def _at_least_0(value: Any, where: str) -> None:
    number(value, where)
    if value < 0:
        refuse(value, where, "a number of at least 0")


def _above_0(value: Any, where: str) -> None:
    number(value, where)
    if value <= 0:
        refuse(value, where, "a number above 0")


COST = record(
    {"call": _at_least_0, "pair": _at_least_0, "step": whole(1, 2**20), "packed": flag, "crowd": _at_least_0},
    {"halves": flag},
    closed=True,
)
ROUND = record(
    {
        "stage": whole(0, 9),
        "turn": whole(0, 9999),
        "shape": text,
        "waited": _at_least_0,
        "ms": mapped(_above_0, 10_000),
    }
)
RECORD = record(
    {
        "finished": flag,
        "table": mapped(text, 10_000),
        "cost": nullable(COST),
        "refused": mapped(text, 10_000),
        "shapes": listed(text, 10_000),
        "rounds": listed(ROUND, 100_000),
    }
)


@dataclass(frozen=True)
class Round:
    """One turn at one shape: each choice's median time of it, in milliseconds.

    waited: the largest share of its part that a choice's threads had no processor, since others were at work.
    """

    stage: int
    turn: int
    shape: Shape
    times: dict[Choice, float]
    waited: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        times = {str(choice): round(time, 5) for choice, time in self.times.items()}
        where = {"stage": self.stage, "turn": self.turn, "shape": str(self.shape)}
        return where | {"waited": round(self.waited, 3), "ms": times}

    @classmethod
    def read(cls, data: dict[str, Any]) -> "Round":
        times = {Choice.parse(name): float(time) for name, time in data["ms"].items()}
        shape = Shape.parse(data["shape"])
        return cls(int(data["stage"]), int(data["turn"]), shape, times, float(data["waited"]))


@dataclass
class Record:
    """Of one graph, provider and bound of precision: what was measured, and what was chosen of it.

    table: empty until enough was measured. refused: choices that failed parity here, and how. shapes: those asked for.
    """

    shapes: list[Shape] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    refused: dict[Choice, str] = field(default_factory=dict)
    table: dict[Shape, Choice] = field(default_factory=dict)
    cost: Cost | None = None
    finished: bool = False

    @property
    def disturbed(self) -> float:
        """The share of the turns in which others held the processors."""
        return sum(one.waited > DISTURBED for one in self.rounds) / max(1, len(self.rounds))

    @property
    def choices(self) -> list[Choice]:
        """Those that the table names, that of its first shape first."""
        return list(dict.fromkeys(self.table.values()))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "finished": self.finished,
            "table": {str(shape): str(choice) for shape, choice in self.table.items()},
            "cost": None if self.cost is None else _written(self.cost),
            "refused": {str(choice): reason for choice, reason in self.refused.items()},
            "shapes": [str(shape) for shape in self.shapes],
            "rounds": [one.to_dict() for one in self.rounds],
        }

    @classmethod
    def read(cls, data: Any) -> "Record":
        """What `to_dict` made. Raises ValueError for anything else."""
        RECORD(data, "a record")
        return cls(
            [Shape.parse(text) for text in data["shapes"]],
            [Round.read(one) for one in data["rounds"]],
            {Choice.parse(name): str(reason) for name, reason in data["refused"].items()},
            {Shape.parse(text): Choice.parse(name) for text, name in data["table"].items()},
            None if data["cost"] is None else Cost(**data["cost"]),
            bool(data["finished"]),
        )


def _written(cost: Cost) -> dict[str, Any]:
    """Without what earlier releases do not know, where it says nothing."""
    return {name: value for name, value in asdict(cost).items() if name != "halves" or value}


def for_padding(package: Package, choices: Iterable[Choice]) -> bool:
    """Whether a graph for batches with padding is among them, whose attention has a rectangle for each half."""
    return any(package.variants.get(choice.variant, {}).get("padded", False) for choice in choices)


def key(package: Package, provider: str, precision: str) -> str:
    """What a record is filed under: graph, provider, and the lowest precision that may be chosen."""
    return f"{package.graph} {provider} {precision}"


def machine() -> str:
    """This machine, as far as times depend on it."""
    return f"{_processor()}, {cores()} cores, onnxruntime {onnxruntime_module().__version__}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read(package: Package, provider: str, precision: str) -> Record | None:
    """This machine's record of a package, None where there is none, or none of this export.

    Raises PackageError for a file that cannot be read, or names what the package does not have.
    """
    data = _here(package).get("records", {}).get(key(package, provider, precision))
    if data is None:
        return None
    try:
        found = Record.read(data)
        for choice in {*found.choices, *(choice for one in found.rounds for choice in one.times)}:
            _check(choice, package, provider, precision)
    except ValueError as error:
        raise _broken(package, one_line(error)) from None
    return found


def reproducible(package: Package, provider: str, precision: str) -> str | None:
    """The variant that runs in a precision if it is a reproducible one, which no other graph may stand in for."""
    name = package.fastest(provider, precision) if precision in package.precisions(provider) else None
    return name if name is not None and package.variant(name).get("reproducible") else None


def _check(choice: Choice, package: Package, provider: str, precision: str) -> None:
    """Raises ValueError for what `isoformer tune` would not measure here."""
    alone = reproducible(package, provider, precision)
    if alone not in (None, choice.variant):
        raise ValueError(f"{choice} would give other tokens than {alone}, which is reproducible")
    if choice.threads > cores():
        raise ValueError(f"{choice} is of more threads than the {cores()} processors here")
    if choice.variant:
        variant = package.variants.get(choice.variant)
        if variant is None or variant["provider"] != provider:
            raise ValueError(f"{choice.variant} is no variant of it for {provider}")
        if PRECISIONS.index(variant["precision"]) > PRECISIONS.index(precision):
            raise ValueError(f"{choice.variant} computes in less than {precision}")


def in_use(package: Package, provider: str, precision: str | None = None) -> Record | None:
    """The record that `Session.fastest` goes by, None where it takes the default graph. Raises as `read` does."""
    record = read(package, provider, package.precision_of(package.fastest(provider, precision)))
    return record if record is not None and record.table else None


def write(package: Package, provider: str, precision: str, record: Record) -> None:
    """Files this machine's record, whole or not at all; those of other machines stay. Raises IsoformerError."""
    kept, here = _whole(package), _here(package)
    records = here.get("records", {}) | {key(package, provider, precision): record.to_dict()}
    kept.setdefault("machines", {})[machine()] = {"manifest": _export(package), "records": records}
    _save(package, kept)


def repair(package: Package) -> None:
    """Removes what no record can be filed in: this machine's part of the file, or a file that is none.

    Records that `read` refuses stay, until `write` replaces them. Raises IsoformerError.
    """
    try:
        kept = _whole(package)
    except PackageError:
        try:
            (package.path / FILE).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(package, error) from None
        return
    try:
        _here(package)
    except PackageError:
        del kept["machines"][machine()]
        _save(package, kept)


def _save(package: Package, content: dict[str, Any]) -> None:
    beside = package.path / f".{FILE}.partial"  # of one name, so that kills leave one at most
    try:
        beside.unlink(missing_ok=True)  # rather than written to: it may be anything
        with beside.open("x", encoding="utf-8") as file:
            json.dump(content | {"schema": SCHEMA}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(package.path / FILE)
    except OSError as error:
        raise _unwritable(package, error) from None


def summary(package: Package) -> str | None:
    """What `inspect` says of it in one line, None for a package that was never tuned. Raises PackageError as `read`."""
    machines = _whole(package).get("machines", {})
    if not machines:
        return None
    this = machine()
    records = _here(package).get("records", {})
    try:
        for name, data in records.items():
            RECORD(data, name)
    except FormError as error:
        raise _broken(package, one_line(error)) from None
    tuned = [name for name, data in records.items() if data["table"]]
    if tuned:
        return f"here ({this}), for {', '.join(tuned)}"
    if records:
        return f"begun here, not yet decided; the default graph runs until isoformer tune {package.path} has ended"
    if this in machines:
        return f"an earlier export; the default graph runs here: isoformer tune {package.path}"
    others = "; ".join([*machines][:9])
    return f"on another machine ({others}); the default graph runs here: isoformer tune {package.path}"


def _whole(package: Package) -> dict[str, Any]:
    """The file's content, {} where there is none. It is under no digest, so it is held to a form."""
    file = package.path / FILE
    if not os.path.lexists(file):
        return {}
    try:
        # Not a pipe, which would keep whoever opens it waiting, nor a link that was made after the package was loaded.
        if not file.is_file() or not file.resolve().is_relative_to(package.path.resolve()):
            raise ValueError("it is no file of the package")
        data = read_object(file)
        if data.get("schema") != SCHEMA:
            raise ValueError(f"it is not of schema {SCHEMA}")
        record({"machines": mapped(anything, MACHINES)})(data, "")
    except (PackageError, OSError, ValueError, RuntimeError) as error:
        raise _broken(package, one_line(error).removeprefix(f"{file} ")) from None
    return data


def _here(package: Package) -> dict[str, Any]:
    """What the file has of this machine and this export."""
    found = _whole(package).get("machines", {}).get(machine(), {})
    try:
        record({}, {"records": mapped(anything, MACHINES)})(found, "its part for this machine")
    except FormError as error:
        raise _broken(package, one_line(error)) from None
    return found if found.get("manifest") == _export(package) else {}


def _export(package: Package) -> str:
    return sha256(package.path / MANIFEST)


def _broken(package: Package, why: str) -> PackageError:
    return PackageError(f"{package.path / FILE} cannot be used ({why}); remove it, or run isoformer tune again")


def _unwritable(package: Package, error: OSError) -> IsoformerError:
    return IsoformerError(f"{package.path / FILE} cannot be written: {error.strerror or error}")
