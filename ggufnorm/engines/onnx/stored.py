"""The constants of a graph's layers, and what their types lose of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.rounding import HALF_ULP
from ggufnorm.engines.onnx.model import OnnxModel, along, attribute

Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Stored:
    """A constant.

    Attributes:
        values: in the file's shape.
        lost: most that the type loses of each.
    """

    values: Wide
    lost: Wide

    @property
    def rounding(self) -> float:
        """Relative L2 of what is lost."""
        length = float(np.linalg.norm(self.values))
        return float(np.linalg.norm(self.lost)) / length if length else 0.0


def stored(model: OnnxModel, value: str) -> Stored | None:
    """A value that does not depend on the input; None if it does.

    Raises:
        InputError: its data lies in another file and cannot be had.
    """
    values = model.constant(value)
    if values is None:
        return None
    wide, node = values.astype(np.float64), model.producers.get(value)
    if node is not None and node.op_type == "DequantizeLinear":
        scale = model.constant(node.input[1])
        if scale is not None:
            return _in_steps(wide, along(scale, wide.ndim, int(attribute(node, "axis", 1))))
    dtype = model.dtype(model.source(value) or "")
    return Stored(wide, np.abs(wide) * HALF_ULP.get(dtype or "", 0.0))


def dequantized(values: NDArray[Any], zero: NDArray[Any], scale: NDArray[Any], axis: int) -> Stored:
    """Integers and their scale, one or one for each index along an axis.

    Raises:
        ValueError: their shapes do not fit.
    """
    z, step = (along(v.astype(np.float64), values.ndim, axis) for v in (zero, scale))
    return _in_steps((values - z) * step, step)


def _in_steps(values: Wide, step: NDArray[Any]) -> Stored:
    return Stored(values, np.broadcast_to(step.astype(np.float64) / 2, values.shape))


def optional_input(node: Any, i: int) -> str:
    """Name of a node's input, empty for none."""
    return str(node.input[i]) if i < len(node.input) else ""


def by_channel(values: Wide, channels: int, axes: int) -> Wide | None:
    """A constant as one value for each channel; None where it is broadcast otherwise.

    Args:
        values: in the graph's shape.
        channels: how many there are.
        axes: how many axes stand behind them.
    """
    if values.size == 1:
        return np.full(channels, values.reshape(-1)[0])
    shape = (1,) * (1 + axes - values.ndim) + values.shape
    expected = (1,) * (len(shape) - 1 - axes) + (channels,) + (1,) * axes
    return values.reshape(-1) if shape == expected else None


def _of_convolution(node: Any, w: Wide) -> Wide:
    groups = int(attribute(node, "group", 1))
    if w.ndim < 3 or groups < 1:
        raise ValueError("no weight of a convolution")
    return w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)


def _of_transposed(node: Any, w: Wide) -> Wide:
    return np.swapaxes(_of_convolution(node, w), 1, 2)


def _of_product(node: Any, w: Wide) -> Wide:
    if w.ndim != 2:
        raise ValueError("no matrix")
    return (w if attribute(node, "transB", 0) else w.T)[None, :, :, None]


ARRANGED: dict[str, Callable[[Any, Wide], Wide]] = {
    "Conv": _of_convolution,
    "FusedConv": _of_convolution,
    "ConvInteger": _of_convolution,
    "ConvTranspose": _of_transposed,
    "Gemm": _of_product,
    "MatMul": _of_product,
    "MatMulInteger": _of_product,
}
"""By operation, its weight as ``(groups, out, in, taps)``; a ValueError where that has other
dimensions than the operation takes."""
