"""Engines in processes of their own that take turns, one working while the others wait."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

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
        rounds = [(question, turn) for question in questions for turn in range(-1, count)]
        for question, turn in track(rounds, description="turns", console=Console(stderr=True)):
            for engine, process in workers.items():
                print(question, file=process.stdin, flush=True)
                reply = process.stdout.readline() if process.stdout else ""
                if not reply:
                    sys.exit(f"{engine} stopped; what it said is above")
                if turn >= 0:
                    yield json.loads(reply) | {"turn": turn}
    finally:
        for process in workers.values():
            process.kill()
