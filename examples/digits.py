"""scikit-learn's handwritten digits: 1,797 images of 8 × 8 pixels in three parts, and the training that names them."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from examples.training import Picture, Step, Training

M = TypeVar("M", bound=nn.Module)

LEVELS, SIDE = 17, 8
LABELS = tuple("0123456789")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SOURCE = "scikit-learn's digits (UCI, CC BY 4.0)"


@dataclass(frozen=True)
class Part:
    """images (N, 64) of levels 0 … 16 and their digits (N,), int64."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pixels(self) -> np.ndarray:
        """The images as pictures (N, 8, 8, 1) uint8, 0 … 255."""
        return np.rint(self.images * (255 / (LEVELS - 1))).astype(np.uint8).reshape(-1, SIDE, SIDE, 1)


@dataclass(frozen=True)
class Digits:
    """What is trained on, what settings are chosen by, and what is reported on."""

    training: Part
    validation: Part
    test: Part

    def digest(self) -> str:
        """The SHA-256 of all of it."""
        parts = (self.training, self.validation, self.test)
        return hashlib.sha256(b"".join(part.images.tobytes() + part.labels.tobytes() for part in parts)).hexdigest()


def read_digits(validation: int, seed: int = 0) -> Digits:
    """Alpaydin and Kaynak's digits (https://doi.org/10.24432/C50P49), each class divided alike.

    360 are the test's, `validation` the validation part's, and the rest trains.
    """
    images, labels = (array.astype(np.int64) for array in load_digits(return_X_y=True))
    rest, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=seed, stratify=labels)
    training, held = train_test_split(rest, test_size=validation, random_state=seed, stratify=labels[rest])
    return Digits(*(Part(images[chosen], labels[chosen]) for chosen in (training, held, test)))


@dataclass(frozen=True)
class Recipe:
    """AdamW with the learning rate falling along half a cosine."""

    epochs: int = 120
    batch: int = 64
    rate: float = 2e-3
    decay: float = 0.05
    seed: int = 0


def naming(
    model: M,
    loss: Callable[[Tensor, Tensor], Tensor],
    predict: Callable[[Part], np.ndarray],
    recipe: Recipe,
    digits: Digits,
) -> Training[M]:
    """The training of a model that names digits, an epoch in an order that depends on the seed and its number.

    loss: of pixels (b, 8, 8, 1) and labels (b,); predict: the model's digits (N,) of a part.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    pixels, labels = torch.from_numpy(digits.training.pixels), torch.from_numpy(digits.training.labels)

    def steps(epoch: int) -> Iterator[Step]:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch))
        for chosen in order.split(recipe.batch):
            yield Step(loss(pixels[chosen], labels[chosen]), optimizer, len(chosen), "training loss")
        schedule.step()

    def score() -> dict[str, float]:
        return {"validation accuracy": float((predict(digits.validation) == digits.validation.labels).mean())}

    parts: dict[str, Any] = {"optimizer": optimizer, "schedule": schedule}
    settings = f"{model.config} {recipe} {digits.digest()}"
    count = -(-len(labels) // recipe.batch)
    return Training(model, parts, settings, steps, count, (Picture("training.png", "nats; share"),), score)
