"""Streaming error statistics: fed piece by piece, they never hold an activation.

With reference ``r`` and observation ``q`` over all rows seen, and ``d = q - r``:

- relative L2 ``‖d‖ / ‖r‖``,
- cosine ``⟨q, r⟩ / (‖q‖ ‖r‖)``, kept as ``1 - cosine`` because that is what is small,
- RMS ratio ``‖q‖ / ‖r‖``,
- largest ``|d|`` with its token and channel.

Only ``Σ d²``, ``Σ d·r`` and ``Σ r²`` are kept (float64); the rest follows exactly:
``‖q‖² = Σr² + 2Σd·r + Σd²``. So ``1 - cosine`` does not lose its digits to a
difference of two numbers near one. Rows that hold a NaN or an infinity on either side
are counted and left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.team import ALONE, Team

_BLOCK = 1 << 18
"""Elements compared at a time: small enough to stay in a processor's cache."""


@dataclass(frozen=True)
class Difference:
    """How far observations are from their references, over all rows compared.

    Attributes:
        rel_l2: ``‖d‖ / ‖r‖``; None if nothing finite was seen, or ``r`` is all zero
            and ``d`` is not.
        cosine: cosine similarity; None where it is undefined.
        rms_ratio: ``‖q‖ / ‖r‖``; None where it is undefined.
        max_abs: largest ``|d|``, in the units of the activation.
        max_abs_token: token at which it stands, counted from 0 over the whole run.
        max_abs_channel: index of the channel at which it stands, within a row.
        rows: rows compared.
        non_finite_rows: rows left out because of a NaN or an infinity.
        non_finite_token: the first token of such a row.
    """

    rel_l2: float | None
    cosine: float | None
    rms_ratio: float | None
    max_abs: float | None
    max_abs_token: int | None
    max_abs_channel: int | None
    rows: int
    non_finite_rows: int
    non_finite_token: int | None


@dataclass(frozen=True)
class _Block:
    """What some rows add to a :class:`DifferenceSum`; rows count from the first of them."""

    dd: float
    dr: float
    rr: float
    rows: int
    bad_rows: int
    bad_row: int | None
    max_abs: float
    max_at: tuple[int, int]

    @classmethod
    def of(cls, r: NDArray[np.float32], q: NDArray[np.float32], floor: float) -> _Block:
        """Compare two blocks; the largest ``|d|`` is searched for if it is above ``floor``."""
        with np.errstate(invalid="ignore", over="ignore"):
            d = q - r
            dd, dr, rr = _row_dot(d, d), _row_dot(d, r), _row_dot(r, r)
            # ‖q‖² = rr + 2dr + dd cancels where q is much smaller than r, or d is not exact.
            if (small := rr + 2 * dr + dd < rr / 2).any():
                wide_r = r[small].astype(np.float64)
                wide_d = q[small].astype(np.float64) - wide_r
                dd[small], dr[small] = _row_dot(wide_d, wide_d), _row_dot(wide_d, wide_r)
                rr[small] = _row_dot(wide_r, wide_r)
        good = np.isfinite(dd) & np.isfinite(rr)
        bad_row = None
        if not good.all():
            bad_row = int(np.argmin(good))
            dd, dr, rr, d = dd[good], dr[good], rr[good], d[good]
        max_abs, max_at = floor, (0, 0)
        # No element of a row exceeds the row's norm.
        if len(d) and (floor < 0 or float(dd.max()) > floor**2):
            max_abs = max(float(d.max()), -float(d.min()))
            if max_abs > floor:
                np.abs(d, out=d)
                row, channel = divmod(int(d.argmax()), d.shape[1])
                max_at = int(np.flatnonzero(good)[row]), channel
        return cls(
            dd=float(dd.sum()),
            dr=float(dr.sum()),
            rr=float(rr.sum()),
            rows=len(d),
            bad_rows=len(good) - len(d),
            bad_row=bad_row,
            max_abs=max_abs,
            max_at=max_at,
        )

    @classmethod
    def same(cls, r: NDArray[np.float32], _q: NDArray[np.float32], floor: float) -> _Block:
        """A block beside itself."""
        with np.errstate(invalid="ignore", over="ignore"):
            rr = _row_dot(r, r)
        good = np.isfinite(rr)
        rows = int(good.sum())
        return cls(
            dd=0.0,
            dr=0.0,
            rr=float(rr[good].sum()),
            rows=rows,
            bad_rows=len(good) - rows,
            bad_row=None if rows == len(good) else int(np.argmin(good)),
            max_abs=max(floor, 0.0) if rows else floor,
            max_at=(int(np.argmax(good)), 0),
        )


class DifferenceSum:
    """Accumulates a :class:`Difference` over calls of :meth:`add`.

    Args:
        floor: the largest ``|d|`` of a sum into which this one will be merged: only a
            larger one is searched for.
    """

    def __init__(self, floor: float = -1.0) -> None:
        self._dd = self._dr = self._rr = 0.0
        self._max = floor
        self._max_at = (0, 0)
        self._rows = 0
        self._bad_rows = 0
        self._bad_token: int | None = None

    def add(
        self,
        r: NDArray[np.float32],
        q: NDArray[np.float32],
        first_token: int,
        n_tokens: int,
        stride: int = 1,
        team: Team = ALONE,
        peaks: tuple[PeakSum, PeakSum] | None = None,
    ) -> None:
        """Compare two arrays of one shape.

        Args:
            r: reference, ``(rows, channels)`` float32.
            q: observation, the same shape.
            first_token: number of the token to which the first rows belong.
            n_tokens: number of tokens that the rows are shared out to evenly
                (several rows belong to one token at a per-head norm).
            stride: from the number of one token to that of the next.
            team: that does it; the result is the same, whoever does.
            peaks: of ``r`` and of ``q``, to be found on the way: both are read once.

        Raises:
            ValueError: the shapes differ.
        """
        if r.shape != q.shape:
            raise ValueError(f"cannot compare shapes {r.shape} and {q.shape}")
        if r.size == 0:
            return
        rows_per_token = max(1, len(r) // max(1, n_tokens))
        step = max(1, _BLOCK // r.shape[1])
        starts = range(0, len(r), step)
        floor = self._max
        compared = _Block.same if q is r else _Block.of

        def look(i: int) -> tuple[_Block, tuple[_Ends, ...]]:
            parts = r[i : i + step], q[i : i + step]
            return compared(*parts, floor), tuple(map(_ends, parts)) if peaks else ()

        found = team.map(look, starts)
        for start, (block, _ends_of) in zip(starts, found, strict=True):
            self._take(block, start, first_token, rows_per_token, stride)
        for i, (peak, v) in enumerate(zip(peaks or (), (r, q), strict=False)):
            peak.take(v, [ends[i] for _block, ends in found], first_token, n_tokens, stride)

    def _take(
        self, block: _Block, start: int, first_token: int, rows_per_token: int, stride: int
    ) -> None:
        def token(row: int) -> int:
            return first_token + (start + row) // rows_per_token * stride

        self._dd += block.dd
        self._dr += block.dr
        self._rr += block.rr
        self._rows += block.rows
        self._bad_rows += block.bad_rows
        if self._bad_token is None and block.bad_row is not None:
            self._bad_token = token(block.bad_row)
        if block.max_abs > self._max:
            row, channel = block.max_at
            self._max, self._max_at = block.max_abs, (token(row), channel)

    def merge(self, later: DifferenceSum) -> None:
        """Add all that another sum has seen, as if it had been added here after the rest."""
        self._dd += later._dd
        self._dr += later._dr
        self._rr += later._rr
        if later._max > self._max:
            self._max, self._max_at = later._max, later._max_at
        self._rows += later._rows
        self._bad_rows += later._bad_rows
        if self._bad_token is None:
            self._bad_token = later._bad_token

    @property
    def non_finite_rows(self) -> int:
        """Rows left out so far."""
        return self._bad_rows

    @property
    def max_abs(self) -> float:
        """The largest ``|d|`` so far, -1 before any."""
        return self._max

    @property
    def squared_error(self) -> float:
        """``Σ d²`` over the rows compared."""
        return self._dd

    @property
    def squared_reference(self) -> float:
        """``Σ r²`` over the rows compared."""
        return self._rr

    def state(self) -> list[Any]:
        """All that was gathered, as numbers that JSON keeps exactly."""
        return [self._dd, self._dr, self._rr, self._max, list(self._max_at), self._rows,
                self._bad_rows, self._bad_token]  # fmt: skip

    @classmethod
    def from_state(cls, state: list[Any]) -> DifferenceSum:
        """The inverse of :meth:`state`."""
        total = cls()
        total._dd, total._dr, total._rr, total._max, at, *rest = state
        total._max_at = (at[0], at[1])
        total._rows, total._bad_rows, total._bad_token = rest
        return total

    def result(self) -> Difference:
        """The statistics of all that was added so far."""
        dd, dr, rr = self._dd, self._dr, self._rr
        qq = max(0.0, rr + 2 * dr + dd)
        some = self._rows > 0
        rel = cosine = ratio = None
        if some and dd == 0.0:
            rel, cosine, ratio = 0.0, 1.0, 1.0
        elif some and rr > 0.0:
            rel, ratio = math.sqrt(dd / rr), math.sqrt(qq / rr)
            if qq > 0.0:
                norm_r, norm_q = math.sqrt(rr), math.sqrt(qq)
                # 1 - cos = (‖d‖² - (‖q‖ - ‖r‖)²) / (2 ‖q‖ ‖r‖)
                length = (dd + 2 * dr) / (norm_q + norm_r)
                cosine = 1.0 - max(0.0, dd - length * length) / (2 * norm_q * norm_r)
        seen = self._max >= 0
        return Difference(
            rel_l2=rel,
            cosine=cosine,
            rms_ratio=ratio,
            max_abs=self._max if seen else None,
            max_abs_token=self._max_at[0] if seen else None,
            max_abs_channel=self._max_at[1] if seen else None,
            rows=self._rows,
            non_finite_rows=self._bad_rows,
            non_finite_token=self._bad_token,
        )


@dataclass(frozen=True)
class Peak:
    """The value of largest magnitude at a node.

    Attributes:
        value: with its sign, in the units of the activation.
        token: counted from 0 over the whole run.
        channel: within its row.
    """

    value: float
    token: int
    channel: int


class PeakSum:
    """Keeps the :class:`Peak` over calls of :meth:`add`; NaN and infinities do not count."""

    def __init__(self, peak: Peak | None = None) -> None:
        self.peak = peak

    def add(self, v: NDArray[np.float32], first_token: int, n_tokens: int, stride: int = 1) -> None:
        """Take in ``(rows, channels)``; the rest as in :meth:`DifferenceSum.add`."""
        if v.size:
            self.take(v, [_ends(v)], first_token, n_tokens, stride)

    def take(
        self,
        v: NDArray[np.float32],
        ends: Sequence[_Ends],
        first_token: int,
        n_tokens: int,
        stride: int,
    ) -> None:
        """The same, the largest and the smallest values of all parts being known."""
        high, low = max(e[0] for e in ends), min(e[1] for e in ends)
        if not np.isfinite([n for e in ends for n in e]).all():
            v = np.where(np.isfinite(v), v, np.float32(0))
            high, low = _ends(v)
        value = high if high >= -low else low
        if self.peak is not None and abs(value) <= abs(self.peak.value):
            return
        row, channel = divmod(int(v.argmax() if value == high else v.argmin()), v.shape[1])
        rows_per_token = max(1, len(v) // max(1, n_tokens))
        self.peak = Peak(value, first_token + row // rows_per_token * stride, channel)


_Ends = tuple[float, float]


def _ends(v: NDArray[np.float32]) -> _Ends:
    """The largest and the smallest value; NaN if there is one."""
    return float(v.max()), float(v.min())


class ChannelSum:
    """Per channel, the energy of the reference and of the error: ``Σ r²`` and ``Σ d²``."""

    def __init__(self, n_channels: int) -> None:
        self.reference = np.zeros(n_channels)
        self.error = np.zeros(n_channels)

    def add(self, r: NDArray[np.float32], q: NDArray[np.float32]) -> None:
        """Take in two arrays ``(rows, channels)``; values that are not finite do not count."""
        with np.errstate(invalid="ignore", over="ignore"):
            d = q - r
            error, reference = np.einsum("ij,ij->j", d, d), np.einsum("ij,ij->j", r, r)
        self.error += np.where(np.isfinite(error), error, 0.0)
        self.reference += np.where(np.isfinite(reference), reference, 0.0)


def difference(r: NDArray[np.float32], q: NDArray[np.float32]) -> Difference:
    """The :class:`Difference` of two whole arrays of one shape, ``(…, channels)``."""
    total = DifferenceSum()
    channels = r.shape[-1] if r.ndim else 1
    rows = r.reshape(-1, channels)
    total.add(rows, q.reshape(-1, channels), 0, len(rows))
    return total.result()


def ulp_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many float32 values lie between two, plus one; 0 for equal ones, so for ±0.

    NaN has no place among them: what comes out for it means nothing.
    """
    first, second = (
        np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
        for bits in (x.view(np.int32).astype(np.int64) for x in (a, b))
    )
    return np.asarray(np.abs(first - second))


def _row_dot(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Dot product of each row, float64; float32 inside unless that overflows."""
    fast: NDArray[np.float64] = np.einsum("ij,ij->i", a, b).astype(np.float64)
    if np.isfinite(fast).all():
        return fast
    return np.asarray(np.einsum("ij,ij->i", a, b, dtype=np.float64, casting="safe"))
