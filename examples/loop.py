"""A training that is saved after each round and goes on to the very same result, for examples of one model or two."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import typer
from rich.console import Console
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from examples.common import draw_curves, load_state, one_thread, progress_bar, save_state
from isoformer.export.errors import ExportError


@dataclass
class Training:
    """What a training consists of: modules, optimizers and schedules by name, and its curves so far.

    round: trains for a round and says how it went, a number a curve. made_with: settings and data; a checkpoint goes
    on with the same only.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    round: Callable[[], dict[str, float]]
    made_with: str
    schedules: dict[str, LRScheduler] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """How many rounds are done."""
        return max(map(len, self.curves.values()), default=0)

    def step(self) -> dict[str, float]:
        """One round more; what it said."""
        said = self.round()
        for name, value in said.items():
            self.curves.setdefault(name, []).append(value)
        return said

    def save(self, path: Path) -> None:
        """Writes a checkpoint, whole or not at all."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        save_state(
            path,
            {
                "parts": parts,
                "random": torch.get_rng_state(),
                "curves": self.curves,
                "made_with": self.made_with,
            },
        )

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint. Raises ValueError for one that is broken, or of other settings or data."""
        state = load_state(path, self.made_with)
        for name, part in self._parts().items():
            part.load_state_dict(state["parts"][name])
        torch.set_rng_state(state["random"])
        self.curves = state["curves"]

    def _parts(self) -> dict[str, nn.Module | Optimizer | LRScheduler]:
        groups = {"module": self.modules, "optimizer": self.optimizers, "schedule": self.schedules}
        return {f"{kind} {name}": part for kind, parts in groups.items() for name, part in parts.items()}


def train(
    training: Training, folder: Path, *, rounds: int, minutes: float, ylabel: str, resume: bool, console: Console
) -> None:
    """Trains until `rounds` are done in all, or `minutes` have passed. Each leaves folder/checkpoint.pt; the end,
    also by Ctrl-C, folder/loss.png.

    resume: go on from that checkpoint. Raises ValueError when it is not there, or not of this training.
    """
    checkpoint, end = folder / "checkpoint.pt", time.monotonic() + 60 * minutes
    if resume:
        training.load(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    training.save(checkpoint)
    try:
        with one_thread(), progress_bar(console) as bar:
            line = bar.add_task("training", total=rounds, completed=training.rounds)
            while training.rounds < rounds and time.monotonic() < end:
                said = training.step()
                training.save(checkpoint)
                words = ", ".join(f"{name} {value:.3f}" for name, value in said.items())
                bar.update(line, completed=training.rounds, description=words)
    finally:
        if training.curves:
            draw_curves(training.curves, folder / "loss.png", xlabel="round", ylabel=ylabel)


@contextmanager
def one_line_errors(console: Console, checkpoint: Path) -> Iterator[None]:
    """What goes wrong by a mistake or by Ctrl-C ends the program with one line."""
    try:
        yield
    except (ExportError, OSError, ValueError) as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.print(f"stopped; --resume goes on from the last whole round ({checkpoint})", soft_wrap=True)
        raise typer.Exit(130) from None
