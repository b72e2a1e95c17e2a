"""Feed-forward networks and blocks. A block is given its parts and decides only their order."""

from collections.abc import Callable
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoformer.models.attention import MultiHeadAttention, Positions
from isoformer.models.cache import KVCache

NormOrder = Literal["post", "pre"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of that name; ValueError lists the names that there are."""
    try:
        return ACTIVATIONS[name]
    except KeyError:
        raise ValueError(f"activation {name!r} is not one of {', '.join(ACTIVATIONS)}") from None


class FeedForward(nn.Module):
    """down(activation(up(x))), each position by itself: (B, L, E) → (B, L, E)."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation_name: str = "gelu", *, bias: bool = True
    ) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = activation(activation_name)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class GatedFeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)): (B, L, E) → (B, L, E); with silu it is SwiGLU [1].

    [1] Shazeer 2020, https://arxiv.org/abs/2002.05202.
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation_name: str = "silu", *, bias: bool = False
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = activation(activation_name)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward, each with a residual and a norm.

        post (Vaswani et al. 2017):  x = norm(x + f(x))
        pre  (Xiong et al. 2020):    x = x + f(norm(x))

    `attention` is called as attention(query, key, value, mask), with `bias` where there is one. Dropout acts on
    each branch in training.
    """

    def __init__(
        self,
        attention: nn.Module,
        feed_forward: nn.Module,
        attention_norm: nn.Module,
        feed_forward_norm: nn.Module,
        norm_order: NormOrder = "post",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.attention_norm = attention_norm
        self.feed_forward_norm = feed_forward_norm
        self.pre_norm = _is_pre(norm_order)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x (B, L, E), mask of the contract, bias of the scores → (B, L, E)."""
        y = self._to_attention(x)
        more = {} if bias is None else {"bias": bias}
        return self._after_attention(x, self.attention(y, y, y, mask, **more))

    def with_weights(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What `forward` returns, and the attention's weights (B, H, L, L), exactly zero where masked.

        The attention needs a `compute` as `MultiHeadAttention` has it.
        """
        y = self._to_attention(x)
        output, weights, _ = cast(MultiHeadAttention, self.attention).compute(y, y, y, mask, need_weights=True)
        return self._after_attention(x, output), cast(Tensor, weights)

    def _to_attention(self, x: Tensor) -> Tensor:
        return self.attention_norm(x) if self.pre_norm else x

    def _after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(attended)
        if self.pre_norm:
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x)
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class DecoderBlock(nn.Module):
    """Self-attention behind a cache, cross-attention where there is one, and feed-forward, each with a residual and
    a norm: pre x = x + f(norm(x)) or post x = norm(x + f(x)).

    The mask is what makes it causal. Dropout acts on each branch in training.
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        feed_forward: nn.Module,
        attention_norm: nn.Module,
        feed_forward_norm: nn.Module,
        norm_order: NormOrder = "pre",
        *,
        cross_attention: MultiHeadAttention | None = None,
        cross_norm: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if (cross_attention is None) != (cross_norm is None):
            raise ValueError("cross_attention and cross_norm go together")
        self.attention = attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward
        self.attention_norm = attention_norm
        self.cross_norm = cross_norm
        self.feed_forward_norm = feed_forward_norm
        self.pre_norm = _is_pre(norm_order)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        positions: Positions | None,
        cache: KVCache,
        *,
        bias: Tensor | None = None,
        cross: KVCache | None = None,
        cross_mask: Tensor | None = None,
    ) -> tuple[Tensor, KVCache]:
        """x (B, L, E), mask and bias over P + L keys, positions as `MultiHeadAttention.compute` takes → x, P + L keys.

        cross: keys and values of the encoder's output, as the cross-attention's `keys_values` gives them; cross_mask
        of its keys. Raises ValueError when one of the two is there without the other.
        """
        if (cross is None) != (self.cross_attention is None):
            raise ValueError("an encoder's keys and values go with a layer that has cross-attention, and with no other")
        y = self._before(self.attention_norm, x)
        attended = self.attention.compute(y, y, y, mask, positions=positions, cache=cache, bias=bias)
        x = self._after(self.attention_norm, x, attended.output)
        if self.cross_attention is not None and self.cross_norm is not None and cross is not None:
            y = self._before(self.cross_norm, x)
            x = self._after(self.cross_norm, x, self.cross_attention.attend_to(y, cross, cross_mask))
        y = self._before(self.feed_forward_norm, x)
        return self._after(self.feed_forward_norm, x, self.feed_forward(y)), cast(KVCache, attended.cache)

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.pre_norm else x

    def _after(self, norm: nn.Module, x: Tensor, branch: Tensor) -> Tensor:
        x = x + self.dropout(branch)
        return x if self.pre_norm else norm(x)


def _is_pre(norm_order: NormOrder) -> bool:
    if norm_order not in ("post", "pre"):
        raise ValueError(f"norm_order {norm_order!r} is neither 'post' nor 'pre'")
    return norm_order == "pre"
