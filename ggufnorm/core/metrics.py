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
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


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
        self, r: NDArray[np.float32], q: NDArray[np.float32], first_token: int, n_tokens: int
    ) -> None:
        """Compare two arrays of one shape.

        Args:
            r: reference, ``(rows, channels)`` float32.
            q: observation, the same shape.
            first_token: number of the token to which the first rows belong.
            n_tokens: number of tokens that the rows are shared out to evenly
                (several rows belong to one token at a per-head norm).

        Raises:
            ValueError: the shapes differ.
        """
        if r.shape != q.shape:
            raise ValueError(f"cannot compare shapes {r.shape} and {q.shape}")
        if r.size == 0:
            return
        rows_per_token = max(1, len(r) // max(1, n_tokens))
        with np.errstate(invalid="ignore", over="ignore"):
            d = q - r
            dd, dr, rr = _row_dot(d, d), _row_dot(d, r), _row_dot(r, r)
        good = np.isfinite(dd) & np.isfinite(rr)
        if not good.all():
            self._bad_rows += int((~good).sum())
            if self._bad_token is None:
                self._bad_token = first_token + int(np.argmin(good)) // rows_per_token
            dd, dr, rr, d = dd[good], dr[good], rr[good], d[good]
        self._rows += len(d)
        self._dd += float(dd.sum())
        self._dr += float(dr.sum())
        self._rr += float(rr.sum())
        if len(d) == 0 or (self._max >= 0 and float(dd.max()) <= self._max**2):
            return  # no element of a row exceeds the row's norm
        if max(float(d.max()), -float(d.min())) <= self._max:
            return
        np.abs(d, out=d)
        row, channel = divmod(int(d.argmax()), d.shape[1])
        self._max = float(d[row, channel])
        row = int(np.flatnonzero(good)[row])
        self._max_at = (first_token + row // rows_per_token, channel)

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


def _row_dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Dot product of each row, float64; float32 inside unless that overflows."""
    fast: NDArray[np.float64] = np.einsum("ij,ij->i", a, b).astype(np.float64)
    if np.isfinite(fast).all():
        return fast
    return np.asarray(np.einsum("ij,ij->i", a, b, dtype=np.float64, casting="safe"))


@dataclass(frozen=True)
class LogitStatistics:
    """What quantization did to the predictions.

    All over the ``n_tokens`` scored positions. With ``p`` the reference's and ``q`` the
    observed next-token distribution: KL divergence ``Σ p (ln p - ln q)`` in nats.

    Attributes:
        n_tokens: scored positions.
        mean_kld: mean KL divergence, nats per token.
        mean_kld_se: its standard error.
        p999_kld: 99.9 % quantile (linear between order statistics).
        max_kld: largest.
        same_top1: share of positions with the same most likely token, 0 to 1.
        same_top1_se: its standard error.
        ppl_ref: the reference's perplexity.
        ppl_ref_se: its standard error.
        ppl_quant: the observed model's perplexity.
        ppl_quant_se: its standard error.
        ppl_ratio: ``ppl_quant / ppl_ref``.
        ppl_ratio_se: its standard error (the two are correlated, which is counted in).
        non_finite_tokens: positions left out because a logit was NaN or infinite.
    """

    n_tokens: int
    mean_kld: float | None
    mean_kld_se: float | None
    p999_kld: float | None
    max_kld: float | None
    same_top1: float | None
    same_top1_se: float | None
    ppl_ref: float | None
    ppl_ref_se: float | None
    ppl_quant: float | None
    ppl_quant_se: float | None
    ppl_ratio: float | None
    ppl_ratio_se: float | None
    non_finite_tokens: int


class LogitSum:
    """Accumulates :class:`LogitStatistics`; keeps three numbers a token, no logits."""

    _BLOCK = 1 << 22
    """Logits converted to float64 at a time: 32 MiB."""

    def __init__(self) -> None:
        self._kld: list[NDArray[np.float64]] = []
        self._nll_ref: list[NDArray[np.float64]] = []
        self._nll_quant: list[NDArray[np.float64]] = []
        self._same = 0
        self._bad = 0

    def add(
        self,
        ref: NDArray[np.float32],
        quant: NDArray[np.float32],
        next_tokens: NDArray[np.int32],
    ) -> None:
        """Compare the logits of some positions.

        Args:
            ref: ``(positions, vocabulary)`` float32.
            quant: the same shape.
            next_tokens: ``(positions,)``: the token that really follows each.
        """
        step = max(1, self._BLOCK // max(1, ref.shape[1]))
        for start in range(0, len(ref), step):
            part = slice(start, start + step)
            self._add_block(ref[part], quant[part], next_tokens[part])

    def _add_block(
        self,
        ref: NDArray[np.float32],
        quant: NDArray[np.float32],
        next_tokens: NDArray[np.int32],
    ) -> None:
        good = np.isfinite(ref).all(axis=1) & np.isfinite(quant).all(axis=1)
        if not good.all():
            self._bad += int((~good).sum())
            ref, quant, next_tokens = ref[good], quant[good], next_tokens[good]
        if len(ref) == 0:
            return
        log_p, log_q = _log_softmax(ref), _log_softmax(quant)
        at = (np.arange(len(ref)), next_tokens)
        self._nll_ref.append(-log_p[at])
        self._nll_quant.append(-log_q[at])
        self._same += int((ref.argmax(axis=1) == quant.argmax(axis=1)).sum())
        self._kld.append(np.einsum("ij,ij->i", np.exp(log_p), log_p - log_q))

    def result(self) -> LogitStatistics:
        """The statistics of all that was added so far."""
        n = sum(map(len, self._kld))
        if n == 0:
            nothing: dict[str, None] = dict.fromkeys(
                f.name for f in fields(LogitStatistics) if f.type == "float | None"
            )
            return LogitStatistics(n_tokens=0, **nothing, non_finite_tokens=self._bad)
        kld = np.concatenate(self._kld)
        ref, quant = np.concatenate(self._nll_ref), np.concatenate(self._nll_quant)
        top1 = self._same / n
        ppl_ref, ppl_quant = math.exp(ref.mean()), math.exp(quant.mean())
        ratio = math.exp((quant - ref).mean())

        def scaled(factor: float, se: float | None) -> float | None:
            return None if se is None else factor * se

        return LogitStatistics(
            n_tokens=n,
            mean_kld=float(kld.mean()),
            mean_kld_se=_standard_error(kld),
            p999_kld=float(np.quantile(kld, 0.999)),
            max_kld=float(kld.max()),
            same_top1=top1,
            same_top1_se=math.sqrt(top1 * (1 - top1) / (n - 1)) if n > 1 else None,
            ppl_ref=ppl_ref,
            ppl_ref_se=scaled(ppl_ref, _standard_error(ref)),
            ppl_quant=ppl_quant,
            ppl_quant_se=scaled(ppl_quant, _standard_error(quant)),
            ppl_ratio=ratio,
            ppl_ratio_se=scaled(ratio, _standard_error(quant - ref)),
            non_finite_tokens=self._bad,
        )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def _standard_error(values: NDArray[np.float64]) -> float | None:
    """Standard error of the mean, None from a single value."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
