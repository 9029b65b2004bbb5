"""How was a picture brought to the size of what a pipeline feeds?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.pixels import Array, fit
from ggufnorm.core.tolerances import PICTURE_FOUND
from ggufnorm.engines.images import Resized

_MOST_PIXELS = 1 << 16
"""Pixels that a resize is chosen by: more do not tell it better."""


@dataclass(frozen=True)
class Match:
    """A picture that could have been normalized to some values.

    Attributes:
        resized: the picture.
        residual: of :func:`ggufnorm.core.pixels.fit`, where it is not padding.
    """

    resized: Resized
    residual: float

    def pair(self, values: NDArray[np.floating]) -> tuple[Array, Array]:
        """Levels and values of the pixels that are not padding, ``(pixels, 3)``."""
        inside = self.resized.inside
        return _flat(self.resized.levels[inside]), _flat(values[inside])


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
