"""Where in layers, tokens and channels the drift is."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ggufnorm.core.drift import (
    ChannelDrift,
    LayerDrift,
    Localisation,
    OperationDrift,
    Place,
    TokenDrift,
)
from ggufnorm.core.floats import F16_MAX
from ggufnorm.core.logits import LogitSum
from ggufnorm.runs.probes.hook_sums import HookSum

JUMP_Z = 6.0
"""Robust z-score from which a local error is called a jump."""
_WORST = 10
_OUTLIER_ENERGY = 25.0
"""A channel stands out with this multiple of its fair share of energy or error."""
_CONTEXT = 8


def localise(
    operations: Sequence[OperationDrift],
    hooks: Mapping[str, HookSum],
    logits: LogitSum,
    token_text: Callable[[int], str],
) -> Localisation:
    """Find what stands out.

    Args:
        operations: in graph order.
        hooks: the sums behind them.
        logits: per scored position.
        token_text: text of a token by its number in the run.
    """
    peak = _peak(operations)
    return Localisation(
        first_non_finite=first_non_finite(operations),
        first_jump=first_jump(operations),
        layers=tuple(layer_drift(operations)),
        worst_tokens=tuple(_worst_tokens(logits, token_text)),
        outlier_channels=tuple(_outlier_channels(operations, hooks)),
        peak=peak,
        f16_headroom=F16_MAX / abs(peak.value) if peak and peak.value else None,
    )


def first_non_finite(operations: Sequence[OperationDrift]) -> Place | None:
    """The first operation that shows a NaN or an infinity; a pinned one tells its maker."""
    for o in operations:
        for d in (o.local, o.cumulative):
            if d.non_finite_rows:
                return Place(o.node, o.tensor, o.layer, d.non_finite_token, None, None)
    return None


def role_of(operation: OperationDrift) -> str:
    """What the operation is in its block: its tensor's name, or its label, without the layer."""
    if operation.tensor:
        return operation.tensor.removesuffix(".weight").rpartition(".")[2]
    return operation.node.partition("@")[0].rpartition("-")[0] or operation.node.partition("@")[0]


def robust_z(value: float, others: Sequence[float]) -> float | None:
    """Distance of ``ln value`` from the others' median, in robust standard deviations.

    The spread is 1.4826 × the median absolute deviation, at least 0.1: errors of sound
    tensors of one role scatter by some ten percent. None with fewer than two others that
    are not zero.
    """
    logs = [math.log(v) for v in others if v > 0]
    if len(logs) < 2 or value <= 0:
        return None
    middle = statistics.median(logs)
    spread = 1.4826 * statistics.median(abs(v - middle) for v in logs)
    return (math.log(value) - middle) / max(spread, 0.1)


def first_jump(operations: Sequence[OperationDrift]) -> Place | None:
    """The first operation whose local error is out of line with its role's other layers."""
    groups: dict[tuple[str, str | None], list[OperationDrift]] = defaultdict(list)
    for o in operations:
        groups[role_of(o), o.dtype].append(o)
    for o in operations:
        others = [p.local.rel_l2 or 0.0 for p in groups[role_of(o), o.dtype] if p is not o]
        z = robust_z(o.local.rel_l2 or 0.0, others)
        if z is not None and z > JUMP_Z:
            at = o.local
            return Place(o.node, o.tensor, o.layer, at.max_abs_token, at.max_abs_channel, z)
    return None


def layer_drift(operations: Sequence[OperationDrift]) -> list[LayerDrift]:
    """Cumulative drift of the hidden state that leaves each layer."""
    last: dict[int, OperationDrift] = {}
    for o in operations:
        if o.role == "residual" and o.layer is not None and o.cumulative.rel_l2 is not None:
            last[o.layer] = o
    found: list[LayerDrift] = []
    for layer in sorted(last):
        drift = last[layer].cumulative.rel_l2 or 0.0
        before = found[-1].rel_l2 if found and found[-1].layer == layer - 1 else None
        growth = drift / before if before else None
        found.append(LayerDrift(layer, last[layer].node, drift, growth))
    return found


def _peak(operations: Sequence[OperationDrift]) -> Place | None:
    seen = [(o, o.peak) for o in operations if o.peak is not None]
    if not seen:
        return None
    o, peak = max(seen, key=lambda pair: abs(pair[1].value))
    return Place(o.node, o.tensor, o.layer, peak.token, peak.channel, peak.value)


def _worst_tokens(logits: LogitSum, token_text: Callable[[int], str]) -> list[TokenDrift]:
    columns = logits.columns()
    worst = np.argsort(-columns["kld"], kind="stable")[:_WORST]
    found = []
    for i in worst.tolist():
        if columns["kld"][i] <= 0:
            break
        position = int(columns["position"][i])
        following = position + 1
        context = "".join(map(token_text, range(max(0, position - _CONTEXT + 1), following)))
        found.append(
            TokenDrift(
                token=following,
                text=token_text(following),
                context=context,
                kld=float(columns["kld"][i]),
                p_ref=math.exp(-columns["nll_ref"][i]),
                p_quant=math.exp(-columns["nll_quant"][i]),
            )
        )
    return found


def _outlier_channels(
    operations: Sequence[OperationDrift], hooks: Mapping[str, HookSum]
) -> list[ChannelDrift]:
    """Channels that hold many times their fair share, each where its error share is largest."""
    best: dict[int, ChannelDrift] = {}
    for o in operations:
        channels = hooks[o.node].channels
        if channels is None or o.role != "residual":
            continue
        error = channels.error / (channels.error.sum() or 1.0)
        energy = channels.reference / (channels.reference.sum() or 1.0)
        fair = _OUTLIER_ENERGY / len(error)
        for c in np.flatnonzero((error > fair) | (energy > fair)).tolist():
            if c not in best or error[c] > best[c].error_share:
                best[c] = ChannelDrift(o.layer, o.node, c, float(error[c]), float(energy[c]))
    return sorted(best.values(), key=lambda c: (-c.error_share, c.channel))[:_WORST]
