import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoformer.models.positions import LearnedPositions, SinusoidalPositions, count_not_pad, count_real

POSITIONS, HIDDEN = 7, 5
KINDS = [LearnedPositions, SinusoidalPositions]
rectangles = st.integers(1, 11).flatmap(
    lambda length: st.lists(st.lists(st.integers(0, 3), min_size=length, max_size=length), min_size=1, max_size=3)
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_length_stands_for_the_first_rows(kind):
    table = kind(POSITIONS, HIDDEN)
    for length in (0, 1, 3, POSITIONS):
        assert torch.equal(table(length), table.weight[:length])


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_look_up_their_rows(kind):
    table = kind(POSITIONS, HIDDEN)
    rows = table(torch.tensor([[2, 0, 6], [5, 5, 1]]))
    assert rows.shape == (2, 3, HIDDEN)
    for b, i, position in [(0, 0, 2), (0, 1, 0), (0, 2, 6), (1, 0, 5), (1, 1, 5), (1, 2, 1)]:
        assert torch.equal(rows[b, i], table.weight[position])


@pytest.mark.parametrize("kind", KINDS)
def test_a_length_over_the_table_is_refused(kind):
    with pytest.raises(ValueError, match=r"length 8 is over the 7 positions"):
        kind(POSITIONS, HIDDEN)(POSITIONS + 1)


def test_learned_positions_are_trained_and_begin_apart():
    table = LearnedPositions(POSITIONS, HIDDEN)
    assert table.weight.unique(dim=0).shape == (POSITIONS, HIDDEN)
    table(torch.tensor([[3]])).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.nonzero()[:, 0].unique().tolist() == [3]


@pytest.mark.parametrize("hidden", [1, 2, 5, 11, 12])
def test_sinusoidal_positions_are_the_formula(hidden):
    table = SinusoidalPositions(POSITIONS, hidden)
    expected = torch.tensor(
        [
            [(math.cos if e % 2 else math.sin)(p / 10000 ** ((e - e % 2) / hidden)) for e in range(hidden)]
            for p in range(POSITIONS)
        ]
    )
    torch.testing.assert_close(table(POSITIONS), expected, atol=1e-6, rtol=0)


def test_sinusoidal_positions_are_neither_saved_nor_trained():
    table = SinusoidalPositions(POSITIONS, HIDDEN)
    assert table.state_dict() == {}
    assert list(table.parameters()) == []
    assert table.double().weight.dtype == torch.float64  # but move with their model


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.float32], ids=str)
def test_count_real_begins_at_the_first_real_token(dtype):
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1]]).to(dtype)
    expected = torch.tensor([[0, 1, 2, 2, 2], [0, 0, 0, 1, 2], [0, 0, 1, 1, 2]])
    counted = count_real(mask)
    assert counted.dtype == torch.int64
    assert torch.equal(counted, expected)


def test_count_real_without_a_real_token_stays_in_the_table():
    assert torch.equal(count_real(torch.zeros(2, 3)), torch.zeros(2, 3, dtype=torch.int64))


@settings(max_examples=40, deadline=None)
@given(rectangle=rectangles)
def test_count_real_numbers_the_real_tokens_in_order(rectangle):
    mask = torch.tensor(rectangle) > 0
    counted = count_real(mask)
    for row, real in zip(counted, mask, strict=True):
        assert row[real].tolist() == list(range(int(real.sum())))
        assert row.min() >= 0
        assert row.max() < max(1, int(real.sum()))


@settings(max_examples=40, deadline=None)
@given(rectangle=rectangles, pad=st.integers(0, 3))
def test_count_not_pad_counts_from_behind_the_padding_token(rectangle, pad):
    counted = count_not_pad(torch.tensor(rectangle), pad)
    for row, ids in zip(counted.tolist(), rectangle, strict=True):
        real = [position for position, token in zip(row, ids, strict=True) if token != pad]
        assert real == list(range(pad + 1, pad + 1 + len(real)))
        assert all(position == pad for position, token in zip(row, ids, strict=True) if token == pad)
