"""The sentences that verdicts share."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ggufnorm.analysis.drift.localise import first_non_finite
from ggufnorm.core.drift import Culprit, OperationDrift
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.tolerances import FLOAT32_ROUNDING

NO_DRIFT = "No drift: the two models compute the same at every watched node."


def nothing_drifts(operations: Sequence[OperationDrift], logits: LogitStatistics | None) -> bool:
    """Whether the two models compute the same, as far as they were watched."""
    return all(o.cumulative.rel_l2 == 0 for o in operations) and not (logits and logits.max_kld)


def non_finite(
    operations: Sequence[OperationDrift], bad_ref: Collection[str] = ()
) -> Culprit | None:
    """The first operation that shows NaN or infinity.

    Args:
        operations: in graph order.
        bad_ref: nodes at which the reference itself shows one.
    """
    place = first_non_finite(operations)
    if place is None:
        return None
    reason = f"the first NaN or infinity appears here, at token {place.token}"
    if place.node in bad_ref:
        reason += ", in the reference too, which is then no measure of anything behind it"
    return Culprit(place.tensor, place.node, place.layer, reason)


def enters_at(culprit: Culprit) -> str:
    """The sentence that names a culprit."""
    where = f" (layer {culprit.layer})" if culprit.layer is not None else ""
    return f"Drift enters at {culprit.tensor or culprit.node}{where}: {culprit.reason}."


def gradual(operations: Sequence[OperationDrift]) -> str:
    """The sentence for a run without a culprit."""
    lossy = [o for o in operations if (o.local.rel_l2 or 0) > FLOAT32_ROUNDING]
    if not lossy:
        return "Drift enters nowhere in particular: no operation adds more than rounding."
    worst = max(lossy, key=lambda o: o.local.rel_l2 or 0)
    return (
        f"Drift enters gradually, at {len(lossy)} of {len(operations)} operations; the largest"
        f" share is {worst.tensor or worst.node}'s ({worst.local.rel_l2:.3g} relative L2,"
        f" {worst.dtype or worst.role}), and none is out of line."
    )
