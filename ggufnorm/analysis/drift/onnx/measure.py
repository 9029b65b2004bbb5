"""What each operation of the graph under test makes of the reference's input.

All hooks cannot be held at once, so they are taken in groups, each of which the runs go through
again: the reference and the graph under test up to the group's hooks, and the operations between
hooks, fed with the reference's values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.onnx.hooks import Hook, Sides
from ggufnorm.core.floats import F16_MAX
from ggufnorm.core.metrics import ChannelSum, DifferenceSum
from ggufnorm.engines.onnx.cut import (
    DELTA,
    FED,
    NO_CHANGE,
    Change,
    Session,
    as_type,
    cut,
    patchable,
    whole,
    zero,
)

Array = NDArray[np.float32]
Feeds = tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]
"""Inputs of the reference, and of the graph under test."""

HELD_BYTES = 1 << 28
"""Activations that are held at once."""
_COPIES = 4
"""Of a hook: the reference's, its own, the free run's, and one on the way."""
_MASK = -9e3
"""Where both sides are below, they mask: exporters write anything from -10,000 to -infinity."""
_CHANNELS_FIRST = ("Conv", "ConvTranspose", "FusedConv", "QLinearConv", "ConvInteger")


@dataclass
class HookSums:
    """What was gathered at a hook.

    Attributes:
        local: own error.
        cumulative: error in the free run.
        channels: own error by channel, None before the first run.
        low: smallest value of the reference.
        high: largest value of the reference.
        peaks: largest magnitude by channel of the reference.
    """

    local: DifferenceSum = field(default_factory=DifferenceSum)
    cumulative: DifferenceSum = field(default_factory=DifferenceSum)
    channels: ChannelSum | None = None
    low: float = 0.0
    high: float = 0.0
    peaks: Array | None = None


def groups_of(hooks: Sequence[Hook], sides: Sides, held: int = HELD_BYTES) -> list[list[Hook]]:
    """Hooks in order, as many together as may be held."""
    found: list[list[Hook]] = [[]]
    size = 0
    for hook in hooks:
        needed = _bytes(sides, [hook.name]) * (_COPIES - 1) + _bytes(sides, hook.ends)
        if found[-1] and size + needed > held:
            found.append([])
            size = 0
        found[-1].append(hook)
        size += needed
    return found


def _bytes(sides: Sides, names: Sequence[str]) -> int:
    return sum(4 * int(np.prod(sides.shapes[name], dtype=np.int64)) for name in names)


class OwnRun:
    """The operations of a group of hooks, each on the reference's input.

    Args:
        sides: both graphs.
        group: the hooks.
        change: other constants in the graph under test.
    """

    def __init__(self, sides: Sides, group: Sequence[Hook], change: Change = NO_CHANGE) -> None:
        self._sides, self._group = sides, group
        self._ends = list(dict.fromkeys(name for hook in group for name in hook.ends))
        stops = {name: sides.grafts[name].kind for name in sides.grafts}
        names = [hook.name for hook in group]
        self._session = Session(
            cut(sides.quant, names, stops, change), sides.quant, sides.n_threads
        )
        wanted = [hook.ref for hook in group] + [sides.grafts[name].ref for name in self._ends]
        proto = cut(sides.ref, list(dict.fromkeys(wanted)), {})
        self._ref = Session(proto, sides.ref, sides.n_threads)

    def run(self, feeds: Feeds) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """The reference's values by their names, and the results by the hooks'."""
        reference = self._ref.run(feeds[0])
        given = {
            FED + name: self._sides.viewed(name, _fitting(reference[graft.ref], graft.kind))
            for name in self._ends
            for graft in [self._sides.grafts[name]]
        }
        return reference, self._session.run({**feeds[1], **given})


def _fitting(value: NDArray[Any], kind: int) -> NDArray[Any]:
    """A value in another type, which a larger one does not overflow."""
    return as_type(np.clip(value, -F16_MAX, F16_MAX) if kind == 10 else value, kind)


def sweep(
    sides: Sides, groups: Sequence[Sequence[Hook]], feeds: Sequence[Feeds]
) -> Iterator[Mapping[str, HookSums]]:
    """Own and cumulative errors, group by group."""
    for group in groups:
        sums = {hook.name: HookSums() for hook in group}
        own = OwnRun(sides, group)
        free = Session(cut(sides.quant, list(sums), {}), sides.quant, sides.n_threads)
        for number, fed in enumerate(feeds):
            reference, local = own.run(fed)
            running = free.run(fed[1])
            for hook in group:
                values = reference[hook.ref], local[hook.name], running[hook.name]
                _add(sums[hook.name], hook, number, *values)
        yield sums


def _add(
    sums: HookSums,
    hook: Hook,
    number: int,
    reference: NDArray[Any],
    local: NDArray[Any],
    running: NDArray[Any],
) -> None:
    if not reference.size:
        return
    r, q = rows_of(hook, reference, local)
    first = number * len(r)
    sums.local.add(r, q, first, len(r))
    if sums.channels is None:
        sums.channels = ChannelSum(r.shape[1])
        sums.peaks = np.zeros(r.shape[1], np.float32)
    if len(sums.channels.error) == r.shape[1]:
        sums.channels.add(r, q)
        assert sums.peaks is not None
        np.maximum(sums.peaks, np.nan_to_num(np.abs(r)).max(axis=0), out=sums.peaks)
    finite = reference[np.isfinite(reference)]
    if finite.size:
        sums.low, sums.high = min(sums.low, finite.min()), max(sums.high, finite.max())
    r, q = rows_of(hook, reference, running)
    sums.cumulative.add(r, q, first, len(r))


def rows_of(hook: Hook, reference: NDArray[Any], observed: NDArray[Any]) -> tuple[Array, Array]:
    """Both as ``(rows, channels)``, zero where both mask."""
    r: Array = np.asarray(reference, np.float32)
    q: Array = np.asarray(observed, np.float32).reshape(r.shape)
    if hook.op in _CHANNELS_FIRST and r.ndim > 2:
        r, q = (np.moveaxis(v, 1, -1) for v in (r, q))
    channels = r.shape[-1] if r.ndim else 1
    r, q = (np.ascontiguousarray(v).reshape(-1, channels) for v in (r, q))
    both = (r <= _MASK) & (q <= _MASK)
    if both.any():
        r, q = (np.where(both, np.float32(0), v) for v in (r, q))
    return r, q


# -- outputs ----------------------------------------------------------------------------------


class Outputs:
    """The reference's float outputs, and how far others are from them.

    Args:
        sides: both graphs.
        feeds: of all runs.
    """

    def __init__(self, sides: Sides, feeds: Sequence[Feeds]) -> None:
        self._feeds = feeds
        session = Session(whole(sides.ref), sides.ref, sides.n_threads)
        self._expected = [_floats(session.run(fed[0])) for fed in feeds]
        self.names = {
            name: other
            for name, other in sides.pairing.outputs.items()
            if other in self._expected[0]
        }

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an output by the name in the graph under test."""
        return tuple(self._expected[0][self.names[name]].shape)

    def of(self, session: Session) -> dict[str, DifferenceSum]:
        """Errors of the graph under test, by its names."""
        found: dict[str, DifferenceSum] = {}
        for number, fed in enumerate(self._feeds):
            observed = session.run(fed[1])
            for name, other in self.names.items():
                self._compare(found, name, number, other, observed[name])
        return found

    def of_patched(
        self, session: Session, name: str, number: int, feeds: Mapping[str, NDArray[Any]]
    ) -> DifferenceSum:
        """Error of one output of the reference itself, fed with something else."""
        found: dict[str, DifferenceSum] = {}
        other = self.names[name]
        self._compare(found, name, number, other, session.run(feeds, [other])[other])
        return found[name]

    def _compare(
        self,
        found: dict[str, DifferenceSum],
        name: str,
        number: int,
        other: str,
        observed: NDArray[Any],
    ) -> None:
        expected = self._expected[number][other]
        total = found.setdefault(name, DifferenceSum())
        if observed.shape == expected.shape and expected.size:
            channels = expected.shape[-1] if expected.ndim else 1
            r, q = (np.asarray(v, np.float32).reshape(-1, channels) for v in (expected, observed))
            total.add(r, q, number * len(r), len(r))


def _floats(values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: value for name, value in values.items() if value.dtype.kind == "f"}


# -- shares -----------------------------------------------------------------------------------


def shares(
    sides: Sides,
    groups: Sequence[Sequence[Hook]],
    feeds: Sequence[Feeds],
    outputs: Outputs,
    main: str,
) -> Mapping[str, float]:
    """Squared relative L2 error of an output of the reference with one hook's own error in it.

    The reference runs with what the operation under test makes of the reference's own input:
    what that alone costs.
    """
    hooks = [hook for group in groups for hook in group]
    kinds = {hook.ref: hook.kind_ref for hook in hooks}
    patched = Session(patchable(sides.ref, kinds), sides.ref, sides.n_threads)
    still = {DELTA + name: zero(kind) for name, kind in kinds.items()}
    found = {hook.name: DifferenceSum() for hook in hooks}
    for group in groups:
        own = OwnRun(sides, group)
        for number, fed in enumerate(feeds):
            reference, local = own.run(fed)
            for hook in group:
                there = reference[hook.ref]
                delta = _delta(there, local[hook.name].reshape(there.shape))
                if delta is not None:
                    given = {**fed[0], **still, DELTA + hook.ref: as_type(delta, hook.kind_ref)}
                    one = outputs.of_patched(patched, main, number, given)
                    found[hook.name].merge(one)
    return {
        name: total.squared_error / total.squared_reference
        for name, total in found.items()
        if total.squared_reference
    }


def _delta(reference: NDArray[Any], local: NDArray[Any]) -> NDArray[Any] | None:
    """What is to be added to the reference's; None where a result is not finite."""
    r, q = reference.astype(np.float64), local.astype(np.float64)
    with np.errstate(invalid="ignore"):
        delta = np.where((r <= _MASK) & (q <= _MASK), 0.0, q - r)
    return delta if np.isfinite(delta).all() else None
