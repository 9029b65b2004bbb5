"""Whisper's log-mel spectrogram, from samples to what the encoder is fed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FLOOR = 1e-10
"""Least energy of which the logarithm is taken (``log_mel_spectrogram`` in whisper/audio.py)."""
SPAN = 8.0
"""Decades below the loudest value at which all is cut off."""
_SHIFT = _DIVISOR = 4.0
_AT_ONCE = 4096
"""Frames whose spectra are in memory together."""

WHISPER_RATE, WHISPER_FFT, WHISPER_HOP, WHISPER_SECONDS = 16_000, 400, 160, 30
"""Constants of whisper/audio.py, and of ``tools/mtmd/clip.cpp`` for encoders of its kind."""


@dataclass(frozen=True, eq=False)
class LogMel:
    """How a log-mel spectrogram is computed.

    Attributes:
        rate: samples a second.
        n_fft: samples of a window.
        hop: samples from one window to the next.
        n_samples: that the sound is cut or padded with zeros to.
        filters: ``(n_fft // 2 + 1, mel bins)``.
        window: ``hann``, ``hamming`` or ``none``.
        power: of the magnitudes that the filters sum: 2 for energies.
        centred: whether the first window's middle is the first sample, not its beginning;
            the sound is continued by its mirror image at both ends.
    """

    rate: int
    n_fft: int
    hop: int
    n_samples: int
    filters: Array
    window: str = "hann"
    power: float = 2.0
    centred: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """Mel bins and frames."""
        return self.filters.shape[1], self.n_samples // self.hop

    def energies(self, samples: Array) -> Array:
        """Mel energies ``(mel bins, frames)`` of samples at :attr:`rate`."""
        sound = samples[: self.n_samples]
        x = np.pad(sound, (0, self.n_samples - len(sound)))
        if self.centred:
            x = np.pad(x, self.n_fft // 2, mode="reflect")
        else:
            x = np.pad(x, (0, self.n_fft))
        n_mel, n_frames = self.shape
        frames = np.lib.stride_tricks.sliding_window_view(x, self.n_fft)[:: self.hop]
        # All behind these are zeros.
        frames = frames[: min(n_frames, (len(sound) + self.n_fft) // self.hop + 1)]
        energies, window = np.zeros((n_mel, n_frames)), _window(self.window, self.n_fft)
        for start in range(0, len(frames), _AT_ONCE):
            some = slice(start, min(start + _AT_ONCE, len(frames)))
            spectrum = np.abs(np.fft.rfft(frames[some] * window))
            energies[:, some] = (spectrum**self.power @ self.filters).T
        return energies

    def apply(self, samples: Array) -> Array:
        """What the encoder is fed, ``(mel bins, frames)``."""
        return scaled(self.energies(samples))

    def with_bins(self, n_mel: int, *, htk: bool = False, area: bool = True) -> LogMel:
        """The same with a filter bank of :func:`mel_filters`."""
        bank = mel_filters(self.rate, self.n_fft, n_mel, htk=htk, area=area)
        return replace(self, filters=bank)


def whisper(n_mel: int) -> LogMel:
    """Whisper's own, with that many mel bins."""
    bank = mel_filters(WHISPER_RATE, WHISPER_FFT, n_mel)
    n_samples = WHISPER_RATE * WHISPER_SECONDS
    return LogMel(WHISPER_RATE, WHISPER_FFT, WHISPER_HOP, n_samples, bank)


def scaled(energies: Array) -> Array:
    """``(max(log10 e, its maximum - 8) + 4) / 4``, with energies of at least 1e-10."""
    logs = np.log10(np.maximum(energies, FLOOR))
    return np.asarray((np.maximum(logs, logs.max() - SPAN) + _SHIFT) / _DIVISOR)


def mel_filters(
    rate: int, n_fft: int, n_mel: int, *, htk: bool = False, area: bool = True
) -> Array:
    """Triangles that are evenly spaced in mel, from 0 Hz to half the rate.

    As ``mel_filter_bank`` in transformers' audio_utils and ``librosa.filters.mel``.

    Args:
        rate: samples a second.
        n_fft: samples of a window.
        n_mel: how many.
        htk: whether mels are HTK's, logarithmic all over, or Slaney's, linear to 1 kHz.
        area: whether each is divided by its width in Hz (Slaney's norm).

    Returns:
        ``(n_fft // 2 + 1, n_mel)``.
    """
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    edges = _to_hz(np.linspace(0, _to_mel(rate / 2, htk), n_mel + 2), htk)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - low) / (middle - low)
    falling = (high - bins[:, None]) / (high - middle)
    bank = np.maximum(0, np.minimum(rising, falling))
    return np.asarray(bank * 2 / (high - low) if area else bank)


_LINEAR, _STEP = 3 / 200, np.log(6.4) / 27
"""Slaney's mels a Hz up to 1 kHz, and the logarithm of a mel's ratio from there on."""


def _to_mel(hz: float, htk: bool) -> float:
    if htk:
        return float(2595 * np.log10(1 + hz / 700))
    return hz * _LINEAR if hz < 1000 else float(15 + np.log(hz / 1000) / _STEP)


def _to_hz(mel: Array, htk: bool) -> Array:
    if htk:
        return np.asarray(700 * (10 ** (mel / 2595) - 1))
    return np.where(mel < 15, mel / _LINEAR, 1000 * np.exp((mel - 15) * _STEP))


def _window(name: str, length: int) -> Array:
    """A periodic window."""
    if name == "none":
        return np.ones(length)
    middle = {"hann": 0.5, "hamming": 0.54}[name]
    return np.asarray(middle - (1 - middle) * np.cos(2 * np.pi * np.arange(length) / length))


def resampled(samples: Array, rate: int, to: int) -> Array:
    """A sound at another rate, its band limited in the frequency domain."""
    if rate == to:
        return samples
    n = max(1, round(len(samples) * to / rate))
    spectrum = np.fft.rfft(samples)[: n // 2 + 1]
    return np.asarray(np.fft.irfft(spectrum, n) * n / len(samples))
