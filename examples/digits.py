"""scikit-learn's handwritten digits as pictures, split, and the training loop of the examples that learn from them."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from examples.common import draw_curves, load_state, one_thread, progress_bar, save_state

M = TypeVar("M", bound=nn.Module)
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Part:
    """Pictures (n, 8, 8, 1), uint8, and their digits (n,)."""

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Digits:
    """1797 digits: three fifths to train on, one to choose settings by, one to report; each class alike in all."""

    training: Part
    validation: Part
    test: Part

    def digest(self) -> str:
        """The SHA-256 of all of it."""
        arrays = (a for part in (self.training, self.validation, self.test) for a in (part.pixels, part.labels))
        return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def read_digits(seed: int = 0) -> Digits:
    """Alpaydin and Kaynak's digits (https://doi.org/10.24432/C50P49), whose 0 … 16 become 0 … 255."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    rest, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=seed, stratify=labels)
    training, validation = train_test_split(rest, test_size=0.25, random_state=seed, stratify=labels[rest])
    return Digits(*(Part(pixels[chosen], labels[chosen]) for chosen in (training, validation, test)))


@dataclass(frozen=True)
class Recipe:
    """AdamW with the learning rate falling along half a cosine."""

    epochs: int = 120
    batch: int = 64
    rate: float = 2e-3
    decay: float = 0.05
    seed: int = 0


@dataclass
class History:
    """The mean loss of each epoch so far, and the share of the validation part that was right after it."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


class Trainer(Generic[M]):
    """A model on its way: weights, optimizer, schedule, random numbers and history.

    loss: of the model, pixels (b, 8, 8, 1) and labels (b,). data: a digest; a checkpoint goes on with the same only.
    """

    def __init__(self, model: M, loss: Callable[[Tensor, Tensor], Tensor], recipe: Recipe, data: str = "") -> None:
        self.model = model
        self.loss = loss
        self.recipe = recipe
        self.made_with = f"{model.config} {recipe} {data}"
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, recipe.epochs)
        self.history = History()

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history.loss)

    def train_epoch(self, part: Part, accuracy: Callable[[], float], step: Callable[[], None] = lambda: None) -> None:
        """One pass in an order that depends on the seed and the epoch; `accuracy` is measured after it."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.epoch)
        pixels, labels = torch.from_numpy(part.pixels), torch.from_numpy(part.labels)
        self.model.train()
        total = 0.0
        for chosen in torch.randperm(len(labels), generator=generator).split(self.recipe.batch):
            loss = self.loss(pixels[chosen], labels[chosen])
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            total += loss.item() * len(chosen)
            step()
        self.schedule.step()
        self.model.eval()
        right = accuracy()
        self.history.loss.append(total / len(labels))
        self.history.accuracy.append(right)

    def draw(self, path: Path) -> None:
        """The history as a PNG."""
        curves = {"training loss": self.history.loss, "validation accuracy": self.history.accuracy}
        draw_curves(curves, path, xlabel="epoch", ylabel="nats; share")

    def save(self, path: Path) -> None:
        """Writes the checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "history": {"loss": self.history.loss, "accuracy": self.history.accuracy},
            "made_with": self.made_with,
        }
        save_state(path, state)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint. Raises ValueError for one that is broken, or of another model, recipe or data."""
        state = load_state(path, self.made_with)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        self.history = History(**state["history"])


def run_epochs(
    trainer: Trainer[Any],
    part: Part,
    accuracy: Callable[[], float],
    folder: Path,
    *,
    minutes: float,
    console: Console,
) -> None:
    """Trains until the recipe's epochs are done, or `minutes` have passed and the epoch is over.

    Each epoch leaves folder/checkpoint.pt.
    """
    end, epochs = time.monotonic() + 60 * minutes, trainer.recipe.epochs
    steps = -(-len(part.labels) // trainer.recipe.batch)
    trainer.save(folder / "checkpoint.pt")
    with one_thread(), progress_bar(console) as bar:
        line = bar.add_task("training", total=steps * epochs, completed=steps * trainer.epoch)
        while trainer.epoch < epochs and time.monotonic() < end:
            trainer.train_epoch(part, accuracy, lambda: bar.advance(line))
            trainer.save(folder / "checkpoint.pt")
            right = trainer.history.accuracy[-1]
            bar.update(line, description=f"epoch {trainer.epoch}: {right:.1%} of the validation part right")
