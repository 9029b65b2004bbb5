"""The integer weights of an ONNX graph, and a fresh quantization of what they stand for.

Operations and their inputs: ONNX's ``docs/Operators.md`` and ONNX Runtime's
``docs/ContribOperators.md``. Ranges and rounding: ``compute_scale_zp`` and ``quantize_data`` of
ONNX Runtime's ``quantization/quant_utils.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.onnx.model import OnnxModel, along, attribute

Array = NDArray[np.float32]


@dataclass(frozen=True)
class _Inputs:
    """Where an operation's matrix stands among its inputs, and what dequantizes it.

    Attributes:
        weight: number of the input.
        scale: likewise; None where the product is multiplied with it afterwards.
        zero: likewise.
        axis: of the output channels.
    """

    weight: int
    scale: int | None
    zero: int
    axis: int


WEIGHT_INPUTS: Mapping[str, _Inputs] = {
    "DequantizeLinear": _Inputs(0, 1, 2, 1),
    "Gather": _Inputs(0, None, 9, 0),
    "MatMulInteger": _Inputs(1, None, 3, -1),
    "ConvInteger": _Inputs(1, None, 3, 0),
    "QLinearMatMul": _Inputs(3, 4, 5, -1),
    "QLinearConv": _Inputs(3, 4, 5, 0),
    "QGemm": _Inputs(3, 4, 5, -1),
    "MatMulIntegerToFloat": _Inputs(1, 3, 5, -1),
    "DynamicQuantizeMatMul": _Inputs(1, 2, 3, -1),
    "QAttention": _Inputs(1, 4, 7, -1),
}
_LEAVE_OUT_LAST = 2
"""Dimensions of a matrix, without a batch."""


@dataclass(frozen=True)
class WeightSite:
    """A matrix of integers that a node reads.

    Attributes:
        node: that reads it.
        weight: name of the integers.
        scale: name of the scale.
        zero: name of the zero point, None for none.
        dtype: of the integers, in ONNX's words.
        channel_axis: of the output channels.
        per_channel: whether there is a scale for each of them.
        symmetric: whether the zero point is the middle of the range.
    """

    node: Any
    weight: str
    scale: str
    zero: str | None
    dtype: str
    channel_axis: int
    per_channel: bool
    symmetric: bool

    @property
    def text(self) -> str:
        """For example ``INT8 per tensor``."""
        return f"{self.dtype} per {'channel' if self.per_channel else 'tensor'}"


def weight_sites(model: OnnxModel, nodes: Iterable[Any]) -> Iterator[WeightSite]:
    """The matrices of integers that some nodes read."""
    for node in nodes:
        at = WEIGHT_INPUTS.get(node.op_type)
        if at is None or at.weight >= len(node.input):
            continue
        weight = str(node.input[at.weight])
        shape = model.shape(weight)
        if len(shape) < _LEAVE_OUT_LAST or attribute(node, "block_size", 0):
            continue
        if (model.dtype(weight) or "").lstrip("U")[:3] != "INT":
            continue
        scale, zero = _scale_of(model, node, at)
        values = None if scale is None else model.constant(scale)
        if values is None:
            continue
        z = model.constant(zero) if zero else None
        yield WeightSite(
            node,
            weight,
            str(scale),
            zero or None,
            model.dtype(weight) or "",
            _channel_axis(model, node, at, len(shape)),
            values.size > 1,
            z is None or bool(np.all(z == _middle(z.dtype))),
        )


def _scale_of(model: OnnxModel, node: Any, at: _Inputs) -> tuple[str | None, str]:
    """Names of scale and zero point; of rows that are looked up they stand behind."""
    if node.op_type == "Gather":
        user = dequantizer(model, node.output[0])
        if user is None:
            return None, ""
        names = [str(name) for name in user.input]
        return names[1], names[2] if len(names) > 2 else ""
    zero = str(node.input[at.zero]) if at.zero < len(node.input) else ""
    if at.scale is None:
        scale = _scale_behind(model, node)
        maker = model.producers.get(node.input[0])
        dynamic = maker is not None and maker.op_type == "DynamicQuantizeLinear"
        # Behind an input of stored scale a single factor is the product of two scales.
        folded = scale is not None and not dynamic and _is_factor(model, node, scale)
        return None if folded else scale, zero
    return str(node.input[at.scale]), zero


def dequantizer(model: OnnxModel, value: str) -> Any | None:
    """The node that turns looked up integers into real numbers, None if none does."""
    users = model.consumers.get(value, [])
    return next((u for u in users if u.op_type == "DequantizeLinear"), None)


def _middle(dtype: Any) -> int:
    """The integer that stands for zero in a symmetric range: 0, of unsigned types 128."""
    info = np.iinfo(dtype)
    return int(info.max + info.min + 1) // 2


def _channel_axis(model: OnnxModel, node: Any, at: _Inputs, n_axes: int) -> int:
    """Which axis of a matrix its output channels are: that of the operation that reads it."""
    if node.op_type == "QGemm":
        return 0 if attribute(node, "transB", 0) else 1
    if node.op_type != "DequantizeLinear":
        return at.axis % n_axes
    for user in model.consumers.get(node.output[0], ()):
        if user.op_type in ("Conv", "Gather", "FusedConv"):
            return 0
        if user.op_type == "Gemm" and attribute(user, "transB", 0):
            return 0
    return 1


def _scale_behind(model: OnnxModel, node: Any) -> str | None:
    """The constant among the factors that an integer product is multiplied with."""
    value = node.output[0]
    for _ in range(3):
        users = [u for u in model.consumers.get(value, ()) if u.op_type in ("Cast", "Mul")]
        if len(users) != 1:
            return None
        for name in users[0].input if users[0].op_type == "Mul" else ():
            found = _constant_factor(model, str(name))
            if found is not None:
                return found
        value = users[0].output[0]
    return None


def _is_factor(model: OnnxModel, node: Any, scale: str) -> bool:
    """Whether a product is multiplied with a constant itself, and not with a product of it."""
    users = list(model.consumers.get(node.output[0], ()))
    for user in users:
        if user.op_type == "Cast":
            users += model.consumers.get(user.output[0], ())
    return any(scale in user.input for user in users)


def _constant_factor(model: OnnxModel, name: str) -> str | None:
    if model.dtype(name) is not None:
        return name
    maker = model.producers.get(name)
    if maker is None or maker.op_type != "Mul":
        return name if model.constant(name) is not None else None
    # The input's scale stands in front; of an input that was looked up that is stored too.
    return next((str(i) for i in reversed(maker.input) if model.constant(i) is not None), None)


def stored_weight(model: OnnxModel, site: WeightSite) -> Array | None:
    """The numbers that a site's integers stand for."""
    values, scale = model.constant(site.weight), model.constant(site.scale)
    if values is None or scale is None:
        return None
    zero = model.constant(site.zero) if site.zero else None
    axis = _axis_of_scale(site, values.ndim)
    wide = values.astype(np.float32)
    if zero is not None:
        wide = wide - along(zero.astype(np.float32), values.ndim, axis)
    return np.asarray(wide * along(scale.astype(np.float32), values.ndim, axis), np.float32)


def _axis_of_scale(site: WeightSite, n_axes: int) -> int:
    if site.node.op_type == "DequantizeLinear":
        return int(attribute(site.node, "axis", 1)) % n_axes
    return site.channel_axis


def dequantized_weight(model: OnnxModel, name: str) -> Array | None:
    """An initializer in real numbers, by whatever node dequantizes it."""
    for site in weight_sites(model, model.consumers.get(name, ())):
        if site.weight == name:
            return stored_weight(model, site)
    values = model.constant(name)
    return None if values is None else np.asarray(values, np.float32)


@dataclass(frozen=True)
class Requantized:
    """Integers with their scale and zero point, of which there is one or one for each channel."""

    values: NDArray[Any]
    scale: Array
    zero: NDArray[Any]
    real: Array


def requantize(
    real: Array, dtype: Any, axis: int | None, *, symmetric: bool, bounds: tuple[int, int]
) -> Requantized:
    """Quantize as ONNX Runtime's quantizer does.

    Args:
        real: the numbers.
        dtype: of the integers.
        axis: of the channels that have a scale each; None for one scale.
        symmetric: whether zero is the middle of the range.
        bounds: the smallest and the largest integer; see :func:`bounds_of`.
    """
    others = None if axis is None else tuple(i for i in range(real.ndim) if i != axis)
    low = np.minimum(real.min(axis=others), 0).astype(np.float64)
    high = np.maximum(real.max(axis=others), 0).astype(np.float64)
    first, last = bounds
    if symmetric:
        zero = np.full(low.shape, _middle(np.dtype(dtype)), np.int64)
        scale = np.maximum(np.abs(low), np.abs(high)) / (last - zero)
    else:
        scale = (high - low) / (last - first)
        zero = np.round(first - low / np.where(scale == 0, 1.0, scale)).astype(np.int64)
    scale = np.where(scale == 0, 1.0, scale).astype(np.float32)
    step, offset = (along(v, real.ndim, axis or 0) for v in (scale, zero))
    whole = np.clip(np.round(real / step) + offset, first, last)
    back = ((whole - offset) * step).astype(np.float32)
    return Requantized(whole.astype(dtype), scale, zero.astype(dtype), back)


def bounds_of(dtype: Any, *, symmetric: bool, used: NDArray[Any] | None = None) -> tuple[int, int]:
    """The integers that ONNX Runtime's quantizer uses of a type.

    Args:
        dtype: of the integers.
        symmetric: whether the range is symmetric about its middle.
        used: the integers in a file: ``reduce_range`` halves the range.
    """
    info = np.iinfo(dtype)
    first, last = int(info.min), int(info.max)
    if symmetric and info.min < 0:
        first = -last
    middle = _middle(np.dtype(dtype))
    if used is not None and used.size and info.bits == 8:
        if info.min < 0 and int(np.abs(used.astype(np.int64)).max()) <= 64:
            return -64, 64
        if middle and not symmetric and int(used.max()) < middle:
            return 0, middle - 1
    return first, last
