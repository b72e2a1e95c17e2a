"""From sound to the features that a speech model reads, as operators that every ONNX runtime has.

No Fourier transform among them: framing, window and transform are one convolution whose kernels are the windowed
cosines and sines, so that the features of an exported model are the same wherever a convolution is.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLE_RATE = 16000  # Hz
WINDOW = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms
FLOOR = 1e-10  # of the power, before the logarithm
RANGE = 8.0  # decades below the loudest that are kept

# Slaney's mel scale: a line up to 1000 Hz, then logarithmic, 27 steps to a factor of 6.4.
_HZ_A_MEL, _KNEE_HZ, _LOG_STEP = 200 / 3, 1000.0, math.log(6.4) / 27


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram [1] of sound sampled at 16 kHz:

        power[f, t] = |sum_n hann[n] x[160 t + n - 200] exp(-2 pi i f n / 400)|^2      f = 0 … 200
        log[m, t] = log10(max(sum_f filter[m, f] power[f, t], 1e-10))
        features = (max(log, max(log) - 8) + 4) / 4                                    max(log) of the whole item

    x is the waveform, full scale -1 … 1, reflected at both ends; the mel filters are `mel_filters`. There is a frame
    every 10 ms, the last one, which stands at the end, left out. (B, samples) → (B, num_mels, samples // 160).

    The maximum is the item's: another length of silence behind a sound changes nothing, a louder sound does.

    Raises ValueError for waveforms that are not (B, samples) with 201 samples or more.

    [1] Radford et al. 2022, https://arxiv.org/abs/2212.04356, section 2.2.
    """

    basis: Tensor
    filters: Tensor

    def __init__(self, num_mels: int = 80) -> None:
        super().__init__()
        if type(num_mels) is not int or num_mels < 1:
            raise ValueError(f"num_mels is {num_mels!r}; it must be a whole number, at least 1")
        wanted = torch.get_default_dtype()
        self.register_buffer("basis", fourier_basis().to(wanted), persistent=False)
        self.register_buffer("filters", mel_filters(num_mels).to(wanted), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        if waveform.ndim != 2 or (not torch.compiler.is_compiling() and waveform.shape[1] <= WINDOW // 2):
            raise ValueError(
                f"the waveform has shape {tuple(waveform.shape)}; it is (batch, samples), {WINDOW // 2 + 1} or more"
            )
        padded = F.pad(waveform[:, None], (WINDOW // 2, WINDOW // 2), mode="reflect")  # (B, 1, samples + 400)
        spectrum = F.conv1d(padded, self.basis, stride=HOP)[:, :, :-1]  # (B, 2 * 201, T)
        power = spectrum.square().unflatten(1, (2, WINDOW // 2 + 1)).sum(1)  # (B, 201, T)
        log = (self.filters @ power).clamp(min=FLOOR).log10()  # (B, M, T)
        loudest = log.amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(log, loudest - RANGE) + 4) / 4


def fourier_basis() -> Tensor:
    """The 201 cosines and 201 sines of 400 points under a periodic Hann window: (402, 1, 400), float64."""
    n = torch.arange(WINDOW, dtype=torch.float64)
    turns = torch.outer(torch.arange(WINDOW // 2 + 1, dtype=torch.float64), n) % WINDOW  # exact, so sin(pi k) is small
    angles = 2 * math.pi / WINDOW * turns
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi / WINDOW * n)
    return (torch.cat([angles.cos(), angles.sin()]) * hann)[:, None]


def mel_filters(num_mels: int) -> Tensor:
    """Triangles over the 201 frequencies from 0 to 8000 Hz: (num_mels, 201), float64.

    Their corners stand evenly on Slaney's mel scale, m = 3 f / 200 below 1000 Hz and 15 + 27 ln(f / 1000) / ln 6.4
    above, and each is 2 / its width in Hz high, so that all have the same area.
    Slaney 1998, Auditory Toolbox, Technical Report 1998-010.
    """
    highest = SAMPLE_RATE / 2
    knee = _KNEE_HZ / _HZ_A_MEL
    mels = torch.linspace(0, knee + math.log(highest / _KNEE_HZ) / _LOG_STEP, num_mels + 2, dtype=torch.float64)
    corners = torch.where(mels < knee, mels * _HZ_A_MEL, _KNEE_HZ * torch.exp(_LOG_STEP * (mels - knee)))
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    hz = torch.linspace(0, highest, WINDOW // 2 + 1, dtype=torch.float64)
    triangles = torch.minimum((hz - low) / (middle - low), (high - hz) / (high - middle)).clamp(min=0)
    return triangles * (2 / (high - low))
