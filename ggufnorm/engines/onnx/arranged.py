"""The values of a norm as rows, whichever axes its means go over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.floats import shortest_float32
from ggufnorm.core.formula import Formula
from ggufnorm.core.observed import by_token
from ggufnorm.engines.onnx.evaluate import Axes
from ggufnorm.engines.onnx.norms import UNBIASED, OnnxNorm

Array = NDArray[np.float32]

AGREES = 1e-3
"""Relative L2 up to which several operations are the norm that they look like, in float32."""
HALVED = 5e-2
"""As :data:`AGREES`, of operations in half precision: each of them rounds."""


@dataclass(frozen=True)
class Arranged:
    """A norm's values as rows.

    Attributes:
        formula: what it should be.
        x: what goes in, ``(tokens, heads, channels)``.
        y: the result, likewise.
        weight: that the rows are multiplied with, ``(channels,)``; None for none.
        bias: that is added; None for none.
    """

    formula: Formula
    x: Array
    y: Array
    weight: Array | None
    bias: Array | None


def arranged(
    norm: OnnxNorm,
    rows: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    weight: Array | None,
    bias: Array | None,
    n_tokens: int,
) -> Arranged:
    """The values of a norm of several operations.

    Args:
        norm: the norm.
        rows: the value whose means are taken.
        x: what goes in, of the result's shape.
        y: the result.
        weight: in the graph's shape; None for none.
        bias: likewise.
        n_tokens: how many were run; 0 for none.

    Raises:
        ValueError: the means go over several samples, or the shapes do not fit.
    """
    s = norm.spelled
    assert s is not None
    if norm.over_batch:
        raise ValueError("it takes mean and variance over all samples of its input")
    axes = _axes(s.axes, rows.ndim)
    n = int(np.prod([rows.shape[a] for a in axes]))
    if n < 1 or x.shape != y.shape:
        raise ValueError(f"{x.shape} goes in, and {y.shape} comes out")
    scale = s.scale * float(n) ** s.power
    divisor, kind = s.divisor, s.kind
    if kind in ("rms", "layer") and divisor == "standard" and _is_unbiased(scale, n):
        scale, divisor = 1.0, "unbiased"
    if kind != "l2" and abs(scale - 1) <= 1e-5:
        scale = 1.0
    factor = np.float32(s.factor / (scale if divisor == "no-root" else np.sqrt(scale)))
    epsilon = s.epsilon / (np.sqrt(scale) if divisor == "outside" else scale)
    epsilon = shortest_float32(epsilon) or 0.0
    if weight is None and factor != 1:
        weight = np.ones(1, np.float32)
    weight = None if weight is None else weight * factor
    bias = None if bias is None else bias * np.float32(s.bias_factor)
    grouped = x.shape != rows.shape or (len(axes) < rows.ndim - 1 and axes[0] > 1 and len(axes) > 1)
    if kind == "layer" and (grouped or s.is_grouped):
        return _grouped(Formula("group", epsilon, x[0].size // n, divisor), x, y, weight, bias)
    return _as_rows(Formula(kind, epsilon, None, divisor), x, y, weight, bias, axes, n_tokens)


def _axes(axes: Axes, n_axes: int) -> tuple[int, ...]:
    if len(axes) > 1 and axes[-1] > n_axes:  # all behind the first of them
        return tuple(range(axes[0], n_axes))
    found = tuple(sorted(a + n_axes if a < 0 else a for a in axes))
    if any(not 0 <= a < n_axes for a in found):
        raise ValueError(f"axes {found} of {n_axes}")
    return found


def _is_unbiased(scale: float, n: int) -> bool:
    return n > 1 and abs(scale - n / (n - 1)) < UNBIASED * scale


def _grouped(
    formula: Formula, x: NDArray[Any], y: NDArray[Any], weight: Array | None, bias: Array | None
) -> Arranged:
    flat = []
    for v in (weight, bias):
        if v is not None and v.size not in (1, x.shape[1]):
            raise ValueError(f"{v.size} weights do not fit {x.shape[1]} channels")
        flat.append(None if v is None else np.broadcast_to(v.reshape(-1), x.shape[1]))
    return Arranged(formula, *by_sample(x, y, *flat))


def _as_rows(
    formula: Formula,
    x: NDArray[Any],
    y: NDArray[Any],
    weight: Array | None,
    bias: Array | None,
    axes: tuple[int, ...],
    n_tokens: int,
) -> Arranged:
    last = tuple(range(x.ndim - len(axes), x.ndim))
    n = int(np.prod([x.shape[a] for a in axes]))

    def rows(v: NDArray[Any]) -> Array:
        moved = np.moveaxis(v, axes, last)
        if len(axes) == 1:
            return by_row(moved, n_tokens, -1)
        return np.ascontiguousarray(moved, np.float32).reshape(-1, 1, n)

    def of_channels(v: Array | None) -> Array | None:
        if v is None or v.size == 1:
            return v
        wide = (1,) * (x.ndim - v.ndim) + v.shape
        moved = np.moveaxis(v.reshape(wide), axes, last)
        if any(size > 1 for size in moved.shape[: x.ndim - len(axes)]):
            raise ValueError(f"weights of {v.shape} do not stand on the axes of the means")
        kept = np.broadcast_to(moved, (*moved.shape[: -len(axes)], *(x.shape[a] for a in axes)))
        return np.ascontiguousarray(kept, np.float32).reshape(-1)

    return Arranged(formula, rows(x), rows(y), of_channels(weight), of_channels(bias))


def by_row(value: NDArray[Any], n_tokens: int, axis: int) -> Array:
    """A value as ``(tokens, heads, channels)``, where its means go over the last axes.

    Args:
        value: in the graph's shape.
        n_tokens: how many were run; 0 for none.
        axis: from which on the channels are.
    """
    channels = int(np.prod(value.shape[axis:]))
    if n_tokens and n_tokens in value.shape[:-1] and channels == value.shape[-1]:
        return by_token(value, n_tokens, channels)
    return np.ascontiguousarray(value, np.float32).reshape(-1, 1, channels)


def by_sample(
    x: NDArray[Any], y: NDArray[Any], weight: Array | None, bias: Array | None
) -> tuple[Array, Array, Array | None, Array | None]:
    """The values of a group norm: samples as rows, a channel is a run of each."""
    n, channels = x.shape[0], x.shape[1]
    run = x[0].size // channels

    def spread(v: Array | None) -> Array | None:
        # Before opset 21 there is one weight for a group.
        return None if v is None else np.repeat(v.reshape(-1), channels // v.size * run)

    flat = [np.ascontiguousarray(v, np.float32).reshape(n, 1, -1) for v in (x, y)]
    return flat[0], flat[1], spread(weight), spread(bias)
