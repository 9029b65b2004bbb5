"""Resizes of tensors and of OpenCV's arrays.

Positions: ``area_pixel_compute_source_index`` and ``nearest_idx`` in PyTorch's
``aten/src/ATen/native/UpSample.h``, ``_compute_indices_min_size_weights_aa`` in its
``cpu/UpSampleKernel.cpp``, ``start_index`` and ``end_index`` in its
``AdaptivePooling.h``; ``resize`` in OpenCV's ``modules/imgproc/src/resize.cpp``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Levels = NDArray[np.uint8]
Way = Callable[[Array, int], Array]
Kernel = Callable[[NDArray[np.floating]], NDArray[np.floating]]


def resize_tensor(levels: Levels, height: int, width: int, how: str) -> Array:
    """A picture on another grid, float32; whole levels of OpenCV's ways alone.

    Args:
        levels: ``(height, width, 3)``.
        height: of the result.
        width: of the result.
        how: of :data:`TENSOR_RESIZES`.
    """
    if how in _WHOLE:
        return _WHOLE[how](levels, height, width)
    return _along_both(levels, height, width, _ALONG[how])


def _linear(x: Array, n: int) -> Array:
    """Of the two nearest, of pixels as areas."""
    return _between(x, (np.arange(n) + 0.5) * (len(x) / n) - 0.5)


def _corners(x: Array, n: int) -> Array:
    """Of the two nearest, the corners' middles on one another."""
    return _between(x, np.arange(n) * ((len(x) - 1) / max(n - 1, 1)))


def _between(x: Array, position: NDArray[np.floating]) -> Array:
    position = np.clip(position, 0, len(x) - 1)
    low = position.astype(int)
    part = (position - low).astype(np.float32)[:, None, None]
    return np.asarray(x[low] * (1 - part) + x[np.minimum(low + 1, len(x) - 1)] * part)


def _cubic(x: Array, n: int) -> Array:
    """Keys's kernel of four."""
    position = (np.arange(n) + 0.5) * (len(x) / n) - 0.5
    taps = np.floor(position).astype(int)[:, None] + np.arange(-1, 3)
    return _weighted(x, taps, _keys(position[:, None] - taps, -0.75))


def _first(x: Array, n: int) -> Array:
    """The one that the corner lies in, by torch's float32."""
    places = (np.arange(n, dtype=np.float32) * np.float32(len(x) / n)).astype(int)
    return np.asarray(x[np.minimum(places, len(x) - 1)])


def _area(x: Array, n: int) -> Array:
    """The mean of all that are touched."""
    first, last = np.arange(n) * len(x) // n, -(-(np.arange(n) + 1) * len(x) // n)
    return np.stack([x[a:b].mean(axis=0) for a, b in zip(first, last, strict=True)])


def _antialiased(kernel: Kernel, support: float) -> Way:
    """A kernel as wide as a pixel of the result (``_compute_indices_min_size_weights_aa``)."""

    def along(x: Array, n: int) -> Array:
        scale = len(x) / n
        width = max(scale, 1.0)
        middle = (np.arange(n) + 0.5) * scale
        first = np.maximum((middle - support * width + 0.5).astype(int), 0)
        last = np.minimum((middle + support * width + 0.5).astype(int), len(x))
        taps = first[:, None] + np.arange((last - first).max())
        weights = kernel((taps - middle[:, None] + 0.5) / width) * (taps < last[:, None])
        return _weighted(x, taps, weights / weights.sum(axis=1, keepdims=True))

    return along


def _weighted(x: Array, taps: NDArray[np.intp], weights: NDArray[np.floating]) -> Array:
    """Sums of pixels, those beyond the ends the last ones."""
    total = np.zeros((len(taps), *x.shape[1:]), np.float32)
    for tap, weight in zip(taps.T, weights.T, strict=True):
        total += x[np.clip(tap, 0, len(x) - 1)] * weight.astype(np.float32)[:, None, None]
    return total


def _triangle(d: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(np.maximum(0, 1 - np.abs(d)))


def _keys(d: NDArray[np.floating], a: float = -0.5) -> NDArray[np.floating]:
    """Keys's kernel of four; torch takes -0.5 where it antialiases, else -0.75."""
    d = np.abs(d)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


# -- OpenCV's, of levels of 8 bits -------------------------------------------------------

_UNIT = 1 << 11
"""Weights are whole numbers of 2⁻¹¹ (``INTER_RESIZE_COEF_BITS``)."""


def _opencv_linear(levels: Levels, height: int, width: int) -> Array:
    """``INTER_LINEAR``, which is ``INTER_AREA`` at half the size."""
    if levels.shape[:2] == (2 * height, 2 * width):
        return _opencv_area(levels, height, width)
    return _fixed_point(levels, height, width, _two_taps)


def _opencv_cubic(levels: Levels, height: int, width: int) -> Array:
    """``INTER_CUBIC``."""
    return np.clip(np.rint(_along_both(levels, height, width, _cubic)), 0, 255)


def _opencv_area(levels: Levels, height: int, width: int) -> Array:
    """``INTER_AREA``; where it enlarges, linear in another place."""
    rows, columns = levels.shape[:2]
    if height > rows or width > columns:
        return _fixed_point(levels, height, width, _two_taps_of_area)
    means = _along_both(levels, height, width, _covered)
    halves_up = (rows, columns) == (2 * height, 2 * width)
    return np.floor(means + 0.5) if halves_up else np.rint(means)


def _covered(x: Array, n: int) -> Array:
    """The mean of what a pixel covers, of those on its edge their part."""
    scale = len(x) / n
    start, stop = np.arange(n) * scale, (np.arange(n) + 1) * scale
    taps = np.floor(start).astype(int)[:, None] + np.arange(int(np.ceil(scale)) + 1)
    parts = np.minimum(stop[:, None], taps + 1) - np.maximum(start[:, None], taps)
    parts = np.where(taps < len(x), np.maximum(parts, 0), 0)
    return _weighted(x, taps, parts / parts.sum(axis=1, keepdims=True))


Taps = tuple[NDArray[np.intp], NDArray[np.floating]]


def _two_taps(n_in: int, n: int) -> Taps:
    position = ((np.arange(n) + 0.5) * (n_in / n) - 0.5).astype(np.float32)
    low = np.floor(position).astype(int)
    return low, position - low


def _two_taps_of_area(n_in: int, n: int) -> Taps:
    low = np.floor(np.arange(n) * (n_in / n)).astype(int)
    part = np.arange(n) + 1 - (low + 1) * (n / n_in)
    return low, np.where(part <= 0, 0, part - np.floor(part))


def _fixed_point(
    levels: Levels, height: int, width: int, taps: Callable[[int, int], Taps]
) -> Array:
    """``HResizeLinear`` and ``VResizeLinear`` of 8 bits."""
    left, right, part, rest = _fixed(*taps(levels.shape[1], width), levels.shape[1])
    x = levels.astype(np.int64)
    rows = x[:, left] * rest[:, None] + x[:, right] * part[:, None]
    upper, lower, part, rest = _fixed(*taps(levels.shape[0], height), levels.shape[0])
    above, below = (
        (rows[upper] >> 4) * rest[:, None, None],
        (rows[lower] >> 4) * part[:, None, None],
    )
    made = ((above >> 16) + (below >> 16) + 2) >> 2
    return np.asarray(np.clip(made, 0, 255), np.float32)


def _fixed(
    low: NDArray[np.intp], part: NDArray[np.floating], n_in: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
    part = np.where((low < 0) | (low >= n_in - 1), 0, part)
    low = np.clip(low, 0, n_in - 1)
    whole = [np.rint(p.astype(np.float32) * _UNIT).astype(np.int64) for p in (part, 1 - part)]
    return low, np.minimum(low + 1, n_in - 1), whole[0], whole[1]


# -- All of them -------------------------------------------------------------------------


def _along_both(levels: Levels, height: int, width: int, along: Way) -> Array:
    rows = along(levels.astype(np.float32), height)
    return np.swapaxes(along(np.swapaxes(rows, 0, 1), width), 0, 1)


ANTIALIASED_BILINEAR = "bilinear with antialiasing (torch)"
"""Which enlarges as ``bilinear without antialiasing`` does."""
_ALONG: dict[str, Way] = {
    "bilinear without antialiasing": _linear,
    "bicubic without antialiasing": _cubic,
    ANTIALIASED_BILINEAR: _antialiased(_triangle, 1.0),
    "bicubic with antialiasing (torch)": _antialiased(_keys, 2.0),
    "nearest of the corner (torch, OpenCV)": _first,
    "area (torch)": _area,
    "bilinear with align_corners": _corners,
}
_WHOLE: dict[str, Callable[[Levels, int, int], Array]] = {
    "bilinear (OpenCV)": _opencv_linear,
    "area (OpenCV)": _opencv_area,
    "bicubic (OpenCV)": _opencv_cubic,
}
TENSOR_RESIZES = (*_ALONG, *_WHOLE)
"""Ways to resize, in words, usual ones first."""
