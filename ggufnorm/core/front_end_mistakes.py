"""Which computation made these values of that sound, where an encoder has a formula of its own?

As :mod:`ggufnorm.core.log_mel_mistakes` for Whisper's: mistakes on the way to mel energies
(:mod:`ggufnorm.core.spectra`), another logarithm and another scaling, each tried with each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import numpy as np

from ggufnorm.core.feed import Explanation
from ggufnorm.core.front_ends import FrontEnd, Logarithm, Scaling
from ggufnorm.core.log_mel import Array
from ggufnorm.core.spectra import Take, Variation, variations
from ggufnorm.core.tolerances import AMBIGUOUS, MEL_FIT, MEL_FORMULA, SAME_SOUND

AS_EXPECTED = "normalized as expected"

_MOST_FRAMES = 300
"""Frames that computations are compared on."""
_LONG = 6_000
"""Frames of sounds of which only logarithms and scalings are varied."""
_AUDIBLE = 0.1
"""Decibels below which a sound is not called louder."""
_FIRST_OF_PAIRS = 3
_PAIR_GAIN = 0.3
"""Share of one mistake's residual below which a second one explains something."""


@dataclass(frozen=True)
class _Ending:
    """What becomes of energies, with its mistakes."""

    mistakes: tuple[str, ...]
    text: str
    front: FrontEnd


@dataclass(frozen=True)
class _Found:
    residual: float
    variations: tuple[int, ...]
    mistakes: tuple[str, ...]
    text: str


class FrontEndExplainer:
    """Explains spectrograms of one sound.

    Args:
        channels: ``(channels, samples)``, from -1 to 1.
        rate: of the samples, in Hz.
        samples: the mean of the channels, at the encoder's rate.
        front: what the encoder should be fed.
    """

    def __init__(self, channels: Array, rate: int, samples: Array, front: FrontEnd) -> None:
        self._front = front
        self._right = Take(samples, front.of_length(len(samples)))
        short = self._right.mel.n_frames <= _LONG
        self._variations: list[Variation] = (
            list(variations(channels, rate, self._right.mel)) if short else []
        )
        self._energies: dict[tuple[int, ...], tuple[Array, int]] = {}

    def explain(self, values: Array) -> Explanation[Any]:
        """Say what made the values.

        Args:
            values: ``(mel bins, frames)``, finite.
        """
        if not np.ptp(self._right.samples):
            text = "the sound is silent: it tells nothing"
            return Explanation((), text, None, None, identified=False)
        if not np.ptp(values):
            return Explanation(("constant",), "one value all over", None, None)
        endings = self._endings(len(values))
        if not endings:
            text = f"{len(values)} mel bins, not {self._front.n_bins}"
            return Explanation(("mel-bins",), text, None, None)
        found: list[_Found] = []
        alone = [(), *((i,) for i in range(len(self._variations)))]
        for n in range(4):
            for done, ending in product(alone, endings):
                if len(done) + len(ending.mistakes) == n:
                    found.append(self._try(done, ending, values))
            if (best := min(found, key=lambda f: f.residual)).residual <= MEL_FORMULA:
                return _explained(best)
        found += self._paired(found, endings, values)
        best_residual = min(f.residual for f in found)
        if (free := self._free_fit(values)) is not None and free.residual is not None:
            better = 1.5 * free.residual < best_residual
            if better and best_residual > 4 * MEL_FORMULA and free.residual < MEL_FIT:
                return free
        if best_residual > SAME_SOUND:
            text = "the values are not of this sound"
            return Explanation((), text, None, best_residual, identified=False)
        near = (f for f in found if f.residual <= max(MEL_FORMULA, AMBIGUOUS * best_residual))
        return _explained(min(near, key=lambda f: len(f.mistakes)))

    def _endings(self, rows: int) -> list[_Ending]:
        front = self._front
        endings = [
            _Ending((*scaling.mistakes, *log.mistakes), _joined(scaling.text, log.text),
                    replace(front, log=log.front.log, scaling=scaling.front.scaling))
            for log, scaling in product(_logs(front), _scalings(front))
        ]  # fmt: skip
        if rows == front.n_bins:
            return sorted(endings, key=lambda e: len(e.mistakes))
        if front.stacked > 1 and rows * front.stacked == front.n_bins:
            text = f"frames are not stacked by {front.stacked}"
            return [
                _Ending(("not-stacked", *e.mistakes), _joined(text, e.text),
                        replace(e.front, stacked=1))
                for e in endings
            ]  # fmt: skip
        return []

    def _of(self, done: tuple[int, ...]) -> tuple[Array, int]:
        """Energies with some mistakes, and how many samples they are of."""
        if done not in self._energies:
            take = self._right
            for i in done:
                take = self._variations[i].change(take)
            self._energies[done] = take.energies(), len(take.samples)
        return self._energies[done]

    def _try(self, done: tuple[int, ...], ending: _Ending, values: Array) -> _Found:
        with np.errstate(all="ignore"):
            made = ending.front.finish(*self._of(done))
            residual = _residual(made, values)
        mistakes = tuple(dict.fromkeys(self._variations[i].mistake for i in done))
        words = "; ".join(self._variations[i].text for i in done)
        return _Found(residual, done, (*mistakes, *ending.mistakes), _joined(words, ending.text))

    def _paired(
        self, found: Sequence[_Found], endings: Sequence[_Ending], values: Array
    ) -> list[_Found]:
        """With two mistakes on the way to energies, of which one explains most by itself."""
        nearest: dict[int, float] = {}
        for f in found:
            for i in f.variations:
                nearest[i] = min(nearest.get(i, np.inf), f.residual)
        best = min(f.residual for f in found)
        first = sorted(nearest, key=lambda i: nearest[i])[:_FIRST_OF_PAIRS]
        names = [v.mistake for v in self._variations]
        pairs = [
            pair
            for pair in combinations(range(len(names)), 2)
            if set(pair) & set(first) and names[pair[0]] != names[pair[1]]
        ]
        more = [self._try(pair, ending, values) for pair, ending in product(pairs, endings)]
        return [f for f in more if f.residual <= max(MEL_FORMULA, _PAIR_GAIN * best)]

    def _free_fit(self, values: Array) -> Explanation[Any] | None:
        """A multiple of what is expected, and a number."""
        made, fed = _overlap(self._front.finish(*self._of(())), values)
        if made.shape != fed.shape or not np.ptp(made):
            return None
        dx, dy = made - made.mean(), fed - fed.mean()
        gain = float((dx * dy).sum() / (dx**2).sum())
        offset = float(fed.mean() - gain * made.mean())
        residual = _residual(gain * made + offset, fed)
        unit = self._decibels()
        if abs(gain - 1) > MEL_FIT:
            text = f"{gain:.4g} times the expected, and {offset:.4g}"
            return Explanation(("constants-unknown",), text, None, residual)
        if abs(offset * unit) > _AUDIBLE and self._front.scaling.kind in ("none", "fixed"):
            how = "louder" if offset > 0 else "quieter"
            text = f"the sound is {abs(offset * unit):.3g} dB {how}"
            return Explanation(("level",), text, None, residual)
        return None

    def _decibels(self) -> float:
        """Of the sound, that a difference of 1 in the values is."""
        scaling, base = self._front.scaling, self._front.log.base
        of_log = {"e": 10 / np.log(10), "10": 10.0, "dB": 1.0, "none": 0.0}[base]
        of_power = 2 / self._front.mel.power
        return float(of_log * of_power * (scaling.std if scaling.kind == "fixed" else 1.0))


def _overlap(a: Array, b: Array) -> tuple[Array, Array]:
    n = min(a.shape[1], b.shape[1])
    if a.shape[1] != b.shape[1]:
        n = max(1, n - 2)  # what padding has a part in
    step = -(-n // _MOST_FRAMES)
    return a[:, :n:step], b[:, :n:step]


def _residual(made: Array, values: Array) -> float:
    x, y = _overlap(made, values)
    if x.shape != y.shape or not np.ptp(y):
        return np.inf
    off = float(np.sqrt(np.square(x - y).sum() / y.var() / y.size))
    return off if np.isfinite(off) else np.inf


def _joined(*texts: str) -> str:
    return "; ".join(t for t in texts if t)


def _explained(found: _Found) -> Explanation[Any]:
    return Explanation(found.mistakes, found.text or AS_EXPECTED, None, found.residual)


def _logs(front: FrontEnd) -> Iterator[_Ending]:
    expected = front.log

    def other(mistake: str, text: str, log: Logarithm) -> _Ending:
        return _Ending((mistake,), text, replace(front, log=log))

    yield _Ending((), "", front)
    for base, name, words in (
        ("e", "natural-logarithm", "the logarithm is natural"),
        ("10", "common-logarithm", "the logarithm is to base 10"),
        ("dB", "decibels", "decibels"),
    ):
        if base != expected.base:
            yield other(name, words, replace(expected, base=base))
    yield other("logarithm-missing", "no logarithm was taken", Logarithm("none"))
    how = "added" if not expected.added else "a bound"
    text = f"the floor of {expected.floor:.3g} is {how}"
    yield other("mel-floor", text, replace(expected, added=not expected.added))
    for floor in (1e-10, 2.0**-24, 2.0**-23, 1e-7, 1e-6, 1e-5, 1e-3):
        if abs(floor / expected.floor - 1) > 0.01:
            text = f"the floor is {floor:.3g}, not {expected.floor:.3g}"
            yield other("mel-floor", text, replace(expected, floor=floor))


def _scalings(front: FrontEnd) -> Iterator[_Ending]:
    expected = front.scaling

    def other(mistake: str, text: str, scaling: Scaling) -> _Ending:
        return _Ending((mistake,), text, replace(front, scaling=scaling))

    yield _Ending((), "", front)
    if expected.kind != "none":
        yield other("not-normalized", "not normalized: the logarithms themselves", Scaling())
    if expected.kind == "fixed":
        only_mean = replace(expected, std=1.0)
        yield other("std-unused", "not divided by the standard deviation", only_mean)
        yield other("mean-unused", "the mean was not subtracted", replace(expected, mean=0.0))
        text = "divided by half of what it should be"
        yield other("std-halved", text, replace(expected, std=expected.std / 2))
    if expected.kind == "bins":
        text = "the mean of each mel bin was subtracted, but not divided by its deviation"
        yield other("std-unused", text, Scaling("bins-mean"))
        flipped = replace(expected, unbiased=not expected.unbiased)
        n = "one frame less" if flipped.unbiased else "the number of frames"
        yield other("variance-bias", f"variances are divided by {n}", flipped)
    else:
        text = "of zero mean and unit variance in each mel bin"
        yield other("normalized", text, Scaling("bins", unbiased=True))
    text = "mean and variance are of all mel bins together"
    yield other("normalized-over-all", text, Scaling("all", unbiased=False))
    if expected.kind != "whisper":
        text = "cut off 8 below the maximum and scaled as Whisper's"
        yield other("scaled-as-whisper", text, Scaling("whisper"))
