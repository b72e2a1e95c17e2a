"""What holds for every call of `attend`, of whatever sizes, dtype, options and masks.

Each answer may be off by `drawn.rounding`, a bound for any order of summation, so two runs by twice that.
Equalities are exact where the same kernel gets the same sizes and the values beneath the mask differ.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st

from isoformer.models import masks
from isoformer.models.attention import attend, attend_with_weights
from isoformer.models.cache import empty
from tests.properties.drawn import Call, assert_same, bits, calls, generator, reference, rounding

NO_BIAS_KINDS = ("padding", "lengths", "causal", "window", "prefix", "segments", "rows")


@given(call=calls())
def test_attend_is_the_softmax_over_the_visible_keys(call):
    assert_same(call.run(), reference(call), rounding(call) + rounding(call.to(torch.float64)))


@given(call=calls())
def test_a_row_without_keys_is_exactly_zero(call):
    blind = ~call.visible().any(-1)
    out, shares = attend_with_weights(call.query, call.key, call.value, call.mask, **call.options)
    for x in (call.run(), out):
        assert (x[blind] == 0).all()
        assert x.isfinite().all()
    assert (shares[~call.visible()] == 0).all()


@given(call=calls(), data=st.data())
def test_padding_changes_nothing(call, data):
    """Keys and queries that the mask leaves out, put in on the right, on the left or anywhere between."""
    side = data.draw(st.sampled_from(["right", "left", "between"]))
    more = [data.draw(st.integers(0, 5)) for _ in range(2)]
    random = generator(data.draw)
    kept = []
    for length, extra in zip(call.sizes[2:], more, strict=True):
        between = torch.randperm(length + extra, generator=random)[:length].sort().values
        start = extra if side == "left" else 0
        kept.append(between if side == "between" else torch.arange(start, start + length))
    wide = spread_out(call, *kept, *more, random=random)
    assert_same(wide.run()[:, :, kept[0]], call.run(), 2 * rounding(call))


def spread_out(call: Call, queries, keys, more_queries: int, more_keys: int, *, random: torch.Generator) -> Call:
    """The call with its queries and keys at those places, large numbers at the others."""
    batch, heads, lq, lk = call.sizes
    mask = torch.zeros(batch, heads, lq + more_queries, lk + more_keys, dtype=torch.bool)
    inner = torch.ones(call.sizes, dtype=torch.bool)
    if call.mask is not None:
        inner = masks.normalize(call.mask, *call.sizes).expand(call.sizes)
    mask[:, :, queries[:, None], keys] = inner
    mask[:, :, :, keys] |= ~torch.isin(torch.arange(lq + more_queries), queries)[:, None]  # padded queries may see

    def among(x, places, length):
        noise = 1e3 * torch.randn(*x.shape[:2], length, x.shape[3], generator=random).to(x.dtype)
        noise[:, :, places] = x
        return noise

    options = dict(call.options)
    if "bias" in options:
        options["bias"] = torch.randn(mask.shape, generator=random).to(call.query.dtype)
        options["bias"][:, :, queries[:, None], keys] = call.options["bias"].expand(call.sizes)
    lq, lk = mask.shape[2:]
    return Call(among(call.query, queries, lq), among(call.key, keys, lk), among(call.value, keys, lk), mask, options)


@given(call=calls())
def test_a_row_of_a_batch_does_not_depend_on_its_neighbours(call):
    """Not bit for bit: matrix products of other sizes may sum in another order."""
    together, allowed = call.run(), 2 * rounding(call)
    for row in range(call.sizes[0]):
        assert_same(call.at(rows=slice(row, row + 1)).run(), together[row, None], allowed[row, None])


@given(call=calls(), data=st.data())
def test_the_neighbours_content_changes_no_bit(call, data):
    row = data.draw(st.integers(0, call.sizes[0] - 1))
    other = torch.arange(call.sizes[0]) != row
    changed = call.clone()
    for x in (changed.query, changed.key, changed.value):
        x[other] = -7 * x[other] + 1
    assert torch.equal(changed.run()[row], call.run()[row])


@given(call=calls(), data=st.data())
def test_the_order_of_keys_means_nothing(call, data):
    order = torch.tensor(data.draw(st.permutations(range(call.sizes[3]))))
    assert_same(call.at(keys=order).run(), call.run(), 2 * rounding(call))


@given(call=calls(), data=st.data())
def test_queries_in_another_order_give_rows_in_that_order(call, data):
    order = torch.tensor(data.draw(st.permutations(range(call.sizes[2]))))
    assert_same(call.at(queries=order).run(), call.run()[:, :, order], 2 * rounding(call)[:, :, order])


@given(call=calls(), data=st.data())
def test_a_query_alone_has_the_answer_that_it_has_among_others(call, data):
    i = data.draw(st.integers(0, call.sizes[2] - 1))
    assert_same(call.at(queries=[i]).run(), call.run()[:, :, [i]], 2 * rounding(call)[:, :, [i]])


@given(call=calls(kinds=("padding", "lengths", "segments", "heads"), square=True), data=st.data())
def test_a_later_token_changes_no_bit_of_an_earlier_one(call, data):
    """Its weight is exactly zero, and the sizes, so the order of summation, are the same."""
    length = call.sizes[3]
    call = call.masked(masks.combine(masks.causal(length, length), call.mask))
    first = data.draw(st.integers(0, length))
    changed = call.clone()
    for x in (changed.query, changed.key, changed.value):
        x[:, :, first:] = -7 * x[:, :, first:] + 1
    assert torch.equal(changed.run()[:, :, :first], call.run()[:, :, :first])


@given(call=calls(), data=st.data())
def test_what_stands_under_the_mask_changes_no_bit(call, data):
    unseen = ~call.visible().any(2).any(1)  # (B, Lk)
    big = data.draw(st.sampled_from([1e4, -1e4]))
    hidden = unseen[:, None, :, None]
    changed = Call(
        call.query, call.key.masked_fill(hidden, big), call.value.masked_fill(hidden, -big), call.mask, call.options
    )
    assert torch.equal(changed.run(), call.run())


@given(call=calls(kinds=("padding", "lengths"), square=True), data=st.data())
def test_chunks_behind_a_cache_are_one_pass(call, data):
    """Any split; causal or a causal window, rows padded on either side."""
    length = call.sizes[3]
    left = data.draw(st.none() | st.integers(0, length))
    order = masks.sliding_window(length, length, left)
    whole = call.masked(masks.combine(order, call.mask))
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1)))) if length > 1 else []
    cache = empty(call.sizes[0], call.key.shape[1], call.key.shape[3], call.value.shape[3], dtype=call.key.dtype)
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
        cache = cache.append(call.key[:, :, start:stop], call.value[:, :, start:stop])
        seen = slice(0, stop)
        options = call.at(queries=slice(start, stop), keys=seen).options
        step = masks.sliding_window(stop - start, stop, left)
        mask = masks.combine(step, None if call.mask is None else call.mask[..., seen])
        parts.append(attend(call.query[:, :, start:stop], cache.key, cache.value, mask, **options))
    assert_same(torch.cat(parts, 2), whole.run(), 2 * rounding(whole))


@given(call=calls(kinds=(), square=True, bias=False), data=st.data())
def test_packed_sequences_are_the_sequences_alone(call, data):
    length = call.sizes[3]
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1)))) if length > 1 else []
    pieces = list(zip([0, *cuts], [*cuts, length], strict=True))
    numbers = torch.zeros(call.sizes[0], length, dtype=torch.int64)
    for number, (start, stop) in enumerate(pieces):
        numbers[:, start:stop] = number + 1
    causal = data.draw(st.booleans())
    order = masks.causal(length, length) if causal else None
    packed = call.masked(masks.combine(masks.segments(numbers, padding=0), order))
    out, allowed = packed.run(), 2 * rounding(packed)
    for start, stop in pieces:
        part = slice(start, stop)
        mask = masks.causal(stop - start, stop - start) if causal else None
        assert_same(packed.at(queries=part, keys=part).masked(mask).run(), out[:, :, part], allowed[:, :, part])


@given(call=calls(kinds=(), least_keys=1), data=st.data())
def test_masks_that_mean_the_same_give_the_same_bits(call, data):
    batch, heads, lq, lk = call.sizes
    random = generator(data.draw)
    upto = torch.randint(0, lk + 1, (batch,), generator=random)
    kept = (torch.arange(lk) < upto[:, None]).to(torch.int64)
    none, every = torch.zeros_like(upto), torch.full_like(upto, lk)
    ones, causal = torch.ones(batch, max(lq, lk), dtype=torch.int64), masks.causal(lq, lk)
    pairs = [
        (masks.sliding_window(lq, lk, max(lq, lk)), causal),
        (masks.sliding_window(lq, lk, lk, max(lq, lk)) | True, torch.ones(lq, lk)),
        (masks.sliding_window(lq, lk, None), causal),
        (masks.prefix(lq, lk, none), causal),
        (masks.causal(lq, lk, offset=lk), masks.segments(ones[:, :lq], ones[:, :lk])),
        (masks.prefix(lq, lk, every), torch.ones(batch, lq, lk)),
        (masks.lengths(upto, lk), masks.padding(kept)),
        (masks.lengths(upto, lk), kept[:, None].expand(batch, lq, lk)),
        (masks.padding(kept), kept[:, None, None].expand(batch, heads, lq, lk)),
        (causal, causal[0, 0][None].expand(batch, lq, lk)),
        (masks.sliding_window(lq, lk, None, None), masks.segments(ones[:, :lq], ones[:, :lk])),
    ]
    one, other = data.draw(st.sampled_from(pairs))
    answers = [call.masked(mask).run() for mask in (one, other)]
    assert torch.equal(*answers)


@given(call=calls(kinds=()))
def test_a_mask_of_ones_is_no_mask(call):
    """By another kernel, so but for rounding."""
    ones = call.masked(torch.ones(call.sizes[2:])[None, None])
    assert_same(ones.run(), call.run(), 2 * rounding(call))


@given(call=calls(), data=st.data())
def test_ones_and_zeros_of_any_dtype_are_the_same_mask(call, data):
    dtype = data.draw(st.sampled_from([torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32]))
    mask = bits(generator(data.draw), 0.6, *call.sizes)
    answers = [call.masked(m).run() for m in (mask, mask.to(dtype))]
    assert torch.equal(*answers)


@given(call=calls(), data=st.data())
def test_masks_combine_in_any_order_and_by_and(call, data):
    random = generator(data.draw)
    parts = [bits(random, 0.8, *call.sizes), masks.causal(*call.sizes[2:]), call.mask]
    order = data.draw(st.permutations(range(3)))
    one = masks.combine(*parts)
    other = masks.combine(*(parts[i] for i in order))
    assert one is not None
    assert other is not None
    assert torch.equal(one.expand(call.sizes), other.expand(call.sizes))
    want = parts[0] & parts[1]
    assert torch.equal(one.expand(call.sizes), want if call.mask is None else want & call.mask)


@given(call=calls(kinds=("padding", "causal", "heads")), data=st.data())
def test_one_number_more_for_every_score_of_a_row_changes_nothing(call, data):
    shift = data.draw(st.sampled_from([-3.0, 0.5, 20.0]))
    options = {name: x for name, x in call.options.items() if name != "sinks"}
    bias = options.get("bias", torch.zeros(1, 1, 1, 1, dtype=call.query.dtype))
    one, other = (
        Call(call.query, call.key, call.value, call.mask, options | {"bias": b}) for b in (bias, bias + shift)
    )
    assert_same(one.run(), other.run(), rounding(one) + rounding(other))


@given(call=calls(kinds=("padding", "window", "heads")))
def test_grouped_heads_are_heads_repeated(call):
    group = call.sizes[1] // call.key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (call.key, call.value))
    assert_same(Call(call.query, key, value, call.mask, call.options).run(), call.run(), 2 * rounding(call))
