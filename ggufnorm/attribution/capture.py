"""What one lockstep walk leaves behind for the patched runs of the same chunk."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from ggufnorm.comparison.observe import Rows
from ggufnorm.core.metrics import DifferenceSum
from ggufnorm.engines.llama.graph import Stop
from ggufnorm.engines.llama.session import Batch

Array = NDArray[np.float32]


class Capture:
    """Observes the reference and the pinned lane (:class:`ggufnorm.engines.llama.walk.Observer`).

    Args:
        local: sums of local errors by stop, to be fed.
        outputs: keys of the stops whose local errors are kept.
        inputs: keys of the stops whose reference values are kept.

    Attributes:
        errors: for each batch, what the tensors under test make of the reference's inputs,
            less what the reference makes of them; only where that is not zero.
        restored: for each batch, the reference's values.
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

    def begin_batch(self) -> None:
        """What follows is the chunk's next batch."""
        self.errors.append({})
        self.restored.append({})

    def reference(self, stop: Stop, _batch: Batch, value: Array) -> None:
        """The reference's value at a stop."""
        if stop.key in self._inputs:
            self.restored[-1][stop.key] = value.copy()

    def compare(self, stop: Stop, _lane: int, batch: Batch, reference: Array, value: Array) -> None:
        """The pinned lane's value at the same stop."""
        total = self._local.get(stop.key)
        if total is not None:
            Rows.of(reference, batch).compare(total, Rows.of(value, batch))
        if stop.key in self._outputs and not np.array_equal(reference, value):
            with np.errstate(invalid="ignore", over="ignore"):
                self.errors[-1][stop.key] = value - reference
