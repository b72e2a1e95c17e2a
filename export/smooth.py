"""Outliers of activations moved into the weights, so that both fit into 8 bits; the model computes the same.

    norm(x) / s → linear(s · W)        s = max|x|^½ / max|W|^½ for each channel, of median 1

Where x comes out of a norm, s goes into the norm's weight, or stays a product of its own where the norm's result is
added to what follows (post-norm); in front of the output product into the values' rows,
in front of a gated feed-forward's last product into those of `up`. Xiao et al. 2022,
https://arxiv.org/abs/2211.10438, equation 4.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from isoformer.models.attention import MultiHeadAttention
from isoformer.models.layers import DecoderBlock, EncoderBlock, GatedFeedForward


def smooth(model: nn.Module, run: Callable[[], object]) -> int:
    """Smooths every block of the model, in place; returns how many norms and products were changed.

    run: sends a text of the kind that the model is for through it.
    """
    largest: dict[nn.Module, Tensor] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        peaks = inputs[0].detach().abs().flatten(0, -2).amax(0)
        largest[module] = torch.maximum(largest.get(module, peaks), peaks)

    hooks = [m.register_forward_pre_hook(watch) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        with torch.no_grad():
            run()
            return sum(_smooth_block(block, largest) for block in model.modules() if _is_block(block))
    finally:
        for hook in hooks:
            hook.remove()


class Divided(nn.Module):
    """Attention or a feed-forward on channels that are divided by `scale`, which its first products make up for."""

    factor: Tensor

    def __init__(self, inner: nn.Module, scale: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("factor", 1 / scale)

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """x (B, L, E); of attention also keys and values, which are x, and the mask."""
        scaled = x * self.factor
        return self.inner(scaled, scaled, scaled, *others[2:]) if others else self.inner(scaled)


def _is_block(module: nn.Module) -> bool:
    return isinstance(module, DecoderBlock | EncoderBlock)


def _smooth_block(module: nn.Module, largest: dict[nn.Module, Tensor]) -> int:
    if isinstance(module, EncoderBlock) and not module.pre_norm:
        return _divide_inputs(module, largest)
    block = cast(DecoderBlock, module)
    attention, feed_forward = block.attention, block.feed_forward
    count = _into_norm(
        block.attention_norm, [attention.query_linear, attention.key_linear, attention.value_linear], largest
    )
    count += _into_values(attention, largest)
    if isinstance(feed_forward, GatedFeedForward):
        count += _into_norm(block.feed_forward_norm, [feed_forward.gate, feed_forward.up], largest)
        scale = _scale(largest[feed_forward.down], [feed_forward.down.weight])
        _divide_rows(feed_forward.up, scale)
        feed_forward.down.weight.mul_(scale)
        return count + 1
    first = next(child for child in feed_forward.children() if isinstance(child, nn.Linear))
    return count + _into_norm(block.feed_forward_norm, [first], largest)


def _divide_inputs(block: EncoderBlock, largest: dict[nn.Module, Tensor]) -> int:
    """Behind a norm whose result is also added to what follows, nothing can be divided but the products' own input."""
    attention = cast(MultiHeadAttention, block.attention)
    first = next(child for child in block.feed_forward.children() if isinstance(child, nn.Linear))
    for name, linears in (
        ("attention", [attention.query_linear, attention.key_linear, attention.value_linear]),
        ("feed_forward", [first]),
    ):
        scale = _scale(largest[linears[0]], [linear.weight for linear in linears])
        for linear in linears:
            linear.weight.mul_(scale)
        setattr(block, name, Divided(getattr(block, name), scale))
    return 2


def _into_norm(norm: nn.Module, linears: list[nn.Linear], largest: dict[nn.Module, Tensor]) -> int:
    scale = _scale(largest[linears[0]], [linear.weight for linear in linears])
    for parameter in norm.parameters():  # weight, and bias if it has one
        parameter.div_(scale)
    for linear in linears:
        linear.weight.mul_(scale)
    return 1


def _into_values(attention: MultiHeadAttention, largest: dict[nn.Module, Tensor]) -> int:
    """Heads that share a value share its scale: the mean of theirs."""
    out = attention.out_linear
    scale = _scale(largest[out], [out.weight])
    shared = scale.view(attention.num_kv_heads, -1, attention.value_head_dim).mean(1, keepdim=True)
    _divide_rows(attention.value_linear, shared.reshape(-1))
    groups = attention.num_heads // attention.num_kv_heads
    out.weight.mul_(shared.expand(-1, groups, -1).reshape(-1))
    return 1


def _divide_rows(linear: nn.Linear, scale: Tensor) -> None:
    linear.weight.div_(scale[:, None])
    if linear.bias is not None:
        linear.bias.div_(scale)


def _scale(peaks: Tensor, weights: list[Tensor]) -> Tensor:
    columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    scale = (peaks.clamp(min=1e-5) / columns.clamp(min=1e-5)).sqrt()
    return (scale / scale.median()).clamp(0.01, 100.0)
