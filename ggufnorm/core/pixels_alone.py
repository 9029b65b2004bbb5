"""Which normalization made values whose picture is not at hand?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ggufnorm.core.feed import Explanation
from ggufnorm.core.normalization import RGB, TOP_LEVEL, Affine, Array, Normalization, rows_of
from ggufnorm.core.pixel_hypotheses import Hypothesis, hypotheses

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
    y = rows_of(values)
    if not np.ptp(y, axis=0).all():
        return Explanation(("constant",), "a channel has one value all over", None, None)
    undone = [_undo(h, y) for h in hypotheses(expected) if h.affine.order == RGB]
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
