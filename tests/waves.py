"""Waveforms as pipelines feed them, right and wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.sounds import RATE, sound

STEREO_RATE = 44_100


@dataclass(frozen=True)
class Recording:
    """A stereo sound with an offset, and the same as a model should get it.

    Attributes:
        channels: ``(2, samples)`` at :data:`STEREO_RATE`, whole numbers of 2⁻¹⁵.
        mono: the mean of both, at 16 kHz.
    """

    channels: np.ndarray
    mono: np.ndarray


def recording(peak: float = 0.3, seed: int = 0, offset: float = 0.02) -> Recording:
    """A voice in one channel, another in the other."""
    from ggufnorm.core.log_mel import resampled

    both = np.stack([sound(2.0, STEREO_RATE, seed), 0.7 * sound(2.0, STEREO_RATE, seed + 9)])
    both = np.round(32768 * (both / np.abs(both).max() * peak + offset)) / 32768
    return Recording(both, resampled(both.mean(axis=0), STEREO_RATE, RATE))


def normalized(x: np.ndarray, epsilon: float = 1e-7) -> np.ndarray:
    """Of zero mean and unit variance."""
    return (x - x.mean()) / np.sqrt(x.var() + epsilon)


def padded(x: np.ndarray, n: int = 4000) -> np.ndarray:
    """With zeros at the end."""
    return np.append(x, np.zeros(n))


def _first_channel(r: Recording) -> np.ndarray:
    from ggufnorm.core.log_mel import resampled

    return resampled(r.channels[0], STEREO_RATE, RATE)


def _batch(r: Recording) -> np.ndarray:
    """With a louder sound of the same length."""
    other = sound(2.0, RATE, 31)
    return np.stack([r.mono, other / np.abs(other).max()])


def _resampled(r: Recording, rate: int) -> np.ndarray:
    from ggufnorm.core.log_mel import resampled

    return resampled(r.channels.mean(axis=0), STEREO_RATE, rate)


Feed = Callable[[Recording], np.ndarray]

WRONG: dict[str, tuple[tuple[str, ...], Feed]] = {
    "not normalized": (("not-normalized",), lambda r: r.mono),
    "raw int16": (("not-normalized", "levels-not-scaled"), lambda r: 32768 * r.mono),
    "raw int16, as integers": (
        ("not-normalized", "levels-not-scaled"),
        lambda r: np.round(32768 * r.mono).astype(np.int16),
    ),
    "over the batch": (
        ("normalized-over-batch",),
        lambda r: normalized(_batch(r)),
    ),
    "over the batch, one input": (
        ("normalized-over-batch",),
        lambda r: normalized(_batch(r))[0],
    ),
    "over the padding": (
        ("normalized-over-padding",),
        lambda r: normalized(padded(r.mono)),
    ),
    "mean only": (("std-unused",), lambda r: r.mono - r.mono.mean()),
    "deviation only": (("mean-unused",), lambda r: r.mono / r.mono.std()),
    "divided by the variance": (
        ("variance-as-std",),
        lambda r: (r.mono - r.mono.mean()) / r.mono.var(),
    ),
    "multiplied by the deviation": (
        ("std-multiplied",),
        lambda r: (r.mono - r.mono.mean()) * r.mono.std(),
    ),
    "mean added": (("mean-added",), lambda r: (r.mono + r.mono.mean()) / r.mono.std()),
    "peak of 1": (("peak-normalized",), lambda r: r.mono / np.abs(r.mono).max()),
    "0 to 1": (("range-normalized",), lambda r: (r.mono - r.mono.min()) / np.ptp(r.mono)),
    "-1 to 1": (
        ("range-normalized",),
        lambda r: 2 * (r.mono - r.mono.min()) / np.ptp(r.mono) - 1,
    ),
    "epsilon of 1e-3": (("epsilon-of-another",), lambda r: normalized(r.mono, 1e-3)),
    "not resampled": (("not-resampled",), lambda r: normalized(r.channels.mean(axis=0))),
    "at 8 kHz": (("not-resampled",), lambda r: normalized(_resampled(r, 8000))),
    "channels alternate": (
        ("not-mixed",),
        lambda r: normalized(
            np.stack([_first_channel(r), 2 * r.mono - _first_channel(r)]).T.ravel()
        ),
    ),
    "a channel each": (
        ("not-mixed",),
        lambda r: np.stack(
            [normalized(_first_channel(r)), normalized(2 * r.mono - _first_channel(r))]
        ),
    ),
    "pre-emphasis": (
        ("pre-emphasis",),
        lambda r: normalized(np.append(r.mono[:1], r.mono[1:] - 0.97 * r.mono[:-1])),
    ),
    "inverted": (("inverted",), lambda r: -normalized(r.mono)),
    "not resampled, not normalized": (
        ("not-resampled", "not-normalized"),
        lambda r: r.channels.mean(axis=0),
    ),
    "one channel, not normalized": (
        ("one-channel", "not-normalized"),
        _first_channel,
    ),
    "pre-emphasis, over the padding": (
        ("pre-emphasis", "normalized-over-padding"),
        lambda r: normalized(padded(np.append(r.mono[:1], r.mono[1:] - 0.97 * r.mono[:-1]))),
    ),
    "at 8 kHz, raw int16": (
        ("not-resampled", "not-normalized", "levels-not-scaled"),
        lambda r: 32768 * _resampled(r, 8000),
    ),
    "a channel each, not normalized": (
        ("not-mixed", "not-normalized"),
        lambda r: np.stack([_first_channel(r), 2 * r.mono - _first_channel(r)]),
    ),
    "later, not normalized": (
        ("not-normalized", "shifted"),
        lambda r: np.append(np.zeros(700), r.mono),
    ),
    "quieter": (("not-normalized", "level"), lambda r: 0.3 * r.mono),
    "mean only, quieter": (("std-unused", "level"), lambda r: 0.3 * (r.mono - r.mono.mean())),
    "constant": (("constant",), lambda r: np.zeros(32_000)),
    "NaN": (("non-finite",), lambda r: np.append(normalized(r.mono), np.nan)),
}
"""Of a model that takes zero mean and unit variance: what is wrong, and what is fed."""
WARNINGS = frozenset({"shifted", "level", "one-channel", "scale-of-another"})

RIGHT: dict[str, Feed] = {
    "as it is": lambda r: normalized(r.mono),
    "in a batch": lambda r: np.stack([normalized(x) for x in _batch(r)]),
    "one of a batch, the second": lambda r: np.stack([normalized(x) for x in _batch(r)])[::-1],
    "padded": lambda r: padded(normalized(r.mono)),
    "of int16": lambda r: normalized(32768 * r.mono),
    "of int16 by 32767": lambda r: normalized(32768 * r.mono / 32767),
    "without epsilon": lambda r: normalized(r.mono, 0.0),
    "unbiased": lambda r: (r.mono - r.mono.mean()) / r.mono.std(ddof=1),
    "half precision": lambda r: normalized(r.mono).astype(np.float16),
    "(inputs, 1, samples)": lambda r: normalized(r.mono)[None, None],
    "twice": lambda r: normalized(normalized(r.mono)),
}
