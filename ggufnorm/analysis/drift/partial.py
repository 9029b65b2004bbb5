"""The verdict of a run that did not stop at every hook point, and what it must leave open.

Between two hook points there are then operations that read the file, so that the error of a
hook point is that of a whole stretch. It accuses no operation. A norm whose input and result
were both watched can be at fault all the same: between these there is nothing but the norm.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence

from ggufnorm.analysis.drift.norms import norm_faults, worst_fault, wrong_formula
from ggufnorm.analysis.drift.wording import NO_DRIFT, enters_at, non_finite, nothing_drifts
from ggufnorm.core.drift import Culprit, NormDrift, OperationDrift
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.model import Skipped
from ggufnorm.core.tolerances import FLOAT32_ROUNDING
from ggufnorm.runs.watch import Watch

_LEFT_OUT: dict[Watch, str] = {
    "norms": "--watch norms leaves out all but the inputs and results of norms",
    "residual": "--watch residual leaves out all but the residual stream",
    "none": "--watch none leaves out all",
}


def left_out(watch: Watch, *, local: bool) -> list[Skipped]:
    """What was not asked for, as what was skipped.

    Args:
        watch: where the run stopped.
        local: whether a replica was pinned.
    """
    found = [] if watch == "all" else [Skipped("operations", _LEFT_OUT[watch])]
    if not local and watch != "none":
        found.append(Skipped("own errors", "--no-local leaves out all"))
    return found


def judge_predictions(logits: LogitStatistics | None) -> str:
    """Say what predictions alone show; nothing is accused, and nothing is cleared."""
    if logits is None or logits.mean_kld is None:
        return "No prediction was compared."
    if logits.max_kld == 0 and not logits.non_finite_tokens:
        return f"The predictions are the same at all {logits.n_tokens} positions."
    lost = f", and {logits.non_finite_tokens} positions have NaN or infinite logits"
    return (
        f"The predictions drift by {logits.mean_kld:.3g} nats (mean KL divergence over"
        f" {logits.n_tokens} positions){lost if logits.non_finite_tokens else ''}."
    )


def judge_stretches(
    norms: Sequence[NormDrift],
    operations: Sequence[OperationDrift],
    logits: LogitStatistics | None,
    given_its_input: Collection[str],
    bad_ref: Collection[str] = (),
) -> tuple[Culprit | None, str]:
    """Judge norms by their own errors, and say which stretch adds most.

    Args:
        norms: whose input and result were watched, in graph order.
        operations: that were watched, in graph order.
        logits: None for a model without predictions.
        given_its_input: nodes that hold the results of norms whose input was pinned.
        bad_ref: nodes at which the reference itself shows NaN or infinity.
    """
    if nothing_drifts(operations, logits):
        return None, NO_DRIFT
    own = [n for n in norms if n.node in given_its_input]
    stretches = [o for o in operations if o.node not in {n.node for n in own}]
    # What is normal: a stretch holds the matrices that quantization touched.
    errors = [e for o in stretches if (e := o.local.rel_l2 or 0.0) > FLOAT32_ROUNDING]
    faults = norm_faults(own, statistics.median(errors) if errors else 0.0)
    culprit = non_finite(operations, bad_ref) or worst_fault(faults) or wrong_formula(norms)
    said = [_largest(stretches) if culprit is None else enters_at(culprit)]
    if own and not faults:
        said.append(f"None of the {len(own)} norms that were watched is at fault.")
    return culprit, " ".join(said)


def _largest(stretches: Sequence[OperationDrift]) -> str:
    worst = max(stretches, key=lambda o: o.local.rel_l2 or 0.0, default=None)
    if worst is None or (worst.local.rel_l2 or 0.0) <= FLOAT32_ROUNDING:
        return "No stretch between two watched nodes adds more than rounding."
    layer = "" if worst.layer is None else f", layer {worst.layer}"
    return (
        f"The stretch that adds most ends at {worst.tensor or worst.node}{layer}"
        f" ({worst.local.rel_l2:.3g} relative L2, with the reference's values before it): which of"
        " its operations does, only --watch all tells."
    )
