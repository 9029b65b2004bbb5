"""The normalizations that llama.cpp computes, in NumPy.

All take ``x`` of any floating type with the normalized channels on the last axis,
and return float32 of the same shape. Sums are accumulated in float64 and the scale
is rounded to float32 once, so the result is the float32 neighbour of the exact value.
ggml's CPU kernels square in float32 and accumulate RMSNorm, GroupNorm and L2Norm in
float64, LayerNorm in float32 (``ggml/src/ggml-cpu/ops.cpp``): a relative L2 distance
of a few 1e-7 between the two is rounding, and more than 1e-5 is a different formula.

``weight`` and ``bias`` must broadcast against ``x``. ``epsilon`` is dimensionless in
LayerNorm, RMSNorm and GroupNorm relative to the mean square of ``x`` (it has the unit
of ``x`` squared); in L2Norm it has the unit of ``x``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggufnorm.core.model import NormKind

Array = NDArray[np.float32]


def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    epsilon: float,
    bias: ArrayLike | None = None,
) -> Array:
    """RMSNorm: ``y = x / sqrt(mean(x²) + epsilon) · weight + bias``.

    Args:
        x: ``(…, channels)``.
        weight: broadcasts against ``x``, usually ``(channels,)``; None for none.
        epsilon: added to the mean square; in units of ``x`` squared.
        bias: broadcasts against ``x``; None for none.

    Returns:
        float32, the shape of ``x``.

    Raises:
        ValueError: ``x`` has no channels, or a shape does not broadcast.

    Source: ``ggml_compute_forward_rms_norm_f32`` in ``ggml/src/ggml-cpu/ops.cpp``.
    """
    v = _rows(x).astype(np.float64)
    v *= _inverse_root(_sum_of_squares(v) / v.shape[-1], epsilon)
    return _affine(v, weight, bias)


def layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    epsilon: float,
    bias: ArrayLike | None = None,
) -> Array:
    """LayerNorm: ``y = (x - mean(x)) / sqrt(var(x) + epsilon) · weight + bias``.

    ``var`` is the population variance (divided by the number of channels).

    Args:
        x: ``(…, channels)``.
        weight: broadcasts against ``x``, usually ``(channels,)``; None for none.
        epsilon: added to the variance; in units of ``x`` squared.
        bias: broadcasts against ``x``; None for none.

    Returns:
        float32, the shape of ``x``.

    Raises:
        ValueError: ``x`` has no channels, or a shape does not broadcast.

    Source: ``ggml_compute_forward_norm_f32`` in ``ggml/src/ggml-cpu/ops.cpp``.
    """
    v = _rows(x)
    # The mean stays in float64: rounding it to float32 would move a row with a large
    # common offset by more than its own spread.
    centred = v - v.mean(axis=-1, dtype=np.float64, keepdims=True)
    centred *= _inverse_root(_sum_of_squares(centred) / v.shape[-1], epsilon)
    return _affine(centred, weight, bias)


def group_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    groups: int,
    epsilon: float,
    bias: ArrayLike | None = None,
) -> Array:
    """GroupNorm: LayerNorm within each of ``groups`` runs of channels.

    The channels are split into runs of ``ceil(channels / groups)``; as in ggml, the
    last run is shorter when ``groups`` does not divide them. One row of ``x`` is one
    sample: mean and variance never reach over rows.

    Args:
        x: ``(…, channels)``.
        weight: broadcasts against ``x``, usually ``(channels,)``; None for none.
        groups: number of groups, from 1 to the number of channels.
        epsilon: added to each group's variance; in units of ``x`` squared.
        bias: broadcasts against ``x``; None for none.

    Returns:
        float32, the shape of ``x``.

    Raises:
        ValueError: ``groups`` is out of range, or a shape does not broadcast.

    Source: ``ggml_compute_forward_group_norm_f32`` in ``ggml/src/ggml-cpu/ops.cpp``,
    as called by ``llm_graph_context::build_norm`` in ``src/llama-graph.cpp``.
    """
    v = _rows(x)
    channels = v.shape[-1]
    if not 1 <= groups <= channels:
        raise ValueError(f"groups must be from 1 to {channels} (the channels), not {groups}")
    run = -(-channels // groups)
    parts = [layer_norm(v[..., i : i + run], epsilon=epsilon) for i in range(0, channels, run)]
    return _affine(np.concatenate(parts, axis=-1), weight, bias)


def l2_norm(x: ArrayLike, *, epsilon: float) -> Array:
    """L2 norm: ``y = x / max(sqrt(sum(x²)), epsilon)``.

    Args:
        x: ``(…, channels)``.
        epsilon: smallest divisor; in units of ``x`` (not of its square: Transformers'
            ``rsqrt(sum(x²) + epsilon)`` is another formula).

    Returns:
        float32, the shape of ``x``.

    Raises:
        ValueError: ``x`` has no channels.

    Source: ``ggml_compute_forward_l2_norm_f32`` in ``ggml/src/ggml-cpu/ops.cpp``.
    """
    v = _rows(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(v / np.maximum(np.sqrt(_sum_of_squares(v)), epsilon), dtype=np.float32)


def normalize(kind: NormKind, x: ArrayLike, *, epsilon: float, groups: int | None = None) -> Array:
    """The norm of that ``kind`` without weight and bias; see the functions above."""
    if kind == "rms":
        return rms_norm(x, epsilon=epsilon)
    if kind == "layer":
        return layer_norm(x, epsilon=epsilon)
    if kind == "l2":
        return l2_norm(x, epsilon=epsilon)
    if groups is None:
        raise ValueError("a group norm needs its number of groups")
    return group_norm(x, groups=groups, epsilon=epsilon)


def _rows(x: ArrayLike) -> NDArray[np.floating]:
    v = np.asarray(x)
    if not np.issubdtype(v.dtype, np.floating):
        v = v.astype(np.float64)
    if v.ndim == 0 or v.shape[-1] == 0:
        raise ValueError(f"x must have channels on its last axis, not the shape {v.shape}")
    return v


def _sum_of_squares(v: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = v.astype(np.float64, copy=False)
    return np.asarray(np.vecdot(wide, wide)[..., np.newaxis])


def _inverse_root(mean_square: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    # A row of zeros with epsilon 0 divides by zero, in ggml too: infinity, then NaN.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1.0 / np.sqrt(mean_square + epsilon))


def _affine(y: NDArray[np.floating], weight: ArrayLike | None, bias: ArrayLike | None) -> Array:
    shape = y.shape
    with np.errstate(invalid="ignore", over="ignore"):
        if weight is not None:
            y = y * np.asarray(weight)
        if bias is not None:
            y = y + np.asarray(bias)
        if y.shape != shape:
            raise ValueError(f"weight or bias of a shape that does not fit x's {shape}")
        return y.astype(np.float32)
