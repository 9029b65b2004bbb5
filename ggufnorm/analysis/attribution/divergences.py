"""What an attribution measures, patch by patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufnorm.core.attribution import KldSum
from ggufnorm.core.metrics import DifferenceSum


@dataclass(frozen=True)
class Patch:
    """One run with changed values.

    Attributes:
        name: under which its divergences are kept.
        keys: of the hook points.
        restores: put the reference's values into the model under test, instead of adding
            the local errors of the model under test to the reference's values.
    """

    name: str
    keys: tuple[str, ...]
    restores: bool = False


FREE = Patch("", (), restores=True)
"""The model under test left alone."""


class Divergences:
    """All that was measured so far; see :class:`~ggufnorm.runs.loop.Keeps`.

    Attributes:
        n_chunks: over which everything is measured; None before that is planned.
        singles: tensors to be measured by themselves; None before that is planned.
        klds: divergences by the name of the patch.
        local: local errors by the key of the hook point.
    """

    def __init__(self) -> None:
        self.n_chunks: int | None = None
        self.singles: list[str] | None = None
        self.klds: dict[str, KldSum] = {FREE.name: KldSum()}
        self.local: dict[str, DifferenceSum] = {}

    def state(self) -> Any:
        """All of it, as plain data."""
        return {
            "n_chunks": self.n_chunks,
            "singles": self.singles,
            "klds": {
                name: {str(i): [p.tolist() for p in parts] for i, parts in total.chunks.items()}
                for name, total in self.klds.items()
            },
            "local": {key: total.state() for key, total in self.local.items()},
        }

    def restore(self, state: Any) -> None:
        """Go on from a state."""
        self.n_chunks, self.singles = state["n_chunks"], state["singles"]
        for name, chunks in state["klds"].items():
            total = self.klds[name] = KldSum()
            for i, parts in chunks.items():
                for part in parts:
                    total.add(int(i), np.array(part))
        self.local = {key: DifferenceSum.from_state(s) for key, s in state["local"].items()}
