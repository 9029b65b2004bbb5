"""Mel energies of a sound in all the ways that pipelines make them.

A :class:`Variation` is one mistake: it changes the samples, or how their energies are
computed. Several are done one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.log_mel import Array, LogMel, resampled
from ggufnorm.core.mel_filters import Bank

_INTEGERS = 2.0**15
_PREEMPHASIS = 0.97


@dataclass(frozen=True, eq=False)
class Take:
    """Samples, and how their energies are computed."""

    samples: Array
    mel: LogMel

    def energies(self, at: NDArray[np.intp] | None = None) -> Array:
        """Mel energies ``(mel bins, frames)`` of all frames, or of those at ``at``."""
        return self.mel.energies(self.samples, at)


@dataclass(frozen=True, eq=False)
class Variation:
    """One mistake on the way to mel energies.

    Attributes:
        mistake: its name.
        text: the same in words.
        change: what it makes of the right way.
    """

    mistake: str
    text: str
    change: Callable[[Take], Take]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Mel energies of a sound, as a pipeline may have made them.

    Attributes:
        mistakes: names of what is not as expected.
        text: the same in words.
        energies: ``(mel bins, frames)``.
    """

    mistakes: tuple[str, ...]
    text: str
    energies: Array


def of_variations(right: Take, done: Sequence[Variation], at: NDArray[np.intp] | None) -> Spectrum:
    """Energies with some mistakes.

    Args:
        right: the right way.
        done: one after another.
        at: which frames, None for all.
    """
    for variation in done:
        right = variation.change(right)
    mistakes = tuple(dict.fromkeys(v.mistake for v in done))
    return Spectrum(mistakes, "; ".join(v.text for v in done), right.energies(at))


def variations(channels: Array, rate: int, mel: LogMel) -> Iterator[Variation]:
    """All that pipelines do otherwise.

    Args:
        channels: ``(channels, samples)``, from -1 to 1.
        rate: of the samples, in Hz.
        mel: how energies should be computed.
    """
    yield from _of_samples(channels, rate, mel)
    yield from _of_windows(mel)
    yield from _of_filters(mel.bank)


def _with_samples(samples: Array) -> Callable[[Take], Take]:
    return lambda take: _same_length(take, replace(take, samples=samples))


def _same_length(before: Take, after: Take) -> Take:
    """A sound of any length is as long as its samples are."""
    if before.mel.n_samples != len(before.samples):
        return after
    return replace(after, mel=replace(after.mel, n_samples=len(after.samples)))


def _with_mel(**changed: Any) -> Callable[[Take], Take]:
    return lambda take: replace(take, mel=replace(take.mel, **changed))


def _with_bank(**changed: Any) -> Callable[[Take], Take]:
    return lambda take: replace(
        take,
        mel=take.mel.with_bank(replace(take.mel.bank, **changed)),
    )


def _of_samples(channels: Array, rate: int, mel: LogMel) -> Iterator[Variation]:
    if rate != mel.rate:
        text = f"the samples of {rate:,} Hz were taken for ones of {mel.rate:,} Hz"
        yield Variation("not-resampled", text, _with_samples(channels.mean(axis=0)))
    if len(channels) > 1:
        text = "the first channel alone was taken, not the mean of all"
        first = resampled(channels[0], rate, mel.rate)
        yield Variation("one-channel", text, _with_samples(first))
    if mel.level == 1:
        text = "samples from -32768 to 32767 were not divided by 32768"
        yield Variation("levels-not-scaled", text, _with_mel(level=_INTEGERS))
    else:
        text = "samples from -1 to 1 were not multiplied by 32768"
        yield Variation("levels-scaled", text, _with_mel(level=1.0))
    if mel.preemphasis:
        text = f"high frequencies were not raised first (no pre-emphasis of {mel.preemphasis:g})"
        yield Variation("pre-emphasis-missing", text, _with_mel(preemphasis=0.0))
    else:
        text = f"high frequencies were raised first (pre-emphasis of {_PREEMPHASIS})"
        yield Variation("pre-emphasis", text, _raised)


def _raised(take: Take) -> Take:
    x = take.samples
    return replace(take, samples=np.append(x[:1], x[1:] - _PREEMPHASIS * x[:-1]))


_WINDOWS = {
    "hann": "Hann's, periodic",
    "hann-symmetric": "Hann's, symmetric",
    "hamming": "Hamming's",
    "povey": "Povey's",
}


def _of_windows(mel: LogMel) -> Iterator[Variation]:
    if mel.centred:
        text = "windows begin where they should have their middle (center=False)"
        yield Variation("not-centred", text, _with_mel(centred=False))
        edges = {"reflect": "its mirror image", "zeros": "zeros", "repeat": "its last sample"}
        for edge, words in edges.items():
            if edge != mel.edge:
                text = f"the sound goes on by {words} at its ends, not by {edges[mel.edge]}"
                yield Variation("edges-of-another", text, _with_mel(edge=edge))
    else:
        text = "windows have their middle where they should begin (center=True)"
        centred = _with_mel(centred=True, edge="reflect", frames="cut")
        yield Variation("centred", text, centred)
    for window, words in _WINDOWS.items():
        if window != mel.window:
            alike = {window, mel.window} == {"hann", "hann-symmetric"}
            name = "window-symmetry" if alike else "window-of-another"
            text = f"the window is {words}, not {_WINDOWS[mel.window]}"
            yield Variation(name, text, _with_mel(window=window))
    yield Variation("window-missing", "no window", _with_mel(window="none"))
    if mel.width < mel.n_fft:
        text = f"windows of {mel.n_fft} samples, not of {mel.width}"
        yield Variation("window-length", text, _with_mel(win=0))
    if mel.power == 2:
        text = "the filters sum magnitudes, not their squares (power=1)"
        yield Variation("magnitudes", text, _with_mel(power=1.0))
    else:
        text = "the filters sum squares of magnitudes, not magnitudes (power=2)"
        yield Variation("squares", text, _with_mel(power=2.0))
    if mel.remove_mean:
        text = "the mean of each window was not subtracted"
        yield Variation("mean-kept", text, _with_mel(remove_mean=False))


def _of_filters(bank: Bank) -> Iterator[Variation]:
    other = {"slaney": "htk", "htk": "slaney"}[bank.scale]
    names = {"slaney": "Slaney's", "htk": "HTK's"}
    text = f"the filters are spaced in {names[other]} mels, not {names[bank.scale]}"
    yield Variation("mel-scale-of-another", text, _with_bank(scale=other))
    if bank.area:
        text = "the filters are not divided by their widths (norm=None)"
        yield Variation("mel-not-normalized", text, _with_bank(area=False))
    else:
        text = "the filters are divided by their widths (norm='slaney')"
        yield Variation("mel-normalized", text, _with_bank(area=True))
    if bank.low or bank.high:
        text = "the filters go from 0 Hz to half the rate"
        yield Variation("mel-range", text, _with_bank(low=0.0, high=0.0))
    else:
        text = "the filters begin at 20 Hz"
        yield Variation("mel-range", text, _with_bank(low=20.0))
