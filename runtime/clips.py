"""Video files as frames. Needs the extra `video` (PyAV, https://pyav.basswood-io.com)."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from isoformer.runtime.errors import InputError, IsoformerError

MAX_SIDE = 2**14
SHARE_OF_FRAMES = 0.95  # of those that the file's head promises: a few may be hidden by an edit list


def read(path: str | Path, short_side: int | None = None) -> np.ndarray:
    """All frames of a video file: (frames, H, W, 3) uint8, RGB; scaled (bicubic) so that their shorter side is
    `short_side`, or as they are.

    Raises InputError for a file that is missing, no video, damaged or cut off, and IsoformerError without PyAV.
    """
    with _opened(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in _scaled(container, path, short_side)]
        promised = container.streams.video[0].frames  # 0 where the file does not say
    if len(frames) < SHARE_OF_FRAMES * max(1, promised):
        raise InputError(f"{path} cannot be read as video: it ends after {len(frames)} of {max(1, promised)} frames")
    return np.stack(frames)


def evenly(count: int, wanted: int, stride: int | None = None) -> np.ndarray:
    """The places of `wanted` frames of `count`: the middles of as many equal parts, or `stride` apart around the
    middle. Of fewer frames than that, as many as there are."""
    if stride is not None:
        wanted = min(wanted, 1 + (count - 1) // stride)
        first = (count - 1 - (wanted - 1) * stride) // 2
        return first + stride * np.arange(wanted)
    wanted = min(count, wanted)
    return ((np.arange(wanted) + 0.5) * count / wanted).astype(np.int64)


def middle_square(frames: np.ndarray, side: int) -> np.ndarray:
    """(T, H, W, 3) → (T, side, side, 3), of which H and W are not fewer, from their middle."""
    top, left = ((size - side) // 2 for size in frames.shape[1:3])
    return frames[:, top : top + side, left : left + side]


def _scaled(container: Any, path: str | Path, short_side: int | None) -> Iterator[Any]:
    """The frames in the order in which they are shown."""
    av = _pyav()
    if not container.streams.video:
        raise InputError(f"{path} holds no video")
    try:
        for frame in container.decode(video=0):
            sides = (frame.width, frame.height)
            if max(sides) > MAX_SIDE:
                raise InputError(f"{path} has frames of {sides[0]} × {sides[1]} pixels; a side has {MAX_SIDE} at most")
            if short_side is not None:
                width, height = (round(side * short_side / min(sides)) for side in sides)
                frame = frame.reformat(width=width, height=height, interpolation="BICUBIC")
            yield frame
    except av.error.FFmpegError as error:
        raise InputError(f"{path} cannot be read as video: {error.strerror}") from None


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    av = _pyav()
    if not str(path).strip():
        raise InputError("the name of a video file is empty")
    if not Path(path).is_file():
        raise InputError(f"{path} is not a file; give a video file (MP4, WebM, MKV, …)")
    try:
        container = av.open(str(Path(path).absolute()))  # a name alone could be a URL to FFmpeg
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{path} cannot be read as video: {error.strerror}") from None
    with container:
        yield container


def _pyav() -> ModuleType:
    try:
        av = importlib.import_module("av")
    except (ImportError, OSError) as error:
        raise IsoformerError(f"video needs PyAV ({error}): pip install 'isoformer[video]'") from error
    av.logging.set_level(av.logging.PANIC)  # what is wrong is said by the errors
    return av
