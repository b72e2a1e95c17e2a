"""scikit-learn's digits for the examples that draw: 1,797 images of 8 × 8 pixels, levels 0 … 16, in three parts."""

import hashlib
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

LEVELS, SIDE = 17, 8
LABELS = tuple("0123456789")


@dataclass(frozen=True)
class Part:
    """images (N, 64) and classes (N,), int64."""

    images: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Digits:
    """What is trained on, what settings are chosen by, and what is reported on."""

    training: Part
    validation: Part
    test: Part

    def digest(self) -> str:
        """The SHA-256 of all of it."""
        parts = (self.training, self.validation, self.test)
        return hashlib.sha256(b"".join(part.images.tobytes() + part.classes.tobytes() for part in parts)).hexdigest()


def read(seed: int = 0) -> Digits:
    """The digits, each class divided alike: 70 % for training, 10 % for validation, 20 % to test."""
    images, classes = load_digits(return_X_y=True)
    whole = Part(images.astype(np.int64), classes.astype(np.int64))
    rest, test = _divide(whole, 0.2, seed)
    training, validation = _divide(rest, 0.125, seed)
    return Digits(training, validation, test)


def _divide(part: Part, share: float, seed: int) -> tuple[Part, Part]:
    one, other = train_test_split(np.arange(len(part)), test_size=share, stratify=part.classes, random_state=seed)
    return Part(part.images[one], part.classes[one]), Part(part.images[other], part.classes[other])
