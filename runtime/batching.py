"""Ragged batches as rectangles: sequences sorted by length, cut where that is cheapest, and put back in order.

A rectangle is as wide as its longest sequence, so what is computed grows with the real tokens, in every runtime and
on every provider. Only padding at the ends is cut off: on the right, and on the left where the signature says that
padding there is ignored. Keys that are masked between two real ones stay.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from isoformer.runtime.cases import BATCH_AXIS, Arrays, takes_part
from isoformer.runtime.cost import Cost
from isoformer.runtime.package import Signature, TensorSpec
from isoformer.runtime.session import Session, check_inputs


def plan(
    lengths: Sequence[int] | np.ndarray, cost: Cost | None = None, most_rows: int | None = None
) -> list[np.ndarray]:
    """Groups of indices whose rectangles cost the least in all; every index stands in one of them.

    The least of all cuts of the sorted sequences; only a `crowd` can make another grouping cheaper.

    lengths: of each sequence. most_rows: of one group. Groups come from short to long, and so do their members.
    """
    cost = cost or Cost()
    order = np.argsort(lengths, kind="stable")
    widths = np.asarray(lengths, np.float64)[order]
    count, most_rows = len(order), most_rows or len(order)
    tokens, squares = (np.concatenate(([0.0], np.cumsum(values))) for values in (widths, widths**2))
    rows = np.arange(1, min(most_rows, count) + 1)
    # Sorted sequences are cut into runs: a group that skipped one could exchange it and would be no dearer.
    best, start = np.zeros(count + 1), [0] * (count + 1)
    for end in range(1, count + 1):
        begins = end - rows[:end]  # from the last place on
        if cost.packed:
            real = tokens[end] - tokens[begins]
            own = cost.call + real + cost.crowd * real**2
            own += cost.pair * (_halves(widths, begins, end) if cost.halves else squares[end] - squares[begins])
        else:
            own = cost(rows[:end], int(widths[end - 1]))
        totals = best[begins] + own
        least = totals.min()
        # Not by rounding alone: of equals the last group is the small one.
        start[end] = int(begins[(totals <= least * (1 + 1e-12)).argmax()])
        best[end] = least
    groups, end = [], count
    while end:
        groups.append(order[start[end] : end])
        end = start[end]
    return groups[::-1]


def _halves(widths: np.ndarray, begins: np.ndarray, end: int) -> np.ndarray:
    """Pairs of tokens in two rectangles, of the shorter half of widths[begin:end] and of the longer, for each begin."""
    short = (end - begins) // 2
    return (end - begins - short) * widths[end - 1] ** 2 + short * widths[begins + np.maximum(short, 1) - 1] ** 2


def run(
    session: Session, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None, cost: Cost | None = None
) -> Arrays:
    """The outputs by name, as `Session.run` gives them; rows of many lengths go through in several rectangles.

    Outputs along the sequence are 0 at padding that was cut off: what a hidden state holds there is not part of the
    mask contract. A model whose padding cannot be seen, or not be cut off, runs as it would have. cost: by default the
    session's.

    Raises as `Session.run` does.
    """
    signature = session.signature
    key = _key(signature)
    if key is None or (key.kind == "mask" and np.all(inputs.get(key.name, True))):  # nothing is padding
        return session.run(inputs, outputs)
    specs = {spec.name: spec for spec in signature.inputs}
    feeds = check_inputs(specs, signature.axes, inputs, signature.sums)
    axis = _axis(key)
    size = _size(signature, feeds, axis)
    cost = cost or session.cost
    begins, ends = _real(key, feeds[key.name], size, "left" in signature.padding)
    groups = plan(np.maximum(ends - begins, signature.axes[axis][0]), cost)
    if len(groups) == 1 and (ends - begins).max(initial=0) == size:
        return session.run(inputs, outputs)
    found: Arrays = {}
    for group in groups:
        width = min(size, max(cost.width(int((ends - begins)[group].max())), signature.axes[axis][0]))
        starts = np.minimum(begins[group], size - width)
        part = session.run(
            {name: _taken(specs[name], array, axis, group, starts, width) for name, array in feeds.items()}, outputs
        )
        for spec in signature.outputs:
            if spec.name in part:
                _put_back(found, spec, part[spec.name], axis, group, starts, (len(ends), size))
    return found


def _key(signature: Signature) -> TensorSpec | None:
    """The input that says which tokens are real, if rows can be cut by it: (B, L), or (B,) lengths; None if not."""
    masks = [spec for spec in signature.inputs if spec.masks]
    if len(masks) != 1 or "right" not in signature.padding:
        return None
    key = masks[0]
    axis = _axis(key)
    others = (*signature.sums.values(), *(parts for parts, _ in signature.products.values()))
    by_row = all(spec.axes[:1] == (BATCH_AXIS,) for spec in (*signature.inputs, *signature.outputs))
    plain = key.axes == ((BATCH_AXIS,) if key.kind == "lengths" else (BATCH_AXIS, axis))
    alone = axis in signature.free_axes and not any(axis in parts for parts in others)
    places = any(spec.kind in ("indices", "prefix", "choices") for spec in (*signature.inputs, *signature.outputs))
    return key if by_row and plain and alone and not places else None


def _axis(key: TensorSpec) -> str:
    return str(key.along if key.kind == "lengths" else key.axes[-1])


def _size(signature: Signature, feeds: Arrays, axis: str) -> int:
    """How long the axis is in these inputs."""
    return next(feeds[spec.name].shape[spec.axes.index(axis)] for spec in signature.inputs if axis in spec.axes)


def _real(key: TensorSpec, array: np.ndarray, size: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """(B,), (B,): where each row's first real token stands, 0 unless `left` padding may go, and the end of its last."""
    kept = np.asarray(takes_part(key, array, size))
    any_real = kept.any(1)
    ends = np.where(any_real, size - kept[:, ::-1].argmax(1), 0)
    return np.where(any_real & left, kept.argmax(1), 0), ends


def _window(spec: TensorSpec, axis: str, start: int, width: int) -> tuple[slice, ...]:
    """Of one row of the tensor, what stands between start and start + width of the axis."""
    return tuple(slice(start, start + width) if name == axis else slice(None) for name in spec.axes[1:])


def _taken(
    spec: TensorSpec, array: np.ndarray, axis: str, group: np.ndarray, starts: np.ndarray, width: int
) -> np.ndarray:
    """The rows of the group, each cut to its window."""
    if not starts.any():
        return array[group][(slice(None), *_window(spec, axis, 0, width))]
    windows = (_window(spec, axis, int(start), width) for start in starts)
    return np.stack([array[index][window] for index, window in zip(group, windows, strict=True)])


def _put_back(
    found: Arrays,
    spec: TensorSpec,
    part: np.ndarray,
    axis: str,
    group: np.ndarray,
    starts: np.ndarray,
    sizes: tuple[int, int],
) -> None:
    """Each row of the part into its place of the whole output, which is made of zeros the first time."""
    rows, size = sizes
    inner = [size if name == axis else n for name, n in zip(spec.axes[1:], part.shape[1:], strict=True)]
    whole = found.setdefault(spec.name, np.zeros((rows, *inner), part.dtype))
    width = next((n for name, n in zip(spec.axes[1:], part.shape[1:], strict=True) if name == axis), 0)
    if not starts.any():
        whole[(group, *_window(spec, axis, 0, width))] = part
        return
    for row, index, start in zip(part, group, starts, strict=True):
        whole[index][_window(spec, axis, int(start), width)] = row
