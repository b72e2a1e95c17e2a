"""A generator and a discriminator of images that are Transformers, as in TransGAN.

    generator       noise, the places of a grid of patches  →  pixel_values
    discriminator   pixel_values, the patches that take part  →  scores, high for what looks real

A patch is patch_size × patch_size pixels. Both are trained on a grid of grid_rows × grid_columns patches and take any
other of up to max_grid patches a side: positions are learned for the rows and columns of that grid, and a place
between two of them has the line between their vectors. Channels, patch size and the width of the noise are fixed.

Jiang et al. 2021 (https://arxiv.org/abs/2102.07074). It differs from the paper in that no stage upsamples: a linear
layer makes each token a patch.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoformer.models import masks
from isoformer.models.attention import MultiHeadAttention
from isoformer.models.config import check
from isoformer.models.layers import EncoderBlock, FeedForward
from isoformer.models.signature import Axis, Signature, TensorSpec

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
BATCH, ROWS, COLUMNS, HEIGHT, WIDTH = "batch_size", "num_rows", "num_columns", "height", "width"


@dataclass(frozen=True)
class Config:
    """Shape and kind of the two networks; the sizes of the discriminator are the generator's unless given.

    latent_size: numbers of noise an image. grid_rows × grid_columns: patches of the images of the training.
    """

    channels: int
    patch_size: int
    grid_rows: int
    grid_columns: int
    latent_size: int
    hidden_size: int
    num_heads: int
    num_layers: int
    intermediate_size: int
    max_grid: int = 64
    num_discriminator_layers: int | None = None
    activation: str = "gelu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        sizes = ("channels", "patch_size", "grid_rows", "grid_columns", "latent_size", "hidden_size", "num_heads")
        sizes = (*sizes, "num_layers", "intermediate_size", "max_grid", "num_discriminator_layers")
        check(self, dict.fromkeys(sizes, 1))
        if max(self.grid_rows, self.grid_columns) > self.max_grid:
            raise ValueError(f"a grid of {self.grid_rows} × {self.grid_columns} is over max_grid {self.max_grid}")

    @property
    def patch_values(self) -> int:
        """Numbers in a patch."""
        return self.channels * self.patch_size**2


TINY = Config(
    channels=3,
    patch_size=2,
    grid_rows=3,
    grid_columns=5,
    latent_size=7,
    hidden_size=21,
    num_heads=3,
    num_layers=1,
    intermediate_size=37,
    max_grid=13,  # docs/decisions/parity.md: narrow heads over a thousand patches
)


def signature(config: Config) -> dict[str, Signature]:
    """Graph → its inputs and outputs; R rows and C columns of patches, p pixels a side each.

    generator: noise (B, Z), row_positions (B, R), column_positions (B, C) → pixel_values (B, channels, p R, p C),
    -1 … 1. A position counts the rows or columns of the training's grid: 0, 1, … are its own.
    discriminator: pixel_values (B, channels, p R, p C), patch_mask (B, R, C) → scores (B,), last_hidden_state
    (B, R, C, E), a vector for each patch.
    """
    axes = {ROWS: Axis(1, config.max_grid), COLUMNS: Axis(1, config.max_grid)}
    height, width = HEIGHT, WIDTH
    if config.patch_size == 1:
        height, width = ROWS, COLUMNS
    else:
        axes |= {HEIGHT: Axis(sum_of=(ROWS,), times=config.patch_size)}
        axes |= {WIDTH: Axis(sum_of=(COLUMNS,), times=config.patch_size)}
    image = TensorSpec("pixel_values", "float32", (BATCH, config.channels, height, width))
    generator = (
        TensorSpec("noise", "float32", (BATCH, config.latent_size)),
        TensorSpec("row_positions", "float32", (BATCH, ROWS), high=config.grid_rows),
        TensorSpec("column_positions", "float32", (BATCH, COLUMNS), high=config.grid_columns),
    )
    mask = TensorSpec("patch_mask", "int64", (BATCH, ROWS, COLUMNS), kind="mask", default=1)
    scores = TensorSpec("scores", "float32", (BATCH,))
    features = TensorSpec("last_hidden_state", "float32", (BATCH, ROWS, COLUMNS, config.hidden_size))
    return {
        GENERATOR: Signature(generator, (image,), axes=axes),
        DISCRIMINATOR: Signature((image, mask), (scores, features), axes=axes),
    }


def task(config: Config) -> dict[str, Any]:
    """What the runtime needs to know to draw."""
    return {
        "name": "generate-image",
        "kind": "gan",
        "height": config.patch_size * config.grid_rows,
        "width": config.patch_size * config.grid_columns,
        "grid_rows": config.grid_rows,
        "grid_columns": config.grid_columns,
        "latent_size": config.latent_size,
    }


class Model(nn.Module):
    """Both networks; `graph(name)` is the module of each graph that is exported."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.discriminator = Discriminator(config)

    def graph(self, name: str) -> nn.Module:
        """The module that computes the signature's graph of that name."""
        return {GENERATOR: self.generator, DISCRIMINATOR: self.discriminator}[name]

    def generate(self, noise: Tensor) -> Tensor:
        """noise (B, Z) → images of the training's size (B, channels, height, width), -1 … 1."""
        sides = (self.config.grid_rows, self.config.grid_columns)
        rows, columns = (torch.arange(side).to(noise).expand(len(noise), -1) for side in sides)
        return self.generator(noise, rows, columns)["pixel_values"]

    def score(self, pixel_values: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """Images (B, channels, height, width), all of each unless masked → (B,) scores."""
        if patch_mask is None:
            sides = (size // self.config.patch_size for size in pixel_values.shape[2:])
            patch_mask = torch.ones(len(pixel_values), *sides, dtype=torch.bool, device=pixel_values.device)
        return self.discriminator(pixel_values, patch_mask)["scores"]


class Generator(nn.Module):
    """One token a patch, linear(noise) + its position, through pre-norm blocks; tanh(linear(token)) are its pixels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.channels, self.patch_size = config.channels, config.patch_size
        self.noise = nn.Linear(config.latent_size, config.hidden_size)
        self.positions = GridPositions(config)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.num_layers))
        self.final_norm = _norm(config)
        self.head = nn.Linear(config.hidden_size, config.patch_values)

    def forward(self, noise: Tensor, row_positions: Tensor, column_positions: Tensor) -> dict[str, Tensor]:
        x = self.noise(noise)[:, None, None] + self.positions(row_positions, column_positions)  # (B, R, C, E)
        rows, columns = row_positions.shape[1], column_positions.shape[1]
        x = x.flatten(1, 2)
        for block in self.blocks:
            x = block(x)
        patches = torch.tanh(self.head(self.final_norm(x)))  # (B, R C, patch)
        return {"pixel_values": from_patches(patches, rows, columns, self.channels, self.patch_size)}


class Discriminator(nn.Module):
    """A class token and one token a patch, linear(pixels) + its position, through pre-norm blocks; the score is
    linear(class token).

    Rows and columns without any patch that takes part are padding: an image within a larger rectangle has the score
    that it has alone, wherever it stands.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.sides = (config.grid_rows, config.grid_columns)
        self.patches = nn.Linear(config.patch_values, config.hidden_size)
        self.positions = GridPositions(config)
        self.class_token = nn.Parameter(torch.empty(config.hidden_size).normal_(std=0.02))
        layers = config.num_layers if config.num_discriminator_layers is None else config.num_discriminator_layers
        self.blocks = nn.ModuleList(_block(config) for _ in range(layers))
        self.final_norm = _norm(config)
        self.head = nn.Linear(config.hidden_size, 1)

    def forward(self, pixel_values: Tensor, patch_mask: Tensor) -> dict[str, Tensor]:
        real = masks.as_bool(patch_mask)  # (B, R, C)
        batch, rows, columns = real.shape
        patches = to_patches(pixel_values, rows, columns, self.patch_size)
        patches = torch.where(real.flatten(1)[:, :, None], patches, 0.0)
        places = (stretched(real.any(axis), side, patches.dtype) for axis, side in zip((2, 1), self.sides, strict=True))
        x = self.patches(patches) + self.positions(*places).flatten(1, 2)  # (B, R C, E)
        x = torch.cat([self.class_token.expand(batch, 1, -1), x], 1)
        mask = masks.padding(F.pad(real.flatten(1), (1, 0), value=True))
        mask = masks.normalize(mask, batch, 1, rows * columns + 1, rows * columns + 1)
        for block in self.blocks:
            x = block(x, mask)
        x = self.final_norm(x)
        features = x[:, 1:].reshape(batch, rows, columns, x.shape[2])
        return {"scores": self.head(x[:, 0])[:, 0], "last_hidden_state": features}


class GridPositions(nn.Module):
    """rows(r) + columns(c), tables of vectors that are learned, with the line between two of them for a place between;
    places beyond an end are the end.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(config.grid_rows, config.hidden_size).normal_(std=0.5))
        self.columns = nn.Parameter(torch.empty(config.grid_columns, config.hidden_size).normal_(std=0.5))

    def forward(self, row_positions: Tensor, column_positions: Tensor) -> Tensor:
        """(B, R) and (B, C) → (B, R, C, E)."""
        rows, columns = between(self.rows, row_positions), between(self.columns, column_positions)
        return rows[:, :, None] + columns[:, None]


def between(table: Tensor, places: Tensor) -> Tensor:
    """Rows (N, E) at places (B, L), linear from each row to the next: sum over n of max(0, 1 - |place - n|) * row n."""
    last = table.shape[0] - 1
    steps = torch.arange(last + 1, device=table.device).to(places.dtype)
    shares = (1 - (places.clamp(0, last)[:, :, None] - steps).abs()).clamp(min=0)  # (B, L, N)
    return shares @ table


def stretched(real: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """(B, L) places from 0 to side - 1 of the rows or columns that are real, as if they filled `side` of them.

    The i-th of n is at (i + 1/2) * side / n - 1/2, where resizing an image has its centre.
    """
    counted = real.to(torch.int64).cumsum(1)
    count = counted[:, -1:].clamp(min=1)
    return ((2 * counted - 1) * side - count).to(dtype) / (2 * count).to(dtype)  # whole numbers until one division


def to_patches(pixel_values: Tensor, rows: int, columns: int, size: int) -> Tensor:
    """(B, channels, rows * size, columns * size) → (B, rows * columns, channels * size * size)."""
    batch, channels = pixel_values.shape[:2]
    x = pixel_values.reshape(batch, channels, rows, size, columns, size)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * size * size)


def from_patches(patches: Tensor, rows: int, columns: int, channels: int, size: int) -> Tensor:
    """The way back from `to_patches`."""
    x = patches.reshape(patches.shape[0], rows, columns, channels, size, size)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(patches.shape[0], channels, rows * size, columns * size)


def _norm(config: Config) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


def _block(config: Config) -> EncoderBlock:
    return EncoderBlock(
        MultiHeadAttention(config.hidden_size, config.num_heads),
        FeedForward(config.hidden_size, config.intermediate_size, config.activation),
        _norm(config),
        _norm(config),
        norm_order="pre",
    )
