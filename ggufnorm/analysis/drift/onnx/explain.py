"""Why an operation is off: what its scheme costs, its ranges, and what differs in the graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.onnx.hooks import ActivationSite, Hook, Sides
from ggufnorm.analysis.drift.onnx.measure import Feeds, HookSums, OwnRun, rows_of
from ggufnorm.core.metrics import DifferenceSum, relative_l2
from ggufnorm.core.onnx_drift import OutlierChannel
from ggufnorm.core.tolerances import FLOAT32_ROUNDING, SAME_EPSILON
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
_MOST_EPSILON = 0.1


@dataclass
class Explanation:
    """What was found of an operation; see :class:`~ggufnorm.core.onnx_drift.OnnxOperation`."""

    expected: float | None = None
    weight_error: float | None = None
    weight_expected: float | None = None
    input_value: str | None = None
    input_error: float | None = None
    input_expected: float | None = None
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
    for site in hook.sites:
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
            r, q = rows_of(hook, reference[hook.ref], local[hook.name])
            errors[hook.name].add(r, q, 0, len(r))
            for site in hook.rounded:
                x = reference[sides.grafts[site.value].ref].astype(np.float64)
                _round(sides, site, sums, x, rounded[hook.name, site])
    for hook in group:
        at = found[hook.name]
        changed = {name for s in hook.sites for name in (s.weight,)} <= change.constants.keys()
        at.expected = errors[hook.name].result().rel_l2 if changed else None
        totals = [(site.value, *rounded[hook.name, site]) for site in hook.rounded]
        seen = [t for t in totals if t[3]]
        if seen:
            name, error, fresh, energy = max(seen, key=lambda t: t[1] / t[3])
            at.input_value = sides.grafts[name].ref
            at.input_error, at.input_expected = (math.sqrt(t / energy) for t in (error, fresh))


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


# -- what differs in the graph ---------------------------------------------------------------


def graph_change(sides: Sides, hook: Hook) -> str:
    """Another attribute, another constant, or inputs in another order; empty for none."""
    found = [
        *_attributes(hook.nodes, hook.nodes_ref),
        *_epsilons(sides, hook),
        *([] if hook.is_quantized else _constants(sides, hook)),
        *_order(sides, hook),
    ]
    return "; ".join(dict.fromkeys(found))


def _attributes(nodes: Sequence[Any], nodes_ref: Sequence[Any]) -> Iterator[str]:
    for op in dict.fromkeys(n.op_type for n in nodes):
        mine, theirs = ([n for n in side if n.op_type == op] for side in (nodes, nodes_ref))
        if len(mine) != len(theirs):
            continue
        for a, b in zip(mine, theirs, strict=True):
            x, y = _plain(a), _plain(b)
            for name in sorted(x.keys() & y.keys()):
                if not _same(x[name], y[name]):
                    yield f"{name} of {op} is {_text(x[name])}, the reference's {_text(y[name])}"
            for name in sorted(x.keys() ^ y.keys()):
                values = (_text(side.get(name, "not given")) for side in (x, y))
                yield f"{name} of {op} is {next(values)}, the reference's {next(values)}"


def _plain(node: Any) -> dict[str, Any]:
    """Attributes that are numbers, lists of them or words."""
    found: dict[str, Any] = {}
    for a in node.attribute:
        if a.type == a.FLOAT:
            found[a.name] = float(a.f)
        elif a.type == a.INT:
            found[a.name] = int(a.i)
        elif a.type == a.STRING:
            found[a.name] = a.s.decode(errors="replace")
        elif a.type in (a.INTS, a.FLOATS):
            found[a.name] = tuple(a.ints or a.floats)
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=SAME_EPSILON)
    return bool(a == b)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _epsilons(sides: Sides, hook: Hook) -> Iterator[str]:
    """The epsilon of an operation beside that of another one, or beside a number that is added."""
    mine, theirs = (list(_stated_epsilons(nodes)) for nodes in (hook.nodes, hook.nodes_ref))
    if not theirs:
        theirs = [("Add", value) for value in _small_addends(sides, hook.nodes_ref)]
    if len(mine) != 1 or len(theirs) != 1 or mine[0][0] == theirs[0][0]:
        return
    if not math.isclose(mine[0][1], theirs[0][1], rel_tol=SAME_EPSILON):
        yield f"epsilon of {mine[0][0]} is {mine[0][1]:.3g}, the reference's {theirs[0][1]:.3g}"


def _stated_epsilons(nodes: Sequence[Any]) -> Iterator[tuple[str, float]]:
    for node in nodes:
        yield from ((node.op_type, a.f) for a in node.attribute if a.name == "epsilon")


def _small_addends(sides: Sides, nodes: Sequence[Any]) -> Iterator[float]:
    """Numbers that are added, small enough for an epsilon."""
    for node in nodes:
        for name in node.input if node.op_type == "Add" else ():
            value = sides.ref.constant(name)
            if value is not None and value.size == 1 and 0 < value.reshape(-1)[0] < _MOST_EPSILON:
                yield float(value.reshape(-1)[0])


def _constants(sides: Sides, hook: Hook) -> Iterator[str]:
    """Constants of the same name, or the same place, with other values."""
    mine = list(_read(sides.quant, hook.nodes))
    theirs = dict(_read(sides.ref, hook.nodes_ref))
    others = list(theirs.items())
    for i, (name, value) in enumerate(mine):
        expected = theirs.get(name)
        if expected is None and len(mine) == len(others):
            expected = others[i][1]
        if expected is None or expected.shape != value.shape or value.dtype.kind not in "fiu":
            continue
        error = relative_l2(expected.astype(np.float64), value.astype(np.float64))
        if error > FLOAT32_ROUNDING * (1 if value.dtype != np.float16 else 1e4):
            what = f"{name} is {value.reshape(-1)[0]:.4g}, the reference's"
            if value.size == 1:
                yield f"{what} {expected.reshape(-1)[0]:.4g}"
            else:
                yield f"{name} is off by {error:.3g} (relative L2)"


def _read(model: Any, nodes: Sequence[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    for node in nodes:
        for name in node.input:
            value = model.constant(name) if name else None
            if value is not None:
                yield name, value


def _order(sides: Sides, hook: Hook) -> Iterator[str]:
    if len(hook.nodes) != 1 or len(hook.nodes_ref) != 1:
        return
    mine = [sides.grafts[n].ref if n in sides.grafts else n for n in hook.nodes[0].input]
    theirs = list(hook.nodes_ref[0].input)
    if mine != theirs and sorted(mine) == sorted(theirs):
        yield f"{hook.nodes[0].op_type} takes its inputs in another order"
