"""A process that answers each line with a line, so that several can take turns: one works while the others wait."""

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


class Answering:
    """options: of `subprocess.Popen`. Whoever starts one ends it."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self._process: subprocess.Popen[str] = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
        )

    def ask(self, question: object) -> str:
        """The line that it answers with, "" where it has stopped."""
        with suppress(BrokenPipeError):
            print(question, file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> str:
        """The next line that it writes, "" where it has stopped before the end of one."""
        line = self._process.stdout.readline() if self._process.stdout else ""
        return line if line.endswith("\n") else ""

    def end(self) -> None:
        """Kills it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was written to a process that has stopped
                if pipe:
                    pipe.close()
