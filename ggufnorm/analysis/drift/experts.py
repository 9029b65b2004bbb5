"""Which of a tensor's stacked experts differ, and how."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.metrics import difference
from ggufnorm.core.tolerances import FLOAT32_ROUNDING, WEIGHT_RATIO
from ggufnorm.formats.dequantize import read_rows
from ggufnorm.formats.model_file import ModelFile

Array = NDArray[np.float32]

_MOST = 4
"""Experts that are named."""
_MOST_COMPARED = 16
"""Experts whose values are looked for among the others'."""


def n_experts(file: ModelFile, name: str) -> int:
    """How many matrices a tensor stacks: 1 for a plain one."""
    shape = file.tensors[name].shape
    return int(np.prod(shape[2:], dtype=int)) if len(shape) > 2 else 1


def read_expert(file: ModelFile, name: str, i: int) -> Array:
    """The i-th matrix of a stack, ``(rows, columns)``."""
    rows = file.tensors[name].shape[1]
    return read_rows(file, name, i * rows, (i + 1) * rows)


def wrong_experts(reference: ModelFile, quant: ModelFile, name: str, cost: float) -> str | None:
    """Say which experts are further from the reference's than their types cost, and how.

    Args:
        reference: the model that is right by definition.
        quant: the model under test; the tensor has the same shape in both.
        name: of a tensor.
        cost: relative L2 error that its types cost.

    Returns:
        ``expert 2 of 4 is all zero``, ``expert 0 of 4 holds expert 3's values``; None for a
        plain matrix, or where all experts are off, or none.
    """
    n = n_experts(reference, name)
    off = [i for i in range(n) if _is_off(*_both(reference, quant, name, i), cost)] if n > 1 else []
    if not off or len(off) == n:
        return None
    told = [_one(reference, quant, name, i, off, cost) for i in off[:_MOST]]
    more = f", and {len(off) - _MOST} more experts" if len(off) > _MOST else ""
    return f"{'; '.join(f'expert {i} of {n} {how}' for i, how in told)}{more}"


def _both(reference: ModelFile, quant: ModelFile, name: str, i: int) -> tuple[Array, Array]:
    return read_expert(reference, name, i), read_expert(quant, name, i)


def _is_off(w: Array, q: Array, cost: float) -> bool:
    found = difference(w, q)
    error = found.rel_l2 or 0.0
    return bool(found.non_finite_rows) or error > max(FLOAT32_ROUNDING, WEIGHT_RATIO * cost)


def _one(
    reference: ModelFile, quant: ModelFile, name: str, i: int, off: list[int], cost: float
) -> tuple[int, str]:
    w, q = _both(reference, quant, name, i)
    if not q.any():
        return i, "is all zero"
    if not np.isfinite(q).all():
        return i, "holds NaN or infinity"
    for j in off[:_MOST_COMPARED]:
        if j != i and not _is_off(read_expert(reference, name, j), q, cost):
            return i, f"holds expert {j}'s values"
    return i, f"is off by {difference(w, q).rel_l2 or 0.0:.3g}"
