"""One candidate in a process of its own: `python -m isoformer.runtime.tune.worker PACKAGE GRAPH PROVIDER CHOICE`.

It opens the graph, replays the golden vectors, and says in one line of JSON whether they passed. Then it reads a shape
a line and answers with the milliseconds of one run, and how long its threads had no processor, as a share of the turn.
It ends with its input, so also with whoever started it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from isoformer.runtime import decoding
from isoformer.runtime.bench import time_runs, waited
from isoformer.runtime.binding import Decoder
from isoformer.runtime.errors import IsoformerError
from isoformer.runtime.package import load
from isoformer.runtime.parity import Comparison
from isoformer.runtime.session import Session
from isoformer.runtime.tune.inputs import inputs_of, is_decoder, prompts_of
from isoformer.runtime.tuning import Choice, Shape
from isoformer.runtime.verify import verify

SECONDS = 0.12  # of a turn, at least
STEPS = 16  # tokens of a turn, at most


def main() -> None:
    path, graph, provider, choice = sys.argv[1:]
    try:
        session = Session(load(path).graphs[graph], provider, **Choice.parse(choice).options())  # pyright: ignore[reportArgumentType]
        failed = [comparison for comparison in _parity(session) if not comparison.passed]
    except IsoformerError as error:
        _say({"refused": str(error)})
        return
    _say({"refused": failed[0].line()} if failed else {"ready": True})
    ask = _decoder(Decoder(session)) if is_decoder(session.package) else _plain(session)
    for line in [] if failed else sys.stdin:
        before, begin = waited(), time.perf_counter()
        seconds = ask(Shape.parse(line))
        _say({"ms": seconds * 1e3, "waited": (waited() - before) / (time.perf_counter() - begin)})


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _parity(session: Session) -> list[Comparison]:
    """The golden vectors of the package, or its steps where the graph writes its cache in place."""
    package, variant = session.package, session.variant
    if is_decoder(package) and package.manifest.get("decoding"):
        return list(decoding.verify(package, session, variant or "canonical"))
    report = verify(package, session.run, variant or "canonical", seed=0, golden_alone=True, variant=variant)
    if not report.comparisons:
        raise IsoformerError("the package has no golden vectors to hold it to")
    return report.comparisons


def _plain(session: Session) -> Callable[[Shape], float]:
    """Seconds of one run of a shape."""
    known: dict[Shape, dict[str, np.ndarray]] = {}

    def ask(shape: Shape) -> float:
        if shape not in known:
            known[shape] = inputs_of(session.signature, shape)
            session.run(known[shape])
        return float(np.median(time_runs(lambda: session.run(known[shape]), 1, SECONDS)))

    return ask


def _decoder(decoder: Decoder) -> Callable[[Shape], float]:
    """Seconds of a prompt, or of a token after it."""

    def ask(shape: Shape) -> float:
        lots = prompts_of(shape, decoder.vocab_size or 2)
        turn = 0

        def prefill() -> None:
            nonlocal turn
            turn += 1
            decoder.start(lots[turn % 2])

        if shape.kind == "prefill":
            return float(np.median(time_runs(prefill, 1, SECONDS)))
        prefill()
        following = [[1]] * shape.batch
        decoder.append(following)
        return float(np.median([time_once(lambda: decoder.append(following)) for _ in range(STEPS)]))

    return ask


def time_once(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    return float(time_runs(function, 1, 0.0)[0])


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # whoever started it was killed
        os._exit(1)
