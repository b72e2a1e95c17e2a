"""Equalities that must hold between two runs of one package, on inputs that nobody has seen before.

They need no reference, so they can be checked anywhere. Each side may be off by the package's
tolerance, so the two may differ by twice that.

alone     a row of a batch equals the same row run alone, also beside a fully masked neighbour
padded    a sequence equals itself with padding on a side on which the signature says that it is ignored
content   what stands under the mask changes nothing for the rest
chunks    a sequence given in parts over the cache equals itself given whole
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from isoformer.runtime.cases import BATCH_AXIS, Arrays, sample, takes_part
from isoformer.runtime.errors import InputError, IsoformerError
from isoformer.runtime.package import Signature
from isoformer.runtime.parity import Comparison, compare

ROWS = 3
LONGEST = 128

Pairs = Iterator[tuple[str, Arrays, Arrays]]


def relations(
    signature: Signature,
    tolerances: dict[str, float],
    run: Callable[[Arrays], Arrays],
    runtime: str,
    rng: np.random.Generator,
) -> Iterator[Comparison]:
    """The comparisons of every relation that the signature lets one state, at three fresh lengths."""
    if any(spec.axes[:1] != (BATCH_AXIS,) for spec in (*signature.inputs, *signature.outputs)):
        return  # rows of the batch cannot be told apart
    axis = key_axis(signature)
    named = [name for name in signature.free_axes if name != BATCH_AXIS]
    for _ in range(3):
        sizes = {name: _fresh_size(*signature.axes[name], rng) for name in named}
        sizes[BATCH_AXIS] = _clip(ROWS, *signature.axes[BATCH_AXIS])
        sizes = signature.complete(sizes)
        label = "x".join(str(size) for size in (sizes[BATCH_AXIS], *(sizes[name] for name in named)))
        try:
            pairs = list(_alone(signature, sizes, run, rng))
            if axis:
                pairs += _padded(signature, axis, sizes, run, rng)
                pairs += _content(signature, axis, sizes, run, rng)
            if signature.chunked:
                pairs += _chunks(signature, sizes, run, rng)
        except IsoformerError as error:
            yield Comparison(runtime, "relation", label, "run", 0, float("inf"), 0.0, str(error))
            continue
        for name, one, other in pairs:
            for output, value in one.items():
                yield compare(
                    runtime, "relation", f"{name}-{label}", output, value, other[output], 2 * tolerances[output]
                )


def _fresh_size(low: int, high: int | None, rng: np.random.Generator) -> int:
    """A size between the bounds, from 2 to LONGEST where they let it."""
    least, most = _clip(2, low, high), _clip(LONGEST, low, high)
    return int(rng.integers(least, most + 1))


def _clip(size: int, low: int, high: int | None) -> int:
    return max(low, size if high is None else min(size, high))


def key_axis(signature: Signature) -> str | None:
    """The axis along which sequences are padded: the keys of the only mask, where it is one a sequence.

    Behind a cache the keys are a sum; there it is the part of the sum that is not the cache.
    """
    masks = [spec for spec in signature.inputs if spec.masks]
    if len(masks) != 1 or (masks[0].kind == "mask" and len(masks[0].axes) != 2):
        return None
    axis = masks[0].along or masks[0].axes[1]
    if axis in signature.sums:
        parts = [part for part in signature.sums[str(axis)] if signature.axes[part][0] > 0]
        axis = parts[0] if len(parts) == 1 else 0
    return axis if isinstance(axis, str) else None


def _behind_nothing(signature: Signature, axis: str, sizes: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """The sizes with every cache empty, and the axes that then run along the sequence, with their places for one."""
    sums = {total: parts for total, parts in signature.sums.items() if axis in parts}
    caches = {part for parts in sums.values() for part in parts if part != axis}
    along = {axis: 1} | {total: parts.count(axis) for total, parts in sums.items()}
    return signature.complete(sizes | dict.fromkeys(caches, 0)), along


def _alone(signature: Signature, sizes: dict[str, int], run: Callable[[Arrays], Arrays], rng) -> Pairs:
    inputs = sample(signature, sizes, "sample", rng)
    together = run(inputs)
    if signature.axes[BATCH_AXIS][0] > 1:
        return  # a row cannot be run alone
    for row in range(sizes[BATCH_AXIS]):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        yield f"alone-{row}", {name: value[row : row + 1] for name, value in together.items()}, run(one)


def _padded(signature: Signature, axis: str, sizes: dict[str, int], run: Callable[[Arrays], Arrays], rng) -> Pairs:
    length = sizes[axis]
    inner = max(signature.axes[axis][0], length * 2 // 3)
    sizes, along = _behind_nothing(signature, axis, sizes)
    inputs = sample(signature, signature.complete(sizes | {axis: inner}), "none", rng)
    answer = run(inputs)
    for side in signature.padding:
        before = length - inner if side == "left" else 0
        wide = sample(signature, sizes, "none", rng)
        for spec in signature.inputs:
            if along.keys() & set(spec.axes):
                place = _slice(spec.axes, along, before, before + inner)
                if spec.masks or spec.pad is not None:
                    wide[spec.name][:] = 0 if spec.masks else spec.pad
                wide[spec.name][place] = inputs[spec.name]
            else:
                wide[spec.name] = inputs[spec.name] + (before if spec.kind == "indices" else 0)
        outputs = run(wide)
        cut = {
            spec.name: outputs[spec.name][_slice(spec.axes, along, before, before + inner)]
            for spec in signature.outputs
        }
        yield f"padded-{side}", cut, answer


def _content(signature: Signature, axis: str, sizes: dict[str, int], run: Callable[[Arrays], Arrays], rng) -> Pairs:
    if any(spec.pad is not None for spec in signature.inputs):
        return  # what stands under the mask has a meaning for this model
    sizes, along = _behind_nothing(signature, axis, sizes)
    inputs = sample(signature, sizes, "holes", rng)
    fresh = sample(signature, sizes, "none", rng)
    mask = next(spec for spec in signature.inputs if spec.masks)
    if mask.kind != "lengths":
        inputs[mask.name][:, 0] = 1  # a model may read its answer at the first place
    for spec in signature.inputs:
        if spec.kind == "indices":
            inputs[spec.name][:] = 0
    kept = takes_part(mask, inputs[mask.name], sizes[axis])  # (batch, keys)
    for spec in signature.inputs:
        if not spec.masks and spec.axes[:2] == (BATCH_AXIS, axis):
            where = kept.reshape(kept.shape + (1,) * (len(spec.axes) - 2))
            fresh[spec.name] = np.where(where, inputs[spec.name], fresh[spec.name])
        else:
            fresh[spec.name] = inputs[spec.name]
    one, other = run(inputs), run(fresh)
    for spec in signature.outputs:
        place = next((i for i, name in enumerate(spec.axes) if name in along), None)
        if place is not None:  # rows of real tokens alone; of attention weights the first such axis counts queries
            for answer in (one, other):
                answer[spec.name] = np.moveaxis(answer[spec.name], place, 1)[kept]
    yield "content", one, other


def _chunks(signature: Signature, sizes: dict[str, int], run: Callable[[Arrays], Arrays], rng) -> Pairs:
    """Cut in three at places drawn at random; the axes that are sums are those of the sequence and its past."""
    total, parts = next(iter(signature.sums.items()), ("", ()))
    if len(parts) != 2:
        raise InputError("the signature says that it is chunked, and no axis of it is a sequence behind its past")
    past, length = parts if signature.axes[parts[0]][0] == 0 else parts[::-1]
    asked = {
        str(spec.axes[1]) for spec in signature.inputs if spec.kind == "indices"
    }  # answers are asked for all places
    sizes = signature.complete(sizes | {past: 0} | dict.fromkeys(asked, sizes[length]))
    inputs = sample(signature, sizes, "ragged", rng)
    for spec in signature.inputs:
        if spec.kind == "indices":
            inputs[spec.name][:] = np.arange(sizes[length])
    whole = run(inputs)
    cuts = sorted({0, *(int(cut) for cut in rng.integers(1, max(2, sizes[length]), 2)), sizes[length]})
    caches = {spec.name: inputs[spec.name] for spec in signature.inputs if past in spec.axes}
    presents = {name: name.replace("past_key_values", "present") for name in caches}
    if lacking := sorted(set(presents.values()) - whole.keys()):
        raise InputError(f"the signature says that it is chunked, and has no output {lacking[0]}")
    answers: list[Arrays] = []
    for start, stop in pairwise(cuts):
        chunk = {}
        for spec in signature.inputs:
            place = tuple(
                slice(start, stop) if axis in (length, *asked) else slice(stop) if axis == total else slice(None)
                for axis in spec.axes
            )
            chunk[spec.name] = caches[spec.name] if spec.name in caches else inputs[spec.name][place]
            if spec.kind == "indices":
                chunk[spec.name] = chunk[spec.name] - start
        answers.append(run(chunk))
        caches = {name: answers[-1][present] for name, present in presents.items()}
    joined = {
        spec.name: np.concatenate([answer[spec.name] for answer in answers], place[0])
        for spec in signature.outputs
        if (place := [i for i, axis in enumerate(spec.axes) if axis in (length, *asked)]) and total not in spec.axes
    }
    joined |= {spec.name: answers[-1][spec.name] for spec in signature.outputs if total in spec.axes[2:3]}
    yield "chunks", joined, whole


def _slice(axes: tuple[str | int, ...], along: dict[str, int], start: int, stop: int) -> tuple[slice, ...]:
    factors = [along.get(str(name)) for name in axes]
    return tuple(slice(None) if n is None else slice(n * start, n * stop) for n in factors)
