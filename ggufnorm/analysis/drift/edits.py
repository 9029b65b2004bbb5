"""What was done to weights of one type: told from the values of one matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.files import Changed
from ggufnorm.core.tolerances import HALF_ROUNDING, SAME_FACTOR
from ggufnorm.errors import InputError
from ggufnorm.formats.dequantize import read_rows
from ggufnorm.formats.model_file import ModelFile

Array = NDArray[np.float32]

_LARGEST = 1 << 22
"""Elements of the matrices that are looked at: a decomposition takes seconds at most."""
_TAIL = 1e-3
"""Share of a difference's squares that rounding may leave behind its rank."""
_LOW_RANK = 4
"""A rank is low up to this part of the smaller side."""


def how_edited(reference: ModelFile, quant: ModelFile, changed: Sequence[Changed]) -> str | None:
    """Say what turned a weight into another, of the smallest matrix that changed.

    Returns:
        ``by a rank-8 update``, ``transposed``, ``scaled by 2``, ``the same values in
        another order``; None if it is nothing of the kind, or no matrix is small enough.
    """
    sizes = {c.tensor: _matrix_size(reference, c.tensor) for c in changed if c.n_dims > 1}
    if not sizes or min(sizes.values()) > _LARGEST:
        return None
    name = min(sizes, key=lambda n: sizes[n])
    rows = reference.tensors[name].shape[1]
    try:
        return describe(*(read_rows(file, name, 0, rows) for file in (reference, quant)))
    except (InputError, NotImplementedError):
        return None


def _matrix_size(file: ModelFile, name: str) -> int:
    shape = file.tensors[name].shape
    return shape[0] * shape[1]  # of stacked experts the first


def describe(w: Array, q: Array) -> str | None:
    """The same of two matrices."""
    if not (np.isfinite(w).all() and np.isfinite(q).all() and w.any()):
        return None
    if _same(w, q):  # the first of several experts may be whole
        return None
    if w.shape[0] == w.shape[1] and _same(np.ascontiguousarray(w.T), q):
        return "transposed"
    factor = float(np.vdot(w, q) / np.vdot(w, w))
    if abs(factor - 1) > SAME_FACTOR and _same(np.float32(factor) * w, q):
        return f"scaled by {factor:.4g}"
    if _same(np.sort(w.ravel()), np.sort(q.ravel())):
        return "the same values in another order"
    energy = np.linalg.svd(q - w, compute_uv=False) ** 2
    tail = 1 - np.cumsum(energy) / energy.sum()
    rank = int(np.argmax(tail <= _TAIL)) + 1
    return f"by a rank-{rank} update" if rank * _LOW_RANK <= len(energy) else None


def _same(a: Array, b: Array) -> bool:
    return bool(np.linalg.norm(a - b) <= HALF_ROUNDING * np.linalg.norm(a))
