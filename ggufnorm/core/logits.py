"""What drift does to the predictions: the statistics of llama-perplexity, exact.

``llama-perplexity --kl-divergence`` (``tools/perplexity/perplexity.cpp``) compares with
log-probabilities stored in 16 bits; here both sides are whole float32 logits and all sums
are float64. Natural logarithms throughout; probabilities are shares, not percent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.row_dots import row_dot

KLD_PERCENTS = (0.0, 0.1, 1.0, 5.0, 10.0, 50.0, 90.0, 95.0, 99.0, 99.9, 100.0)
"""Percentiles that llama-perplexity prints of the KL divergence (0 and 100: extremes)."""
DELTA_P_PERCENTS = (0.0, 0.1, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)
"""Those that it prints of the change of the probability of the right token."""


@dataclass(frozen=True)
class LogitStatistics:
    """What the model under test predicts, against what the reference predicts.

    All over the ``n_tokens`` scored positions. With ``p`` the reference's and ``q`` the
    observed next-token distribution: KL divergence ``Σ p (ln p - ln q)`` in nats, and
    ``Δp = q(next) - p(next)``. ``…_se`` are standard errors.

    Attributes:
        n_tokens: scored positions.
        non_finite_tokens: positions left out because a logit was NaN or infinite.
        mean_kld: mean KL divergence, nats per token.
        p999_kld: 99.9 % quantile (linear between order statistics).
        max_kld: largest.
        kld_percentiles: percent, as text, to KL divergence.
        same_top1: share of positions with the same most likely token, 0 to 1.
        ppl_ref: the reference's perplexity.
        ppl_quant: the observed model's perplexity.
        ppl_ratio: ``ppl_quant / ppl_ref``.
        ppl_difference: ``ppl_quant - ppl_ref``.
        log_ppl_ratio: ``ln(ppl_quant / ppl_ref)``.
        log_ppl_correlation: correlation of the two models' ``-ln p(next)``, -1 to 1.
        mean_delta_p: mean of Δp.
        rms_delta_p: root mean square of Δp.
        delta_p_percentiles: percent, as text, to Δp.
    """

    n_tokens: int
    non_finite_tokens: int
    mean_kld: float | None
    mean_kld_se: float | None
    p999_kld: float | None
    max_kld: float | None
    kld_percentiles: dict[str, float]
    same_top1: float | None
    same_top1_se: float | None
    ppl_ref: float | None
    ppl_ref_se: float | None
    ppl_quant: float | None
    ppl_quant_se: float | None
    ppl_ratio: float | None
    ppl_ratio_se: float | None
    ppl_difference: float | None
    ppl_difference_se: float | None
    log_ppl_ratio: float | None
    log_ppl_ratio_se: float | None
    log_ppl_correlation: float | None
    mean_delta_p: float | None
    mean_delta_p_se: float | None
    rms_delta_p: float | None
    rms_delta_p_se: float | None
    delta_p_percentiles: dict[str, float]


_COLUMNS = ("kld", "nll_ref", "nll_quant", "position")


_BLOCK = 1 << 18
"""Logits converted to float64 at a time, 2 MiB for each distribution, in one thread: several would
wait for each other at the interpreter's lock, between pieces of this size."""


class LogitSum:
    """Accumulates :class:`LogitStatistics`; keeps four numbers a token, no logits."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.float64]] = []  # (4, n) each, rows as in _COLUMNS
        self._same = 0
        self._bad = 0

    def add(
        self,
        ref: NDArray[np.float32],
        quant: NDArray[np.float32],
        next_tokens: NDArray[np.int32],
        first_position: int = 0,
        stride: int = 1,
    ) -> None:
        """Compare the logits of some positions.

        Args:
            ref: ``(positions, vocabulary)`` float32.
            quant: the same shape.
            next_tokens: ``(positions,)``: the token that really follows each.
            first_position: number of the first position in the whole text.
            stride: from one position's number to the next one's.
        """
        self.add_at(ref, quant, next_tokens, first_position + stride * np.arange(len(ref)))

    def add_at(
        self,
        ref: NDArray[np.float32],
        quant: NDArray[np.float32],
        next_tokens: NDArray[np.int32],
        where: NDArray[np.intp],
    ) -> None:
        """Compare the logits of positions anywhere in the text.

        Args:
            ref: ``(positions, vocabulary)`` float32.
            quant: the same shape.
            next_tokens: ``(positions,)``: the token that really follows each.
            where: ``(positions,)``: their numbers.
        """
        if len(ref) == 0:
            return
        found = _compare(ref, quant, next_tokens)
        good = np.isfinite(found[0])
        self._bad += len(ref) - int(np.count_nonzero(good))
        self._same += int(found[3][good].sum())
        found[3] = where
        self._parts.append(found[:, good])

    def merge(self, other: LogitSum) -> None:
        """Add all that another one gathered."""
        self._parts += other._parts
        self._same += other._same
        self._bad += other._bad

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """Per scored position: ``kld``, ``nll_ref``, ``nll_quant`` and ``position``."""
        table = np.concatenate(self._parts, axis=1) if self._parts else np.empty((4, 0))
        return dict(zip(_COLUMNS, table, strict=True))

    def state(self) -> dict[str, Any]:
        """All that was gathered, as plain data that JSON keeps exactly."""
        columns = {name: column.tolist() for name, column in self.columns().items()}
        return {**columns, "same": self._same, "bad": self._bad}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> LogitSum:
        """The inverse of :meth:`state`.

        Raises:
            ValueError: no run can have gathered that.
        """
        total = cls()
        columns = np.array([state[c] for c in _COLUMNS], np.float64)
        total._parts = [columns]
        total._same, total._bad = int(state["same"]), int(state["bad"])
        in_range = 0 <= total._same <= columns.shape[-1] and total._bad >= 0
        if columns.ndim != 2 or not in_range or not np.isfinite(columns).all():
            raise ValueError("sums are out of range")
        return total

    def result(self) -> LogitStatistics:
        """The statistics of all that was added so far."""
        columns = self.columns()
        kld, ref, quant = (columns[c] for c in _COLUMNS[:3])
        n = len(kld)
        if n == 0:
            return _no_statistics(self._bad)
        top1 = self._same / n
        ppl_ref, ppl_quant = math.exp(ref.mean()), math.exp(quant.mean())
        log_ratio = float((quant - ref).mean())
        delta_p = np.exp(-quant) - np.exp(-ref)
        rms = math.sqrt(float((delta_p**2).mean()))
        # Var(e^a - e^b) to first order, with the covariance of a and b counted in.
        difference = ppl_quant * quant - ppl_ref * ref
        return LogitStatistics(
            n_tokens=n,
            non_finite_tokens=self._bad,
            mean_kld=float(kld.mean()),
            mean_kld_se=_se(kld),
            p999_kld=float(np.quantile(kld, 0.999)),
            max_kld=float(kld.max()),
            kld_percentiles=_percentiles(kld, KLD_PERCENTS),
            same_top1=top1,
            same_top1_se=math.sqrt(top1 * (1 - top1) / (n - 1)) if n > 1 else None,
            ppl_ref=ppl_ref,
            ppl_ref_se=_scaled(ppl_ref, _se(ref)),
            ppl_quant=ppl_quant,
            ppl_quant_se=_scaled(ppl_quant, _se(quant)),
            ppl_ratio=math.exp(log_ratio),
            ppl_ratio_se=_scaled(math.exp(log_ratio), _se(quant - ref)),
            ppl_difference=ppl_quant - ppl_ref,
            ppl_difference_se=_se(difference),
            log_ppl_ratio=log_ratio,
            log_ppl_ratio_se=_se(quant - ref),
            log_ppl_correlation=_correlation(ref, quant),
            mean_delta_p=float(delta_p.mean()),
            mean_delta_p_se=_se(delta_p),
            rms_delta_p=rms,
            rms_delta_p_se=_scaled(0.5 / rms, _se(delta_p**2)) if rms else 0.0,
            delta_p_percentiles=_percentiles(delta_p, DELTA_P_PERCENTS),
        )


def kl_divergences(ref: NDArray[np.float32], quant: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL divergence ``Σ p (ln p - ln q)`` of each position, nats.

    Args:
        ref: logits, ``(positions, vocabulary)``, that give ``p``.
        quant: the same shape, that give ``q``.

    Returns:
        ``(positions,)``; NaN where a logit is NaN or infinite.
    """
    kld: NDArray[np.float64] = _compare(ref, quant, np.zeros(len(ref), np.int32))[0]
    return kld


def _compare(
    ref: NDArray[np.float32],
    quant: NDArray[np.float32],
    next_tokens: NDArray[np.int32],
) -> NDArray[np.float64]:
    """Compare positions, a few at a time.

    Returns:
        ``(4, positions)``: KL divergence (NaN where a logit is NaN or infinite), the reference's
        and the other's ``-ln p(next)``, and whether the most likely token is the same.
    """
    step = max(1, _BLOCK // max(1, ref.shape[1]))
    found = np.empty((4, len(ref)))
    for start in range(0, len(ref), step):
        part = slice(start, start + step)
        found[:, part] = _compare_block(ref[part], quant[part], next_tokens[part])
    return found


def _compare_block(
    ref: NDArray[np.float32], quant: NDArray[np.float32], next_tokens: NDArray[np.int32]
) -> NDArray[np.float64]:
    at = np.arange(len(ref))
    with np.errstate(invalid="ignore", over="ignore"):
        (top_p, p, e, sum_p), (top_q, q, _e, sum_q) = map(_shifted, (ref, quant))
        log_p, log_q = np.log(sum_p), np.log(sum_q)
        nll_p, nll_q = log_p - p[at, next_tokens], log_q - q[at, next_tokens]
        p -= q
        # Σ p (ln p - ln q), of which the sums' logarithms do not depend on the token.
        kld = row_dot(e, p) / sum_p + (log_q - log_p)
    kld[~np.isfinite(kld)] = np.nan
    return np.stack([kld, nll_p, nll_q, (top_p == top_q).astype(np.float64)])


def _shifted(
    logits: NDArray[np.float32],
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The most likely token, logits below its own, their exponentials, and the sum of those."""
    top = logits.argmax(axis=1)
    wide = logits.astype(np.float64)
    wide -= wide[np.arange(len(wide)), top][:, None]
    e = np.exp(wide)
    return top, wide, e, e.sum(axis=1)


def _no_statistics(bad: int) -> LogitStatistics:
    empty: dict[str, Any] = {f.name: None for f in fields(LogitStatistics)}
    empty |= {"n_tokens": 0, "non_finite_tokens": bad}
    empty |= {"kld_percentiles": {}, "delta_p_percentiles": {}}
    return LogitStatistics(**empty)


def _se(values: NDArray[np.float64]) -> float | None:
    """Standard error of the mean, None from a single value."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def _scaled(factor: float, error: float | None) -> float | None:
    return None if error is None else factor * error


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    spread = float(a.std() * b.std())
    if spread == 0.0:
        return None
    return float(((a - a.mean()) * (b - b.mean())).mean()) / spread


def _percentiles(values: NDArray[np.float64], percents: tuple[float, ...]) -> dict[str, float]:
    found = np.percentile(values, percents)
    return {f"{p:g}": float(v) for p, v in zip(percents, found, strict=True)}
