import math

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from isoformer.models.features import HOP, SAMPLE_RATE, LogMel, fourier_basis, mel_filters

SECONDS = 3


def noise(seed: int = 0, scale: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(SECONDS * SAMPLE_RATE) * scale).astype(np.float32)


def sine(hz: float) -> np.ndarray:
    return np.sin(2 * math.pi * hz * np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)


def theirs(waveform: np.ndarray, num_mels: int = 80, *, float64: bool = False) -> np.ndarray:
    """transformers' features of the waveform as it stands; float64: its numpy code, which is that precise."""
    extractor = WhisperFeatureExtractor(feature_size=num_mels)
    if float64:
        return extractor._np_extract_fbank_features(waveform[None].astype(np.float64), "cpu")[0]
    return extractor._torch_extract_fbank_features(waveform[None])[0]


def ours(waveform: np.ndarray, num_mels: int = 80) -> np.ndarray:
    return LogMel(num_mels)(torch.from_numpy(waveform)[None])[0].numpy()


@pytest.fixture(scope="module")
def speech(beckett) -> np.ndarray:
    return soundfile.read(beckett, dtype="float32")[0]


SOUNDS = {"noise": noise(), "faint noise": noise(1, 1e-4), "sine": sine(440.0), "silence": np.zeros(4800, np.float32)}


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("name", SOUNDS)
def test_as_transformers_in_float32(name, num_mels):
    np.testing.assert_allclose(ours(SOUNDS[name], num_mels), theirs(SOUNDS[name], num_mels), atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_mels", [80, 128])
def test_as_transformers_of_speech(speech, num_mels):
    np.testing.assert_allclose(ours(speech, num_mels), theirs(speech, num_mels), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SOUNDS)
def test_the_equation_in_float64(name):
    module = LogMel().double()
    module.basis, module.filters = fourier_basis(), mel_filters(80)  # not rounded to float32 on the way
    found = module(torch.from_numpy(SOUNDS[name]).double()[None])[0].numpy()
    np.testing.assert_allclose(found, theirs(SOUNDS[name], float64=True), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_mels", [80, 128, 7])
def test_filters_are_those_of_transformers(num_mels):
    if num_mels == 7:
        from transformers.audio_utils import mel_filter_bank

        want = mel_filter_bank(201, 7, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    else:
        want = WhisperFeatureExtractor(feature_size=num_mels).mel_filters
    np.testing.assert_allclose(mel_filters(num_mels).numpy(), np.asarray(want).T, atol=1e-12, rtol=0)


def test_silence_is_one_number():
    """Every power is the floor: (log10(1e-10) + 4) / 4."""
    assert (LogMel()(torch.zeros(2, 1601)) == -1.5).all()


@pytest.mark.parametrize(("samples", "frames"), [(320, 2), (479, 2), (480, 3), (1601, 10)])
def test_a_frame_every_hop(samples, frames):
    assert LogMel(7)(torch.zeros(3, samples)).shape == (3, 7, frames)
    assert frames == samples // HOP


def test_rows_do_not_meet():
    waveforms = torch.from_numpy(np.stack([noise(1)[:1600], sine(523.0)[:1600]])).double()
    module = LogMel(11).double()
    for row, waveform in zip(module(waveforms), waveforms, strict=True):
        torch.testing.assert_close(row, module(waveform[None])[0], atol=1e-11, rtol=0)


def test_nothing_is_more_than_eight_decades_below_the_loudest():
    quiet = np.concatenate([sine(440.0)[:16000], np.zeros(16000, np.float32)])
    features = ours(quiet)
    assert features.min() == pytest.approx(features.max() - 2, abs=1e-6)


def test_nothing_to_save():
    assert not LogMel().state_dict()


@pytest.mark.parametrize("shape", [(1600,), (1, 1, 1600), (1, 200), (1, 0)])
def test_a_wrong_waveform(shape):
    with pytest.raises(ValueError, match="it is \\(batch, samples\\)"):
        LogMel()(torch.zeros(shape))


def test_a_wrong_number_of_mels():
    with pytest.raises(ValueError, match="num_mels is 0"):
        LogMel(0)
