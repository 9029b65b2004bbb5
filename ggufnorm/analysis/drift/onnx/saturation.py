"""What products of 8-bit integers lose where the processor saturates.

On x86 without VNNI ONNX Runtime multiplies unsigned activations with signed weights by
``VPMADDUBSW``: two neighbouring products are added in 16 bits, and what is beyond 32767 is cut off
(ONNX Runtime's documentation, "Quantize ONNX models", on ``reduce_range``). A run on a processor
with VNNI does not show it, so it is computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.onnx.hooks import Hook, Sides
from ggufnorm.core.metrics import relative_l2
from ggufnorm.engines.onnx.quantized import WeightSite

_ROWS = 16
"""Of the input, spread over all, for which it is computed."""
_LEAST, _MOST = -(1 << 15), (1 << 15) - 1
_PRODUCTS = ("MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")


def saturated_error(sides: Sides, hook: Hook, reference: dict[str, NDArray[Any]]) -> float | None:
    """Relative L2 that saturation adds to a product; None where none can.

    Args:
        sides: both graphs.
        hook: the product.
        reference: values of the reference, by name.
    """
    site = next((s for s in hook.sites if s.dtype == "INT8" and _is_product(sides, s)), None)
    weight = None if site is None else sides.quant.constant(site.weight)
    if site is None or weight is None or weight.ndim != 2:
        return None
    if site.channel_axis == 0:
        weight = weight.T
    inputs = [reference[sides.grafts[name].ref] for name in hook.ends]
    x = next((v for v in inputs if v.ndim and v.shape[-1] == weight.shape[0]), None)
    if x is None or not np.isfinite(x).all():
        return None
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    levels, zero = _as_bytes(sides, hook, rows)
    step = max(1, len(levels) // _ROWS)
    return _lost(levels[::step][:_ROWS], zero, weight.astype(np.int64))


def _is_product(sides: Sides, site: WeightSite) -> bool:
    if site.node.op_type in _PRODUCTS:
        return True
    users = sides.quant.consumers.get(site.node.output[0], [])
    return site.node.op_type == "DequantizeLinear" and any(
        user.op_type in ("MatMul", "Gemm") for user in users
    )


def _as_bytes(sides: Sides, hook: Hook, rows: NDArray[np.float64]) -> tuple[NDArray[np.int64], int]:
    """The input in 8 bits: by its stored scale, or as DynamicQuantizeLinear has it."""
    scale, zero = (rows.max(initial=0) - rows.min(initial=0)) / 255 or 1.0, None
    for stored in hook.rounded[:1]:
        values = sides.quant.constant(stored.scale)
        offset = None if stored.zero is None else sides.quant.constant(stored.zero)
        if values is not None and offset is not None and offset.dtype == np.uint8:
            scale, zero = float(values.reshape(-1)[0]), int(offset.reshape(-1)[0])
    if zero is None:
        zero = int(np.clip(np.round(-rows.min(initial=0) / scale), 0, 255))
    return np.clip(np.round(rows / scale) + zero, 0, 255).astype(np.int64), zero


def _lost(levels: NDArray[np.int64], zero: int, weight: NDArray[np.int64]) -> float:
    """Relative L2 of the product with neighbouring products added in 16 bits."""
    if len(weight) % 2:
        levels, weight = np.pad(levels, ((0, 0), (0, 1))), np.pad(weight, ((0, 1), (0, 0)))
    exact = (levels - zero) @ weight
    lost = np.zeros_like(exact)
    for i in range(0, len(weight), 2):
        pair = levels[:, i : i + 2] @ weight[i : i + 2]
        lost += pair - np.clip(pair, _LEAST, _MOST)
    return relative_l2(exact.astype(np.float64), (exact - lost).astype(np.float64))
