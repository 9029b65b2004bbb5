"""Sums of drift per hook point and per norm: how far the replicas are from the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from ggufnorm.core.behind import Behind
from ggufnorm.core.metrics import ChannelSum, DifferenceSum, ExpertSum
from ggufnorm.core.model import Skipped
from ggufnorm.core.rows import Rows
from ggufnorm.engines.base import Activation, Batch, Graph, HookPoint, NormPlan, Runner
from ggufnorm.engines.llama.runner import is_operand, operand
from ggufnorm.engines.llama.sums import DeviceSums
from ggufnorm.errors import InputError
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.probes.copied import Copied, copies_of
from ggufnorm.runs.probes.device import Kept, Recomputed, is_elsewhere, kept_rows, sums_of
from ggufnorm.runs.probes.hook_sums import HookSum, NormSum, hook_from_state, hook_state
from ggufnorm.runs.recompute import WeightCache, recompute
from ggufnorm.runs.session import Probe

REFERENCE, FREE, PINNED, FLOOR = 0, 1, 2, 3
"""The replicas of a drift run; the last is the reference again, if its own noise is asked for.
The first two are its sides. Without a pinned replica the last stands in that one's place."""

_BY_CHANNEL = {"residual": FREE, "attention": PINNED}
"""Roles whose errors are wanted per channel, and of which replica."""

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
        n_threads: of graphs that sum values which do not lie in this computer's memory.
        recompute_rows: tokens of each batch for which norms are recomputed where the values
            would have to be fetched from a device; None for all.

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
        n_threads: int = 1,
        recompute_rows: int | None = None,
    ) -> None:
        self.hooks: dict[str, HookSum] = {}
        self.norms: dict[str, NormSum] = {}
        self.skipped: dict[str, Skipped] = {}
        self._stride, self._half = stride, half
        self._n_sides = n_sides
        self._weights = {side: WeightCache(file) for side, file in files.items()}
        self._inputs: dict[int, dict[str, Kept]] = {REFERENCE: {}, FREE: {}}
        self._recomputed = Recomputed(recompute_rows)
        self._device = DeviceSums(n_threads)
        self._behind = Behind()
        for reference, quant in graphs:
            self._pair_norms(reference, quant)

    def _pair_norms(self, reference: Graph, quant: Graph) -> None:
        theirs = {n.key: n for n in quant.norms}
        for ref_plan in reference.norms:
            plan = theirs.pop(ref_plan.key, None)
            if plan is None:
                self._skip(ref_plan.key, "the other model's graph has no such norm")
                continue
            into, out = (reference.nodes[i].key for i in (ref_plan.input, ref_plan.output))
            self.norms.setdefault(ref_plan.key, NormSum(plan, ref_plan, into, out))
        for key in theirs:
            self._skip(key, "the reference's graph has no such norm")

    def _skip(self, what: str, reason: str) -> None:
        self.skipped.setdefault(what, Skipped(what, reason))

    @cached_property
    def _by_output(self) -> dict[str, list[NormSum]]:
        found: dict[str, list[NormSum]] = {}
        for norm in self.norms.values():
            found.setdefault(norm.output_key, []).append(norm)
        return found

    @cached_property
    def _plan_of_input(self) -> dict[str, NormPlan]:
        """For each norm input's key, the plan of a norm that takes it."""
        return {norm.input_key: norm.ref_plan for norm in self.norms.values()}

    @cached_property
    def _last_use(self) -> dict[str, str]:
        """For each norm input's key, the output's key of the last norm that takes it."""
        return {norm.input_key: norm.output_key for norm in self.norms.values()}

    def observe(self, hook: HookPoint, batch: Batch, values: Sequence[Activation]) -> None:
        """All replicas at a hook point; one beyond the sides is not looked at."""
        sides = list(values[: self._n_sides])
        # Which expert made a row is read from the graph, while it is there.
        copies = None if hook.op == _OF_EXPERTS else copies_of(sides)
        if copies is None:
            self._behind.wait()
            self._observe(hook, batch, sides)
        else:
            n_bytes = sum(copy.value.nbytes for copy in copies)
            self._behind.do(partial(self._observe, hook, batch, copies), n_bytes)

    def end_batch(self, k: int, batch: Batch, runners: Sequence[Runner]) -> None:
        """All of the batch is summed before anybody reads the sums."""
        self._behind.wait()

    def _observe(self, hook: HookPoint, batch: Batch, values: Sequence[Activation]) -> None:
        if not self._add_where_they_lie(hook, batch, values):
            rows = [value.rows(self._stride) for value in values]
            self._add(hook, *(map(_in_half, rows) if self._half else rows))
            if hook.op == _OF_EXPERTS and len(rows) > PINNED:
                # Routing is the reference's in both, and one of them is a node of this process's.
                told = next(v for v in (values[REFERENCE], values[PINNED]) if is_operand(v))
                self._add_experts(hook, told, rows[REFERENCE], rows[PINNED])
        if (plan := self._plan_of_input.get(hook.key)) is not None:
            for side in self._weights:
                kept = self._recomputed.keep(plan, values[side])
                if not isinstance(values[side], Copied):
                    kept = replace(kept, array=kept.array.copy())
                self._inputs[side][hook.key] = kept
            if self._recomputed.left_out:
                self._skip("rows of norms", self._recomputed.left_out)
        for norm in self._by_output.get(hook.key, ()):
            if self._weights:
                self._split(norm, batch, values)
            if self._last_use[norm.input_key] == hook.key:
                for held in self._inputs.values():
                    held.pop(norm.input_key, None)

    def _add_where_they_lie(
        self, hook: HookPoint, batch: Batch, values: Sequence[Activation]
    ) -> bool:
        """Add sums of values on a device; False where the values themselves are needed."""
        if hook.op == _OF_EXPERTS or not all(map(is_elsewhere, values)):
            return False
        by_channel = _BY_CHANNEL.get(hook.role, REFERENCE)
        wanted = by_channel if REFERENCE < by_channel < len(values) else None
        told = sums_of(self._device, batch, values, wanted)
        if told is None:
            return False
        total = self.hooks.setdefault(hook.key, HookSum())
        sums = (total.free, total.pinned)
        for of_side, dots, d in zip(sums, told.dots, told.largest, strict=False):
            of_side.add_sums(dots, abs(d.value), d.row, d.channel, told.token)
        for peak, p in zip((total.peak_ref, total.peak), told.peaks, strict=True):
            peak.add_peak(p.value, told.token(p.row), p.channel)
        if told.channels is not None:
            total.channels = total.channels or ChannelSum(len(told.channels[0]))
            total.channels.add_sums(*told.channels)
        return True

    def _add(self, hook: HookPoint, reference: Rows, free: Rows, *pinned: Rows) -> None:
        """The values at a hook point beside the reference's."""
        total = self.hooks.setdefault(hook.key, HookSum())
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

    def _expect(
        self,
        norm: NormSum,
        batch: Batch,
        shape: tuple[int, ...],
        part: range | None,
        *,
        x: int,
        plan: int,
        weights: int,
    ) -> Rows | None:
        """What NumPy makes of a norm, given the sides of its input, epsilon and weights."""
        held = self._inputs[x].get(norm.input_key)
        if held is None or weights not in self._weights:
            return None
        chosen = norm.ref_plan if plan == REFERENCE else norm.plan
        try:
            x_part, of_file = held.cut(part), self._weights[weights]
            found = recompute(chosen, x_part, shape, of_file)
            return kept_rows(found, part, batch)
        except (InputError, KeyError, ValueError) as error:
            self._skip(f"recompute of {chosen.key}", str(error))
            return None

    def _split(self, norm: NormSum, batch: Batch, values: Sequence[Activation]) -> None:
        """Add to a norm's kernel residuals and to the parts of its drift."""
        kept = {side: self._recomputed.keep(norm.plan, values[side]) for side in self._weights}
        inputs = [held[norm.input_key] for held in self._inputs.values() if norm.input_key in held]
        # Input and result may lie on two devices.
        part = next((k.part for k in (*inputs, *kept.values()) if k.part), None)
        results = {side: k.cut(part) for side, k in kept.items()}
        shape = next(iter(results.values())).shape
        expect = partial(self._expect, norm, batch, shape, part)
        rows = {side: kept_rows(result, part, batch) for side, result in results.items()}
        base = expect(x=REFERENCE, plan=REFERENCE, weights=REFERENCE)
        free = expect(x=FREE, plan=FREE, weights=FREE)
        if free is not None:
            free.compare((norm.kernel, rows[FREE]))
        if base is None:
            return
        observed = [(norm.kernel_ref, rows[REFERENCE])]
        if free is not None:
            same_weight = self._same_weight(norm)
            same_epsilon = norm.plan.epsilon == norm.ref_plan.epsilon
            parts = {
                "input": free
                if same_weight and same_epsilon
                else expect(x=FREE, plan=REFERENCE, weights=REFERENCE),
                "weight": base
                if same_weight
                else expect(x=REFERENCE, plan=REFERENCE, weights=FREE),
                "epsilon": base
                if same_epsilon
                else expect(x=REFERENCE, plan=FREE, weights=REFERENCE),
            }
            observed += [(getattr(norm, part), rows or base) for part, rows in parts.items()]
        base.compare(*observed)

    def _same_weight(self, norm: NormSum) -> bool:
        names = [n for n in (norm.plan.weight, norm.plan.bias) if n]
        ref, quant = self._weights[REFERENCE], self._weights[FREE]
        return all(np.array_equal(ref.get(n), quant.get(n)) for n in names)

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
