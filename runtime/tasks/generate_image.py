"""generate-image: pictures of a class, drawn pixel by pixel, or the picture that a number stands for."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoformer.runtime import sheet
from isoformer.runtime.errors import InputError, PackageError
from isoformer.runtime.generation import Settings, Stats, generate
from isoformer.runtime.sampling import suppress
from isoformer.runtime.session import Graphs, Session

if TYPE_CHECKING:
    from rich.console import Console

GENERATOR = "generator"
ANY = "any"
EXAMPLE = {"autoregressive": ANY, "gan": "1"}
BATCH_SIZE = 64
WIDEST = 40  # a picture that is shown as characters
LARGEST_SEED = 2**63


def run(
    session: Session | Graphs,
    texts: Sequence[str],
    *,
    settings: Settings | None = None,
    truncate: bool = False,
    output: Path | None = None,
    progress: Callable[[int], None] = lambda _done: None,
    stats: Stats | None = None,
) -> list[dict[str, Any]]:
    """[{"input": text, "label": class or None, "size": [height, width], "levels": number, "pixels": rows,
    "output": PNG or None}, …]; a pixel is a level from 0, dark, to levels - 1, or [red, green, blue] of these.

    An autoregressive model takes a class, by its label or its number from 0, or "any", and draws with temperature 1
    unless the settings say otherwise, by draws of its own for each input. A GAN takes a whole number, the seed of its
    noise.
    output: the PNG to write, where a file is replaced: one picture, or a sheet of several (see `sheet.arrange`).

    Raises InputError for an input that is none of these, for settings that the model does not have and a PNG that
    cannot be written.
    """
    if truncate:
        raise InputError("nothing is cut to draw a picture: leave --truncate (truncate=True) out")
    if not texts:
        return []
    if output is not None:
        sheet.refuse(output)
    kind = session.package.task.get("kind")
    if kind == "autoregressive" and isinstance(session, Session):
        labels, found = _classes(session, texts, settings, progress, stats)
        levels = session.package.task["levels"]
    elif kind == "gan" and isinstance(session, Graphs):
        labels, found, levels = [None] * len(texts), _of_noise(session, texts, settings, progress), 256
    else:
        raise PackageError(f"{session.package.path} draws no pictures: its kind is {kind!r}")
    if output is not None:
        sheet.save(sheet.arrange([grey(picture, levels) for picture in found]), output)
    return [
        {
            "input": text,
            "label": label,
            "size": list(picture.shape[:2]),
            "levels": levels,
            "pixels": picture.tolist(),
            "output": None if output is None else str(output),
        }
        for text, label, picture in zip(texts, labels, found, strict=True)
    ]


def grey(picture: np.ndarray, levels: int) -> np.ndarray:
    """Levels 0 … levels - 1 as uint8, 0 … 255."""
    return np.round(picture.astype(np.float64) * (255 / (levels - 1))).astype(np.uint8)


def to_uint8(pixel_values: np.ndarray) -> np.ndarray:
    """(B, channels, H, W) of -1 … 1 → (B, H, W) or (B, H, W, 3) of 0 … 255."""
    pixels = np.round((pixel_values.astype(np.float64).clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return pixels[:, 0] if pixels.shape[1] == 1 else np.moveaxis(pixels, 1, -1)


def noise(seeds: Sequence[int], size: int) -> np.ndarray:
    """(B, size) float32: what each seed stands for, the same everywhere."""
    return np.stack([np.random.default_rng(seed).standard_normal(size) for seed in seeds]).astype(np.float32)


def _classes(
    session: Session,
    texts: Sequence[str],
    settings: Settings | None,
    progress: Callable[[int], None],
    stats: Stats | None,
) -> tuple[list[str | None], list[np.ndarray]]:
    """The label and the picture, levels (H, W), of each text."""
    task = session.package.task
    size = (task["height"], task["width"])
    chosen = [_class(text, task["labels"]) for text in texts]
    settings = with_pixels(task, settings)
    prompts = [[task["no_class"] if number is None else task["levels"] + number] for number in chosen]
    found = generate(session, prompts, settings, stats=stats, progress=progress)
    labels = [None if number is None else task["labels"][number] for number in chosen]
    return labels, [np.array(pixels).reshape(size) for pixels in found]


def with_pixels(task: dict[str, Any], settings: Settings | None) -> Settings:
    """The settings for whole pictures: temperature 1 unless they say how to draw, and no token but pixels."""
    settings = settings or Settings()
    if settings.max_tokens != Settings.max_tokens or settings.eos:
        raise InputError("a picture has all of its pixels: leave --max-tokens (max_tokens, eos) out")
    if settings.temperature is None and settings.beams == 1:
        settings = replace(settings, temperature=1.0)
    pixels_alone = suppress(range(task["levels"], task["no_class"] + 1))
    return replace(settings, max_tokens=task["height"] * task["width"], processors=(*settings.processors, pixels_alone))


def _class(text: str, labels: Sequence[str]) -> int | None:
    """The number of the class, None for any."""
    name = text.strip()
    if name in labels:
        return list(labels).index(name)
    if name == ANY:
        return None
    if (number := _whole_number(name)) is not None and number < len(labels):
        return number
    known = ", ".join(labels[:20]) + ", …" * (len(labels) > 20)
    raise InputError(f"{text[:40]!r} is no class of this model; it draws {known}, or {ANY}")


def _of_noise(
    graphs: Graphs, texts: Sequence[str], settings: Settings | None, progress: Callable[[int], None]
) -> list[np.ndarray]:
    """The picture of each text, a seed."""
    task, generator = graphs.package.task, graphs[GENERATOR]
    if settings is not None:
        raise InputError("a picture of this model is all in its number: leave --seed, --temperature, … out")
    seeds = [_seed(text) for text in texts]
    found: list[np.ndarray] = []
    for start in range(0, len(seeds), BATCH_SIZE):
        chosen = seeds[start : start + BATCH_SIZE]
        pixel_values = generator.run(inputs(task, noise(chosen, task["latent_size"])))["pixel_values"]
        found += list(to_uint8(pixel_values))
        progress(len(chosen))
    return found


def inputs(task: dict[str, Any], noise: np.ndarray) -> dict[str, np.ndarray]:
    """The generator's inputs for pictures of the training's size."""
    sides = {"row_positions": task["grid_rows"], "column_positions": task["grid_columns"]}
    return {"noise": noise} | {
        name: np.tile(np.arange(n, dtype=np.float32), (len(noise), 1)) for name, n in sides.items()
    }


def _seed(text: str) -> int:
    number = _whole_number(text.strip())
    if number is None or number >= LARGEST_SEED:
        raise InputError(f"{text[:40]!r} is no seed; give a whole number from 0 up, such as 7")
    return number


def _whole_number(text: str) -> int | None:
    """The number that up to 19 digits say, None for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def show(results: Sequence[dict[str, Any]], console: "Console") -> None:
    """Where the PNG is; without one the pictures as characters, where they are small."""
    if not results:
        return
    if results[0]["output"] is not None:
        console.print(f"wrote {results[0]['output']}", highlight=False, markup=False, soft_wrap=True)
        return
    height, width = results[0]["size"]
    if width > WIDEST:
        console.print(
            f"{len(results)} pictures of {height} × {width} pixels; --output PNG writes them", highlight=False
        )
        return
    for result in results:
        console.print(result["input"], style="bold", highlight=False, markup=False)
        picture = sheet.as_text(grey(np.array(result["pixels"]), result["levels"]))
        console.print(picture, highlight=False, markup=False, soft_wrap=True)
