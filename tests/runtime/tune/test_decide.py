"""From times to choices: what is clearly faster, what noise is, how few graphs will do."""

import numpy as np
import pytest

from isoformer.runtime.tune import decide
from isoformer.runtime.tune.inputs import lengths_of
from isoformer.runtime.tuning import Choice, Round, Shape

BASE, FREE, LOW = Choice(), Choice("cpu-float32"), Choice("cpu-int8")
SHORT, LONG, WIDE = Shape(1, 7, 7), Shape(1, 131, 131), Shape(5, 31, 97)


def rounds(times: dict[Shape, dict[Choice, list[float]]], stage: int = 0) -> list[Round]:
    """Turn by turn, from each choice's times."""
    return [
        Round(stage, turn, shape, {choice: values[turn] for choice, values in by_choice.items()})
        for shape, by_choice in times.items()
        for turn in range(len(by_choice[BASE]))
    ]


def test_the_fastest_of_each_shape_is_chosen() -> None:
    found = decide.decide(
        rounds({SHORT: {BASE: [2, 2.1, 2], FREE: [3, 3, 3]}, LONG: {BASE: [50, 52, 51], FREE: [40, 41, 40]}}), BASE
    )
    assert found == {SHORT: BASE, LONG: FREE}


def test_a_machine_that_drifts_slows_all_alike_and_hides_nothing() -> None:
    drift = [1, 3, 0.5, 2, 7]
    found = decide.decide(rounds({SHORT: {BASE: [2 * x for x in drift], FREE: [1.9 * x for x in drift]}}), BASE)
    assert found == {SHORT: FREE}


def test_noise_leaves_the_baseline() -> None:
    rng = np.random.default_rng(3)
    times = {BASE: list(1 + 0.1 * rng.random(9)), FREE: list(0.995 + 0.1 * rng.random(9))}
    assert decide.decide(rounds({SHORT: times}), BASE) == {SHORT: BASE}


def test_too_few_turns_decide_nothing() -> None:
    assert decide.decide(rounds({SHORT: {BASE: [2, 2], FREE: [1, 1]}}), BASE) == {}


def test_of_equals_the_simpler_settings_are_chosen() -> None:
    odd = Choice("cpu-float32", threads=2, spinning=False, fusions=True)
    found = decide.decide(rounds({LONG: {BASE: [10, 10, 10], odd: [4.95, 4.96, 4.95], FREE: [5, 5, 5]}}), BASE)
    assert found == {LONG: FREE}


def test_a_graph_of_its_own_must_be_worth_its_memory() -> None:
    alone, worth = ({BASE: [10.0] * 3, FREE: [5.0] * 3, LOW: [low] * 3} for low in (4.85, 4.0))
    other = {BASE: [10.0] * 3, FREE: [5.0] * 3, LOW: [7.0] * 3}
    assert decide.decide(rounds({SHORT: alone, LONG: other}), BASE) == {SHORT: FREE, LONG: FREE}
    assert decide.decide(rounds({SHORT: worth, LONG: other}), BASE) == {SHORT: LOW, LONG: FREE}


def test_no_graph_serves_a_shape_at_which_it_is_slower_than_the_baseline() -> None:
    found = decide.decide(
        rounds({SHORT: {BASE: [10, 10, 10], FREE: [10.3, 10.3, 10.3]}, LONG: {BASE: [10, 10, 10], FREE: [5, 5, 5]}}),
        BASE,
    )
    assert found == {SHORT: BASE, LONG: FREE}


def test_a_decoder_has_one_choice_that_is_nowhere_slower() -> None:
    steps, prompt = Shape(1, 17, 17, "step"), Shape(1, 17, 17, "prefill")
    times = {prompt: {BASE: [20.0] * 3, FREE: [10.0] * 3, LOW: [22.0] * 3}}
    times[steps] = {BASE: [9.0] * 3, FREE: [8.0] * 3, LOW: [1.0] * 3}
    assert decide.decide(rounds(times), BASE, together=True) == {prompt: FREE, steps: FREE}
    times[prompt][LOW] = [15.0] * 3
    assert decide.decide(rounds(times), BASE, together=True) == {prompt: LOW, steps: LOW}


def test_survivors_are_nearly_as_fast_as_the_best_of_their_stage() -> None:
    times = {SHORT: {BASE: [10.0] * 3, FREE: [5.0] * 3, LOW: [5.2] * 3}}
    assert decide.survivors(rounds(times), SHORT, 0, BASE) == [FREE, LOW]
    assert decide.survivors(rounds(times, stage=1), SHORT, 0, BASE) == [BASE]


def test_the_cost_of_a_batch_is_found_in_the_times_of_what_was_chosen() -> None:
    shapes = [SHORT, LONG, WIDE, Shape(2, 61, 122), Shape(3, 67, 101)]
    for packed, halves in ((False, False), (True, False), (True, True), (False, True)):
        times = {}
        for shape in shapes:
            lengths = sorted(lengths_of(shape).tolist())
            widths = lengths if packed else shape.batch * [shape.length]
            if packed and halves:
                short = shape.batch // 2
                pairs = short * max(lengths[:short], default=0) ** 2 + (shape.batch - short) * shape.length**2
            else:
                pairs = sum(width**2 for width in widths)
            times[shape] = {BASE: [3e-2 * (23 + sum(widths) + pairs / 300)] * 3}
        found = decide.cost(rounds(times), dict.fromkeys(shapes, BASE), BASE, step=1, halves=halves)
        assert found is not None
        assert (found.packed, found.call, found.pair) == (packed, pytest.approx(23), pytest.approx(1 / 300))
        assert found.halves is (packed and halves)  # a rectangle has none, whatever the graph could do
    assert decide.cost(rounds({SHORT: {BASE: [1, 1, 1]}}), {SHORT: BASE}, BASE, step=1) is None
