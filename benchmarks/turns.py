"""Engines in processes of their own that take turns, one working while the others wait."""

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import track

from isoformer.runtime.tune.answering import Answering

ROOT = Path(__file__).resolve().parent.parent


def take_turns(
    commands: Mapping[str, Sequence[str]],
    questions: Sequence[str],
    count: int,
    lost: Callable[[str], None] | None = None,
) -> Iterator[dict]:
    """The answers of each engine to each question, `count` times in turn, after one that is not counted.

    commands: of each engine, run in the repository's root; it reads a question a line and answers with a JSON
    object a line, to which the number of the turn is added. In each turn the engines work in an order drawn anew, so
    that none always comes after the same other; answers come in the order of `commands`. lost: is told the name of an
    engine that stopped, which is left out from then on; without it, exits with a line that names the engine.
    """
    shuffle = random.Random(0).shuffle  # noqa: S311
    with ExitStack() as stack:
        workers = {}
        for engine, command in commands.items():
            workers[engine] = Answering(command, cwd=ROOT)
            stack.callback(workers[engine].end)
        rounds = [(question, turn) for question in questions for turn in range(-1, count)]
        for question, turn in track(rounds, description="turns", console=Console(stderr=True)):
            order, replies = list(workers), {}
            shuffle(order)
            for engine in order:
                reply = workers[engine].ask(question)
                if reply:
                    replies[engine] = json.loads(reply)
                elif lost is None:
                    sys.exit(f"{engine} stopped; what it said is above")
                else:
                    lost(engine)
                    del workers[engine]
            if turn >= 0:
                yield from (replies[engine] | {"turn": turn} for engine in workers if engine in replies)
