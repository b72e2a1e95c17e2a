"""Video files as frames. Needs the extra `video` (PyAV, https://pyav.basswood-io.com)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from isoformer.runtime.errors import InputError
from isoformer.runtime.extras import library

MAX_SIDE = 2**14
SHARE_OF_FRAMES = 0.95  # of those that the file's head promises: a few may be hidden by an edit list


def read(
    path: str | Path, short_side: int | None = None, choose: Callable[[int], np.ndarray] | None = None
) -> np.ndarray:
    """Frames of a video file: (frames, H, W, 3) uint8, RGB; scaled (bicubic) so that their shorter side is
    `short_side`, or as they are. Where the size changes on the way, all have the first one's.

    choose: from how many frames there are to the places of those that are wanted, ascending; without it all are, which
    a long video needs the memory for.
    Raises InputError for a file that is missing, no video, damaged or cut off, and IsoformerError without PyAV.
    """
    places, size, found = None, None, list[np.ndarray]()
    if choose is not None:
        places = set(choose(sum(1 for _ in _decoded(path))).tolist())
    for number, frame in enumerate(_decoded(path)):
        size = size or _size(frame, path, short_side)
        if places is None or number in places:
            found.append(_scaled(frame, size))
    return np.stack(found)


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


def _decoded(path: str | Path) -> Iterator[Any]:
    """The frames in the order in which they are shown; InputError at the end where there are too few."""
    av, count = library("av"), 0
    with _opened(path) as container:
        if not container.streams.video:
            raise InputError(f"{path} holds no video")
        promised = max(1, container.streams.video[0].frames)  # 0 where the file does not say
        try:
            for frame in container.decode(video=0):
                yield frame
                count += 1
        except av.error.FFmpegError as error:
            raise InputError(f"{path} cannot be read as video: {error.strerror}") from None
    if count < SHARE_OF_FRAMES * promised:
        raise InputError(f"{path} cannot be read as video: it ends after {count} of {promised} frames")


def _size(frame: Any, path: str | Path, short_side: int | None) -> tuple[int, int]:
    """(width, height) of what is read of a file whose first frame this is."""
    sides = (frame.width, frame.height)
    if max(sides) > MAX_SIDE:
        raise InputError(f"{path} has frames of {sides[0]} × {sides[1]} pixels; a side has {MAX_SIDE} at most")
    if short_side is None:
        return sides
    width, height = (round(side * short_side / min(sides)) for side in sides)
    return width, height


def _scaled(frame: Any, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) of a frame, as it is where it has that size."""
    if (frame.width, frame.height) != size:
        frame = frame.reformat(width=size[0], height=size[1], interpolation="BICUBIC")
    return frame.to_ndarray(format="rgb24")


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    av = library("av")
    av.logging.set_level(av.logging.PANIC)  # what is wrong is said by the errors
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
