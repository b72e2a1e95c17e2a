"""Gradients of masked attention are those of the plain softmax over the visible keys, differentiated by autograd."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isoformer.models import masks
from isoformer.models.attention import MultiHeadAttention, attend
from isoformer.runtime.parity import bound, largest_error
from tests.properties.drawn import Call, calls, generator, raw_scores, reference, rounding

B, H, K, LQ, LK, D, V, E = 2, 6, 3, 5, 7, 4, 3, 10
KEYS = torch.tensor([[1, 1, 0, 1, 0, 0, 1], [0] * LK])  # the second sequence sees nothing
SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 0]])


def random_mask(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.5


MASKS = {
    "none": None,
    "padding": masks.padding(KEYS),
    "lengths": masks.lengths(torch.tensor([3, 0]), LK),
    "causal": masks.causal(LQ, LK),
    "blind causal": masks.causal(LQ, LK, offset=-2),  # the first two rows see nothing
    "window": masks.sliding_window(LQ, LK, 2, 1),
    "prefix": masks.prefix(LQ, LK, torch.tensor([4, 0])),
    "segments": masks.segments(SEGMENTS[:, -LQ:], SEGMENTS, padding=0),
    "square": random_mask(LQ, LK),
    "rows": random_mask(B, LQ, LK),
    "heads": random_mask(B, H, LQ, LK),
    "nothing": torch.zeros(B, LK),
    "causal, padding": masks.combine(masks.causal(LQ, LK), masks.padding(KEYS)),
    "window, segments": masks.combine(
        masks.sliding_window(LQ, LK, 3), masks.segments(SEGMENTS[:, -LQ:], SEGMENTS, padding=0)
    ),
    "prefix, lengths, heads": masks.combine(
        masks.prefix(LQ, LK, torch.tensor([2, 5])), masks.lengths(torch.tensor([6, 4]), LK), random_mask(B, H, LQ, LK)
    ),
}
OPTIONS = {
    "plain": (),
    "bias": ("bias",),
    "softcap": ("softcap",),
    "sinks": ("sinks",),
    "all": ("bias", "softcap", "sinks"),
}


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_call(mask: Tensor | None, names: tuple[str, ...], kv_heads: int = K) -> Call:
    bias = rand(B, 1, LQ, LK, seed=4)
    bias[0, 0, 1, 2:] = float("-inf")
    options = {"bias": bias, "softcap": 2.0, "sinks": rand(H, seed=5)}
    q, k, v = rand(B, H, LQ, D, seed=0), rand(B, kv_heads, LK, D, seed=1), rand(B, kv_heads, LK, V, seed=2)
    return Call(q, k, v, mask, {name: options[name] for name in names})


def leaves(call: Call) -> dict[str, Tensor]:
    """What gradients are taken of."""
    learned = {name: x for name, x in call.options.items() if isinstance(x, Tensor)}
    return {"query": call.query, "key": call.key, "value": call.value} | learned


def gradients(function, call: Call, upstream: Tensor) -> dict[str, Tensor]:
    own = {name: x.detach().clone().requires_grad_() for name, x in leaves(call).items()}
    learned = {name: x for name, x in own.items() if name in call.options}
    call = Call(own["query"], own["key"], own["value"], call.mask, call.options | learned)
    out = function(call)
    if not out.requires_grad:  # the plain softmax over no keys at all
        return {name: torch.zeros_like(x) for name, x in own.items()}
    found = torch.autograd.grad(out, list(own.values()), upstream.to(out.dtype), materialize_grads=True)
    return dict(zip(own, found, strict=True))


def gradient_rounding(call: Call, upstream: Tensor) -> dict[str, Tensor]:
    """How far gradients in the call's dtype may be from the exact ones, to first order in u = eps / 2.

    With P the weights, r the bound on their relative error (`drawn.rounding` over max |v|), g_i the largest
    |upstream_i| . |v_j|, c the softcap and N the number of terms of the longest sum:

        dS_ij = P_ij (dP_ij - sum_j P_ij dP_ij) (1 - tanh²)    is off by   P_ij g_i (3 r + (2 V + 2 Lk + 16) u + t)
                                                                           with t = 4 (r / c + 5 u) where capped

    and is at most 2 P_ij g_i; the gradients are sums of it with |k|, |q| or 1, of at most N terms. Below the smallest
    normal number f there is no relative error: a weight may be off by f (kernels may take it for 0), and so a product.
    """
    limits, wide = torch.finfo(call.query.dtype), call.to(torch.float64)
    u, f = limits.eps / 2, limits.smallest_normal
    group, (batch, heads, queries, keys) = call.sizes[1] // call.key.shape[1], call.sizes
    terms = max(batch * heads * queries, keys)
    key, value = (x.repeat_interleave(group, 1).abs() for x in (wide.key, wide.value))
    most = value.amax(-1)[:, :, None].expand(call.sizes).where(call.visible(), 0.0).amax(-1, keepdim=True)
    r = (rounding(call) / most).nan_to_num(0.0)  # a row without keys has no error
    s = raw_scores(wide).masked_fill(~call.visible(), float("-inf"))
    if (sinks := wide.options.get("sinks")) is not None:
        s = torch.cat([s, sinks[:, None, None].expand(*s.shape[:3], 1)], -1)
    shares = s.softmax(-1).masked_fill(~call.visible().any(-1, keepdim=True), 0.0)
    upstream = upstream.double().abs()
    g = (upstream @ value.mT).where(call.visible(), 0.0).amax(-1, keepdim=True)
    coefficient = 3 * r + (2 * value.shape[3] + 2 * keys + 16 + 2 * terms) * u
    if (cap := call.options.get("softcap")) is not None:
        coefficient = coefficient + 4 * (r / cap + 5 * u)
    off = shares * g * coefficient + 2 * f * (g + 1)
    scale = abs(call.options.get("scale") or call.query.shape[3] ** -0.5)
    per_head = {
        "key": scale * off[..., :keys].mT @ wide.query.abs(),
        "value": (shares[..., :keys] * (r + terms * u) + f).mT @ upstream,
    }
    allowed = {name: x.unflatten(1, (-1, group)).sum(2) for name, x in per_head.items()}
    allowed["query"] = scale * off[..., :keys] @ key
    if "bias" in call.options:
        allowed["bias"] = off[..., :keys].sum_to_size(call.options["bias"].shape)
    if sinks is not None:
        allowed["sinks"] = off[..., keys].sum((0, 2))
    return {name: x + 2 * terms * f for name, x in allowed.items()}


def assert_gradients(call: Call, upstream: Tensor) -> dict[str, Tensor]:
    """The gradients of attend, held to autograd of the plain softmax in float64."""
    found = gradients(Call.run, call, upstream)
    wanted, exact = gradients(reference, call.to(torch.float64), upstream), gradient_rounding(call, upstream)
    own = gradient_rounding(call.to(torch.float64), upstream)
    for name, gradient in found.items():
        assert ((gradient.double() - wanted[name]).abs() <= exact[name] + own[name]).all(), name
    return found


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kv_heads", [H, K])
def test_float64_gradients_are_those_of_the_plain_softmax(mask, options, kv_heads):
    call, upstream = make_call(mask, options, kv_heads), rand(B, H, LQ, V, seed=6)
    found, wanted = gradients(Call.run, call, upstream), gradients(reference, call, upstream)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-12, rtol=0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_float32_gradients_are_as_near_as_rounding_lets_them(mask, options):
    assert_gradients(make_call(mask, options).to(torch.float32), rand(B, H, LQ, V, seed=6))


@given(call=calls(), data=st.data())
def test_gradients_of_any_call(call, data):
    upstream = torch.randn(*call.query.shape[:3], call.value.shape[3], generator=generator(data.draw))
    assert_gradients(call, upstream)


@given(call=calls(), data=st.data())
def test_what_only_blind_rows_touch_has_a_gradient_of_exactly_zero(call, data):
    """A query that sees nothing, a key and value that no query sees, a bias between the two."""
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    call = call.to(dtype)
    upstream = torch.randn(*call.query.shape[:3], call.value.shape[3], generator=generator(data.draw))
    found, seen = gradients(Call.run, call, upstream), call.visible()
    assert all(gradient.isfinite().all() for gradient in found.values())
    unseen = ~seen.unflatten(1, (call.key.shape[1], -1)).any(3).any(2)  # (B, K, Lk)
    assert (found["query"][~seen.any(-1)] == 0).all()
    assert (found["key"][unseen] == 0).all()
    assert (found["value"][unseen] == 0).all()
    if "bias" in found:
        touched = seen.double().sum_to_size(found["bias"].shape) > 0
        assert (found["bias"][~touched] == 0).all()
    if "sinks" in found:
        assert (found["sinks"][~seen.any(3).any(2).any(0)] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("options", [(), ("bias", "softcap", "sinks")], ids=["plain", "all"])
def test_gradients_in_half_precision_are_finite_and_near(dtype, mask, options):
    """Near: as if everything were summed in the dtype itself."""
    call, upstream = make_call(mask, options).to(dtype), rand(B, H, LQ, V, seed=6)
    found, allowed = gradients(Call.run, call, upstream), gradient_rounding(call, upstream)
    wanted = gradients(reference, call.to(torch.float64), upstream.to(dtype).double())
    for name, gradient in found.items():
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
        assert ((gradient.double() - wanted[name]).abs() <= allowed[name]).all(), name


@pytest.mark.parametrize("mask", ["none", "blind causal", "prefix, lengths, heads"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_gradient_is_the_derivative(mask, options):
    call = make_call(MASKS[mask], options)
    if "bias" in call.options:
        call.options["bias"] = call.options["bias"].clamp(min=-3)  # -inf has no difference quotient
    own = {name: x.requires_grad_() for name, x in leaves(call).items()}

    def function(query, key, value, *learned):
        options = call.options | dict(zip(list(own)[3:], learned, strict=True))
        return attend(query, key, value, call.mask, **options)

    assert torch.autograd.gradcheck(function, tuple(own.values()), fast_mode=True)


LAYERS = {
    "plain": {},
    "grouped": {"num_kv_heads": 2, "head_dim": 3},
    "all": {"num_kv_heads": 1, "head_dim": 3, "value_head_dim": 4, "softcap": 2.0, "sinks": True, "scale": 0.7},
}


def plain_layer(layer: MultiHeadAttention, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """The layer written out, around the plain softmax."""

    def heads(linear, x: Tensor, size: int) -> Tensor:
        return (x @ linear.weight.T + linear.bias).reshape(*x.shape[:2], -1, size).transpose(1, 2)

    q = heads(layer.query_linear, query, layer.head_dim)
    k, v = heads(layer.key_linear, key, layer.head_dim), heads(layer.value_linear, key, layer.value_head_dim)
    options = {"scale": layer.scale, "softcap": layer.softcap, "sinks": layer.sinks}
    out = reference(Call(q, k, v, mask, options)).to(query.dtype)
    return out.transpose(1, 2).flatten(2) @ layer.out_linear.weight.T + layer.out_linear.bias


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_gradients_of_a_layer(mask, options):
    torch.manual_seed(0)
    layer = MultiHeadAttention(E, 4 if options else 2, **options, key_size=E - 1)
    if layer.sinks is not None:
        torch.nn.init.normal_(layer.sinks)
    if mask is not None and mask.ndim == 4 and mask.shape[1] == H:
        mask = mask[:, : layer.num_heads]
    inputs = [rand(B, LQ, E, seed=7).float(), rand(B, LK, E - 1, seed=8).float()]
    upstream = rand(B, LQ, E, seed=9).float()

    def grads(function, dtype):
        moved = [x.to(dtype).requires_grad_() for x in inputs]
        layer.to(dtype)
        found = torch.autograd.grad(
            function(*moved), [*moved, *layer.parameters()], upstream.to(dtype), materialize_grads=True
        )
        return torch.cat([gradient.double().flatten() for gradient in found]).numpy()

    written_out, ours = (lambda q, k: plain_layer(layer, q, k, mask)), lambda q, k: layer(q, k, k, mask)
    exact, plain32 = grads(written_out, torch.float64), grads(written_out, torch.float32)
    found, found32 = grads(ours, torch.float64), grads(ours, torch.float32)
    assert largest_error(found, exact) <= 1e-12
    assert largest_error(found32, exact) <= bound(largest_error(plain32, exact), exact)
