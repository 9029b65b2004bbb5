"""The relative error of storing a number in a small type: one table for all tolerances.

A floating type of ``p`` significant bits has values one ulp apart, ``2^(1 - p)`` between 1 and 2.
Rounding to nearest loses at most half an ulp. Relative to the value that is ``2^-p`` at the
bottom of a binade and half as much at its top, so the **worst case** is ``2^-p``: 2⁻¹¹ for F16,
2⁻⁸ for BF16. The **RMS** of many values is smaller: an error anywhere within half an ulp is
``ulp / √12`` in RMS, and significands spread evenly over a binade have a mean square of 7/3, which
makes a relative L2 of ``2^-p / √7``, 0.38 of the worst case. It is 0.43 for normal values, 0.6 for
the product of two such matrices and for values just above 1
(``tests/frameworks/test_rounding.py``).

Tolerances here are bounds and take the worst case: a norm has few weights, most of them near the
bottom of a binade, and a product's error must stay below its type's whatever the values are. Only
integers, whose worst case depends on the largest value, count by the RMS of normal values.

All errors are relative to float32, which loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

_SIGNIFICANT_BITS = {"F16": 11, "FLOAT16": 11, "BF16": 8, "BFLOAT16": 8}
"""With the leading one that is not stored; by GGUF's and safetensors' names and by ONNX's."""

HALF_ULP: Mapping[str, float] = {name: 2.0**-p for name, p in _SIGNIFICANT_BITS.items()}
"""The worst relative error of one value, by type. Types that hold every float32 are not in it."""

WEIGHT_ROUNDING: Mapping[str, float] = {**HALF_ULP, "INT8": 2.0**-6, "UINT8": 2.0**-6}
"""The largest relative L2 error of a norm's weight. Integers with one scale for all of them: half
a step is 1/254 of the largest value, which may be four times the usual one."""

MATRIX_ROUNDING: Mapping[str, float] = {
    **HALF_ULP, "INT8": 2.0**-6, "UINT8": 2.0**-6, "INT4": 2.0**-2, "UINT4": 2.0**-2,
}  # fmt: skip
"""The relative L2 error of a matrix product. Integers with one scale for the matrix and one for
the activation, both normal with a largest value of five times the RMS: ``√2 · 5 / (√12 n)`` with
``n`` = 127 or 7 steps from zero to the largest (docs/frameworks.md)."""


def quantized(bits_per_weight: float) -> float:
    """The relative L2 error of a matrix in one of ggml's block formats.

    Twice the step of a number of that many bits, ``2^(1 - bits)``: measured errors of normal
    values are 0.5 to 2 times that (``tests/frameworks/test_frameworks.py``).

    Args:
        bits_per_weight: scales included, as 8.5 for Q8_0.
    """
    return float(2.0 ** (1 - bits_per_weight))
