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

    `attention` is called as attention(query, key, value, mask). Dropout acts on each branch in training.
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
        if norm_order not in ("post", "pre"):
            raise ValueError(f"norm_order {norm_order!r} is neither 'post' nor 'pre'")
        self.attention = attention
        self.feed_forward = feed_forward
        self.attention_norm = attention_norm
        self.feed_forward_norm = feed_forward_norm
        self.pre_norm = norm_order == "pre"
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, L, E), mask of the contract → (B, L, E)."""
        y = self._to_attention(x)
        return self._after_attention(x, self.attention(y, y, y, mask))

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
    """Self-attention behind a cache and feed-forward, each with a residual, the norm in front:

        x = x + attention(norm(x))    x = x + feed_forward(norm(x))

    The mask is what makes it causal.
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        feed_forward: nn.Module,
        attention_norm: nn.Module,
        feed_forward_norm: nn.Module,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.attention_norm = attention_norm
        self.feed_forward_norm = feed_forward_norm

    def forward(
        self, x: Tensor, mask: Tensor | None, positions: Positions | None, cache: KVCache
    ) -> tuple[Tensor, KVCache]:
        """x (B, L, E), mask over P + L keys, positions as `MultiHeadAttention.compute` takes → x, P + L keys."""
        y = self.attention_norm(x)
        attended = self.attention.compute(y, y, y, mask, positions=positions, cache=cache)
        x = x + attended.output
        return x + self.feed_forward(self.feed_forward_norm(x)), cast(KVCache, attended.cache)
