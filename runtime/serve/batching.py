"""Requests that wait go through the graph together.

There is no delay to gather them: while one batch is computed, the next ones wait, and what waits is what can be
taken together. The oldest request is always taken; others join it if they are of like length, so that a batch holds
few places of padding, and up to a number of tokens.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from isoformer.runtime.errors import IsoformerError
from isoformer.runtime.package import Signature
from isoformer.runtime.relations import key_axis
from isoformer.runtime.serve.inference import BATCH_AXIS, size
from isoformer.runtime.serve.limits import Limits, busy, timed_out

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays, Sequence[str]], dict[str, np.ndarray]]
LEAST_FILLED = 0.7  # of the places of a batch that are taken together, by real tokens


@dataclass
class Waiting:
    """A request in the queue. tokens: that are no padding; length: of its longest row."""

    feeds: Arrays
    outputs: tuple[str, ...]
    rows: int
    length: int
    tokens: int
    shapes: tuple
    since: float
    future: Future = field(default_factory=Future)


class Batcher:
    """One graph behind a queue, computed in a thread of its own.

    run: as `Session.run`. observe: called with (requests, tokens, places) of every batch.
    """

    def __init__(
        self,
        signature: Signature,
        run: Run,
        limits: Limits,
        observe: Callable[[int, int, int], None] = lambda _requests, _tokens, _places: None,
    ) -> None:
        self.signature, self.limits = signature, limits
        self._run, self._observe = run, observe
        axis = key_axis(signature)
        # Along it shorter requests are padded, on the right; None: only requests of the same shapes go together.
        self.axis = axis if axis is not None and "right" in signature.padding and not signature.sums else None
        specs = (*signature.inputs, *signature.outputs)
        self.joins = all(spec.axes[:1] == (BATCH_AXIS,) for spec in specs) and signature.axes[BATCH_AXIS][0] <= 1
        self._queue: list[Waiting] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._rate = 0.0  # places a second, of the last batches
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def refuse_busy(self) -> None:
        """Raises RefusedError (429) when the queue is full."""
        with self._changed:
            if len(self._queue) >= self.limits.queue:
                places = sum(waiting.rows * waiting.length for waiting in self._queue)
                raise busy(places / self._rate if self._rate else 1.0)

    def submit(self, feeds: Arrays, outputs: Sequence[str]) -> Future:
        """A future of the outputs by name. One that is cancelled before its turn is not computed.

        Raises RefusedError (429) when the queue is full.
        """
        rows, length = self._size(feeds)
        waiting = Waiting(
            feeds, tuple(outputs), rows, length, _real(self.signature, feeds), self._shapes(feeds), time.monotonic()
        )
        with self._changed:
            self.refuse_busy()
            self._queue.append(waiting)
            self._changed.notify()
        return waiting.future

    def stop(self) -> None:
        """Returns when everything that was accepted is computed."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _size(self, feeds: Arrays) -> tuple[int, int]:
        """(rows, length along the axis that is padded)"""
        rows, length = size(self.signature, feeds)
        for spec in self.signature.inputs:
            if self.axis in spec.axes:
                return rows, feeds[spec.name].shape[spec.axes.index(self.axis)]
        return rows, length

    def _shapes(self, feeds: Arrays) -> tuple:
        """What requests have in common that can be computed together."""
        return tuple(
            (
                spec.name,
                *(
                    n
                    for axis, n in zip(spec.axes, feeds[spec.name].shape, strict=True)
                    if axis not in (BATCH_AXIS, self.axis)
                ),
            )
            for spec in self.signature.inputs
        )

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
            if not batch:
                continue
            start = time.perf_counter()
            try:
                answers = self._compute(batch)
            except Exception as error:
                for waiting in batch:
                    waiting.future.set_exception(error)
                continue
            places = sum(waiting.rows for waiting in batch) * max(waiting.length for waiting in batch)
            rate = places / max(time.perf_counter() - start, 1e-6)
            self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate
            self._observe(len(batch), sum(waiting.tokens for waiting in batch), places)
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.future.set_result(answer)

    def _next(self) -> list[Waiting] | None:
        """The requests that are computed next; None when it is time to stop."""
        with self._changed:
            while True:
                self._drop()
                if self._queue:
                    batch = choose(self._queue, self.limits.batch_tokens) if self.joins else self._queue[:1]
                    taken = set(map(id, batch))
                    self._queue = [waiting for waiting in self._queue if id(waiting) not in taken]
                    return batch
                if self._stopping:
                    return None
                self._changed.wait()

    def _drop(self) -> None:
        """Leaves out what was cancelled, and what has waited too long."""
        now, kept = time.monotonic(), []
        for waiting in self._queue:
            if waiting.future.cancelled():
                continue
            if now - waiting.since > self.limits.timeout:
                if waiting.future.set_running_or_notify_cancel():
                    waiting.future.set_exception(timed_out(self.limits.timeout))
                continue
            kept.append(waiting)
        self._queue = kept

    def _compute(self, batch: Sequence[Waiting]) -> list[dict[str, np.ndarray]]:
        names = [spec.name for spec in self.signature.outputs if any(spec.name in w.outputs for w in batch)]
        if len(batch) == 1:
            return [self._run(batch[0].feeds, names)]
        together = self._run(join(self.signature, self.axis, [waiting.feeds for waiting in batch]), names)
        if any(len(together[name]) != sum(w.rows for w in batch) for name in names):
            raise IsoformerError("the graph answered with another number of rows than it was given")
        return part(self.signature, self.axis, together, [(w.rows, w.length, w.outputs) for w in batch])


def choose(queue: Sequence[Waiting], most: int) -> list[Waiting]:
    """The oldest, and those of most like length, while rows × the longest is at most `most` and few places are padding.

    Deterministic; the oldest is taken whatever its size.
    """
    first = queue[0]
    batch, rows, longest, tokens = [first], first.rows, first.length, first.tokens
    full = first.tokens / max(1, first.rows * first.length)
    others = [waiting for waiting in queue[1:] if waiting.shapes == first.shapes]
    for waiting in sorted(others, key=lambda w: abs(w.length - first.length)):
        places = (rows + waiting.rows) * max(longest, waiting.length)
        filled = (tokens + waiting.tokens) / max(1, places)
        if places <= most and filled >= min(LEAST_FILLED, full):
            batch.append(waiting)
            rows, longest, tokens = rows + waiting.rows, max(longest, waiting.length), tokens + waiting.tokens
    return batch


def join(signature: Signature, axis: str | None, requests: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """One batch of several requests, the shorter ones padded on the right along `axis`: masked, so without effect."""
    joined = {}
    for spec in signature.inputs:
        arrays = [feeds[spec.name] for feeds in requests]
        if axis in spec.axes:
            place = spec.axes.index(axis)
            length = max(array.shape[place] for array in arrays)
            filler = 0 if spec.masks else spec.low if spec.pad is None else spec.pad
            arrays = [_pad(array, place, length, filler) for array in arrays]
        joined[spec.name] = np.concatenate(arrays)
    return joined


def part(
    signature: Signature, axis: str | None, together: Arrays, requests: Sequence[tuple[int, int, Sequence[str]]]
) -> list[dict[str, np.ndarray]]:
    """Each request's share of the outputs: (rows, length, names of outputs) of each."""
    answers, begin = [], 0
    axes = {spec.name: spec.axes for spec in signature.outputs}
    for rows, length, names in requests:
        answer = {}
        for name in names:
            inner = tuple(slice(0, length) if a == axis and a is not None else slice(None) for a in axes[name][1:])
            answer[name] = together[name][(slice(begin, begin + rows), *inner)]
        answers.append(answer)
        begin += rows
    return answers


def _pad(array: np.ndarray, place: int, length: int, filler: int) -> np.ndarray:
    widths = [(0, 0)] * array.ndim
    widths[place] = (0, length - array.shape[place])
    return np.pad(array, widths, constant_values=filler)


def _real(signature: Signature, feeds: Arrays) -> int:
    """How many tokens take part, as the only mask says; rows × length where there is no such mask."""
    rows, length = size(signature, feeds)
    masks = [spec for spec in signature.inputs if spec.masks]
    if len(masks) != 1 or masks[0].kind == "segments" or (masks[0].kind == "mask" and len(masks[0].axes) != 2):
        return rows * length
    return int(feeds[masks[0].name].sum())
