"""Where drift enters, and whether a norm is at fault: one culprit at most, and a sentence.

The judgement rests on *local* errors: what an operation does to the reference's own
input. They do not depend on what happened upstream, so a fault is told where it is made,
not where it is passed on.

- A norm's weight, bias and epsilon are never quantized: any local error is a difference
  between the files. It is a fault if it is more than a tenth of what quantization does to
  a typical matrix product in the same file (:data:`NORM_SHARE`), or if the file is not
  quantized at all.
- Any other operation that reads a tensor has its local error from that tensor. It is
  suspected if the error, or its largest value, is out of line with its peers (the same
  role and type in other layers), and at fault if the tensor or one of its blocks is then
  found to be further from the reference's than a fresh quantization to its type would be
  (:data:`WEIGHT_RATIO`, :data:`BLOCK_RATIO`).

Where a trace stands for a model there are no local errors: :func:`judge_cumulative` says
what cumulative drift alone shows, and names a culprit only where that is enough.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ggufnorm.analysis.drift.localise import first_non_finite, role_of
from ggufnorm.analysis.drift.weights import WeightError
from ggufnorm.core.drift import Culprit, NormDrift, OperationDrift
from ggufnorm.core.floats import epsilon_text
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.tolerances import (
    BLOCK_RATIO,
    FLOAT32_ROUNDING,
    KERNEL_RESIDUAL,
    NORM_SHARE,
    PEER_RATIO,
    WEIGHT_RATIO,
)

_MOST_SUSPECTS = 16
"""Tensors that are quantized again at most, the worst first."""


@dataclass(frozen=True)
class _Fault:
    error: float
    culprit: Culprit


WeightCheck = Callable[[str], WeightError | None]
"""Measures a tensor by name: :func:`ggufnorm.analysis.drift.weights.weight_error`."""


def judge(
    norms: Sequence[NormDrift],
    operations: Sequence[OperationDrift],
    logits: LogitStatistics | None,
    check_weight: WeightCheck,
) -> tuple[Culprit | None, str]:
    """Name the one thing that is out of line, and say in words where drift enters.

    Args:
        norms: in graph order.
        operations: in graph order.
        logits: None for a model without predictions.
        check_weight: asked about tensors that look damaged.

    Returns:
        The culprit, or None; and the verdict.
    """
    noise = typical_local_error(operations)
    faults = norm_faults(norms, noise)
    culprit = (
        _non_finite(operations)
        or _worst(faults)
        or _wrong_formula(norms)
        or _damaged_weight(operations, norms, check_weight)
    )
    return culprit, _sentence(culprit, len(faults), norms, operations, logits)


def judge_cumulative(
    norms: Sequence[NormDrift],
    operations: Sequence[OperationDrift],
    logits: LogitStatistics | None,
    rounding: float = FLOAT32_ROUNDING,
) -> tuple[Culprit | None, str]:
    """Say what can be said without local errors.

    Args:
        norms: in graph order.
        operations: in graph order.
        logits: None for a model without predictions, or where they were not kept.
        rounding: relative L2 up to which drift says nothing.

    Returns:
        The culprit: the first NaN or infinity, or else a norm that drifts although nothing
        before it does; None if there is neither. And the verdict.
    """
    if _nothing_drifts(operations, logits):
        return None, _NO_DRIFT
    culprit = _non_finite(operations) or _drift_from_nothing(norms, rounding)
    start = _passing(operations, rounding) if culprit is None else _enters_at(culprit)
    return culprit, f"{start} {_about_epsilons(norms)}{_CUMULATIVE_ONLY}"


_NO_DRIFT = "No drift: the two models compute the same at every watched node."
_CUMULATIVE_ONLY = (
    "Judged by cumulative drift alone: which operation adds how much, only a drift run tells."
)


def _nothing_drifts(operations: Sequence[OperationDrift], logits: LogitStatistics | None) -> bool:
    return all(o.cumulative.rel_l2 == 0 for o in operations) and not (logits and logits.max_kld)


def _drift_from_nothing(norms: Sequence[NormDrift], rounding: float) -> Culprit | None:
    """The first norm whose input is the reference's, and whose result is not."""
    for n in norms:
        drift = n.output.rel_l2 or 0.0
        if n.input.rel_l2 == 0 and not n.input.non_finite_rows and drift > rounding:
            other = n.epsilon_used != n.epsilon_used_ref
            reason = f"its input is the reference's, and its result is off by {drift:.3g}"
            reason += " (relative L2)"
            reason += f": {_other_epsilon(n)}" if other else ", so its weight or bias differs"
            return Culprit(n.tensor, n.node, n.layer, reason)
    return None


def _passing(operations: Sequence[OperationDrift], rounding: float) -> str:
    seen = [o for o in operations if (o.cumulative.rel_l2 or 0.0) > rounding]
    if not seen:
        return "Drift is nowhere more than rounding."
    worst = max(seen, key=lambda o: o.cumulative.rel_l2 or 0.0)
    first, most = (
        f"{o.tensor or o.node} ({o.cumulative.rel_l2:.3g} relative L2)" for o in (seen[0], worst)
    )
    largest = "where it is also largest" if worst is seen[0] else f"and is largest at {most}"
    return f"Drift is first seen at {first}, {largest}."


def _about_epsilons(norms: Sequence[NormDrift]) -> str:
    other = [n for n in norms if n.epsilon_used != n.epsilon_used_ref]
    if not other:
        return ""
    return f"In {len(other)} of {len(norms)} norms {_other_epsilon(other[0])}. "


def _other_epsilon(n: NormDrift) -> str:
    used, reference = epsilon_text(n.epsilon_used), epsilon_text(n.epsilon_used_ref)
    return f"epsilon is {used} where the reference uses {reference}"


def typical_local_error(operations: Sequence[OperationDrift]) -> float:
    """Median local relative L2 over the operations that quantization touched; 0 if none."""
    errors = [o.local.rel_l2 or 0.0 for o in operations if o.role == "matmul"]
    errors = [e for e in errors if e > FLOAT32_ROUNDING]
    return statistics.median(errors) if errors else 0.0


def norm_faults(norms: Sequence[NormDrift], noise: float) -> list[_Fault]:
    """Norms whose own error counts beside ``noise``, in graph order."""
    found = []
    for n in norms:
        error = n.local.rel_l2 or 0.0
        if error > max(FLOAT32_ROUNDING, NORM_SHARE * noise):
            found.append(_Fault(error, Culprit(n.tensor, n.node, n.layer, _norm_reason(n))))
    return found


def _norm_reason(n: NormDrift) -> str:
    differences = []
    if n.epsilon_used != n.epsilon_used_ref:
        differences.append(f"its {_other_epsilon(n)}")
    for part, d in (("weight", n.weight), ("bias", n.bias)):
        if d is None or (d.rel_l2 == 0 and not d.non_finite_rows):
            continue
        if d.non_finite_rows:
            differences.append(f"its {part} holds NaN or infinity")
        elif d.rel_l2 is None:
            differences.append(f"its {part} is zero in the reference")
        else:
            ratio = f"RMS {d.rms_ratio:.4g} times the reference's"
            differences.append(f"its {part} differs by {d.rel_l2:.3g}, {ratio}")
    what = " and ".join(differences) or "the files agree on it, so llama.cpp computed it otherwise"
    return (
        f"given the reference's input this norm is off by {n.local.rel_l2 or 0:.3g}"
        f" (relative L2): {what}"
    )


def _wrong_formula(norms: Sequence[NormDrift]) -> Culprit | None:
    for n in norms:
        residual, own = n.recompute_residual, n.recompute_residual_ref
        if residual is not None and residual > KERNEL_RESIDUAL and (own or 0) <= KERNEL_RESIDUAL:
            return Culprit(
                n.tensor,
                n.node,
                n.layer,
                f"llama.cpp's result is off by {residual:.3g} (relative L2) from NumPy's with"
                " the same input, weight and epsilon: the kernel computes something else",
            )
    return None


def _non_finite(operations: Sequence[OperationDrift]) -> Culprit | None:
    place = first_non_finite(operations)
    if place is None:
        return None
    reason = f"the first NaN or infinity appears here, at token {place.token}"
    return Culprit(place.tensor, place.node, place.layer, reason)


def _damaged_weight(
    operations: Sequence[OperationDrift], norms: Sequence[NormDrift], check_weight: WeightCheck
) -> Culprit | None:
    for o, peers in _suspects(operations, norms)[:_MOST_SUSPECTS]:
        assert o.tensor is not None
        w = check_weight(o.tensor)
        damage = _damage(w, o.dtype) if w else None
        if damage is None:
            continue
        beside = f", its peers in {o.dtype} by {peers:.3g}" if peers is not None else ""
        return Culprit(
            o.tensor,
            o.node,
            o.layer,
            f"given the reference's input it is off by {o.local.rel_l2 or 0:.3g}{beside}"
            f" (relative L2), because {damage}",
        )
    return None


def _damage(w: WeightError, dtype: str | None) -> str | None:
    """What is wrong with a weight, None if nothing is."""
    if w.actual is None:
        return "its weight holds NaN or infinity"
    if w.actual > max(FLOAT32_ROUNDING, WEIGHT_RATIO * w.expected):
        return (
            f"its weight is off by {w.actual:.3g} where {dtype} costs {w.expected:.3g}:"
            " it is damaged or another tensor"
        )
    if w.worst_block > BLOCK_RATIO:
        return (
            f"a block of its weight is {w.worst_block:.3g} times as far off as {dtype} costs:"
            " that part is damaged"
        )
    return None


def _suspects(
    operations: Sequence[OperationDrift], norms: Sequence[NormDrift]
) -> list[tuple[OperationDrift, float | None]]:
    """Operations out of line with their peers and the peers' median error, the worst first."""
    norm_nodes = {n.node for n in norms}
    groups: dict[tuple[str | None, str], list[OperationDrift]] = defaultdict(list)
    for o in operations:
        if o.tensor and o.node not in norm_nodes and (o.local.rel_l2 or 0.0) > FLOAT32_ROUNDING:
            groups[o.dtype, role_of(o)].append(o)
    found = []
    for group in groups.values():
        for o in group:
            peers = [p for p in group if p is not o]
            ratio = max(_ratio(o, peers, _error), _ratio(o, peers, _spike))
            if ratio > PEER_RATIO:
                found.append((ratio, o, statistics.median(map(_error, peers)) if peers else None))
    found.sort(key=lambda row: -row[0])
    return [(o, peers) for _ratio, o, peers in found]


def _error(o: OperationDrift) -> float:
    return o.local.rel_l2 or 0.0


def _spike(o: OperationDrift) -> float:
    """The largest local error, relative to the reference's largest value."""
    return (o.local.max_abs or 0.0) / abs(o.peak_ref.value) if o.peak_ref else 0.0


def _ratio(
    o: OperationDrift, peers: Sequence[OperationDrift], of: Callable[[OperationDrift], float]
) -> float:
    """How many times its peers' median an operation shows; infinite without peers."""
    middle = statistics.median(map(of, peers)) if peers else 0.0
    return of(o) / middle if middle else math.inf


def _worst(faults: Sequence[_Fault]) -> Culprit | None:
    return max(faults, key=lambda f: f.error).culprit if faults else None


def _sentence(
    culprit: Culprit | None,
    n_faults: int,
    norms: Sequence[NormDrift],
    operations: Sequence[OperationDrift],
    logits: LogitStatistics | None,
) -> str:
    if _nothing_drifts(operations, logits):
        return _NO_DRIFT
    start = _gradual(operations) if culprit is None else _enters_at(culprit)
    return f"{start} {_about_norms(n_faults, norms)}"


def _enters_at(culprit: Culprit) -> str:
    where = f" (layer {culprit.layer})" if culprit.layer is not None else ""
    return f"Drift enters at {culprit.tensor or culprit.node}{where}: {culprit.reason}."


def _gradual(operations: Sequence[OperationDrift]) -> str:
    lossy = [o for o in operations if (o.local.rel_l2 or 0) > FLOAT32_ROUNDING]
    if not lossy:
        return "Drift enters nowhere in particular: no operation adds more than rounding."
    worst = max(lossy, key=lambda o: o.local.rel_l2 or 0)
    return (
        f"Drift enters gradually, at {len(lossy)} of {len(operations)} operations; the largest"
        f" share is {worst.tensor or worst.node}'s ({worst.local.rel_l2:.3g} relative L2,"
        f" {worst.dtype or worst.role}), and none is out of line."
    )


def _about_norms(n_faults: int, norms: Sequence[NormDrift]) -> str:
    if not norms:
        return "The graph has no norm."
    if n_faults == 0:
        exact = sum(n.local.rel_l2 == 0 for n in norms)
        if exact == len(norms):
            return f"No norm is at fault: all {exact} only pass on what reaches them."
        return (
            f"No norm is at fault: {exact} of {len(norms)} only pass on what reaches them, the"
            " others add less than a tenth of what quantization does."
        )
    if n_faults == 1:
        return f"1 of {len(norms)} norms is at fault."
    return f"{n_faults} of {len(norms)} norms are at fault."
