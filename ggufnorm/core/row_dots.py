"""Inner products of the rows of two arrays, a block that fits into a cache at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 18
"""Elements in a block: few enough that all passes but the first read a cache."""

_BLAS_ALONE = 10_000
"""Longer vectors OpenBLAS shares out to threads of its own (``kernel/x86_64/sdot.c``)."""

LEAST_SQUARES = 1e-34
"""Below that, squares of float32 are lost: of values below 1e-19, say; kernels.c has it, too."""

_LEAST = 1e-7
"""Share of ``‖r‖²`` below which the rounding of sums over rows shows in ``‖q‖²``."""


@dataclass(frozen=True)
class RowDots:
    """With ``d = q - r``, the sums of each row.

    Attributes:
        dd: ``Σ d²``.
        dr: ``Σ d·r``.
        rr: ``Σ r²``.
    """

    dd: NDArray[np.float64]
    dr: NDArray[np.float64]
    rr: NDArray[np.float64]

    @classmethod
    def beside(cls, rr: NDArray[np.float64]) -> RowDots:
        """Sums of no observation yet; of several, all share those of the reference."""
        return cls(np.zeros(len(rr)), np.zeros(len(rr)), rr)

    @classmethod
    def with_products(
        cls,
        dd: NDArray[np.float64],
        dr: NDArray[np.float64],
        rr: NDArray[np.float64],
        qq: NDArray[np.float64],
        qr: NDArray[np.float64],
    ) -> RowDots:
        """Sums beside which ``Σ q²`` and ``Σ q·r`` were computed.

        Where the others cancel (see :meth:`settle`), ``Σ d²`` and ``Σ d·r`` follow from these.
        """
        with np.errstate(invalid="ignore"):
            cancel = ~(rr + 2 * dr + dd >= rr / 2)
            dd, dr = np.where(cancel, rr - 2 * qr + qq, dd), np.where(cancel, qr - rr, dr)
        return cls(dd, dr, rr)

    def hold(self) -> bool:
        """Whether every row is finite, and float64 still tells ``‖q‖²`` from ``‖r‖²``."""
        with np.errstate(invalid="ignore"):
            qq = self.rr + 2 * self.dr + self.dd
            return bool((np.isfinite(qq) & (qq >= _LEAST * self.rr)).all())

    def fill(self, block: slice, r: NDArray[np.float32], q: NDArray[np.float32]) -> float:
        """Compute ``Σ d²`` and ``Σ d·r`` of a block of rows.

        Returns:
            its largest ``|d|``; NaN if there is one.
        """
        d = q - r
        self.dd[block], self.dr[block] = row_dot(d, d), row_dot(d, r)
        mark_lost(self.dd[block], d)
        return float(np.maximum(d.max(), -d.min()))

    def doubtful(self) -> NDArray[np.bool_]:
        """Which rows have to be summed again from their values; see :meth:`settle`."""
        with np.errstate(invalid="ignore", over="ignore"):
            qq = self.rr + 2 * self.dr + self.dd
            found: NDArray[np.bool_] = ~(qq >= self.rr / 2) | ~np.isfinite(qq)
        return found

    def settle(self, r: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Compute the sums of doubtful rows again, in float64.

        Those are doubtful whose squares overflow or are lost, and where
        ``‖q‖² = Σr² + 2Σd·r + Σd²`` cancels because ``q`` is much smaller than ``r``.

        Returns:
            which rows are finite in ``r``, ``q`` and ``d``.
        """
        doubtful = self.doubtful()
        with np.errstate(invalid="ignore", over="ignore"):
            for block in blocks_of(r) if doubtful.any() else ():
                rows = block.start + np.flatnonzero(doubtful[block])
                self._widen(rows, r[rows], q[rows])
        return np.isfinite(self.dd) & np.isfinite(self.rr)

    def _widen(
        self, rows: NDArray[np.intp], r: NDArray[np.float32], q: NDArray[np.float32]
    ) -> None:
        wide = r.astype(np.float64)
        # A difference beyond float32 counts as infinite.
        d = np.where(np.isfinite(q - r), q.astype(np.float64) - wide, np.inf)
        self.dd[rows], self.dr[rows] = row_dot(d, d), row_dot(d, wide)
        self.rr[rows] = row_dot(wide, wide)


def mark_lost(squares: NDArray[np.floating], rows: NDArray[np.float32]) -> None:
    """Set to NaN the sums of squares that float32 does not hold, which makes a row doubtful."""
    few = np.flatnonzero(squares < LEAST_SQUARES)
    squares[few[rows[few].any(axis=1)]] = np.nan


def blocks_of(rows: NDArray[np.float32]) -> Iterator[slice]:
    """Cut ``(rows, channels)`` into runs of whole rows."""
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    for i in range(0, len(rows), step):
        yield slice(i, i + step)


def row_dot(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    """The inner product of each row, in the precision of the arrays."""
    n = a.shape[1]
    pieces = math.gcd(n, 1 << (n // _BLAS_ALONE).bit_length())
    if n // pieces > _BLAS_ALONE:
        return np.asarray(np.einsum("ij,ij->i", a, b))
    if pieces > 1:
        parts = (v.reshape(len(v), pieces, n // pieces) for v in (a, b))
        return np.asarray(np.vecdot(*parts).sum(axis=1))
    return np.asarray(np.vecdot(a, b))
