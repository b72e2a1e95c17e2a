"""transcribe-ctc: what is said in a sound file, by an encoder that names a token for each of its frames.

Best path decoding: the likeliest token of each frame, what repeats once, blanks left out: Graves et al. 2006
(https://doi.org/10.1145/1143844.1143891), section 3.2. Sound that is longer than the model's window goes through in
windows that overlap by a third, and of each only the frames with sound on both sides are read.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from isoformer.runtime import audio
from isoformer.runtime.session import Graphs
from isoformer.runtime.tasks.transcribe import FEATURES, show, srt
from isoformer.runtime.tasks.translate import ENCODER
from isoformer.runtime.text import text_encoder

__all__ = ["run", "show", "srt"]
EXAMPLE = "speech.wav"
BATCH_SIZE = 8  # windows of sound
PAUSE = 0.5  # seconds without a token between two segments

Span = tuple[int, int, int, int]


def run(
    graphs: Graphs,
    files: Sequence[str],
    *,
    truncate: bool = False,
    progress: Callable[[int], None] = lambda _done: None,
    heard: Callable[[float, float], None] = lambda _done, _total: None,
) -> list[dict[str, Any]]:
    """[{"input": path, "text": …, "segments": [{"start": s, "end": s, "text": …}, …], "token_ids": […]}, …]

    Segments stand between pauses of half a second. truncate: of a longer file only the first window. progress: called
    with the number of files that are done; heard: with the seconds of sound that are done, and of all files.
    Raises InputError for files that are no sound.
    """
    task = graphs.package.task
    unit = task["hop_length"] * task["stride"]  # samples to a frame of the encoder
    most = task["max_frames"] // task["stride"]
    sounds = [audio.read(file, task["sample_rate"]) for file in files]
    if truncate:
        sounds = [sound[: most * unit] for sound in sounds]
    frames = [-(-len(sound) // unit) for sound in sounds]
    todo = [(number, span) for number, count in enumerate(frames) for span in spans(count, most)]
    best: list[list[int]] = [[] for _ in files]
    for at in range(0, len(todo), BATCH_SIZE):
        chosen = todo[at : at + BATCH_SIZE]
        for (number, span), tokens in zip(chosen, _likeliest(graphs, sounds, chosen, unit), strict=True):
            start, _, first, last = span
            best[number] += tokens[first - start : last - start]
        heard(*(sum(some) * unit / task["sample_rate"] for some in ([len(b) for b in best], frames)))
        progress(sum(len(best[number]) == frames[number] for number in {number for number, _ in chosen}))
    decode, seconds = text_encoder(graphs[ENCODER]).tokenizer.decode, unit / task["sample_rate"]
    results = []
    for file, tokens in zip(files, best, strict=True):
        found = collapse(tokens, task["blank"])
        segments = [
            {
                "start": round(part[0][1] * seconds, 3),
                "end": round(part[-1][2] * seconds, 3),
                "text": decode([token for token, _, _ in part]).strip(),
            }
            for part in _between_pauses(found, PAUSE / seconds)
        ]
        ids = [token for token, _, _ in found]
        results.append({"input": str(file), "text": decode(ids).strip(), "segments": segments, "token_ids": ids})
    return results


def spans(frames: int, most: int) -> list[Span]:
    """Windows of up to `most` frames over so many: (start, stop, first, last), of which first … last - 1 are read.

    Each frame is read once; all but those at an end have a sixth of a window on both sides.
    """
    margin, start, found = most // 6, 0, list[Span]()
    while True:
        stop = min(start + most, frames)
        found.append((start, stop, start + margin if start else 0, stop - margin if stop < frames else frames))
        if stop == frames:
            return found
        start += most - 2 * margin


def collapse(tokens: Sequence[int], blank: int) -> list[tuple[int, int, int]]:
    """[(token, its first frame, the frame behind its last), …]: a token for each frame → what is said."""
    found, at = [], 0
    for token, same in groupby(tokens):
        stop = at + len(list(same))
        if token != blank:
            found.append((token, at, stop))
        at = stop
    return found


def _likeliest(
    graphs: Graphs, sounds: Sequence[np.ndarray], chosen: Sequence[tuple[int, Span]], unit: int
) -> list[list[int]]:
    """The likeliest token of every frame of each window. Each has the features that it has alone; padding is masked."""
    features = [
        graphs[FEATURES].run({"waveform": audio.window(sounds[number], start * unit, (stop - start) * unit)[None]})
        for number, (start, stop, _, _) in chosen
    ]
    lengths = [stop - start for _, (start, stop, _, _) in chosen]
    values = [array["input_features"][0] for array in features]
    per_frame = values[0].shape[1] // lengths[0]
    wide = [np.pad(v, ((0, 0), (0, max(lengths) * per_frame - v.shape[1]))) for v in values]
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    logits = graphs[ENCODER].run({"input_features": np.stack(wide), "attention_mask": mask}, ["logits"])["logits"]
    return [row[:length].argmax(-1).tolist() for row, length in zip(logits, lengths, strict=True)]


def _between_pauses(found: Sequence[tuple[int, int, int]], frames: float) -> list[list[tuple[int, int, int]]]:
    """The tokens in parts: a new one behind so many frames without any."""
    parts: list[list[tuple[int, int, int]]] = []
    for one in found:
        if not parts or one[1] - parts[-1][-1][2] >= frames:
            parts.append([])
        parts[-1].append(one)
    return parts
