"""What one lockstep of a chunk leaves behind for the patched runs of the same chunk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ggufnorm.core.metrics import DifferenceSum
from ggufnorm.engines.base import Activation, Array, Batch, HookPoint, Runner
from ggufnorm.runs.session import Probe


class PatchValues(Probe):
    """Watches the reference and the pinned replica.

    Args:
        local: sums of local errors by hook point, to be fed.
        outputs: keys of the hook points whose local errors are kept.
        inputs: keys of the hook points whose reference values are kept.

    Attributes:
        errors: for each batch, what the tensors under test make of the reference's inputs,
            less what the reference makes of them; only where that is not zero.
        restored: for each batch, the reference's values.
        logits: for each batch, the reference's where a token follows, ``(positions, vocabulary)``.
    """

    def __init__(
        self,
        local: Mapping[str, DifferenceSum],
        outputs: Collection[str],
        inputs: Collection[str],
    ) -> None:
        self._local, self._outputs, self._inputs = local, outputs, inputs
        self.errors: list[dict[str, Array]] = []
        self.restored: list[dict[str, Array]] = []
        self.logits: list[Array] = []

    def begin_batch(self, k: int, batch: Batch) -> None:
        """Values that follow are of the chunk's k-th batch."""
        self.errors.append({})
        self.restored.append({})

    def observe(self, hook: HookPoint, batch: Batch, values: Sequence[Activation]) -> None:
        """The reference and the pinned replica at a hook point."""
        reference, pinned = (value.value for value in values)
        if hook.key in self._inputs:
            self.restored[-1][hook.key] = reference.copy()
        total = self._local.get(hook.key)
        if total is not None:
            values[0].rows().compare((total, values[1].rows()))
        if hook.key in self._outputs and not np.array_equal(reference, pinned):
            with np.errstate(invalid="ignore", over="ignore"):
                self.errors[-1][hook.key] = pinned - reference

    def end_batch(self, k: int, batch: Batch, runners: Sequence[Runner]) -> None:
        """Keep the reference's logits."""
        positions = batch.scored()
        empty = np.empty((0, 0), np.float32)
        self.logits.append(runners[0].logits(k, batch, positions).copy() if positions else empty)
