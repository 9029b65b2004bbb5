"""An importance matrix from the inputs that the matrix products see.

The definition is llama-imatrix's (``IMatrixCollector::collect_imatrix`` in
``tools/imatrix/imatrix.cpp``): products with a block's weight and 16 rows or more; every
token of a chunk counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.engines.base import Activation, Batch, HookPoint
from ggufnorm.engines.llama.runner import operand
from ggufnorm.formats.imatrix import Activations
from ggufnorm.runs.session import Probe

Array = NDArray[np.float64]

_FEWEST_ROWS = 16
"""llama-imatrix passes over smaller products."""


def is_product(hook: HookPoint) -> bool:
    """Whether a hook point is a matrix product with a weight of a block."""
    products = ("MUL_MAT", "MUL_MAT_ID")
    return hook.op in products and bool(hook.tensor and hook.tensor.startswith("blk."))


class ImportanceSums(Probe):
    """Sums of squares of the first replica's inputs, by weight."""

    def __init__(self) -> None:
        self._sums: dict[str, Array] = {}
        self._counts: dict[str, Array] = {}

    def observe(self, hook: HookPoint, batch: Batch, values: Sequence[Activation]) -> None:
        """Count in the inputs of a product."""
        if not is_product(hook):
            return
        assert hook.tensor
        shape, x, chosen = operand(values[0]).product()
        n = shape[2] if len(shape) > 2 else 1
        if chosen is None:
            self.add_rows(hook.tensor, x, n)
        else:
            self.add_experts(hook.tensor, x[0], chosen[0, 0], n)

    def add_rows(self, name: str, x: NDArray[np.float32], n: int) -> None:
        """Inputs of a product with ``n`` matrices.

        Args:
            name: of the weight.
            x: ``(ne[3], ne[2], rows, channels)``; the matrices take turns on the second.
            n: matrices.
        """
        if x.shape[2] < _FEWEST_ROWS:
            return
        squares = np.einsum("abrc,abrc->abc", x, x, dtype=np.float64)
        rows = x.shape[0] * x.shape[1] * x.shape[2] // n
        self._accumulate(name, squares.reshape(-1, n, x.shape[3]).sum(axis=0), np.full(1, rows))

    def add_experts(
        self, name: str, x: NDArray[np.float32], ids: NDArray[np.int32], n: int
    ) -> None:
        """Inputs of a product with those of ``n`` experts that were chosen for each token.

        Args:
            name: of the weight.
            x: ``(tokens, one or used, channels)``.
            ids: ``(tokens, used)``.
            n: experts.
        """
        sums, counts = np.zeros((n, x.shape[2])), np.zeros(n)
        for k in range(ids.shape[1]):
            np.add.at(sums, ids[:, k], x[:, k % x.shape[1]].astype(np.float64) ** 2)
            counts += np.bincount(ids[:, k], minlength=n)
        self._accumulate(name, sums, counts)

    def _accumulate(self, name: str, sums: Array, counts: NDArray[Any]) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + sums
        self._counts[name] = self._counts.get(name, 0.0) + counts

    def result(self) -> dict[str, Activations]:
        """What was seen of each weight."""
        return {
            name: Activations(sums.astype(np.float32), self._counts[name].astype(np.float32))
            for name, sums in self._sums.items()
        }

    def state(self) -> Any:
        """The sums, as plain data."""
        return {
            name: [sums.tolist(), self._counts[name].tolist()] for name, sums in self._sums.items()
        }

    def restore(self, state: Any) -> None:
        """Go on from a state."""
        for name, (sums, counts) in state.items():
            self._sums[name], self._counts[name] = np.array(sums), np.array(counts)
