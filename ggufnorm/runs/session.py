"""A run of one model or of several in lockstep, chunk after chunk, under the eyes of probes."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from ggufnorm.core.model import Skipped
from ggufnorm.engines.base import Activation, Batch, HookPoint, Runner, Tokens
from ggufnorm.errors import TextError
from ggufnorm.runs.lockstep import Lockstep, Match, Replica, Unwatched


class Probe:
    """Measures something on a run. A probe overrides what it needs.

    ``state`` and ``restore`` are those of :class:`ggufnorm.runs.loop.Keeps`.
    """

    def begin_batch(self, k: int, batch: Batch) -> None:
        """All replicas are about to run the chunk's k-th batch."""

    def observe(self, hook: HookPoint, batch: Batch, values: Sequence[Activation]) -> None:
        """All replicas at a hook point; values are good until the call returns."""

    def settle(self) -> Container[str]:
        """All replicas have run the batch: read what devices still keep of it.

        Returns:
            keys of hook points whose values are needed once more, by :meth:`observe_again`.
        """
        return ()

    def observe_again(self, hook: HookPoint, batch: Batch, values: Sequence[Activation]) -> None:
        """The same values at one of those hook points."""

    def end_batch(self, k: int, batch: Batch, runners: Sequence[Runner]) -> None:
        """All replicas have run the chunk's k-th batch; their logits can be read."""

    def state(self) -> Any:
        """All that was gathered, as plain data that JSON keeps exactly."""
        return None

    def restore(self, state: Any) -> None:
        """Go on from a :meth:`state` of the same job."""


class Session:
    """Replicas, the text's tokens, and the probes that watch them run it.

    Args:
        replicas: the first is the reference.
        probes: what measures.
        tokens: of the text.
        n_ctx: tokens of a chunk; each chunk starts afresh.
        cutter: the runner whose batches all run; None for the first replica's.
        lockstep: how the replicas run; None to stop at every hook point.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        probes: Sequence[Probe],
        tokens: Tokens,
        n_ctx: int,
        cutter: Runner | None = None,
        lockstep: Lockstep | Unwatched | None = None,
    ) -> None:
        self.replicas, self.probes = replicas, probes
        self.runners = [replica.runner for replica in replicas]
        self.lockstep = lockstep or Lockstep(replicas)
        self._tokens, self._n_ctx = tokens, n_ctx
        self._cutter = cutter or self.runners[0]

    @property
    def matches(self) -> list[Match]:
        """The hook points that are observed, for each batch of a chunk."""
        return self.lockstep.matches

    def chunk(self, i: int) -> None:
        """Run the i-th chunk in all replicas."""
        self._begin_chunk()
        batches = chunk_batches(self._cutter, self._tokens, i, self._n_ctx)
        for k, batch in enumerate(batches):
            for probe in self.probes:
                probe.begin_batch(k, batch)
            self.lockstep.run(k, batch, self._observe)
            lost = [(probe, keys) for probe in self.probes if (keys := probe.settle())]
            if lost:
                self._run_again(batches[: k + 1], lost)
            for probe in self.probes:
                probe.end_batch(k, batch, self.runners)

    def _begin_chunk(self) -> None:
        for runner in self.runners:
            runner.begin_chunk()

    def _run_again(
        self, batches: Sequence[Batch], lost: Sequence[tuple[Probe, Container[str]]]
    ) -> None:
        """Run a chunk's batches so far once more, and show the last one's lost values."""

        def observe(hook: HookPoint, batch: Batch, values: Sequence[Activation]) -> None:
            for probe, keys in lost if batch is batches[-1] else ():
                if hook.key in keys:
                    probe.observe_again(hook, batch, values)

        self._begin_chunk()
        for k, batch in enumerate(batches):
            self.lockstep.run(k, batch, observe)

    def _observe(self, hook: HookPoint, batch: Batch, values: Sequence[Activation]) -> None:
        for probe in self.probes:
            probe.observe(hook, batch, values)

    def skipped(self) -> list[Skipped]:
        """Hook points that are not observed, and why; none where none was to be."""
        if not self.matches:
            return []
        found = {id(graph): graph for runner in self.runners for graph in runner.graphs}
        skipped = [s for graph in found.values() for s in graph.skipped]
        return skipped + [s for match in self.matches for s in match.skipped]


def chunk_batches(runner: Runner, tokens: Tokens, i: int, n_ctx: int) -> list[Batch]:
    """The i-th chunk of a text's tokens, as the runner's model wants it."""
    return runner.batches(tokens[i * n_ctx : (i + 1) * n_ctx], i * n_ctx)


def count_chunks(n_tokens: int, n_ctx: int, wanted: int | None) -> int:
    """How many chunks a text gives, at most as many as wanted.

    Raises:
        TextError: not even one.
    """
    if n_tokens < n_ctx:
        raise TextError(
            f"the text has {n_tokens} tokens, fewer than one chunk of {n_ctx}:"
            f" give a longer text (-f) or a smaller chunk (-c {max(8, n_tokens // 8 * 8)})"
        )
    return min(n_tokens // n_ctx, wanted) if wanted else n_tokens // n_ctx
