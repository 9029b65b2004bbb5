"""Why an operation is off: what its scheme costs, and which ranges it has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.onnx.changes import graph_change
from ggufnorm.analysis.drift.onnx.hooks import ActivationSite, Hook, Sides
from ggufnorm.analysis.drift.onnx.measure import Feeds, HookSums, OwnRun, rows_of
from ggufnorm.analysis.drift.onnx.saturation import saturated_error
from ggufnorm.core.metrics import DifferenceSum, relative_l2
from ggufnorm.core.onnx_drift import OutlierChannel
from ggufnorm.engines.onnx.blocks import block_errors
from ggufnorm.engines.onnx.cut import Change
from ggufnorm.engines.onnx.quantized import (
    Requantized,
    WeightSite,
    bounds_of,
    requantize,
    stored_weight,
)

Array = NDArray[np.float32]

STRETCHED = 4.0
"""A channel stretches the common range if its largest magnitude is so many times the median's."""
_MOST_OUTLIERS = 5
_TIED_BIAS = ("QLinearConv", "QGemm")
"""Operations whose integer bias has the product of two other scales: these cannot be changed."""


@dataclass
class Explanation:
    """What was found of an operation; see :class:`~ggufnorm.core.onnx_drift.OnnxOperation`."""

    expected: float | None = None
    weight_error: float | None = None
    weight_expected: float | None = None
    input_value: str | None = None
    input_error: float | None = None
    input_expected: float | None = None
    saturated: float | None = None
    outliers: tuple[OutlierChannel, ...] = ()
    change: str = ""


# -- fresh quantizations -------------------------------------------------------------------


def fresh_weights(sides: Sides, hooks: Sequence[Hook], *, per_channel: bool = False) -> Change:
    """The reference's matrices in the integers of the graph under test, quantized afresh.

    Args:
        sides: both graphs.
        hooks: whose matrices are meant.
        per_channel: with a scale for each output channel, whatever the file has.
    """
    constants: dict[str, NDArray[Any]] = {}
    axes: dict[str, int] = {}
    for hook in hooks:
        for site in hook.sites:
            found = quantized_afresh(hook, site, sides, per_channel=per_channel)
            if found is None:
                continue
            fresh, by_channel = found
            constants[site.weight] = fresh.values
            constants[site.scale] = _shaped(fresh.scale, site, sides, by_channel)
            if site.zero is not None:
                constants[site.zero] = _shaped(fresh.zero, site, sides, by_channel)
            if by_channel and site.node.op_type == "DequantizeLinear":
                axes[site.node.output[0]] = site.channel_axis
    return Change(constants, axes)


def quantized_afresh(
    hook: Hook, site: WeightSite, sides: Sides, *, per_channel: bool = False
) -> tuple[Requantized, bool] | None:
    """A matrix quantized again, and whether by channel; None where it cannot be done."""
    real, stored = hook.real(site), sides.quant.constant(site.weight)
    if (
        real is None
        or stored is None
        or not np.isfinite(real).all()
        or stored.dtype.kind not in "iu"
    ):
        return None
    if site.node.op_type in _TIED_BIAS:
        return None
    by_channel = site.per_channel or (per_channel and may_be_by_channel(sides, site))
    axis = site.channel_axis if by_channel else None
    bounds = bounds_of(stored.dtype, symmetric=site.symmetric, used=stored)
    return requantize(real, stored.dtype, axis, symmetric=site.symmetric, bounds=bounds), by_channel


def may_be_by_channel(sides: Sides, site: WeightSite) -> bool:
    """Whether a matrix with one scale could have one for each output channel."""
    model = sides.quant
    users = [site.node, *model.consumers.get(site.node.output[0], ())]
    looked_up = any(node.op_type == "Gather" for node in users)
    shared = any(
        node.op_type != "Mul" and site.weight not in node.input
        for name in (site.scale, site.zero)
        for node in model.consumers.get(name or "", ())
    )
    return not (site.per_channel or looked_up or shared)


def _shaped(values: NDArray[Any], site: WeightSite, sides: Sides, by_channel: bool) -> Any:
    if site.node.op_type == "ConvInteger" and by_channel and values.dtype.kind == "f":
        return values.reshape(-1, *[1] * (len(sides.quant.shape(site.weight)) - 2))
    there = sides.quant.constant(site.scale)
    return (
        values.reshape(there.shape) if there is not None and there.size == values.size else values
    )


def fresh_ranges(sides: Sides, hooks: Sequence[Hook], sums: Mapping[str, HookSums]) -> Change:
    """Scales of activations from the range of the reference's own values."""
    constants: dict[str, NDArray[Any]] = {}
    for hook in hooks:
        for site in hook.rounded:
            if not _is_alone(sides, site.scale):
                continue
            fresh = _fresh_range(sides, site, sums)
            for name, value in ((site.scale, fresh.scale), (site.zero, fresh.zero)):
                there = None if name is None else sides.quant.constant(name)
                if name is not None and there is not None and there.size == 1:
                    constants[name] = value.reshape(there.shape)
    return Change(constants)


def _is_alone(sides: Sides, scale: str) -> bool:
    """Whether a scale belongs to activations alone, and not to a table or a kernel too."""
    for node in sides.quant.consumers.get(scale, ()):
        maker = sides.quant.producers.get(node.input[0])
        made = maker is not None and maker.op_type == "QuantizeLinear" and maker.input[1] == scale
        if node.op_type != "QuantizeLinear" and not (node.op_type == "DequantizeLinear" and made):
            return False
    return True


def _fresh_range(sides: Sides, site: ActivationSite, sums: Mapping[str, HookSums]) -> Requantized:
    at = sums[site.value]
    zero = None if site.zero is None else sides.quant.constant(site.zero)
    dtype = np.dtype(np.uint8) if zero is None else zero.dtype
    symmetric = zero is not None and dtype.kind == "i" and not zero.any()
    bounds = bounds_of(dtype, symmetric=symmetric)
    ends = np.array([at.low, at.high], np.float32)
    return requantize(ends, dtype, None, symmetric=symmetric, bounds=bounds)


def merged(*changes: Change) -> Change:
    """Several changes at once."""
    constants: dict[str, NDArray[Any]] = {}
    axes: dict[str, int] = {}
    for change in changes:
        constants.update(change.constants)
        axes.update(change.axes)
    return Change(constants, axes)


# -- explanations ---------------------------------------------------------------------------


def explain(
    sides: Sides,
    groups: Sequence[Sequence[Hook]],
    feeds: Sequence[Feeds],
    sums: Mapping[str, HookSums],
) -> dict[str, Explanation]:
    """Look closer at some hooks."""
    found = {hook.name: _of_weights(sides, hook, sums) for group in groups for hook in group}
    for group in groups:
        quantized = [hook for hook in group if hook.sites or hook.rounded]
        if quantized:
            _against_fresh(sides, quantized, feeds, sums, found)
    return found


def _of_weights(sides: Sides, hook: Hook, sums: Mapping[str, HookSums]) -> Explanation:
    found = Explanation(change=graph_change(sides, hook))
    outliers: list[OutlierChannel] = []
    for site in filter(None, [hook.site]):
        real, mine = hook.real(site), stored_weight(sides.quant, site)
        if real is None or mine is None:
            continue
        found.weight_error = relative_l2(real, mine)
        fresh = quantized_afresh(hook, site, sides)
        if fresh is not None:
            found.weight_expected = relative_l2(real, fresh[0].real)
        axes = {"output": site.channel_axis}
        if real.ndim == 2:
            axes["input"] = 1 - site.channel_axis
        for of, axis in axes.items():
            others = tuple(i for i in range(real.ndim) if i != axis)
            outliers += _stretching(of, np.abs(real).max(axis=others))
    for node in hook.nodes:
        real = hook.real_matrix() if node.op_type == "MatMulNBits" else None
        errors = None if real is None else block_errors(sides.quant, node, real)
        if errors is not None:
            found.weight_error, found.weight_expected = errors
    for name in hook.ends if hook.is_quantized else ():
        peaks = sums[name].peaks if name in sums else None
        if peaks is not None:
            outliers += _stretching("activation", peaks)
    outliers.sort(key=lambda o: -o.ratio)
    found.outliers = tuple(outliers[:_MOST_OUTLIERS])
    return found


def _stretching(of: Any, peaks: Array) -> list[OutlierChannel]:
    middle = float(np.median(peaks))
    if not middle > 0 or len(peaks) < 4:
        return []
    at = np.flatnonzero(peaks > STRETCHED * middle)
    return [OutlierChannel(of, int(c), float(peaks[c]) / middle) for c in at]


def _against_fresh(
    sides: Sides,
    group: Sequence[Hook],
    feeds: Sequence[Feeds],
    sums: Mapping[str, HookSums],
    found: dict[str, Explanation],
) -> None:
    change = merged(fresh_weights(sides, group), fresh_ranges(sides, group, sums))
    own = OwnRun(sides, group, change)
    errors = {hook.name: DifferenceSum() for hook in group}
    rounded = {(h.name, site): [0.0, 0.0, 0.0] for h in group for site in h.rounded}
    for fed in feeds:
        reference, local = own.run(fed)
        for hook in group:
            if hook.sites:
                _saturate(sides, hook, reference, found[hook.name])
            r, q = rows_of(hook, reference[hook.ref], local[hook.name])
            errors[hook.name].add(r, q, 0, len(r))
            for site in hook.rounded:
                x = reference[sides.grafts[site.value].ref].astype(np.float64)
                _round(sides, site, sums, x, rounded[hook.name, site])
    for hook in group:
        at = found[hook.name]
        changed = {name for s in hook.sites for name in (s.weight,)} <= change.constants.keys()
        at.expected = errors[hook.name].result().rel_l2 if changed else None
        seen = [site for site in hook.rounded if rounded[hook.name, site][2]]
        losses = {site: _relative(rounded[hook.name, site]) for site in seen}
        if losses:
            worst = max(losses, key=lambda site: losses[site][0])
            at.input_value = sides.grafts[worst.value].ref
            at.input_error, at.input_expected, _one = losses[worst]


def _saturate(
    sides: Sides, hook: Hook, reference: dict[str, NDArray[Any]], found: Explanation
) -> None:
    error = saturated_error(sides, hook, reference)
    if error is not None:
        found.saturated = max(error, found.saturated or 0.0)


def _relative(totals: Sequence[float]) -> list[float]:
    """Relative L2 of two squared errors, the squares of the values behind them."""
    return [math.sqrt(total / totals[2]) for total in totals]


def _round(
    sides: Sides,
    site: ActivationSite,
    sums: Mapping[str, HookSums],
    x: NDArray[np.float64],
    totals: list[float],
) -> None:
    """Add the squared error of stored scales, of fresh ones, and the squares of the values."""
    scale = sides.quant.constant(site.scale)
    zero = None if site.zero is None else sides.quant.constant(site.zero)
    fresh = _fresh_range(sides, site, sums)
    assert scale is not None
    offset = np.zeros((), np.uint8) if zero is None else zero
    for i, (step, z) in enumerate(((scale, offset), (fresh.scale, fresh.zero))):
        if step.size != 1:
            return
        info = np.iinfo(z.dtype)
        s, n = float(step.reshape(-1)[0]), int(np.asarray(z).reshape(-1)[0])
        back = (np.clip(np.round(x / s) + n, info.min, info.max) - n) * s
        totals[i] += float(np.square(back - x).sum())
    totals[2] += float(np.square(x).sum())
