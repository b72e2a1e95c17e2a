"""Inputs of shapes that came before: their values alone are checked again. Most calls come down to that."""

from collections.abc import Mapping
from typing import Any

import numpy as np

MOST = 256  # shapes that are remembered at a time
FEW = 128  # values that Python looks through sooner than NumPy finds its way, right after a run that filled the caches


class SeenShapes:
    """Shapes and dtypes that were found right, and what is left to do for inputs that have them."""

    def __init__(self) -> None:
        self._seen: dict[Any, tuple[list[tuple[str, int, np.dtype]], dict[str, np.ndarray]]] = {}

    def feeds(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """The arrays to feed; None where the shapes are new or a value is wrong, which others say better."""
        try:
            largest, absent = self._seen[_key(inputs)]
        except (KeyError, AttributeError, TypeError):  # new shapes, or something that is no array
            return None
        for name, most, unsigned in largest:
            # As unsigned numbers those below 0 are the largest: one pass finds either.
            array = inputs[name].view(unsigned)
            found = max(array.ravel().tolist()) if array.size <= FEW else int(np.maximum.reduce(array, axis=None))
            if found > most:
                return None
        return {**inputs, **absent}

    def add(
        self, inputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray], largest: dict[str, int] | None
    ) -> None:
        """Remembers inputs that were found right, unless they had to be converted.

        feeds: what they became. largest: values of those that hold whole numbers from 0 on; None if others are checked.
        """
        if largest is None or any(feeds[name] is not array for name, array in inputs.items()):
            return
        if len(self._seen) >= MOST:
            self._seen.clear()
        absent = {name: feeds[name] for name in feeds.keys() - inputs.keys()}
        given = [
            (name, most, np.dtype(f"u{inputs[name].itemsize}"))
            for name, most in largest.items()
            if name in inputs and inputs[name].size
        ]
        self._seen[_key(inputs)] = given, absent


def _key(inputs: Mapping[str, np.ndarray]) -> Any:
    return tuple([(name, array.__class__, array.shape, array.dtype) for name, array in inputs.items()])
