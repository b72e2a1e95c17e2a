"""Which graph runs a batch: the one that was the fastest at the most similar batch that was measured.

Where nothing was measured, a package may have a graph for batches with padding beside the one for those without.
"""

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from isoformer.runtime.cases import BATCH_AXIS
from isoformer.runtime.package import Signature, TensorSpec
from isoformer.runtime.tuning import Choice, Shape

# A graph on real tokens takes longer by a call's worth of so many tokens, and by this share of the batch.
CALL, SHARE = 32, 1 / 16


class Chooser(Protocol):
    """Says which graph runs a batch. first: the one that is opened at once."""

    first: Choice

    def choose(self, feeds: Mapping[str, np.ndarray]) -> Choice:
        """The choice for these inputs, which have been checked."""
        ...


class _Counted:
    """How many rows, places in a row and real tokens a batch has, of inputs that have been checked."""

    def __init__(self, signature: Signature) -> None:
        self.mask = key_mask(signature)
        # A mask that may be left out is in the feeds all the same, since the session fills in defaults.
        self._name = next((s.name for s in (self.mask, *signature.inputs) if s and len(s.axes) >= 2), "")
        if self.mask is not None and self.mask.kind == "lengths":
            self._name = next(s.name for s in signature.inputs if self.mask.along in s.axes)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
        batch, length = feeds[self._name].shape[:2]
        mask = self.mask
        if mask is None:
            return batch, length, batch * length
        if mask.kind == "lengths":
            return batch, length, int(feeds[mask.name].sum())
        return batch, length, int(np.count_nonzero(feeds[mask.name]))


class ByPadding:
    """One graph for batches with little padding, and another, on real tokens only, for the rest."""

    def __init__(self, signature: Signature, whole: Choice, padded: Choice) -> None:
        self.first, self._padded = whole, padded
        self._counted = _Counted(signature)

    def choose(self, feeds: Mapping[str, np.ndarray]) -> Choice:
        """The choice for these inputs, which have been checked."""
        batch, length, real = self._counted(feeds)
        places = batch * length
        return self._padded if places - real > CALL + SHARE * places else self.first


class ByShape:
    """Chooses by the rows, the real tokens and the share of padding of a batch.

    Batches whose rows and real tokens have the same number of binary digits, and whose real tokens are the same
    quarter of all places, get the same choice, looked up once: a call costs a dictionary's look-up and the count of
    the mask, under a microsecond for 1,000 tokens.
    """

    def __init__(self, signature: Signature, table: Mapping[Shape, Choice]) -> None:
        self._table = dict(table)
        self.first = next(iter(self._table.values()))
        self._known: dict[tuple[int, int, int], Choice] = {}
        self._counted = _Counted(signature)

    def choose(self, feeds: Mapping[str, np.ndarray]) -> Choice:
        """The choice for these inputs, which have been checked."""
        batch, length, real = self._counted(feeds)
        key = batch.bit_length(), real.bit_length(), 4 * real // (batch * length)
        choice = self._known.get(key)
        if choice is None:
            choice = self._known[key] = self._nearest(*key)
        return choice

    def _nearest(self, batch_bits: int, real_bits: int, quarter: int) -> Choice:
        """The choice of the nearest measured batch: an octave of real tokens is as far as two of rows, as 30 % padding.

        The middle of the cell stands for all of it, so that the choice does not depend on who comes first.
        """
        rows = batch_bits - 0.5 if batch_bits > 1 else 0.0
        tokens, padded = real_bits - 0.5, 0.0 if quarter >= 4 else 1 - (quarter + 0.5) / 4

        def distance(shape: Shape) -> float:
            share = 1 - shape.real / (shape.batch * shape.length)
            octaves = abs(math.log2(shape.real) - tokens) + abs(math.log2(shape.batch) - rows) / 2
            return octaves + abs(share - padded) / 0.3

        return self._table[min(self._table, key=distance)]


def key_mask(signature: Signature) -> TensorSpec | None:
    """The only mask of a signature if it says which of each row's places are real: (B, L), or (B,) lengths."""
    masks = [spec for spec in signature.inputs if spec.masks]
    if len(masks) != 1 or masks[0].axes[:1] != (BATCH_AXIS,):
        return None
    mask = masks[0]
    return mask if len(mask.axes) == (1 if mask.kind == "lengths" else 2) else None
