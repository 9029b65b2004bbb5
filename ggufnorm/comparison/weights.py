"""Is a tensor quantized as well as its type allows?

The yardstick needs no table of typical errors: the reference's own weight is quantized
again to the same type by ggml, and the error of that is compared with the error that the
file shows. A sound file lies within some tens of percent of it (an importance matrix
moves a weight's plain error up a little); damage does not.
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

_SAMPLE = 1 << 20
"""Elements quantized again: rows spread evenly over the tensor."""


@dataclass(frozen=True)
class WeightError:
    """Relative L2 error of a weight against the reference's.

    Attributes:
        actual: of the file under test; None if it holds NaN or infinity.
        expected: of a fresh quantization of the reference to the same type.
    """

    actual: float | None
    expected: float


def weight_error(reference: ModelFile, quant: ModelFile, name: str) -> WeightError | None:
    """Measure one tensor; None where the files have it in different shapes or types unread."""
    ref, under_test = reference.tensors.get(name), quant.tensors.get(name)
    if ref is None or under_test is None or ref.shape != under_test.shape:
        return None
    try:
        values, observed = read_tensor(reference, name), read_tensor(quant, name)
        rows = _some_rows(values.reshape(-1, values.shape[-1]))
        again = dequantize_rows(quantize_rows(rows, under_test.ggml_type), under_test.ggml_type)
    except (InputError, NotImplementedError):
        return None
    found = difference(values, observed)
    actual = None if found.non_finite_rows else found.rel_l2
    return WeightError(actual, difference(rows, again).rel_l2 or 0.0)


def _some_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    step = max(1, rows.size // _SAMPLE)
    return rows[::step]
