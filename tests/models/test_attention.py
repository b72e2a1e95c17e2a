import math
from itertools import pairwise, product
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isoformer.models import masks
from isoformer.models.attention import MultiHeadAttention, attend, attend_with_weights, scores, weights
from isoformer.models.cache import KVCache, empty
from isoformer.models.positions import Rotary

B, H, K, LQ, LK, D, V = 2, 6, 3, 5, 7, 11, 13
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
HEADS = [(6, 6), (6, 3), (6, 2), (6, 1)]


def rand(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(heads: int = H, kv_heads: int = K, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (B, heads, LQ, D), (B, kv_heads, LK, D), (B, kv_heads, LK, V)
    query, key, value = (rand(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    return query, key, value


def random_mask(*shape: int, seed: int = 3) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5


def holed_mask() -> Tensor:
    """(B, H, LQ, LK) with rows, and a whole head of a sequence, that see nothing."""
    mask = random_mask(B, H, LQ, LK)
    mask[0, :, 1] = False
    mask[1, 2] = False
    mask[1, 5, 4] = False
    return mask


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The softmax over the visible keys, one number at a time; mask (B, H, LQ, LK), bias broadcastable to it."""
    batch, heads, rows, size = query.shape
    group = heads // key.shape[1]
    scale = 1 / math.sqrt(size) if scale is None else scale
    q, k, v = query.tolist(), key.tolist(), value.tolist()
    out = [[[[0.0] * value.shape[3] for _ in range(rows)] for _ in range(heads)] for _ in range(batch)]
    added = torch.zeros(batch, heads, rows, key.shape[2]) if bias is None else bias
    added = added.expand(batch, heads, rows, key.shape[2]).tolist()
    for b, h, i in product(range(batch), range(heads), range(rows)):
        seen = [j for j in range(key.shape[2]) if mask is None or mask[b, h, i, j]]
        seen = [j for j in seen if added[b][h][i][j] != float("-inf")]
        logits = [scale * dot(q[b][h][i], k[b][h // group][j]) for j in seen]
        if softcap is not None:
            logits = [softcap * math.tanh(logit / softcap) for logit in logits]
        logits = [logit + added[b][h][i][j] for logit, j in zip(logits, seen, strict=True)]
        shares = [math.exp(logit - max(logits)) for logit in logits]
        total = sum(shares) + (math.exp(sinks[h].item() - max(logits)) if seen and sinks is not None else 0.0)
        for e in range(value.shape[3]) if seen else ():
            column = [v[b][h // group][j][e] for j in seen]
            out[b][h][i][e] = dot(shares, column) / total
    return torch.tensor(out, dtype=torch.float64)


def close(have: Tensor, want: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(have, want, atol=atol, rtol=0)


# attend: the equation


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("masked", [True, False])
def test_attend_is_the_softmax_over_the_visible_keys(heads, kv_heads, masked):
    query, key, value = inputs(heads, kv_heads)
    mask = random_mask(B, heads, LQ, LK) if masked else None
    if mask is not None:
        mask[0, 1, 2] = False
    close(attend(query, key, value, mask), naive(query, key, value, mask))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("kv_heads", [6, 2])
def test_attend_in_lower_precision(dtype, atol, kv_heads):
    query, key, value = inputs(H, kv_heads, dtype)
    mask = holed_mask()
    out = attend(query, key, value, mask)
    assert out.dtype == dtype
    close(out.double(), naive(query, key, value, mask), atol)


@pytest.mark.parametrize("scale", [1.0, 0.3, 2.5, -1.0, 0.0])
def test_scale_multiplies_the_scores(scale):
    query, key, value = inputs()
    mask = random_mask(B, H, LQ, LK)
    close(attend(query, key, value, mask, scale=scale), naive(query, key, value, mask, scale))


def test_scale_is_one_over_the_root_of_the_head_size_unless_given():
    query, key, value = inputs()
    close(attend(query, key, value), attend(query, key, value, scale=1 / math.sqrt(D)))
    assert not torch.allclose(attend(query, key, value), attend(query, key, value, scale=1 / math.sqrt(V)), atol=1e-3)


@pytest.mark.parametrize("shape", [(B, LK), (LQ, LK), (B, LQ, LK), (B, H, LQ, LK), (B, 1, 1, LK), (1, H, 1, LK)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
def test_attend_takes_every_mask_of_the_contract(shape, dtype):
    query, key, value = inputs()
    mask = random_mask(*shape)
    whole = masks.normalize(mask, B, H, LQ, LK).expand(B, H, LQ, LK)
    close(attend(query, key, value, mask.to(dtype)), naive(query, key, value, whole))


def test_attend_refuses_an_additive_mask():
    additive = torch.zeros(LQ, LK).masked_fill(~masks.causal(LQ, LK)[0, 0], float("-inf"))
    with pytest.raises(ValueError, match="other than 0 and 1"):
        attend(*inputs(), additive)


def test_a_query_of_zero_sees_the_mean_of_its_values():
    _, key, value = inputs(H, H)
    out = attend(torch.zeros(B, H, LQ, D, dtype=torch.float64), key, value, masks.causal(LQ, LK))
    for i in range(LQ):
        close(out[:, :, i], value[:, :, : i + 1 + LK - LQ].mean(2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("key_length", [7, 1031])  # below and above the blocks in which a fused kernel goes along keys
def test_a_query_with_one_key_has_exactly_its_value(dtype, key_length):
    query, key = rand(B, H, LQ, D, dtype=dtype), rand(B, H, key_length, D, dtype=dtype, seed=1)
    value = rand(B, H, key_length, V, dtype=dtype, seed=2)
    seen = torch.tensor([key_length - 1, 0, 3, key_length // 2, key_length - 2])
    out = attend(query, key, value, torch.arange(key_length) == seen[:, None])
    assert torch.equal(out, value[:, :, seen])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_stands_under_the_mask_changes_nothing(dtype):
    query, key, value = inputs(dtype=dtype)
    mask = masks.padding(torch.tensor([[1, 1, 0, 1, 0, 0, 1], [0, 0, 1, 1, 1, 1, 1]]))
    hidden = ~mask[:, 0, 0, :, None].expand(B, LK, 1)[:, None]
    changed = attend(query, key.masked_fill(hidden, 1e4), value.masked_fill(hidden, -1e4), mask)
    assert torch.equal(changed, attend(query, key, value, mask))


@settings(max_examples=20, deadline=None)
@given(
    query_length=st.integers(1, 5),
    key_length=st.integers(1, 7),
    group=st.sampled_from([1, 2, 3]),
    rows=st.integers(0, 2**35 - 1),
)
def test_attend_is_the_equation_for_any_lengths_groups_and_masks(query_length, key_length, group, rows):
    query = rand(2, 2 * group, query_length, 3)
    key, value = rand(2, 2, key_length, 3, seed=1), rand(2, 2, key_length, 5, seed=2)
    bits = [[bool(rows >> (7 * i + j) & 1) for j in range(key_length)] for i in range(query_length)]
    mask = torch.tensor(bits)[None, None]
    want = naive(query, key, value, mask.expand(2, 2 * group, query_length, key_length))
    close(attend(query, key, value, mask), want)


# attend: bias, softcap, sinks

BIASES = [(B, H, LQ, LK), (1, H, LQ, LK), (B, 1, 1, LK), (1, 1, LQ, 1), (1, H, 1, 1), (1, 1, 1, 1)]
OPTIONS: dict[str, dict[str, Any]] = {
    "bias": {"bias": rand(1, H, LQ, LK, seed=11)},
    "softcap": {"softcap": 0.7},
    "sinks": {"sinks": rand(H, seed=12)},
    "bias and scale": {"bias": rand(B, 1, 1, LK, seed=13), "scale": 2.5},
    "softcap and scale": {"softcap": 0.7, "scale": 2.5},
    "sinks and scale": {"sinks": rand(H, seed=12), "scale": -0.4},
    "all": {"bias": rand(B, H, LQ, LK, seed=14), "softcap": 1.3, "sinks": rand(H, seed=15), "scale": 0.9},
}


def options_in(dtype: torch.dtype, name: str) -> dict[str, Any]:
    """The named options with their tensors in that dtype; none for another name."""
    return {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in OPTIONS.get(name, {}).items()}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("name", OPTIONS)
def test_attend_with_options_is_the_equation(name, kv_heads, masked):
    query, key, value = inputs(H, kv_heads)
    mask = holed_mask() if masked else None
    close(attend(query, key, value, mask, **OPTIONS[name]), naive(query, key, value, mask, **OPTIONS[name]))


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("shape", BIASES, ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_a_bias_of_any_shape_that_broadcasts(shape, softcap, masked):
    query, key, value = inputs()
    bias, mask = rand(*shape, seed=11), holed_mask() if masked else None
    options = {"bias": bias, "softcap": softcap}
    close(attend(query, key, value, mask, **options), naive(query, key, value, mask, **options))
    assert not torch.allclose(attend(query, key, value, mask, bias=2 * rand(1, H, 1, LK, seed=16)), attend(*inputs()))


def test_the_cap_is_on_the_scores_and_not_on_the_bias():
    """A large bias of one key leaves no weight for the others, which a cap behind it would."""
    query, key, value = inputs()
    bias = torch.zeros(1, 1, 1, LK, dtype=torch.float64)
    bias[..., 3] = 1e4
    close(
        attend(query, key, value, bias=bias, softcap=1.0), value[:, :, 3:4].repeat_interleave(2, 1).expand(B, H, LQ, V)
    )


@pytest.mark.parametrize("name", ["bias", "softcap", "sinks", "all"])
@pytest.mark.parametrize("scale", [1.0, -0.3, 0.0])
def test_scale_is_used_with_every_option(name, scale):
    query, key, value = inputs()
    options = OPTIONS[name] | {"scale": scale}
    rest = options | {"scale": None}
    close(attend(query, key, value, **options), naive(query, key, value, None, **options))
    close(attend(query, key, value, **options), attend(query * scale * math.sqrt(D), key, value, **rest))
    assert not torch.allclose(attend(query, key, value, **options), attend(query, key, value, **rest), atol=1e-3)


def test_a_large_cap_is_none():
    query, key, value = inputs()
    close(attend(query, key, value, holed_mask(), softcap=1e7), attend(query, key, value, holed_mask()))


def test_a_small_cap_leaves_nothing_but_signs():
    """tanh is 1 or -1 far from zero, so the weights of a query are exp(±cap) over their sum."""
    query, key, value = inputs(H, H)
    signs = (query @ key.transpose(2, 3)).sign()
    shares = (0.1 * signs).softmax(-1)
    close(attend(query, key, value, softcap=0.1, scale=1e6), shares @ value, 1e-4)


def test_sinks_take_their_share_and_have_no_value():
    """Equal scores and a sink of log(n) above them: n keys' worth of the weight is gone."""
    _, key, value = inputs(H, H)
    query = torch.zeros(B, H, LQ, D, dtype=torch.float64)
    for count in (1, LK, 3 * LK):
        sinks = torch.full((H,), math.log(count), dtype=torch.float64)
        out, shares = attend_with_weights(query, key, value, sinks=sinks)
        close(shares, torch.full((B, H, LQ, LK), 1 / (LK + count), dtype=torch.float64))
        close(out, (value.sum(2, keepdim=True) / (LK + count)).expand_as(out))


def test_a_sink_far_below_the_scores_takes_nothing():
    query, key, value = inputs()
    mask = holed_mask()
    close(attend(query, key, value, mask, sinks=torch.full((H,), -1e4)), attend(query, key, value, mask))
    high = attend(query, key, value, mask, sinks=torch.full((H,), 1e4))
    assert torch.equal(high, torch.zeros_like(high))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", ["mask", "bias", "both"])
@pytest.mark.parametrize("name", ["none", "softcap", "sinks"])
def test_a_row_that_mask_or_bias_leaves_without_keys_is_zero(dtype, where, name):
    query, key, value = (x.requires_grad_() for x in inputs(H, 2, dtype))
    mask = holed_mask()
    additive = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, float("-inf"))
    even = torch.arange(LK) % 2 == 0
    half = torch.zeros(LK, dtype=dtype).masked_fill(even, float("-inf"))[None, None, None]
    seen = mask & ~even if where == "both" else mask
    options = options_in(dtype, name)
    out = {
        "mask": lambda: attend(query, key, value, mask, **options),
        "bias": lambda: attend(query, key, value, bias=additive, **options),
        "both": lambda: attend(query, key, value, mask, bias=half, **options),
    }[where]()
    assert out.dtype == dtype
    blind = ~seen.any(3)
    assert torch.equal(out[blind], torch.zeros_like(out[blind]))
    assert (out[~blind] != 0).any(1).all()
    (out * rand(*out.shape, dtype=dtype, seed=5)).sum().backward()
    for x in (query, key, value):
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", OPTIONS)
def test_the_gradient_is_the_derivative_with_every_option(name):
    query, key, value = (x.requires_grad_() for x in inputs(H, 2))
    tensors = {k: v.clone().requires_grad_() for k, v in OPTIONS[name].items() if isinstance(v, Tensor)}
    numbers = {k: v for k, v in OPTIONS[name].items() if k not in tensors}
    mask = holed_mask()

    def call(q: Tensor, k: Tensor, v: Tensor, *given: Tensor) -> Tensor:
        return attend(q, k, v, mask, **dict(zip(tensors, given, strict=True)), **numbers)

    assert torch.autograd.gradcheck(call, (query, key, value, *tensors.values()), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_in_lower_precision_are_computed_in_float32(dtype, name):
    """The answer is off by the rounding of the inputs and of the result, by no more: not by exponents in half."""
    query, key, value = inputs(H, 2, dtype)
    options = options_in(dtype, name)
    out = attend(query, key, value, holed_mask(), **options)
    assert out.dtype == dtype
    exact: dict[str, Any] = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    want = naive(query.double(), key.double(), value.double(), holed_mask(), **exact)
    close(out.double(), want, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_bias_of_another_precision_is_taken_in_that_of_the_query(dtype):
    query, key, value = inputs(dtype=dtype)
    bias = rand(1, H, LQ, LK, seed=11)
    for other in (bias, bias.float(), bias.half()):
        for softcap in (None, 0.7):
            out = attend(query, key, value, bias=other, softcap=softcap)
            assert out.dtype == dtype
            close(out, attend(query, key, value, bias=other.to(dtype), softcap=softcap), 0)


# scores and weights


def test_scores_are_the_scaled_products_with_minus_infinity_where_masked():
    query, key, _ = inputs(H, 2)
    products = query @ key.repeat_interleave(3, 1).transpose(2, 3)
    mask, bias = holed_mask(), rand(1, H, LQ, LK, seed=11)
    close(scores(query, key), products / math.sqrt(D))
    close(scores(query, key, scale=0.3), 0.3 * products)
    close(scores(query, key, scale=0.3, softcap=0.7), 0.7 * torch.tanh(0.3 * products / 0.7))
    close(scores(query, key, scale=0.3, softcap=0.7, bias=bias), 0.7 * torch.tanh(0.3 * products / 0.7) + bias)
    found = scores(query, key, mask, softcap=0.7, bias=bias)
    assert (found[~mask] == float("-inf")).all()
    close(found[mask], scores(query, key, softcap=0.7, bias=bias)[mask])
    close(scores(query, key, mask)[mask], scores(query, key)[mask])
    assert (scores(query, key, mask)[~mask] == float("-inf")).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_are_of_float32_at_least_and_do_not_overflow(dtype):
    query = torch.full((B, H, LQ, D), 200.0, dtype=dtype)
    key = torch.full((B, H, LK, D), 200.0, dtype=dtype)
    found = scores(query, key, scale=1.0)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(found, torch.full((B, H, LQ, LK), 200.0 * 200.0 * D, dtype=found.dtype))


def test_weights_are_the_softmax_and_zero_in_a_row_of_nothing():
    found = rand(B, H, LQ, LK).masked_fill(~holed_mask(), float("-inf"))
    shares = weights(found)
    blind = ~holed_mask().any(3)
    close(shares[~blind], found.softmax(-1)[~blind])
    assert (shares[~holed_mask()] == 0).all()
    close(shares.sum(-1), (~blind).double())
    sunk = weights(found, rand(H, seed=12))
    assert (sunk[~holed_mask()] == 0).all()
    assert (sunk.sum(-1)[~blind] < 1).all()
    both = torch.cat([found, rand(H, seed=12)[None, :, None, None].expand(B, H, LQ, 1)], -1).softmax(-1)
    close(sunk[~blind], both[..., :-1][~blind])


def test_weights_of_large_scores_are_finite():
    shares = weights(torch.tensor([[[[1e30, -1e30, float("-inf")], [3e38, 3e38, -3e38]]]]))
    assert torch.equal(shares, torch.tensor([[[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]]]))


def test_weights_over_no_keys_are_none():
    assert weights(torch.zeros(B, H, LQ, 0)).shape == (B, H, LQ, 0)
    assert weights(torch.zeros(B, H, LQ, 0), torch.zeros(H)).shape == (B, H, LQ, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["none", *OPTIONS])
@pytest.mark.parametrize("kv_heads", [6, 2])
def test_attend_with_weights_is_attend_and_the_weights_sum_the_values(dtype, name, kv_heads):
    query, key, value = inputs(H, kv_heads, dtype)
    options = options_in(dtype, name)
    out, shares = attend_with_weights(query, key, value, holed_mask(), **options)
    assert (out.dtype, shares.dtype) == (dtype, dtype)
    assert (shares[~holed_mask()] == 0).all()
    # A score of size s is off by s roundings, and its weight as much in proportion; then the result is rounded.
    plain: dict[str, Any] = {k: v for k, v in options.items() if k != "sinks"}
    largest = scores(query, key, **plain).abs().max().item()
    eps, wide = (torch.finfo(t).eps for t in (dtype, torch.promote_types(dtype, torch.float32)))
    allowed = (2 * (D + largest) * wide + eps) * value.abs().max().item()
    close(out, attend(query, key, value, holed_mask(), **options), allowed)
    close(out.double(), shares.double() @ value.double().repeat_interleave(H // kv_heads, 1), allowed + 4 * eps)
    if "sinks" not in options:
        close(shares.double().sum(-1), holed_mask().any(3).double(), LK * eps)


# attend: rows that see nothing


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (6, 2), (6, 1)])
def test_a_row_without_keys_is_exactly_zero_with_a_finite_gradient(dtype, heads, kv_heads):
    query, key, value = (x.requires_grad_() for x in inputs(heads, kv_heads, dtype))
    mask = holed_mask()
    blind = ~mask.any(3)  # (B, H, LQ)
    out = attend(query, key, value, mask)
    assert torch.equal(out[blind], torch.zeros_like(out[blind]))
    assert (out[~blind] != 0).any(1).all()
    assert out.isfinite().all()
    (out * rand(*out.shape, dtype=dtype, seed=5)).sum().backward()
    for x in (query, key, value):
        assert x.grad is not None
        assert x.grad.isfinite().all()
    assert query.grad is not None
    assert torch.equal(query.grad[blind], torch.zeros_like(query.grad[blind]))
    assert (query.grad[mask.sum(3) > 1] != 0).any(1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_row_without_keys_is_exactly_zero_where_no_gradient_is_kept(dtype, kv_heads, without):
    query, key, value = inputs(H, kv_heads, dtype)
    mask = holed_mask()
    with without():
        out = attend(query, key, value, mask)
    blind = out[~mask.any(3)]
    assert torch.equal(blind, torch.zeros_like(blind))
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("key_length", [0, 1, 7, 1031])
def test_a_mask_of_nothing_gives_nothing(dtype, key_length):
    query, key, value = (
        rand(*shape, dtype=dtype, seed=i).requires_grad_()
        for i, shape in enumerate([(B, H, LQ, D), (B, H, key_length, D), (B, H, key_length, V)])
    )
    out = attend(query, key, value, torch.zeros(B, key_length))
    assert torch.equal(out, torch.zeros(B, H, LQ, V, dtype=dtype))
    out.sum().backward()
    for x in (query, key, value):
        assert x.grad is not None
        assert torch.equal(x.grad, torch.zeros_like(x))


def test_a_sequence_without_keys_leaves_its_neighbours_alone():
    query, key, value = inputs()
    mask = torch.tensor([[0] * LK, [1, 1, 0, 1, 0, 1, 1]])
    out = attend(query, key, value, mask)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    close(out[1:], attend(query[1:], key[1:], value[1:], mask[1:]))


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_the_gradient_is_the_derivative(kv_heads):
    query, key, value = (rand(*shape, seed=i) for i, shape in enumerate([(2, 2, 3, 2), *[(2, kv_heads, 5, 2)] * 2]))
    mask = random_mask(2, 2, 3, 5)
    mask[1, :, 2] = False
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend(q, k, v, mask), [x.requires_grad_() for x in (query, key, value)], fast_mode=True
    )


# attend: shapes that do not fit


@pytest.mark.parametrize(
    ("query", "key", "value", "named"),
    [
        ((B, LQ, D), (B, K, LK, D), (B, K, LK, V), r"takes \(batch, heads, length, head size\)"),
        ((B, H, LQ, D), (B, LK, D), (B, K, LK, V), r"takes \(batch, heads, length, head size\)"),
        ((B, H, LQ, D), (B, K, LK, D), (LK, V), r"takes \(batch, heads, length, head size\)"),
        ((B, H, LQ, D), (3, K, LK, D), (B, K, LK, V), "batch sizes differ"),
        ((B, H, LQ, D), (B, K, LK, D), (1, K, LK, V), "batch sizes differ"),
        ((B, H, LQ, D), (B, 4, LK, D), (B, 4, LK, V), "must be a multiple of key heads"),
        ((B, K, LQ, D), (B, H, LK, D), (B, H, LK, V), "must be a multiple of key heads"),
        ((B, H, LQ, D), (B, K, LK, D), (B, H, LK, V), "key heads equal value heads"),
        ((B, H, LQ, D), (B, K, LK, D), (B, K, LQ, V), "key and value lengths differ"),
        ((B, H, LQ, D), (B, K, LK, V), (B, K, LK, V), "query and key head sizes differ"),
    ],
)
def test_attend_names_the_shapes_that_do_not_fit(query, key, value, named):
    with pytest.raises(ValueError, match=named) as error:
        attend(rand(*query), rand(*key), rand(*value))
    assert f"query {query}, key {key}, value {value}" in str(error.value)


@pytest.mark.parametrize("shape", [(LK,), (LK, LQ), (B, LK, LQ), (B, K, LQ, LK), (B, H, LQ, LQ)], ids=str)
def test_attend_names_the_mask_that_does_not_fit(shape):
    with pytest.raises(ValueError, match="mask has shape") as error:
        attend(*inputs(), torch.ones(shape))
    assert f"shape {shape}" in str(error.value)
    assert f"({B}, {H}, {LQ}, {LK})" in str(error.value)


@pytest.mark.parametrize(
    "shape",
    [(LK,), (LQ, LK), (B, LQ, LK), (B, H, LQ, LK, 1), (B, K, LQ, LK), (3, H, LQ, LK), (B, H, LK, LQ), (B, H, LQ, 2)],
    ids=str,
)
@pytest.mark.parametrize("softcap", [None, 1.0])
def test_attend_names_the_bias_that_does_not_fit(shape, softcap):
    with pytest.raises(ValueError, match="bias has shape") as error:
        attend(*inputs(), bias=torch.zeros(shape), softcap=softcap)
    assert f"shape {shape}, which does not broadcast to {(B, H, LQ, LK)}" in str(error.value)


@pytest.mark.parametrize("shape", [(), (K,), (1,), (1, H), (H, 1)], ids=str)
def test_attend_names_the_sinks_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="sinks have shape") as error:
        attend(*inputs(), sinks=torch.zeros(shape))
    assert f"shape {shape}; with {H} heads it is ({H},)" in str(error.value)


@pytest.mark.parametrize("softcap", [0, 0.0, -30.0])
def test_a_cap_must_be_positive(softcap):
    query, key, value = inputs()
    for call in (
        lambda: attend(query, key, value, softcap=softcap),
        lambda: attend_with_weights(query, key, value, softcap=softcap),
        lambda: scores(query, key, softcap=softcap),
        lambda: MultiHeadAttention(12, 3, softcap=softcap),
    ):
        with pytest.raises(ValueError, match=f"softcap is {softcap}; it must be positive"):
            call()


@pytest.mark.parametrize("call", [attend, attend_with_weights, lambda q, k, _v, m=None: scores(q, k, m)])
def test_every_function_names_the_shapes_and_masks_that_do_not_fit(call):
    with pytest.raises(ValueError, match=r"query \(2, 6, 5, 11\), key \(3, 3, 7, 11\)"):
        call(rand(B, H, LQ, D), rand(3, K, LK, D), rand(3, K, LK, V))
    with pytest.raises(ValueError, match=r"mask has shape \(7, 5\)"):
        call(*inputs(), torch.ones(LK, LQ))


# MultiHeadAttention


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"hidden_size": 33, "num_heads": 5}, "hidden_size 33 is not a multiple of num_heads 5"),
        ({"hidden_size": 33, "num_heads": 3, "num_kv_heads": 2}, "num_heads 3 is not a multiple of num_kv_heads 2"),
        ({"hidden_size": 33, "num_heads": 3, "num_kv_heads": 6}, "num_heads 3 is not a multiple of num_kv_heads 6"),
        ({"hidden_size": 33, "num_heads": 3, "num_kv_heads": 0}, "num_kv_heads is 0"),
        ({"hidden_size": 33, "num_heads": 0}, "num_heads is 0"),
        ({"hidden_size": 33, "num_heads": -3}, "num_heads is -3"),
    ],
)
def test_head_counts_that_do_not_divide_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        MultiHeadAttention(**options)


def test_a_head_size_of_its_own_needs_no_division():
    layer = MultiHeadAttention(10, 6, 2, head_dim=7, key_size=13, bias=False)
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    assert shapes == {
        "query_linear.weight": (42, 10),
        "key_linear.weight": (14, 13),
        "value_linear.weight": (14, 13),
        "out_linear.weight": (10, 42),
    }
    assert layer(torch.ones(2, 5, 10), torch.ones(2, 3, 13), torch.ones(2, 3, 13)).shape == (2, 5, 10)


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_the_one_that_torch_has(bias):
    torch.manual_seed(0)
    hidden, key_size, heads = 21, 13, 3
    theirs = nn.MultiheadAttention(
        hidden, heads, bias=bias, kdim=key_size, vdim=key_size, batch_first=True, dtype=torch.float64
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    state = dict(theirs.state_dict())
    renamed = {
        "query_linear.weight": state["q_proj_weight"],
        "key_linear.weight": state["k_proj_weight"],
        "value_linear.weight": state["v_proj_weight"],
        "out_linear.weight": state["out_proj.weight"],
    }
    if bias:
        for name, part in zip(("query", "key", "value"), state["in_proj_bias"].chunk(3), strict=True):
            renamed[f"{name}_linear.bias"] = part
        renamed["out_linear.bias"] = state["out_proj.bias"]
    ours = MultiHeadAttention(hidden, heads, key_size=key_size, bias=bias).double()
    ours.load_state_dict(renamed)
    query, key, value = rand(B, LQ, hidden), rand(B, LK, key_size, seed=1), rand(B, LK, key_size, seed=2)
    keys = torch.tensor([[1, 1, 0, 1, 0, 0, 1], [0, 0, 1, 1, 1, 1, 1]])
    causal = masks.causal(LQ, LK)
    want, _ = theirs(query, key, value, key_padding_mask=keys == 0, attn_mask=~causal[0, 0])
    close(ours(query, key, value, masks.combine(masks.padding(keys), causal)), want)


@pytest.mark.parametrize(("kv_heads", "head_dim"), [(6, 2), (3, 5), (2, 2), (1, 7)])
def test_grouped_heads_are_repeated_key_and_value_heads(kv_heads, head_dim):
    torch.manual_seed(0)
    grouped = MultiHeadAttention(12, 6, kv_heads, head_dim).double()
    full = MultiHeadAttention(12, 6, head_dim=head_dim).double()
    state = dict(grouped.state_dict())
    for name in ("key_linear.weight", "key_linear.bias", "value_linear.weight", "value_linear.bias"):
        heads = state[name].unflatten(0, (kv_heads, head_dim))
        state[name] = heads.repeat_interleave(6 // kv_heads, 0).flatten(0, 1)
    full.load_state_dict(state)
    query, key, value, mask = rand(B, LQ, 12), rand(B, LK, 12, seed=1), rand(B, LK, 12, seed=2), random_mask(B, LQ, LK)
    close(grouped(query, key, value, mask), full(query, key, value, mask))


class ClassicAttention(nn.Module):
    """Attention as it is often written by hand: no scale, and a 0/1 mask filled in with -inf."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_linear = nn.Linear(hidden_size, hidden_size)
        self.key_linear = nn.Linear(hidden_size, hidden_size)
        self.value_linear = nn.Linear(hidden_size, hidden_size)
        self.out_linear = nn.Linear(hidden_size, hidden_size)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        batch, _, hidden = query.shape

        def heads(x: Tensor) -> Tensor:
            return x.view(batch, -1, self.num_heads, hidden // self.num_heads).permute(0, 2, 1, 3)

        q, k, v = heads(self.query_linear(query)), heads(self.key_linear(key)), heads(self.value_linear(value))
        scores = torch.matmul(q, k.transpose(-2, -1))
        scores = scores.masked_fill(mask == 0, float("-inf"))
        out = torch.matmul(torch.softmax(scores, dim=-1), v)
        return self.out_linear(out.permute(0, 2, 1, 3).contiguous().view(batch, -1, hidden))


@pytest.mark.parametrize("shape", [(B, 1, 1, LK), (B, 1, LQ, LK), (1, 1, LQ, LK)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bool], ids=str)
def test_weights_of_a_layer_written_by_hand_give_its_answers(shape, dtype):
    torch.manual_seed(0)
    classic = ClassicAttention(15, 3).double()
    ours = MultiHeadAttention(15, 3, scale=1.0).double()
    assert list(ours.state_dict()) == list(classic.state_dict())
    ours.load_state_dict(classic.state_dict())
    mask = random_mask(*shape)
    mask[..., 0] = True  # softmax over nothing is NaN in the classic layer
    query, key, value = rand(B, LQ, 15), rand(B, LK, 15, seed=1), rand(B, LK, 15, seed=2)
    want = classic(query, key, value, mask.to(dtype))
    close(ours(query, key, value, mask.to(dtype)), want)
    scaled = MultiHeadAttention(15, 3).double()
    scaled.load_state_dict(classic.state_dict())
    assert not torch.allclose(scaled(query, key, value, mask), want, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_without_keys_has_the_bias_alone_and_finite_gradients(dtype):
    torch.manual_seed(0)
    layer = MultiHeadAttention(6, 3).to(dtype)
    x = rand(B, LQ, 6, dtype=dtype).requires_grad_()
    mask = torch.ones(B, LQ, LQ)
    mask[1, 2] = 0
    out = layer(x, x, x, mask)
    assert torch.equal(out[1, 2], layer.out_linear.bias)
    out.sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


# MultiHeadAttention: options


@pytest.mark.parametrize("need_weights", [True, False])
def test_the_layer_hands_its_options_to_attend(need_weights):
    torch.manual_seed(0)
    layer = MultiHeadAttention(12, 6, 2, 5, value_head_dim=7, scale=0.9, softcap=1.3, sinks=True).double()
    assert layer.sinks is not None
    nn.init.normal_(layer.sinks)
    query, key, value = rand(B, LQ, 12), rand(B, LK, 12, seed=1), rand(B, LK, 12, seed=2)
    mask, bias = holed_mask(), rand(1, 6, LQ, LK, seed=3)
    q, k, v = (
        linear(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        for linear, x, heads in (
            (layer.query_linear, query, 6),
            (layer.key_linear, key, 2),
            (layer.value_linear, value, 2),
        )
    )
    want = naive(q, k, v, mask, 0.9, bias, 1.3, layer.sinks)
    attended = layer.compute(query, key, value, mask, bias=bias, need_weights=need_weights)
    close(attended.output, layer.out_linear(want.transpose(1, 2).flatten(2)))
    close(layer(query, key, value, mask, bias=bias), attended.output)
    assert attended.cache is None
    if need_weights:
        shares = attend_with_weights(q, k, v, mask, scale=0.9, bias=bias, softcap=1.3, sinks=layer.sinks)[1]
        close(cast(Tensor, attended.weights), shares)
    else:
        assert attended.weights is None


def test_weights_asked_for_do_not_change_the_answer():
    torch.manual_seed(0)
    layer = MultiHeadAttention(12, 6, 2).double()
    query, key, value, mask = rand(B, LQ, 12), rand(B, LK, 12, seed=1), rand(B, LK, 12, seed=2), holed_mask()
    output, shares, cache = layer.compute(query, key, value, mask, need_weights=True)
    close(output, layer(query, key, value, mask))
    assert shares is not None
    assert shares.shape == (B, 6, LQ, LK)
    close(shares.sum(-1), mask.any(3).double())
    assert cache is None


def test_values_may_have_heads_of_their_own_size():
    layer = MultiHeadAttention(12, 6, 2, 5, value_head_dim=7, bias=False)
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    assert shapes == {
        "query_linear.weight": (30, 12),
        "key_linear.weight": (10, 12),
        "value_linear.weight": (14, 12),
        "out_linear.weight": (12, 42),
    }


def test_sinks_are_learned_one_a_head_and_begin_at_zero():
    layer = MultiHeadAttention(12, 6, 2, sinks=True)
    assert torch.equal(dict(layer.named_parameters())["sinks"], torch.zeros(6))
    x = rand(B, LQ, 12, dtype=torch.float32)
    layer(x, x, x).sum().backward()
    assert layer.sinks is not None
    assert layer.sinks.grad is not None
    assert layer.sinks.grad.abs().sum() > 0
    assert "sinks" not in dict(MultiHeadAttention(12, 6).named_parameters())


class Doubled(nn.Module):
    """Stands for a norm: its answer says which head size it was made for."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(size) + 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_norms_of_queries_and_keys_stand_between_the_linear_layers_and_the_turn():
    torch.manual_seed(0)
    plain = MultiHeadAttention(12, 3, 1, 4).double()
    normed = MultiHeadAttention(12, 3, 1, 4, qk_norm=Doubled, rotary=Rotary(4)).double()
    assert {name for name, _ in normed.named_parameters()} >= {"query_norm.weight", "key_norm.weight"}
    with torch.no_grad():
        dict(normed.named_parameters())["key_norm.weight"].mul_(0.3)
    normed.load_state_dict(plain.state_dict(), strict=False)
    x = rand(B, LQ, 12)
    rotary, factor = Rotary(4), torch.arange(4) + 2.0
    q, k, v = (
        linear(x).unflatten(-1, (-1, 4)).transpose(1, 2)
        for linear in (plain.query_linear, plain.key_linear, plain.value_linear)
    )
    want = naive(rotary(q * factor, LQ), rotary(k * factor * 0.3, LQ), v, None)
    close(normed(x, x, x), plain.out_linear(want.transpose(1, 2).flatten(2)), 1e-7)


# MultiHeadAttention: positions and cache


def rotary_layer(**options: Any) -> MultiHeadAttention:
    torch.manual_seed(0)
    return MultiHeadAttention(12, 3, 1, 4, rotary=Rotary(4), **options).double()


def test_positions_count_places_unless_given():
    layer, x = rotary_layer(), rand(B, LQ, 12)
    want = layer(x, x, x)
    for positions in (torch.arange(LQ)[None], torch.arange(LQ).expand(B, LQ)):
        close(layer(x, x, x, positions=positions), want)
    close(layer(x, x, x, positions=torch.arange(LQ)[None] + 100), want)  # distances alone matter
    spread = layer(x, x, x, positions=2 * torch.arange(LQ)[None])
    assert not torch.allclose(spread, want, atol=1e-3)
    given = torch.stack([torch.arange(LQ), 2 * torch.arange(LQ)])
    mixed = layer(x, x, x, positions=given)
    close(mixed[0], want[0])
    close(mixed[1], spread[1])


def test_positions_need_one_sequence():
    layer = rotary_layer()
    with pytest.raises(ValueError, match="need self-attention, not 5 queries and 7 keys"):
        layer(rand(B, LQ, 12), rand(B, LK, 12), rand(B, LK, 12))


@pytest.mark.parametrize("options", [{}, {"qk_norm": Doubled, "sinks": True, "softcap": 2.0}], ids=["plain", "all"])
@pytest.mark.parametrize("cuts", [(0, LK), (0, 1, 2, 5, LK), (0, 3, 3, LK)], ids=str)
def test_a_sequence_in_parts_behind_a_cache_is_the_sequence_whole(cuts, options):
    layer, x = rotary_layer(value_head_dim=7, **options), rand(B, LK, 12)
    seen = masks.combine(masks.causal(LK, LK), masks.padding(torch.tensor([[1] * LK, [0, 1, 1, 0, 1, 1, 1]])))
    bias = rand(1, 3, LK, LK, seed=8)
    assert seen is not None
    want = layer.compute(x, x, x, seen, bias=bias, need_weights=True)
    cache = empty(B, 1, 4, 7, dtype=torch.float64)
    for start, stop in pairwise(cuts):
        chunk = x[:, start:stop]
        output, shares, cache = layer.compute(
            *(chunk, chunk, chunk, seen[:, :, start:stop, :stop]),
            bias=bias[:, :, start:stop, :stop],
            cache=cache,
            need_weights=True,
        )
        assert shares is not None
        assert cache is not None
        assert cache.length == stop
        close(output, want.output[:, start:stop])
        close(shares, cast(Tensor, want.weights)[:, :, start:stop, :stop])
    whole = layer.compute(x, x, x, cache=empty(B, 1, 4, 7, dtype=torch.float64)).cache
    for have, kept in zip(cast(KVCache, cache), cast(KVCache, whole), strict=True):
        close(have, kept)


def test_positions_count_on_from_the_cache_unless_given():
    layer, x = rotary_layer(), rand(B, LK, 12)
    first = layer.compute(x[:, :3], x[:, :3], x[:, :3], cache=empty(B, 1, 4, dtype=torch.float64)).cache
    rest = x[:, 3:]
    want = layer.compute(rest, rest, rest, cache=first).output
    close(layer.compute(rest, rest, rest, cache=first, positions=torch.arange(3, LK)[None]).output, want)
    again = layer.compute(rest, rest, rest, cache=first, positions=torch.arange(LK - 3)[None]).output
    assert not torch.allclose(again, want, atol=1e-4)


def test_cached_keys_are_normed_and_turned_and_values_are_not():
    layer, x = rotary_layer(qk_norm=Doubled), rand(B, LQ, 12)
    cache = layer.compute(x, x, x, cache=empty(B, 1, 4, dtype=torch.float64)).cache
    assert cache is not None
    keys = layer.key_linear(x)[:, None] * (torch.arange(4) + 2.0)
    close(cache.key, Rotary(4).double()(keys, LQ))
    close(cache.value, layer.value_linear(x)[:, None])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"head_dim": 0}, "head_dim is 0; it must be a whole number"),
        ({"head_dim": -2, "value_head_dim": 3}, "head_dim is -2; it must be a whole number"),
        ({"value_head_dim": 0}, "value_head_dim is 0; it must be at least 1"),
        ({"rotary": Rotary(6)}, "rotary is for heads of 6, the layer has heads of 4"),
        ({"head_dim": 6, "rotary": Rotary(4)}, "rotary is for heads of 4, the layer has heads of 6"),
        ({"softcap": -1.0}, "softcap is -1.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        MultiHeadAttention(12, 3, **options)


# export

BATCH, QUERIES, KEYS = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "queries", "keys"))
EXPORTED_MASKS = {
    "none": None,
    "keys": (BATCH, KEYS),
    "queries_keys": (QUERIES, KEYS),
    "batch_queries_keys": (BATCH, QUERIES, KEYS),
    "heads": (BATCH, 3, QUERIES, KEYS),
    "padding": (BATCH, 1, 1, KEYS),
    "causal": (1, 1, QUERIES, KEYS),
}


def layer_inputs(axes, dtype: torch.dtype, batch: int, queries: int, keys: int) -> tuple[Tensor | None, ...]:
    def size_of(axis: Any) -> int:
        return axis if isinstance(axis, int) else {BATCH: batch, QUERIES: queries, KEYS: keys}[axis]

    query, key, value = rand(batch, queries, 12), rand(batch, keys, 12, seed=1), rand(batch, keys, 12, seed=2)
    return (
        query,
        key,
        value,
        None if axes is None else random_mask(*map(size_of, axes)).to(dtype),
    )


@pytest.mark.parametrize(
    ("name", "dtype", "kv_heads"),
    [*((name, torch.bool, 3) for name in EXPORTED_MASKS), ("keys", torch.int64, 3), ("padding", torch.float32, 1)],
    ids=str,
)
def test_the_layer_exports_as_written_with_every_mask_and_any_size(name, dtype, kv_heads):
    torch.manual_seed(0)
    axes = EXPORTED_MASKS[name]
    layer = MultiHeadAttention(12, 3, kv_heads).double().eval()
    shapes = {"query": {0: BATCH, 1: QUERIES}, "key": {0: BATCH, 1: KEYS}, "value": {0: BATCH, 1: KEYS}}
    free = None if axes is None else {i: axis for i, axis in enumerate(axes) if not isinstance(axis, int)}
    program = torch.export.export(
        layer, layer_inputs(axes, dtype, 3, 5, 7), dynamic_shapes=shapes | {"mask": free}, strict=False
    ).module()
    for sizes in ((2, 11, 13), (5, 7, 3), (7, 2, 5)):
        example = layer_inputs(axes, dtype, *sizes)
        close(program(*example), layer(*example))


class Masked(nn.Module):
    """Attention under a mask of its own making, of every builder."""

    def forward(self, query: Tensor, key: Tensor, attention_mask: Tensor, prefix: Tensor, segments: Tensor) -> Tensor:
        sizes = query.shape[2], key.shape[2]
        window = masks.combine(masks.causal(*sizes), masks.sliding_window(*sizes, 3, 1), masks.padding(attention_mask))
        packed = masks.combine(masks.prefix(*sizes, prefix), masks.segments(segments), masks.lengths(prefix, sizes[1]))
        return attend(query, key, key, window) + attend(query, query, query, packed)


def test_masks_that_are_built_in_the_graph_are_those_of_its_sizes():
    def example(batch: int, length: int) -> tuple[Tensor, ...]:
        prefix = torch.arange(batch) % length
        x = rand(batch, 2, length, 3)
        return x, x + 1, random_mask(batch, length).long(), prefix, random_mask(batch, length).long()

    length = torch.export.Dim("length", min=2, max=64)
    shapes = ({0: BATCH, 2: length}, {0: BATCH, 2: length}, {0: BATCH, 1: length}, {0: BATCH}, {0: BATCH, 1: length})
    program = torch.export.export(Masked(), example(3, 5), dynamic_shapes=shapes, strict=False).module()
    for sizes in ((2, 11), (7, 3), (5, 5)):
        close(program(*example(*sizes)), Masked()(*example(*sizes)))


@pytest.mark.parametrize("axes", [None, (3, 7), (5, 7), (3, 5, 7), (3, 3, 5, 7)], ids=str)
def test_the_layer_compiles_into_one_graph(axes):
    torch.manual_seed(0)
    layer = MultiHeadAttention(12, 3).double().eval()
    example = layer_inputs(axes, torch.int64, 3, 5, 7)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True, dynamic=False)
    close(compiled(*example), layer(*example))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("level", [7e4, -7e4, 0.0])
def test_a_float32_bias_keeps_its_range_and_its_digits_beside_half_precision(dtype, level):
    """The same on every key it changes nothing, and float16 has no number so large."""
    query, key, value = (x.to(dtype) for x in inputs(dtype=torch.float32))
    bias = torch.full((1, 1, 1, LK), level)
    close(attend(query, key, value, bias=bias), attend(query, key, value), 0.02)
    near = bias * 0 + 100 + torch.arange(LK) / 10  # bfloat16 holds 100.5 and 100, and nothing between
    exact = attend(query.double(), key.double(), value.double(), bias=near.double())
    close(attend(query, key, value, bias=near).double(), exact, 0.02)
