"""Which computation made these values of that sound's samples?

Each value is a multiple of one sample, plus a number. Mistakes are other samples
(:class:`Source`: another rate, one channel, a delay) or another multiple and number
(:func:`gains`). Both are found by least squares, and then named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ggufnorm.core.feed import Explanation
from ggufnorm.core.log_mel import Array, resampled
from ggufnorm.core.tolerances import AMBIGUOUS, SAME_SOUND, WAVE_CONSTANT, WAVE_FORMULA
from ggufnorm.core.waveform import VARIANCE_EPSILON, Gain, Waveform

AS_EXPECTED = "normalized as expected"
AS_THEY_ARE = "samples as they are, as expected"

_TOP = 2.0**15
_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_LEAST = 32
"""Samples of which a formula can be told."""


@dataclass(frozen=True, eq=False)
class Source:
    """Samples that a pipeline may have taken.

    Attributes:
        mistakes: names of what is not as expected.
        text: the same in words.
        samples: from -1 to 1.
    """

    mistakes: tuple[str, ...]
    text: str
    samples: Array


@dataclass(frozen=True)
class GainHypothesis:
    """What a pipeline may have done to samples.

    Attributes:
        mistakes: names of what is not as expected; empty if all is.
        text: the same in words.
        gain: what it comes to.
    """

    mistakes: tuple[str, ...]
    text: str
    gain: Gain


@dataclass(frozen=True)
class _Fit:
    source: Source
    lag: int
    gain: Gain
    residual: float


def sources(channels: Array, rate: int, expected: Waveform) -> Iterator[Source]:
    """Samples of a sound in all the ways that pipelines take them, the right one first.

    Args:
        channels: ``(channels, samples)``, from -1 to 1.
        rate: of the samples, in Hz.
        expected: what should be done.
    """
    mono = channels.mean(axis=0)
    samples = resampled(mono, rate, expected.rate)
    yield Source((), "", samples)
    if rate != expected.rate:
        text = f"the samples of {rate:,} Hz were taken for ones of {expected.rate:,} Hz"
        yield Source(("not-resampled",), text, mono)
    if len(channels) > 1:
        each = np.stack([resampled(c, rate, expected.rate) for c in channels])
        which = ("first", "second")
        for name, channel in zip(which, each, strict=False):
            text = f"the {name} channel alone was taken, not the mean of all"
            yield Source(("one-channel",), text, channel)
        text = "the channels' samples alternate: they were not mixed"
        yield Source(("not-mixed",), text, each.T.ravel())
    text = "high frequencies were raised first (pre-emphasis of 0.97)"
    raised = np.append(samples[:1], samples[1:] - 0.97 * samples[:-1])
    yield Source(("pre-emphasis",), text, raised)
    for other in _RATES:
        if other not in (rate, expected.rate):
            text = f"the samples are of {other:,} Hz, the model takes ones of {expected.rate:,} Hz"
            yield Source(("not-resampled",), text, resampled(mono, rate, other))


def gains(samples: Array, whole: Array, n_fed: int, expected: Waveform) -> Iterator[GainHypothesis]:
    """What a pipeline may have done to samples, the right thing first.

    Args:
        samples: that were fed, from -1 to 1.
        whole: the whole sound, more than those if it was cut.
        n_fed: values fed; more than the samples if they are padded.
        expected: what should be done.
    """
    mean, std = float(samples.mean()), float(samples.std())
    eps, peak = VARIANCE_EPSILON, float(np.abs(samples).max())
    low, high = float(samples.min()), float(samples.max())
    normal = Gain.of(samples)

    def wrong(mistake: str, text: str, gain: Gain) -> GainHypothesis:
        return GainHypothesis((mistake,), text, gain)

    as_they_are, of_integers = Gain(1.0, 0.0), Gain(_TOP, 0.0)
    if expected.normalized:
        yield GainHypothesis((), AS_EXPECTED, normal)
        text = "not normalized: samples from -1 to 1, neither mean nor deviation was used"
        yield wrong("not-normalized", text, as_they_are)
        text = "not normalized; samples from -32768 to 32767, not from -1 to 1"
        yield GainHypothesis(("not-normalized", "levels-not-scaled"), text, of_integers)
    else:
        yield GainHypothesis((), AS_THEY_ARE, as_they_are)
        text = "of zero mean and unit variance, though this model takes samples as they are"
        yield wrong("normalized", text, normal)
        text = "samples from -32768 to 32767, not from -1 to 1"
        yield wrong("levels-not-scaled", text, of_integers)
    if n_fed > len(samples):
        padded = np.append(samples, np.zeros(n_fed - len(samples)))
        text = f"mean and variance are of all {n_fed:,} values, the padding too"
        if not expected.masked:
            text = f"{AS_EXPECTED} of padded batches without an attention mask: {text}"
        mistakes = ("normalized-over-padding",) if expected.masked else ()
        yield GainHypothesis(mistakes, text, Gain.of(padded))
    if len(whole) > len(samples):
        text = "mean and variance are of the whole sound, not of the part that is fed"
        yield wrong("normalized-over-whole", text, Gain.of(whole))
    text = "divided by 32767, not by 32768"
    yield wrong("scale-of-another", text, Gain(_TOP / (_TOP - 1), 0.0))
    yield wrong("mean-unused", "the mean was not subtracted", Gain(normal.gain, 0.0))
    yield wrong("std-unused", "not divided by the standard deviation", Gain(1.0, -mean))
    text = "divided by the variance, not by its root"
    yield wrong("variance-as-std", text, Gain.by(mean, std**2 + eps))
    text = "multiplied by the standard deviation"
    yield wrong("std-multiplied", text, Gain(std, -mean * std))
    yield wrong("mean-added", "the mean was added, not subtracted", Gain.by(-mean, normal.std))
    text = "scaled to a peak of 1, not normalized by mean and variance"
    yield wrong("peak-normalized", text, Gain(1 / peak, 0.0))
    text = "scaled to a range from {} to 1, not normalized by mean and variance"
    span = max(high - low, 1e-300)
    yield wrong("range-normalized", text.format(0), Gain.by(low, span))
    yield wrong("range-normalized", text.format(-1), Gain.by((low + high) / 2, span / 2))
    for other in (1e-5, 1e-3):
        text = f"{other:g} was added to the {{}}, not 1e-7 to the variance"
        yield wrong("epsilon-of-another", text.format("variance"), Gain.of(samples, other))
        yield wrong("epsilon-of-another", text.format("deviation"), Gain.by(mean, std + other))


def explain(
    values: Array, tried: list[Source], expected: Waveform, batch: Array | None = None
) -> Explanation[Gain]:
    """Say what made the values of a sound.

    Args:
        values: of one input, finite.
        tried: of :func:`sources`.
        expected: what should have been done.
        batch: all inputs that were fed together, ``(inputs, values)``; None of one alone.
    """
    sound = tried[0].samples
    if not np.ptp(sound):
        text = "the sound is silent: it tells nothing"
        return Explanation((), text, None, None, identified=False)
    if not np.ptp(values):
        return Explanation(("constant",), "one value all over", None, None)
    if min(len(values), len(sound)) < _LEAST:
        return Explanation((), "too few samples to tell", None, None, identified=False)
    found = _nearest(values, tried)
    if found.residual > SAME_SOUND:
        text = "the values are not of this sound"
        return Explanation((), text, None, found.residual, identified=False)
    named = _named(values, found, expected, batch)
    mistakes, words = list(named.mistakes), [named.text]
    if found.source.mistakes:
        mistakes[:0] = found.source.mistakes
        words.insert(0, found.source.text)
    if found.gain.gain < 0:
        mistakes.append("inverted")
        words.append("the sign is inverted")
    if found.lag:
        mistakes.append("shifted")
        words.append(f"the sound begins {_places(found.lag)}")
    text = "; ".join(w for w in words if w != AS_EXPECTED or len(words) == 1)
    return Explanation(tuple(mistakes), text, found.gain, found.residual)


def _places(lag: int) -> str:
    return f"{lag:,} values later" if lag > 0 else f"with its {-lag + 1:,}th sample"


def _nearest(values: Array, tried: list[Source]) -> _Fit:
    """The source that comes nearest, the first of those that are as good as the best."""
    fits = [_fit(values, s, 0) for s in tried]
    if min(f.residual for f in fits) > SAME_SOUND:
        fits = [_fit(values, s, _lag(values, s.samples)) for s in tried]
    best = min(f.residual for f in fits)
    good = [f for f in fits if f.residual <= max(WAVE_FORMULA, AMBIGUOUS * best)]
    return min(good, key=lambda f: (len(f.source.mistakes), abs(f.lag) > 0))


def _overlap(values: Array, samples: Array, lag: int) -> tuple[Array, Array]:
    y, x = values[max(lag, 0) :], samples[max(-lag, 0) :]
    n = min(len(x), len(y))
    return x[:n], y[:n]


def _fit(values: Array, source: Source, lag: int) -> _Fit:
    """Least squares where both have samples."""
    x, y = _overlap(values, source.samples, lag)
    none = _Fit(source, lag, Gain(1.0, 0.0), np.inf)
    if len(x) < _LEAST or not np.ptp(x) or not np.ptp(y):
        return none
    dx, dy = x - x.mean(), y - y.mean()
    slope = float((dx * dy).sum() / (dx**2).sum())
    if not slope:
        return none
    gain = Gain(slope, float(y.mean() - slope * x.mean()))
    left = float(np.sqrt(((gain.apply(x) - y) ** 2).sum() / (dy**2).sum()))
    return _Fit(source, lag, gain, left)


def _lag(values: Array, samples: Array) -> int:
    """How many values later than the samples they are alike, by their cross-correlation."""
    n = 1 << int(len(values) + len(samples)).bit_length()
    y, x = (np.fft.rfft(a - a.mean(), n) for a in (values, samples))
    at = int(np.argmax(np.abs(np.fft.irfft(y * np.conj(x), n))))
    return at if at < len(values) else at - n


def _named(values: Array, found: _Fit, expected: Waveform, batch: Array | None) -> GainHypothesis:
    """The mistake whose gain and offset are those found."""
    samples, gain = found.source.samples, Gain(abs(found.gain.gain), found.gain.offset)
    if found.gain.gain < 0:
        gain = Gain(-found.gain.gain, -found.gain.offset)
    x, y = _overlap(values, samples, found.lag)
    size, tolerance = float(y.std()), WAVE_CONSTANT + found.residual**2
    near = [
        (len(h.mistakes), off, rank, h)
        for rank, h in enumerate(gains(x, samples, len(values), expected))
        if (off := _apart(h.gain, gain, size)) <= tolerance
    ]
    if near:
        best = min(near, key=lambda n: (n[0], n[1], n[2]))[3]
        return _scaled_otherwise(best, gain, found.residual)
    return _of_others(x, gain, size, expected, batch)


def _apart(a: Gain, b: Gain, size: float) -> float:
    return max(abs(a.gain / b.gain - 1), abs(a.offset - b.offset) / size)


def _scaled_otherwise(best: GainHypothesis, gain: Gain, residual: float) -> GainHypothesis:
    """The same, with what only exact values tell of samples as they are."""
    by_most = _TOP / (_TOP - 1)
    told = residual < WAVE_FORMULA and abs(gain.gain / by_most - 1) < 0.1 * (by_most - 1)
    if best.text != AS_THEY_ARE or not told:
        return best
    return GainHypothesis(("scale-of-another",), "divided by 32767, not by 32768", best.gain)


def _of_others(
    samples: Array, gain: Gain, size: float, expected: Waveform, batch: Array | None
) -> GainHypothesis:
    """Statistics that are not this sound's, or another level."""
    peak = gain.gain * float(np.abs(samples).max())
    as_it_was = abs(gain.offset) <= WAVE_CONSTANT * size
    centred = abs(gain.mean - samples.mean()) <= WAVE_CONSTANT * size / gain.gain
    # Speech of deviation 1 has peaks of 5 and more.
    unscaled = size < 0.5 and peak <= 1
    whole = (
        batch is not None and abs(float(batch.mean())) < 0.01 and abs(float(batch.std()) - 1) < 0.01
    )
    if whole and batch is not None:
        text = (
            f"mean and variance are of all {len(batch)} inputs together (over the batch), not of"
            " each"
        )
        return GainHypothesis(("normalized-over-batch",), text, gain)
    level = 20 * float(np.log10(gain.gain))
    text = f"the sound is {abs(level):.3g} dB {'louder' if level > 0 else 'quieter'}"
    if as_it_was and not expected.normalized:
        return GainHypothesis(("level",), text, gain)
    if as_it_was and unscaled:
        return GainHypothesis(("not-normalized", "level"), f"not normalized; {text}", gain)
    if centred and unscaled:
        how = f"not divided by the standard deviation; {text}"
        return GainHypothesis(("std-unused", "level"), how, gain)
    own = Gain.of(samples)
    text = (
        f"mean {gain.mean:.3g} and deviation {gain.std:.3g} were used, not this sound's"
        f" {own.mean:.3g} and {own.std:.3g}: as over the batch, or of another sound"
    )
    return GainHypothesis(("normalized-over-batch",), text, gain)
