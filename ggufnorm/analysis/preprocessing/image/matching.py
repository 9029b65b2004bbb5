"""How was a picture brought to the size of what a pipeline feeds?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.pixels import Array, fit
from ggufnorm.core.tolerances import PICTURE_FOUND
from ggufnorm.engines.images import FILTERS, Levels, Resized, resizes

_MOST_PIXELS = 1 << 16
"""Pixels that a resize is chosen by: more do not tell it better."""

_OF_SHAPE = ("bilinear", "bilinear without antialiasing")
_SHAPES = 2
"""Shapes of which every filter is tried."""
_BLOCKS = 12
"""Of the short edge, over which pixels are averaged."""


@dataclass(frozen=True)
class Match:
    """A picture that could have been normalized to some values.

    Attributes:
        resized: the picture.
        residual: of :func:`ggufnorm.core.pixels.fit`, where it is not padding.
    """

    resized: Resized
    residual: float

    def means(self, values: NDArray[np.floating]) -> tuple[Array, Array] | None:
        """The same of means over blocks of pixels, in which resizes hardly differ.

        None if the picture is too small.
        """
        inside = self.resized.inside
        shown, fed = self.resized.levels[inside], values[inside]
        side = min(shown.shape[:2]) // _BLOCKS
        return (_block_means(shown, side), _block_means(fed, side)) if side > 1 else None

    def pair(self, values: NDArray[np.floating]) -> tuple[Array, Array]:
        """Levels and values of the pixels that are not padding, ``(pixels, 3)``."""
        inside = self.resized.inside
        return _flat(self.resized.levels[inside]), _flat(values[inside])


def match_picture(levels: Levels, values: NDArray[np.floating]) -> Match:
    """Find out how a picture was brought to the grid of some values.

    First its shape, by filters that blur much and hardly; then the filter.
    """
    height, width = values.shape[:2]
    nearest: dict[str, Match] = {}
    for resized in resizes(levels, height, width, _OF_SHAPE):
        match = best_match([resized], values)
        if match.residual < PICTURE_FOUND:
            return match
        known = nearest.get(resized.shape)
        if known is None or match.residual < known.residual:
            nearest[resized.shape] = match
    shapes = sorted(nearest, key=lambda shape: nearest[shape].residual)[:_SHAPES]
    rest = [f for f in FILTERS if f not in _OF_SHAPE]
    others = resizes(levels, height, width, rest, shapes)
    return best_match(chain([nearest[shapes[0]].resized], others), values)


def rough_match(levels: Levels, values: NDArray[np.floating]) -> Match:
    """The same by few filters: how near the picture is at all."""
    height, width = values.shape[:2]
    return best_match(resizes(levels, height, width, _OF_SHAPE), values)


def best_match(candidates: Iterable[Resized], values: NDArray[np.floating]) -> Match:
    """The picture that comes nearest to values, whatever constants normalized it.

    Args:
        candidates: of the size of values; none is looked at after one that fits exactly.
        values: ``(height, width, 3)``, finite.

    Raises:
        ValueError: there is no candidate.
    """
    best: Match | None = None
    for resized in candidates:
        trial = Match(resized, np.inf)
        levels, inside = trial.pair(values)
        step = -(-len(levels) // _MOST_PIXELS)
        # A stride that shares no factor with the width goes through all columns.
        step += step > 1 and values.shape[1] % step == 0
        levels, inside = levels[::step], inside[::step]
        # Padding of one value is explained by anything.
        found = fit(levels, inside).residual if np.ptp(inside, axis=0).all() else np.inf
        if best is None or found < best.residual:
            best = Match(resized, found)
        if best.residual < PICTURE_FOUND:
            break
    if best is None:
        raise ValueError("there must be a candidate")
    return best


def _flat(pixels: NDArray[np.floating] | NDArray[np.uint8]) -> Array:
    return np.asarray(pixels, np.float64).reshape(-1, 3)


def _block_means(pixels: NDArray[np.floating] | NDArray[np.uint8], side: int) -> Array:
    rows, columns = (n // side for n in pixels.shape[:2])
    whole = np.asarray(pixels[: rows * side, : columns * side], np.float64)
    means = whole.reshape(rows, side, columns, side, 3).mean(axis=(1, 3))
    return np.asarray(means.reshape(-1, 3))
