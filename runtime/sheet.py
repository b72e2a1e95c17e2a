"""Small pictures as a PNG file or as characters. A PNG needs the extra `image` (Pillow)."""

import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isoformer.runtime.errors import InputError
from isoformer.runtime.extras import library

COLUMNS = 10
SIDE = 64  # pixels that the longer side of a picture has at least: each of its own becomes a square
GAP = 4
BACKGROUND = 96
SHADES = " ░▒▓█"


def refuse(path: Path) -> None:
    """Raises InputError for a place where no PNG can go, before anything is computed, and without Pillow."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} does not end in .png")
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise InputError(f"{path} cannot be written: {why}")
    library("PIL.Image")


def arrange(pictures: Sequence[np.ndarray], columns: int = COLUMNS) -> np.ndarray:
    """One picture of several of one size, uint8 (H, W) or (H, W, 3) each: side by side, `columns` in a row.

    One alone stands as it is; several have a margin. Each pixel is enlarged to a square, see SIDE.
    """
    height, width = pictures[0].shape[:2]
    factor = max(1, -(-SIDE // max(height, width)))
    large = [picture.repeat(factor, 0).repeat(factor, 1) for picture in pictures]
    if len(large) == 1:
        return large[0]
    columns = min(columns, len(large))
    rows = -(-len(large) // columns)
    height, width = height * factor + GAP, width * factor + GAP
    sheet = np.full((rows * height + GAP, columns * width + GAP, *large[0].shape[2:]), BACKGROUND, np.uint8)
    for number, picture in enumerate(large):
        top, left = GAP + number // columns * height, GAP + number % columns * width
        sheet[top : top + height - GAP, left : left + width - GAP] = picture
    return sheet


def save(picture: np.ndarray, path: Path) -> None:
    """The picture, uint8 (H, W) or (H, W, 3), as a PNG at `path`, whole or not at all; a file there is replaced."""
    refuse(path)
    beside = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            library("PIL.Image").fromarray(np.ascontiguousarray(picture)).save(file, format="PNG")
        beside.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def as_text(picture: np.ndarray) -> str:
    """The picture in five shades, two characters a pixel, a line a row; colours by their mean."""
    grey = picture.astype(np.float64).reshape(*picture.shape[:2], -1).mean(2)
    shades = np.minimum((grey / 256 * len(SHADES)).astype(int), len(SHADES) - 1)
    return "\n".join("".join(2 * SHADES[shade] for shade in row).rstrip() for row in shades)
