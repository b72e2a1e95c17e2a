"""Measurements: what is run, and with inputs of which sizes. How long it takes is not looked at."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from isoformer.runtime import InputError, Session, bench
from isoformer.runtime.cases import Arrays
from isoformer.runtime.package import Signature, TensorSpec

BATCH, LENGTH, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
CACHED = Signature(
    (
        TensorSpec("x", "float32", (BATCH, LENGTH, 3)),
        TensorSpec("mask", "int64", (BATCH, TOTAL), kind="mask"),
        TensorSpec("lengths", "int64", (BATCH,), kind="lengths", along=TOTAL),
        TensorSpec("segments", "int64", (BATCH, LENGTH), kind="segments"),
        TensorSpec("past", "float32", (BATCH, 2, PAST, 5)),
    ),
    (TensorSpec("y", "float32", (BATCH, LENGTH)),),
    {BATCH: (1, None), LENGTH: (1, 29), PAST: (0, None), TOTAL: (1, None)},
    ("right",),
    {TOTAL: (PAST, LENGTH)},
)


class Recorder:
    """A session that keeps what it is given."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.given: list[Arrays] = []

    def run(self, inputs: Arrays) -> Arrays:
        self.given.append(inputs)
        return {}


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[dict[str, Any]], list[Arrays]]]:
    """The measurements of one run each, and the inputs that were run."""

    def once(function: Callable[[], Any]) -> np.ndarray:
        function()
        return np.array([0.25])

    monkeypatch.setattr(bench, "time_runs", once)

    def call(signature: Signature, batches: list[int], lengths: list[int]):
        session = Recorder(signature)
        return list(bench.measure(cast(Session, session), batches, lengths)), session.given

    return call


def test_a_cache_is_measured_empty(measure) -> None:
    found, given = measure(CACHED, [1, 2], [1, 7])
    assert [(m["batch"], m["length"]) for m in found] == [(1, 1), (1, 7), (2, 1), (2, 7)]
    for inputs, m in zip(given, found, strict=True):
        batch, length = m["batch"], m["length"]
        shapes = {name: value.shape for name, value in inputs.items()}
        assert shapes == {
            "x": (batch, length, 3),
            "mask": (batch, length),
            "lengths": (batch,),
            "segments": (batch, length),
            "past": (batch, 2, 0, 5),
        }
        assert m["tokens_per_s"] == batch * length / 0.25
        assert (m["median_ms"], m["p90_ms"], m["runs"]) == (250, 250, 1)


def test_nothing_is_padded(measure) -> None:
    _, ((inputs),) = measure(CACHED, [3], [7])
    assert inputs["mask"].all()
    assert inputs["segments"].all()
    assert inputs["lengths"].tolist() == [7] * 3


@pytest.mark.parametrize(
    ("batch", "length", "words"),
    [
        (1, 30, "sequence_length 30 is out of range; this model takes 1 to 29"),
        (0, 7, "batch_size 0 is out of range; this model takes 1 up"),
    ],
)
def test_sizes_out_of_range(measure, batch: int, length: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        measure(CACHED, [batch], [length])


def test_time_runs_counts_what_it_times_after_a_warm_up() -> None:
    calls: list[int] = []
    times = bench.time_runs(lambda: calls.append(1), least_runs=5, least_seconds=0.0)
    assert len(times) == 5
    assert len(calls) == 5 + bench.WARMUP
    assert (times >= 0).all()
