"""Tensors whose operation is off by more than their types cost: damaged, or another weight."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from ggufnorm.analysis.drift.localise import role_of
from ggufnorm.analysis.drift.weights import WeightError
from ggufnorm.core.drift import Culprit, NormDrift, OperationDrift
from ggufnorm.core.tolerances import (
    BLOCK_RATIO,
    FLOAT32_ROUNDING,
    NOT_QUANTIZATION,
    PEER_RATIO,
    WEIGHT_RATIO,
)

_MOST_SUSPECTS = 16
"""Tensors that are quantized again at most, the worst first."""

WeightCheck = Callable[[str], WeightError | None]
"""Measures a tensor by name: :func:`ggufnorm.analysis.drift.weights.weight_error`."""
HowDiffers = Callable[[str, float], str | None]
"""Says what was done to a tensor beside what its types cost:
:func:`ggufnorm.analysis.drift.edits.how_differs`."""
Groups = Mapping[tuple[str | None, str | None, str], Sequence[OperationDrift]]
"""Operations by type in the model under test, type in the reference, and role."""
Samples = Mapping[str, WeightError]
"""What a tensor of each group showed, by name."""


def untold(_tensor: str, _cost: float) -> None:
    """Says nothing: one tensor is looked at closely."""


def lossy_groups(operations: Sequence[OperationDrift], norms: Sequence[NormDrift]) -> Groups:
    """Operations that read a tensor and have an error of their own, beside their peers."""
    norm_nodes = {n.node for n in norms}
    groups: dict[tuple[str | None, str | None, str], list[OperationDrift]] = defaultdict(list)
    for o in operations:
        if o.tensor and o.node not in norm_nodes and _error(o) > FLOAT32_ROUNDING:
            groups[o.dtype, o.dtype_ref, role_of(o)].append(o)
    return groups


def sample_groups(groups: Groups, sample_weight: WeightCheck) -> dict[str, WeightError]:
    """Measure a typical tensor of each group: its own error is the group's median."""
    found = {}
    for group in groups.values():
        o = sorted(group, key=_error)[(len(group) - 1) // 2]
        assert o.tensor is not None
        w = sample_weight(o.tensor)
        if w is not None:
            found[o.tensor] = w
    return found


def other_weights(groups: Groups, samples: Samples, how: HowDiffers) -> Culprit | None:
    """Whether whole roles are further from the reference's than their types cost.

    One fault in all layers makes no layer stand out, so the typical layer is measured.
    """
    off = []
    for group in groups.values():
        names = {o.tensor for o in group} & samples.keys()
        if any(_is_off(samples[n]) for n in names if n):
            off.append((group, next(samples[n] for n in names if n)))
    if not off or (len(off) == 1 and len({o.tensor for o in off[0][0]}) < 2):
        return None
    first = off[0][0][0]
    errors = [w.actual for _group, w in off if w.actual is not None]
    size = f"{statistics.median(errors):.3g}" if errors else "NaN"
    cost = statistics.median(w.expected for _group, w in off)
    roles = list(dict.fromkeys(role_of(group[0]) for group, _w in off))
    some = f"those of {', '.join(roles[:3])}" if len(roles) <= 3 else f"those of {len(roles)} roles"
    kind = "another fine-tune, an adapter that was not merged, or reordered"
    if len(off) == len(groups) and all(e > NOT_QUANTIZATION for e in errors):
        some, kind = "all of them", "another checkpoint"
    elif errors and min(errors) > 1:
        kind = "transposed, reordered or other tensors"
    kind = _told(off, how) or kind
    return Culprit(
        first.tensor,
        first.node,
        first.layer,
        f"the weights are not the reference's, quantized: {some} are off by {size} (relative"
        f" L2) where their types cost {cost:.3g}, from here on and in the typical layer ({kind})",
    )


def _told(
    off: Sequence[tuple[Sequence[OperationDrift], WeightError]], how: HowDiffers
) -> str | None:
    """What was done to the typical tensors, where their values tell."""
    (grid, n), *_ = Counter(w.grid for _group, w in off).most_common()
    if grid is not None and 2 * n >= len(off):
        return f"their values lie on the grid of {grid}: they were quantized to it before"
    group, w = off[0]
    tensor = sorted(group, key=_error)[(len(group) - 1) // 2].tensor
    said = tensor and how(tensor, w.expected)
    if said and said.startswith("by a rank"):
        return f"{said}: an adapter that was not merged"
    return said


def _is_off(w: WeightError) -> bool:
    return w.actual is None or w.actual > max(FLOAT32_ROUNDING, WEIGHT_RATIO * w.expected)


def was_dequantized(samples: Samples) -> bool:
    """Whether most of what was measured lies on the grid of a type in the reference."""
    return 2 * sum(w.on_grid for w in samples.values()) > len(samples)


def damaged_weight(groups: Groups, check_weight: WeightCheck, how: HowDiffers) -> Culprit | None:
    """The worst operation out of line with its peers whose tensor is damaged, and how many are."""
    found: list[tuple[OperationDrift, float | None, str]] = []
    for o, peers in _suspects(groups)[:_MOST_SUSPECTS]:
        assert o.tensor is not None
        w = check_weight(o.tensor)
        if w and (damage := _damage(w, o, how if not found else untold)) is not None:
            found.append((o, peers, damage))
    if not found:
        return None
    o, peers, damage = found[0]
    beside = f", its peers in {o.dtype} by {peers:.3g}" if peers is not None else ""
    others = list(dict.fromkeys(p.tensor for p, *_ in found if p.tensor != o.tensor))
    more = f"; so are {len(others)} more tensors, the first {others[0]}" if others else ""
    return Culprit(
        o.tensor,
        o.node,
        o.layer,
        f"given the reference's input it is off by {o.local.rel_l2 or 0:.3g}{beside}"
        f" (relative L2), because {damage}{more}",
    )


def _damage(w: WeightError, o: OperationDrift, how: HowDiffers) -> str | None:
    """What is wrong with a weight, None if nothing is."""
    types = _types(o)
    if w.actual is None:
        return "its weight holds NaN or infinity"
    if _is_off(w):
        assert o.tensor is not None
        said = w.grid and f"its values lie on {w.grid}'s grid: quantized to it before"
        said = said or how(o.tensor, w.expected)
        return (
            f"its weight is off by {w.actual:.3g} where {types} {w.expected:.3g}:"
            f" {said or 'it is damaged or another tensor'}"
        )
    if w.worst_block > BLOCK_RATIO:
        return (
            f"a block of its weight is {w.worst_block:.3g} times as far off as {types}:"
            " that part is damaged"
        )
    return None


def _types(o: OperationDrift) -> str:
    """Whose cost is expected, with the verb's ending."""
    both = o.dtype_ref != o.dtype and o.dtype_ref not in ("F32", "F16", "BF16")
    return f"{o.dtype_ref} and {o.dtype} cost" if both else f"{o.dtype} costs"


def _suspects(groups: Groups) -> list[tuple[OperationDrift, float | None]]:
    """Operations out of line with their peers and the peers' median error, the worst first."""
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
