"""Resizes that take no antialiasing filter, as tensors and OpenCV's arrays go through them.

Positions: ``area_pixel_compute_source_index`` and ``nearest_idx`` in PyTorch's
``aten/src/ATen/native/UpSample.h``, ``start_index`` and ``end_index`` in its
``AdaptivePooling.h``; ``resize`` in OpenCV's ``modules/imgproc/src/resize.cpp``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Levels = NDArray[np.uint8]


def resize_tensor(levels: Levels, height: int, width: int, how: str) -> Array:
    """A picture on another grid, float32, not rounded.

    Args:
        levels: ``(height, width, 3)``.
        height: of the result.
        width: of the result.
        how: of :data:`TENSOR_RESIZES`.
    """
    along = _WAYS[how]
    rows = along(levels.astype(np.float32), height)
    return np.swapaxes(along(np.swapaxes(rows, 0, 1), width), 0, 1)


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
    """Keys's kernel of four, ``a = -0.75``."""
    a, position = -0.75, (np.arange(n) + 0.5) * (len(x) / n) - 0.5
    low = np.floor(position).astype(int)
    total = np.zeros((n, *x.shape[1:]), np.float32)
    for tap in range(-1, 3):
        d = np.abs(position - low - tap)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weight = np.where(d <= 1, near, far).astype(np.float32)[:, None, None]
        total += weight * x[np.clip(low + tap, 0, len(x) - 1)]
    return total


def _first(x: Array, n: int) -> Array:
    """The one that the corner lies in."""
    return x[np.minimum(np.arange(n) * len(x) // n, len(x) - 1)]


def _area(x: Array, n: int) -> Array:
    """The mean of all that are touched."""
    first, last = np.arange(n) * len(x) // n, -(-(np.arange(n) + 1) * len(x) // n)
    return np.stack([x[a:b].mean(axis=0) for a, b in zip(first, last, strict=True)])


_WAYS: dict[str, Callable[[Array, int], Array]] = {
    "bilinear without antialiasing": _linear,
    "bicubic without antialiasing": _cubic,
    "nearest of the corner (torch, OpenCV)": _first,
    "area (torch)": _area,
    "bilinear with align_corners": _corners,
}
TENSOR_RESIZES = tuple(_WAYS)
"""Ways to resize, in words, usual ones first."""
