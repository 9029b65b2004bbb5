"""Sums of drift per hook point and per norm: how far the replicas are from the reference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ggufnorm.core.behind import Behind
from ggufnorm.core.metrics import ChannelSum, DifferenceSum, ExpertSum
from ggufnorm.core.model import Skipped
from ggufnorm.core.rows import Rows
from ggufnorm.engines.base import Activation, Batch, Graph, HookPoint
from ggufnorm.engines.llama.places import Readback
from ggufnorm.engines.llama.runner import is_operand, operand
from ggufnorm.engines.llama.sums import DeviceSums
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.probes.copied import copies_of
from ggufnorm.runs.probes.device import (
    Experts,
    Recomputed,
    Told,
    chosen_experts,
    is_elsewhere,
    sums_of,
)
from ggufnorm.runs.probes.hook_sums import (
    FLOOR,
    FREE,
    PINNED,
    REFERENCE,
    HookSum,
    NormSum,
    hook_from_state,
    hook_state,
)
from ggufnorm.runs.probes.norm_splits import NormSplits
from ggufnorm.runs.session import Probe

__all__ = ["FLOOR", "FREE", "PINNED", "REFERENCE", "DriftSums"]

_BY_CHANNEL = {"residual": FREE, "attention": PINNED}
"""Roles whose errors are wanted per channel, and of which replica."""

_FEW_PROCESSORS = 2
"""So many llama.cpp needs for itself: a thread beside its own costs it more than waiting."""

_OF_EXPERTS, _STACKED = "MUL_MAT_ID", 3
"""ggml's product with stacked experts, whose weight has a third dimension: the experts."""


class DriftSums(Probe):
    """Compares the replicas at every hook point, and splits the drift of norms.

    Of a side without a file (a trace) norms are not recomputed; with one such side nothing
    is split.

    Args:
        graphs: the reference's and the other side's, for each batch of a chunk.
        files: by side, REFERENCE and FREE; a side without one is left out.
        stride: compare one of so many tokens.
        half: compare in half precision, because a side holds no more.
        n_sides: replicas to look at, from the first on: with the pinned one or without.
        recompute_rows: tokens of each batch for which norms are recomputed where the values
            would have to be fetched from a device; None for all.
        beside: sum copies in a thread of its own while the replicas go on; otherwise they wait.

    Attributes:
        hooks: per hook point's key.
        norms: per norm's key, in graph order.
        skipped: norms that could not be recomputed or have no partner, and why.
    """

    def __init__(
        self,
        graphs: Sequence[tuple[Graph, Graph]],
        files: Mapping[int, ModelFile],
        *,
        stride: int = 1,
        half: bool = False,
        n_sides: int = FLOOR,
        recompute_rows: int | None = None,
        beside: bool = (os.cpu_count() or 1) > _FEW_PROCESSORS,
    ) -> None:
        self.hooks: dict[str, HookSum] = {}
        self.skipped: dict[str, Skipped] = {}
        self._stride, self._half = stride, half
        self._n_sides = n_sides
        self._behind = Behind() if beside else None
        self._readback = Readback()
        self._device = DeviceSums(self._readback)
        self._fetched: set[str] = set()
        self._lost: set[str] = set()
        recomputed = Recomputed(recompute_rows, self._readback)
        self._splits = NormSplits(files, recomputed, self._readback, self._skip)
        self.norms = self._splits.norms
        for reference, quant in graphs:
            self._splits.pair(reference, quant)

    def _skip(self, what: str, reason: str) -> None:
        self.skipped.setdefault(what, Skipped(what, reason))

    def observe(self, hook: HookPoint, batch: Batch, values: Sequence[Activation]) -> None:
        """All replicas at a hook point; one beyond the sides is not looked at."""
        self.hooks.setdefault(hook.key, HookSum())
        sides = list(values[: self._n_sides])
        if self._behind is None:
            self._observe(hook, batch, sides)
            return
        # Which expert made a row is read from the graph, while it is there.
        copies = None if hook.op == _OF_EXPERTS else copies_of(sides)
        if copies is None:
            self._behind.wait()
            self._observe(hook, batch, sides)
        else:
            n_bytes = sum(copy.value.nbytes for copy in copies)
            self._behind.do(partial(self._observe, hook, batch, copies), n_bytes)

    def _observe(self, hook: HookPoint, batch: Batch, values: Sequence[Activation]) -> None:
        if not self._add_where_they_lie(hook, batch, values):
            self.observe_again(hook, batch, values)
        self._splits.observe(hook, batch, values)

    def observe_again(self, hook: HookPoint, batch: Batch, values: Sequence[Activation]) -> None:
        """Sum the values here, fetched where they lie elsewhere."""
        rows = [value.rows(self._stride) for value in values[: self._n_sides]]
        self._add(hook, *(map(_in_half, rows) if self._half else rows))
        if hook.op == _OF_EXPERTS and len(rows) > PINNED:
            # Routing is the reference's in both, and one of them is a node of this process's.
            told = next(v for v in (values[REFERENCE], values[PINNED]) if is_operand(v))
            self._add_experts(hook, told, rows[REFERENCE], rows[PINNED])

    def settle(self) -> frozenset[str]:
        """Read the sums and the rows that devices keep.

        Returns:
            keys of hook points with rows that float32 does not sum: their values are fetched,
            these and all later ones.
        """
        if self._behind is not None:
            self._behind.wait()  # before anybody reads the sums
        self._readback.settle()
        lost = frozenset(self._lost)
        self._fetched |= lost
        self._lost.clear()
        return lost

    def _add_where_they_lie(
        self, hook: HookPoint, batch: Batch, values: Sequence[Activation]
    ) -> bool:
        """Add sums of values on a device; False where the values themselves are needed."""
        if hook.key in self._fetched or not all(map(is_elsewhere, values)):
            return False
        by_channel = _BY_CHANNEL.get(hook.role, REFERENCE)
        wanted = by_channel if REFERENCE < by_channel < len(values) else None
        experts = None
        if hook.op == _OF_EXPERTS and len(values) > PINNED:
            experts = chosen_experts(self._readback, operand(values[REFERENCE]))
            if experts is None:
                return False
        told = sums_of(self._device, batch, values, wanted)
        if told is None:
            return False
        self._readback.then(lambda: self._add_told(hook, told(), experts))
        return True

    def _add_told(self, hook: HookPoint, told: Told | None, experts: Experts | None) -> None:
        """What a device summed."""
        if told is None:
            self._lost.add(hook.key)
            return
        total = self.hooks[hook.key]
        sums = (total.free, total.pinned)
        for of_side, dots, d in zip(sums, told.dots, told.largest, strict=False):
            of_side.add_sums(dots, abs(d.value), d.row, d.channel, told.token)
        for peak, p in zip((total.peak_ref, total.peak), told.peaks, strict=True):
            peak.add_peak(p.value, told.token(p.row), p.channel)
        if told.channels is not None:
            total.channels = total.channels or ChannelSum(len(told.channels[0]))
            total.channels.add_sums(*told.channels)
        if experts is not None:
            n_experts, chosen = experts
            pinned, of_rows = told.dots[PINNED - 1], chosen()
            if n_experts > 1 and len(of_rows) == len(pinned.rr):
                total.experts = total.experts or ExpertSum(n_experts)
                total.experts.add_sums(of_rows, pinned.rr, pinned.dd)

    def _add(self, hook: HookPoint, reference: Rows, free: Rows, *pinned: Rows) -> None:
        """The values at a hook point beside the reference's."""
        total = self.hooks[hook.key]
        observed = [(total.free, free), *((total.pinned, rows) for rows in pinned)]
        peaks = (total.peak_ref, total.peak)
        reference.compare(*observed, peaks=peaks)
        if total.free.non_finite_rows and not total.bad_ref:
            total.bad_ref = not np.isfinite(reference.values).all()
        by_channel = {"residual": (free,), "attention": pinned}.get(hook.role, ())
        for rows in by_channel:
            if total.channels is None:
                total.channels = ChannelSum(rows.values.shape[1])
            total.channels.add(reference.values, rows.values)

    def _add_experts(self, hook: HookPoint, value: Activation, r: Rows, q: Rows) -> None:
        """Whose rows are off: routing is the reference's in the pinned run, too."""
        weight, _input, chosen = operand(value).product()
        if chosen is None or len(weight) < _STACKED or chosen.size != len(r.values):
            return
        total = self.hooks[hook.key]
        if total.experts is None:
            total.experts = ExpertSum(weight[_STACKED - 1])
        total.experts.add(chosen.ravel(), r.values, q.values)

    def state(self) -> dict[str, Any]:
        """All that was gathered, as plain data that JSON keeps exactly."""
        return {
            "hooks": {key: hook_state(total) for key, total in self.hooks.items()},
            "norms": {
                key: {part: getattr(norm, part).state() for part in NormSum.PARTS}
                for key, norm in self.norms.items()
            },
            "skipped": [[s.what, s.reason] for s in self.skipped.values()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state` of the same job."""
        self.hooks = {key: hook_from_state(data) for key, data in state["hooks"].items()}
        for key, parts in state["norms"].items():
            for part, data in parts.items():
                setattr(self.norms[key], part, DifferenceSum.from_state(data))
        for what, reason in state["skipped"]:
            self._skip(what, reason)


def _in_half(rows: Rows) -> Rows:
    """Rounded as a half-precision trace rounds; what is too large becomes the largest."""
    v, most = rows.values, np.finfo(np.float16).max
    fitting = np.where(np.isfinite(v), np.clip(v, -most, most), v)
    return replace(rows, values=fitting.astype(np.float16).astype(np.float32))
