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
_FINE = 1e-3
"""Above this cost a factor is known to two digits."""
_CLEARLY = 3.0
"""A row is off beyond doubt at this multiple of what its type costs."""
_EDGE = 1.3
"""Singular values above this multiple of noise's largest are no noise: a type's errors are
not alike in all rows."""
_MOST_LEFT = 1.5
"""What a rank leaves of a difference, in multiples of noise's squares, and is noise."""
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
    except (InputError, NotImplementedError):  # a type that ggml alone reads, and not here
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
        return f"scaled by {factor:.{4 if cost < _FINE else 2}g}"
    if _reordered(w, q, cost):
        return "the same values in another order"
    if (part := _part(w, q, cost, "rows") or _part(w.T, q.T, cost, "columns")) is not None:
        return part
    rank = _rank(q - w, cost * float(np.linalg.norm(w)))
    return f"by a rank-{rank} update" if rank and rank * _LOW_RANK <= min(w.shape) else None


def _part(w: Array, q: Array, cost: float, what: str) -> str | None:
    """Rows that are off where all others are whole; None if there is no such line to be drawn."""
    scale = np.maximum(np.linalg.norm(w, axis=1), np.float32(1e-30))
    errors = np.linalg.norm(q - w, axis=1) / scale
    whole = errors <= max(HALF_ROUNDING, WEIGHT_RATIO * cost)
    off = errors > max(HALF_ROUNDING, _CLEARLY * cost)
    n = int(off.sum())
    if not 0 < n <= len(off) // 2 or not (whole | off).all():
        return None
    zero = " are all zero" if not q[off].any() else " differ, and no other"
    return f"{n} of {len(off)} {what}{zero}"


def _rank(d: Array, noise: float) -> int:
    """The rank of a difference beside noise of a known L2 norm; 0 if it has none.

    Noise alone has no singular value above ``(√rows + √columns)`` standard deviations of an
    element (the edge of Marchenko and Pastur's law).
    """
    energy = np.linalg.svd(d, compute_uv=False) ** 2
    if not noise:
        tail = 1 - np.cumsum(energy) / energy.sum()
        return int(np.argmax(tail <= _TAIL)) + 1
    rows, columns = d.shape
    edge = _EDGE * noise * (rows**-0.5 + columns**-0.5)
    rank = int((energy > edge**2).sum())
    return rank if energy[rank:].sum() <= _MOST_LEFT * noise**2 else 0


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
