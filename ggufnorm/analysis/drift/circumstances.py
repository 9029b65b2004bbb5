"""One file in two engines once more: in smaller batches, and with each operation by itself.

Kernels are chosen by the size of a batch: what reads a prompt is not what generates tokens. And
they are fused, as far as nobody watches what is between. So the first tokens are run again in
other ways, by the replicas that are loaded already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ggufnorm.analysis.drift import assemble
from ggufnorm.analysis.drift.replicas import Loaded, share_graphs
from ggufnorm.core.drift import OperationDrift
from ggufnorm.engines.base import Array, Batch, Graph, Runner, Tokens
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.lockstep import Replica
from ggufnorm.runs.probes.drift import FREE, PINNED, REFERENCE, DriftSums
from ggufnorm.runs.session import Probe, Session, chunk_batches

SMALL = (8, 1)
"""Sizes of batches that are tried beside the run's own: backends have kernels for products with one
token, with a few, and with many (``mul_mat_vec`` of CUDA, Vulkan and Metal goes up to 8)."""


@dataclass(frozen=True)
class Look:
    """The same two engines, run in one way.

    Attributes:
        batch: most tokens in one batch.
        alone: whether every operation was computed by itself.
        operations: in graph order.
        graphs: of the reference.
        whole: NMSE between the engines' logits where nothing was watched.
        watched: the same where operations were.
    """

    batch: int
    alone: bool
    operations: tuple[OperationDrift, ...]
    graphs: tuple[Graph, ...]
    whole: float | None = None
    watched: float | None = None


class _Logits(Probe):
    """Sums of the squared distance between two replicas' logits, and of the first's squares."""

    def __init__(self) -> None:
        self.error = self.energy = 0.0

    def end_batch(self, k: int, batch: Batch, runners: Sequence[Runner]) -> None:
        if not batch.n_outputs or not all(r.capabilities.logits for r in runners[: FREE + 1]):
            return
        stop = batch.scored_from + batch.n_outputs
        a, b = (
            _centred(runners[side].logits(k, batch, range(batch.scored_from, stop)))
            for side in (REFERENCE, FREE)
        )
        lost = np.where(np.isfinite(b), a - b, a)  # what is no number is wholly wrong
        self.error += float(np.sum(np.square(lost)))
        self.energy += float(np.sum(np.square(a)))

    @property
    def nmse(self) -> float | None:
        return self.error / self.energy if self.energy else None


def _centred(logits: Array) -> Array:
    """Without what all logits of a position share, which no prediction shows."""
    found: Array = logits - logits.mean(axis=-1, keepdims=True)
    return found


class Circumstances:
    """Runs the first tokens in other ways.

    Args:
        runners: the reference, the model under test, and the same to be pinned; each can
            ``vary``, and has the graphs that were planned for the run.
        files: of both sides.
        tokens: of the text.
        n_ctx: most tokens that the contexts hold.
    """

    def __init__(
        self,
        runners: Sequence[Loaded],
        files: Mapping[int, ModelFile],
        tokens: Tokens,
        n_ctx: int,
    ) -> None:
        self._runners, self._files = runners[: PINNED + 1], files
        self._tokens = tokens[:n_ctx]

    def look(self, batch: int, *, alone: bool) -> Look:
        """Run some tokens, in two batches if a model can read them so.

        Args:
            batch: most tokens in one batch.
            alone: compute every operation by itself.
        """
        before = [runner.graphs for runner in self._runners]
        for runner in self._runners:
            runner.vary(batch, alone=alone)
            runner.graphs = []
        try:
            return self._run(min(2 * batch, len(self._tokens)), alone)
        finally:
            for runner, graphs in zip(self._runners, before, strict=True):
                runner.graphs = graphs

    def _run(self, n: int, alone: bool) -> Look:
        reference, free, pinned = self._runners
        batches = chunk_batches(reference, self._tokens, 0, n)
        for runner in (reference, free):
            runner.plan(batches)
        share_graphs(free, pinned)
        graphs = list(zip(reference.graphs, free.graphs, strict=True))
        sums, watched = DriftSums(graphs, self._files), _Logits()
        replicas = [Replica(r, pinned=r is pinned) for r in self._runners]
        session = Session(replicas, [sums, watched], self._tokens, n)
        session.chunk(0)
        types = {REFERENCE: reference.dtypes, FREE: free.dtypes}
        return Look(
            max(len(b.tokens) for b in batches),
            alone,
            assemble.operations(session.matches, sums, types),
            tuple(reference.graphs),
            None if alone else self._unwatched(batches),
            watched.nmse,
        )

    def _unwatched(self, batches: Sequence[Batch]) -> float | None:
        """NMSE of logits where both engines ran without a hook point."""
        sums, sides = _Logits(), self._runners[: FREE + 1]
        for runner in sides:
            runner.begin_chunk()
        for k, batch in enumerate(batches):
            for runner in sides:
                runner.forward(k, batch, (), lambda _n, _value: True)
            sums.end_batch(k, batch, sides)
        return sums.nmse
