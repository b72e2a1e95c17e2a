"""Picture files as pixels, and through a package's preprocessor. Needs the extra `image` (Pillow)."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoformer.runtime.errors import InputError
from isoformer.runtime.extras import library
from isoformer.runtime.session import Graphs, Session

BATCH_SIZE = 16
PREPROCESSOR = "preprocessor"


def read(path: str | Path, channels: int = 3) -> np.ndarray:
    """The picture of a PNG, JPEG, WebP, GIF, BMP or TIFF file: (height, width, channels) uint8, RGB or grey (1).

    It is turned as its EXIF orientation says; transparent pixels are white; 16 bits become the upper 8; of several
    frames the first is read.
    Raises InputError for a file that is missing, no picture, damaged or too large, and IsoformerError without Pillow.
    """
    pillow = library("PIL.Image")
    if not str(path).strip():
        raise InputError("the name of a picture file is empty")
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a picture file (PNG, JPEG, WebP, GIF, BMP, TIFF)")
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise InputError(f"this model takes {channels} channels; a picture file has 1 or 3")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path) as image:
                pixels = _pixels(image, mode)
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise InputError(f"{path} has more than {pillow.MAX_IMAGE_PIXELS:,} pixels; make it smaller first") from None
    except pillow.UnidentifiedImageError:
        raise InputError(f"{path} is not a picture that can be read (PNG, JPEG, WebP, GIF, BMP, TIFF)") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a picture: {' '.join(str(error).split())}") from None
    return pixels.reshape(*pixels.shape[:2], channels)


def _pixels(image: Any, mode: str) -> np.ndarray:
    image = library("PIL.ImageOps").exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its numbers are of floating point; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        sixteen = image.mode.startswith("I;16") or wide.max() > 255
        image = library("PIL.Image").fromarray((wide >> 8 if sixteen else wide).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = library("PIL.Image").alpha_composite(library("PIL.Image").new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert(mode))


def pixel_values(preprocessor: Session, path: str | Path) -> np.ndarray:
    """What the preprocessor makes of a picture file: (1, channels, height, width)."""
    (spec,) = preprocessor.signature.inputs
    pixels = read(path, int(spec.axes[3]))
    return preprocessor.run({spec.name: pixels[None]})["pixel_values"]


def run_batches(
    graphs: Graphs,
    graph: str,
    paths: Sequence[str],
    output: str,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], None] = lambda _done: None,
) -> Iterator[np.ndarray]:
    """The row of `output` of each picture file, in order."""
    for start in range(0, len(paths), batch_size):
        chosen = paths[start : start + batch_size]
        values = np.concatenate([pixel_values(graphs[PREPROCESSOR], path) for path in chosen])
        yield from graphs[graph].run({"pixel_values": values}, [output])[output]
        progress(len(chosen))
