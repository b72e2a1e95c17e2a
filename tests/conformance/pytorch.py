"""Nodes of ONNX, written with isoformer.models: names, layouts and attributes are translated here, no more."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from isoformer.models import attention, masks, positions
from isoformer.models.cache import KVCache, scatter
from tests.conformance.cases import Case

DTYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}  # onnx.TensorProto's numbers


def run(case: Case) -> list[np.ndarray]:
    """What our PyTorch answers.

    Half precision goes through the kernel of SDPA that keeps the weights in float32. The fused one of the
    CPU rounds them, which moves single elements 1e-3 from outputs that onnx computed in half precision too.
    """
    inputs = {name: to_tensor(array) for name, array in case.inputs.items()}
    half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in inputs.values())
    with sdpa_kernel(SDPBackend.MATH) if half else nullcontext():
        return [to_array(tensor) for tensor in Node(case)(**inputs)]


class Node(nn.Module):
    """The node of a case: named inputs → the outputs that it has, in their order."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.compute = NODES[case.op]
        self.attributes = case.attributes
        self.outputs = tuple(case.outputs)

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        computed = self.compute(**inputs, **self.attributes)
        return tuple(computed[name] for name in self.outputs)


def attend(
    *,
    Q: Tensor,  # noqa: N803  the operator's own names
    K: Tensor,  # noqa: N803
    V: Tensor,  # noqa: N803
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    is_causal: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
    softmax_precision: int | None = None,
    qk_matmul_output_mode: int = 0,
) -> dict[str, Tensor]:
    """Attention-25, which holds 23 and 24: https://onnx.ai/onnx/operators/onnx__Attention.html"""
    query = _split(Q, q_num_heads)
    present = KVCache(_split(K, kv_num_heads), _split(V, kv_num_heads))
    offset: Tensor | int = 0
    if past_key is not None and past_value is not None:
        present, offset = KVCache(past_key, past_value).append(*present), past_key.shape[2]
    elif nonpad_kv_seqlen is not None:
        offset = nonpad_kv_seqlen - query.shape[2]
    rows, keys = query.shape[2], present.length

    parts, bias = [], None
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        parts.append(_four_axes(attn_mask, keys, padding=False))
    elif attn_mask is not None:
        bias = _four_axes(attn_mask, keys, padding=float("-inf"))
    if is_causal:
        parts.append(masks.causal(rows, keys, offset=offset))
    if left_window_size >= 0 or right_window_size >= 0:
        left, right = (size if size >= 0 else None for size in (left_window_size, right_window_size))
        parts.append(masks.sliding_window(rows, keys, left, right, offset=offset))
    if nonpad_kv_seqlen is not None:
        parts.append(masks.lengths(nonpad_kv_seqlen, keys))

    wide = query.dtype if softmax_precision is None else torch.promote_types(query.dtype, DTYPES[softmax_precision])
    query, key, value = (tensor.to(wide) for tensor in (query, *present))
    steps: list[dict[str, Any]] = [
        {"scale": scale},
        {"softcap": softcap or None},
        {"mask": masks.combine(*parts), "bias": bias},
    ]
    everything = steps[0] | steps[1] | steps[2]
    output = attention.attend(query, key, value, **everything).to(Q.dtype)

    scored: dict[str, Any] = {}
    for step in steps[: qk_matmul_output_mode + 1]:
        scored |= step
    scores = attention.scores(query, key, **scored)
    if qk_matmul_output_mode == 3:
        scores = attention.weights(scores)
    return {
        "Y": output if Q.ndim == 4 else output.transpose(1, 2).flatten(2),
        "present_key": present.key,
        "present_value": present.value,
        "qk_matmul_output": scores.to(Q.dtype),
    }


def rotate(
    *,
    input: Tensor,  # noqa: A002  the operator's own name
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> dict[str, Tensor]:
    """RotaryEmbedding-23: https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html"""
    if position_ids is not None:
        cos_cache, sin_cache = cos_cache[position_ids], sin_cache[position_ids]  # (B, L, R/2)
    if rotary_embedding_dim and cos_cache.shape[-1] != rotary_embedding_dim // 2:
        raise ValueError(f"the caches turn {2 * cos_cache.shape[-1]} dimensions, the attribute {rotary_embedding_dim}")
    x = _split(input, num_heads)
    turned = positions.rotate(x, cos_cache[:, None], sin_cache[:, None], interleaved=bool(interleaved))
    return {"output": turned if input.ndim == 4 else turned.transpose(1, 2).flatten(2)}


def normalize(*, X: Tensor, W: Tensor, axis: int = -1, epsilon: float = 1e-5) -> dict[str, Tensor]:  # noqa: N803
    """RMSNormalization-23: https://onnx.ai/onnx/operators/onnx__RMSNormalization.html"""
    return {"Y": F.rms_norm(X, X.shape[axis:], W, epsilon)}


def write(
    *,
    past_cache: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    axis: int = -2,
    mode: str = "linear",
) -> dict[str, Tensor]:
    """TensorScatter-24: https://onnx.ai/onnx/operators/onnx__TensorScatter.html"""
    return {"present_cache": scatter(past_cache, update, write_indices, axis=axis, circular=mode == "circular")}


NODES: dict[str, Callable[..., dict[str, Tensor]]] = {
    "Attention": attend,
    "RotaryEmbedding": rotate,
    "RMSNormalization": normalize,
    "TensorScatter": write,
}


def to_tensor(array: np.ndarray) -> Tensor:
    if array.dtype.name == "bfloat16":  # numpy's is ml_dtypes', which torch does not read
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads * D) → (B, heads, L, D); what has four axes stays."""
    return x if x.ndim == 4 else x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _four_axes(mask: Tensor, keys: int, padding: float) -> Tensor:
    """The mask with axes of 1 in front, as numpy aligns shapes, and keys that it lacks left out."""
    mask = mask[(None,) * (4 - mask.ndim)]
    missing = keys - mask.shape[-1]
    return F.pad(mask, (0, missing), value=padding)
