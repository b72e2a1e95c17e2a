"""The grid of cases and the inputs that are drawn for them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoformer.runtime.cases import (
    BATCHES,
    LARGE,
    LENGTHS,
    MASKS,
    Case,
    extent,
    grid,
    make_mask,
    mask_patterns,
    sample,
    takes_part,
)
from isoformer.runtime.package import Signature, TensorSpec

BATCH, LENGTH = "batch_size", "sequence_length"
KEY_MASK = TensorSpec("attention_mask", "int64", (BATCH, LENGTH), kind="mask")
ROW_MASK = TensorSpec("attention_mask", "int64", (BATCH, LENGTH, LENGTH), kind="mask")
IDS = TensorSpec("input_ids", "int64", (BATCH, LENGTH), low=3, high=13)
COUNTS = TensorSpec("sequence_lengths", "int64", (BATCH,), kind="lengths", along=LENGTH)
SEGMENTS = TensorSpec("segment_ids", "int64", (BATCH, LENGTH), kind="segments")
PREFIX = TensorSpec("prefix_lengths", "int64", (BATCH,), kind="prefix", along=LENGTH)
OUT = TensorSpec("out", "float32", (BATCH, LENGTH))


def signature(*inputs: TensorSpec, **bounds: tuple[int, int | None]) -> Signature:
    names = [axis for spec in inputs for axis in spec.axes if isinstance(axis, str)]
    return Signature(inputs, (OUT,), {name: bounds.get(name, (1, None)) for name in names}, ("right", "left"))


def draw(pattern: str, spec: TensorSpec, *shape: int, seed: int = 0) -> np.ndarray:
    return make_mask(spec, shape, pattern, np.random.default_rng(seed))


# ------------------------------------------------------------------------------------------------ the grid


def test_grid_is_every_batch_length_and_mask() -> None:
    cases = list(grid(signature(IDS, KEY_MASK)))
    wanted = itertools.product((mask for mask in MASKS if mask != "row"), BATCHES, LENGTHS)
    assert [(c.mask, c.batch, c.length) for c in cases] == list(wanted)
    assert all(c.sizes == {BATCH: c.batch, LENGTH: c.length} for c in cases)
    assert len({c.name for c in cases}) == len(cases) == 6 * 3 * 6


def test_grid_names_its_cases() -> None:
    assert next(c.name for c in grid(signature(IDS, KEY_MASK)) if c.mask == "left" and c.batch == 2) == "left-2x1"


def test_grid_takes_other_batches_and_lengths() -> None:
    cases = list(grid(signature(IDS, KEY_MASK), batches=(3,), lengths=(11, 5)))
    assert {(c.batch, c.length) for c in cases} == {(3, 5), (3, 11)}


def test_lengths_give_way_to_the_maximum() -> None:
    cases = list(grid(signature(IDS, KEY_MASK, sequence_length=(1, 29))))
    assert sorted({c.length for c in cases}) == [1, 2, 7, 29]
    assert len(cases) == len({c.name for c in cases}) == 6 * 3 * 4


def test_lengths_do_not_fall_below_the_minimum() -> None:
    cases = list(grid(signature(IDS, KEY_MASK, sequence_length=(5, 29))))
    assert {c.sizes[LENGTH] for c in cases} == {5, 7, 29}


def test_batches_keep_to_their_bounds() -> None:
    cases = list(grid(signature(IDS, KEY_MASK, batch_size=(2, 3))))
    assert cases
    assert {c.sizes[BATCH] for c in cases} <= {2, 3}


def test_two_lengths_are_not_always_equal() -> None:
    queries = TensorSpec("queries", "float32", (BATCH, "query_length", 3))
    keys = TensorSpec("keys", "float32", (BATCH, "key_length", 3))
    cases = list(grid(signature(queries, keys, key_length=(1, 17))))
    assert all(c.sizes["query_length"] != c.sizes["key_length"] for c in cases)
    assert {c.sizes["key_length"] for c in cases} == {1, 2, 7, 17}


def test_grid_without_named_axes() -> None:
    fixed = Signature((TensorSpec("x", "float32", (2, 3)),), (TensorSpec("y", "float32", (2,)),), {}, ())
    (case,) = grid(fixed)
    assert (case.mask, case.sizes) == ("none", {})
    assert case.inputs(fixed)["x"].shape == (2, 3)


@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        ([IDS], ["none"]),
        ([IDS, KEY_MASK], [name for name in MASKS if name != "row"]),
        ([IDS, ROW_MASK], list(MASKS)),
        ([IDS, TensorSpec("m", "bool", (BATCH, 1, LENGTH, LENGTH), kind="mask")], list(MASKS)),
        ([IDS, COUNTS], ["none", "right", "ragged", "sample"]),
        ([IDS, SEGMENTS], [name for name in MASKS if name != "row"]),
        ([IDS, COUNTS, SEGMENTS], [name for name in MASKS if name != "row"]),
        ([IDS, COUNTS, ROW_MASK], list(MASKS)),
        ([IDS, PREFIX], ["none"]),
        ([IDS, COUNTS, PREFIX], ["none", "right", "ragged", "sample"]),
    ],
    ids=[
        "no mask",
        "keys",
        "queries and keys",
        "four axes",
        "lengths",
        "segments",
        "lengths and segments",
        "lengths and rows",
        "prefix",
        "lengths and prefix",
    ],
)
def test_patterns_that_a_signature_can_express(inputs: list[TensorSpec], wanted: list[str]) -> None:
    assert mask_patterns(signature(*inputs)) == wanted


# ------------------------------------------------------------------------------------------------ the masks


def test_none() -> None:
    np.testing.assert_array_equal(draw("none", KEY_MASK, 2, 5), np.ones((2, 5)))


@pytest.mark.parametrize(("keys", "kept"), [(1, 1), (2, 1), (3, 2), (7, 4), (31, 20)])
def test_right_and_left(keys: int, kept: int) -> None:
    row = [1] * kept + [0] * (keys - kept)
    np.testing.assert_array_equal(draw("right", KEY_MASK, 2, keys), [row] * 2)
    np.testing.assert_array_equal(draw("left", KEY_MASK, 2, keys), [row[::-1]] * 2)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 5), keys=st.integers(1, 31), seed=st.integers(0, 2**32))
def test_ragged_rows_are_padded_on_the_right_alone(batch: int, keys: int, seed: int) -> None:
    mask = draw("ragged", KEY_MASK, batch, keys, seed=seed)
    assert mask[:, 0].all()
    assert (np.diff(mask, axis=1) <= 0).all()


def test_ragged_rows_have_lengths_of_their_own() -> None:
    assert len(set(draw("ragged", KEY_MASK, 11, 31).sum(1).tolist())) > 2


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 5), keys=st.integers(1, 31), seed=st.integers(0, 2**32))
def test_holes_leave_a_key_in_every_row(batch: int, keys: int, seed: int) -> None:
    mask = draw("holes", KEY_MASK, batch, keys, seed=seed)
    assert set(np.unique(mask)) <= {0, 1}
    assert mask.any(1).all()


def test_holes_are_between_keys_that_take_part() -> None:
    mask = draw("holes", KEY_MASK, 5, 31)
    first, last = mask.argmax(1), mask.shape[1] - mask[:, ::-1].argmax(1)
    assert all(not row[a:b].all() for row, a, b in zip(mask, first, last, strict=True))


def test_sample_leaves_the_last_sequence_without_any_key() -> None:
    mask = draw("sample", KEY_MASK, 3, 7)
    np.testing.assert_array_equal(mask.any(1), [True, True, False])
    assert not draw("sample", KEY_MASK, 1, 7).any()


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 1, 5, 7), (2, 3, 5, 7)], ids=str)
def test_row_leaves_one_query_without_any_key(shape: tuple[int, ...]) -> None:
    spec = TensorSpec("mask", "bool", (BATCH, *shape[1:]), kind="mask")
    mask = draw("row", spec, *shape)
    empty = ~mask.any(-1)
    np.testing.assert_array_equal(empty.sum(-1), np.ones(shape[:-2]))
    assert mask.sum() == np.prod(shape[:-2]) * (shape[-2] - 1) * shape[-1]


@pytest.mark.parametrize("pattern", [name for name in MASKS if name not in ("row", "none")])
@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 2, 5, 7)], ids=str)
def test_patterns_of_keys_are_the_same_for_every_query_and_head(pattern: str, shape: tuple[int, ...]) -> None:
    spec = TensorSpec("mask", "float32", (BATCH, *shape[1:]), kind="mask")
    mask = draw(pattern, spec, *shape)
    assert (mask.dtype, mask.shape) == (np.float32, shape)
    keys = draw(pattern, KEY_MASK, 3, 7)
    np.testing.assert_array_equal(mask, np.broadcast_to(keys.reshape(3, *[1] * (len(shape) - 2), 7), shape))


def test_mask_without_a_batch_axis() -> None:
    spec = TensorSpec("mask", "bool", ("query_length", "key_length"), kind="mask")
    mask = draw("left", spec, 5, 7)
    np.testing.assert_array_equal(mask, [[False] * 3 + [True] * 4] * 5)


# ------------------------------------------------------------------------------------------------ the inputs


def test_the_same_seed_makes_the_same_inputs() -> None:
    full = signature(IDS, KEY_MASK, TensorSpec("x", "float32", (BATCH, 3)))
    for case in grid(full, batches=(2,), lengths=(7,)):
        one, same, other = case.inputs(full), case.inputs(full), case.inputs(full, seed=1)
        for name, value in one.items():
            np.testing.assert_array_equal(value, same[name])
        assert not np.array_equal(one["x"], other["x"])


def test_cases_do_not_share_their_inputs() -> None:
    plain = signature(TensorSpec("x", "float32", (BATCH, 3)), KEY_MASK)
    one, other = (Case(mask, 2, 7, {BATCH: 2, LENGTH: 7}).inputs(plain)["x"] for mask in ("none", "right"))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float16", "float32", "float64"])
def test_inputs_have_the_dtype_and_shape_of_the_signature(dtype: str) -> None:
    spec = TensorSpec("x", dtype, (BATCH, 5, LENGTH), low=-2, high=3)
    value = sample(signature(spec), {BATCH: 2, LENGTH: 7}, "none", np.random.default_rng(0))["x"]
    assert (value.dtype, value.shape) == (np.dtype(dtype), (2, 5, 7))
    assert len(np.unique(value)) > 1


def test_integers_take_every_value_of_their_range_and_no_other() -> None:
    value = sample(signature(IDS), {BATCH: 11, LENGTH: 31}, "none", np.random.default_rng(0))["input_ids"]
    assert set(np.unique(value)) == set(range(3, 13))


def test_floats_spread_over_their_range_where_there_is_one() -> None:
    places, values = TensorSpec("places", "float32", (BATCH,), high=5), TensorSpec("values", "float32", (BATCH,))
    found = sample(signature(places, values), {BATCH: 997}, "none", np.random.default_rng(0))
    assert set(np.floor(found["places"])) == set(range(5))
    assert found["values"].min() < -1


@pytest.mark.parametrize("pad", [3, 5, 12])
@pytest.mark.parametrize("mask", [KEY_MASK, ROW_MASK], ids=["keys", "queries and keys"])
@pytest.mark.parametrize("pattern", ["none", "right", "left", "ragged", "holes", "sample"])
def test_pad_stands_under_the_mask_and_nowhere_else(pad: int, mask: TensorSpec, pattern: str) -> None:
    ids = TensorSpec("input_ids", "int64", (BATCH, LENGTH), low=3, high=13, pad=pad)
    inputs = Case(pattern, 5, 31, {BATCH: 5, LENGTH: 31}).inputs(signature(ids, mask))
    seen = inputs["attention_mask"] != 0
    seen = seen.any(1) if seen.ndim == 3 else seen
    np.testing.assert_array_equal(inputs["input_ids"] != pad, seen)
    assert inputs["input_ids"].dtype == np.int64
    assert inputs["input_ids"].min() >= 3
    assert inputs["input_ids"].max() <= 12


def test_without_pad_the_ids_do_not_depend_on_the_mask() -> None:
    inputs = Case("sample", 5, 31, {BATCH: 5, LENGTH: 31}).inputs(signature(IDS, KEY_MASK))
    assert len(np.unique(inputs["input_ids"][-1])) > 1


# ------------------------------------------------------------------------------------ lengths and segments


@pytest.mark.parametrize("pattern", ["none", "right", "ragged", "sample"])
@pytest.mark.parametrize("keys", [1, 2, 7, 31])
def test_lengths_count_the_keys_that_a_mask_of_the_pattern_keeps(pattern: str, keys: int) -> None:
    sizes = {BATCH: 5, LENGTH: keys}
    lengths = sample(signature(IDS, COUNTS), sizes, pattern, np.random.default_rng(0))["sequence_lengths"]
    assert (lengths.dtype, lengths.shape) == (np.int64, (5,))
    assert lengths.min() >= 0
    assert lengths.max() <= keys
    wanted = {"none": [keys] * 5, "right": [max(1, keys * 2 // 3)] * 5}
    if pattern in wanted:
        assert lengths.tolist() == wanted[pattern]
    else:
        assert lengths[:-1].min() >= 1
        assert (lengths[-1] == 0) == (pattern == "sample")
        assert len(set(lengths.tolist())) > 1 or keys < 3


@pytest.mark.parametrize("pattern", [name for name in MASKS if name != "row"])
def test_segments_keep_what_a_mask_of_the_pattern_keeps_and_count_from_one(pattern: str) -> None:
    numbers = sample(signature(IDS, SEGMENTS), {BATCH: 5, LENGTH: 31}, pattern, np.random.default_rng(0))["segment_ids"]
    assert numbers.dtype == np.int64
    assert numbers.min() >= 0
    for row in numbers:
        real = row[row != 0]
        assert (np.diff(real) >= 0).all()  # each stands in one piece
    assert max(len(set(row[row != 0])) for row in numbers) > 1
    empty = (numbers != 0).any(1)
    assert empty.tolist() == [True] * 4 + [pattern != "sample"]
    if pattern in ("right", "left"):
        mask = make_mask(KEY_MASK, (5, 31), pattern, np.random.default_rng(0))
        np.testing.assert_array_equal(numbers != 0, mask != 0)
    assert (numbers == 0).any() == (pattern != "none")


def test_a_prefix_is_of_any_length_in_every_pattern() -> None:
    for pattern in ("none", "sample"):
        rng = np.random.default_rng(0)
        found = sample(signature(IDS, PREFIX), {BATCH: 211, LENGTH: 5}, pattern, rng)["prefix_lengths"]
        assert set(found.tolist()) == set(range(6))


def test_takes_part_reads_masks_lengths_and_segments() -> None:
    wanted = [[True, True, False], [False, False, False]]
    np.testing.assert_array_equal(takes_part(COUNTS, np.array([2, 0]), 3), wanted)
    np.testing.assert_array_equal(takes_part(SEGMENTS, np.array([[1, 2, 0], [0, 0, 0]]), 3), wanted)
    np.testing.assert_array_equal(takes_part(KEY_MASK, np.array([[1, 1, 0], [0, 0, 0]]), 3), wanted)


@pytest.mark.parametrize("spec", [COUNTS, SEGMENTS], ids=["lengths", "segments"])
@pytest.mark.parametrize("pattern", ["none", "right", "ragged", "sample"])
def test_pad_stands_where_lengths_and_segments_end(pattern: str, spec: TensorSpec) -> None:
    ids = TensorSpec("input_ids", "int64", (BATCH, LENGTH), low=3, high=13, pad=5)
    inputs = Case(pattern, 5, 31, {BATCH: 5, LENGTH: 31}).inputs(signature(ids, PREFIX, spec))
    np.testing.assert_array_equal(inputs["input_ids"] != 5, takes_part(spec, inputs[spec.name], 31))


# -------------------------------------------------------------------------------------- axes that are sums


PAST, TOTAL = "past_sequence_length", "total_sequence_length"
CACHED = Signature(
    (
        IDS,
        TensorSpec("attention_mask", "int64", (BATCH, TOTAL), kind="mask"),
        TensorSpec("past", "float32", (BATCH, 2, PAST, 3)),
    ),
    (TensorSpec("present", "float32", (BATCH, 2, TOTAL, 3)),),
    {BATCH: (1, None), LENGTH: (1, 29), PAST: (0, None), TOTAL: (1, None)},
    ("right", "left"),
    {TOTAL: (PAST, LENGTH)},
)


def test_sums_are_no_axes_of_their_own() -> None:
    assert CACHED.free_axes == [BATCH, LENGTH, PAST]
    assert CACHED.complete({LENGTH: 3, PAST: 5}) == {LENGTH: 3, PAST: 5, TOTAL: 8}
    assert CACHED.complete({LENGTH: 3, PAST: 5, TOTAL: 99})[TOTAL] == 8
    assert signature(IDS).complete({LENGTH: 3}) == {LENGTH: 3}


def test_every_case_of_the_grid_adds_up() -> None:
    cases = list(grid(CACHED))
    assert len({c.name for c in cases}) == len(cases) == 6 * 3 * 4
    assert all(c.sizes[TOTAL] == c.sizes[PAST] + c.sizes[LENGTH] for c in cases)
    assert {c.sizes[LENGTH] for c in cases} == {1, 2, 7, 29}
    pasts = {c.sizes[PAST] for c in cases}
    assert 0 in pasts  # nothing cached yet
    assert len(pasts) > 2
    for case in cases:
        inputs = case.inputs(CACHED)
        assert inputs["attention_mask"].shape == (case.batch, case.sizes[TOTAL])
        assert inputs["past"].shape == (case.batch, 2, case.sizes[PAST], 3)


def test_a_sum_may_be_of_outputs_alone() -> None:
    plain = Signature((IDS, CACHED.inputs[2]), CACHED.outputs, CACHED.axes, (), CACHED.sums)
    cases = list(grid(plain))
    assert cases
    assert all(c.sizes[TOTAL] == c.sizes[PAST] + c.sizes[LENGTH] for c in cases)
    assert set(cases[0].inputs(plain)) == {"input_ids", "past"}


def test_products_are_read_from_a_manifest() -> None:
    data = {
        "inputs": [{"name": "x", "dtype": "float32", "axes": [BATCH, "rows", "columns"]}],
        "outputs": [{"name": "y", "dtype": "float32", "axes": [BATCH, "tokens"]}],
        "axes": {name: {"min": 1, "max": 7, "sum_of": []} for name in (BATCH, "rows", "columns")}
        | {"tokens": {"min": 1, "max": None, "sum_of": [], "times": 1, "product_of": ["rows", "columns"], "plus": 2}},
        "padding": [],
    }
    read = Signature.read(data)
    assert read.products == {"tokens": (("rows", "columns"), 2)}
    assert read.free_axes == [BATCH, "rows", "columns"]
    assert all(case.sizes["tokens"] == case.sizes["rows"] * case.sizes["columns"] + 2 for case in grid(read))


def test_sums_are_read_from_a_manifest() -> None:
    data = {
        "inputs": [{"name": "x", "dtype": "float32", "axes": [BATCH, LENGTH]}],
        "outputs": [{"name": "y", "dtype": "float32", "axes": [BATCH]}],
        "axes": {
            BATCH: {"min": 1, "max": None},
            LENGTH: {"min": 1, "max": 29, "sum_of": []},
            PAST: {"min": 0, "max": None, "sum_of": []},
            TOTAL: {"min": 1, "max": None, "sum_of": [PAST, LENGTH]},
        },
        "padding": [],
    }
    read = Signature.read(data)
    assert read.sums == {TOTAL: (PAST, LENGTH)}
    assert not read.chunked
    assert Signature.read(data | {"chunked": True}).chunked


def test_large_models_have_a_smaller_grid():
    assert extent(LARGE - 1) == (BATCHES, LENGTHS)
    assert extent(LARGE) == ((1, 2), (1, 2, 7, 31, 128))
