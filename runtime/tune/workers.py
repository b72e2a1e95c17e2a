"""The processes of the candidates, which take turns: one works while the others wait."""

import json
import sys
from collections.abc import Iterable
from random import Random
from types import TracebackType

from isoformer.runtime.forms import one_line
from isoformer.runtime.package import Package
from isoformer.runtime.tune.answering import Answering
from isoformer.runtime.tuning import Choice, Shape


class Workers:
    """The candidates' processes; they end with the block.

    refused: candidates that failed, and how.
    """

    def __init__(self, package: Package, provider: str) -> None:
        self._package, self._provider = package, provider
        self._processes: dict[Choice, Answering] = {}
        self._shuffle = Random(0).shuffle  # noqa: S311
        self.refused: dict[Choice, str] = {}

    def open(self, choice: Choice) -> bool:
        """Whether the candidate runs here and passes its parity."""
        if choice in self._processes:
            return True
        if choice in self.refused:
            return False
        command = [sys.executable, "-m", "isoformer.runtime.tune.worker", str(self._package.path)]
        command += [self._package.graph, self._provider, str(choice)]
        # A session of its own: Ctrl-C is for us, and we end it.
        process = self._processes[choice] = Answering(command, start_new_session=True)
        answer = _read(process.answer())
        if "ready" not in answer:
            self._refuse(choice, answer.get("refused", "its process stopped before it was ready"))
        return choice not in self.refused

    def keep(self, choices: Iterable[Choice]) -> None:
        """Ends the processes of all others."""
        kept = set(choices)
        for choice in [choice for choice in self._processes if choice not in kept]:
            self._processes.pop(choice).end()

    def round(self, shape: Shape, choices: Iterable[Choice]) -> tuple[dict[Choice, float], float]:
        """The milliseconds of each candidate at a shape, one after the other in an order that is drawn anew.

        Beside them the largest share of a turn that a candidate's threads waited for a processor.
        """
        order, times, waited = [choice for choice in choices if choice in self._processes], {}, 0.0
        self._shuffle(order)
        for choice in order:
            answer = _read(self._processes[choice].ask(shape))
            if "ms" in answer:
                times[choice], waited = answer["ms"], max(waited, answer["waited"])
            else:
                self._refuse(choice, f"its process stopped at {shape}")
        return times, waited

    def _refuse(self, choice: Choice, reason: str) -> None:
        self.refused[choice] = " ".join(one_line(ValueError(reason)).split())
        self._processes.pop(choice).end()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.keep(())


def _read(line: str) -> dict:
    return json.loads(line) if line else {}
