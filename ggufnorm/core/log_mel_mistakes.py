"""Which computation made these log-mel values of that sound?

A pipeline makes mel energies of samples, and of their logarithms what the encoder is fed:
``gain · max(log10 e, a bound) + offset``. Mistakes of the first kind are other samples,
windows or filters (:class:`Spectrum`), of the second another logarithm, scale or bound
(:class:`Scale`). :func:`explain` tries each with each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.feed import Explanation
from ggufnorm.core.log_mel import FLOOR, SPAN, Array, LogMel, resampled, scaled
from ggufnorm.core.spectra import Spectrum, Take, of_variations, variations
from ggufnorm.core.tolerances import AMBIGUOUS, MEL_FIT, MEL_FORMULA, SAME_SOUND

AS_EXPECTED = "normalized as expected"

_E = float(np.log(10))
_AUDIBLE = 0.1
"""Decibels below which a sound is not called louder."""
_MOST_FRAMES = 300
"""Frames that computations are tried on: more tell no more."""
_MOST_PADDING = 16
"""Frames of padding that are looked at."""
_LOUDEST = 8
"""Frames of the loudest that are always among those tried: the clamp is told by them."""
_PADDING = 1e-3
"""Difference of padding, in deviations, up to which it is as computed."""
_PAIR_GAIN = 0.3
"""Share of one mistake's residual below which a second one explains something."""
_FIRST_OF_PAIRS = 3
LLAMA_FLOOR = 2.0**-24
"""llama.cpp's least energy (``filter_params::mel_floor`` in ``tools/mtmd/mtmd-audio.cpp``)."""


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
    right = Take(resampled(channels.mean(axis=0), rate, formula.rate), formula)
    yield of_variations(right, (), None)
    for variation in variations(channels, rate, formula):
        yield of_variations(right, (variation,), None)


def scales(whole: float | None, batch: float | None = None) -> Iterator[Scale]:
    """What a pipeline may have made of energies, the right thing first.

    Args:
        whole: decades of the loudest value of all of a sound that is longer than what the
            encoder takes at once; None for one that is not.
        batch: decades of the loudest value of all inputs fed together, None of one alone.
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
    if batch is not None:
        text = "the maximum is that of all inputs together (the batch), not of each"
        tops.append(("clamp-of-batch", text, True, batch))
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


Pairs = Callable[[Sequence[int], NDArray[np.intp]], Iterator[Spectrum]]
"""``(places of spectra, frames) -> spectra with a second mistake``, at those frames alone."""


def pairs_of(channels: Array, rate: int, formula: LogMel) -> Pairs:
    """Spectra with two mistakes, of which one is known.

    Args:
        channels: as for :func:`spectra`, whose places are counted.
        rate: as well.
        formula: as well.
    """
    right = Take(resampled(channels.mean(axis=0), rate, formula.rate), formula)
    every = list(variations(channels, rate, formula))

    def made(places: Sequence[int], at: NDArray[np.intp]) -> Iterator[Spectrum]:
        done = set()
        for place, j in product(places, range(len(every))):
            first, second = sorted((place - 1, j))
            same = first == second or every[first].mistake == every[second].mistake
            if place == 0 or same or (first, second) in done:
                continue
            done.add((first, second))
            yield of_variations(right, (every[first], every[second]), at)

    return made


def explain(
    values: Array,
    tried: Sequence[Spectrum],
    whole: float | None,
    *,
    batch: float | None = None,
    n_sound: int | None = None,
    pairs: Pairs | None = None,
) -> Explanation[Scale]:
    """Say what made the values of a sound.

    Of the computations that are as good as the best the one with the fewest mistakes is
    taken. If none comes near to a free fit of gain and offset, these are given in figures.

    Args:
        values: ``(mel bins, frames)``, finite; of the first frames only where the sound is
            not padded as it should be.
        tried: of :func:`spectra`, with as many mel bins and at least as many frames.
        whole: as in :func:`scales`.
        batch: as well.
        n_sound: frames that the sound has a part in, the rest is padding; by default all.
        pairs: of :func:`pairs_of`, tried where one mistake explains too little.
    """
    if tried[0].energies.max() <= FLOOR:
        text = "the sound is silent: it tells nothing"
        return Explanation((), text, None, None, identified=False)
    if not np.ptp(values):
        return Explanation(("constant",), "one value all over", None, None)
    n = min(n_sound or values.shape[1], values.shape[1])
    at, padding = _sampled(values[:, :n]), _few(n, values.shape[1], _MOST_PADDING)
    fed = _Fed(values[:, at], values[:, padding])
    every = list(scales(whole, batch))
    parts = [
        _Part(s, s.energies[:, at], s.energies[:, padding], float(s.energies.max())) for s in tried
    ]
    found: list[_Found] = []
    for _n, alike in groupby(sorted(product(parts, every), key=_n_mistakes), _n_mistakes):
        group = [_try(p, s, fed) for p, s in alike]
        found += group
        exact = [f for f in group if f.residual <= MEL_FORMULA and f.padded]
        if exact:
            return _explained(min(exact, key=lambda f: f.residual))
    best = min(f.residual for f in found)
    if best > MEL_FORMULA and pairs is not None:
        more = _paired(found, tried, pairs, every, fed, at, padding)
        if more and more[0].residual <= max(MEL_FORMULA, _PAIR_GAIN * best):
            found, best = [*found, *more], more[0].residual
    free = _free_fit(parts[0], fed.sound)
    if best > max(4 * MEL_FORMULA, 1.5 * free[0]) and free[0] < MEL_FIT:
        return free[1]
    if best > SAME_SOUND:
        return Explanation((), "the values are not of this sound", None, best, identified=False)
    # In the order of their mistakes: the first that is good has the fewest.
    good = [f for f in found if f.residual <= max(MEL_FORMULA, AMBIGUOUS * best)]
    return _explained(next((f for f in good if f.padded), good[0]))


@dataclass(frozen=True, eq=False)
class _Fed:
    """Values of some frames: of the sound, and of its padding."""

    sound: Array
    padding: Array


class _Part(NamedTuple):
    """Some frames of a spectrum, and the loudest value of all."""

    spectrum: Spectrum
    some: Array
    padding: Array
    loudest: float


class _Found(NamedTuple):
    """How near one computation comes to the sound, and whether to the padding."""

    residual: float
    spectrum: Spectrum
    scale: Scale
    padded: bool


def _sampled(sound: Array) -> NDArray[np.intp]:
    """Frames to try computations on: some all over, the first ones and the loudest."""
    n = sound.shape[1]
    loudest = np.argsort(sound.max(axis=0))[-_LOUDEST:]
    return np.unique(np.concatenate([_few(0, n, _MOST_FRAMES), np.arange(min(n, 3)), loudest]))


def _few(start: int, stop: int, most: int) -> NDArray[np.intp]:
    return np.arange(start, stop, max(1, -(-(stop - start) // most)))


def _try(part: _Part, scale: Scale, fed: _Fed) -> _Found:
    residual = _residual(scale.apply(part.some, part.loudest), fed.sound)
    made = scale.apply(part.padding, part.loudest)
    near = max(_PADDING, 3 * residual) * float(fed.sound.std())
    padded = not made.size or bool(np.abs(made - fed.padding).max() <= near)
    return _Found(residual, part.spectrum, scale, padded)


def _paired(
    found: Sequence[_Found],
    tried: Sequence[Spectrum],
    pairs: Pairs,
    every: Sequence[Scale],
    fed: _Fed,
    at: NDArray[np.intp],
    padding: NDArray[np.intp],
) -> list[_Found]:
    """Two mistakes on the way to energies, of which one explains most by itself; best first."""
    nearest: dict[int, float] = {}
    for f in found:
        place = next(i for i, s in enumerate(tried) if s is f.spectrum)
        nearest[place] = min(nearest.get(place, np.inf), f.residual)
    places = sorted(nearest, key=lambda i: nearest[i])[:_FIRST_OF_PAIRS]
    more = []
    for spectrum in pairs(places, np.concatenate([at, padding])):
        some, rest = spectrum.energies[:, : len(at)], spectrum.energies[:, len(at) :]
        part = _Part(spectrum, some, rest, float(spectrum.energies.max()))
        more += [_try(part, scale, fed) for scale in every]
    more.sort(key=lambda f: f.residual)
    good = [f for f in more if f.residual <= max(MEL_FORMULA, AMBIGUOUS * more[0].residual)]
    return sorted(good, key=lambda f: len(f.spectrum.mistakes) + len(f.scale.mistakes))


def _n_mistakes(pair: tuple[_Part, Scale]) -> int:
    return len(pair[0].spectrum.mistakes) + len(pair[1].mistakes)


def _explained(found: _Found) -> Explanation[Scale]:
    spectrum, scale = found.spectrum, found.scale
    mistakes, texts = [*spectrum.mistakes, *scale.mistakes], [spectrum.text, scale.text]
    if not found.padded:
        mistakes.append("padding-of-another")
        texts.append("what follows the sound is not what silence gives")
    text = "; ".join(t for t in texts if t) or AS_EXPECTED
    return Explanation(tuple(mistakes), text, scale, found.residual)


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
