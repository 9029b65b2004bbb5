"""A value as rows of tokens: which rows belong to which token of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.metrics import DifferenceSum, PeakSum, compare
from ggufnorm.core.trace import every

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """A value as ``(rows, channels)``, and which tokens its rows belong to.

    Attributes:
        values: with the rows of one token side by side.
        first_token: counted from 0 over the whole run.
        n_tokens: that the rows are shared out to evenly.
        stride: from the number of one token to that of the next.
    """

    values: Array
    first_token: int
    n_tokens: int
    stride: int = 1

    @property
    def place(self) -> tuple[int, int, int]:
        """How the sums number the tokens."""
        return self.first_token, self.n_tokens, self.stride

    def compare(
        self,
        *observed: tuple[DifferenceSum, Rows],
        peaks: Sequence[PeakSum] = (),
    ) -> None:
        """Add the distances of other rows of the same tokens to sums; see :func:`compare`."""
        others = [(total, rows.values) for total, rows in observed]
        compare(self.values, others, *self.place, peaks)

    def subsample(self, chunk_start: int, stride: int) -> Rows:
        """The rows of the tokens ``t`` of a chunk with ``(t + 1) % stride == 0``.

        Args:
            chunk_start: number of the chunk's first token in the whole run.
            stride: keep one of so many tokens; a value of one token only is kept.
        """
        if stride == 1:
            return self
        first = self.first_token - chunk_start
        keep = every(first, self.n_tokens, stride if self.n_tokens > 1 else 1)
        by_token = self.values.reshape(self.n_tokens, -1, self.values.shape[-1])
        chosen = by_token[keep.start - first :: keep.step]
        values = np.ascontiguousarray(chosen).reshape(-1, self.values.shape[-1])
        return Rows(values, chunk_start + keep.start, len(keep), keep.step)
