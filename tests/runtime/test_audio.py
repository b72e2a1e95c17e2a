import sys

import numpy as np
import pytest
import soundfile

from isoformer.runtime import InputError, audio
from isoformer.runtime.errors import IsoformerError


def sine(seconds: float, rate: int, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("kind", "error"), [("wav", 2**-15), ("flac", 2**-15), ("ogg", 0.05)])
def test_formats(tmp_path, kind, error):
    sound = sine(0.5, 16000)
    soundfile.write(tmp_path / f"sound.{kind}", sound, 16000)
    found = audio.read(tmp_path / f"sound.{kind}")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, sound, atol=error)


def test_real_speech(beckett):
    found = audio.read(beckett)
    assert found.shape == (159414,) or found.shape[0] / 16000 == pytest.approx(9.96, abs=0.01)
    np.testing.assert_array_equal(found, soundfile.read(beckett, dtype="float32")[0])


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates(tmp_path, rate):
    """A tone below both limits is the same tone, but near the ends, where the filter sees silence."""
    soundfile.write(tmp_path / "sound.wav", sine(0.5, rate), rate, subtype="FLOAT")
    found = audio.read(tmp_path / "sound.wav")
    assert abs(len(found) - 8000) <= 1
    np.testing.assert_allclose(found[500:7500], sine(0.5, 16000)[500:7500], atol=1e-3)


def test_channels_are_averaged(tmp_path):
    left, right = sine(0.1, 16000), sine(0.1, 16000, 523.0)
    soundfile.write(tmp_path / "sound.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(audio.read(tmp_path / "sound.wav"), (left + right) / 2, atol=1e-7)


def test_windows_go_on_in_silence():
    sound = np.arange(1, 8, dtype=np.float32)
    assert audio.window(sound, 2, 3).tolist() == [3, 4, 5]
    assert audio.window(sound, 5, 4).tolist() == [6, 7, 0, 0]
    assert audio.window(sound, 9, 2).tolist() == [0, 0]


# what is refused


def refusal(path) -> str:
    with pytest.raises(InputError) as error:
        audio.read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_sound(tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("a text, and no sound at all\n" * 20)
    assert refusal(text) == f"{text} cannot be read as sound: Format not recognised."
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    assert "cannot be read as sound" in refusal(empty)
    assert "is not a file" in refusal(tmp_path / "absent.wav")
    assert "is not a file" in refusal(tmp_path)
    assert refusal("") == "the name of a sound file is empty"


def test_a_file_without_samples(tmp_path):
    for rate in (16000, 44100):
        soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), rate)
        assert "holds no sound" in refusal(tmp_path / "none.wav")


def test_numbers_that_are_none(tmp_path):
    sound = sine(0.1, 16000)
    sound[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", sound, 16000, subtype="FLOAT")
    assert "infinite or no numbers" in refusal(tmp_path / "nan.wav")


@pytest.mark.parametrize(("library", "rate"), [("soundfile", 16000), ("soxr", 44100)])
def test_without_the_libraries(tmp_path, monkeypatch, library, rate):
    soundfile.write(tmp_path / "sound.wav", sine(0.1, rate), rate)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(IsoformerError, match=r"pip install 'isoformer\[audio\]'"):
        audio.read(tmp_path / "sound.wav")
