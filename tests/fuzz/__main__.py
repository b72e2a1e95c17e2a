"""Hostile input in great numbers, each in a process that is watched.

    python -m tests.fuzz --minutes 1 [--target NAME …] [--seed N] [--write]
    python -m tests.fuzz --replay build/fuzz/failures/NAME-SEED

A failure is a signal, more than --timeout seconds, more memory than 1 GiB (3 GiB where graphs are run), no memory left
even where that is told in one line, any error that is not one line for people, or a file that is opened outside the
input's folder. Its input is kept below build/fuzz/failures. Prints a JSON line a
target with the inputs tried, the minutes and the failures; exit status 1 where there is one. --write puts the lines
into tests/fuzz/results.jsonl.
"""

import argparse
import base64
import json
import multiprocessing
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.guards import failure
from tests.fuzz.targets import TARGETS, write
from tests.fuzz.worker import PLACE, work

ROOT = Path(__file__).resolve().parents[2]
WORK, RESULTS = ROOT / "build/fuzz", Path(__file__).parent / "results.jsonl"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target")
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--seed", type=int, default=None, help="where to begin; by default another each time")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds of one input")
    parser.add_argument("--most", type=int, default=20, help="failures after which a target is left")
    parser.add_argument("--write", action="store_true", help=f"put the lines into {RESULTS.name}")
    parser.add_argument("--replay", type=Path)
    arguments = parser.parse_args()
    if arguments.replay:
        return replay(arguments.replay)
    make_material()
    seed = random.SystemRandom().randrange(2**40) if arguments.seed is None else arguments.seed
    lines = [fuzz(name, seed, arguments) for name in arguments.target or TARGETS]
    if arguments.write:
        RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return int(any(line["failures"] for line in lines))


def make_material() -> None:
    """In a process of its own: threads of torch that stand here when workers are forked would leave them waiting."""
    process = multiprocessing.get_context("fork").Process(target=_make_material)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit("the good inputs could not be made")


def _make_material() -> None:
    from tests.fuzz.material import make

    make(WORK / "material")


def fuzz(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The line of one target."""
    left, tried, failures, first = 60 * arguments.minutes, 0, [], seed
    while left > 0 and len(failures) < arguments.most:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            one = Worker(name, Path(folder), seed)
            failures += one.watch(left, arguments.timeout, arguments.most - len(failures))
        tried, left, seed = tried + one.tried, left - one.seconds, one.seed + 1
    for found in distinct(failures):
        print(f"{name} {found['seed']}: {found['wrong']}", file=sys.stderr, flush=True)
        keep(name, found["seed"])
    minutes = round(arguments.minutes - max(0.0, left) / 60, 2)
    line = {"target": name, "seed": first, "inputs": tried, "minutes": minutes, "failures": len(failures)}
    print(json.dumps(line), flush=True)
    return line


def distinct(failures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of those that differ in numbers and names alone."""
    names = rf"\d+|{re.escape(tempfile.gettempdir())}/\S+|'[^']*'|0x\S+"
    kinds = {re.sub(names, "…", found["wrong"])[-250:]: found for found in reversed(failures)}
    return list(kinds.values())


class Worker:
    """A process that tries inputs from a seed on, forked from this one so that it need not import everything anew."""

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self.at, self.noted, self.said = folder / "at", folder / "failures", folder / "said"
        self.seed, self.tried, self.seconds = seed, 0, 0.0
        self.at.write_bytes(PLACE.pack(seed, 0, 0))
        arguments = (name, WORK / "material", folder, seed)
        self.process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
        self.process.start()

    def watch(self, most_seconds: float, timeout: float, most: int) -> list[dict[str, Any]]:
        """Its failures, until so many seconds after its first input, a crash, a hang or so many failures."""
        start, hung = None, False
        while self.process.is_alive() and not hung and self.seconds < most_seconds and len(self._lines()) < most:
            time.sleep(0.2)
            self.seed, began, self.tried = PLACE.unpack(self.at.read_bytes())
            start = start or (time.monotonic() if began or self.tried else None)
            self.seconds = time.monotonic() - start if start else 0.0
            hung = bool(began) and time.monotonic() - began > timeout
        code = self.process.exitcode
        self.process.kill()
        self.process.join()
        failures = self._lines()
        self.seed, _, self.tried = PLACE.unpack(self.at.read_bytes())
        if hung:
            failures.append({"seed": self.seed, "wrong": f"took more than {timeout:g} s"})
        elif code is not None:
            failures.append(
                {"seed": self.seed, "wrong": f"ended with {code}: {self.said.read_text(errors='replace')[-800:]}"}
            )
        return failures

    def _lines(self) -> list[dict[str, Any]]:
        """The failures that have been noted."""
        lines = self.noted.read_text(encoding="utf-8").split("\n")[:-1] if self.noted.exists() else []
        return [json.loads(line) for line in lines]


def keep(name: str, seed: int) -> None:
    """Writes the input of a seed down."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        target = TARGETS[name](WORK / "material", Path(folder) / "input", Path(folder) / "decoy")
        found = target.make(random.Random(seed))  # noqa: S311
    files = {
        file: {"link": str(content)} if isinstance(content, Path) else {"bytes": base64.b64encode(content).decode()}
        for file, content in found.items()
    }
    place = WORK / "failures" / f"{name}-{seed}"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({"target": name, "seed": seed, "files": files}), encoding="utf-8")


def replay(file: Path) -> int:
    """Runs a kept input in this process, unguarded but for the form of its error."""
    make_material()
    kept = json.loads(file.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        target = TARGETS[kept["target"]](WORK / "material", Path(folder) / "input", Path(folder) / "decoy")
        found = {
            name: Path(entry["link"]) if "link" in entry else base64.b64decode(entry["bytes"])
            for name, entry in kept["files"].items()
        }
        target.put(found)
        write(Path(folder) / "shown", {name: content for name, content in found.items() if isinstance(content, bytes)})
        wrong = failure(target.run, None, Path(folder), most_memory=target.most_memory)
    print(wrong or "as it should be")
    return int(wrong is not None)


if __name__ == "__main__":
    sys.exit(main())
