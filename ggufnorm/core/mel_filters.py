"""Banks of triangular filters, evenly spaced in mel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bank:
    """How a filter bank is made.

    Attributes:
        scale: of mels: ``slaney``, linear to 1 kHz, or ``htk``, logarithmic all over.
        area: whether each filter is divided by its width in Hz (Slaney's norm).
        low: where the first one begins, in Hz.
        high: where the last one ends, in Hz; 0 is half the rate.
        in_mel: whether the triangles' sides are straight in mel (Kaldi), not in Hz.
    """

    scale: str = "slaney"
    area: bool = True
    low: float = 0.0
    high: float = 0.0
    in_mel: bool = False

    def filters(self, rate: int, n_fft: int, n_mel: int) -> Array:
        """``(n_fft // 2 + 1, n_mel)`` for windows of ``n_fft`` samples."""
        htk = self.scale == "htk"
        low, high = _to_mel(self.low, htk), _to_mel(self.high or rate / 2, htk)
        bins = np.arange(n_fft // 2 + 1) * rate / n_fft
        edges = np.linspace(low, high, n_mel + 2)
        if self.in_mel:
            bins = np.array([_to_mel(float(hz), htk) for hz in bins])
        else:
            edges = _to_hz(edges, htk)
        first, middle, last = edges[:-2], edges[1:-1], edges[2:]
        rising = (bins[:, None] - first) / (middle - first)
        falling = (last - bins[:, None]) / (last - middle)
        bank = np.maximum(0, np.minimum(rising, falling))
        return np.asarray(bank * 2 / (last - first) if self.area else bank)


SLANEY = Bank()
"""librosa's and Whisper's."""


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
    return Bank("htk" if htk else "slaney", area).filters(rate, n_fft, n_mel)


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
