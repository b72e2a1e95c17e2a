from itertools import product
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from isoformer.models.cache import KVCache, empty, scatter

B, K, P, L, D, V = 2, 3, 5, 2, 7, 11
properties = settings(max_examples=40, deadline=None)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# append


def test_new_keys_and_values_stand_behind_the_old():
    old, new = (rand(B, K, P, D), rand(B, K, P, V, seed=1)), (rand(B, K, L, D, seed=2), rand(B, K, L, V, seed=3))
    cache = KVCache(*old).append(*new)
    assert cache.length == P + L
    for have, first, last in zip(cache, old, new, strict=True):
        assert torch.equal(have[:, :, :P], first)
        assert torch.equal(have[:, :, P:], last)


def test_the_old_cache_stays_as_it_was():
    cache = KVCache(rand(B, K, P, D), rand(B, K, P, V))
    before = [x.clone() for x in cache]
    longer = cache.append(rand(B, K, L, D), rand(B, K, L, V))
    for x in longer:
        x.zero_()
    assert cache.length == P
    assert all(torch.equal(have, want) for have, want in zip(cache, before, strict=True))


def test_appending_in_parts_is_appending_the_whole():
    key, value = rand(B, K, P, D), rand(B, K, P, V, seed=1)
    cache = empty(B, K, D, V)
    for start, stop in ((0, 1), (1, 1), (1, 4), (4, 5)):
        cache = cache.append(key[:, :, start:stop], value[:, :, start:stop])
    assert torch.equal(cache.key, key)
    assert torch.equal(cache.value, value)


@pytest.mark.parametrize(("name", "axis"), list(product(("key", "value"), (0, 1, 3))))
def test_only_the_length_may_differ(name, axis):
    cache = KVCache(rand(B, K, P, D), rand(B, K, P, V))
    shapes = {"key": [B, K, L, D], "value": [B, K, L, V]}
    shapes[name][axis] += 1
    with pytest.raises(ValueError, match="cannot be appended") as error:
        cache.append(*(rand(*shape) for shape in shapes.values()))
    assert f"{tuple(shapes[name])} cannot be appended to a cache of {tuple(getattr(cache, name).shape)}" in str(
        error.value
    )


def test_what_has_not_four_axes_cannot_be_appended():
    with pytest.raises(ValueError, match=r"\(2, 3, 7\) cannot be appended to a cache of \(2, 3, 5, 7\)"):
        KVCache(rand(B, K, P, D), rand(B, K, P, V)).append(rand(B, K, D), rand(B, K, L, V))


def test_keys_and_values_that_differ_in_length_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 2, 7\).*\(2, 3, 3, 11\)"):
        empty(B, K, D, V).append(rand(B, K, 2, D), rand(B, K, 3, V))


def test_empty_holds_nothing():
    cache = empty(B, K, D, V, dtype=torch.float16)
    assert (cache.key.shape, cache.value.shape) == ((B, K, 0, D), (B, K, 0, V))
    assert cache.key.dtype == cache.value.dtype == torch.float16
    assert cache.length == 0
    assert empty(B, K, D).value.shape == (B, K, 0, D)


# scatter


def one_by_one(past: Tensor, update: Tensor, where: list[int], axis: int, circular: bool) -> Tensor:
    """past with each position of update written over it, by ONNX's text for TensorScatter."""
    out = past.clone()
    for b, first in enumerate(where):
        for step in range(update.shape[axis]):
            place = (first + step) % past.shape[axis] if circular else first + step
            out[b].select(axis - 1, place).copy_(update[b].select(axis - 1, step))
    return out


@properties
@given(data=st.data(), axis=st.integers(1, 3), circular=st.booleans(), from_behind=st.booleans())
def test_updates_stand_where_they_are_written(data, axis, circular, from_behind):
    sizes = [data.draw(st.integers(1, 4)) for _ in range(4)]
    past, length = rand(*sizes), data.draw(st.integers(0, sizes[axis]))
    update = rand(*(length if i == axis else size for i, size in enumerate(sizes)), seed=1)
    most = sizes[axis] - 1 if circular else sizes[axis] - length
    where = [data.draw(st.integers(0, most)) for _ in range(sizes[0])]
    before = past.clone()
    have = scatter(past, update, torch.tensor(where), axis=axis - 4 if from_behind else axis, circular=circular)
    assert torch.equal(have, one_by_one(past, update, where, axis, circular))
    assert torch.equal(past, before)


def onnx_scatter(past: Tensor, update: Tensor, where: Tensor | None, axis: int, mode: str) -> Tensor:
    """TensorScatter of opset 24 in ONNX's own evaluator."""
    tensors = {"past": past, "update": update} | ({} if where is None else {"where": where})
    kinds = {torch.float32: TensorProto.FLOAT, torch.int64: TensorProto.INT64}
    node = helper.make_node("TensorScatter", list(tensors), ["present"], axis=axis, mode=mode)
    values = [helper.make_tensor_value_info(n, kinds[t.dtype], t.shape) for n, t in tensors.items()]
    present = helper.make_tensor_value_info("present", TensorProto.FLOAT, past.shape)
    model = helper.make_model(
        helper.make_graph([node], "scatter", values, [present]), opset_imports=[helper.make_opsetid("", 24)]
    )
    (out,) = ReferenceEvaluator(model).run(None, {n: t.numpy() for n, t in tensors.items()})
    return torch.from_numpy(out)


@pytest.mark.parametrize(
    ("shape", "axis", "where", "mode"),
    [
        ((B, K, P, D), -2, [0, 3], "linear"),
        ((B, K, P, D), 2, [4, 3], "circular"),
        ((B, P, D), 1, [2, 0], "linear"),
        ((B, P, D), -2, [4, 1], "circular"),
        ((B, D, P), -1, [1, 3], "linear"),
        ((B, K, P, D), -2, None, "linear"),
        ((B, K, P, D), -2, None, "circular"),
    ],
)
def test_scatter_is_onnx_tensor_scatter(shape, axis, where, mode):
    past = rand(*shape)
    update = rand(*(L if size == P else size for size in shape), seed=1)
    indices = None if where is None else torch.tensor(where)
    have = scatter(past, update, indices, axis=axis, circular=mode == "circular")
    assert torch.equal(have, onnx_scatter(past, update, indices, axis, mode))


def test_without_indices_writing_begins_at_the_first_position():
    past, update = rand(B, K, P, D), rand(B, K, L, D, seed=1)
    assert torch.equal(scatter(past, update), torch.cat([update, past[:, :, L:]], 2))
    assert torch.equal(scatter(past, rand(B, K, P, D, seed=2)), rand(B, K, P, D, seed=2))


def test_scatter_has_a_gradient_for_both():
    past, update = rand(B, K, P, D).requires_grad_(), rand(B, K, L, D, seed=1).requires_grad_()
    scatter(past, update, torch.tensor([0, 3])).sum().backward()
    grads = cast(Tensor, past.grad), cast(Tensor, update.grad)
    assert torch.equal(grads[1], torch.ones(B, K, L, D))
    assert grads[0].sum(2)[0, 0, 0] == P - L
    assert not grads[0][1, :, 3:].any()


@pytest.mark.parametrize(
    ("update", "axis", "named"),
    [
        ((B, K, L, D + 1), -2, r"update \(2, 3, 2, 8\) does not fit \(2, 3, 5, 7\) along axis 2"),
        ((B, K, D), -2, r"update \(2, 3, 7\) does not fit \(2, 3, 5, 7\) along axis 2"),
        ((B + 1, K, L, D), -2, "does not fit"),
        ((B, K, L, D), 1, "along axis 1"),
        ((B, K, P, D), 0, "along axis 0"),
        ((B, K, P, D), -4, "along axis 0"),
        ((B, K, P, D), 4, "along axis 4"),
        ((B, K, P + 1, D), -2, "update has 6 positions along axis 2, the cache 5"),
    ],
)
def test_shapes_that_do_not_fit(update, axis, named):
    with pytest.raises(ValueError, match=named):
        scatter(rand(B, K, P, D), rand(*update), axis=axis)


@pytest.mark.parametrize("shape", [(), (1,), (B + 1,), (B, 1)], ids=str)
def test_one_index_a_sequence(shape):
    with pytest.raises(ValueError, match="write_indices has shape") as error:
        scatter(rand(B, K, P, D), rand(B, K, L, D), torch.zeros(shape, dtype=torch.int64))
    assert f"{shape}; it is ({B},)" in str(error.value)


@pytest.mark.parametrize("where", [[0, 4], [-1, 0], [5, 0]], ids=str)
def test_indices_that_leave_the_cache(where):
    update = rand(B, K, L, D)
    with pytest.raises(ValueError, match=r"writing 2 positions from \[.*\] on leaves a cache of 5") as error:
        scatter(rand(B, K, P, D), update, torch.tensor(where))
    assert str(where) in str(error.value)
    scatter(rand(B, K, P, D), update, torch.tensor(where), circular=True)


# export


class Writes(nn.Module):
    def __init__(self, circular: bool) -> None:
        super().__init__()
        self.circular = circular

    def forward(self, past: Tensor, update: Tensor, where: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        longer = KVCache(past, past).append(key, key)
        return scatter(past, update, where, circular=self.circular), longer.key


@pytest.mark.parametrize("circular", [True, False])
def test_caches_export_with_every_length_left_open(circular):
    def example(batch: int, size: int, length: int, more: int) -> tuple[Tensor, ...]:
        where = torch.arange(batch) % (size - length + 1)
        return rand(batch, K, size, D), rand(batch, K, length, D, seed=1), where, rand(batch, K, more, D, seed=2)

    batch, size, length, more = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "size", "length", "more"))
    shapes = ({0: batch, 2: size}, {0: batch, 2: length}, {0: batch}, {0: batch, 2: more})
    module = Writes(circular)
    program = torch.export.export(module, example(3, 11, 5, 7), dynamic_shapes=shapes, strict=False).module()
    for sizes in ((2, 5, 3, 1), (7, 13, 13, 2), (5, 2, 1, 11)):
        for have, want in zip(program(*example(*sizes)), module(*example(*sizes)), strict=True):
            assert torch.equal(have, want)
