"""What one lockstep walk leaves behind for the patched runs of the same chunk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.observe import Rows
from ggufnorm.core.metrics import DifferenceSum
from ggufnorm.engines.llama.graph import Stop
from ggufnorm.engines.llama.session import Batch

Array = NDArray[np.float32]


class Capture:
    """Observes the reference and the pinned lane (:data:`ggufnorm.engines.llama.walk.Observer`).

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

    def meet(self, stop: Stop, batch: Batch, values: Sequence[Array]) -> None:
        """The reference and the pinned lane at a stop."""
        reference, pinned = values
        if stop.key in self._inputs:
            self.restored[-1][stop.key] = reference.copy()
        total = self._local.get(stop.key)
        if total is not None:
            Rows.of(reference, batch).compare((total, Rows.of(pinned, batch)))
        if stop.key in self._outputs and not np.array_equal(reference, pinned):
            with np.errstate(invalid="ignore", over="ignore"):
                self.errors[-1][stop.key] = pinned - reference
