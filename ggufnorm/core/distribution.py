"""How the values of a norm's weight are distributed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.fingerprint import offset_fingerprint
from ggufnorm.core.model import Outlier, WeightStatistics

BINS = 8
"""Bins of a histogram, of equal width from the minimum to the maximum."""

OUTLIER_Z = 8.0
"""Robust z-score from which a channel is called an outlier.

The usual 3.5 (Iglewicz and Hoaglin, 1993) is meant for tens of values: among thousands of
channels of a sound norm it finds some every time.
"""

_MOST_OUTLIERS = 3


def weight_statistics(weight: NDArray[np.float32]) -> WeightStatistics:
    """Summary of a weight of any shape; NaN and infinities are counted and left out."""
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        flat = weight.reshape(-1).astype(np.float64)
    finite = flat[np.isfinite(flat)]
    bad = int(flat.size - finite.size)
    offset = offset_fingerprint(weight)
    if finite.size == 0:
        return WeightStatistics(None, None, None, None, bad, (), 0, (), offset)
    outliers = find_outliers(flat)
    return WeightStatistics(
        mean=float(finite.mean()),
        rms=float(np.sqrt(np.mean(finite**2))),
        minimum=float(finite.min()),
        maximum=float(finite.max()),
        non_finite=bad,
        histogram=_histogram(finite),
        n_outliers=len(outliers),
        outliers=tuple(outliers[:_MOST_OUTLIERS]),
        offset=offset,
    )


def _histogram(values: NDArray[np.float64]) -> tuple[int, ...]:
    # np.histogram refuses values whose range is narrower than their spacing.
    low, high = values.min(), values.max()
    bins = (values - low) * (BINS / (high - low)) if high > low else np.zeros(values.size)
    counts = np.bincount(np.minimum(bins.astype(np.int64), BINS - 1), minlength=BINS)
    return tuple(int(n) for n in counts)


def median(values: NDArray[np.float64]) -> np.float64:
    """As ``np.median`` of finite ``(n,)``, which loads ``numpy.ma`` for those that are not."""
    middle = len(values) // 2
    if len(values) % 2:
        return np.float64(np.partition(values, middle)[middle])
    return np.float64(np.mean(np.partition(values, (middle - 1, middle))[middle - 1 : middle + 1]))


def find_outliers(values: NDArray[np.float64]) -> list[Outlier]:
    """Elements far from the others, the furthest first.

    The z-score is robust: deviation from the median over 1.4826 times the median absolute
    deviation or, where more than half of the elements are equal, over 1.2533 times the
    mean absolute deviation (both estimate a normal distribution's standard deviation).

    Args:
        values: ``(elements,)``; NaN and infinities are passed over.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return []
    deviation = np.abs(values - median(values[finite]))
    spread = 1.4826 * median(deviation[finite]) or 1.2533 * np.mean(deviation[finite])
    if spread == 0:
        return []
    z = np.where(finite, deviation / spread, 0.0)
    indices = np.flatnonzero(z >= OUTLIER_Z)
    furthest = indices[np.argsort(-z[indices], kind="stable")]
    return [Outlier(int(i), float(values[i]), float(z[i])) for i in furthest]
