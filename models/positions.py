"""Where tokens stand: the numbers of their positions, and what attention and embeddings make of them.

    LearnedPositions, SinusoidalPositions   added to the embeddings
    Rotary                                  turns queries and keys
    alibi, RelativeBias, ShawBias           added to the scores (`bias` of `attention.attend`)

Letters are those of `attention.py`, and R the dimensions of a head that are turned.
"""

import math
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoformer.models import masks

MOST_VALUES = 2**28  # of a table that is computed


class LearnedPositions(nn.Module):
    """A trained table: row p is added to the token at position p."""

    def __init__(self, max_positions: int, hidden_size: int) -> None:
        super().__init__()
        _at_least_one(max_positions=max_positions, hidden_size=hidden_size)
        self.weight = nn.Parameter(torch.empty(max_positions, hidden_size).normal_(std=0.02))

    def forward(self, positions: Tensor | int) -> Tensor:
        """positions (B, L) → (B, L, E); a length L stands for positions 0 … L-1 → (L, E).

        Raises ValueError when a position is not in the table.
        """
        return _look_up(self.weight, positions)


class SinusoidalPositions(nn.Module):
    """Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), section 3.5:

    PE(p, 2i) = sin(p / 10000^(2i/E))    PE(p, 2i+1) = cos(p / 10000^(2i/E))

    interleaved=False: all sines first, then all cosines, as Marian has them.
    """

    weight: Tensor

    def __init__(self, max_positions: int, hidden_size: int, *, interleaved: bool = True) -> None:
        super().__init__()
        _at_least_one(max_positions=max_positions, hidden_size=hidden_size)
        if max_positions * hidden_size > MOST_VALUES:
            raise ValueError(f"{max_positions} positions of {hidden_size} values are more than {MOST_VALUES:,}")
        even = torch.arange(0, hidden_size, 2, dtype=torch.float64)
        angles = torch.arange(max_positions, dtype=torch.float64)[:, None] / 10000 ** (even / hidden_size)
        table = torch.empty(max_positions, hidden_size, dtype=torch.float64)
        half = even.numel()  # the sines, one more than the cosines where the size is odd
        places = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(half), slice(half, None))
        table[:, places[0]] = angles.sin()
        table[:, places[1]] = angles.cos()[:, : hidden_size // 2]
        self.register_buffer("weight", table.to(torch.get_default_dtype()), persistent=False)

    def forward(self, positions: Tensor | int) -> Tensor:
        """positions (B, L) → (B, L, E); a length L stands for positions 0 … L-1 → (L, E).

        Raises ValueError when a position is not in the table.
        """
        return _look_up(self.weight, positions)


def _look_up(table: Tensor, positions: Tensor | int) -> Tensor:
    size = table.shape[0]
    if isinstance(positions, Tensor):
        if positions.is_floating_point() or positions.dtype == torch.bool:
            raise ValueError(f"positions are whole numbers, not {positions.dtype}")
        if not torch.compiler.is_compiling() and positions.numel():
            low, high = (int(end) for end in positions.aminmax())
            if low < 0 or high >= size:
                raise ValueError(f"position {low if low < 0 else high} is not in 0 … {size - 1}, which the model has")
        return F.embedding(positions, table)
    if positions < 0 or positions > size:
        raise ValueError(f"length {positions} is over the {size} positions that the model has, or below 0")
    return table[:positions]  # a slice, not a gather: one cheap node in the graph


def count_real(attention_mask: Tensor) -> Tensor:
    """(B, L) positions that count the real tokens of each row: 0 for its first, wherever it stands.

    Left padding and holes then change nothing for the tokens around them (contract, point 6).
    """
    if attention_mask.ndim != 2:
        raise ValueError(f"positions are counted along a mask (batch, keys), not {tuple(attention_mask.shape)}")
    return (attention_mask.to(torch.int64).cumsum(1) - 1).clamp(min=0)


def count_in_segments(segment_ids: Tensor) -> Tensor:
    """(B, L) positions that count from 0 in every segment (B, L) of a packed row, as if it stood alone."""
    length = segment_ids.shape[1]
    earlier = masks.segments(segment_ids) & masks.causal(length, length, segment_ids.device)  # (B, 1, L, L)
    return earlier.sum(-1)[:, 0] - 1


def count_not_pad(input_ids: Tensor, pad: int) -> Tensor:
    """(B, L) RoBERTa's positions: tokens that are not `pad` count from pad + 1, padding stands at `pad`."""
    real = (input_ids != pad).to(torch.int64)
    return real.cumsum(1) * real + pad


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Turns pairs of dimensions of every vector, each pair by its own angle:

        (a, b) → (a cos - b sin, b cos + a sin)

    x (B, H, L, D), cos and sin (B or 1, 1, L, R/2). Pair i is (x[i], x[i + R/2]), the layout of Llama
    and GPT-NeoX, or (x[2i], x[2i + 1]) when `interleaved`, the layout of the paper and GPT-J. The
    dimensions from R on pass through. Returns (B, H, L, D).

    Raises ValueError when cos and sin hold another number of pairs than each other, or more than x.
    """
    half, size = cos.shape[-1], x.shape[-1]
    if half != sin.shape[-1]:
        raise ValueError(f"cos holds {half} angles and sin {sin.shape[-1]}")
    if 2 * half > size:
        raise ValueError(f"{half} angles turn {2 * half} dimensions; the head has {size}")
    turned = x[..., : 2 * half]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else (turned[..., :half], turned[..., half:])
    pair = a * cos - b * sin, b * cos + a * sin
    turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return turned if 2 * half == size else torch.cat((turned, x[..., 2 * half :]), -1)


@dataclass(frozen=True)
class RotaryScaling:
    """How rotary frequencies change for sequences longer than those of the training: here, not at all.

    The rules that do change them are the subclasses; SCALINGS names them.
    """

    @property
    def attention_scaling(self) -> float:
        """What cos and sin are multiplied by, so the scores by its square."""
        return 1.0

    def inverse_frequencies(self, base: float, rotary_dim: int) -> Tensor:
        """(R/2,) in float64: base^(-2i/R), changed by the rule."""
        return base ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)

    def at(self, inv_freq: Tensor, positions: Tensor) -> Tensor:
        """The inverse frequencies for these positions (B, L), broadcastable to (B, L, R/2)."""
        del positions
        return inv_freq

    @staticmethod
    def from_config(parameters: dict[str, Any], max_positions: int | None = None) -> "RotaryScaling":
        """The rule of a Hugging Face configuration's `rope_parameters` (before transformers 5: `rope_scaling`).

        max_positions: the configuration's `max_position_embeddings`, for rules that need it. `rope_theta`
        and `partial_rotary_factor` are passed over: they are arguments of Rotary.

        Raises ValueError for an unknown rule, for a key that the rule does not have (it may mean
        another function) and for one that is missing, with those that there are.
        """
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind not in SCALINGS:
            raise ValueError(f"rope_type {kind!r} is not one of {', '.join(SCALINGS)}")
        rule = SCALINGS[kind]
        given = {k: v for k, v in parameters.items() if v is not None and k not in _NOT_THE_RULES}
        if "original_max_position_embeddings" in given:
            given["original_max_positions"] = given.pop("original_max_position_embeddings")
        takes = {field.name: field.default is MISSING for field in fields(rule)}  # name → whether it is required
        if max_positions is not None:
            given |= {
                k: max_positions for k in ("max_positions", "original_max_positions") if k in takes and k not in given
            }
            if rule is YarnScaling and "factor" not in given:
                given["factor"] = max_positions / given["original_max_positions"]
        unknown = [name for name in given if name not in takes]
        missing = [name for name, required in takes.items() if required and name not in given]
        if unknown or missing:
            problem = f"does not have {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
            raise ValueError(f"rope_type {kind!r} {problem}; it takes {', '.join(takes) or 'nothing'}")
        return rule(**given)


@dataclass(frozen=True)
class LinearScaling(RotaryScaling):
    """Position interpolation: every position divided by `factor`.

    Chen et al. 2023, https://arxiv.org/abs/2306.15595, section 2.3.
    """

    factor: float

    def __post_init__(self) -> None:
        _positive(factor=self.factor)

    def inverse_frequencies(self, base: float, rotary_dim: int) -> Tensor:
        return super().inverse_frequencies(base, rotary_dim) / self.factor


@dataclass(frozen=True)
class DynamicNTKScaling(RotaryScaling):
    """A base that grows with the sequence, once it is longer than `max_positions`:

        base * (factor * n / max_positions - (factor - 1))^(R / (R - 2))

    with n the largest position + 1, at least `max_positions`. n is each row's own, so rows of a batch do not
    disturb each other (transformers takes the largest of the batch).

    A longer sequence turns all of its keys differently. So decoding in steps against cached keys, turned when
    n was smaller, is not what one pass over the whole sequence computes, here as in every implementation.

    bloc97 and emozilla 2023, in Peng et al. 2023, https://arxiv.org/abs/2309.00071, sections 3.1 and 3.3.
    """

    factor: float
    max_positions: int

    def __post_init__(self) -> None:
        _positive(factor=self.factor, max_positions=self.max_positions)

    def inverse_frequencies(self, base: float, rotary_dim: int) -> Tensor:
        if rotary_dim < 4:
            raise ValueError(f"rotary_dim is {rotary_dim}; dynamic NTK scaling needs at least 4")
        return super().inverse_frequencies(base, rotary_dim)

    def at(self, inv_freq: Tensor, positions: Tensor) -> Tensor:
        length = (positions.amax(-1) + 1).clamp(min=self.max_positions).to(inv_freq.dtype)[:, None, None]
        growth = self.factor * length / self.max_positions - (self.factor - 1)  # (B, 1, 1)
        pairs = inv_freq.shape[0]
        return inv_freq * growth ** (-torch.arange(pairs, dtype=inv_freq.dtype, device=inv_freq.device) / (pairs - 1))


@dataclass(frozen=True)
class YarnScaling(RotaryScaling):
    """YaRN: frequencies that turn fewer than `beta_slow` times within `original_max_positions` are divided
    by `factor`, those that turn more than `beta_fast` times are kept, with a ramp between the two.

    `attention_factor` multiplies cos and sin: 0.1 ln(factor) + 1 unless given; with `mscale` and
    `mscale_all_dim` the quotient of 0.1 mscale ln(factor) + 1 over the same of `mscale_all_dim` (DeepSeek,
    whose models also change the attention's own scale). `truncate` rounds the ends of the ramp outwards.

    Peng et al. 2023, https://arxiv.org/abs/2309.00071, sections 3.2 and 3.4.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _positive(factor=self.factor, original_max_positions=self.original_max_positions, beta_slow=self.beta_slow)
        if self.attention_factor is not None:
            _positive(attention_factor=self.attention_factor)
        if self.beta_fast < self.beta_slow:
            raise ValueError(f"beta_fast {self.beta_fast} is below beta_slow {self.beta_slow}")

    @property
    def attention_scaling(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._magnitude(self.mscale) / self._magnitude(self.mscale_all_dim)
        return self._magnitude(1.0)

    def _magnitude(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def inverse_frequencies(self, base: float, rotary_dim: int) -> Tensor:
        def pair_that_turns(times: float) -> float:
            return rotary_dim * math.log(self.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(base))

        low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        width = high - low or 0.001  # the published code's step where the ramp has no width
        ramp = ((torch.arange(rotary_dim // 2, dtype=torch.float64) - low) / width).clamp(0, 1)
        inv_freq = super().inverse_frequencies(base, rotary_dim)
        return inv_freq * (1 - ramp) + inv_freq / self.factor * ramp


@dataclass(frozen=True)
class Llama3Scaling(RotaryScaling):
    """Llama 3.1: of a frequency that turns t times within `original_max_positions`,

        t < low_freq_factor     divided by `factor`
        t > high_freq_factor    kept
        between                 the two mixed, linearly in t

    Grattafiori et al. 2024, https://arxiv.org/abs/2407.21783; the rule is that of the code published with
    it, https://github.com/meta-llama/llama-models (`apply_scaling`).
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        _positive(factor=self.factor, original_max_positions=self.original_max_positions)
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} is not between 0 and high_freq_factor {self.high_freq_factor}"
            )

    def inverse_frequencies(self, base: float, rotary_dim: int) -> Tensor:
        inv_freq = super().inverse_frequencies(base, rotary_dim)
        turns = self.original_max_positions * inv_freq / (2 * math.pi)
        kept = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return inv_freq * kept + inv_freq / self.factor * (1 - kept)


# By the `rope_type` of Hugging Face configurations.
SCALINGS: dict[str, type[RotaryScaling]] = {
    "default": RotaryScaling,
    "linear": LinearScaling,
    "dynamic": DynamicNTKScaling,
    "yarn": YarnScaling,
    "llama3": Llama3Scaling,
}
_NOT_THE_RULES = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


class Rotary(nn.Module):
    """Rotary position embeddings: pair i of a query or key at position p is turned by the angle

        p * base^(-2i/R),    i = 0 … R/2 - 1

    so that a score depends on the distance of its query and key alone. Only the first R = `rotary_dim`
    dimensions of a head are turned (all unless given), in the layout that `rotate` describes; `scaling`
    changes the frequencies.

    Angles are computed in float32, and in float64 for float64 vectors. The frequencies are kept in float64
    whatever precision the model is moved to: rounded to half precision they would be other frequencies.

    Raises ValueError when rotary_dim is odd or over head_dim.

    Su et al. 2021, https://arxiv.org/abs/2104.09864, section 3.4.2.
    """

    inv_freq: Tensor

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        interleaved: bool = False,
        scaling: RotaryScaling | None = None,
    ) -> None:
        super().__init__()
        rotary_dim = head_dim if rotary_dim is None else rotary_dim
        if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > head_dim:
            raise ValueError(f"rotary_dim {rotary_dim} is not an even number from 2 to head_dim {head_dim}")
        if not 1 < base < math.inf:
            raise ValueError(f"base is {base}; it must be above 1 and finite")
        self.head_dim = head_dim
        self.base = base
        self.rotary_dim = rotary_dim
        self.interleaved = interleaved
        self.scaling = RotaryScaling() if scaling is None else scaling
        self.register_buffer("inv_freq", self.scaling.inverse_frequencies(base, rotary_dim), persistent=False)

    def forward(self, x: Tensor, positions: Tensor | int) -> Tensor:
        """x (B, H, L, D), positions (B or 1, L) integers, or L for 0 … L-1 → x turned, (B, H, L, D).

        Raises ValueError when positions are not such integers or x has another head size.
        """
        self.check(x, positions)
        return rotate(x, *self.cos_sin(positions, x.dtype), interleaved=self.interleaved)

    def cos_sin(self, positions: Tensor | int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What `rotate` takes, (B or 1, 1, L, R/2) each: computed once, it serves every layer."""
        if not isinstance(positions, Tensor):
            positions = torch.arange(positions, device=self.inv_freq.device)[None]
        exact = _at_least_float32(dtype)
        inv_freq = self.scaling.at(self.inv_freq.to(exact), positions)
        angles = (positions[..., None].to(exact) * inv_freq)[:, None]
        cos, sin, factor = angles.cos(), angles.sin(), self.scaling.attention_scaling
        if factor != 1.0:
            cos, sin = cos * factor, sin * factor
        return cos.to(dtype), sin.to(dtype)

    def check(self, x: Tensor, positions: Tensor | int) -> None:
        """Raises ValueError when `forward` would."""
        if x.ndim != 4 or x.shape[3] != self.head_dim:
            raise ValueError(f"rotary takes (batch, heads, length, {self.head_dim}), not {tuple(x.shape)}")
        if isinstance(positions, Tensor):
            if positions.ndim != 2 or positions.is_floating_point():
                raise ValueError(
                    f"positions are (batch, length) integers, not {positions.dtype} of shape {tuple(positions.shape)}"
                )
            sizes = tuple(positions.shape)
        else:
            sizes = (1, positions)
        # While a graph is traced the sizes are symbols, and comparing them would fix them.
        if not torch.compiler.is_compiling() and (sizes[0] not in (1, x.shape[0]) or sizes[1] != x.shape[2]):
            raise ValueError(f"positions {sizes} do not fit x {tuple(x.shape)}: one for each batch row and token")

    def check_turns(self, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Raises ValueError unless `rotate` can turn x by them."""
        for name, turn in (("cos", cos), ("sin", sin)):
            wanted = (x.shape[0], 1, x.shape[2], self.rotary_dim // 2)
            if turn.ndim != 4 or not masks.fits(turn, wanted, repeated=(0,)):
                raise ValueError(f"{name} has shape {tuple(turn.shape)}; for x {tuple(x.shape)} it is {wanted}")

    def _apply(self, fn: Any, recurse: bool = True) -> "Rotary":
        """Follows the model to another device, never to another precision."""
        super()._apply(fn, recurse)
        exact = self.scaling.inverse_frequencies(self.base, self.rotary_dim)
        self.inv_freq = exact.to(self.inv_freq.device)
        return self


def alibi_slopes(num_heads: int) -> Tensor:
    """(H,) in float64: 2^(-8i/H) for head i = 1 … H.

    For H that is not a power of two: those of the largest power n below it, then every other one of 2n
    heads, as the code published with the paper does.

    Raises ValueError when num_heads is below 1.
    """
    _at_least_one(num_heads=num_heads)
    closest = 2 ** (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * i / closest) for i in range(1, closest + 1)]
    slopes += [2 ** (-8 * i / (2 * closest)) for i in range(1, 2 * closest, 2)]
    return torch.tensor(slopes[:num_heads], dtype=torch.float64)


def alibi(
    num_heads: int,
    query_length: int,
    key_length: int,
    *,
    offset: Tensor | int | None = None,
    positions: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """(1 or B, H, Lq, Lk): -slope * |distance of key and query|, a bias for the scores.

    offset: position of query row 0, a number or (B,); Lk - Lq unless given. positions: of the keys (B, Lk)
    instead, see `masks.distance`. (Code that adds slope * key
    position instead, BLOOM's for one, differs by one number a row under a causal mask: same weights.)

    Raises ValueError when num_heads is below 1.

    Press et al. 2021, https://arxiv.org/abs/2108.12409, section 3.
    """
    behind = masks.distance(query_length, key_length, device, offset=offset, positions=positions)
    slopes = alibi_slopes(num_heads).to(behind.device, _at_least_float32(dtype))
    return (behind.abs() * -slopes[:, None, None]).to(dtype)


class RelativeBias(nn.Module):
    """T5's bias for the scores: one learned number a head for each bucket of distances. A key d behind its
    query falls, of n buckets, the first e = n // 2 of which hold one distance each, into

        d                                                                if d < e
        min(e + floor((n - e) log(d / e) / log(max_distance / e)), n - 1)   else

    `bidirectional` gives n = num_buckets / 2 to each side; else n = num_buckets, and keys ahead count as d = 0.

    The buckets are a table made in whole numbers: where the quotient of the logarithms is itself whole,
    floating point falls on either side, each runtime on its own.

    Raises ValueError for num_heads below 1, too few or an odd number of buckets, or a max_distance that
    leaves no room for the logarithm.

    Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.1.
    """

    buckets: Tensor

    def __init__(
        self, num_heads: int, *, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
    ) -> None:
        super().__init__()
        _at_least_one(num_heads=num_heads)
        sides = 2 if bidirectional else 1
        if num_buckets < 2 * sides or num_buckets % sides:
            wanted = "an even number of buckets, at least 4" if bidirectional else "at least 2 buckets"
            raise ValueError(f"num_buckets is {num_buckets}; bidirectional={bidirectional} needs {wanted}")
        per_side = num_buckets // sides
        if max_distance <= per_side // 2:
            raise ValueError(f"max_distance {max_distance} is not over the {per_side // 2} distances with own buckets")
        behind = _buckets(per_side, max_distance)  # of distance 0 … max_distance
        ahead = [per_side + bucket if bidirectional else 0 for bucket in behind[:0:-1]]
        self.max_distance = max_distance
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads).normal_(std=0.02))
        self.register_buffer("buckets", torch.tensor(ahead + behind), persistent=False)  # -max_distance … max_distance

    def forward(
        self,
        query_length: int,
        key_length: int,
        *,
        offset: Tensor | int | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """(1 or B, H, Lq, Lk); offset: position of query row 0, a number or (B,), Lk - Lq unless given;
        positions: of the keys (B, Lk) instead, see `masks.distance`."""
        where = {"offset": offset, "positions": positions}
        behind = masks.distance(query_length, key_length, self.weight.device, **where).squeeze(1)
        by_distance = F.embedding(self.buckets, self.weight)  # (2 * max_distance + 1, H)
        rows = behind.clamp(-self.max_distance, self.max_distance) + self.max_distance  # (1 or B, Lq, Lk)
        return F.embedding(rows, by_distance).permute(0, 3, 1, 2)


def _buckets(count: int, max_distance: int) -> list[int]:
    """T5's bucket of each distance 0 … max_distance, out of `count`.

    floor(n * log(d/e) / log(m/e)) is the number of k >= 1 with (d/e)^n >= (m/e)^k: powers of whole numbers.
    """
    e, n, m = count // 2, count - count // 2, max_distance
    steps = [m**k * e ** (n - k) for k in range(1, n)]  # (d/e)^n >= (m/e)^k as d^n >= m^k * e^(n - k)
    return [d if d < e else e + sum(d**n >= step for step in steps) for d in range(m + 1)]


class ShawBias(nn.Module):
    """Relative position embeddings of the keys: query · weight[clip(key position - query position, ±max_distance)].

    Not scaled: multiply by the attention's scale before adding it to the scores. Shaw et al. 2018,
    https://arxiv.org/abs/1803.02155, equation 4. Raises ValueError when a size is below 1.
    """

    def __init__(self, head_dim: int, max_distance: int) -> None:
        super().__init__()
        _at_least_one(head_dim=head_dim, max_distance=max_distance)
        self.max_distance = max_distance
        self.weight = nn.Parameter(torch.empty(2 * max_distance + 1, head_dim).normal_(std=0.02))

    def forward(self, query: Tensor, key_length: int, *, offset: Tensor | int | None = None) -> Tensor:
        """query (B, H, Lq, D) → (B, H, Lq, Lk); offset as in `alibi`. Raises ValueError for another head size."""
        if query.ndim != 4 or query.shape[3] != self.weight.shape[1]:
            size = self.weight.shape[1]
            raise ValueError(f"query has shape {tuple(query.shape)}; it is (batch, heads, length, {size})")
        behind = masks.distance(query.shape[2], key_length, query.device, offset=offset)
        rows = self.max_distance - behind.clamp(-self.max_distance, self.max_distance)  # (1 or B, 1, Lq, Lk)
        return (query @ self.weight.T).gather(-1, rows.expand(*query.shape[:3], key_length))


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not isinstance(number, int | float) or not 0 < number < math.inf:
            raise ValueError(f"{name} is {number!r}; it must be a positive number")
