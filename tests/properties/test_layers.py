"""What holds for an attention layer, in PyTorch and in the graphs exported from it: the same functions for each.

Answers are compared by the bound of `runtime.parity`, except where they must not differ in one bit.
"""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoformer.models.families import attention as family
from isoformer.runtime.parity import largest_error
from tests.properties.layers import CONFIGS, OUT, Layer

RUNTIMES = (None, 20, 23)
EXPORTED_ALWAYS = (("inputs", 20), ("inputs", 23), ("cached", 23))  # the other graphs in the slow tier alone


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    @cache
    def build(name, opset):
        return Layer.build(name, opset, tmp_path_factory.mktemp("layer"))

    return build


@pytest.fixture(scope="session")
def layer(request, build):
    return build(*request.param)


def of(*names):
    """The test for each of those configurations in each runtime."""
    parameters = []
    for name in names:
        for opset in RUNTIMES:
            slow = opset is not None and (name, opset) not in EXPORTED_ALWAYS
            where = "torch" if opset is None else f"opset{opset}"
            marks = [pytest.mark.slow] if slow else []
            parameters.append(pytest.param((name, opset), id=f"{name}-{where}", marks=marks))
    return pytest.mark.parametrize("layer", parameters, indirect=True, scope="session")


every_layer, causal_layers, cached_layers = of(*CONFIGS), of("inputs", "cached", "window"), of("cached", "window")


@pytest.mark.parametrize("name", CONFIGS)
@given(data=st.data())
def test_masks_are_what_their_inputs_mean(name, build, data):
    """The builders against one pair of query and key at a time."""
    layer = build(name, None)
    inputs = layer.draw(data)
    wanted = layer.visible(inputs)
    tensors = {name: torch.from_numpy(x) for name, x in inputs.items()}
    prefix = "encoder_" if layer.config.cross else ""
    mask = layer.config.masks.build(tensors, *wanted.shape[2:], prefix=prefix, batch=len(wanted))
    assert np.array_equal(np.broadcast_to(mask.numpy(), wanted.shape), wanted)


@every_layer
@given(data=st.data())
def test_the_layer_is_as_exact_as_float32_can_be(layer, data):
    inputs = layer.draw(data)
    want = layer.exact(inputs)[OUT]
    assert largest_error(layer.run(inputs)[OUT], want) <= layer.allowed(inputs)


@every_layer
@given(data=st.data())
def test_a_row_without_keys_is_exactly_the_bias_of_the_last_linear_layer(layer, data):
    inputs = layer.draw(data)
    blind = ~layer.visible(inputs).any(-1).any(1)  # (B, Lq): in every head
    bias = layer.model.attention.out_linear.bias
    out = layer.run(inputs)[OUT]
    assert np.isfinite(out).all()
    assert (out[blind] == (0 if bias is None else bias.detach().numpy())).all()


@every_layer
@given(data=st.data())
def test_padding_changes_nothing(layer, data):
    """On the right, on the left and, where nothing counts places, between; of queries, cached keys and encoder."""
    sides = ["right"]
    if not {"sequence_lengths", "prefix_lengths"} & set(layer.config.mask_inputs):
        sides += ["left"] if layer.by_place else ["left", "between"]
    side = data.draw(st.sampled_from(sides), "side")
    inputs = layer.draw(data)
    places, sizes = {}, {}
    for axis, name in ((family.LENGTH, family.HIDDEN), (family.ENCODER, family.CROSS), (family.PAST, family.PAST_KEY)):
        if name not in inputs:
            continue
        length = inputs[name].shape[2 if axis == family.PAST else 1]
        extra = data.draw(st.integers(0, 4), axis)
        if layer.by_place and layer.config.cache and axis == (family.PAST if side == "right" else family.LENGTH):
            extra = 0  # there it would stand between cached keys and new ones
        start = extra if side == "left" else 0
        order = data.draw(st.permutations(range(length + extra)), "order") if side == "between" else range(start, 99)
        places[axis], sizes[axis] = np.array(sorted(order[:length]), dtype=np.int64), length + extra
    wide = layer.run(layer.moved(inputs, places, sizes))[OUT]
    layer.close(wide[:, places[family.LENGTH]], layer.run(inputs)[OUT], inputs)


@every_layer
@given(data=st.data())
def test_a_row_of_a_batch_does_not_depend_on_its_neighbours(layer, data):
    """Their number may change the order of summation, their content not one bit."""
    inputs = layer.draw(data)
    together = layer.run(inputs)[OUT]
    batch = len(together)
    row = data.draw(st.integers(0, batch - 1), "row")
    layer.close(layer.run(layer.rows(inputs, [row]))[OUT], together[[row]], inputs)
    others = np.arange(batch) != row
    changed = {name: x.copy() for name, x in inputs.items()}
    for x in changed.values():
        if x.dtype == np.float32:
            x[others] = -7 * x[others] + 1
    assert np.array_equal(layer.run(changed)[OUT][row], together[row])


@causal_layers
@given(data=st.data())
def test_a_later_token_changes_no_bit_of_an_earlier_one(layer, data):
    inputs = layer.draw(data)
    length = inputs[family.HIDDEN].shape[1]
    first = data.draw(st.integers(0, length), "first")
    if "prefix_lengths" in inputs:  # what it opens is not earlier
        inputs["prefix_lengths"] = inputs["prefix_lengths"].clip(max=first)
    changed = inputs | {family.HIDDEN: inputs[family.HIDDEN].copy()}
    changed[family.HIDDEN][:, first:] = -7 * inputs[family.HIDDEN][:, first:] + 1
    assert np.array_equal(layer.run(changed)[OUT][:, :first], layer.run(inputs)[OUT][:, :first])


@of("cross", "heads")
@given(data=st.data())
def test_the_order_of_keys_means_nothing_and_queries_keep_their_answers(layer, data):
    inputs = layer.draw(data)
    places, sizes = {}, {}
    for axis, name in ((family.LENGTH, family.HIDDEN), (family.ENCODER, family.CROSS)):
        if name in inputs:
            sizes[axis] = inputs[name].shape[1]
            places[axis] = np.array(data.draw(st.permutations(range(sizes[axis])), axis))
    out = layer.run(layer.moved(inputs, places, sizes))[OUT]
    layer.close(out[:, places[family.LENGTH]], layer.run(inputs)[OUT], inputs)


@cached_layers
@given(data=st.data())
def test_chunks_behind_a_cache_are_one_pass(layer, data):
    """Any split, of ragged rows padded on either side or with holes."""
    inputs = layer.draw(data, **{family.PAST: 0})
    length = inputs[family.HIDDEN].shape[1]
    side = data.draw(st.sampled_from(["right", "left", "holes"]), "side")
    if side != "holes":
        inputs["attention_mask"] = np.sort(inputs["attention_mask"], 1)[:, :: -1 if side == "right" else 1].copy()
    whole = layer.run(inputs)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, length - 1))), "cuts")) if length > 1 else []
    held = {name: inputs[name] for name in (family.PAST_KEY, family.PAST_VALUE)}
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
        chunk = {name: inputs[name][:, :stop] for name in layer.config.mask_inputs}
        chunk[family.HIDDEN] = inputs[family.HIDDEN][:, start:stop]
        outputs = layer.run(chunk | held)
        held = {family.PAST_KEY: outputs["present.0.key"], family.PAST_VALUE: outputs["present.0.value"]}
        parts.append(outputs[OUT])
    layer.close(np.concatenate(parts, 1), whole[OUT], inputs)


@of("inputs")
@given(data=st.data())
def test_packed_sequences_are_the_sequences_alone(layer, data):
    inputs = layer.draw(data, masked=False)
    batch, length = inputs["segment_ids"].shape
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, length - 1))), "cuts")) if length > 1 else []
    pieces = list(zip([0, *cuts], [*cuts, length], strict=True))
    for number, (start, stop) in enumerate(pieces):
        inputs["segment_ids"][:, start:stop] = number + 1
    packed = layer.run(inputs)[OUT]
    for start, stop in pieces:
        ones = np.ones((batch, stop - start), np.int64)
        alone = {
            family.HIDDEN: inputs[family.HIDDEN][:, start:stop],
            "attention_mask": ones,
            "sequence_lengths": np.full(batch, stop - start),
            "segment_ids": ones,
            "prefix_lengths": inputs["prefix_lengths"],
        }
        layer.close(layer.run(alone)[OUT], packed[:, start:stop], inputs)


@of("inputs")
@given(data=st.data())
def test_inputs_that_mean_the_same_give_the_same_bits(layer, data):
    inputs = layer.draw(data, masked=False)
    batch, length = inputs["attention_mask"].shape
    upto = np.array([data.draw(st.integers(0, length), "length") for _ in range(batch)])
    kept = np.arange(length) < upto[:, None]
    ways = [
        {"sequence_lengths": upto},
        {"attention_mask": kept.astype(np.int64)},
        {"segment_ids": kept.astype(np.int64)},
        {"attention_mask": kept.astype(np.int64), "segment_ids": np.full((batch, length), 7)},
    ]
    answers = [layer.run(inputs | way)[OUT] for way in ways]
    segments = answers.pop(2)  # there the queries of padding see nothing either
    assert all(np.array_equal(answers[0], other) for other in answers)
    assert np.array_equal(segments[kept], answers[0][kept])
    assert (segments[~kept] == 0).all()
    full = layer.run(inputs | {"prefix_lengths": np.full(batch, length)})[OUT]
    assert np.array_equal(full[:, -1], layer.run(inputs)[OUT][:, -1])  # the last row is full without it too


@every_layer
@given(data=st.data())
def test_ones_and_zeros_of_any_dtype_are_the_same_mask(layer, data):
    inputs = layer.draw(data)
    dtype = data.draw(st.sampled_from([np.bool_, np.int32, np.uint8, np.float32]), "dtype")
    name = next(name for name in inputs if name.endswith("attention_mask"))
    assert np.array_equal(layer.run(inputs | {name: inputs[name].astype(dtype)})[OUT], layer.run(inputs)[OUT])
