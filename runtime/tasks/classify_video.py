"""classify-video: which of the model's classes a clip belongs to."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from isoformer.runtime import clips
from isoformer.runtime.errors import InputError
from isoformer.runtime.session import Session
from isoformer.runtime.tasks import classify

EXAMPLE = "clip.mp4"
BATCH_SIZE = 8


def run(
    session: Session,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[dict[str, Any]]:
    """[{"input": file, "label": the best, "scores": {label: probability}, "frames": how many were looked at}, …]

    Each text is the name of a video file, scaled as the model was trained. Looked at is its middle square, at as many
    moments as the model was made for: evenly over the clip or, where the model has a stride, so many frames apart
    around its middle. Of a clip with fewer frames all are. Raises InputError as `clips.read` does.
    """
    if truncate:
        raise InputError("a clip is looked at at moments of all of it: leave --truncate (truncate=True) out")
    task = session.package.task
    results: list[dict[str, Any]] = []
    for start in range(0, len(texts), BATCH_SIZE):
        chosen = texts[start : start + BATCH_SIZE]
        prepared = [load(name, task) for name in chosen]
        logits = session.run(batch(prepared), ["logits"])["logits"].astype(np.float64)
        for name, frames, row in zip(chosen, prepared, logits, strict=True):
            results.append(classify.result(name, row, task["labels"], "single_label") | {"frames": len(frames)})
        progress(len(chosen))
    return results


def load(path: str, task: dict[str, Any]) -> np.ndarray:
    """The chosen frames of a file as the model has them: (T, channels, S, S) float32."""
    frames = clips.read(path, task["short_side"], lambda count: clips.evenly(count, task["frames"], task["stride"]))
    return to_values(clips.middle_square(frames, task["image_size"]), task)


def to_values(frames: np.ndarray, task: dict[str, Any]) -> np.ndarray:
    """(T, S, S, 3) uint8 → (T, channels, S, S) float32, (x / 255 - mean) / std; one channel is the mean of three."""
    values = (frames.astype(np.float32) / np.float32(255) - np.float32(task["image_mean"])) / np.float32(
        task["image_std"]
    )
    values = values.mean(-1, keepdims=True) if task["channels"] == 1 else values
    return np.ascontiguousarray(np.moveaxis(values, -1, 1))


def batch(prepared: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The model's inputs for clips (T, channels, S, S) of several lengths: shorter ones are padded at their end."""
    longest = max(map(len, prepared))
    pixel_values = np.zeros((len(prepared), longest, *prepared[0].shape[1:]), np.float32)
    mask = np.zeros((len(prepared), longest), np.int64)
    for row, frames in enumerate(prepared):
        pixel_values[row, : len(frames)], mask[row, : len(frames)] = frames, 1
    return {"pixel_values": pixel_values, "frame_mask": mask}


show = partial(classify.show, what="clip")
