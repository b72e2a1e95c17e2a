"""Weights moved onto grids of 4 bits with whole zero points, before `quantize` packs them.

    W = d · (w - z),  w, z = 0 … 15      a scale d and a zero point z for every block down each column of W

A value is rounded after the other, and what its rounding changes in the products is made up for by the values of its
column that are still to come: with H = Xᵀ X over a text and U the upper Cholesky factor of H⁻¹,

    e = (W[i] - rounded W[i]) / U[i, i]      W[j] -= e · U[i, j]  for j > i

Then each value in turn moves to the place that is best while the others stay, and each scale after its block, which
lessens the error by some 15 %. Frantar et al. 2022, https://arxiv.org/abs/2210.17323, algorithm 1.

Blocks are of 64 values, and of 32 behind an activation function, where activations have the larger outliers. Not moved:
queries, keys and values, which bear it least, and one product in 8 bits for all three costs little
(docs/decisions/variants.md); products whose activations are mostly one channel's, by the squares of them, since a
rounding error there outweighs all others; and what stands on such grids already, as GGUF's Q4_0 does.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from isoformer.export import head
from isoformer.export.quantize import BLOCK, block_of, pack_whole
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.layers import DecoderBlock, FeedForward, GatedFeedForward
from isoformer.runtime.binding import Decoder
from isoformer.runtime.sampling import draw

SEQUENCES, LENGTH = 64, 256  # of the text, as far as the model has so many positions
TOGETHER = 16  # sequences that are written at a time, whose keys and values stand in memory
DAMPING = 0.1  # of H's mean diagonal: ten times the usual, since the text is none that a person wrote
SWEEPS = 3  # over all values after that
OUTLIER = 0.5  # of all squares of the activations: more than that is one channel's only where it is an outlier
SHRINKS = torch.linspace(0.6, 1.1, 21)  # of a block's range, to look for the scale in


def round_blocks(
    model: nn.Module, run: Callable[[], object], progress: Callable[[int, int], None]
) -> np.ndarray | None:
    """Rounds the `products`, but those of outliers, in place; returns the table of a `vocabulary` (N, K), rounded.

    run: sends a text through the model, all of it at once. Each product is rounded as the text reaches it, so its own
    text has the errors of those in front of it. progress: called with the products done and in all.
    """
    linears, done, ends = products(model), set[nn.Module](), list[Tensor]()
    downs = {layer.down for layer in model.modules() if isinstance(layer, FeedForward | GatedFeedForward)}

    def reached(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module not in done and isinstance(module, nn.Linear):
            done.add(module)
            x = inputs[0].detach().flatten(0, -2).float()
            squares = x.square().sum(0)
            if squares.max() < OUTLIER * squares.sum():
                block = BLOCK if module in downs else block_of(module.in_features)
                module.weight.data.copy_(rounded(module.weight.data, x, block))
            progress(len(done), len(linears))

    def ended(_module: nn.Module, _inputs: object, outputs: tuple[Tensor, ...]) -> None:
        ends.append(outputs[0].detach().flatten(0, -2).float())

    hooks = [linear.register_forward_pre_hook(reached) for linear in linears]
    found = vocabulary(model)
    if found is not None:
        hooks.append(blocks(model)[-1].register_forward_hook(ended))
    try:
        with torch.no_grad():
            run()
            return None if found is None else _rounded_table(*found, ends[0])
    finally:
        for hook in hooks:
            hook.remove()


def vocabulary(model: nn.Module) -> tuple[nn.Linear, nn.Module] | None:
    """The head that shares the tokens' table, and the norm in front of it, where it is worth a table in 4 bits."""
    linear, norm = getattr(model, "head", None), getattr(model, "final_norm", None)
    if not isinstance(linear, nn.Linear) or not isinstance(norm, nn.Module) or not blocks(model):
        return None
    tied = any(isinstance(m, nn.Embedding) and m.weight is linear.weight for m in model.modules())
    fits = tied and linear.bias is None and block_of(linear.in_features) is not None
    return (linear, norm) if fits and head.worth_it(linear.out_features) else None


def _rounded_table(linear: nn.Linear, norm: nn.Module, x: Tensor) -> np.ndarray:
    """x (rows, K): what the last block gave."""
    return rounded(linear.weight.detach(), norm(x)).numpy()


def rounded(weight: Tensor, x: Tensor, block: int | None = None) -> Tensor:
    """weight (N, K) on its grids, so that x @ weightᵀ changes little for these x (rows, K).

    block: how many values have a scale; None is the most that K takes.
    """
    second = _second_moments(x)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(second)), upper=True).float()
    left, result = weight.float().clone(), torch.empty_like(weight)
    grids, size = [], block or block_of(weight.shape[1]) or weight.shape[1]
    for start in range(0, weight.shape[1], size):
        end = start + size
        open_, errors, own = left[:, start:end], torch.empty_like(left[:, start:end]), upper[start:end, start:end]
        grids.append(_grid(open_, own.diagonal() ** -2))
        for i in range(size):
            column = open_[:, i : i + 1]
            nearest = _nearest(column, *grids[-1])
            result[:, start + i : start + i + 1] = nearest
            errors[:, i : i + 1] = (column - nearest) / own[i, i]
            open_[:, i:] -= errors[:, i : i + 1] * own[i : i + 1, i:]
        left[:, end:] -= errors @ upper[start:end, end:]
    for _ in range(SWEEPS):
        _sweep(result, weight, second.float(), grids)
    return result


def _sweep(result: Tensor, weight: Tensor, second: Tensor, grids: list[tuple[Tensor, Tensor]]) -> None:
    """Moves each value to the place on its grid, then each grid to the scale, that is best while all others stay.

    In place, `grids` too.
    """
    slope = (result - weight) @ second  # of half the squared error
    size = weight.shape[1] // len(grids)
    for number, (scale, zero) in enumerate(grids):
        block = slice(number * size, (number + 1) * size)
        values, own, inner = result[:, block], slope[:, block].clone(), second[block, block]
        before = values.clone()
        for i in range(size):
            column = values[:, i : i + 1]
            moved = _nearest(column - own[:, i : i + 1] / inner[i, i], scale, zero)
            own += (moved - column) * inner[i : i + 1]
            values[:, i : i + 1] = moved
        along, curve = ((values * x).sum(1, keepdim=True) for x in (own, values @ inner))
        factor = (1 - along / curve.clamp(min=1e-30)).clamp(0.5, 2.0)
        values *= factor
        grids[number] = scale * factor, zero
        slope[:, block.stop :] += (values - before) @ second[block, block.stop :]


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


def products(model: nn.Module) -> list[nn.Linear]:
    """Those of every decoder block but queries, keys, values, and what stands on its grids already."""
    kept = {
        linear
        for layer in model.modules()
        if isinstance(layer, MultiHeadAttention)
        for linear in (layer.query_linear, layer.key_linear, layer.value_linear)
    }
    linears = [linear for block in blocks(model) for linear in block.modules() if isinstance(linear, nn.Linear)]
    open_ = [linear for linear in linears if linear not in kept and block_of(linear.in_features) is not None]
    return [linear for linear in open_ if pack_whole(linear.weight.detach().T.numpy()) is None]


def blocks(model: nn.Module) -> list[nn.Module]:
    """In the order in which a text reaches them."""
    return [module for module in model.modules() if isinstance(module, DecoderBlock)]


def _second_moments(x: Tensor) -> Tensor:
    """H (K, K), float64, damped."""
    second = (x.T @ x).double()
    second.diagonal().add_(DAMPING * second.diagonal().mean().clamp(min=1e-30))
    return second


def _nearest(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return ((values / scale).round() + zero).clamp(0, 15).sub(zero).mul(scale)


def _grid(block: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point (N, 1) of least error, each column's square times its importance (block,)."""
    low, high = block.amin(1, keepdim=True).clamp(max=0), block.amax(1, keepdim=True).clamp(min=0)  # 0 is a place
    best, scale, zero = (torch.full_like(low, value) for value in (torch.inf, 1.0, 8.0))
    for shrink in SHRINKS:
        step = ((high - low) * shrink / 15).clamp(min=1e-12)
        middle = 7.5 - (high + low) / 2 / step
        for place in (middle.floor().clamp(0, 15), middle.ceil().clamp(0, 15)):
            error = ((_nearest(block, step, place) - block).square() * importance).sum(1, keepdim=True)
            better = error < best
            best, scale, zero = (
                torch.where(better, new, old) for new, old in ((error, best), (step, scale), (place, zero))
            )
    return scale, zero
