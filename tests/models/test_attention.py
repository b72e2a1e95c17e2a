import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isoformer.models import masks
from isoformer.models.attention import MultiHeadAttention, attend

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


def naive(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """The softmax over the visible keys, one number at a time; mask (B, H, LQ, LK)."""
    batch, heads, rows, size = query.shape
    group = heads // key.shape[1]
    scale = 1 / math.sqrt(size) if scale is None else scale
    q, k, v = query.tolist(), key.tolist(), value.tolist()
    out = [[[[0.0] * value.shape[3] for _ in range(rows)] for _ in range(heads)] for _ in range(batch)]
    for b, h, i in product(range(batch), range(heads), range(rows)):
        seen = [j for j in range(key.shape[2]) if mask is None or mask[b, h, i, j]]
        scores = [scale * dot(q[b][h][i], k[b][h // group][j]) for j in seen]
        weights = [math.exp(score - max(scores)) for score in scores]
        for e in range(value.shape[3]) if seen else ():
            column = [v[b][h // group][j][e] for j in seen]
            out[b][h][i][e] = dot(weights, column) / sum(weights)
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


# MultiHeadAttention


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"hidden_size": 33, "num_heads": 5}, "hidden_size 33 is not a multiple of num_heads 5"),
        ({"hidden_size": 33, "num_heads": 3, "num_kv_heads": 2}, "num_heads 3 is not a multiple of num_kv_heads 2"),
        ({"hidden_size": 33, "num_heads": 3, "num_kv_heads": 6}, "num_heads 3 is not a multiple of num_kv_heads 6"),
        ({"hidden_size": 33, "num_heads": 3, "num_kv_heads": 0}, "num_heads 3 is not a multiple of num_kv_heads 0"),
        ({"hidden_size": 33, "num_heads": 0}, "num_heads 0"),
        ({"hidden_size": 33, "num_heads": -3}, "num_heads -3"),
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
