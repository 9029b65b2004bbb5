"""Is a tensor quantized as well as its type allows?

The yardstick needs no table of typical errors: the reference's own weight is quantized
again to the same type by ggml, and the error of that is compared with the error that the
file shows. A sound file lies within a fifth of it, a single block within two thirds (an
importance matrix moves a weight's plain error up a little); damage does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.metrics import difference
from ggufnorm.engines.llama.binding import quantize_rows
from ggufnorm.errors import InputError
from ggufnorm.formats.dequantize import dequantize_rows, read_tensor
from ggufnorm.formats.model_file import ModelFile

Array = NDArray[np.float32]

_SAMPLE = 1 << 20
"""Elements quantized again: rows spread evenly over the tensor."""
_WORST_ROWS = 16
"""Rows quantized again besides: those with the relatively worst blocks."""
_BLOCK = 256
"""Elements of a block: ggml's QK_K."""


@dataclass(frozen=True)
class WeightError:
    """Relative L2 error of a weight against the reference's.

    Attributes:
        actual: of the file under test; None if it holds NaN or infinity.
        expected: of a fresh quantization of the reference to the same type.
        worst_block: the largest error of a block, in multiples of its error when quantized
            afresh; 0 where nothing is lost.
    """

    actual: float | None
    expected: float
    worst_block: float


def weight_error(reference: ModelFile, quant: ModelFile, name: str) -> WeightError | None:
    """Measure one tensor; None where the files have it in different shapes or types unread."""
    ref, under_test = reference.tensors.get(name), quant.tensors.get(name)
    if ref is None or under_test is None or ref.shape != under_test.shape:
        return None
    try:
        values, observed = (_rows(read_tensor(file, name)) for file in (reference, quant))
        found = difference(values, observed)
        if found.non_finite_rows:
            return WeightError(None, 0.0, 0.0)
        sample = np.arange(0, len(values), max(1, values.size // _SAMPLE))
        chosen = np.union1d(sample, _worst_rows(values, observed))
        again = _requantized(values[chosen], under_test.ggml_type)
    except (InputError, NotImplementedError):  # a type that ggml alone reads, and not here
        return None
    at = np.searchsorted(chosen, sample)
    expected = difference(values[sample], again[at]).rel_l2 or 0.0
    worst = _worst_block(values[chosen], observed[chosen], again)
    return WeightError(found.rel_l2, expected, worst)


def _rows(values: Array) -> Array:
    return values.reshape(-1, values.shape[-1])


def _requantized(rows: Array, ggml_type: int) -> Array:
    return dequantize_rows(quantize_rows(rows, ggml_type), ggml_type)


def _energies(rows: Array) -> Array:
    """Sum of squares of each block, ``(rows, blocks)``; a row is one block if none fit."""
    n = rows.shape[-1]
    blocks = rows.reshape(len(rows), -1, _BLOCK if n % _BLOCK == 0 else n)
    energies: Array = np.einsum("rbi,rbi->rb", blocks, blocks)
    return energies


def _worst_rows(values: Array, observed: Array) -> NDArray[np.intp]:
    share = _energies(observed - values) / np.maximum(_energies(values), np.float32(1e-30))
    return np.argsort(-share.max(axis=1), kind="stable")[:_WORST_ROWS]


def _worst_block(values: Array, observed: Array, again: Array) -> float:
    actual, expected = _energies(observed - values), _energies(again - values)
    # A block that its type happens to hit exactly has no error to be a multiple of.
    floor = 0.01 * float(expected.mean())
    if floor == 0.0:
        return 0.0
    return float(np.sqrt((actual / np.maximum(expected, floor)).max()))
