"""Which computation made these log-mel values of that sound?

A pipeline makes mel energies of samples, and of their logarithms what the encoder is fed:
``gain · max(log10 e, a bound) + offset``. Mistakes of the first kind are other samples,
windows or filters (:class:`Spectrum`), of the second another logarithm, scale or bound
(:class:`Scale`). :func:`explain` tries each with each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.feed import Explanation
from ggufnorm.core.log_mel import FLOOR, Array, LogMel, resampled
from ggufnorm.core.log_mel_scales import Scale, scales
from ggufnorm.core.spectra import Spectrum, Take, of_variations, variations
from ggufnorm.core.tolerances import AMBIGUOUS, MEL_FIT, MEL_FORMULA, SAME_SOUND

AS_EXPECTED = "normalized as expected"

_AUDIBLE = 0.1
"""Decibels below which a sound is not called louder."""
_MOST_FRAMES = 160
"""Frames that computations are tried on: more tell no more."""
_MOST_PADDING = 16
"""Frames of padding that are looked at."""
_LOUDEST = 8
"""Frames of the loudest that are always among those tried: the clamp is told by them."""
_PADDING = 1e-3
"""Difference of padding, in deviations, up to which it is as computed."""
_PAIR_GAIN = 0.3
"""Share of one mistake's residual below which a second one explains something."""
_FIRST_OF_PAIRS = 6
"""Pairs that are tried with every scale: those whose energies come nearest to a line."""


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


Pairs = Callable[[NDArray[np.intp]], Iterator[Spectrum]]
"""``frames -> spectra with two mistakes``, at those frames alone."""


def pairs_of(channels: Array, rate: int, formula: LogMel) -> Pairs:
    """Spectra with two mistakes; the arguments are those of :func:`spectra`."""
    right = Take(resampled(channels.mean(axis=0), rate, formula.rate), formula)
    every = list(variations(channels, rate, formula))

    def made(at: NDArray[np.intp]) -> Iterator[Spectrum]:
        for first, second in combinations(every, 2):
            if first.mistake != second.mistake:
                yield of_variations(right, (first, second), at)

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
        more = _paired(pairs, every, fed, at, padding)
        nearer = min((f.residual for f in more), default=np.inf)
        if nearer <= max(MEL_FORMULA, _PAIR_GAIN * best):
            found, best = [*found, *more], nearer
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
    pairs: Pairs,
    every: Sequence[Scale],
    fed: _Fed,
    at: NDArray[np.intp],
    padding: NDArray[np.intp],
) -> list[_Found]:
    """Two mistakes on the way to energies; of those as good as the best the fewest first."""
    screened = [
        (_unexplained(s.energies[:, : len(at)], fed.sound), s)
        for s in pairs(np.concatenate([at, padding]))
    ]
    screened.sort(key=lambda pair: pair[0])
    more = []
    for _left, spectrum in screened[:_FIRST_OF_PAIRS]:
        some, rest = spectrum.energies[:, : len(at)], spectrum.energies[:, len(at) :]
        part = _Part(spectrum, some, rest, float(spectrum.energies.max()))
        more += [_try(part, scale, fed) for scale in every]
    best = min((f.residual for f in more), default=np.inf)
    good = [f for f in more if f.residual <= max(MEL_FORMULA, AMBIGUOUS * best)]
    return sorted(good, key=lambda f: len(f.spectrum.mistakes) + len(f.scale.mistakes))


def _unexplained(energies: Array, values: Array) -> float:
    """What a line through energies or their logarithms leaves of values above their least."""
    kept = (values > values.min() + 1e-3 * np.ptp(values)) & (energies > FLOOR)
    if kept.sum() < 3:
        return np.inf
    y, e = values[kept], energies[kept]
    correlations = [np.corrcoef(y, x)[0, 1] for x in (np.log10(e), e) if np.ptp(x)]
    return 1 - max((abs(float(c)) for c in correlations), default=0.0)


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
