"""Whether values are finite, told by their bits: far faster than converting them.

A block of a quantized type has finite values if its half-precision scales are finite: no
product of theirs with the block's small integers leaves float32. Where a block has them is not
written down here but asked of ggml: a NaN is put into each place of an empty block.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.floats import F16_INFINITY, below
from ggufnorm.formats.dequantize import dequantize_rows
from ggufnorm.formats.gguf_constants import GGML_QUANT_SIZES, GGMLQuantizationType

_SCALED_BY_HALVES = frozenset(
    (
        "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
        "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ4_NL", "IQ4_XS",
    )
)  # fmt: skip
"""Types whose only floating-point fields are of type ``ggml_half`` (``ggml-common.h``)."""

_INFINITY = {
    "F32": (np.uint32, 0x7F80_0000), "F16": (np.uint16, F16_INFINITY), "BF16": (np.uint16, 0x7F80),
}  # fmt: skip
"""The bits of an infinity, which are less than those of every NaN."""

_NAN = np.uint16(0x7E00)


def are_finite(raw: NDArray[np.uint8], ggml_type: int) -> bool | None:
    """Whether all values of some rows are finite.

    Args:
        raw: their bytes, in this machine's order, C-contiguous.
        ggml_type: ggml's number of the type.

    Returns:
        None if the values' bits do not tell, for want of knowledge of the type.
    """
    name = GGMLQuantizationType(ggml_type).name
    if name in _INFINITY:
        bits, infinity = _INFINITY[name]
        return below(raw.reshape(-1).view(bits), infinity)
    places = _scales(ggml_type)
    if places is None:
        return None
    block = GGML_QUANT_SIZES[GGMLQuantizationType(ggml_type)][1]
    blocks = raw.reshape(-1).view(np.uint16).reshape(-1, block // 2)
    return all(below(blocks[:, p // 2], F16_INFINITY) for p in places)


@cache
def _scales(ggml_type: int) -> tuple[int, ...] | None:
    """Where a block has its scales; None if it may have something else."""
    kind = GGMLQuantizationType(ggml_type)
    if kind.name not in _SCALED_BY_HALVES:
        return None
    n_bytes = GGML_QUANT_SIZES[kind][1]
    found = []
    for place in range(0, n_bytes - 1, 2):
        block = np.zeros(n_bytes, np.uint8)
        block[place : place + 2] = np.array([_NAN], np.uint16).view(np.uint8)
        try:
            values = dequantize_rows(block[None, :], ggml_type)
        except NotImplementedError:
            return None
        if not np.isfinite(values).all():
            found.append(place)
    return tuple(found)
