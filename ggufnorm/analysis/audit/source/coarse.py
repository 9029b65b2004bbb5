"""Values as other libraries' quantization leaves them: what a checkpoint may have gone through.

A checkpoint that was loaded in four or eight bits, merged and saved again has values of these;
so has a file that was made of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.audit.source.layout import Values
from ggufnorm.formats.quantized import E4M3

_NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""Quantiles of a normal distribution (Dettmers et al. 2023, arXiv:2305.14314, appendix E)."""

_BLOCK = 64
"""Values of one scale in bitsandbytes."""


def nf4(rows: Values) -> Values | None:
    """NF4 as bitsandbytes makes it: the nearest of 16 numbers times the largest of a block."""
    if rows.shape[1] % _BLOCK:
        return None
    blocks = rows.reshape(-1, _BLOCK)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    scaled = blocks / np.where(largest > 0, largest, np.float32(1))
    nearest = _nearest(_NF4, scaled)
    return np.asarray((nearest * largest).reshape(rows.shape), np.float32)


def int8_rows(rows: Values) -> Values:
    """LLM.int8: the nearest of 255 steps of a row's largest value."""
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    safe = np.where(scale > 0, scale, 1)
    return np.asarray(np.rint(rows / safe) * scale, np.float32)


def fp8(rows: Values) -> Values:
    """FP8 E4M3 without a scale."""
    return _nearest(_FINITE, rows)


def fp8_rows(rows: Values) -> Values:
    """FP8 E4M3 with a scale of each row."""
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(448)
    safe = np.where(scale > 0, scale, np.float32(1))
    return np.asarray(_nearest(_FINITE, rows / safe) * scale, np.float32)


_FINITE = np.unique(E4M3[np.isfinite(E4M3)])


def _nearest(table: Values, values: NDArray[np.floating]) -> Values:
    """The nearest number of a rising table."""
    middles = (table[1:] + table[:-1]) / 2
    return table[np.searchsorted(middles, values)]


COARSE: dict[str, Callable[[Values], Values | None]] = {
    "NF4 (bitsandbytes)": nf4,
    "INT8 (bitsandbytes)": int8_rows,
    "FP8": fp8,
    "FP8 with a scale of each row": fp8_rows,
}
"""By what reports call them."""

NEAR = 0.02
"""Share of values that may differ: how ties are rounded is not known of all of them."""
