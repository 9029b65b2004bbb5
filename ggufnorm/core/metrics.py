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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core import kernels
from ggufnorm.core.row_dots import RowDots, blocks_of, mark_lost, row_dot

_ROUNDED_UP = 1 + 2.0**-20
"""A factor beyond what float32 rounds a sum of two values by."""


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
    ) -> None:
        """Take in one more array of observations; see :func:`compare`."""
        compare(r, [(self, q)], first_token, n_tokens, stride)

    def _add(
        self,
        r: NDArray[np.float32],
        q: NDArray[np.float32],
        dots: RowDots,
        largest: Sequence[float],
        token: Callable[[int], int],
    ) -> None:
        good = dots.settle(r, q)
        self._dd += float(dots.dd.sum(where=good))
        self._dr += float(dots.dr.sum(where=good))
        self._rr += float(dots.rr.sum(where=good))
        rows = int(np.count_nonzero(good))
        self._rows += rows
        self._bad_rows += len(good) - rows
        if self._bad_token is None and rows < len(good):
            self._bad_token = token(int(good.argmin()))
        for block, bound in zip(blocks_of(r), largest, strict=True):
            if not bound <= self._max:  # NaN is not below anything
                self._find_max(r, q, block.start + np.flatnonzero(good[block]), token)

    def add_sums(
        self, dots: RowDots, largest: float, row: int, channel: int, token: Callable[[int], int]
    ) -> None:
        """Take in sums of rows that were computed where the rows lie.

        Args:
            dots: of rows of which none is doubtful.
            largest: ``|d|``.
            row: at which it stands.
            channel: within the row.
            token: tells the number of a row's token.
        """
        self._dd += float(dots.dd.sum())
        self._dr += float(dots.dr.sum())
        self._rr += float(dots.rr.sum())
        self._rows += len(dots.rr)
        if largest > self._max:
            self._max, self._max_at = largest, (token(row), channel)

    def add_pairs(
        self,
        sums: kernels.PairSums,
        n_rows: int,
        d_of_row: Callable[[int], NDArray[np.float32]],
        token: Callable[[int], int],
    ) -> None:
        """Take in the sums of ``n_rows`` rows, of which none is doubtful.

        Args:
            sums: of them.
            n_rows: how many they are.
            d_of_row: gives a row's differences.
            token: tells the number of a row's token.
        """
        self._dd += sums.dd
        self._dr += sums.dr
        self._rr += sums.rr
        self._rows += n_rows
        largest, row = sums.d
        if largest > self._max:
            channel = int(np.abs(d_of_row(row)).argmax())
            self._max, self._max_at = largest, (token(row), channel)

    def _find_max(
        self,
        r: NDArray[np.float32],
        q: NDArray[np.float32],
        rows: NDArray[np.intp],
        token: Callable[[int], int],
    ) -> None:
        if len(rows) == 0:
            return
        d = np.abs(q[rows] - r[rows])
        row, channel = divmod(int(d.argmax()), d.shape[1])
        if (largest := float(d[row, channel])) > self._max:
            self._max, self._max_at = largest, (token(int(rows[row])), channel)

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
        """The inverse of :meth:`state`.

        Raises:
            ValueError: no run can have gathered that.
        """
        total = cls()
        total._dd, total._dr, total._rr, total._max, at, *rest = state
        total._max_at = (at[0], at[1])
        total._rows, total._bad_rows, total._bad_token = rest
        sums = (total._dd, total._dr, total._rr, total._max)
        if not all(map(math.isfinite, sums)) or min(total._dd, total._rr, *rest[:2]) < 0:
            raise ValueError("sums are out of range")
        if not all(isinstance(n, int) for n in (*total._max_at, total._rows, total._bad_rows)):
            raise TypeError("counts are no integers")
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
        """Take in ``(rows, channels)``; the rest as in :func:`compare`."""
        if v.size:
            self._add(v, _range(v), 0, token_of_row(len(v), first_token, n_tokens, stride))

    def _add(
        self,
        v: NDArray[np.float32],
        extent: tuple[float, float],
        start: int,
        token: Callable[[int], int],
    ) -> None:
        high, low = extent
        if not (math.isfinite(high) and math.isfinite(low)):
            v = np.where(np.isfinite(v), v, np.float32(0))
            high, low = _range(v)
        value = high if high >= -low else low
        if self.peak is None or abs(value) > abs(self.peak.value):
            row, channel = divmod(int(v.argmax() if value == high else v.argmin()), v.shape[1])
            self.peak = Peak(value, token(start + row), channel)

    def exceeds(self, bound: float) -> bool:
        """Whether no value of at most that magnitude, as float32 rounds it, is a larger one."""
        return self.peak is not None and bound * _ROUNDED_UP < abs(self.peak.value)

    def add_row(self, rows: NDArray[np.float32], row: int, token: Callable[[int], int]) -> None:
        """Take in the row in which the value of largest magnitude stands."""
        channel = int(np.abs(rows[row]).argmax())
        self.add_peak(float(rows[row, channel]), token(row), channel)

    def add_peak(self, value: float, token: int, channel: int) -> None:
        """Take in the value of largest magnitude of an array."""
        if self.peak is None or abs(value) > abs(self.peak.value):
            self.peak = Peak(value, token, channel)


def _range(v: NDArray[np.float32]) -> tuple[float, float]:
    """The largest and the smallest value; NaN if there is one."""
    return float(v.max()), float(v.min())


def compare(
    r: NDArray[np.float32],
    observed: Sequence[tuple[DifferenceSum, NDArray[np.float32]]],
    first_token: int,
    n_tokens: int,
    stride: int = 1,
    peaks: Sequence[PeakSum] = (),
) -> None:
    """Compare arrays with a reference, which is read once for all of them.

    Args:
        r: reference, ``(rows, channels)`` float32.
        observed: arrays of that shape, and the sums that their differences are added to.
        first_token: number of the token to which the first rows belong.
        n_tokens: number of tokens that the rows are shared out to evenly
            (several rows belong to one token at a per-head norm).
        stride: from the number of one token to that of the next.
        peaks: of the reference and of the first array, to be found on the way.

    Raises:
        ValueError: the shapes differ.
    """
    for _sum, q in observed:
        if q.shape != r.shape:
            raise ValueError(f"cannot compare shapes {r.shape} and {q.shape}")
    if r.size == 0:
        return
    token = token_of_row(len(r), first_token, n_tokens, stride)
    sums_of_pairs = _pairs(r, [q for _sum, q in observed])
    if sums_of_pairs is None:
        _compare_in_blocks(r, observed, token, peaks)
        return
    for (total, q), sums in zip(observed, sums_of_pairs, strict=True):
        total.add_pairs(sums, len(r), partial(_difference_of_row, r, q), token)
    first, (_sum, q) = sums_of_pairs[0], observed[0]
    for peak, rows, largest in zip(peaks, (r, q), (first.r, first.q), strict=False):
        if not peak.exceeds(largest.value):
            peak.add_row(rows, largest.row, token)


def _difference_of_row(
    r: NDArray[np.float32], q: NDArray[np.float32], row: int
) -> NDArray[np.float32]:
    return np.asarray(q[row] - r[row])


def _pairs(
    r: NDArray[np.float32], observed: Sequence[NDArray[np.float32]]
) -> list[kernels.PairSums] | None:
    """The sums of all arrays by loops that read values once; None where those do not do."""
    found: list[kernels.PairSums] = []
    for q in observed:
        if q is r and found:
            sums = found[0]._replace(dd=0.0, dr=0.0, d=kernels.Peak(0.0, 0))
        else:
            told = kernels.sum_pairs(r, q)
            if told is None or told.doubtful:
                return None
            sums = told
        found.append(sums)
    return found


def _compare_in_blocks(
    r: NDArray[np.float32],
    observed: Sequence[tuple[DifferenceSum, NDArray[np.float32]]],
    token: Callable[[int], int],
    peaks: Sequence[PeakSum],
) -> None:
    """Compare in NumPy, a block of rows in a cache at a time; NaN and infinities are found."""
    rr = np.zeros(len(r))
    dots = [RowDots.beside(rr) for _ in observed]
    seen = [v for _peak, v in zip(peaks, (r, observed[0][1]), strict=False)]

    found = []
    with np.errstate(invalid="ignore", over="ignore"):
        for block in blocks_of(r):
            part = r[block]
            # First what reads two arrays at once: it waits less for the memory.
            bounds = [
                0.0 if q is r else sums.fill(block, part, q[block])
                for (_sum, q), sums in zip(observed, dots, strict=True)
            ]
            found.append(bounds)
            rr[block] = row_dot(part, part)
            mark_lost(rr[block], part)
            of_reference = math.inf
            for peak, v in zip(peaks, seen, strict=False):
                # Nothing is farther from zero than the reference's largest and |d| together.
                if not peak.exceeds(of_reference + bounds[0]):
                    extent = _range(v[block])
                    peak._add(v[block], extent, block.start, token)
                    of_reference = max(map(abs, extent))
    for i, ((total, q), sums) in enumerate(zip(observed, dots, strict=True)):
        total._add(r, q, sums, [bounds[i] for bounds in found], token)


def token_of_row(rows: int, first_token: int, n_tokens: int, stride: int) -> Callable[[int], int]:
    """Tells the number of a row's token; see :func:`compare`."""
    rows_per_token = max(1, rows // max(1, n_tokens))
    return lambda row: first_token + row // rows_per_token * stride


class ChannelSum:
    """Per channel, the energy of the reference and of the error: ``Σ r²`` and ``Σ d²``."""

    def __init__(self, n_channels: int) -> None:
        self.reference = np.zeros(n_channels)
        self.error = np.zeros(n_channels)

    def add(self, r: NDArray[np.float32], q: NDArray[np.float32]) -> None:
        """Take in two arrays ``(rows, channels)``; values that are not finite do not count."""
        with np.errstate(invalid="ignore", over="ignore"):
            for block in blocks_of(r):
                part = r[block]
                error, reference = np.zeros((2, r.shape[1]))
                if not kernels.sum_columns(part, q[block], reference, error):
                    d = q[block] - part
                    error, reference = (np.einsum("ij,ij->j", v, v) for v in (d, part))
                self.error += np.where(np.isfinite(error), error, 0.0)
                self.reference += np.where(np.isfinite(reference), reference, 0.0)

    def add_sums(self, reference: NDArray[np.float32], error: NDArray[np.float32]) -> None:
        """Take in energies that were summed where the values lie; all finite."""
        self.reference += reference
        self.error += error

    @property
    def typical(self) -> float:
        """Relative L2 error of the median channel, 0 if none has energy."""
        there = self.reference > 0
        if not there.any():
            return 0.0
        return float(np.sqrt(np.median(self.error[there] / self.reference[there])))


class ExpertSum:
    """Per expert, the rows that it made, and the energy of the reference and of the error."""

    def __init__(self, n_experts: int) -> None:
        self.rows = np.zeros(n_experts, np.int64)
        self.reference = np.zeros(n_experts)
        self.error = np.zeros(n_experts)

    def add(
        self, experts: NDArray[np.int32], r: NDArray[np.float32], q: NDArray[np.float32]
    ) -> None:
        """Take in two arrays ``(rows, channels)`` and which expert made each row.

        Rows that are not finite in both do not count.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            d = q - r
            error, reference = (np.einsum("ij,ij->i", v, v, dtype=np.float64) for v in (d, r))
        self.add_sums(experts, reference, error)

    def add_sums(
        self,
        experts: NDArray[np.int32],
        reference: NDArray[np.float64],
        error: NDArray[np.float64],
    ) -> None:
        """Take in each row's energies, and which expert made it."""
        good = np.isfinite(error) & np.isfinite(reference)
        good &= (experts >= 0) & (experts < len(self.rows))
        n, chosen = len(self.rows), experts[good]
        self.rows += np.bincount(chosen, minlength=n)
        self.reference += np.bincount(chosen, reference[good], n)
        self.error += np.bincount(chosen, error[good], n)

    def state(self) -> list[list[float]]:
        """All that was gathered, as plain data that JSON keeps exactly."""
        parts = (self.rows.astype(np.float64), self.reference, self.error)
        return [v.tolist() for v in parts]

    @classmethod
    def from_state(cls, state: list[list[float]]) -> ExpertSum:
        """The inverse of :meth:`state`."""
        total = cls(len(state[0]))
        total.rows = np.array(state[0], np.int64)
        total.reference, total.error = (np.array(v, np.float64) for v in state[1:])
        return total

    def errors(self) -> list[float | None]:
        """Relative L2 error of each expert; None where no row is its own, or all are zero."""
        there = self.reference > 0
        found = np.sqrt(np.divide(self.error, self.reference, where=there, out=self.error * 0))
        return [float(e) if known else None for e, known in zip(found, there, strict=True)]


def difference(r: NDArray[np.float32], q: NDArray[np.float32]) -> Difference:
    """The :class:`Difference` of two whole arrays of one shape, ``(…, channels)``."""
    total = DifferenceSum()
    channels = r.shape[-1] if r.ndim else 1
    rows = r.reshape(-1, channels)
    total.add(rows, q.reshape(-1, channels), 0, len(rows))
    return total.result()


def relative_l2(expected: NDArray[np.floating], observed: NDArray[np.floating]) -> float:
    """``‖observed - expected‖ / ‖expected‖`` of whole arrays, in float64.

    Returns:
        Infinity if a value is not finite, or if only ``expected`` is all zero; 0 if both are.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        wide = expected.astype(np.float64)
        error = float(np.linalg.norm(observed - wide) / np.linalg.norm(wide))
    if math.isnan(error):
        return 0.0 if np.array_equal(expected, observed) else math.inf
    return error


def finite_relative_l2(
    expected: NDArray[np.floating], observed: NDArray[np.floating]
) -> float | None:
    """As :func:`relative_l2`, None where it is undefined: not finite, or nothing expected."""
    error = relative_l2(expected, observed)
    return error if math.isfinite(error) and expected.any() else None


def ulp_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many float32 values lie between two, plus one; 0 for equal ones, so for ±0.

    NaN has no place among them: what comes out for it means nothing.
    """
    first, second = (
        np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
        for bits in (x.view(np.int32).astype(np.int64) for x in (a, b))
    )
    return np.asarray(np.abs(first - second))
