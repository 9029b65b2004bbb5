"""What a tensor type costs: the error that storing right values in it leaves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.floats import round_to_bf16
from ggufnorm.formats import ggml
from ggufnorm.formats.dequantize import dequantize_rows
from ggufnorm.formats.gguf_constants import GGMLQuantizationType

Values = NDArray[np.float32]

ROUNDED: dict[str, Callable[[Values], Values]] = {
    "F32": lambda rows: rows,
    "F64": lambda rows: rows,
    "F16": lambda rows: rows.astype(np.float16).astype(np.float32),
    "BF16": round_to_bf16,
}
"""What is left of values in the types that keep them but for their last bits."""

WORST: dict[str, float] = {"F32": 2.0**-22, "F64": 2.0**-22, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Largest relative error of a value in these; BF16 may be cut off instead of rounded."""

TYPICAL: dict[str, float] = {
    "IQ1_S": 0.49, "IQ1_M": 0.45, "IQ2_XXS": 0.34, "IQ2_XS": 0.3, "IQ2_S": 0.27,
}  # fmt: skip
"""Relative error of normally distributed values in types that ggml takes long to make:
measured with ``ggml_quantize_chunk`` and an importance that is the same for all columns."""

ALLOWED = 1.6
"""How many times what a fresh quantization costs a right tensor may differ: an importance
matrix trades the error of some columns for that of others."""

ALLOWED_ROW = 2.5
"""The same of one row."""


def fresh(dtype: str, rows: Values) -> Values | None:
    """Rows after they were stored in a type; None if that cannot be told here.

    Args:
        dtype: ggml's name of the type.
        rows: ``(n, length of a row)``.
    """
    if dtype in ROUNDED:
        with np.errstate(over="ignore", invalid="ignore"):
            return ROUNDED[dtype](rows)
    if dtype in TYPICAL:
        return None
    kind = int(GGMLQuantizationType[dtype])
    quantize = quantizer(kind)
    if quantize is None or not np.isfinite(rows).all():
        return None
    try:
        return dequantize_rows(quantize(rows), kind)
    except (ValueError, NotImplementedError):  # rows of a length that the type cannot hold
        return None


@cache
def quantizer(kind: int) -> Callable[[Values], NDArray[np.uint8]] | None:
    """What quantizes rows to a type: ggml, or gguf-py; None where neither can.

    Args:
        kind: ggml's number of the type.

    Returns:
        A function of rows that raises :class:`ValueError` or :class:`NotImplementedError` where
        it cannot.
    """
    found = ggml.quantizer(kind)
    if found is not None:
        return found
    from gguf.quants import QuantError, quantize

    def by_gguf(rows: Values) -> NDArray[np.uint8]:
        try:
            return np.asarray(quantize(rows, GGMLQuantizationType(kind)), np.uint8)
        except QuantError as error:
            raise ValueError(str(error)) from None

    return by_gguf


def cost_of_rows(dtype: str, rows: Values) -> NDArray[np.float64] | None:
    """Squared error of each row in a type, None if it cannot be told; see :func:`fresh`."""
    wide = rows.astype(np.float64)
    power = np.einsum("ij,ij->i", wide, wide)
    if dtype in WORST:
        # Of the smallest numbers of half precision, and of one that is rounded away.
        least = 2.0**-25 if dtype == "F16" else 0.0
        return np.asarray(power * WORST[dtype] ** 2 + rows.shape[1] * least**2)
    if dtype in TYPICAL:
        return np.asarray(power * TYPICAL[dtype] ** 2)
    stored = fresh(dtype, rows)
    if stored is None:
        return None
    error = stored.astype(np.float64) - wide
    return np.asarray(np.einsum("ij,ij->i", error, error))
