"""The batches that graphs are measured with."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from isoformer.runtime.by_shape import key_mask
from isoformer.runtime.cases import BATCH_AXIS, Arrays, sample, with_lengths
from isoformer.runtime.errors import InputError
from isoformer.runtime.package import Package, Signature
from isoformer.runtime.tuning import Shape

DEFAULT = "1x16,1x128,1x512,8x32,8x128,8x128:697,16x256:2656"
DEFAULT_DECODER = "1x16,1x512,4x64"
STEPS_ROOM = 64  # tokens behind a prompt that a decoder's limit must leave


def is_decoder(package: Package) -> bool:
    """Whether the graph continues texts behind a cache, as `Decoder` runs it."""
    names = {spec.name for spec in package.signature.inputs}
    own = any(name.startswith("past_key_values.") for name in names)
    return own and "logits_positions" in names and not any(".encoder." in name for name in names)


def length_axis(signature: Signature) -> str | None:
    """The axis of a graph of rows and one length, None for another graph."""
    others = [axis for axis in signature.free_axes if axis != BATCH_AXIS]
    found = others[0] if BATCH_AXIS in signature.axes and len(others) == 1 else None
    rows = all(spec.axes[:1] == (BATCH_AXIS,) for spec in signature.inputs)
    return found if found is not None and rows and signature.axes[found][0] >= 1 and not signature.sums else None


def shapes_of(package: Package, text: str | None) -> list[Shape]:
    """The shapes to measure: those asked for, or some that the model takes; [] for a graph that is not measured.

    Raises InputError for a text that holds no shapes, and for those that the model does not take.
    """
    decoder = is_decoder(package)
    axis = length_axis(package.signature)
    if axis is None and not decoder:
        return []
    found = _parsed(text or (DEFAULT_DECODER if decoder else DEFAULT))
    if decoder:
        limit = next((spec.high for spec in package.signature.inputs if spec.name == "position_ids"), None)
        most = None if limit is None else max(1, limit - STEPS_ROOM)
        fitting = _fitting(found, most, text, padded=False)
        return [replace(shape, kind=kind) for shape in fitting for kind in ("prefill", "step")]
    most = package.signature.axes[str(axis)][1]
    return _fitting(found, most, text, padded=key_mask(package.signature) is not None)


def _parsed(text: str) -> list[Shape]:
    try:
        found = [Shape.parse(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--shapes: {error}") from None
    if kinds := [str(shape) for shape in found if shape.kind != "run"]:
        raise InputError(f"--shapes: {kinds[0]!r} is no shape such as 8x128")
    return list(dict.fromkeys(found))


def _fitting(shapes: Iterable[Shape], most: int | None, asked: str | None, *, padded: bool) -> list[Shape]:
    """Those that the model takes, default ones cut to its longest."""
    found = []
    for shape in shapes:
        if not padded and shape.real < shape.batch * shape.length:
            if asked:
                raise InputError(f"--shapes: {shape} has padding, and this model's inputs do not say where it is")
        elif most is None or shape.length <= most:
            found.append(shape)
        elif asked:
            raise InputError(f"--shapes: {shape} is longer than the model takes, {most}")
        else:
            found.append(_cut(shape, most))
    return list(dict.fromkeys(found))


def _cut(shape: Shape, length: int) -> Shape:
    """The shape at a smaller length, with about as large a share of padding."""
    real = shape.real * length // shape.length
    return Shape(shape.batch, length, max(length + shape.batch - 1, min(real, shape.batch * length)))


def inputs_of(signature: Signature, shape: Shape) -> Arrays:
    """Random inputs of the shape; padding stands on the right, rows are of many lengths, the longest full."""
    rng = _rng(shape)
    sizes = signature.complete({BATCH_AXIS: shape.batch, str(length_axis(signature)): shape.length})
    if shape.real == shape.batch * shape.length:
        return sample(signature, sizes, "none", rng)
    return with_lengths(signature, sizes, lengths_of(shape, rng), rng)


def _rng(shape: Shape) -> np.random.Generator:
    return np.random.default_rng([shape.batch, shape.length, shape.real])


def lengths_of(shape: Shape, rng: np.random.Generator | None = None) -> np.ndarray:
    """(batch,): lengths that add up to the real tokens, drawn evenly, the first the longest; those of `inputs_of`."""
    rng = rng or _rng(shape)
    lengths = np.full(shape.batch, shape.length)
    while (extra := int(lengths.sum()) - shape.real) > 0:
        row = rng.integers(1, shape.batch)
        lengths[row] = max(1, lengths[row] - rng.integers(1, min(extra, max(1, shape.length // 4)) + 1))
    return lengths


def prompts_of(shape: Shape, vocab_size: int) -> tuple[list[list[int]], list[list[int]]]:
    """Two lots of prompts that begin with unlike tokens, so that no cache of the one serves the other."""
    rng = np.random.default_rng([shape.batch, shape.length])
    tokens = rng.integers(0, vocab_size, (2, shape.batch, shape.length))
    tokens[0, :, 0], tokens[1, :, 0] = 0, 1
    return tokens[0].tolist(), tokens[1].tolist()
