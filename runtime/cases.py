"""Inputs to verify with, made from a signature alone: sizes, mask patterns, random values."""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from isoformer.runtime.errors import InputError
from isoformer.runtime.package import Signature, TensorSpec

BATCHES = (1, 2, 5)
LENGTHS = (1, 2, 7, 31, 128, 512)
MASKS = {
    "none": "every key takes part",
    "right": "the same padding on the right of every sequence",
    "left": "the same padding on the left of every sequence",
    "ragged": "a length of its own for every sequence, padded on the right",
    "holes": "keys left out at random",
    "row": "one query row without any key",
    "sample": "one sequence without any key",
}
BATCH_AXIS = "batch_size"
# From so many parameters on, a grid of the sizes above would take the better part of an hour.
LARGE = 120_000_000
MAX_VALUES = 2**28  # of one input

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One cell of the grid: the sizes of the named axes and a pattern of MASKS.

    label: what tells a case of other sizes from the cell of the same batch and length.
    """

    mask: str
    batch: int
    length: int
    sizes: dict[str, int]
    label: str = ""

    @property
    def name(self) -> str:
        return f"{self.mask}{self.label}-{self.batch}x{self.length}"

    def inputs(self, signature: Signature, seed: int = 0) -> Arrays:
        """The case's inputs; the same seed makes the same arrays."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        return sample(signature, self.sizes, self.mask, rng)


def extent(parameters: int) -> tuple[Sequence[int], Sequence[int]]:
    """The batches and lengths of the grid of a model of that size: all of them, or the small ones of a large model."""
    return (BATCHES, LENGTHS) if parameters < LARGE else (BATCHES[:2], LENGTHS[:-1])


def mask_patterns(signature: Signature) -> list[str]:
    """The patterns that the signature's masks can express: a single row only where there is a query axis."""
    masks = [spec for spec in signature.inputs if spec.masks]
    if not masks:
        return ["none"]
    if all(spec.kind == "lengths" for spec in masks):
        return ["none", "right", "ragged", "sample"]
    has_rows = any(spec.kind == "mask" and len(spec.axes) >= 3 for spec in masks)
    return [name for name in MASKS if has_rows or name != "row"]


def grid(signature: Signature, batches: Sequence[int] = BATCHES, lengths: Sequence[int] = LENGTHS) -> Iterator[Case]:
    """Every batch × length × mask pattern that the signature can express.

    Lengths over an axis' maximum give way to the maximum. Where inputs have several length axes,
    the second takes the next length of the list, and so on, so that no two are always equal. Of places
    that are asked for ("indices") there are one, two or three: each may cost a row of a vocabulary.
    """
    axes = [axis for axis in signature.free_axes if axis != BATCH_AXIS]
    asked = {axis for spec in signature.inputs if spec.kind == "indices" for axis in spec.axes[1:]}
    bounds = [signature.axes[axis] for axis in axes]
    most = min((high for _, high in bounds if high is not None), default=max(lengths))
    lengths = sorted({min(length, most) for length in lengths}) if axes else [1]
    low, high = signature.axes.get(BATCH_AXIS, (1, None))
    batches = sorted({max(low, batch if high is None else min(batch, high)) for batch in batches})
    for mask in mask_patterns(signature):
        for batch in batches if BATCH_AXIS in signature.axes else (1,):
            for index, length in enumerate(lengths):
                sizes = {BATCH_AXIS: batch} if BATCH_AXIS in signature.axes else {}
                for offset, (axis, (low, high)) in enumerate(zip(axes, bounds, strict=True)):
                    size = lengths[(index + offset) % len(lengths)]
                    if low == 0:  # a cache: nothing in it yet, one length, another
                        size = (0, *lengths)[(index + offset) % len(lengths)]
                    if axis in asked:
                        size = 1 + index % 3
                    sizes[axis] = max(low, size if high is None else min(size, high))
                yield Case(mask, batch, length, signature.complete(sizes))


def sample(signature: Signature, sizes: dict[str, int], mask: str, rng: np.random.Generator) -> Arrays:
    """Random inputs of those sizes: numbers in their range, normal floats where there is none, masks of the pattern."""
    arrays: Arrays = {}
    for spec in signature.inputs:
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes)
        if math.prod(shape) > MAX_VALUES:
            raise InputError(
                f"{spec.name} of shape {shape} has too many values to be drawn; {MAX_VALUES:,} are the most"
            )
        if spec.kind == "mask":
            arrays[spec.name] = make_mask(spec, shape, mask, rng)
        elif spec.kind == "lengths":
            arrays[spec.name] = _kept(shape[0], sizes[spec.along or ""], mask, rng).sum(1).astype(spec.dtype)
        elif spec.kind == "prefix":
            arrays[spec.name] = rng.integers(0, sizes[spec.along or ""] + 1, shape).astype(spec.dtype)
        elif spec.kind == "indices":
            arrays[spec.name] = rng.integers(0, sizes[spec.along or ""], shape).astype(spec.dtype)
        elif spec.kind == "segments":
            starts = rng.random(shape) < 3 / shape[1]
            arrays[spec.name] = (_kept(shape[0], shape[1], mask, rng) * (1 + starts.cumsum(1))).astype(spec.dtype)
        elif spec.dtype == "bool":
            arrays[spec.name] = rng.random(shape) < 0.5
        elif spec.dtype == "uint8":
            arrays[spec.name] = rng.integers(spec.low, 256 if spec.high is None else spec.high, shape, np.uint8)
        elif spec.dtype.startswith("int"):
            if spec.high is None:
                raise InputError(f"{spec.name} holds whole numbers up to no bound, so none can be drawn")
            arrays[spec.name] = rng.integers(spec.low, spec.high, shape).astype(spec.dtype)
        elif spec.high is not None:
            arrays[spec.name] = rng.uniform(spec.low, spec.high, shape).astype(spec.dtype)
        else:
            arrays[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    for spec in signature.inputs:
        if spec.pad is not None:
            arrays[spec.name] = _pad(spec, spec.pad, arrays, signature)
    return arrays


def with_lengths(signature: Signature, sizes: dict[str, int], lengths: np.ndarray, rng: np.random.Generator) -> Arrays:
    """Random inputs of those sizes whose rows have these lengths (batch,), padded on the right."""
    arrays = sample(signature, sizes, "none", rng)
    for spec in signature.inputs:
        if spec.kind == "lengths":
            arrays[spec.name] = lengths.astype(spec.dtype)
        elif spec.masks:
            kept = np.arange(arrays[spec.name].shape[1]) < lengths[:, None]
            arrays[spec.name] = arrays[spec.name] * kept.astype(spec.dtype)
    for spec in signature.inputs:
        if spec.pad is not None:
            arrays[spec.name] = _pad(spec, spec.pad, arrays, signature)
    return arrays


def make_mask(spec: TensorSpec, shape: tuple[int, ...], mask: str, rng: np.random.Generator) -> np.ndarray:
    """A mask of the pattern; its last axis counts keys, the one before it queries where it has three axes or more."""
    keys = shape[-1]
    batch = shape[0] if spec.axes[0] == BATCH_AXIS else 1
    kept = _kept(batch, keys, mask, rng)
    between = (1,) * (len(shape) - 2)
    full = np.broadcast_to(kept.reshape(batch, *between, keys) if spec.axes[0] == BATCH_AXIS else kept[0], shape).copy()
    if mask == "row" and len(shape) >= 3:
        full[..., rng.integers(shape[-2]), :] = False
    return full.astype(spec.dtype)


def _kept(batch: int, keys: int, mask: str, rng: np.random.Generator) -> np.ndarray:
    """(batch, keys): the keys that the pattern lets take part, a single row left aside."""
    kept = np.ones((batch, keys), dtype=bool)
    if mask == "right":
        kept[:, max(1, keys * 2 // 3) :] = False
    elif mask == "left":
        kept[:, : keys - max(1, keys * 2 // 3)] = False
    elif mask in ("ragged", "sample"):
        kept = np.arange(keys) < rng.integers(1, keys + 1, batch)[:, None]
    elif mask == "holes":
        kept = rng.random((batch, keys)) < 0.6
        kept[np.arange(batch), rng.integers(0, keys, batch)] = True
    if mask == "sample":
        kept[-1] = False
    return kept


def takes_part(spec: TensorSpec, array: np.ndarray, keys: int) -> np.ndarray:
    """(batch, keys) booleans of a mask of two axes, lengths or segments."""
    return np.arange(keys) < array[:, None] if spec.kind == "lengths" else array != 0


def _pad(spec: TensorSpec, pad: int, arrays: Arrays, signature: Signature) -> np.ndarray:
    """The input with `pad` under every 0 of the first mask and nowhere else."""
    values = arrays[spec.name].copy()
    values[values == pad] = spec.low if spec.low != pad else spec.low + 1
    mask = next(s for s in signature.inputs if s.masks)
    kept = np.asarray(takes_part(mask, arrays[mask.name], values.shape[1]))
    while kept.ndim > values.ndim:
        kept = np.any(kept, axis=1)
    return np.where(kept, values, pad).astype(spec.dtype)
