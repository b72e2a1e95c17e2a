"""What passes for "the same", and above all what does not."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoformer.runtime.package import Signature, TensorSpec
from isoformer.runtime.parity import (
    FACTOR,
    SAMPLES,
    ULP,
    Comparison,
    Report,
    bound,
    by_mask_and_length,
    comparable,
    compare,
    largest_error,
    sample_indices,
    share,
)

WHERE = ("a runtime", "grid", "none-2x7", "logits")
ONES = np.ones((2, 3))


def against_ones(candidate: np.ndarray, allowed: float = 0.5) -> Comparison:
    return compare(*WHERE, candidate, ONES, allowed)


def comparison(error: float = 0.0, allowed: float = 1.0, values: int = 1, case: str = "none-2x7") -> Comparison:
    return Comparison("a runtime", "grid", case, "logits", values, error, allowed)


def one_changed(value: float) -> np.ndarray:
    changed = ONES.copy()
    changed[1, 2] = value
    return changed


# ------------------------------------------------------------------------------------------------ compare


def test_equal_values_pass_with_any_bound() -> None:
    assert against_ones(ONES.astype(np.float32), 0.0).passed


@pytest.mark.parametrize(("value", "passed"), [(1.5, True), (0.5, True), (1.5001, False), (0.4999, False)])
def test_the_largest_error_is_held_to_the_bound(value: float, passed: bool) -> None:
    found = against_ones(one_changed(value))
    assert found.passed is passed
    assert found.error == pytest.approx(abs(value - 1))
    assert found.values == 6
    assert found.note == ""


@pytest.mark.parametrize("allowed", [0.0, 1.0, 1e300, math.inf, math.nan])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_never_pass(value: float, allowed: float) -> None:
    found = against_ones(one_changed(value), allowed)
    assert not found.passed
    assert found.error == math.inf
    assert "1 of 6 values" in found.note
    assert found.note in found.line()


@pytest.mark.parametrize("allowed", [0.0, 1.0, math.inf, math.nan])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_in_the_reference_never_passes(value: float, allowed: float) -> None:
    reference = one_changed(value)
    for candidate in (ONES, reference):
        found = compare(*WHERE, candidate, reference, allowed)
        assert not found.passed
        assert "reference" in found.note


@pytest.mark.parametrize("allowed", [1.0, math.inf])
@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 1), (6,), (1, 3), (2, 0), ()], ids=str)
def test_another_shape_never_passes(shape: tuple[int, ...], allowed: float) -> None:
    found = against_ones(np.ones(shape), allowed)
    assert not found.passed
    assert str(shape) in found.note
    assert "(2, 3)" in found.note


def test_comparison_of_no_value_fails() -> None:
    found = compare(*WHERE, np.ones((0, 3)), np.ones((0, 3)), 1.0)
    assert found.values == 0
    assert not found.passed
    assert "no value" in found.note


def test_bound_of_nan_never_passes() -> None:
    assert not against_ones(ONES, math.nan).passed


def test_differences_are_taken_in_float64() -> None:
    big = np.full((2, 3), 60000, np.float16)
    assert largest_error(big, -big) == 120000.0
    assert largest_error(np.array([2**31 - 1], np.int32), np.array([-(2**31)], np.int32)) == 2.0**32 - 1


def test_booleans_and_integers_are_compared_too() -> None:
    assert largest_error(np.array([True, False]), np.array([True, True])) == 1.0
    assert largest_error(np.array([3, 7]), np.array([3, 2])) == 5.0


def test_line_says_where_and_how_far() -> None:
    line = comparison(error=0.25, allowed=0.125).line()
    assert line == "a runtime, grid none-2x7, logits: error 2.50e-01 is over the bound 1.25e-01"


def test_dict_says_whether_it_passed() -> None:
    where = {"runtime": "a runtime", "check": "grid", "case": "none-2x7", "output": "logits"}
    found = {"values": 1, "error": 2.0, "bound": 1.0, "note": "", "passed": False}
    assert comparison(2.0).to_dict() == where | found


# ------------------------------------------------------------------------------------------------ bound


def test_bound_is_four_times_the_error_of_float32() -> None:
    assert FACTOR == 4
    assert bound(0.25, np.array([1.0, -7.0])) == 1.0


def test_bound_is_no_less_than_a_unit_in_the_last_place_of_the_largest_value() -> None:
    assert np.finfo(np.float32).eps == ULP
    assert bound(0.0, np.array([1.0, -7.0, 2.0])) == 4 * 7 * 2.0**-23
    assert bound(7 * 2.0**-23 / 2, np.array([1.0, -7.0, 2.0])) == 4 * 7 * 2.0**-23


def test_bound_of_nothing_and_of_zeros_is_zero() -> None:
    assert bound(0.0, np.zeros((2, 3))) == 0.0
    assert bound(0.0, np.zeros((0, 3))) == 0.0


@settings(max_examples=60, deadline=None)
@given(
    error=st.floats(0, 1e3),
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=7),
)
def test_pytorch_float32_is_within_its_own_bound(error: float, values: list[float]) -> None:
    reference = np.array(values)
    candidate = reference + error
    found = largest_error(candidate, reference)
    assert compare(*WHERE, candidate, reference, bound(found, reference)).passed


# ------------------------------------------------------------------------------------------------ reports


def test_empty_report_fails() -> None:
    report = Report()
    assert not report.passed
    summary = report.summary()
    assert (summary["passed"], summary["cases"], summary["values"]) == (False, 0, 0)
    assert summary["worst_share_of_bound"] is None


def test_report_passes_when_everything_does() -> None:
    report = Report([comparison(values=3), comparison(0.5, values=5), comparison(case="left-2x7", values=7)])
    assert report.passed
    counts = {"passed": True, "cases": 2, "values": 15, "failures": []}
    assert report.summary() == counts | {"worst_share_of_bound": 0.5}


@pytest.mark.parametrize("wrong", [comparison(1.5), comparison(math.nan), comparison(values=0), comparison(math.inf)])
def test_one_failure_fails_the_report(wrong: Comparison) -> None:
    report = Report([comparison(), wrong, comparison()])
    assert not report.passed
    assert report.failures == [wrong]
    assert report.summary()["failures"] == [wrong.line()]


def test_share_of_the_bound() -> None:
    assert share(comparison(0.25, 0.5)) == 0.5
    assert share(comparison(0.0, 0.0)) == 0.0
    assert share(comparison(0.25, 0.0)) == math.inf
    assert share(comparison(math.nan, 1.0)) == math.inf
    assert share(comparison(math.inf, 1.0)) == math.inf


def test_shares_by_mask_and_length() -> None:
    other = Comparison("a runtime", "golden", "test_data_set_0", "logits", 1, 9.0, 1.0)
    found = by_mask_and_length(
        [
            *(comparison(0.25, case="none-2x7"), comparison(0.5, case="none-5x7"), comparison(0.125, case="none-2x31")),
            *(comparison(2.0, case="left-2x7"), other),
        ]
    )
    assert found == {"none": {"7": 0.5, "31": 0.125}, "left": {"7": 2.0}}


# ---------------------------------------------------------------------------------------- sample_indices


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 10**9), samples=st.integers(1, 2000))
def test_sampled_places_are_unique_sorted_and_in_range(size: int, samples: int) -> None:
    places = sample_indices(size, samples)
    assert len(places) <= min(size, samples)
    assert (np.diff(places) > 0).all()
    assert size == 0 or (places[0] >= 0 and places[-1] < size)


@pytest.mark.parametrize("size", [0, 1, 7, SAMPLES])
def test_small_arrays_are_taken_whole(size: int) -> None:
    np.testing.assert_array_equal(sample_indices(size), np.arange(size))


@pytest.mark.parametrize("size", [SAMPLES + 1, 2 * SAMPLES, 10**5, 10**7])
def test_sampled_places_cover_the_array(size: int) -> None:
    places = sample_indices(size)
    assert len(places) > SAMPLES / 2
    gaps = np.diff([-1, *places.tolist(), size])
    assert gaps.max() <= max(8, 4 * size / SAMPLES)


@pytest.mark.parametrize("period", [2, 3, 31, 33, 64, 128, 384, 512])
def test_sampled_places_have_no_period_of_an_axis(period: int) -> None:
    """Every index of a last axis of that size is looked at about equally often."""
    counts = np.bincount(sample_indices(period * 5 * 1024) % period, minlength=period)
    mean = SAMPLES / period
    assert counts.max() <= 2 * mean + 3
    assert (counts > 0).mean() > 0.5


# ------------------------------------------------------------------------------------------------ choices

RANKED = Signature(
    (TensorSpec("x", "float32", ("batch_size",)),),
    (
        TensorSpec("best", "int64", ("batch_size", 2), kind="choices", along="logits"),
        TensorSpec("logits", "float32", ("batch_size", 4)),
    ),
    {"batch_size": (1, None)},
    ("right", "left"),
)
LOGITS = np.array([[1.0, 3.0, 3.0 - 1e-7, 0.0]])


def chosen(*places: int) -> np.ndarray:
    return comparable(RANKED, {"best": np.array([places]), "logits": LOGITS})["best"]


def test_choices_become_the_values_that_they_lead_to() -> None:
    outputs = {"best": np.array([[1, 2]]), "logits": LOGITS}
    found = comparable(RANKED, outputs)
    assert found["best"].tolist() == [[3.0, 3.0 - 1e-7]]
    assert found["logits"] is LOGITS
    assert outputs["best"].dtype.kind == "i"  # as it was


def test_near_equal_ones_may_change_places_and_others_may_not() -> None:
    reference = chosen(1, 2)
    assert compare(*WHERE, chosen(2, 1), reference, 1e-6).passed
    assert not compare(*WHERE, chosen(1, 0), reference, 1e-6).passed


@pytest.mark.parametrize("places", [(1, 1), (1, 4), (1, -1), (-3, 1)])
def test_choices_twice_or_out_of_range_never_pass(places: tuple[int, int]) -> None:
    assert np.isnan(chosen(*places)).any()
    assert not compare(*WHERE, chosen(*places), chosen(1, 2), 1e9).passed


def test_choices_of_another_shape_or_kind_never_pass() -> None:
    for best in (np.array([[1, 2], [1, 2]]), np.array([[1.0, 2.0]])):
        found = comparable(RANKED, {"best": best, "logits": LOGITS})["best"]
        assert not compare(*WHERE, found, chosen(1, 2), 1e9).passed


@given(st.integers(1, 2**32 - 1), st.floats(0, 1))
def test_sorted_values_move_no_further_than_the_values(seed: int, error: float) -> None:
    """The reason why `comparable` is fair: whatever order near-equal values come in, a right run passes."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, (5, 9)) + rng.random((5, 9)) * 1e-3  # many near-equal ones
    other = values + error * rng.uniform(-1, 1, values.shape)
    best, best_other = (np.take_along_axis(v, np.argsort(-v)[:, :4], 1) for v in (values, other))
    assert np.abs(best - best_other).max() <= error + 1e-12
