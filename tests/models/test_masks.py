from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from isoformer.models import masks

B, H, LQ, LK = 2, 3, 5, 7
SIZES = (B, H, LQ, LK)
lengths = st.integers(1, 7)
properties = settings(max_examples=40, deadline=None)


def random_mask(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5


def table(query_length: int, key_length: int, rule: Callable[[int, int], bool]) -> Tensor:
    """rule(position of the query, position of the key), written out."""
    past = key_length - query_length
    return torch.tensor([[rule(i + past, j) for j in range(key_length)] for i in range(query_length)])[None, None]


# normalize


@pytest.mark.parametrize(
    ("shape", "normal", "entry"),
    [
        ((B, LK), (B, 1, LQ, LK), lambda m, b, _h, _i, j: m[b, j]),
        ((LQ, LK), (1, 1, LQ, LK), lambda m, _b, _h, i, j: m[i, j]),
        ((B, LQ, LK), (B, 1, LQ, LK), lambda m, b, _h, i, j: m[b, i, j]),
        ((B, H, LQ, LK), (B, H, LQ, LK), lambda m, b, h, i, j: m[b, h, i, j]),
        ((1, H, LQ, LK), (1, H, LQ, LK), lambda m, _b, h, i, j: m[0, h, i, j]),
        ((B, 1, LQ, LK), (B, 1, LQ, LK), lambda m, b, _h, i, j: m[b, 0, i, j]),
        ((B, H, 1, LK), (B, H, LQ, LK), lambda m, b, h, _i, j: m[b, h, 0, j]),
        ((B, 1, 1, LK), (B, 1, LQ, LK), lambda m, b, _h, _i, j: m[b, 0, 0, j]),
        ((1, 1, LQ, LK), (1, 1, LQ, LK), lambda m, _b, _h, i, j: m[0, 0, i, j]),
        ((1, 1, 1, LK), (1, 1, LQ, LK), lambda m, _b, _h, _i, j: m[0, 0, 0, j]),
    ],
)
def test_normalize_reads_every_shape_of_the_contract(shape, normal, entry):
    mask = random_mask(*shape)
    full = masks.normalize(mask, *SIZES)
    assert full.dtype == torch.bool
    assert full.shape == normal
    full = full.expand(SIZES)
    for b, h, i, j in product(*map(range, SIZES)):
        assert full[b, h, i, j] == entry(mask, b, h, i, j)


def test_two_axes_with_as_many_rows_as_sequences_are_key_padding_also_when_queries_are_as_many():
    mask = random_mask(LQ, LK)
    assert mask.unique(dim=0).shape[0] > 1
    full = masks.normalize(mask, LQ, H, LQ, LK)
    assert torch.equal(full, mask[:, None, None, :].expand(LQ, 1, LQ, LK))
    assert torch.equal(full, masks.normalize(masks.padding(mask), LQ, H, LQ, LK))


@pytest.mark.parametrize(
    "shape",
    [
        (),
        (LK,),
        (LK, B),
        (LK, LQ),
        (H, LK),
        (B, LQ),
        (B, 1),
        (H, LQ, LK),
        (B, H, LK),
        (B, LK, LQ),
        (B, LQ, 1),
        (B, B, LQ, LK),
        (H, H, LQ, LK),
        (B, H, LK, LQ),
        (B, LQ, H, LK),
        (B, H, LQ, 1),
        (B, H, LQ, LK, 1),
        (1, B, H, LQ, LK),
    ],
    ids=str,
)
def test_normalize_refuses_any_other_shape_and_names_both(shape):
    with pytest.raises(ValueError, match="mask has shape") as error:
        masks.normalize(torch.ones(shape, dtype=torch.bool), *SIZES)
    assert f"shape {shape}" in str(error.value)
    assert f"({B}, {LK}), ({LQ}, {LK}), ({B}, {LQ}, {LK}) or ({B}, {H}, {LQ}, {LK})" in str(error.value)
    assert f"batch {B}, heads {H}, queries {LQ} and keys {LK}" in str(error.value)
    assert "\n" not in str(error.value)


@properties
@given(shape=st.lists(st.sampled_from([1, *SIZES, 11]), min_size=1, max_size=5).map(tuple))
def test_normalize_takes_the_shapes_of_the_contract_and_no_other(shape):
    assume(len(shape) == 4 or 1 not in shape)
    repeated = product((1, B), (1, H), (1, LQ), (LK,))
    if shape in {(B, LK), (LQ, LK), (B, LQ, LK), *repeated}:
        assert masks.normalize(torch.ones(shape), *SIZES).expand(SIZES).all()
    else:
        with pytest.raises(ValueError, match="mask has shape"):
            masks.normalize(torch.ones(shape), *SIZES)


def test_normalize_counts_no_keys_as_a_length_like_any_other():
    assert masks.normalize(torch.ones(B, 0), B, H, LQ, 0).shape == (B, 1, LQ, 0)


# as_bool


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64],
    ids=str,
)
def test_zero_and_one_of_any_number_type_become_booleans(dtype):
    expected = random_mask(3, 5)
    assert 0 < expected.sum() < 15
    for mask in (masks.as_bool(expected.to(dtype)), masks.normalize(expected.to(dtype), 3, 2, 7, 5)[:, 0, 6]):
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected)


def test_booleans_pass_as_they_are():
    mask = random_mask(2, 3)
    assert masks.as_bool(mask) is mask


@pytest.mark.parametrize(
    "values",
    [
        [0.0, float("-inf")],
        [0.0, torch.finfo(torch.float32).min],
        [0.0, -10000.0],
        [1.0, 0.5],
        [1.0, float("nan")],
        [1.0, float("inf")],
        [1, 2],
        [1, -1],
        [0, 255],
    ],
    ids=str,
)
def test_other_numbers_are_refused_wherever_a_mask_enters(values):
    mask = torch.tensor([values])
    for call in (
        lambda: masks.as_bool(mask),
        lambda: masks.padding(mask),
        lambda: masks.combine(mask[None, None]),
        lambda: masks.combine(torch.ones(1, 1, 1, 2), mask[None, None]),
        lambda: masks.normalize(mask, 1, 3, 5, 2),
    ):
        with pytest.raises(ValueError, match="other than 0 and 1"):
            call()


# combine


def test_combine_is_true_where_all_are():
    one = torch.tensor([[[[True, True, False, False]]]])
    other = torch.tensor([[[[True, False, True, False]]]])
    assert torch.equal(masks.combine(one, other), torch.tensor([[[[True, False, False, False]]]]))  # pyright: ignore


def test_combine_passes_over_none_and_converts_numbers():
    mask = random_mask(2, 3)[:, None, None]
    assert masks.combine() is None
    assert masks.combine(None, None) is None
    for combined in (masks.combine(None, mask.float(), None), masks.combine(mask.to(torch.int64), mask.float())):
        assert combined is not None
        assert combined.dtype == torch.bool
        assert torch.equal(combined, mask)


def test_combine_repeats_what_the_builders_return():
    keys = random_mask(B, LK)
    combined = masks.combine(masks.padding(keys), masks.causal(LQ, LK))
    assert combined is not None
    assert combined.shape == (B, 1, LQ, LK)
    for b, i, j in product(range(B), range(LQ), range(LK)):
        assert combined[b, 0, i, j] == (keys[b, j] and j <= i + LK - LQ)


# builders


def test_padding():
    mask = random_mask(B, LK)
    assert masks.padding(mask.to(torch.int64)).shape == (B, 1, 1, LK)
    assert torch.equal(masks.padding(mask.to(torch.int64))[:, 0, 0], mask)


@pytest.mark.parametrize("shape", [(LK,), (B, LQ, LK), (B, 1, 1, LK)], ids=str)
def test_padding_takes_two_axes(shape):
    with pytest.raises(ValueError, match=r"\(batch, keys\), not") as error:
        masks.padding(torch.ones(shape))
    assert str(shape) in str(error.value)


def test_lengths():
    expected = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)
    mask = masks.lengths(torch.tensor([0, 1, 2, 3, 3]), 3)
    assert mask.shape == (5, 1, 1, 3)
    assert torch.equal(mask[:, 0, 0], expected)
    assert torch.equal(mask, masks.padding(expected))


def test_causal_with_as_many_queries_as_keys_is_the_lower_triangle():
    assert torch.equal(masks.causal(5, 5), torch.ones(5, 5).tril().bool()[None, None])


def test_causal_behind_cached_keys_stands_at_the_bottom_right():
    expected = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    assert torch.equal(masks.causal(3, 5), expected[None, None])
    assert masks.causal(1, 7).all()


def test_causal_with_more_queries_than_keys_leaves_the_first_without_any():
    expected = torch.tensor([[0, 0], [0, 0], [0, 0], [1, 0], [1, 1]], dtype=torch.bool)
    assert torch.equal(masks.causal(5, 2), expected[None, None])


@properties
@given(query_length=lengths, past=st.integers(0, 5))
def test_a_causal_row_does_not_depend_on_how_many_run_with_it(query_length, past):
    whole = masks.causal(past + query_length, past + query_length)
    assert torch.equal(masks.causal(query_length, past + query_length), whole[:, :, past:])


@properties
@given(query_length=lengths, key_length=lengths, left=st.integers(0, 8), right=st.integers(0, 8))
def test_a_window_reaches_as_far_as_it_says(query_length, key_length, left, right):
    window = masks.sliding_window(query_length, key_length, left, right)
    assert window.dtype == torch.bool
    assert torch.equal(window, table(query_length, key_length, lambda i, j: i - left <= j <= i + right))
    before = masks.sliding_window(query_length, key_length, left, None)
    assert torch.equal(before, table(query_length, key_length, lambda i, j: i - left <= j))
    after = masks.sliding_window(query_length, key_length, None, right)
    assert torch.equal(after, table(query_length, key_length, lambda i, j: j <= i + right))


@properties
@given(query_length=lengths, key_length=lengths)
def test_windows_without_an_end_are_the_masks_that_they_must_be(query_length, key_length):
    causal = masks.causal(query_length, key_length)
    assert torch.equal(causal, table(query_length, key_length, lambda i, j: j <= i))
    for left in (key_length, None):
        assert torch.equal(masks.sliding_window(query_length, key_length, left), causal)
        assert torch.equal(masks.sliding_window(query_length, key_length, left, 0), causal)
    everything = masks.sliding_window(query_length, key_length, None, None)
    assert everything.shape == (1, 1, query_length, key_length)
    assert everything.all()


def test_a_window_of_nothing_but_itself_is_the_diagonal():
    assert torch.equal(masks.sliding_window(5, 5, 0, 0), torch.eye(5, dtype=torch.bool)[None, None])
    assert torch.equal(masks.sliding_window(2, 5, 0), torch.eye(5, dtype=torch.bool)[None, None, 3:])


@pytest.mark.parametrize(
    ("left", "right", "named"), [(-1, 0, "-1 keys to the left"), (3, -2, "-2 keys to the right"), (None, -1, "right")]
)
def test_a_window_cannot_be_negative(left, right, named):
    with pytest.raises(ValueError, match=named):
        masks.sliding_window(LQ, LK, left, right)


@properties
@given(query_length=lengths, key_length=lengths, prefixes=st.lists(st.integers(0, 8), min_size=1, max_size=3))
def test_prefix_is_causal_but_for_its_first_keys(query_length, key_length, prefixes):
    prefixes = [min(length, key_length) for length in prefixes]
    mask = masks.prefix(query_length, key_length, torch.tensor(prefixes))
    assert mask.shape == (len(prefixes), 1, query_length, key_length)
    for b, length in enumerate(prefixes):
        expected = table(query_length, key_length, lambda i, j, first=length: j < first or j <= i)
        assert torch.equal(mask[b : b + 1], expected)


def test_a_prefix_of_nothing_is_causal_and_of_everything_hides_nothing():
    mask = masks.prefix(LQ, LK, torch.tensor([0, LK]))
    assert torch.equal(mask[:1], masks.causal(LQ, LK))
    assert mask[1].all()


def test_segments_see_themselves():
    queries = torch.tensor([[1, 1, 2], [3, 5, 3]])
    expected = torch.tensor([[[1, 1, 0], [1, 1, 0], [0, 0, 1]], [[1, 0, 1], [0, 1, 0], [1, 0, 1]]], dtype=torch.bool)
    assert torch.equal(masks.segments(queries), expected[:, None])


def test_segments_of_queries_and_keys_may_differ_in_length():
    queries, keys = torch.tensor([[1, 2], [5, 7]]), torch.tensor([[2, 1, 1], [7, 7, 3]])
    expected = torch.tensor([[[0, 1, 1], [1, 0, 0]], [[0, 0, 0], [1, 1, 0]]], dtype=torch.bool)
    assert torch.equal(masks.segments(queries, keys), expected[:, None])


@pytest.mark.parametrize(
    ("mask", "shape"),
    [
        (masks.causal(LQ, LK), (1, 1, LQ, LK)),
        (masks.sliding_window(LQ, LK, 2, 1), (1, 1, LQ, LK)),
        (masks.prefix(LQ, LK, torch.tensor([0, 3])), (B, 1, LQ, LK)),
        (masks.segments(torch.zeros(B, LQ), torch.zeros(B, LK)), (B, 1, LQ, LK)),
        (masks.padding(torch.ones(B, LK)), (B, 1, 1, LK)),
        (masks.lengths(torch.tensor([2, 3]), LK), (B, 1, 1, LK)),
    ],
    ids=["causal", "sliding_window", "prefix", "segments", "padding", "lengths"],
)
def test_what_builders_return_is_boolean_of_four_axes_and_normal_for_attention(mask, shape):
    assert mask.dtype == torch.bool
    assert mask.shape == shape
    full = masks.normalize(mask, *SIZES)
    assert full.shape == (shape[0], 1, LQ, LK)
    assert torch.equal(full, mask.expand(full.shape))


# offsets


OFFSETS = [0, 2, 3, 8, -2]


@pytest.mark.parametrize("offset", OFFSETS)
def test_an_offset_says_where_the_first_query_stands(offset):
    def seen(rule: Callable[[int, int], bool]) -> Tensor:
        return torch.tensor([[rule(i + offset, j) for j in range(LK)] for i in range(LQ)])[None, None]

    assert torch.equal(masks.causal(LQ, LK, offset=offset), seen(lambda i, j: j <= i))
    window = masks.sliding_window(LQ, LK, 2, 1, offset=offset)
    assert torch.equal(window, seen(lambda i, j: i - 2 <= j <= i + 1))
    prefix = masks.prefix(LQ, LK, torch.tensor([3]), offset=offset)
    assert torch.equal(prefix, seen(lambda i, j: j < 3 or j <= i))
    assert torch.equal(masks.distance(LQ, LK, offset=offset) >= 2, seen(lambda i, j: i - j >= 2))


@pytest.mark.parametrize(
    "build",
    [
        lambda **kw: masks.causal(LQ, LK, **kw),
        lambda **kw: masks.sliding_window(LQ, LK, 2, 1, **kw),
        lambda **kw: masks.sliding_window(LQ, LK, None, 1, **kw),
        lambda **kw: masks.sliding_window(LQ, LK, 2, None, **kw),
        lambda **kw: masks.distance(LQ, LK, **kw),
    ],
)
def test_offsets_of_a_batch_are_those_of_its_sequences(build):
    together = build(offset=torch.tensor(OFFSETS))
    assert together.shape == (len(OFFSETS), 1, LQ, LK)
    assert torch.equal(together, torch.cat([build(offset=offset) for offset in OFFSETS]))
    assert torch.equal(build(), build(offset=LK - LQ))
    assert not torch.equal(build(), build(offset=LK - LQ + 1))


def test_offsets_and_prefixes_go_by_sequence():
    prefixes = torch.tensor([3, 0, 5])
    together = masks.prefix(LQ, LK, prefixes, offset=torch.tensor([0, 2, 1]))
    one_by_one = [masks.prefix(LQ, LK, prefixes[b : b + 1], offset=offset) for b, offset in enumerate((0, 2, 1))]
    assert torch.equal(together, torch.cat(one_by_one))


@pytest.mark.parametrize("offset", [torch.tensor(3), torch.tensor([[3]])], ids=["()", "(1, 1)"])
def test_an_offset_of_another_shape_is_refused(offset):
    for build in (
        lambda: masks.causal(LQ, LK, offset=offset),
        lambda: masks.sliding_window(LQ, LK, 2, offset=offset),
        lambda: masks.prefix(LQ, LK, torch.tensor([1]), offset=offset),
    ):
        with pytest.raises(ValueError, match="offset has shape") as error:
            build()
        assert f"{tuple(offset.shape)}; it is one number or (batch,) numbers" in str(error.value)


def test_distance_counts_the_positions_that_a_key_stands_behind_its_query():
    expected = torch.tensor([[2, 1, 0, -1, -2], [3, 2, 1, 0, -1], [4, 3, 2, 1, 0]])
    assert torch.equal(masks.distance(3, 5), expected[None, None])
    assert torch.equal(
        masks.distance(3, 5, offset=torch.tensor([0, 7])), torch.stack([expected - 2, expected + 5])[:, None]
    )
    assert not masks.distance(3, 5).is_floating_point()


# segments with padding


def test_the_padding_segment_takes_part_in_nothing():
    numbers = torch.tensor([[1, 1, 0, 2, 0]])
    expected = torch.tensor(
        [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool
    )
    assert torch.equal(masks.segments(numbers, padding=0), expected[None, None])
    assert torch.equal(masks.segments(torch.where(numbers == 0, 9, numbers), padding=9), expected[None, None])
    assert torch.equal(masks.segments(numbers, padding=5), masks.segments(numbers))
    assert masks.segments(numbers)[0, 0, 2].tolist() == [False, False, True, False, True]


def test_padding_of_other_keys_is_the_keys():
    queries, keys = torch.tensor([[0, 1, 2]]), torch.tensor([[1, 0, 2, 0]])
    expected = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)
    assert torch.equal(masks.segments(queries, keys, padding=0)[0, 0], expected)


# fits and over_queries


@properties
@given(data=st.data(), repeated=st.sets(st.integers(0, 3)))
def test_what_fits_has_the_sizes_or_one_where_it_may_be_repeated(data, repeated):
    shape = tuple(data.draw(st.sampled_from([1, size, size + 1])) for size in SIZES)
    wanted = all(
        have == want or (have == 1 and axis in repeated)
        for axis, (have, want) in enumerate(zip(shape, SIZES, strict=True))
    )
    assert masks.fits(torch.empty(shape), SIZES, repeated) == wanted


@pytest.mark.parametrize("shape", [(1, 1, LQ, LK), (B, H, 1, LK), (B, 1, LQ, 1), (1, H, 1, 1)], ids=str)
def test_queries_and_keys_are_written_out_and_no_more(shape):
    full = masks.over_queries(torch.arange(torch.Size(shape).numel()).reshape(shape), LQ, LK)
    assert full.shape == (*shape[:2], LQ, LK)
    assert torch.equal(full.expand(SIZES), torch.arange(torch.Size(shape).numel()).reshape(shape).expand(SIZES))
