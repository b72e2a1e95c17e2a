"""Engines in processes of their own that take turns, one working while the others wait. Standard library only."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def take_turns(commands: Mapping[str, Sequence[str]], questions: Sequence[str], count: int) -> Iterator[dict]:
    """The answers of each engine to each question, `count` times in turn, after one that is not counted.

    commands: of each engine, run in the repository's root; it reads a question a line and answers with a JSON
    object a line, to which the number of the turn is added. Exits with a line that names an engine that stopped.
    """
    workers = {
        engine: subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        for engine, command in commands.items()
    }
    try:
        for number, question in enumerate(questions):
            for turn in range(-1, count):
                print(f"\rcase {number + 1} of {len(questions)}, turn {turn + 1} of {count}", end="", file=sys.stderr)
                for engine, process in workers.items():
                    print(question, file=process.stdin, flush=True)
                    reply = process.stdout.readline() if process.stdout else ""
                    if not reply:
                        sys.exit(f"{engine} stopped; what it said is above")
                    if turn >= 0:
                        yield json.loads(reply) | {"turn": turn}
        print(file=sys.stderr)
    finally:
        for process in workers.values():
            process.kill()


def peak_mb() -> float:
    """The largest resident size of this process since it started its program, in MB (2^20 bytes); Linux."""
    return float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
