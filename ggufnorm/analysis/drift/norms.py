"""Norms at fault: their weight, bias and epsilon are never quantized, so any error counts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ggufnorm.core.drift import Culprit, NormDrift, OperationDrift
from ggufnorm.core.floats import epsilon_text
from ggufnorm.core.tolerances import FLOAT32_ROUNDING, KERNEL_RESIDUAL, NORM_SHARE


@dataclass(frozen=True)
class Fault:
    """A norm's own error, relative L2, and the norm as a culprit."""

    error: float
    culprit: Culprit


def typical_local_error(operations: Sequence[OperationDrift]) -> float:
    """Median local relative L2 over the operations that quantization touched; 0 if none."""
    errors = [o.local.rel_l2 or 0.0 for o in operations if o.role == "matmul"]
    errors = [e for e in errors if e > FLOAT32_ROUNDING]
    return statistics.median(errors) if errors else 0.0


def norm_faults(norms: Sequence[NormDrift], noise: float) -> list[Fault]:
    """Norms whose own error counts beside ``noise``, in graph order."""
    found = []
    for n in norms:
        error = n.local.rel_l2 or 0.0
        if error > max(FLOAT32_ROUNDING, NORM_SHARE * noise):
            found.append(Fault(error, Culprit(n.tensor, n.node, n.layer, _norm_reason(n))))
    return found


def _norm_reason(n: NormDrift) -> str:
    differences = []
    if n.epsilon_used != n.epsilon_used_ref:
        differences.append(f"its {other_epsilon(n)}")
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


def wrong_formula(norms: Sequence[NormDrift]) -> Culprit | None:
    """The first norm that llama.cpp computes otherwise than NumPy, and the reference's as it."""
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


def worst_fault(faults: Sequence[Fault]) -> Culprit | None:
    """The norm with the largest error of its own."""
    return max(faults, key=lambda f: f.error).culprit if faults else None


def other_epsilon(n: NormDrift) -> str:
    """Both epsilons in words."""
    used, reference = epsilon_text(n.epsilon_used), epsilon_text(n.epsilon_used_ref)
    return f"epsilon is {used} where the reference uses {reference}"


def about_norms(n_faults: int, norms: Sequence[NormDrift]) -> str:
    """The sentence that says how many norms are at fault."""
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
