"""The draw and the processors in cases with answers that are known (beside transformers': tests/parity)."""

import numpy as np
import pytest

from isoformer.runtime import InputError, sampling

LOGITS = np.log([0.5, 0.25, 0.125, 0.0625, 0.0625])
LEFT = [
    (sampling.top_k(1), [0]),
    (sampling.top_k(2), [0, 1]),
    (sampling.top_k(4), [0, 1, 2, 3, 4]),  # the fourth is as likely as the fifth
    (sampling.top_k(9), [0, 1, 2, 3, 4]),
    (sampling.top_p(0.49), [0]),
    (sampling.top_p(0.6), [0, 1]),
    (sampling.top_p(0.74), [0, 1]),
    (sampling.top_p(0.76), [0, 1, 2]),
    (sampling.top_p(1.0), [0, 1, 2, 3, 4]),
    (sampling.min_p(0.0), [0, 1, 2, 3, 4]),
    (sampling.min_p(0.2), [0, 1, 2]),
    (sampling.min_p(1.0), [0]),
]


@pytest.mark.parametrize(("process", "left"), LEFT)
def test_filters(process: sampling.Processor, left: list[int]) -> None:
    for order in (np.arange(5), np.array([3, 0, 4, 1, 2])):
        logits = LOGITS[order]
        before = logits.copy()
        found = process([], logits)
        np.testing.assert_array_equal(logits, before)  # the caller's stay as they are
        assert set(order[np.isfinite(found)]) == set(left)
        np.testing.assert_array_equal(found[np.isfinite(found)], logits[np.isfinite(found)])


@pytest.mark.parametrize("spread", [0.1, 4.0])  # the nucleus is nearly everything, or a few
@pytest.mark.parametrize("share", [0.01, 0.9, 1.0])
@pytest.mark.parametrize("k", [None, 50])
def test_the_nucleus_is_that_of_the_whole_order(spread: float, share: float, k: int | None) -> None:
    """More tokens than top_p sorts, many of them equally likely, behind top_k or not."""
    logits = np.round(np.random.default_rng(3).standard_normal(3 * sampling.SORTED) * spread, 2)
    logits = logits if k is None else sampling.top_k(k)([], logits)
    upwards = np.argsort(logits, kind="stable")
    unlikely = sampling.softmax(logits[upwards]).cumsum() <= 1 - share
    unlikely[-1] = False
    want = logits.copy()
    want[upwards[unlikely]] = -np.inf
    np.testing.assert_array_equal(sampling.top_p(share)([], logits), want)


def test_repetition_penalty() -> None:
    logits = np.array([3.0, -3.0, 0.0, 3.0])
    np.testing.assert_array_equal(sampling.repetition_penalty(2.0)([0, 1, 1, 0], logits), [1.5, -6.0, 0.0, 3.0])
    np.testing.assert_array_equal(logits, [3, -3, 0, 3])


@pytest.mark.parametrize("value", [0.5, 1.0, 3.0])
def test_temperature(value: float) -> None:
    found = sampling.softmax(sampling.temperature(value)([], LOGITS))
    powers = np.exp(LOGITS) ** (1 / value)
    np.testing.assert_allclose(found, powers / powers.sum())


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    found = sampling.softmax(sampling.temperature(5e-324)([], LOGITS))
    np.testing.assert_array_equal(found, [1, 0, 0, 0, 0])


def test_draws_have_the_probabilities() -> None:
    rng = np.random.default_rng(5)
    logits = np.array([-np.inf, *LOGITS, -np.inf])
    counts = np.bincount([sampling.draw(logits, rng) for _ in range(20_000)], minlength=7)
    assert counts[0] == counts[6] == 0
    expected = np.exp(LOGITS) * 20_000
    assert (np.square(counts[1:6] - expected) / expected).sum() < 23.5  # chi-square, 4 degrees: 1 in 10,000


class Most:
    """A generator of the largest number below 1, and of 0."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (np.nextafter(1, 0), 5)])
def test_the_ends_of_a_draw_are_tokens_that_can_be(number: float, token: int) -> None:
    rng: np.random.Generator = Most(number)  # pyright: ignore[reportAssignmentType]
    assert sampling.draw(np.array([-np.inf, *LOGITS, -np.inf]), rng) == token


def test_log_softmax() -> None:
    rows = np.array([[1000.0, 1000.0], [-1000.0, 0.0]])
    np.testing.assert_allclose(sampling.log_softmax(rows), [[-np.log(2), -np.log(2)], [-1000, 0]])


def test_apply_in_turn() -> None:
    calls = []

    def note(ids: object, logits: np.ndarray) -> np.ndarray:
        calls.append(ids)
        return logits * 2

    np.testing.assert_array_equal(sampling.apply([note, note], [3], np.ones(2)), [4, 4])
    assert calls == [[3], [3]]


@pytest.mark.parametrize("value", [-np.inf, np.nan, np.inf])
def test_nothing_to_choose(value: float) -> None:
    with pytest.raises(InputError, match=f"behind 2 tokens: the largest logit is {value}"):
        sampling.apply([lambda _ids, logits: logits + value], [1, 2], np.zeros(3))
