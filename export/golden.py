"""The golden vectors of a package: which cases they are, so that every runtime meets what goes wrong in some.

`choose` picks those of a graph, `cached` makes those of the variants that write their cache in place.

Each mask pattern over a few tokens behind a cache that holds some already (chunked prefill); an empty cache; one
token; a batch of one and of several; a long sequence. A model of many or wide outputs gets them smaller, so that all
of them fit, and what still does not is left out from the end.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from isoformer.models.signature import Signature as ModelSignature
from isoformer.runtime.cases import BATCH_AXIS, Arrays, Case, mask_patterns
from isoformer.runtime.package import PAST, PRESENT, Signature, TensorSpec

GOLDEN_BYTES = 4 * 2**20
BATCH, FEW, MOST = 2, 7, 128
HARD = ("ragged", "holes")

Sizes = tuple[int, int, int]  # batch, length, past


@dataclass(frozen=True)
class Wanted:
    """A mask pattern, and sizes to try in turn, the fullest first."""

    mask: str
    ladder: tuple[Sizes, ...]


def choose(signature: Signature, grid: Sequence[Case], room: int | None = None) -> list[Case]:
    """Cases whose inputs and outputs take `room` bytes together at most (GOLDEN_BYTES); of the grid where it has them.

    Their lengths are those of the grid, so that they share its bounds.
    """
    room = GOLDEN_BYTES if room is None else room
    listed = {(case.mask, *case.sizes.items()): case for case in grid}
    chosen: dict[str, Case] = {}
    wanted = list(_wanted(signature, grid))
    for number, one in enumerate(wanted):
        share = room // (len(wanted) - number)
        options = [_case(signature, one.mask, sizes) for sizes in one.ladder]
        fits = [case for case in options if size(signature, case) <= share]
        fits += [case for case in options[-1:] if size(signature, case) <= room]
        fits = [listed.get((case.mask, *case.sizes.items()), case) for case in fits]
        new = [case for case in fits if case.name not in chosen]
        if new:
            chosen[new[0].name] = new[0]
            room -= size(signature, new[0])
    return list(chosen.values())


def size(signature: Signature, case: Case) -> int:
    """Bytes of the case's inputs and outputs."""
    sizes = signature.complete(case.sizes)
    return sum(_bytes(spec, sizes) for spec in (*signature.inputs, *signature.outputs))


def _bytes(spec: TensorSpec, sizes: dict[str, int]) -> int:
    shape = (sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes)
    return math.prod(shape) * np.dtype(spec.dtype).itemsize


def _wanted(signature: Signature, grid: Sequence[Case]) -> Iterator[Wanted]:
    """The most telling first: what does not fit is left out from the end."""
    lengths = sorted({case.length for case in grid})
    few, two = (max(length for length in lengths if length <= max(most, lengths[0])) for most in (FEW, 2))
    one, long = lengths[0], max(length for length in lengths if length <= max(MOST, lengths[0]))
    patterns = mask_patterns(signature)
    for mask in patterns:
        yield Wanted(mask, ((BATCH, few, FEW), (BATCH, two, 2), (1, two, 1)))
    yield Wanted("none", ((1, one, 0),))
    if any(signature.axes[axis][0] == 0 for axis in signature.free_axes):  # there is a cache
        for mask in [mask for mask in ("right", "left") if mask in patterns]:
            yield Wanted(mask, ((BATCH, few, 0), (BATCH, two, 0), (1, two, 0)))
        for mask in [mask for mask in ("none", "ragged") if mask in patterns]:
            yield Wanted(mask, ((BATCH, one, FEW), (1, one, 3)))
    for mask in [mask for mask in HARD if mask in patterns]:
        yield Wanted(mask, ((5, min(31, long), 31),))
    yield Wanted("none", ((1, long, 0), (1, min(31, long), 0)))


def _case(signature: Signature, mask: str, wanted: Sizes) -> Case:
    """The case of those sizes, as near as the axes let it be; a second length is longer than the first."""
    batch, length, past = wanted
    asked = {axis for spec in signature.inputs if spec.kind == "indices" for axis in spec.axes[1:]}
    sizes: dict[str, int] = {}
    lengths = 0
    for axis in signature.free_axes:
        low, high = signature.axes[axis]
        if axis == BATCH_AXIS:
            size = batch
        elif low == 0:
            size = past
        elif axis in asked:
            size = 1
        else:
            size, lengths = length + 4 * lengths, lengths + 1
        sizes[axis] = max(low, size if high is None else min(size, high))
    others = [axis for axis in sizes if axis != BATCH_AXIS and axis not in asked]
    label = "".join(f", {axis} {sizes[axis]}" for axis in others[1:])
    return Case(mask, sizes.get(BATCH_AXIS, 1), length, signature.complete(sizes), label)


@dataclass(frozen=True)
class Cached:
    """Sequences behind a cache that is written in place: tokens that each holds already, and new ones of each."""

    past: tuple[int, ...]
    new: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{'+'.join(map(str, self.new))} behind {'+'.join(map(str, self.past))}"


# Several rows behind a cache take one token at a time: see `isoformer.export.shared_cache`.
CACHED = (
    Cached((0,), (1,)),
    Cached((3,), (2,)),
    Cached((0, 0), (4, 2)),
    Cached((3, 1), (1, 1)),
    Cached((0,), (5,)),
    Cached((6,), (1,)),
)
CACHED_BYTES = 3 * 2**20
NOT_READ = 9.0  # stands where no token does


def cached(
    signature: Signature, run: Callable[[Arrays], Arrays], held: Callable[[list[int]], Arrays] | None = None
) -> Iterator[tuple[Cached, Arrays, np.ndarray]]:
    """Cases of CACHED with the inputs of a graph with a shared cache, and the logits (B, 1, vocabulary) behind them.

    run: the canonical signature's inputs of one sequence without a past → its outputs. held: tokens of one sequence →
    past_key_values.* (1, K, their number or more, D) as the graph's own cache has them, where it has not what `run`
    gives as present.
    """
    past = [spec for spec in signature.inputs if spec.name.startswith(PAST)]
    vocabulary = next(spec.high or 1 for spec in signature.inputs if spec.name == "input_ids")
    width = int(signature.outputs[0].axes[2])
    room = CACHED_BYTES
    for case in CACHED:
        ends = np.array(case.past) + np.array(case.new)
        capacity, columns, batch = int(ends.max()) + 1, max(case.new), len(case.new)
        room -= batch * (width + capacity * sum(math.prod(_fixed(spec)) for spec in past)) * 4
        if room < 0:
            return
        rng = np.random.default_rng(int(ends.sum()))
        buffers = {s.name: np.full((batch, _fixed(s)[0], capacity, _fixed(s)[1]), NOT_READ, s.dtype) for s in past}
        ids, logits = np.zeros((batch, columns), np.int64), np.zeros((batch, 1, width))
        for row, (begin, end) in enumerate(zip(case.past, ends, strict=True)):
            tokens = rng.integers(0, vocabulary, end)
            found = run(alone(signature, tokens.tolist(), [int(end) - 1]))
            ids[row, : end - begin], logits[row] = tokens[begin:], found["logits"][0]
            own = held(tokens[:begin].tolist()) if held and begin else {}
            for spec in past:
                made = own[spec.name] if own else found[spec.name.replace(PAST, PRESENT, 1)]
                buffers[spec.name][row, :, :begin] = made[0, :, :begin]
        begins = np.array(case.past)[:, None]
        inputs = {
            "input_ids": ids,
            "attention_mask": (np.arange(ends.max()) < ends[:, None]).astype(np.int64),
            "position_ids": np.minimum(begins + np.arange(columns), ends[:, None] - 1),
            "logits_positions": (np.array(case.new) - 1)[:, None],
        }
        yield case, {spec.name: (inputs | buffers)[spec.name] for spec in signature.inputs}, logits


def _fixed(spec: TensorSpec) -> tuple[int, int]:
    """Heads and their size, of past_key_values (B, K, P, D)."""
    return int(spec.axes[1]), int(spec.axes[3])


def alone(signature: Signature | ModelSignature, tokens: list[int], asked: list[int]) -> Arrays:
    """The inputs of one sequence without a past."""
    arrays = {
        "input_ids": np.array([tokens]),
        "attention_mask": np.ones((1, len(tokens)), np.int64),
        "position_ids": np.arange(len(tokens))[None],
        "logits_positions": np.array([asked]),
    }
    for spec in signature.inputs:
        if spec.name not in arrays:
            _, heads, _, size = spec.axes
            # Empty, and for a model that computes in floats, though a variant's cache be of 8 bits.
            dtype = spec.dtype if spec.dtype.startswith("float") else "float32"
            arrays[spec.name] = np.zeros((1, int(heads), 0, int(size)), dtype)
    return arrays


def logits_alone(
    signature: Signature | ModelSignature, run: Callable[[Arrays], Arrays], rows: Iterable[tuple[list[int], list[int]]]
) -> list[np.ndarray]:
    """Of each sequence and places in it the logits (places, vocabulary), each sequence in a run of its own."""
    return [run(alone(signature, tokens, asked))["logits"][0] for tokens, asked in rows]


class Named(Protocol):
    """What tells which tensor a file is of."""

    @property
    def name(self) -> str: ...


def save(folder: Path, kind: str, specs: Iterable[Named], arrays: Arrays) -> None:
    """Writes the arrays as ONNX's test runner wants them: {kind}_{place in the signature}.pb, for those there are."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, spec in enumerate(specs):
        if spec.name in arrays:
            tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(arrays[spec.name]), spec.name)
            (folder / f"{kind}_{index}.pb").write_bytes(tensor.SerializeToString())
