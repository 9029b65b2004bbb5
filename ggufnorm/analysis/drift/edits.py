"""What was done to weights: told from the values of one matrix, or of each expert."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.experts import read_expert, wrong_experts
from ggufnorm.analysis.drift.files import Changed
from ggufnorm.analysis.drift.weights import quantized_before
from ggufnorm.core.tolerances import HALF_ROUNDING, SAME_FACTOR, WEIGHT_RATIO
from ggufnorm.errors import InputError
from ggufnorm.formats.model_file import ModelFile

Array = NDArray[np.float32]

_LARGEST = 1 << 22
"""Elements of the matrices that are looked at: a decomposition takes seconds at most."""
_TAIL = 1e-3
"""Share of a difference's squares that rounding may leave behind its rank."""
_ROWS = 256
"""Rows of a matrix that are looked for among the reference's."""
_MOST_TAIL = 0.1
"""Above this share of a difference that the types cost, no rank can be told."""
_LOW_RANK = 4
"""A rank is low up to this part of the smaller side."""


def how_differs(reference: ModelFile, quant: ModelFile, name: str, cost: float) -> str | None:
    """Say what turned a weight into another.

    Args:
        reference: the model that is right by definition.
        quant: the model under test.
        name: of a tensor that both have in one shape.
        cost: relative L2 error that its types cost.

    Returns:
        ``by a rank-8 update``, ``transposed``, ``scaled by 2``, ``the same values in
        another order``, ``rounded to Q4_0 before``, ``expert 2 of 4 is all zero``; None if
        it is nothing of the kind, or the matrix is too large.
    """
    tensor = reference.tensors[name]
    if sum(n > 1 for n in tensor.shape) < 2:
        return None
    try:
        if (experts := wrong_experts(reference, quant, name, cost)) is not None:
            return experts
        if _matrix_size(reference, name) > _LARGEST:
            return None
        w, q = (read_expert(file, name, 0) for file in (reference, quant))
        if (how := describe(w, q, cost)) is not None:
            return how
        before = quantized_before(q, quant.tensors[name].ggml_type)
        return before and f"rounded to {before} before: requantized"
    except (InputError, NotImplementedError):
        return None


def how_edited(reference: ModelFile, quant: ModelFile, changed: Sequence[Changed]) -> str | None:
    """Say what turned a weight into another, of the smallest matrix that changed.

    Returns:
        As of :func:`how_differs`.
    """
    sizes = {c.tensor: _matrix_size(reference, c.tensor) for c in changed if c.n_dims > 1}
    if not sizes:
        return None
    name = min(sizes, key=lambda n: sizes[n])
    cost = next(c.expected for c in changed if c.tensor == name)
    return how_differs(reference, quant, name, cost)


def _matrix_size(file: ModelFile, name: str) -> int:
    shape = file.tensors[name].shape
    return shape[0] * shape[1]  # of stacked experts the first


def describe(w: Array, q: Array, cost: float = 0.0) -> str | None:
    """The same of two matrices, whose types cost as much."""
    if not (np.isfinite(w).all() and np.isfinite(q).all() and w.any()):
        return None
    if _same(w, q, cost):  # the first of several experts may be whole
        return None
    if w.shape[0] == w.shape[1] and _same(np.ascontiguousarray(w.T), q, cost):
        return "transposed"
    factor = float(np.vdot(w, q) / np.vdot(w, w))
    if abs(factor - 1) > max(SAME_FACTOR, cost) and _same(np.float32(factor) * w, q, cost):
        return f"scaled by {factor:.4g}"
    if _reordered(w, q, cost):
        return "the same values in another order"
    left = _TAIL + 1.5 * (cost * float(np.linalg.norm(w) / np.linalg.norm(q - w))) ** 2
    if left > _MOST_TAIL:  # what the types cost hides the rank
        return None
    energy = np.linalg.svd(q - w, compute_uv=False) ** 2
    tail = 1 - np.cumsum(energy) / energy.sum()
    rank = int(np.argmax(tail <= left)) + 1
    return f"by a rank-{rank} update" if rank * _LOW_RANK <= len(energy) else None


def _reordered(w: Array, q: Array, cost: float) -> bool:
    """Whether values stand in another order, or, where types cost something, whole rows."""
    if _same(np.sort(w.ravel()), np.sort(q.ravel())):
        return True
    if not cost:
        return False
    at = np.arange(0, len(q), max(1, len(q) // _ROWS))
    lengths = np.linalg.norm(q[at], axis=1)[:, None] * np.linalg.norm(w, axis=1)
    cosines = (q[at] @ w.T) / np.maximum(lengths, np.float32(1e-30))
    alike = cosines.max(axis=1) > 1 - cost**2 - _TAIL
    return bool(alike.all() and (cosines.argmax(axis=1) != at).any())


def _same(a: Array, b: Array, cost: float = 0.0) -> bool:
    apart = max(HALF_ROUNDING, WEIGHT_RATIO * cost)
    return bool(np.linalg.norm(a - b) <= apart * np.linalg.norm(a))
