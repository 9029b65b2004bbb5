"""Values that outlast the callback that showed them."""

from __future__ import annotations

from dataclasses import dataclass

from ggufnorm.core.rows import Rows
from ggufnorm.engines.base import Activation, Array, Batch, rows_of
from ggufnorm.engines.llama.runner import LlamaActivation


@dataclass(frozen=True)
class Copied:
    """An activation's copy; see :class:`~ggufnorm.engines.base.Activation`.

    Attributes:
        value: whole, ``(ne[3], ne[2], ne[1], ne[0])``.
        batch: that gave it.
    """

    value: Array
    batch: Batch

    @classmethod
    def of(cls, value: LlamaActivation) -> Copied:
        """Copy a value of llama.cpp's that lies in this computer's memory."""
        return cls(value.value.copy(), value.batch)

    def rows(self, stride: int = 1) -> Rows:
        """Its rows, of every ``stride``-th token."""
        return rows_of(self.value, self.batch).subsample(self.batch.chunk_start, stride)

    def replace(self, values: Array) -> None:
        """Nobody goes on with a copy.

        Raises:
            TypeError: always.
        """
        raise TypeError("a copy is not part of a run")


def copies_of(values: list[Activation]) -> list[Copied] | None:
    """Copies of all, or None where some are no values of llama.cpp's in this computer's memory."""
    here = [v for v in values if isinstance(v, LlamaActivation) and v.is_here]
    return [Copied.of(v) for v in here] if len(here) == len(values) else None
