"""What cumulative drift alone shows: a trace stands for a model, or no replica was pinned."""

from __future__ import annotations

from collections.abc import Sequence

from ggufnorm.analysis.drift.norms import other_epsilon
from ggufnorm.analysis.drift.wording import NO_DRIFT, enters_at, non_finite, nothing_drifts
from ggufnorm.core.drift import Culprit, NormDrift, OperationDrift
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.node_names import node_words
from ggufnorm.core.tolerances import FLOAT32_ROUNDING

_CUMULATIVE_ONLY = "Judged by cumulative drift alone: which operation adds how much, only"


def judge_cumulative(
    norms: Sequence[NormDrift],
    operations: Sequence[OperationDrift],
    logits: LogitStatistics | None,
    rounding: float = FLOAT32_ROUNDING,
    teller: str = "a drift run",
) -> tuple[Culprit | None, str]:
    """Say what can be said without local errors.

    Args:
        norms: in graph order.
        operations: in graph order.
        logits: None for a model without predictions, or where they were not kept.
        rounding: relative L2 up to which drift says nothing.
        teller: what would say more.

    Returns:
        The culprit: the first NaN or infinity, or else a norm that drifts although nothing
        before it does; None if there is neither. And the verdict.
    """
    if nothing_drifts(operations, logits):
        return None, NO_DRIFT
    culprit = non_finite(operations) or _drift_from_nothing(norms, rounding)
    start = _passing(operations, rounding) if culprit is None else enters_at(culprit)
    return culprit, f"{start} {_about_epsilons(norms)}{_CUMULATIVE_ONLY} {teller} tells."


def _drift_from_nothing(norms: Sequence[NormDrift], rounding: float) -> Culprit | None:
    """The first norm whose input is the reference's, and whose result is not."""
    for n in norms:
        drift = n.output.rel_l2 or 0.0
        if n.input.rel_l2 == 0 and not n.input.non_finite_rows and drift > rounding:
            other = n.epsilon_used != n.epsilon_used_ref
            reason = f"its input is the reference's, and its result is off by {drift:.3g}"
            reason += " (relative L2)"
            reason += f": {other_epsilon(n)}" if other else ", so its weight or bias differs"
            return Culprit(n.tensor, n.node, n.layer, reason)
    return None


def _passing(operations: Sequence[OperationDrift], rounding: float) -> str:
    seen = [o for o in operations if (o.cumulative.rel_l2 or 0.0) > rounding]
    if not seen:
        return "Drift is nowhere more than rounding."
    worst = max(seen, key=lambda o: o.cumulative.rel_l2 or 0.0)
    first, most = (
        f"{o.tensor or node_words(o.node)} ({o.cumulative.rel_l2:.3g} relative L2)"
        for o in (seen[0], worst)
    )
    largest = "where it is also largest" if worst is seen[0] else f"and is largest at {most}"
    return f"Drift is first seen at {first}, {largest}."


def _about_epsilons(norms: Sequence[NormDrift]) -> str:
    other = [n for n in norms if n.epsilon_used != n.epsilon_used_ref]
    if not other:
        return ""
    return f"In {len(other)} of {len(norms)} norms {other_epsilon(other[0])}. "
