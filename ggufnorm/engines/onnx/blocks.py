"""Matrices of ``MatMulNBits``: blocks of 4 or 8 bits along the input, each with its scale.

Layout: ONNX Runtime's ``docs/ContribOperators.md``, ``com.microsoft.MatMulNBits``. Rounding of a
fresh quantization: ``MlasQuantizeBlockwise``, which gives the largest value the code 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.onnx.model import OnnxModel, attribute

Array = NDArray[np.float32]


def block_errors(model: OnnxModel, node: Any, real: Array) -> tuple[float, float] | None:
    """Relative L2 of a matrix in blocks, and of a fresh quantization to the same blocks.

    Args:
        model: the graph that the node is in.
        node: a ``MatMulNBits``.
        real: the reference's matrix, ``(inputs, outputs)``.

    Returns:
        Both errors; None for a layout that is not known here.
    """
    bits, size = (int(attribute(node, name, 0)) for name in ("bits", "block_size"))
    k, n = real.shape
    packed, scales = (model.constant(node.input[i]) for i in (1, 2))
    if packed is None or scales is None or bits not in (4, 8) or size < 1:
        return None
    n_blocks = -(-k // size)
    codes = _codes(packed, bits)
    if codes.size != n * n_blocks * size or scales.size != n * n_blocks:
        return None
    given = node.input[3] if len(node.input) > 3 else ""
    zeros = model.constant(given) if given else None
    if zeros is not None and zeros.dtype != np.uint8:
        return None
    blocks = codes.reshape(n, n_blocks, size).astype(np.float32)
    zero = _zeros(zeros, n, n_blocks, bits)
    stored = (blocks - zero) * scales.reshape(n, n_blocks, 1).astype(np.float32)
    padded = np.pad(real.T, ((0, 0), (0, n_blocks * size - k))).reshape(blocks.shape)
    fresh = _fresh(padded, bits, symmetric=zeros is None)
    length = float(np.linalg.norm(padded)) or 1.0
    mine, theirs = (float(np.linalg.norm(v - padded)) / length for v in (stored, fresh))
    return mine, theirs


def _codes(packed: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """One code after another; of two in a byte the low one comes first."""
    flat = packed.reshape(-1).astype(np.uint8)
    return flat if bits == 8 else np.stack([flat & 15, flat >> 4], axis=-1).reshape(-1)


def _zeros(zeros: NDArray[Any] | None, n: int, n_blocks: int, bits: int) -> Array:
    if zeros is None:
        return np.full((1, 1, 1), 1 << (bits - 1), np.float32)
    rows = _codes(zeros, bits).reshape(n, -1)[:, :n_blocks]
    return rows.astype(np.float32)[:, :, None]


def _fresh(blocks: Array, bits: int, *, symmetric: bool) -> Array:
    most, middle = (1 << bits) - 1, 1 << (bits - 1)
    if symmetric:
        at = np.abs(blocks).argmax(axis=-1)[..., None]
        scale = np.take_along_axis(blocks, at, axis=-1) / -middle
        zero = np.float32(middle)
    else:
        low = np.minimum(blocks.min(axis=-1, keepdims=True), 0)
        scale = (np.maximum(blocks.max(axis=-1, keepdims=True), 0) - low) / most
        zero = np.round(-low / np.where(scale == 0, 1, scale))
    scale = np.where(scale == 0, 1, scale)
    return np.asarray(
        (np.clip(np.round(blocks / scale) + zero, 0, most) - zero) * scale, np.float32
    )
