"""Norms once more in NumPy, and their drift in parts: by input, by weight, by epsilon."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import numpy as np

from ggufnorm.core.rows import Rows
from ggufnorm.engines.base import Activation, Array, Batch, Graph, HookPoint, NormPlan
from ggufnorm.engines.llama.places import Readback
from ggufnorm.errors import InputError
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.probes.copied import Copied
from ggufnorm.runs.probes.device import Kept, Recomputed, kept_rows
from ggufnorm.runs.probes.hook_sums import FREE, REFERENCE, NormSum
from ggufnorm.runs.recompute import Pool, WeightCache, recompute


class NormSplits:
    """Recomputes the norms of both sides, and splits their drift.

    Args:
        files: by side; a side without one is left out.
        recomputed: chooses the rows.
        readback: reads those that lie on devices.
        skip: is told ``(what, reason)`` of a norm that is left out.

    Attributes:
        norms: the sums per norm's key, in graph order.
    """

    def __init__(
        self,
        files: Mapping[int, ModelFile],
        recomputed: Recomputed,
        readback: Readback,
        skip: Callable[[str, str], None],
    ) -> None:
        self.norms: dict[str, NormSum] = {}
        self._weights = {side: WeightCache(file) for side, file in files.items()}
        self._inputs: dict[int, dict[str, Kept]] = {REFERENCE: {}, FREE: {}}
        self._recomputed, self._readback = recomputed, readback
        self._pool = Pool()
        self._made: list[Array] = []
        self._copies: dict[tuple[int, str], Array] = {}
        self._read_later: set[str] = set()
        self._skip = skip

    def pair(self, reference: Graph, quant: Graph) -> None:
        """Take in the norms that both graphs of a batch have."""
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
        """All sides at a hook point that may be a norm's input or result."""
        if (plan := self._plan_of_input.get(hook.key)) is not None:
            for side in self._weights:
                kept = self._recomputed.keep(plan, values[side])
                is_copy = isinstance(values[side], Copied)
                self._inputs[side][hook.key] = kept if is_copy else self._held(side, hook.key, kept)
            if self._recomputed.left_out:
                self._skip("rows of norms", self._recomputed.left_out)
        for norm in self._by_output.get(hook.key, ()):
            if self._weights:
                self._split_now_or_later(norm, batch, values)
            if self._last_use[norm.input_key] == hook.key:
                self._forget(norm.input_key)

    def _held(self, side: int, key: str, kept: Kept) -> Kept:
        """An input for longer than its value is good."""

        def copy(array: Array) -> Array:
            self._copies[side, key] = self._pool.copy(array)
            return self._copies[side, key]

        return kept.held(copy)

    def _forget(self, key: str) -> None:
        """No other norm takes this input."""
        for side, held in self._inputs.items():
            held.pop(key, None)
            copy = self._copies.pop((side, key), None)
            if copy is not None and key not in self._read_later:
                self._pool.give_back(copy)
        self._read_later.discard(key)

    def _expect(
        self,
        norm: NormSum,
        batch: Batch,
        shape: tuple[int, ...],
        part: range | None,
        inputs: Mapping[int, Kept],
        *,
        x: int,
        plan: int,
        weights: int,
    ) -> Rows | None:
        """What NumPy makes of a norm, given the sides of its input, epsilon and weights."""
        if x not in inputs or weights not in self._weights:
            return None
        chosen = norm.ref_plan if plan == REFERENCE else norm.plan
        try:
            x_part, of_file = inputs[x].cut(part), self._weights[weights]
            self._made.append(self._pool.take(shape))
            found = recompute(chosen, x_part, shape, of_file, self._made[-1])
            return kept_rows(found, part, batch)
        except (InputError, KeyError, ValueError) as error:
            self._skip(f"recompute of {chosen.key}", str(error))
            return None

    def _split_now_or_later(
        self, norm: NormSum, batch: Batch, values: Sequence[Activation]
    ) -> None:
        """Compare a norm with its recompute as soon as both can be read."""
        at = norm.input_key
        inputs = {side: held[at] for side, held in self._inputs.items() if at in held}
        kept = {side: self._recomputed.keep(norm.plan, values[side]) for side in self._weights}
        if not any(k.is_away for k in (*inputs.values(), *kept.values())):
            self._split(norm, batch, inputs, kept)
            return
        kept = {side: k.held() for side, k in kept.items()}
        self._read_later.add(at)
        self._readback.then(lambda: self._split(norm, batch, inputs, kept))

    def _split(
        self, norm: NormSum, batch: Batch, inputs: Mapping[int, Kept], kept: Mapping[int, Kept]
    ) -> None:
        """Add to a norm's kernel residuals and to the parts of its drift."""
        try:
            self._compare_parts(norm, batch, inputs, kept)
        finally:
            for array in self._made:
                self._pool.give_back(array)
            self._made.clear()

    def _compare_parts(
        self, norm: NormSum, batch: Batch, inputs: Mapping[int, Kept], kept: Mapping[int, Kept]
    ) -> None:
        # Input and result may lie on two devices.
        part = next((k.part for k in (*inputs.values(), *kept.values()) if k.part), None)
        results = {side: k.cut(part) for side, k in kept.items()}
        shape = next(iter(results.values())).shape
        expect = partial(self._expect, norm, batch, shape, part, inputs)
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
