"""Wrong arguments are a ValueError that names what was given, before anything is computed."""

import math
from dataclasses import replace

import pytest
import torch

from isoformer.models import masks, positions
from isoformer.models.attention import MultiHeadAttention, attend, scores
from isoformer.models.cache import KVCache, empty
from isoformer.models.families import attention, decoder, encoder
from isoformer.models.mask_rule import MaskRule
from isoformer.models.positions import LearnedPositions, Rotary, ShawBias, SinusoidalPositions

B, H, LQ, LK, D = 2, 4, 3, 5, 6
Q, KEY = torch.ones(B, H, LQ, D), torch.ones(B, 2, LK, D)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.int64)


def layer(**options) -> MultiHeadAttention:
    return MultiHeadAttention(12, 3, **options)


X = torch.ones(B, LQ, 12)
CACHE = empty(B, 2, D)

REFUSED = {
    # attend
    "no heads of keys": (lambda: attend(Q, KEY[:, :0], KEY[:, :0]), r"key \(2, 0, 5, 6\)"),
    "heads that do not divide": (lambda: attend(Q[:, :3], KEY, KEY), r"query \(2, 3, 3, 6\), key \(2, 2, 5, 6\)"),
    "batches": (lambda: attend(Q, KEY[:1], KEY[:1]), r"query \(2, 4, 3, 6\), key \(1, 2, 5, 6\)"),
    "head sizes": (lambda: attend(Q[..., :5], KEY, KEY), r"\(2, 4, 3, 5\).*\(2, 2, 5, 6\)"),
    "lengths of key and value": (lambda: attend(Q, KEY, KEY[:, :, :4]), r"\(2, 2, 5, 6\).*\(2, 2, 4, 6\)"),
    "dtypes": (lambda: attend(Q, KEY.half(), KEY), "query torch.float32, key torch.float16, value torch.float32"),
    "scale nan": (lambda: attend(Q, KEY, KEY, scale=math.nan), "scale is nan"),
    "scale inf": (lambda: scores(Q, KEY, scale=math.inf), "scale is inf"),
    "softcap nan": (lambda: attend(Q, KEY, KEY, softcap=math.nan), "softcap is nan"),
    "softcap 0": (lambda: scores(Q, KEY, softcap=0.0), "softcap is 0.0"),
    "boolean bias": (lambda: attend(Q, KEY, KEY, bias=torch.ones(1, 1, LQ, LK) == 1), "the bias has dtype torch.bool"),
    "bias of another size": (
        lambda: attend(Q, KEY, KEY, bias=torch.ones(1, 1, LQ, 4)),
        r"\(1, 1, 3, 4\).*\(2, 4, 3, 5\)",
    ),
    "bias of two axes": (lambda: attend(Q, KEY, KEY, bias=torch.ones(LQ, LK)), r"\(3, 5\).*\(2, 4, 3, 5\)"),
    "sinks": (lambda: attend(Q, KEY, KEY, sinks=torch.ones(3)), r"\(3,\)"),
    # masks that enter it
    "complex mask": (lambda: attend(Q, KEY, KEY, torch.ones(B, LK, dtype=torch.complex64)), "dtype torch.complex64"),
    "additive mask": (lambda: attend(Q, KEY, KEY, torch.full((B, LK), -1e4)), "the mask holds -10000.0"),
    "mask of one row": (lambda: attend(Q, KEY, KEY, ones(1, LK)), r"\(1, 5\).*\(2, 5\), \(3, 5\), \(2, 3, 5\)"),
    "mask of one query": (lambda: attend(Q, KEY, KEY, ones(B, 1, LK)), r"\(2, 1, 5\).*\(2, 3, 5\)"),
    "mask of one axis": (lambda: attend(Q, KEY, KEY, ones(LK)), r"\(5,\).*\(2, 5\)"),
    "mask of other keys": (lambda: attend(Q, KEY, KEY, ones(B, 4)), r"\(2, 4\).*\(2, 5\)"),
    "mask of other heads": (lambda: attend(Q, KEY, KEY, ones(B, 3, LQ, LK)), r"\(2, 3, 3, 5\).*\(2, 4, 3, 5\)"),
    "a list": (lambda: attend(Q, KEY, KEY, [[1] * LK] * B), "the mask is a list"),  # pyright: ignore
    "integers": (lambda: attend(Q.long(), KEY.long(), KEY.long()), "torch.int64"),
    "vectors of nothing": (lambda: attend(Q[..., :0], KEY[..., :0], KEY), r"\(2, 4, 3, 0\)"),
    "scale of letters": (lambda: attend(Q, KEY, KEY, scale="x"), "scale is 'x'"),  # pyright: ignore
    # builders of masks
    "lengths past the keys": (lambda: masks.lengths(torch.tensor([9, 1]), LK), r"\[9, 1\]; there are 5 keys"),
    "negative lengths": (lambda: masks.lengths(torch.tensor([-2, 1]), LK), r"\[-2, 1\]"),
    "broken lengths": (lambda: masks.lengths(torch.tensor([1.5, 1]), LK), "torch.float32"),
    "broken offset": (lambda: masks.causal(LQ, LK, offset=1.5), "offset is 1.5"),  # pyright: ignore
    "combine of one key": (lambda: masks.combine(masks.padding(ones(B, 1)), masks.causal(LQ, LK)), r"\(2, 1, 1, 1\)"),
    "more queries than positions": (lambda: masks.distance(5, 3, positions=ones(B, 3)), r"\(2, 3\).*5 queries"),
    "padding of one axis": (lambda: masks.padding(ones(LK)), r"\(5,\)"),
    "lengths of two axes": (lambda: masks.lengths(ones(B, 1), LK), r"\(2, 1\)"),
    "prefix of two axes": (lambda: masks.prefix(LQ, LK, ones(B, 1)), r"\(2, 1\)"),
    "segments of one axis": (lambda: masks.segments(ones(LK)), r"\(5,\)"),
    "segments of other batches": (lambda: masks.segments(ones(2, LK), ones(3, LK)), r"\(2, 5\) and \(3, 5\)"),
    "negative queries": (lambda: masks.causal(-1, LK), "-1 queries and 5 keys"),
    "negative keys": (lambda: masks.sliding_window(LQ, -2, 1), "3 queries and -2 keys"),
    "negative window": (lambda: masks.sliding_window(LQ, LK, -1), "-1 keys to the left"),
    "negative right": (lambda: masks.sliding_window(LQ, LK, 1, -2), "-2 keys to the right"),
    "half a window": (lambda: masks.sliding_window(LQ, LK, 1.5), "1.5 keys to the left"),  # pyright: ignore[reportArgumentType]
    "offset of two axes": (lambda: masks.causal(LQ, LK, offset=ones(B, 1)), r"\(2, 1\)"),
    "positions of other keys": (lambda: masks.sliding_window(LQ, LK, 1, positions=ones(B, 4)), r"\(2, 4\).*5"),
    "positions and offset": (
        lambda: masks.sliding_window(LQ, LK, 1, offset=1, positions=ones(B, LK)),
        r"\(2, 5\).*offset",
    ),
    "combine of key padding": (lambda: masks.combine(ones(B, LK), masks.causal(LQ, LK)), r"four axes, not \(2, 5\)"),
    "combine of other sizes": (
        lambda: masks.combine(masks.causal(LQ, LK), masks.causal(LQ, 4)),
        r"\(1, 1, 3, 4\) and \(1, 1, 3, 5\)",
    ),
    # rules
    "rule of one text": (lambda: MaskRule("attention_mask"), "not one text"),  # pyright: ignore[reportArgumentType]
    "rule of an unknown input": (lambda: MaskRule(("mask",)), "not mask"),
    "rule of rank 5": (lambda: MaskRule(rank=5), "is 5; it is 2, 3 or 4"),
    "rule without heads": (lambda: MaskRule(heads=0), "for 0 heads"),
    "rule of half a window": (lambda: MaskRule(left_window=0.5), "0.5 keys"),  # pyright: ignore[reportArgumentType]
    "rule without its input": (lambda: MaskRule().build({}, LQ, LK, batch=B), "attention_mask, which is not given"),
    "rule of another rank": (
        lambda: MaskRule().build({"attention_mask": ones(B, LQ, LK)}, LQ, LK, batch=B),
        r"\(2, 3, 5\).*\(2, 5\)",
    ),
    "rule of the new token's mask alone": (
        lambda: MaskRule(causal=True).build({"attention_mask": ones(B, 1)}, 1, LK, batch=B),
        r"\(2, 1\).*\(2, 5\)",
    ),
    "rule of one row's mask": (
        lambda: MaskRule(causal=True).build({"attention_mask": ones(1, LK)}, 1, LK, batch=B),
        r"\(1, 5\).*\(2, 5\)",
    ),
    "rule of short segments": (
        lambda: MaskRule(("segment_ids",)).build({"segment_ids": ones(B, 2)}, LQ, LK, batch=B),
        r"\(2, 2\).*\(2, 5\)",
    ),
    # layers
    "no heads": (lambda: MultiHeadAttention(12, 0), "num_heads is 0"),
    "no kv heads": (lambda: layer(num_kv_heads=0), "num_kv_heads is 0"),
    "kv heads that do not divide": (lambda: layer(num_kv_heads=2), "num_heads 3 .* num_kv_heads 2"),
    "width that does not divide": (lambda: MultiHeadAttention(13, 3), "hidden_size 13 .* num_heads 3"),
    "no head size": (lambda: layer(head_dim=0), "head_dim is 0"),
    "no value head size": (lambda: layer(value_head_dim=-1), "value_head_dim is -1"),
    "no key size": (lambda: layer(key_size=0), "key_size is 0"),
    "layer's softcap": (lambda: layer(softcap=-1.0), "softcap is -1.0"),
    "layer's scale": (lambda: layer(scale=math.nan), "scale is nan"),
    "rotary of other heads": (lambda: layer(rotary=Rotary(6)), "heads of 6, the layer has heads of 4"),
    "width of the query": (lambda: layer()(X[..., :11], X, X), r"query has shape \(2, 3, 11\).*12"),
    "width of the key": (lambda: layer(key_size=7)(X, X, X), r"key has shape \(2, 3, 12\).*7"),
    "two axes": (lambda: layer()(X[0], X, X), r"query has shape \(3, 12\)"),
    "positions without rotary": (lambda: layer().compute(X, X, X, positions=ones(B, LQ)), "this one has none"),
    "positions of another length": (
        lambda: layer(rotary=Rotary(4)).compute(X, X, X, positions=ones(B, 2)),
        r"\(2, 2\).*",
    ),
    "turns of another length": (
        lambda: layer(rotary=Rotary(4)).compute(X, X, X, positions=Rotary(4).cos_sin(2, torch.float32)),
        r"\(1, 1, 2, 2\)",
    ),
    "half a head": (lambda: MultiHeadAttention(12, 6.0), "num_heads is 6.0"),  # pyright: ignore
    # cache
    "cache of other heads": (lambda: CACHE.append(KEY[:, :1], KEY[:, :1]), r"\(2, 1, 5, 6\).*\(2, 2, 0, 6\)"),
    "cache of another dtype": (lambda: CACHE.append(KEY.half(), KEY.half()), "torch.float16 .* torch.float32"),
    "cache of other lengths": (lambda: CACHE.append(KEY, KEY[:, :, :4]), r"\(2, 2, 5, 6\).*\(2, 2, 4, 6\)"),
    "cache that is odd already": (
        lambda: KVCache(KEY, KEY[:, :, :4]).append(KEY, KEY),
        r"\(2, 2, 5, 6\).*\(2, 2, 4, 6\)",
    ),
    # positions
    "table of no positions": (lambda: LearnedPositions(0, 8), "max_positions is 0"),
    "sinusoids of no width": (lambda: SinusoidalPositions(8, 0), "hidden_size is 0"),
    "length past the table": (lambda: LearnedPositions(7, 8)(8), "length 8 .* 7 positions"),
    "negative length": (lambda: LearnedPositions(7, 8)(-1), "length -1 .* 7 positions"),
    "position past the table": (lambda: SinusoidalPositions(7, 8)(torch.tensor([[3, 7]])), "position 7 .* 0 … 6"),
    "negative position": (lambda: LearnedPositions(7, 8)(torch.tensor([[3, -2]])), "position -2 .* 0 … 6"),
    "counting along one axis": (lambda: positions.count_real(ones(LK)), r"\(5,\)"),
    "positions of floats": (lambda: LearnedPositions(7, 8)(torch.tensor([[0.5]])), "torch.float32"),
    "endless base": (lambda: Rotary(4, base=math.inf), "base is inf"),
    "negative factor of YaRN": (
        lambda: positions.YarnScaling(2.0, 8, attention_factor=-1.0),
        "attention_factor is -1.0",
    ),
    "odd rotary": (lambda: Rotary(5), "5"),
    "rotary of other heads' size": (lambda: Rotary(4)(Q, 0), r"4.*\(2, 4, 3, 6\)"),
    "rotary positions": (lambda: Rotary(D)(Q, ones(B, LK)), r"\(2, 5\)"),
    "Shaw of other heads' size": (lambda: ShawBias(4, 3)(Q, LK), r"\(2, 4, 3, 6\).*4"),
    "Shaw without distance": (lambda: ShawBias(4, 0), "max_distance is 0"),
    # configurations
    "attention: heads": (lambda: attention.Config(12, 5), "hidden_size 12 .* num_heads 5"),
    "attention: kv heads": (lambda: attention.Config(12, 4, num_kv_heads=3), "num_heads 4 .* num_kv_heads 3"),
    "attention: heads of the mask": (lambda: attention.Config(12, 4, mask_rank=4, mask_heads=3), "mask_heads is 3.*4"),
    "attention: no width": (lambda: attention.Config(0, 4), "hidden_size is 0"),
    "attention: softcap": (lambda: attention.Config(12, 4, softcap=0.0), "softcap is 0.0"),
    "attention: epsilon": (lambda: attention.Config(12, 4, norm_eps=-1.0), "norm_eps is -1.0"),
    "attention: odd heads that turn": (lambda: attention.Config(12, 4, position_kind="rotary"), "rotary_dim 3"),
    "attention: buckets": (lambda: attention.Config(12, 4, position_kind="relative", relative_buckets=1), "1"),
    "attention: no past": (
        lambda: attention.Model(attention.Config(12, 4, cache=True, causal=True))(X, attention_mask=ones(B, LQ)),
        "past_key_values.0.key",
    ),
    "encoder: heads": (lambda: replace(encoder.TINY, num_heads=5), "hidden_size 33 .* num_heads 5"),
    "encoder: window": (lambda: replace(encoder.TINY, left_window=-1), "-1 keys to the left"),
    "decoder: kv heads": (lambda: replace(decoder.TINY, num_kv_heads=3), "num_heads 4 .* num_kv_heads 3"),
    "decoder: window": (lambda: replace(decoder.TINY, sliding_window=0), "sliding_window is 0.*at least 1"),
    "decoder: layers of the window": (lambda: replace(decoder.TINY, window_layers=(True,)), "1 entries; there are 2"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_by_name(what):
    call, named = REFUSED[what]
    with pytest.raises(ValueError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)
