"""Rectangles of a ragged batch: each sequence once, in order again, the cheapest cut, and the same answers."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoformer.runtime import InputError, Session, batching
from isoformer.runtime.batching import plan
from isoformer.runtime.cases import Arrays
from isoformer.runtime.cost import Cost
from tests.conftest import export_encoder

COSTS = st.builds(Cost, call=st.floats(0, 100), pair=st.floats(0, 1), packed=st.booleans())
CROWDED = st.builds(replace, COSTS, crowd=st.floats(0, 1), halves=st.booleans())
LENGTHS = st.lists(st.integers(1, 40), max_size=11)


def total(groups: list[np.ndarray], lengths: list[int], cost: Cost) -> float:
    if cost.packed:  # padding costs nothing, or in attention alone
        found = 0.0
        for group in groups:
            own = sorted((lengths[index] for index in group), reverse=True)
            pairs = sum(length**2 for length in own)
            if cost.halves:
                longer, shorter = own[: (len(own) + 1) // 2], own[(len(own) + 1) // 2 :]
                pairs = sum(len(half) * max(half, default=0) ** 2 for half in (longer, shorter))
            found += cost.call + sum(own) + cost.pair * pairs + cost.crowd * sum(own) ** 2
        return found
    return sum(cost(len(group), max(lengths[index] for index in group)) for group in groups)


@given(LENGTHS, CROWDED, st.integers(1, 5))
def test_every_sequence_stands_in_one_group(lengths: list[int], cost: Cost, most_rows: int) -> None:
    groups = plan(lengths, cost, most_rows)
    assert sorted(int(index) for group in groups for index in group) == list(range(len(lengths)))
    assert all(1 <= len(group) <= most_rows for group in groups)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Every way to put the items into groups."""
    if not items:
        yield []
        return
    first, *rest = items
    for groups in partitions(rest):
        yield [[first], *groups]
        for number, group in enumerate(groups):
            yield [*groups[:number], [first, *group], *groups[number + 1 :]]


@settings(max_examples=15)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), COSTS)
def test_no_other_grouping_is_cheaper(lengths: list[int], cost: Cost) -> None:
    found = total(plan(lengths, cost), lengths, cost)
    every = (
        total([np.array(group) for group in groups], lengths, cost) for groups in partitions(list(range(len(lengths))))
    )
    assert found <= min(every) * (1 + 1e-9)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), CROWDED)
def test_no_other_cut_of_the_sorted_is_cheaper(lengths: list[int], cost: Cost) -> None:
    found, order = total(plan(lengths, cost), lengths, cost), np.argsort(lengths)
    places = range(1, len(lengths))
    every = (
        total(np.split(order, cut), lengths, cost)
        for count in range(len(lengths))
        for cut in itertools.combinations(places, count)
    )
    assert found <= min(every) * (1 + 1e-9)


def test_costs_decide() -> None:
    lengths = [2, 31, 3, 29]
    assert [sorted(group) for group in plan(lengths, Cost(call=0, pair=0))] == [[0], [2], [3], [1]]
    assert [sorted(group) for group in plan(lengths, Cost(call=10, pair=0))] == [[0, 2], [1, 3]]
    assert [sorted(group) for group in plan(lengths, Cost(call=1000, pair=0))] == [[0, 1, 2, 3]]
    assert [sorted(group) for group in plan(lengths, Cost(call=10, pair=0, packed=True))] == [[0, 1, 2, 3]]


def test_a_cost_is_found_again_in_the_times_of_some_rectangles() -> None:
    cost, shapes = Cost(call=23, pair=1 / 300), ((1, 17), (2, 131), (1, 509), (5, 61))
    found = Cost.fitted({shape: 3e-5 * cost(*shape) for shape in shapes})
    assert found.call == pytest.approx(23)
    assert found.pair == pytest.approx(1 / 300)
    with pytest.raises(InputError, match="larger"):
        Cost.fitted(dict.fromkeys(shapes, 1.0))


class Counted:
    """A session that remembers how large the rectangles were."""

    def __init__(self, session: Session) -> None:
        self.session, self.shapes = session, []
        self.signature, self.provider = session.signature, session.provider

    def run(self, inputs: Arrays, outputs: list[str] | None = None) -> Arrays:
        self.shapes.append(inputs["attention_mask"].shape)
        return self.session.run(inputs, outputs)


def inputs_of(mask: np.ndarray) -> Arrays:
    rng = np.random.default_rng(5)
    return {
        "input_ids": rng.integers(1, 101, mask.shape),
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": rng.integers(0, 2, mask.shape),
    }


def same_where_real(session: Session, inputs: Arrays) -> Counted:
    """Compares with the rectangle; gives the sessions' shapes."""
    counted = Counted(session)
    whole, cut = session.run(inputs), batching.run(counted, inputs, cost=Cost(call=0))  # pyright: ignore[reportArgumentType]
    real = inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(cut["sentence_embedding"], whole["sentence_embedding"], rtol=0, atol=2e-6)
    hidden = cut["last_hidden_state"]
    assert hidden.shape == whole["last_hidden_state"].shape
    np.testing.assert_allclose(hidden[real], whole["last_hidden_state"][real], rtol=0, atol=2e-5)
    return counted


@pytest.fixture(scope="module")
def session(tiny_package: Path) -> Session:
    return Session(tiny_package)


@settings(max_examples=12)
@given(st.data())
def test_any_mask_gives_what_the_rectangle_does(session: Session, data: st.DataObject) -> None:
    rows, length = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 11))
    flat = data.draw(st.lists(st.booleans(), min_size=rows * length, max_size=rows * length))
    same_where_real(session, inputs_of(np.array(flat).reshape(rows, length)))


def test_only_the_ends_are_cut_off(session: Session) -> None:
    mask = np.zeros((4, 13), bool)
    mask[0, :] = True
    mask[1, [2, 9]] = True  # padding on the left, two holes' worth between
    mask[3, :5] = True
    counted = same_where_real(session, inputs_of(mask))
    assert sorted(counted.shapes) == [(1, 1), (1, 5), (1, 8), (1, 13)]


def test_widths_are_rounded_up_where_a_new_shape_costs_time(session: Session) -> None:
    mask = np.arange(13) < np.array([13, 3, 6])[:, None]
    counted, inputs = Counted(session), inputs_of(mask)
    found = batching.run(counted, inputs, ["sentence_embedding"], Cost(call=0, step=5))  # pyright: ignore[reportArgumentType]
    assert sorted(counted.shapes) == [(1, 5), (1, 10), (1, 13)]
    expected = session.run(inputs)["sentence_embedding"]
    np.testing.assert_allclose(found["sentence_embedding"], expected, rtol=0, atol=2e-6)


def test_left_padding_stays_where_it_changes_the_positions(tmp_path: Path) -> None:
    session = Session(export_encoder(tmp_path / "index", position_rule="index"))
    assert "left" not in session.signature.padding
    mask = np.zeros((2, 7), bool)
    mask[0], mask[1, 3:6] = True, True
    assert sorted(same_where_real(session, inputs_of(mask)).shapes) == [(1, 6), (1, 7)]


def test_wrong_inputs_are_refused_as_ever(session: Session) -> None:
    inputs = inputs_of(np.ones((2, 3), bool))
    with pytest.raises(InputError, match="input_ids is missing"):
        batching.run(session, {name: array for name, array in inputs.items() if name != "input_ids"})
    with pytest.raises(InputError, match="no output"):
        batching.run(session, inputs, ["nothing"])
