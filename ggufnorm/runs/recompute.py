"""Norms once more in NumPy, from the observed hidden state and the file's own weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.norms import normalize
from ggufnorm.engines.base import NormPlan
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.model_file import ModelFile

Array = NDArray[np.float32]

_BLOCK = 1 << 17
"""Elements normalized at a time: few enough to stay in a cache in float64."""


class WeightCache:
    """Norm weights of one file as float32, each read once."""

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        self._read: dict[str, Array] = {}

    def get(self, name: str) -> Array:
        """The values, in NumPy's order."""
        if name not in self._read:
            self._read[name] = read_tensor(self.file, name)
        return self._read[name]


class Pool:
    """Arrays to be used again and again: fresh pages cost more than the sums over them."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], list[Array]] = {}

    def take(self, shape: tuple[int, ...]) -> Array:
        """An array of which nothing is said."""
        free = self._free.get(shape)
        return free.pop() if free else np.empty(shape, np.float32)

    def copy(self, array: Array) -> Array:
        """A copy of an array."""
        found = self.take(array.shape)
        np.copyto(found, array)
        return found

    def give_back(self, array: Array) -> None:
        """Nobody reads it any more."""
        self._free.setdefault(array.shape, []).append(array)


def recompute(
    plan: NormPlan,
    x: Array,
    shape: tuple[int, ...],
    weights: WeightCache,
    out: Array | None = None,
) -> Array:
    """A norm's result in NumPy, from its input and the file's own weight and bias.

    Args:
        plan: of the norm, with the epsilon that the graph uses.
        x: the input, ``(ne[3], ne[2], ne[1], ne[0])``.
        shape: of the result, in the same order.
        weights: of the file.
        out: gets the result if it is given; of its shape, contiguous.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if x.size == 0:
        return np.empty(shape, np.float32)
    rows = x.reshape(-1, x.shape[-1])
    weight = _as_used(weights, plan.weight, plan.weight_shape, shape, rows.shape)
    bias = _as_used(weights, plan.bias, plan.bias_shape, shape, rows.shape)
    grouped = _group_norm(plan, x).reshape(rows.shape) if plan.kind == "group" else None
    result = np.empty(shape, np.float32) if out is None else out
    y = result.reshape(rows.shape)
    step = max(1, _BLOCK // rows.shape[1])
    for block in (slice(i, i + step) for i in range(0, len(rows), step)):
        part = y[block]
        if grouped is None:
            normalized = normalize(plan.kind, rows[block], epsilon=plan.epsilon)
        else:
            normalized = grouped[block]
        if weight is None:
            part[:] = normalized
        else:
            np.multiply(normalized, weight[block], out=part)
        if bias is not None:
            part += bias[block]
    return result


def _as_used(
    weights: WeightCache,
    name: str | None,
    ne: tuple[int, ...],
    shape: tuple[int, ...],
    rows: tuple[int, ...],
) -> Array | None:
    """A weight as the graph uses it for a result of that shape, cut into the norm's rows."""
    if name is None:
        return None
    return np.broadcast_to(repeat(weights.get(name), ne, shape), shape).reshape(rows)


def _group_norm(plan: NormPlan, x: Array) -> Array:
    # ggml counts channels on ne[2], and each group's statistics reach over ne[0] and
    # ne[1] too (ggml_compute_forward_group_norm_f32): one sample is one flat row.
    groups = plan.groups or 0
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{groups} groups do not divide {x.shape[1]} channels")
    flat = normalize("group", x.reshape(x.shape[0], -1), epsilon=plan.epsilon, groups=groups)
    return flat.reshape(x.shape)


def repeat(values: Array, ne: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """A weight in the shape in which the graph uses it, repeated as ggml repeats it."""
    values = values.reshape((*(1,) * (len(shape) - len(ne)), *ne[::-1]))
    times = [
        1 if have == 1 else want // have for want, have in zip(shape, values.shape, strict=True)
    ]
    return np.tile(values, times) if max(times) > 1 else values
