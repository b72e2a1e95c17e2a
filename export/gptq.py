"""Weights moved onto grids of 4 bits with whole zero points, before `quantize` packs them.

    W = d · (w - z),  w, z = 0 … 15      a scale d and a zero point z for every 32 values down each column of W

A value is rounded after the other, and what its rounding changes in the products is made up for by the values of its
column that are still to come: with H = Xᵀ X over a text and U the upper Cholesky factor of H⁻¹,

    e = (W[i] - rounded W[i]) / U[i, i]      W[j] -= e · U[i, j]  for j > i

Frantar et al. 2022, https://arxiv.org/abs/2210.17323, algorithm 1. Queries, keys and values stay as they are: they bear
it least, and one product with offsets for all three costs little (docs/decisions/variants.md).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from isoformer.export.quantize import BLOCK
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.layers import DecoderBlock
from isoformer.runtime.binding import Decoder
from isoformer.runtime.sampling import draw

SEQUENCES, LENGTH = 64, 256  # of the text, as far as the model has so many positions
TOGETHER = 16  # sequences that are written at a time, whose keys and values stand in memory
DAMPING = 0.01  # of H's mean diagonal, so that what the text never shows is no free choice
SHRINKS = torch.linspace(0.6, 1.1, 21)  # of a block's range, to look for the scale in


def round_blocks(model: nn.Module, run: Callable[[], object], progress: Callable[[int, int], None]) -> int:
    """Rounds the products of every decoder block, but queries, keys and values, in place; returns how many.

    run: sends a text through the model, all of it at once. Each product is rounded as the text reaches it, so its own
    text has the errors of those in front of it. progress: called with the products done and in all.
    """
    linears, done = _linears(model), set[nn.Module]()

    def reached(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module not in done and isinstance(module, nn.Linear):
            done.add(module)
            x = inputs[0].detach().flatten(0, -2).float()
            module.weight.data.copy_(rounded(module.weight.data, x))
            progress(len(done), len(linears))

    hooks = [linear.register_forward_pre_hook(reached) for linear in linears]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return len(done)


def rounded(weight: Tensor, x: Tensor) -> Tensor:
    """weight (N, K) on its grids, so that x @ weightᵀ changes little for these x (rows, K)."""
    upper = _factor(x)
    left, result = weight.float().clone(), torch.empty_like(weight)
    for start in range(0, weight.shape[1], BLOCK):
        end = start + BLOCK
        block, errors, own = left[:, start:end], torch.empty_like(left[:, start:end]), upper[start:end, start:end]
        scale, zero = _grid(block, own.diagonal() ** -2)
        for i in range(BLOCK):
            column = block[:, i : i + 1]
            nearest = ((column / scale).round() + zero).clamp(0, 15).sub(zero).mul(scale)
            result[:, start + i : start + i + 1] = nearest
            errors[:, i : i + 1] = (column - nearest) / own[i, i]
            block[:, i:] -= errors[:, i : i + 1] * own[i : i + 1, i:]
        left[:, end:] -= errors @ upper[start:end, end:]
    return result


def written(decoder: Decoder, first: Sequence[int], progress: Callable[[int, int], None]) -> np.ndarray:
    """(SEQUENCES, LENGTH) tokens that the model draws from its own probabilities, each row behind one of `first`.

    progress: called with the tokens written and in all.
    """
    rng = np.random.default_rng(0)
    length = min(LENGTH, decoder.limit or LENGTH)
    text = np.zeros((SEQUENCES, length), np.int64)
    text[:, 0] = rng.choice(first, SEQUENCES)
    for begin in range(0, SEQUENCES, TOGETHER):
        rows = text[begin : begin + TOGETHER]
        for place in range(1, length):
            progress(begin * length + len(rows) * place, text.size)
            held = rows[:, place - 1 : place].tolist()
            logits = decoder.append(held) if place > 1 else decoder.start(held)[0]
            rows[:, place] = [draw(row, rng) for row in logits]
    progress(text.size, text.size)
    return text


def _linears(model: nn.Module) -> list[nn.Linear]:
    kept = {
        linear
        for layer in model.modules()
        if isinstance(layer, MultiHeadAttention)
        for linear in (layer.query_linear, layer.key_linear, layer.value_linear)
    }
    blocks = [module for module in model.modules() if isinstance(module, DecoderBlock)]
    linears = [linear for block in blocks for linear in block.modules() if isinstance(linear, nn.Linear)]
    return [linear for linear in linears if linear not in kept and linear.in_features % BLOCK == 0]


def _factor(x: Tensor) -> Tensor:
    """U (K, K), float32, with Uᵀ U = H⁻¹, damped."""
    second = (x.T @ x).double()
    damping = DAMPING * second.diagonal().mean().clamp(min=1e-30)
    second.diagonal().add_(damping)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(second))
    return torch.linalg.cholesky(inverse, upper=True).float()


def _grid(block: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point (N, 1) of least error, each column's square times its importance (BLOCK,)."""
    low, high = block.amin(1, keepdim=True), block.amax(1, keepdim=True)
    best, scale, zero = (torch.full_like(low, value) for value in (torch.inf, 1.0, 8.0))
    for shrink in SHRINKS:
        step = ((high - low) * shrink / 15).clamp(min=1e-12)
        middle = 7.5 - (high + low) / 2 / step
        for place in (middle.floor().clamp(0, 15), middle.ceil().clamp(0, 15)):
            nearest = ((block / step).round() + place).clamp(0, 15).sub(place).mul(step)
            error = ((nearest - block).square() * importance).sum(1, keepdim=True)
            better = error < best
            best, scale, zero = (
                torch.where(better, new, old) for new, old in ((error, best), (step, scale), (place, zero))
            )
    return scale, zero
