"""From the pixels of a picture to what an image model reads, as operators that every ONNX runtime has.

Pictures are resized by two products with matrices of interpolation weights, which are computed from the sizes in whole
numbers: the same weights for every size, in PyTorch and in a graph whose sizes are open.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn


def bilinear(x: Tensor) -> Tensor:
    """max(0, 1 - |x|)"""
    return (1 - x.abs()).clamp(min=0)


def bicubic(x: Tensor, a: float) -> Tensor:
    """Keys' cubic of the parameter a (https://doi.org/10.1109/TASSP.1981.1163711), 0 from |x| = 2 on."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


# Pillow's filters, and how far they reach.
FILTERS: Mapping[str, Callable[[Tensor], Tensor]] = {"bilinear": bilinear, "bicubic": partial(bicubic, a=-0.5)}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a model's pixel_values of the size (height, width).

    resize: to this (height, width), or so that the shorter side is this long and the longer one in proportion; None
    leaves the size. crop: the middle (height, width), black where the picture ends before. resample: the filter.
    Values 0 … 255 are multiplied by `rescale`, less `mean`, over `std`, of each channel or of all.

    Raises ValueError for numbers that cannot be, and where no step settles the size.
    """

    resize: tuple[int, int] | int | None = (224, 224)
    crop: tuple[int, int] | None = None
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    rescale: float = 1 / 255
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        for name, value in (("resize", self.resize), ("crop", self.crop)):
            sizes = value if isinstance(value, tuple) else (value,) * 2
            if value is not None and not (len(sizes) == 2 and all(type(n) is int and n > 0 for n in sizes)):
                raise ValueError(f"{name} is {value!r}; it is made of whole numbers, at least 1")
        if self.crop is None and not isinstance(self.resize, tuple):
            raise ValueError(
                f"resize is {self.resize!r} and there is no crop: the size is open; give one of (height, width)"
            )
        if self.resample not in FILTERS:
            raise ValueError(f"resample {self.resample!r} is not one of {', '.join(FILTERS)}")
        if 0 in self.std or len(self.mean) != len(self.std):
            raise ValueError(
                f"mean {self.mean} and std {self.std} have a number each a channel, and std none that is 0"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        size = self.crop or self.resize
        assert isinstance(size, tuple)  # noqa: S101  __post_init__ has seen to it
        return size


class Preprocessor(nn.Module):
    """pixels (B, in_height, in_width, C), uint8 → pixel_values (B, C, height, width), as `Preprocessing` says.

    Resizing is Pillow's `Image.resize`, horizontally and then vertically, both limited to 0 … 255; a picture that
    shrinks is smoothed by a filter as wide as its pixels become (antialiasing). Pillow rounds to whole numbers after
    each, which this does not, so the two differ by about one of 255; by more where bicubic overshoots the limits in
    both directions and Pillow 12 begins with the height because it shrinks more.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, config: Preprocessing) -> None:
        super().__init__()
        self.config = config
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (config.mean, config.std))
        wanted = torch.get_default_dtype()
        self.register_buffer("scale", (config.rescale / std).to(wanted), persistent=False)
        self.register_buffer("shift", (mean / std).to(wanted), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        in_height, in_width = (
            torch.scalar_tensor(size, dtype=torch.int64, device=pixels.device) for size in pixels.shape[1:3]
        )
        x = pixels.permute(0, 3, 1, 2).to(self.scale.dtype)  # (B, C, in_height, in_width)
        for axis, in_size in ((1, in_width), (0, in_height)):
            weights = self._weights(axis, in_size, torch.minimum(in_height, in_width), pixels.shape[1 + axis])
            x = (weights @ x if axis == 0 else x @ weights.T).clamp(0, 255)
        return x * self.scale - self.shift

    def _weights(self, axis: int, in_size: Tensor, shorter: Tensor, length: int) -> Tensor:
        """What each row or column that comes out is made of: (out, length)."""
        resize = self.config.resize
        if resize is None:
            resized = in_size
        elif isinstance(resize, int):
            resized = torch.div(in_size * resize, shorter, rounding_mode="trunc")
        else:
            resized = torch.full_like(in_size, resize[axis])
        out = self.config.size[axis]
        first = torch.div(resized + out, 2, rounding_mode="trunc") - out  # floor((resized - out) / 2)
        places = torch.arange(out, device=in_size.device) + first
        inside = ((places >= 0) & (places < resized))[:, None]
        places = torch.minimum(places.clamp(min=0), resized - 1)
        return resampling(places, length, in_size, resized, self.scale.dtype, FILTERS[self.config.resample]) * inside


def resampling(
    places: Tensor,
    length: int,
    in_size: Tensor,
    out_size: Tensor,
    dtype: torch.dtype,
    kernel: Callable[[Tensor], Tensor],
) -> Tensor:
    """Weights (out, length) of a line of length = `in_size` pixels for the `places` (out,) of one of `out_size`:

        w[x, j] = kernel(d) / sum_j kernel(d)     d = ((2 j + 1) out - (2 x + 1) in) / (2 max(in, out))

    which is the distance of the pixels' middles, in pixels of the larger of the two. Whole numbers until the division.
    """
    middles = 2 * torch.arange(length, device=places.device) + 1
    distance = middles * out_size - (2 * places + 1)[:, None] * in_size
    weights = kernel(distance.to(dtype) / (2 * torch.maximum(in_size, out_size)).to(dtype))
    return weights / weights.sum(1, keepdim=True)


class InterpolatedPositions(nn.Module):
    """A trained table for a grid of patches, and for any other grid what bicubic interpolation makes of it.

    As `torch.nn.functional.interpolate(…, mode="bicubic", align_corners=False)`, a product with a matrix for each of
    the two directions: W[x, k] = cubic(((2 x + 1) G - (2 k + 1) n) / (2 n)) for a grid of n where the table has G,
    a = -0.75, and what lies beyond an edge counts as the edge. Of n = G it is the table, exactly.
    """

    fold_rows: Tensor
    fold_columns: Tensor

    def __init__(self, rows: int, columns: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, hidden_size).normal_(std=0.02))
        self.register_buffer("fold_rows", _fold(rows), persistent=False)
        self.register_buffer("fold_columns", _fold(columns), persistent=False)

    def forward(self, mask: Tensor) -> Tensor:
        """mask (B, R, C) booleans → (B, R, C, E).

        Each item has a grid of its own: the rows and columns from the first to the last where its mask is True.
        """
        by_row = self._matrix(mask.any(2), self.fold_rows)  # (B, R, G)
        by_column = self._matrix(mask.any(1), self.fold_columns)  # (B, C, G)
        lines = (by_row @ self.weight.flatten(1)).unflatten(2, self.weight.shape[1:])  # (B, R, G, E)
        return by_column[:, None] @ lines

    def _matrix(self, used: Tensor, fold: Tensor) -> Tensor:
        """used (B, n), what of a canvas takes part → (B, n, G)."""
        length, native = used.shape[1], fold.shape[1]
        place = torch.arange(length, device=used.device)
        first = torch.where(used, place, length).amin(1, keepdim=True)
        size = (torch.where(used, place, -1).amax(1, keepdim=True) - first + 1).clamp(min=1)  # (B, 1)
        taps = 2 * torch.arange(-2, native + 2, device=used.device) + 1
        distance = (2 * (place - first) + 1)[:, :, None] * native - (taps * size)[:, None]  # (B, n, G + 4)
        exact = distance.to(fold.dtype) / (2 * size)[:, :, None].to(fold.dtype)
        return bicubic(exact, a=-0.75) @ fold


def _fold(native: int) -> Tensor:
    """(G + 4, G): gives the two taps beyond each edge to the edge."""
    return torch.eye(native)[torch.arange(-2, native + 2).clamp(0, native - 1)]
