"""Drawn calls of `attend`: sizes, values, every kind of mask and any of them together, and how far rounding may go."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from isoformer.models import masks
from isoformer.models.attention import attend

KINDS = ("padding", "lengths", "causal", "window", "prefix", "segments", "square", "rows", "heads")
DTYPES = (torch.float64, torch.float32)


@dataclass(frozen=True)
class Call:
    """What `attend` is called with."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, H, Lq, Lk"""
        batch, heads, queries, _ = self.query.shape
        return batch, heads, queries, self.key.shape[2]

    def run(self) -> Tensor:
        return attend(self.query, self.key, self.value, self.mask, **self.options)

    def visible(self) -> Tensor:
        """(B, H, Lq, Lk): which keys take part, of mask and bias together."""
        seen = torch.ones(self.sizes, dtype=torch.bool)
        if self.mask is not None:
            seen = seen & masks.normalize(self.mask, *self.sizes)
        if (bias := self.options.get("bias")) is not None:
            seen = seen & (bias != float("-inf"))
        return seen

    def at(self, *, rows: Any = slice(None), queries: Any = slice(None), keys: Any = slice(None)) -> "Call":
        """The same call of some batch rows, queries and keys alone, in the order that the indices give."""
        options = dict(self.options)
        if "bias" in options:
            options["bias"] = options["bias"].expand(self.sizes)[rows][:, :, queries][:, :, :, keys]
        mask = self.mask
        if mask is not None:
            mask = masks.normalize(mask, *self.sizes).expand(self.sizes)[rows][:, :, queries][:, :, :, keys]
        query, key, value = self.query[rows][:, :, queries], self.key[rows][:, :, keys], self.value[rows][:, :, keys]
        return Call(query, key, value, mask, options)

    def clone(self) -> "Call":
        """With values of its own, to be written over."""
        return replace(self, query=self.query.clone(), key=self.key.clone(), value=self.value.clone())

    def masked(self, mask: Tensor | None) -> "Call":
        return replace(self, mask=mask)

    def to(self, dtype: torch.dtype) -> "Call":
        options = {name: x.to(dtype) if isinstance(x, Tensor) else x for name, x in self.options.items()}
        return replace(
            self, query=self.query.to(dtype), key=self.key.to(dtype), value=self.value.to(dtype), options=options
        )


def reference(call: Call) -> Tensor:
    """The equation of `attend` in float64, each row over the keys that it sees and no others."""
    batch, heads, queries, _ = call.sizes
    seen, wide = call.visible(), call.to(torch.float64)
    s = raw_scores(wide)
    out = torch.zeros(batch, heads, queries, call.value.shape[3], dtype=torch.float64)
    group = heads // call.key.shape[1]
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (batch, heads, queries))).reshape(-1, 3).tolist():
        keys = seen[b, h, i].nonzero()[:, 0]
        if not len(keys):
            continue
        row = s[b, h, i, keys]
        sink = [] if call.options.get("sinks") is None else [wide.options["sinks"][h, None]]
        shares = torch.cat([row, *sink]).softmax(0)[: len(keys)]
        out[b, h, i] = shares @ wide.value[b, h // group, keys]
    return out


def raw_scores(call: Call, *, biased: bool = True) -> Tensor:
    """(B, H, Lq, Lk): scaled, capped and biased, not masked."""
    options = call.options
    scale = options.get("scale")
    keys = call.key.repeat_interleave(call.sizes[1] // call.key.shape[1], 1)
    s = (call.query.shape[3] ** -0.5 if scale is None else scale) * call.query @ keys.mT
    if (cap := options.get("softcap")) is not None:
        s = cap * (s / cap).tanh()
    return s + options["bias"] if biased and options.get("bias") is not None else s


def rounding(call: Call) -> Tensor:
    """(B, H, Lq, 1): how far a run in the call's dtype may be from the exact answer, to first order in u = eps / 2.

    Worst cases of sums in any order (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition,
    chapter 3), over what a row sees; exp and tanh are taken to be right to 4 u. With S the largest score,
    before or after the bias:

        a score      d = u * ((D + 2) * max_j |scale| |q| . |k_j| + 8 S)
        a weight     2 d + u * (2 S + 4) of itself before it is divided by the sum; as much again, and Lk u, after
        the answer   (4 d + u * (4 S + 2 Lk + 12)) * max_j |v_j|
    """
    u, wide = torch.finfo(call.query.dtype).eps / 2, call.to(torch.float64)
    seen, scale = call.visible(), wide.options.get("scale")
    plain = {"scale": None if scale is None else abs(scale)}
    products = raw_scores(Call(wide.query.abs(), wide.key.abs(), wide.value, options=plain))
    s = torch.maximum(raw_scores(wide).abs(), raw_scores(wide, biased=False).abs())
    largest = _max(s, seen)
    if (sinks := wide.options.get("sinks")) is not None:
        largest = largest.maximum(sinks.abs()[:, None, None])
    d = u * ((call.query.shape[3] + 2) * _max(products, seen) + 8 * largest)
    values = wide.value.repeat_interleave(call.sizes[1] // call.key.shape[1], 1).abs().amax(-1)[:, :, None]
    return (4 * d + u * (4 * largest + 2 * call.sizes[3] + 12)) * _max(values.expand(call.sizes), seen)


def _max(x: Tensor, seen: Tensor) -> Tensor:
    """The largest of a row where seen, 0 where nothing is."""
    return x.where(seen, 0.0).amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:3], 1)


def assert_same(have: Tensor, want: Tensor, allowed: Tensor) -> None:
    """have == want but for rounding; NaN is never the same."""
    difference = (have.double() - want.double()).abs()
    assert (difference <= allowed).all(), (
        f"off by {difference.max():.3e}; {(difference / allowed).max():.2f} of allowed"
    )


@st.composite
def calls(
    draw: st.DrawFn,
    *,
    kinds: tuple[str, ...] = KINDS,
    bias: bool = True,
    least_keys: int = 1,
    square: bool = False,
    **fixed: Any,
) -> Call:
    """A call with none to all `kinds` of masks together. square: as many keys as queries."""
    batch, kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    head_dim, value_dim = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    keys = draw(st.integers(least_keys, 12))
    queries = keys if square else draw(st.integers(1, 12))
    heads, dtype, random = kv_heads * group, draw(st.sampled_from(DTYPES)), generator(draw)
    chosen = draw(st.lists(st.sampled_from(kinds), unique=True, max_size=3)) if kinds else []
    options = draw(_options(batch, heads, queries, keys, bias=bias)) | fixed

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

    for name in ("sinks", "bias"):
        if isinstance(shape := options.get(name), tuple):
            options[name] = normal(*shape)
    if draw(st.booleans()) and "bias" in options:
        options["bias"][bits(random, 0.3, *options["bias"].shape)] = float("-inf")
    parts = [build_mask(kind, draw, random, batch, heads, queries, keys) for kind in chosen]
    mask = reduce(torch.logical_and, parts) if parts else None
    spread = draw(st.sampled_from([1.0, 0.1, 10.0]))
    query, key = normal(batch, heads, queries, head_dim) * spread, normal(batch, kv_heads, keys, head_dim)
    return Call(query, key, normal(batch, kv_heads, keys, value_dim), mask, options)


@st.composite
def _options(draw: st.DrawFn, batch: int, heads: int, queries: int, keys: int, *, bias: bool) -> dict[str, Any]:
    """scale and softcap as they are, sinks and bias as the shapes that they have; each often absent."""
    shape = tuple(draw(st.sampled_from([1, size])) for size in (batch, heads, queries, keys))
    chosen = {
        "scale": st.sampled_from([1.0, 0.3, -0.7]),
        "softcap": st.sampled_from([0.5, 5.0, 50.0]),
        "sinks": st.just((heads,)),
        "bias": st.just(shape),
    }
    names = [name for name in chosen if (bias or name != "bias") and draw(st.booleans())]
    return {name: draw(chosen[name]) for name in names}


def build_mask(
    kind: str, draw: st.DrawFn, random: torch.Generator, batch: int, heads: int, queries: int, keys: int
) -> Tensor:
    """A mask of one of KINDS, (B or 1, H or 1, Lq or 1, Lk); most can leave rows without any key."""
    density = draw(st.sampled_from([0.0, 0.3, 0.7, 0.95]))
    upto = torch.randint(0, keys + 1, (batch,), generator=random)
    match kind:
        case "padding":
            return masks.padding(bits(random, density, batch, keys))
        case "lengths":
            return masks.lengths(upto, keys)
        case "causal":
            return masks.causal(queries, keys)
        case "window":
            sides = st.none() | st.integers(0, keys)
            return masks.sliding_window(queries, keys, draw(sides), draw(sides))
        case "prefix":
            return masks.prefix(queries, keys, upto)
        case "segments":
            numbers = (torch.randint(0, 4, (batch, length), generator=random) for length in (queries, keys))
            return masks.segments(*numbers, padding=0)
        case "square":
            return bits(random, density, 1, 1, queries, keys)
        case "rows":
            return bits(random, density, batch, 1, queries, keys)
        case _:
            return bits(random, density, batch, heads, queries, keys)


def bits(random: torch.Generator, density: float, *shape: int) -> Tensor:
    return torch.rand(shape, generator=random) < density


def generator(draw: Callable[..., Any]) -> torch.Generator:
    """Values come from one drawn seed: shrinking is for sizes and kinds."""
    return torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
