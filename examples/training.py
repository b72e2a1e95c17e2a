"""The training loop of the examples: a checkpoint a round, and the very same result when it is resumed."""

import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from examples.common import CHECKPOINT, draw_curves, progress_bar

M = TypeVar("M", bound=nn.Module)


class Stateful(Protocol):
    """An optimizer, a schedule, another module."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class Step(NamedTuple):
    """A batch's loss and the optimizer that steps by it.

    A point of `curve` is the mean over a round of `shown`, the loss itself unless given, each counted `items` times.
    """

    loss: Tensor
    optimizer: Optimizer
    items: int = 1
    curve: str = "training"
    shown: Tensor | None = None


class Picture(NamedTuple):
    """A file of curves, all of them unless named."""

    file: str
    ylabel: str
    curves: tuple[str, ...] = ()


@dataclass
class Training(Generic[M]):
    """A model on its way, and its curves so far: a number a round.

    parts: what else goes on from a checkpoint. settings: describes settings and data; a checkpoint goes on with the
    same alone. steps: of the round of that number, each taken before the next is asked for, some `batches` in all.
    score: measured after a round, in eval mode, a number a curve. best: the curve whose highest point is the best
    round's. clip: what the gradient's norm is cut at. threads: of PyTorch in training, its own number where None; one
    is faster for matrices this small, and gives the same result on any number of cores.
    """

    model: M
    parts: dict[str, Stateful]
    settings: str
    steps: Callable[[int], Iterator[Step]]
    batches: int
    pictures: tuple[Picture, ...]
    score: Callable[[], dict[str, float]] = dict
    unit: str = "epoch"
    best: str = ""
    clip: float | None = 1.0
    threads: int | None = 1
    curves: dict[str, list[float]] = field(default_factory=dict)
    best_state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """How many rounds are done."""
        return max(map(len, self.curves.values()), default=0)

    def start(self, folder: Path, resume: bool = False) -> None:
        """Makes the folder and its checkpoint, or goes on from the one that is there.

        Raises ValueError, one line, when there is none to go on from, it is not whole, or of other settings.
        """
        if resume:
            self.load(folder / CHECKPOINT)
        folder.mkdir(parents=True, exist_ok=True)
        self.save(folder / CHECKPOINT)

    def run(self, folder: Path, console: Console, *, rounds: int, minutes: float) -> None:
        """Trains until `rounds` are done in all, or `minutes` have passed and the round is over.

        Each leaves the checkpoint; the end, also by Ctrl-C, the pictures.
        """
        end = time.monotonic() + 60 * minutes
        try:
            with threads(self.threads), progress_bar(console) as bar:
                line = bar.add_task("training", total=rounds * self.batches, completed=self.rounds * self.batches)
                while self.rounds < rounds and time.monotonic() < end:
                    said = self.round(lambda: bar.advance(line))
                    self.save(folder / CHECKPOINT)
                    words = ", ".join(f"{name} {value:.3f}" for name, value in said.items())
                    bar.update(
                        line, completed=self.rounds * self.batches, description=f"{self.unit} {self.rounds}: {words}"
                    )
        finally:
            for file, ylabel, names in self.pictures if self.curves else ():
                curves = {name: values for name, values in self.curves.items() if name in (names or self.curves)}
                draw_curves(curves, folder / file, xlabel=self.unit, ylabel=ylabel)

    def round(self, advance: Callable[[], None] = lambda: None) -> dict[str, float]:
        """One round more; its points of the curves."""
        self.model.train()
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for loss, optimizer, items, curve, shown in self.steps(self.rounds):
            optimizer.zero_grad()
            loss.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            optimizer.step()
            sums[curve] = sums.get(curve, 0.0) + (loss if shown is None else shown).item() * items
            counts[curve] = counts.get(curve, 0) + items
            advance()
        self.model.eval()
        said = {name: total / counts[name] for name, total in sums.items()} | self.score()
        if self.best and said[self.best] > max(self.curves.get(self.best, ()), default=float("-inf")):
            self.best_state = copy.deepcopy(self.model.state_dict())
        for name, value in said.items():
            self.curves.setdefault(name, []).append(value)
        return said

    def take_best(self) -> int:
        """Gives the model the weights of its best round, whose number is returned; 0 is before the first."""
        if self.best_state:
            self.model.load_state_dict(self.best_state)
        scores = self.curves.get(self.best, [])
        return scores.index(max(scores)) + 1 if scores else 0

    def length(self) -> str:
        """How long the weights of `take_best`, or of the end where no round is the best, were trained."""
        return f"{self.take_best()} of {self.rounds} {self.unit}s" if self.best else f"{self.rounds} {self.unit}s"

    def save(self, path: Path) -> None:
        """Writes a checkpoint beside `path` and renames it, so that a whole one always stands there."""
        state = {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "best": self.best_state,
            "curves": self.curves,
            "random": torch.get_rng_state(),
        }
        partial = path.with_name(f".{path.name}.partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint. Raises ValueError as `start` does."""
        try:
            state = torch.load(path, weights_only=True)
        except FileNotFoundError:
            raise ValueError(f"{path} is not there: start without --resume") from None
        except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
            kind = type(error).__name__
            raise ValueError(f"{path} is not a whole checkpoint ({kind}): start without --resume") from None
        if not isinstance(state, dict) or state.get("settings") != self.settings:
            raise ValueError(f"{path} is of other settings or other data: start without --resume")
        self.model.load_state_dict(state["model"])
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        self.best_state, self.curves = state["best"], state["curves"]
        torch.set_rng_state(state["random"])


@contextmanager
def threads(count: int | None = 1) -> Iterator[None]:
    """PyTorch computes in so many threads, or as before where None."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weights(*models: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(weight.numel() for model in models for weight in model.parameters() if weight.requires_grad)
