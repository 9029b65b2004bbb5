"""Which normalization made these values of that picture?

A pipeline turns levels from 0 to 255 into ``(level · scale - mean) / std`` per channel. All
its usual mistakes are of one form too: each value is a multiple of one level, plus a number.
:func:`explain` tells them apart by the picture that went in, :func:`explain_alone` by what
came out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ggufnorm.core.feed import Explanation
from ggufnorm.core.normalization import (
    KNOWN,
    RGB,
    TOP_LEVEL,
    Affine,
    Array,
    Constants,
    Normalization,
    Three,
    rows_of,
    whose_model,
)
from ggufnorm.core.pixel_fit import Fit, fit, residual
from ggufnorm.core.pixel_hypotheses import AS_EXPECTED, Hypothesis, hypotheses
from ggufnorm.core.pixels_alone import explain_alone
from ggufnorm.core.tolerances import AMBIGUOUS, ONE_LEVEL, PIXEL_FORMULA, SAME_PICTURE

__all__ = [
    "AS_EXPECTED",
    "KNOWN",
    "TOP_LEVEL",
    "Affine",
    "Array",
    "Constants",
    "Fit",
    "Hypothesis",
    "Normalization",
    "Three",
    "explain",
    "explain_alone",
    "fit",
    "hypotheses",
    "residual",
    "whose_model",
]

_MOST_PIXELS = 1 << 16
"""Pixels that hypotheses are tried on: more tell no more."""


def explain(levels: ArrayLike, values: ArrayLike, expected: Normalization) -> Explanation[Affine]:
    """Say what made the values of a picture.

    Of the hypotheses that are as good as the best the one with the fewest mistakes is
    taken. If none comes near to what a free fit reaches, the constants are nobody's.

    Args:
        levels: the picture on the values' grid, ``(…, 3)``, 0 to 255.
        values: what the pipeline feeds, the same shape, finite.
        expected: what it should have done.
    """
    x, y = rows_of(levels), rows_of(values)
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
    resized in another way, least squares flatten the slope, by the residual's square at
    most; the mean stays.
    """
    if affine.order != free.affine.order:
        return False
    middle = levels.mean(axis=0)
    shifted = np.abs(affine.undo(free.affine.apply(middle)) - middle)
    steeper = np.array(affine.gain) / np.array(free.affine.gain)
    level = ONE_LEVEL / (np.ptp(levels, axis=0) / 2)
    steepest = 1 / (1 - min(free.residual, SAME_PICTURE) ** 2)
    alike = (steeper >= 1 - level) & (steeper <= steepest + level)
    return bool((shifted <= ONE_LEVEL).all() and alike.all())


def _in_words(affine: Affine) -> str:
    gain, offset = np.array(affine.gain), np.array(affine.offset)
    with np.errstate(all="ignore"):
        std = 1 / (gain * TOP_LEVEL)
    mean = -offset * std
    named = (", ".join(f"{v:.4g}" for v in numbers) for numbers in (mean, std))
    text = "as with mean {} and std {} of pixels from 0 to 1, which are nobody's known".format(
        *named
    )
    return text if affine.order == RGB else f"{text}; channels in the order {affine.order}"
