"""What explains that a matrix of a file is not the source's."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.operations import Array

_SOME = 0.5
"""Share of the rows up to which some rows are wrong and not the matrix."""


def explain_matrix(
    found: Array, expected: Array, others: Mapping[str, Array], tolerance: float
) -> str | None:
    """Tell how a file's matrix comes from the source's.

    Args:
        found: the file's, ``(out, in)``.
        expected: the source's, of the same shape or transposed.
        others: further matrices of the source, by name.
        tolerance: relative L2 distance up to which two are the same.

    Returns:
        In words that follow "its matrix"; None if it is the source's.
    """
    if _same(found, expected, tolerance):
        return None
    if found.ndim > 2:
        return _experts(found, expected, tolerance)
    if _same(found, expected.T, tolerance):
        return "is the source's transposed"
    factor = _factor(found, expected)
    if factor and _same(found, factor * expected, tolerance):
        return f"is {factor:.6g} times the source's"
    for axis, what in ((0, "rows"), (1, "columns")):
        if found.shape == expected.shape and _reordered(found, expected, axis, tolerance):
            return f"has the source's {what} in another order"
    for name, other in others.items():
        if _same(found, other, tolerance):
            return f"holds the values of {name}"
    return _partly(found, expected, tolerance)


def _experts(found: Array, expected: Array, tolerance: float) -> str:
    """Of the matrices of all experts, ``(experts, out, in)``."""
    if _same(found, expected.swapaxes(1, 2), tolerance):
        return "is the source's transposed, expert by expert"
    if found.shape != expected.shape:
        shapes = ("×".join(map(str, w.shape)) for w in (found, expected))
        return "is {}, the source's {}".format(*shapes)
    if _reordered(found, expected, 0, tolerance):
        return "has the source's experts in another order"
    off = [distance(f, e) for f, e in zip(found, expected, strict=True)]
    wrong = [i for i, d in enumerate(off) if d > tolerance]
    which = f", in {len(wrong)} of {len(found)} experts from expert {wrong[0]}" if wrong else ""
    return f"differs by {distance(found, expected):.3g} from the source's{which}"


def _same(a: Array, b: Array, tolerance: float) -> bool:
    return a.shape == b.shape and distance(a, b) <= tolerance


def distance(found: Array, expected: Array) -> float:
    """Relative L2 distance of two matrices of one size, 1 if their shapes differ."""
    if found.shape != expected.shape:
        return 1.0
    return relative_l2(expected, found) if expected.any() else float(found.any())


def _factor(found: Array, expected: Array) -> float:
    if found.shape != expected.shape or not expected.any():
        return 0.0
    return float(np.vdot(expected, found) / np.vdot(expected, expected))


def _reordered(found: Array, expected: Array, axis: int, tolerance: float) -> bool:
    def ordered(w: Array) -> Array:
        wide = w.astype(np.float64)
        key = np.sqrt((wide**2).sum(axis=tuple(i for i in range(w.ndim) if i != axis)))
        return np.take(w, np.argsort(key, kind="stable"), axis=axis)

    return _same(ordered(found), ordered(expected), tolerance)


def _partly(found: Array, expected: Array, tolerance: float) -> str:
    off = f"differs by {distance(found, expected):.3g}"
    if found.shape != expected.shape:
        return f"is {found.shape[0]}×{found.shape[1]}, the source's another size"
    error = np.linalg.norm(found - expected, axis=1)
    rows = np.flatnonzero(error > tolerance * np.linalg.norm(expected, axis=1))
    if 0 < len(rows) <= _SOME * len(found):
        return f"{off} from the source's, in {len(rows)} of {len(found)} rows from row {rows[0]}"
    return f"{off} from the source's"


_WRITERS = frozenset(
    (
        "attn_output",
        "attn_o",
        "ffn_down",
        "ffn_down_exps",
        "ffn_down_shexp",
        "ssm_out",
        "token_embd",
    )
)
"""Roles of matrices whose results are added to the residual stream."""


def what_made(rank: int, roles: Collection[str]) -> str:
    """What makes several matrices differ by one of low rank, in words.

    Args:
        rank: of the differences.
        roles: of the matrices: ``attn_output``, ``ffn_down``.
    """
    if is_abliteration(rank, roles):
        return f"{ABLITERATION}, or an adapter of rank 1 is merged on one side alone"
    return "an adapter is merged on one side alone"


ABLITERATION = "a direction was taken out of what they write to the residual stream (abliteration)"


def is_abliteration(rank: int, roles: Collection[str]) -> bool:
    """Whether differences of that rank fit a direction that was taken out."""
    return rank == 1 and _WRITERS.issuperset(roles)
