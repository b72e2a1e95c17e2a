"""Where tokens stand: the numbers of their positions, and the tables that those numbers look up."""

import torch
from torch import Tensor, nn


class LearnedPositions(nn.Module):
    """A trained table: row p is added to the token at position p."""

    def __init__(self, max_positions: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_positions, hidden_size).normal_(std=0.02))

    def forward(self, positions: Tensor | int) -> Tensor:
        """positions (B, L) → (B, L, E); a length L stands for positions 0 … L-1 → (L, E)."""
        return _look_up(self.weight, positions)


class SinusoidalPositions(nn.Module):
    """Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), section 3.5:

    PE(p, 2i) = sin(p / 10000^(2i/E))    PE(p, 2i+1) = cos(p / 10000^(2i/E))
    """

    weight: Tensor

    def __init__(self, max_positions: int, hidden_size: int) -> None:
        super().__init__()
        even = torch.arange(0, hidden_size, 2, dtype=torch.float64)
        angles = torch.arange(max_positions, dtype=torch.float64)[:, None] / 10000 ** (even / hidden_size)
        table = torch.empty(max_positions, hidden_size, dtype=torch.float64)
        table[:, 0::2] = angles.sin()
        table[:, 1::2] = angles.cos()[:, : hidden_size // 2]
        self.register_buffer("weight", table.to(torch.get_default_dtype()), persistent=False)

    def forward(self, positions: Tensor | int) -> Tensor:
        """positions (B, L) → (B, L, E); a length L stands for positions 0 … L-1 → (L, E)."""
        return _look_up(self.weight, positions)


def _look_up(table: Tensor, positions: Tensor | int) -> Tensor:
    if isinstance(positions, Tensor):
        return torch.nn.functional.embedding(positions, table)
    if positions > table.shape[0]:
        raise ValueError(f"length {positions} is over the {table.shape[0]} positions that the model has")
    return table[:positions]  # a slice, not a gather: one cheap node in the graph


def count_real(attention_mask: Tensor) -> Tensor:
    """(B, L) positions that count the real tokens of each row: 0 for its first, wherever it stands.

    Left padding and holes then change nothing for the tokens around them (contract, point 6).
    """
    return (attention_mask.to(torch.int64).cumsum(1) - 1).clamp(min=0)


def count_not_pad(input_ids: Tensor, pad: int) -> Tensor:
    """(B, L) RoBERTa's positions: tokens that are not `pad` count from pad + 1, padding stands at `pad`."""
    real = (input_ids != pad).to(torch.int64)
    return real.cumsum(1) * real + pad
