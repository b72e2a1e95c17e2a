"""The training loop of the examples that keep their best epoch: a checkpoint an epoch, and the same result resumed."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from rich.console import Console
from torch import Tensor, nn

from examples.common import load_state, progress_bar, save_state

AModel = TypeVar("AModel", bound=nn.Module)


@dataclass
class Curves:
    """Of each epoch so far: the mean loss over its batches, and a score of the validation part, higher is better."""

    loss: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)


class Fit(Generic[AModel]):
    """A model on its way: its weights, those of its best epoch, the optimizer, the curves and the random numbers.

    made_with: describes settings and data; a checkpoint goes on with the same alone. schedule: of the learning rate,
    a step a batch.
    """

    def __init__(
        self,
        model: AModel,
        optimizer: torch.optim.Optimizer,
        made_with: str,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.made_with = made_with
        self.curves = Curves()
        self.best: dict[str, Tensor] = copy.deepcopy(model.state_dict())

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.curves.loss)

    def run(
        self,
        checkpoint: Path,
        console: Console,
        *,
        epochs: int,
        minutes: float,
        batches: Callable[[int], Sequence[Any]],
        loss: Callable[[Any], Tensor],
        score: Callable[[], float],
        clip: float = 1.0,
    ) -> None:
        """Trains until `epochs` are done in all, or `minutes` have passed and the epoch is over.

        batches: of the epoch of that number, always the same; loss: of a batch; score: of the model on the validation
        part, in eval mode. The gradient's norm is cut at `clip`. Each epoch leaves the checkpoint.
        """
        end = time.monotonic() + 60 * minutes
        self.save(checkpoint)
        with progress_bar(console) as bar:
            line = bar.add_task("training", total=epochs)
            while self.epoch < epochs and time.monotonic() < end:
                made = batches(self.epoch)
                bar.update(line, total=epochs * len(made), completed=self.epoch * len(made))
                self.model.train()
                total = 0.0
                for batch in made:
                    found = loss(batch)
                    self.optimizer.zero_grad()
                    found.backward()
                    nn.utils.clip_grad_norm_(self.model.parameters(), clip)
                    self.optimizer.step()
                    if self.schedule is not None:
                        self.schedule.step()
                    total += found.item()
                    bar.advance(line)
                self.model.eval()
                reached = score()
                if reached > max(self.curves.score, default=float("-inf")):
                    self.best = copy.deepcopy(self.model.state_dict())
                self.curves.loss.append(total / len(made))
                self.curves.score.append(reached)
                self.save(checkpoint)
                bar.update(
                    line, description=f"epoch {self.epoch}: loss {self.curves.loss[-1]:.3f}, validation {reached:.4f}"
                )

    def take_best(self) -> int:
        """Gives the model the weights of its best epoch, whose number is returned; 0 is before the first."""
        self.model.load_state_dict(self.best)
        self.model.eval()
        return self.curves.score.index(max(self.curves.score)) + 1 if self.curves.score else 0

    def save(self, path: Path) -> None:
        """Writes the checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "schedule": {} if self.schedule is None else self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "curves": {"loss": self.curves.loss, "score": self.curves.score},
            "made_with": self.made_with,
        }
        save_state(path, state)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint. Raises ValueError as `load_state` does."""
        state = load_state(path, self.made_with)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        self.best = state["best"]
        self.curves = Curves(**state["curves"])
