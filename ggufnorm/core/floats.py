"""Which numbers the small floating-point formats can hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

F16_MAX = 65504.0
"""Largest finite half-precision number."""


def is_bf16(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Where a value is exactly a bfloat16: a float32 whose low 16 bits are zero."""
    with np.errstate(over="ignore"):
        narrow = np.asarray(values, dtype=np.float32)
    return np.asarray((narrow == values) & (narrow.view(np.uint32) & 0xFFFF == 0))


def is_f16(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Where a value is exactly an IEEE half-precision number."""
    with np.errstate(over="ignore"):
        return np.asarray(np.asarray(values, dtype=np.float16) == values)


def shortest_float32(value: float | None) -> float | None:
    """The shortest decimal that reads back as the same float32: 1e-05, not 9.99999975e-06."""
    if value is None or abs(value) > np.finfo(np.float32).max:
        return value
    return float(str(np.float32(value)))


def round_to_bf16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest bfloat16s, ties to even, as float32; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), values, rounded.view(np.float32))


def from_bf16(
    bits: NDArray[np.uint16], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Bfloat16s, given as their bits, as float32; in ``out`` if that is given."""
    wide = None if out is None else out.view(np.uint32)
    return np.left_shift(bits, np.uint32(16), out=wide, dtype=np.uint32).view(np.float32)


_REBIASED = np.float32(2.0**112)
"""What a half's exponent lacks for a float's: 127 - 15."""

_PAST_F16 = np.float32(2.0**16)


def from_f16(
    bits: NDArray[np.uint16], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Half-precision numbers, given as their bits, as float32, at three times NumPy's speed.

    Shifted into a float's place they are too small by :data:`_REBIASED`, subnormal ones too.
    Infinities and NaN come out as 2^16 and more: those arrays, and all in threads that flush
    subnormal numbers to zero, are left to NumPy.
    """
    values = np.empty(bits.shape, np.float32) if out is None else out
    wide = values.view(np.int32)
    np.left_shift(bits.view(np.int16), 13, out=wide, dtype=np.int32)
    np.bitwise_and(wide, np.int32(-0x70002000), out=wide)
    np.multiply(values, _REBIASED, out=values)
    if values.size == 0:
        return values
    least = np.array([1 << 13], np.int32).view(np.float32) * _REBIASED
    if least[0] == 0 or values.max() >= _PAST_F16 or values.min() <= -_PAST_F16:
        with np.errstate(invalid="ignore"):
            values[...] = bits.view(np.float16)
    return values


def below(bits: NDArray[np.unsignedinteger[Any]], infinity: int) -> bool:
    """Whether no exponent is the largest, by passes that write nothing.

    As signed numbers, positive values that are not finite are the largest; as unsigned ones,
    negative ones are.

    Args:
        bits: of floating-point numbers, ``(n,)``.
        infinity: the bits of theirs.
    """
    from ggufnorm.core import kernels  # no business of a mere inspect

    told = kernels.below(bits, infinity)
    if told is not None:
        return told
    if bits.size == 0:
        return True
    bits = np.ascontiguousarray(bits)
    sign = 1 << (8 * bits.itemsize - 1)
    signed = bits.view(f"i{bits.itemsize}")
    return bool(signed.max() < infinity and bits.max() < sign + infinity)


F32_INFINITY, F16_INFINITY, BF16_INFINITY = 0x7F80_0000, 0x7C00, 0x7F80
"""The bits of infinities, which are less than those of every NaN."""


def finite_float32(value: float | None) -> float | None:
    """As :func:`shortest_float32`, None for what JSON cannot hold: infinity and NaN."""
    return shortest_float32(value) if value is not None and math.isfinite(value) else None


def epsilon_text(value: float | None) -> str:
    """An epsilon in use for a person; None stands for infinity (:func:`finite_float32`)."""
    return "∞" if value is None else f"{value:g}"
