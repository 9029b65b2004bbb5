"""Which computation made these log-mel values of that sound?

A pipeline makes mel energies of samples, and of their logarithms what the encoder is fed:
``gain · max(log10 e, a bound) + offset``. Mistakes of the first kind are other samples,
windows or filters (:class:`Spectrum`), of the second another logarithm, scale or bound
(:class:`Scale`). :func:`explain` tries each with each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import NamedTuple

import numpy as np

from ggufnorm.core.feed import Explanation
from ggufnorm.core.log_mel import FLOOR, SPAN, Array, LogMel, resampled, scaled
from ggufnorm.core.tolerances import AMBIGUOUS, MEL_FIT, MEL_FORMULA, SAME_SOUND

AS_EXPECTED = "normalized as expected"

_E = float(np.log(10))
_AUDIBLE = 0.1
"""Decibels below which a sound is not called louder."""
_MOST_FRAMES = 300
"""Frames that computations are tried on: more tell no more."""
LLAMA_FLOOR = 2.0**-24
"""llama.cpp's least energy (``filter_params::mel_floor`` in ``tools/mtmd/mtmd-audio.cpp``)."""


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


@dataclass(frozen=True)
class Scale:
    """``gain · max(log10 e, log10 floor, top - span) + offset``.

    Attributes:
        mistakes: names of what is not as expected.
        text: the same in words.
        gain: of decades; None feeds the energies themselves.
        offset: added at the end.
        span: decades kept below ``top``, None to keep all.
        floor: least energy.
        top: decades of the loudest value; by default of the values themselves.
        relative: whether that is subtracted first.
    """

    mistakes: tuple[str, ...]
    text: str
    gain: float | None = 0.25
    offset: float = 1.0
    span: float | None = SPAN
    floor: float = FLOOR
    top: float | None = None
    relative: bool = False

    def apply(self, energies: Array, loudest: float) -> Array:
        """Values of energies.

        Args:
            energies: at any places.
            loudest: energy of the whole spectrogram.
        """
        if self.gain is None:
            return energies
        logs = np.log10(np.maximum(energies, self.floor))
        top = float(np.log10(max(loudest, self.floor))) if self.top is None else self.top
        if self.span is not None:
            logs = np.maximum(logs, top - self.span)
        return np.asarray(self.gain * (logs - top * self.relative) + self.offset)

    def undo(self, values: Array) -> Array:
        """Energies of values, those below the bound raised to it."""
        with np.errstate(over="ignore"):
            return values if self.gain is None else 10 ** ((values - self.offset) / self.gain)


def expected_again(scale: Scale, values: Array) -> Array:
    """Values as the expected scale gives them, where another one gave these."""
    return scaled(scale.undo(values))


def spectra(channels: Array, rate: int, formula: LogMel) -> Iterator[Spectrum]:
    """Energies of a sound in all the ways that pipelines make them, the right one first.

    Args:
        channels: ``(channels, samples)``, from -1 to 1.
        rate: of the samples, in Hz.
        formula: the expected one.
    """
    n_mel = formula.shape[0]
    mono = channels.mean(axis=0)
    samples = resampled(mono, rate, formula.rate)

    def of(mistake: str, text: str, how: LogMel, sound: Array = samples) -> Spectrum:
        return Spectrum((mistake,), text, how.energies(sound))

    yield Spectrum((), "", formula.energies(samples))
    if rate != formula.rate:
        text = f"the samples of {rate:,} Hz were taken for ones of {formula.rate:,} Hz"
        yield of("not-resampled", text, formula, mono)
    if len(channels) > 1:
        text = "the first channel alone was taken, not the mean of all"
        yield of("one-channel", text, formula, resampled(channels[0], rate, formula.rate))
    text = "samples from -32768 to 32767 were not divided by 32768"
    yield of("levels-not-scaled", text, formula, samples * 2**15)
    text = "high frequencies were raised first (pre-emphasis of 0.97)"
    yield of(
        "pre-emphasis", text, formula, np.append(samples[:1], samples[1:] - 0.97 * samples[:-1])
    )
    text = "windows begin where they should have their middle (center=False)"
    yield of("not-centred", text, replace(formula, centred=False))
    yield of(
        "window-of-another", "Hamming's window, not Hann's", replace(formula, window="hamming")
    )
    yield of("window-missing", "no window", replace(formula, window="none"))
    text = "the filters sum magnitudes, not their squares (power=1)"
    yield of("magnitudes", text, replace(formula, power=1.0))
    text = "the filters are spaced in HTK's mels, not Slaney's"
    yield of("mel-scale-of-another", text, formula.with_bins(n_mel, htk=True))
    text = "the filters are not divided by their widths (norm=None)"
    yield of("mel-not-normalized", text, formula.with_bins(n_mel, area=False))
    text = "the filters are HTK's, and not divided by their widths: torchaudio's defaults"
    yield Spectrum(("mel-scale-of-another", "mel-not-normalized"), text,
                   formula.with_bins(n_mel, htk=True, area=False).energies(samples))  # fmt: skip


def scales(whole: float | None) -> Iterator[Scale]:
    """What a pipeline may have made of energies, the right thing first.

    Args:
        whole: decades of the loudest value of all of a sound that is longer than what the
            encoder takes at once; None for one that is not.
    """
    floors = [
        ("", "", FLOOR),
        ("mel-floor", "energies below 2^-24 were raised to it, not those below 1e-10", LLAMA_FLOOR),
    ]
    tops: list[tuple[str, str, bool, float | None]] = [
        ("", "", True, None),
        ("clamp-missing", "nothing was cut off 8 decades below the maximum", False, None),
    ]
    if whole is not None:
        text = "the maximum is that of the whole sound, not of the part that is fed"
        tops.append(("clamp-of-whole", text, True, whole))
    logs = [
        ("", "", 1.0, SPAN),
        ("natural-logarithm", "the logarithm is natural, not to base 10", _E, SPAN / _E),
        ("decibels", "decibels, not decades", 10.0, SPAN),
    ]
    steps = [
        ("", "", 0.25, 1.0),
        ("not-scaled", "(x + 4) / 4 was left out", 1.0, 0.0),
        ("scaled-twice", "(x + 4) / 4 was done twice", 0.0625, 1.25),
        ("offset-missing", "divided by 4, but 4 was not added", 0.25, 0.0),
        ("divisor-missing", "4 was added, but not divided by 4", 1.0, 4.0),
    ]
    for floor, top, log, step in product(floors, tops, logs, steps):
        parts = [(name, text) for name, text, *_ in (step, log, top, floor) if name]
        yield Scale(
            mistakes=tuple(name for name, _text in parts),
            text="; ".join(text for _name, text in parts),
            gain=log[2] * step[2],
            offset=step[3],
            span=log[3] if top[2] else None,
            floor=floor[2],
            top=top[3],
        )
    yield Scale(("logarithm-missing",), "energies: no logarithm was taken", gain=None)
    text = "decibels below the loudest value"
    yield Scale(("decibels",), text, gain=10.0, offset=0.0, relative=True)


def explain(values: Array, tried: Sequence[Spectrum], whole: float | None) -> Explanation[Scale]:
    """Say what made the values of a sound.

    Of the computations that are as good as the best the one with the fewest mistakes is
    taken. If none comes near to a free fit of gain and offset, these are given in figures.

    Args:
        values: ``(mel bins, frames)``, finite; of the first frames only where the sound is
            not padded as it should be.
        tried: of :func:`spectra`, with as many mel bins and at least as many frames.
        whole: as in :func:`scales`.
    """
    if tried[0].energies.max() <= FLOOR:
        text = "the sound is silent: it tells nothing"
        return Explanation((), text, None, None, identified=False)
    if not np.ptp(values):
        return Explanation(("constant",), "one value all over", None, None)
    step = -(-values.shape[1] // _MOST_FRAMES)
    y = values[:, ::step]
    some = slice(None, values.shape[1], step)
    few = [_Part(s, s.energies[:, some], float(s.energies.max())) for s in tried]
    pairs = sorted(product(few, scales(whole)), key=_n_mistakes)
    found: list[tuple[float, Spectrum, Scale]] = []
    for _n, alike in groupby(pairs, _n_mistakes):
        found += [(_residual(s.apply(p.some, p.loudest), y), p.spectrum, s) for p, s in alike]
        if min(f[0] for f in found) <= MEL_FORMULA:
            return _explained(*min(found, key=lambda f: f[0]))
    best = min(residual for residual, _, _ in found)
    free = _free_fit(few[0], y)
    if best > max(4 * MEL_FORMULA, 1.5 * free[0]) and free[0] < MEL_FIT:
        return free[1]
    if best > SAME_SOUND:
        return Explanation((), "the values are not of this sound", None, best, identified=False)
    # In the order of their mistakes: the first that is good has the fewest.
    return _explained(*next(f for f in found if f[0] <= AMBIGUOUS * best))


class _Part(NamedTuple):
    """Some frames of a spectrum, and the loudest value of all."""

    spectrum: Spectrum
    some: Array
    loudest: float


def _n_mistakes(pair: tuple[_Part, Scale]) -> int:
    return len(pair[0].spectrum.mistakes) + len(pair[1].mistakes)


def _explained(residual: float, spectrum: Spectrum, scale: Scale) -> Explanation[Scale]:
    text = "; ".join(t for t in (spectrum.text, scale.text) if t) or AS_EXPECTED
    return Explanation((*spectrum.mistakes, *scale.mistakes), text, scale, residual)


def _residual(made: Array, values: Array) -> float:
    with np.errstate(all="ignore"):
        # Not np.linalg.norm: BLAS wakes threads for each of a thousand calls.
        off = float(np.sqrt(np.square(made - values).sum() / values.var() / values.size))
    return off if np.isfinite(off) else np.inf


def _free_fit(part: _Part, values: Array) -> tuple[float, Explanation[Scale]]:
    """Gain and offset that come nearest to values above their least, and what they mean.

    The residual is infinite if they are the expected ones.
    """
    nothing = np.inf, Explanation[Scale]((), "", None, None, identified=False)
    logs = np.log10(np.maximum(part.some, FLOOR))
    low = float(values.min())
    kept = (values > low + 1e-3 * np.ptp(values)) & (part.some > FLOOR)
    if kept.sum() < 3 or not np.ptp(logs[kept]):
        return nothing
    x, y = logs[kept], values[kept]
    gain = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    offset = float(y.mean() - gain * x.mean())
    decibels = 10 * (offset - 1) / gain if gain else np.inf
    if abs(gain - 0.25) > 0.25 * MEL_FIT:
        name = "constants-unknown"
        text = f"{gain:.4g} times the decades of energy, and {offset:.4g}: not (x + 4) / 4"
    elif abs(decibels) > _AUDIBLE:
        how = "louder" if decibels > 0 else "quieter"
        name, text = "level", f"the sound is {abs(decibels):.3g} dB {how}"
    elif abs(low - Scale((), "").apply(part.some, part.loudest).min()) > 0.25 * _AUDIBLE / 10:
        name, text = "clamp-of-another", f"values below {low:.4g} were raised to it"
    else:
        return nothing
    residual = _residual(np.maximum(gain * logs + offset, low), values)
    scale = Scale((name,), text, gain, offset)
    return residual, Explanation((name,), text, scale, residual)
