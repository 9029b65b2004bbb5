"""Log-mel spectrograms, from samples to mel energies; Whisper's to what the encoder is fed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.mel_filters import SLANEY, Bank, mel_filters

Array = NDArray[np.float64]

FLOOR = 1e-10
"""Least energy of which the logarithm is taken (``log_mel_spectrogram`` in whisper/audio.py)."""
SPAN = 8.0
"""Decades below the loudest value at which all is cut off."""
_SHIFT = _DIVISOR = 4.0
_AT_ONCE = 4096
"""Frames whose spectra are in memory together."""

WHISPERS_FORMULA = "(max(log10 energy, maximum - 8) + 4) / 4"
WHISPER_RATE, WHISPER_FFT, WHISPER_HOP, WHISPER_SECONDS = 16_000, 400, 160, 30
"""Constants of whisper/audio.py, and of ``tools/mtmd/clip.cpp`` for encoders of its kind."""


@dataclass(frozen=True, eq=False)
class LogMel:
    """How a log-mel spectrogram is computed; its mel energies, and Whisper's logarithm of them.

    Attributes:
        rate: samples a second.
        n_fft: samples of a Fourier transform.
        hop: samples from one window to the next.
        n_samples: that the sound is cut or padded with zeros to.
        filters: ``(n_fft // 2 + 1, mel bins)``.
        window: ``hann``, ``hann-symmetric``, ``hamming``, ``povey`` or ``none``.
        power: of the magnitudes that the filters sum: 2 for energies.
        centred: whether the first window's middle is the first sample, not its beginning.
        win: samples of a window, the rest of the transform is zeros; 0 for ``n_fft``.
        edge: how a centred sound goes on at both ends: ``reflect`` by its mirror image,
            ``zeros`` or ``repeat`` by its last sample.
        frames: how many: ``cut``, one per hop; ``all``, one more; ``inside``, those whose
            window lies within the sound; ``next``, whose window and next sample do.
        preemphasis: share of the sample before that is subtracted of each.
        framewise: whether that is done in each window, the first sample scaled (HTK's way).
        remove_mean: whether each window's mean is subtracted first.
        level: of the samples: 32768 for integers.
        bank: what made ``filters``.
    """

    rate: int
    n_fft: int
    hop: int
    n_samples: int
    filters: Array
    window: str = "hann"
    power: float = 2.0
    centred: bool = True
    win: int = 0
    edge: str = "reflect"
    frames: str = "cut"
    preemphasis: float = 0.0
    framewise: bool = False
    remove_mean: bool = False
    level: float = 1.0
    bank: Bank = SLANEY

    @property
    def shape(self) -> tuple[int, int]:
        """Mel bins and frames."""
        return self.filters.shape[1], self.n_frames

    @property
    def width(self) -> int:
        """Samples of a window."""
        return self.win or self.n_fft

    @property
    def n_frames(self) -> int:
        """How many."""
        if self.frames in ("inside", "next"):
            first = -(self.width // 2) if self.centred else 0
            left = self.n_samples - first - self.width - (self.frames == "next")
            return max(0, left // self.hop + 1)
        return self.n_samples // self.hop + (self.frames == "all")

    def energies(self, samples: Array, at: NDArray[np.intp] | None = None) -> Array:
        """Mel energies ``(mel bins, frames)`` of samples at :attr:`rate`.

        Args:
            samples: from -1 to 1.
            at: which frames, by default all.
        """
        sound = samples[: self.n_samples]
        n_mel, n_frames = self.shape
        # All behind these are zeros.
        n_sound = min(n_frames, (len(sound) + self.width) // self.hop + 1)
        wanted = np.arange(n_frames) if at is None else at
        computed = np.flatnonzero(wanted < n_sound)
        frames = np.lib.stride_tricks.sliding_window_view(self._padded(sound), self.width)
        energies, window = np.zeros((n_mel, len(wanted))), _window(self.window, self.width)
        for start in range(0, len(computed), _AT_ONCE):
            some = computed[start : start + _AT_ONCE]
            spectrum = np.fft.rfft(
                self._filtered(frames[wanted[some] * self.hop]) * window, self.n_fft
            )
            energies[:, some] = (np.abs(spectrum) ** self.power @ self.filters).T
        return energies

    def _padded(self, sound: Array) -> Array:
        """The sound and what is around it, from the first window on."""
        x = np.pad(sound, (0, self.n_samples - len(sound))) * self.level
        if self.preemphasis and not self.framewise:
            x = np.append(x[:1], x[1:] - self.preemphasis * x[:-1])
            x[len(sound) :] = 0
        half = self.width // 2 if self.centred else 0
        how: Any = {"reflect": "reflect", "zeros": "constant", "repeat": "edge"}[self.edge]
        if half:
            x = np.pad(x, half, mode=how if len(x) > half else "constant")
        return np.pad(x, (0, self.width + self.hop))

    def _filtered(self, frames: Array) -> Array:
        if self.remove_mean:
            frames = frames - frames.mean(axis=1, keepdims=True)
        if self.preemphasis and self.framewise:
            share = self.preemphasis
            rest = frames[:, 1:] - share * frames[:, :-1]
            frames = np.concatenate([(1 - share) * frames[:, :1], rest], axis=1)
        return frames

    def apply(self, samples: Array) -> Array:
        """What Whisper's encoder is fed, ``(mel bins, frames)``."""
        return scaled(self.energies(samples))

    def with_bins(self, n_mel: int, *, htk: bool = False, area: bool = True) -> LogMel:
        """The same with a filter bank of :func:`mel_filters`."""
        return self.with_bank(
            replace(self.bank, scale="htk" if htk else "slaney", area=area), n_mel
        )

    def with_bank(self, bank: Bank, n_mel: int | None = None) -> LogMel:
        """The same with another filter bank."""
        n = self.filters.shape[1] if n_mel is None else n_mel
        return replace(self, bank=bank, filters=bank.filters(self.rate, self.n_fft, n))


def whisper(n_mel: int) -> LogMel:
    """Whisper's own, with that many mel bins."""
    bank = mel_filters(WHISPER_RATE, WHISPER_FFT, n_mel)
    n_samples = WHISPER_RATE * WHISPER_SECONDS
    return LogMel(WHISPER_RATE, WHISPER_FFT, WHISPER_HOP, n_samples, bank)


def scaled(energies: Array) -> Array:
    """``(max(log10 e, its maximum - 8) + 4) / 4``, with energies of at least 1e-10."""
    logs = np.log10(np.maximum(energies, FLOOR))
    return np.asarray((np.maximum(logs, logs.max() - SPAN) + _SHIFT) / _DIVISOR)


def _window(name: str, length: int) -> Array:
    """``window_function`` in transformers' audio_utils: periodic but for the last two."""
    if name == "none":
        return np.ones(length)
    symmetric = name in ("hann-symmetric", "povey")
    middle = 0.54 if name == "hamming" else 0.5
    angles = 2 * np.pi * np.arange(length) / (length - 1 if symmetric else length)
    window = middle - (1 - middle) * np.cos(angles)
    return np.asarray(window**0.85 if name == "povey" else window)


def resampled(samples: Array, rate: int, to: int) -> Array:
    """A sound at another rate, its band limited in the frequency domain."""
    if rate == to:
        return samples
    n = max(1, round(len(samples) * to / rate))
    spectrum = np.fft.rfft(samples)[: n // 2 + 1]
    return np.asarray(np.fft.irfft(spectrum, n) * n / len(samples))
