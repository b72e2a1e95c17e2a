"""Requests that go together: each gets what it would have got alone, and the queue has an end."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoformer.runtime import Session
from isoformer.runtime.errors import IsoformerError
from isoformer.runtime.serve import batching
from isoformer.runtime.serve.batching import Batcher, Waiting, choose
from isoformer.runtime.serve.limits import Limits, RefusedError

OUTPUTS = ["last_hidden_state", "sentence_embedding"]


class Gate:
    """A session whose runs wait until they may."""

    def __init__(self, session: Session) -> None:
        self.session, self.open, self.sizes = session, threading.Event(), list[tuple[int, ...]]()
        self.entered = threading.Event()

    def run(self, feeds: Any, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        self.entered.set()
        assert self.open.wait(60)
        self.sizes.append(feeds["input_ids"].shape)
        return self.session.run(feeds, outputs)


def request(rng: np.random.Generator, rows: int, length: int) -> dict[str, np.ndarray]:
    ids = rng.integers(1, 17, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


@pytest.fixture
def gate(tiny_package: Path) -> Gate:
    return Gate(Session(tiny_package))


def test_answers_are_those_of_a_request_alone(gate: Gate) -> None:
    rng = np.random.default_rng(3)
    requests = [request(rng, rows, length) for rows, length in ((2, 5), (1, 7), (3, 4), (1, 13), (2, 6), (5, 11))]
    requests[1]["attention_mask"][0, 3:] = 0
    batches: list[tuple[int, int, int]] = []
    batcher = Batcher(gate.session.signature, gate.run, Limits(), lambda *sizes: batches.append(sizes))
    first = batcher.submit(requests[0], OUTPUTS)
    assert gate.entered.wait(60)
    others = [batcher.submit(feeds, OUTPUTS[n % 2 :]) for n, feeds in enumerate(requests[1:], 1)]
    gate.open.set()
    for number, (feeds, future) in enumerate(zip(requests, [first, *others], strict=True)):
        found, alone = future.result(60), gate.session.run(feeds)
        assert list(found) == (OUTPUTS if number == 0 else OUTPUTS[number % 2 :])
        for name, value in found.items():
            np.testing.assert_allclose(value, alone[name], atol=2e-6)
    batcher.stop()
    assert len(gate.sizes) < len(requests)
    assert sum(count for count, _, _ in batches) == len(requests)
    assert sum(tokens for _, tokens, _ in batches) == sum(int(feeds["attention_mask"].sum()) for feeds in requests)
    assert sum(places for _, _, places in batches) == sum(rows * length for rows, length in gate.sizes)


def test_a_full_queue_refuses(gate: Gate) -> None:
    batcher = Batcher(gate.session.signature, gate.run, Limits(queue=3))
    rng = np.random.default_rng(5)
    accepted = [batcher.submit(request(rng, 1, 5), OUTPUTS)]
    assert gate.entered.wait(60)
    accepted += [batcher.submit(request(rng, 1, 5), OUTPUTS) for _ in range(3)]
    with pytest.raises(RefusedError) as error:
        batcher.submit(request(rng, 1, 5), OUTPUTS)
    assert error.value.status == 429
    assert int(error.value.headers["Retry-After"]) >= 1
    accepted[2].cancel()
    gate.open.set()
    batcher.stop()  # what was accepted is computed
    assert [future.done() for future in accepted] == [True] * 4
    assert sum(rows for rows, _ in gate.sizes) == 3


def test_what_waits_too_long_is_not_computed(gate: Gate) -> None:
    batcher = Batcher(gate.session.signature, gate.run, Limits(timeout=0.05))
    rng = np.random.default_rng(7)
    first = batcher.submit(request(rng, 1, 5), OUTPUTS)
    assert gate.entered.wait(60)
    late = batcher.submit(request(rng, 1, 5), OUTPUTS)
    threading.Event().wait(0.2)
    gate.open.set()
    first.result(60)
    with pytest.raises(RefusedError, match="no answer within"):
        late.result(60)
    batcher.stop()
    assert gate.sizes == [(1, 5)]


def test_an_error_is_of_its_batch_alone(tiny_package: Path) -> None:
    session = Session(tiny_package)
    calls = iter([IsoformerError("no"), None])

    def run(feeds: Any, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        if (error := next(calls)) is not None:
            raise error
        return session.run(feeds, outputs)

    batcher = Batcher(session.signature, run, Limits())
    rng = np.random.default_rng(11)
    with pytest.raises(IsoformerError, match="no"):
        batcher.submit(request(rng, 1, 5), OUTPUTS).result(60)
    assert batcher.submit(request(rng, 1, 5), OUTPUTS).result(60)["sentence_embedding"].shape[0] == 1
    batcher.stop()


def waiting(rows: int, length: int, tokens: int | None = None, shapes: tuple = ()) -> Waiting:
    return Waiting({}, (), rows, length, rows * length if tokens is None else tokens, shapes, 0.0)


@pytest.mark.parametrize(
    ("queue", "most", "taken"),
    [
        ([waiting(1, 10), waiting(1, 100), waiting(1, 12)], 1000, [0, 2]),  # like lengths, little padding
        ([waiting(1, 10)] * 9, 40, [0, 1, 2, 3]),  # so many places
        ([waiting(50, 10), waiting(1, 10)], 100, [0]),  # the oldest, though it is too large by itself
        ([waiting(1, 10), waiting(1, 10, shapes=("other",)), waiting(1, 10)], 100, [0, 2]),
        ([waiting(4, 10, 8), waiting(4, 10, 8)], 100, [0, 1]),  # padding that came with the requests is no hindrance
    ],
)
def test_choice(queue: list[Waiting], most: int, taken: list[int]) -> None:
    queue = [replace(entry) for entry in queue]  # each of its own
    found = choose(queue, most)
    assert sorted(next(n for n, entry in enumerate(queue) if entry is chosen) for chosen in found) == taken


def test_a_signature_without_padding_joins_equal_shapes_alone(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    monkeypatch.setattr(batching, "key_axis", lambda _signature: None)
    batcher = Batcher(gate.session.signature, gate.run, Limits())
    rng = np.random.default_rng(13)
    futures = [batcher.submit(request(rng, 1, 3), OUTPUTS)]
    assert gate.entered.wait(60)
    futures += [batcher.submit(request(rng, 1, length), OUTPUTS) for length in (5, 6, 5)]
    gate.open.set()
    assert [future.result(60)["last_hidden_state"].shape[1] for future in futures] == [3, 5, 6, 5]
    batcher.stop()
    assert sorted(gate.sizes) == [(1, 3), (1, 6), (2, 5)]
