"""Which normalization made these values of that picture?

A pipeline turns levels from 0 to 255 into ``(level · scale - mean) / std`` per channel. All
its usual mistakes are of one form too: each value is a multiple of one level, plus a number.
:func:`explain` tells them apart by the picture that went in, :func:`explain_alone` by what
came out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggufnorm.core.feed import Explanation
from ggufnorm.core.tolerances import AMBIGUOUS, ONE_LEVEL, PIXEL_FORMULA, SAME_PICTURE

Array = NDArray[np.float64]
Three = tuple[float, float, float]
Constants = tuple[Three, Three]

# OPENAI_CLIP_MEAN, IMAGENET_DEFAULT_MEAN and IMAGENET_STANDARD_MEAN in transformers'
# image_utils; the last is timm's MobileNetV5.
KNOWN: dict[str, Constants] = {
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "SigLIP": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "MobileNet": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and deviation of pixels from 0 to 1, red first, by whose they are."""

# _preprocess_numpy_input in keras.applications.imagenet_utils, mode "caffe", red first.
_CAFFE: Three = (123.68, 116.779, 103.939)

TOP_LEVEL = 255.0

_MOST_PIXELS = 1 << 16
"""Pixels that hypotheses are tried on: more tell no more."""
_HUGE = 1e12
"""No pipeline stretches or shifts levels so far."""
_RGB, _BGR = (0, 1, 2), (2, 1, 0)


@dataclass(frozen=True)
class Affine:
    """``values[..., c] = gain[c] · levels[..., order[c]] + offset[c]``."""

    gain: Three
    offset: Three
    order: tuple[int, int, int] = _RGB

    def apply(self, levels: ArrayLike) -> Array:
        """Values of levels; the last axis is the channel's."""
        x = np.asarray(levels, np.float64)[..., list(self.order)]
        return np.asarray(x * np.array(self.gain) + np.array(self.offset))

    def undo(self, values: ArrayLike) -> Array:
        """Levels of values: the inverse of :meth:`apply`."""
        y = np.asarray(values, np.float64)
        levels = (y - np.array(self.offset)) / np.array(self.gain)
        return np.asarray(levels[..., list(np.argsort(self.order))])


@dataclass(frozen=True)
class Normalization:
    """``(level · scale - mean) / std`` per channel, red first.

    Attributes:
        mean: subtracted, in units of scaled levels.
        std: what is divided by.
        scale: of levels from 0 to 255; 1 leaves them as they are.
    """

    mean: Three
    std: Three
    scale: float = 1 / TOP_LEVEL

    @property
    def affine(self) -> Affine:
        """The same, as a function of levels."""
        k, m, s = self.scale, np.array(self.mean), np.array(self.std)
        with np.errstate(all="ignore"):
            return Affine(_three(k / s), _three(-m / s))

    @property
    def owner(self) -> str | None:
        """Whose constants they are (a key of :data:`KNOWN`), None if that is not known."""
        for name, (mean, std) in KNOWN.items():
            if _same(self.affine, Normalization(mean, std).affine):
                return name
        return None

    def comes_to(self, other: Normalization) -> bool:
        """Whether the two make the same of all levels, but for rounded constants."""
        return _same(self.affine, other.affine)

    def apply(self, levels: ArrayLike) -> Array:
        """The formula itself, float64; the last axis is the channel's."""
        x = np.asarray(levels, np.float64)
        return np.asarray((x * self.scale - np.array(self.mean)) / np.array(self.std))


@dataclass(frozen=True)
class Hypothesis:
    """What a pipeline may have done.

    Attributes:
        mistakes: names of what is not as expected; empty if all is.
        text: the same in words.
        affine: what it makes of levels.
    """

    mistakes: tuple[str, ...]
    text: str
    affine: Affine


@dataclass(frozen=True)
class Fit:
    """The function of one level that comes nearest to some values.

    Attributes:
        affine: found by least squares, the tenth of the pixels that fits worst left out.
        residual: as in :class:`~ggufnorm.core.feed.Explanation`, of all pixels.
    """

    affine: Affine
    residual: float


AS_EXPECTED = "normalized as expected"


@lru_cache(maxsize=16)
def hypotheses(expected: Normalization) -> tuple[Hypothesis, ...]:
    """What a pipeline may have done, from the right thing to two mistakes at once.

    Of those that come to the same with these constants, only the first is there.
    """
    made = [
        (len(h.mistakes), rank, h) for rank, h in enumerate(_all(expected)) if _is_usable(h.affine)
    ]
    kept: dict[tuple[int, int, int], list[Hypothesis]] = {_RGB: [], _BGR: []}
    for _n, _rank, hypothesis in sorted(made, key=lambda m: m[:2]):
        alike = kept[hypothesis.affine.order]
        if not _is_any(hypothesis.affine, [k.affine for k in alike]):
            alike.append(hypothesis)
    return tuple(sorted((h for k in kept.values() for h in k), key=lambda h: len(h.mistakes)))


def fit(levels: ArrayLike, values: ArrayLike) -> Fit:
    """Find gain, offset and source of each channel.

    Args:
        levels: ``(…, 3)``.
        values: the same shape, finite.

    Raises:
        ValueError: the shapes differ, or the last axis is not of length 3.
    """
    x, y = _rows(levels), _rows(values)
    if x.shape != y.shape:
        raise ValueError(f"levels {x.shape} and values {y.shape} differ in shape")
    affine = _least_squares(x, y)
    error = (((affine.apply(x) - y) / np.maximum(_spread(y), 1e-300)) ** 2).sum(axis=1)
    kept = error <= np.quantile(error, 0.9)
    affine = _least_squares(x[kept], y[kept])
    return Fit(affine, residual(affine, x, y))


def residual(affine: Affine, levels: ArrayLike, values: ArrayLike) -> float:
    """Relative L2 distance of ``affine.apply(levels)`` from values, around their means.

    Infinite if the values do not vary and are not met.
    """
    x, y = _rows(levels), _rows(values)
    error = float(np.linalg.norm(affine.apply(x) - y))
    size = float(np.linalg.norm(y - y.mean(axis=0)))
    if size <= 1e-6 * float(np.linalg.norm(y)):
        return 0.0 if error <= PIXEL_FORMULA * max(1.0, float(np.linalg.norm(y))) else np.inf
    return error / size


def explain(levels: ArrayLike, values: ArrayLike, expected: Normalization) -> Explanation[Affine]:
    """Say what made the values of a picture.

    Of the hypotheses that are as good as the best the one with the fewest mistakes is
    taken. If none comes near to what a free fit reaches, the constants are nobody's.

    Args:
        levels: the picture on the values' grid, ``(…, 3)``, 0 to 255.
        values: what the pipeline feeds, the same shape, finite.
        expected: what it should have done.
    """
    x, y = _rows(levels), _rows(values)
    if not np.ptp(x, axis=0).all():
        return Explanation((), "the picture has a channel of one level: it tells nothing", None,
                           None, identified=False)  # fmt: skip
    if not np.ptp(y, axis=0).all():
        return Explanation(("constant",), "a channel has one value all over", None, None)
    some = slice(None, None, -(-len(x) // _MOST_PIXELS))
    free = fit(x[some], y[some])
    if free.residual > SAME_PICTURE:
        text = "the values are of no picture that could be made of this one"
        return Explanation((), text, None, free.residual, identified=False)
    tried = [(residual(h.affine, x[some], y[some]), h) for h in hypotheses(expected)]
    best = min(r for r, _h in tried)
    if best > max(1.5 * free.residual, 4 * PIXEL_FORMULA):
        near = next((h for h in hypotheses(expected) if _is_near(h.affine, free, x[some])), None)
        if near is not None:
            r = residual(near.affine, x, y)
            return Explanation(near.mistakes, near.text, near.affine, r)
        return Explanation(
            ("constants-unknown",), _in_words(free.affine), free.affine, free.residual
        )
    good = [(r, h) for r, h in tried if r <= max(PIXEL_FORMULA, AMBIGUOUS * best)]
    _r, chosen = min(good, key=lambda g: len(g[1].mistakes))
    return Explanation(chosen.mistakes, chosen.text, chosen.affine, residual(chosen.affine, x, y))


def _is_near(affine: Affine, free: Fit, levels: Array) -> bool:
    """Whether a free fit is this function, as far as the picture can tell.

    A level of 255 is what rounding or cutting after a resize shifts. Where the picture was
    resized in another way, least squares flatten the slope, by the residual's square.
    """
    if affine.order != free.affine.order:
        return False
    ends = np.array([levels.min(axis=0), levels.max(axis=0)])
    apart = np.abs(affine.undo(free.affine.apply(ends)) - ends)
    half = np.ptp(ends, axis=0) / 2
    return bool((apart <= ONE_LEVEL + free.residual**2 * half).all())


# -- From the values alone ---------------------------------------------------------------

_OUTSIDE = 4.0
"""Levels beyond 0 to 255 that a resize in floating point may give."""
_ON_GRID = 0.02
_NARROW = 0.5 * TOP_LEVEL
_NEAR_END = 8.0


@dataclass(frozen=True)
class _Undone:
    """Values turned back into levels by a hypothesis.

    Attributes:
        inside: whether all levels are possible.
        on_grid: whether they are whole numbers: the picture was resized before it was
            scaled, and these constants are the ones.
        span: the narrowest channel's range.
        fills: whether every channel goes from black to full.
    """

    hypothesis: Hypothesis
    inside: bool
    on_grid: bool
    span: float
    fills: bool


def explain_alone(values: ArrayLike, expected: Normalization) -> Explanation[Affine]:
    """Say what made values whose picture is not at hand.

    Undone by the right constants, values are levels from 0 to 255; most pipelines resize
    pictures of whole levels, and then they are whole numbers again, as with hardly any
    other constants. The order of channels cannot be told.

    Args:
        values: ``(…, 3)``, finite.
        expected: what it should have been.
    """
    y = _rows(values)
    if not np.ptp(y, axis=0).all():
        return Explanation(("constant",), "a channel has one value all over", None, None)
    undone = [_undo(h, y) for h in hypotheses(expected) if h.affine.order == _RGB]
    possible = [u for u in undone if u.inside]
    exact = [u for u in possible if u.on_grid]
    right, n_right = undone[0], len(exact)
    if right in exact:
        return _alone(right, "the values are whole levels undone with these constants")
    if n_right:
        return _alone(exact[0], "undone so, the values are whole levels")
    std = _std_of_steps(y)
    if std is not None:
        like = [u for u in possible if np.allclose(std, _std_of(u.hypothesis.affine), rtol=_STEP)]
        numbers = ", ".join(f"{v:.4g}" for v in std)
        if not like and possible:
            text = (
                f"a level's step is that of std {numbers} of pixels from 0 to 1, not the expected"
            )
            return Explanation(("constants-unknown",), text, None, None)
        if like and right not in like:
            return _alone(like[0], f"a level's step is that of std {numbers}")
    if right.inside:
        filling = [u for u in possible if u.fills]
        if right.span < _NARROW and filling:
            text = f"undone as expected, the values span {right.span:.0f} levels of 255"
            return _alone(filling[0], text)
        text = (
            "the values are in the range of the constants expected; whether they are the ones"
            " cannot be told without the picture: give it"
        )
        return Explanation((), text, None, None, identified=False)
    if possible:
        widest = max(possible, key=lambda u: u.span)
        close = [u for u in possible if u.span >= 0.9 * widest.span]
        return _alone(close[0], "the values are outside the range of the constants expected")
    low, high = (expected.apply([[level] * 3])[0] for level in (0.0, TOP_LEVEL))
    text = (
        f"values from {y.min():.4g} to {y.max():.4g} are outside the range of the constants"
        f" expected, {low.min():.4g} to {high.max():.4g}"
    )
    return Explanation(("out-of-range",), text, None, None)


def _alone(undone: _Undone, why: str) -> Explanation[Affine]:
    h = undone.hypothesis
    return Explanation(h.mistakes, f"{h.text} ({why})", h.affine, None)


def _undo(hypothesis: Hypothesis, values: Array) -> _Undone:
    levels = hypothesis.affine.undo(values)
    # float32 values of a large offset and a small gain cannot tell whole levels.
    sure = np.abs(values).max() * 2**-23 / min(map(abs, hypothesis.affine.gain)) < _ON_GRID / 2
    whole = np.abs(levels - np.round(levels)) < _ON_GRID
    return _Undone(
        hypothesis,
        inside=bool(levels.min() >= -_OUTSIDE and levels.max() <= TOP_LEVEL + _OUTSIDE),
        on_grid=bool(sure and whole.mean() > 0.999 and _many(levels)),
        span=float(np.ptp(levels, axis=0).min()),
        fills=bool(
            levels.min(axis=0).max() <= _NEAR_END
            and levels.max(axis=0).min() >= TOP_LEVEL - _NEAR_END
        ),
    )


_STEP = 0.005
"""Relative difference up to which two steps are one."""


def _std_of(affine: Affine) -> Array:
    return np.asarray(1 / (np.array(affine.gain) * TOP_LEVEL))


def _std_of_steps(values: Array) -> Array | None:
    """The deviations that a level's step shows, None unless all channels go in steps."""
    steps = [_step(np.unique(channel)) for channel in values.T]
    found = [s for s in steps if s is not None]
    return np.array([1 / (s * TOP_LEVEL) for s in found]) if len(found) == len(steps) else None


def _step(values: Array) -> float | None:
    """What all differences of sorted values are multiples of, None if there is no such step."""
    # float32 may keep one level as two neighbours.
    gaps = np.diff(values)
    gaps = gaps[gaps > 1e-5 * max(float(np.abs(values).max()), 1e-30)]
    if not 32 <= len(gaps) < TOP_LEVEL + 1:
        return None
    rough = float(gaps.min())
    if rough <= 0:
        return None
    step = float(gaps.sum() / np.round(gaps / rough).sum())
    counts = (values - values[0]) / step
    whole = bool((np.abs(counts - np.round(counts)) < 5 * _ON_GRID).all())
    return step if whole and counts[-1] <= TOP_LEVEL + _ON_GRID else None


def _many(levels: Array) -> bool:
    """Whether there are enough different levels for all being whole to mean something."""
    return all(len(np.unique(np.round(channel))) >= 8 for channel in levels.T)


# -- Hypotheses --------------------------------------------------------------------------


def _all(expected: Normalization) -> Iterator[Hypothesis]:
    swaps = (
        ((), ""),
        (("channels-swapped",), "the channels are swapped (BGR)"),
        (
            ("channels-swapped-after",),
            "the channels are swapped (BGR) after they were normalized",
        ),
        (("constants-swapped",), "mean and std are in the order of BGR, the channels are not"),
    )
    for (mistakes, text, affine), (swap, how) in product(_unswapped(expected), swaps):
        words = f"{text}; {how}" if mistakes and swap else how or text
        yield Hypothesis((*mistakes, *swap), words, _swapped(affine, swap))


def _swapped(affine: Affine, swap: tuple[str, ...]) -> Affine:
    if not swap:
        return affine
    backwards = replace(affine, gain=_three(affine.gain[::-1]), offset=_three(affine.offset[::-1]))
    return {
        "channels-swapped": replace(affine, order=_BGR),
        "channels-swapped-after": replace(backwards, order=_BGR),
        "constants-swapped": backwards,
    }[swap[0]]


def _unswapped(expected: Normalization) -> Iterator[tuple[tuple[str, ...], str, Affine]]:
    """Mistakes that treat all channels alike."""
    k, m, s = expected.scale, np.array(expected.mean), np.array(expected.std)
    one, zero, full = np.ones(3), np.zeros(3), np.full(3, k)
    yield (), AS_EXPECTED, expected.affine

    def wrong(mistake: str, text: str, gain: Array, offset: Array) -> tuple[
        tuple[str, ...], str, Affine
    ]:  # fmt: skip
        return (mistake,), text, Affine(_three(gain), _three(offset))

    with np.errstate(all="ignore"):
        yield wrong("not-normalized", "scaled, but not normalized: neither mean nor std was used",
                    full, zero)  # fmt: skip
        yield wrong("raw", "neither scaled nor normalized: levels from 0 to 255", one, zero)
        if k != 1:
            text = "not scaled: the mean was subtracted from levels of 0 to 255"
            yield wrong("not-scaled", text, one / s, -m / s)
            text = "scaled twice, or scaled though mean and std are of levels from 0 to 255"
            yield wrong("scaled-twice", text, full * k / s, -m / s)
        else:
            text = "scaled to 0 to 1, though these constants are of levels from 0 to 255"
            yield wrong("scaled", text, one / TOP_LEVEL / s, -m / s)
        yield wrong("mean-std-exchanged", "mean and std are exchanged", full / m, -s / m)
        yield wrong("std-is-mean", "divided by the mean instead of the std", full / m, -m / m)
        yield wrong("mean-is-std", "the std was subtracted instead of the mean", full / s, -s / s)
        yield wrong("std-twice", "divided by the std twice", full / s**2, -m / s**2)
        yield wrong("normalized-twice", "normalized twice", full / s**2, -m / s**2 - m / s)
        yield wrong("mean-unused", "the mean was not subtracted", full / s, zero)
        yield wrong("std-unused", "not divided by the std", full, -m)
        yield wrong("std-multiplied", "multiplied by the std instead of divided", full * s, -m * s)
        yield wrong("mean-added", "the mean was added instead of subtracted", full / s, m / s)
        how = "a slip of precedence: "
        yield wrong("precedence", f"{how}x - mean / std, of pixels from 0 to 1", full, -m / s)
        if not np.allclose(m / s, np.round(m / s)):  # whole levels less are levels
            yield wrong("precedence", f"{how}x - mean / std, of levels from 0 to 255", one, -m / s)
        yield wrong("precedence", f"{how}x / std - mean, of pixels from 0 to 1", full / s, -m)
        yield wrong("precedence", f"{how}x / std - mean, of levels from 0 to 255", one / s, -m)
        yield wrong("precedence", f"{how}x / (255 - mean) / std", 1 / (TOP_LEVEL - m) / s, zero)
        yield wrong("precedence", "the mean was scaled too: (x - mean) / 255 / std",
                    k / s, -k * m / s)  # fmt: skip
        yield wrong("inverted", "multiplied by the std and the mean added: the inverse",
                    full * s, m)  # fmt: skip
        text = "Caffe's way: levels less their mean, not divided"
        yield wrong("constants-of-another", text, one, -np.array(_CAFFE))
    for name, (mean, std) in KNOWN.items():
        yield wrong("constants-of-another", f"normalized with the constants of {whose_model(name)}",
                    1 / TOP_LEVEL / np.array(std), -np.array(mean) / np.array(std))  # fmt: skip
    for name, (mean, std) in KNOWN.items():
        yield wrong("std-of-another", f"divided by the std of {whose_model(name)}",
                    k / np.array(std), -m / np.array(std))  # fmt: skip
        yield wrong("mean-of-another", f"the mean of {whose_model(name)} was subtracted",
                    k / s, -np.array(mean) / s)  # fmt: skip


def whose_model(name: str) -> str:
    """A key of :data:`KNOWN` in words."""
    return {"SigLIP": "SigLIP and Inception (-1 to 1)"}.get(name, name)


def _is_usable(affine: Affine) -> bool:
    gain, offset = np.abs(affine.gain), np.abs(affine.offset)
    return bool((gain > 1 / _HUGE).all() and (gain < _HUGE).all() and (offset < _HUGE).all())


def _same(a: Affine, b: Affine) -> bool:
    """Whether two come to the same for all levels, as far as rounded constants can tell."""
    return a.order == b.order and _is_usable(a) and _is_usable(b) and _is_any(a, [b])


def _is_any(one: Affine, others: Sequence[Affine]) -> bool:
    """The same of any of several usable ones of the same order."""
    if not others:
        return False
    gains = np.array([o.gain for o in others])
    at_zero = np.abs(np.array([o.offset for o in others]) - one.offset)
    at_top = np.abs(np.array([o.offset for o in others]) - one.offset
                    + TOP_LEVEL * (gains - one.gain))  # fmt: skip
    largest = TOP_LEVEL * np.maximum(np.abs(gains), np.abs(one.gain))
    near = np.maximum(at_zero, at_top) <= PIXEL_FORMULA / 4 * largest
    return bool(near.all(axis=1).any())


def _in_words(affine: Affine) -> str:
    gain, offset = np.array(affine.gain), np.array(affine.offset)
    with np.errstate(all="ignore"):
        std = 1 / (gain * TOP_LEVEL)
    mean = -offset * std
    named = (", ".join(f"{v:.4g}" for v in numbers) for numbers in (mean, std))
    text = "as with mean {} and std {} of pixels from 0 to 1, which are nobody's known".format(
        *named
    )
    return text if affine.order == _RGB else f"{text}; channels in the order {affine.order}"


# -- Arithmetic --------------------------------------------------------------------------


def _three(numbers: ArrayLike) -> Three:
    a, b, c = np.asarray(numbers, np.float64).tolist()
    return a, b, c


def _rows(pixels: ArrayLike) -> Array:
    wide = np.asarray(pixels, np.float64)
    if wide.ndim < 1 or wide.shape[-1] != 3:
        raise ValueError(f"pixels have 3 channels in the last axis, not shape {wide.shape}")
    return wide.reshape(-1, 3)


def _spread(y: Array) -> Array:
    return np.asarray(y.std(axis=0))


def _least_squares(x: Array, y: Array) -> Affine:
    """Of all orders of channels the one that fits best, as it is if others are no better."""
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    with np.errstate(all="ignore"):
        gains = np.nan_to_num((dx.T @ dy) / (dx**2).sum(axis=0)[:, None], posinf=0, neginf=0)
    # What channel i of the picture leaves unexplained of channel c, relative to its size.
    left = (dy**2).sum(axis=0) - gains**2 * (dx**2).sum(axis=0)[:, None]
    left = left / np.maximum((dy**2).sum(axis=0), 1e-300)
    orders = sorted(permutations(range(3)))
    costs = [float(sum(left[i, c] for c, i in enumerate(order))) for order in orders]
    least = min(costs)
    order = orders[next(i for i, cost in enumerate(costs) if cost <= AMBIGUOUS * least + 1e-9)]
    gain = np.array([gains[i, c] for c, i in enumerate(order)])
    offset = y.mean(axis=0) - gain * x.mean(axis=0)[list(order)]
    return Affine(_three(gain), _three(offset), (order[0], order[1], order[2]))
