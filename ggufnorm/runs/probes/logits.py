"""What drift does to the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ggufnorm.core.logits import LogitSum
from ggufnorm.engines.base import Batch, Runner
from ggufnorm.runs.session import Probe


class LogitSums(Probe):
    """Compares other replicas' logits with the reference's at the scored positions.

    Args:
        others: the numbers of the replicas to compare.
        stride: compare one of so many positions.

    Attributes:
        totals: one per replica compared.
    """

    def __init__(self, others: Sequence[int], stride: int = 1) -> None:
        self._others, self._stride = others, stride
        self.totals = [LogitSum() for _ in others]

    def end_batch(self, k: int, batch: Batch, runners: Sequence[Runner]) -> None:
        """Compare the logits of a batch with each other and with the tokens that follow."""
        positions = batch.scored(self._stride)
        if not positions or not all(runner.capabilities.logits for runner in runners[:2]):
            return
        following = batch.next_tokens(positions)
        reference = runners[0].logits(k, batch, positions)
        for total, i in zip(self.totals, self._others, strict=True):
            observed = runners[i].logits(k, batch, positions)
            total.add(reference, observed, following, positions.start, positions.step)

    def state(self) -> Any:
        """The sums, as plain data."""
        return [total.state() for total in self.totals]

    def restore(self, state: Any) -> None:
        """Go on from a state."""
        pairs = zip(self._others, state, strict=True)
        self.totals = [LogitSum.from_state(data) for _i, data in pairs]
