"""Sound files as numbers: mono, 16 kHz, float32. Needs the extra `audio` (soundfile, soxr)."""

from pathlib import Path

import numpy as np

from isoformer.runtime.errors import InputError
from isoformer.runtime.extras import library

SAMPLE_RATE = 16000


def read(path: str | Path, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """The sound of a WAV, FLAC, OGG or MP3 file: (samples,) float32 at `sample_rate` Hz, full scale -1 … 1.

    Channels are averaged; another rate is resampled with soxr (https://sourceforge.net/p/soxr).
    Raises InputError for a file that is missing, no sound, damaged or empty, and IsoformerError where a library lacks.
    """
    soundfile = library("soundfile")
    if not str(path).strip():
        raise InputError("the name of a sound file is empty")
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; give a sound file (WAV, FLAC, OGG, MP3)")
    try:
        with path.open("rb") as file:
            channels, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError) as error:  # soundfile's own is a RuntimeError
        words = " ".join(str(error).split())
        why = getattr(error, "error_string", words)  # without the name of the file as Python shows it
        raise InputError(f"{path} cannot be read as sound: {why}") from None
    sound = channels.mean(axis=1, dtype=np.float32)
    if rate != sample_rate and sound.size:
        sound = library("soxr").resample(sound, rate, sample_rate).astype(np.float32, copy=False)
    if not sound.size:
        raise InputError(f"{path} holds no sound")
    if not np.isfinite(sound).all():
        raise InputError(f"{path} holds samples that are infinite or no numbers")
    return np.ascontiguousarray(sound)


def window(sound: np.ndarray, begin: int, length: int) -> np.ndarray:
    """The samples from `begin` on, `length` of them: silence (0) behind the end of the sound."""
    piece = sound[begin : begin + length]
    return np.pad(piece, (0, length - len(piece)))
