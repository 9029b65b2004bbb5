"""The function of one level that comes nearest to the values of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike

from ggufnorm.core.normalization import Affine, Array, rows_of, three
from ggufnorm.core.tolerances import AMBIGUOUS, PIXEL_FORMULA


@dataclass(frozen=True)
class Fit:
    """The function of one level that comes nearest to some values.

    Attributes:
        affine: found by least squares, the tenth of the pixels that fits worst left out.
        residual: as in :class:`~ggufnorm.core.feed.Explanation`, of all pixels.
    """

    affine: Affine
    residual: float


def fit(levels: ArrayLike, values: ArrayLike) -> Fit:
    """Find gain, offset and source of each channel.

    Args:
        levels: ``(…, 3)``.
        values: the same shape, finite.

    Raises:
        ValueError: the shapes differ, or the last axis is not of length 3.
    """
    x, y = rows_of(levels), rows_of(values)
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
    x, y = rows_of(levels), rows_of(values)
    error = float(np.linalg.norm(affine.apply(x) - y))
    size = float(np.linalg.norm(y - y.mean(axis=0)))
    if size <= 1e-6 * float(np.linalg.norm(y)):
        return 0.0 if error <= PIXEL_FORMULA * max(1.0, float(np.linalg.norm(y))) else np.inf
    return error / size


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
    return Affine(three(gain), three(offset), (order[0], order[1], order[2]))
