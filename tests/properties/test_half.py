"""Scores beyond what float16 holds: in PyTorch, in ONNX Runtime and in the reference evaluator, which widens nothing.

Every score is -G, 0 or G with G = 60000 or 60000², so the softmax is 1/n over the n visible keys of the largest
score and beyond every precision's sight for the others. What is left of rounding: the weight 1/n and the answer
may each be rounded to the dtype, u of itself, and the sum of Lk terms is float32's.
"""

from functools import cache

import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from isoformer.export import reference
from isoformer.export.graph import to_onnx
from isoformer.models.attention import attend
from isoformer.models.signature import Signature, TensorSpec
from isoformer.runtime.package import Package
from isoformer.runtime.package import Signature as RuntimeSignature
from isoformer.runtime.session import Session
from tests.properties.drawn import generator

H, K, D, V = 4, 2, 3, 5


class Attend(nn.Module):
    """`attend` as somebody exports it by itself."""

    def forward(self, query, key, value, mask, bias=None):
        return attend(query, key, value, mask, bias=bias, scale=1.0)


def signature(biased: bool) -> Signature:
    batch, queries, keys = "batch_size", "query_length", "key_length"
    inputs = [
        TensorSpec("query", "float16", (batch, H, queries, D)),
        TensorSpec("key", "float16", (batch, K, keys, D)),
        TensorSpec("value", "float16", (batch, K, keys, V)),
        TensorSpec("mask", "int64", (batch, queries, keys), kind="mask"),
    ]
    if biased:
        inputs.append(TensorSpec("bias", "float16", (batch, H, queries, keys)))
    return Signature(tuple(inputs), (TensorSpec("out", "float16", (batch, H, queries, V)),))


@pytest.fixture(scope="session")
def runners(tmp_path_factory):
    """The graph of an opset, with or without a bias, in each runtime."""

    @cache
    def build(opset, biased):
        folder, edge = tmp_path_factory.mktemp("half"), signature(biased)
        ir.save(to_onnx(Attend(), edge, opset), folder / "model.onnx")
        session = Session(Package(folder, {}, RuntimeSignature.read(edge.to_dict())), threads=1)
        return {"onnxruntime": session.run, "reference": reference.runner(folder / "model.onnx")}

    return build


def draw(data: st.DataObject, dtype: torch.dtype, biased: bool) -> dict[str, Tensor]:
    """Inputs whose scores are -G, 0 or G, and the bias as large."""
    batch, queries, keys = (data.draw(st.integers(1, most)) for most in (3, 5, 9))
    random = generator(data.draw)

    def signs(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=random).to(dtype)

    query, key = torch.zeros(batch, H, queries, D, dtype=dtype), torch.zeros(batch, K, keys, D, dtype=dtype)
    query[..., 0] = data.draw(st.sampled_from([1.0, 60000.0]))
    key[..., 0] = 60000 * signs(batch, K, keys)
    inputs = {
        "query": query,
        "key": key,
        "value": torch.randn(batch, K, keys, V, generator=random).to(dtype),
        "mask": torch.randint(0, 2, (batch, queries, keys), generator=random),
    }
    if data.draw(st.booleans()):  # a key that must not be read scores higher than those that may
        seen = torch.arange(keys) >= data.draw(st.integers(0, keys))
        key[..., 0] = torch.where(seen, -60000.0, 60000.0).to(dtype)
        inputs["mask"] = seen.to(torch.int64).expand(batch, queries, keys).contiguous()
    if biased:
        inputs["bias"] = 60000 * signs(batch, H, queries, keys)
        inputs["bias"][torch.rand(inputs["bias"].shape, generator=random) < 0.2] = float("-inf")
    return inputs


def check(out: Tensor, inputs: dict[str, Tensor]) -> None:
    wide = {name: x.double() for name, x in inputs.items()}
    key, value = (wide[name].repeat_interleave(H // K, 1) for name in ("key", "value"))
    s = (wide["query"] @ key.mT + wide.get("bias", 0.0)).masked_fill(inputs["mask"][:, None] == 0, float("-inf"))
    top = (s == s.amax(-1, keepdim=True)) & (s != float("-inf"))
    shares = top.double() / top.sum(-1, keepdim=True).clamp(min=1)
    want, size = shares @ value, shares @ value.abs()
    allowed = (torch.finfo(out.dtype).eps + s.shape[-1] * torch.finfo(torch.float32).eps) * size  # eps is 2 u
    assert out.isfinite().all()
    assert ((out.double() - want).abs() <= allowed).all()
    assert (out[~top.any(-1)] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@given(data=st.data())
def test_scores_beyond_half_precision_in_torch(dtype, data):
    inputs = draw(data, dtype, data.draw(st.booleans()))
    softcap = data.draw(st.sampled_from([None, None, 1000.0])) if "bias" not in inputs else None
    check(attend(**inputs, scale=1.0, softcap=softcap), inputs)


@pytest.mark.parametrize("biased", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["mask", "bias"])
@pytest.mark.parametrize("opset", [20, 23])
@given(data=st.data())
def test_scores_beyond_half_precision_in_a_graph(opset, biased, data, runners):
    inputs = draw(data, torch.float16, biased)
    arrays = {name: x.numpy() for name, x in inputs.items()}
    for run in runners(opset, biased).values():
        check(torch.from_numpy(run(arrays)["out"]), inputs)
