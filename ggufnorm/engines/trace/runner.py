"""A trace as a runner: it can neither pin nor add, and values come from the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from ggufnorm.core.model import Skipped
from ggufnorm.core.rows import Rows
from ggufnorm.core.tolerances import HALF_ROUNDING
from ggufnorm.engines.base import (
    Array,
    Batch,
    Capabilities,
    EngineInfo,
    NormPlan,
    OnActivation,
    StatedNorm,
    Tokens,
)
from ggufnorm.engines.trace.reader import Trace


class TraceActivation:
    """What one chunk gave at a hook point; see :class:`~ggufnorm.engines.base.Activation`."""

    def __init__(self, trace: Trace, k: int, hook: int, chunk: int) -> None:
        self._trace, self._where = trace, (k, hook, chunk)

    @property
    def value(self) -> Array:
        """A trace keeps rows.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self._trace.path} keeps rows of tokens, and no whole values")

    def rows(self, stride: int = 1) -> Rows:
        """The rows of every ``stride``-th token, a multiple of the trace's own stride."""
        return self._trace.rows(*self._where, stride)

    def replace(self, values: Array) -> None:
        """A trace goes on as it was."""


class TraceRunner:
    """A trace that is read again. A context manager; see :class:`~ggufnorm.engines.base.Runner`.

    Args:
        trace: open as long as this is used.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace, self.path = trace, trace.path
        f = trace.facts
        self.graphs = list(trace.graphs)
        self.graphs[0] = replace(self.graphs[0], skipped=tuple(self._skipped()))
        self.dtypes = {
            s.tensor: s.dtype for b in f.batches for s in b.stops if s.tensor and s.dtype
        }
        self.n_vocab, self.start = f.n_vocab, f.start
        self._stated = {
            n.key: StatedNorm(n.layer, n.role, n.epsilon_metadata)
            for b in f.batches
            for n in b.norms
        }

    def _skipped(self) -> list[Skipped]:
        f, path = self.trace.facts, self.path
        skipped = list(f.skipped)
        if f.dtype == "f16":
            reason = f"{path} holds half precision: below {HALF_ROUNDING:.0e} drift is rounding"
            skipped.append(Skipped("digits", reason))
        if f.predicts and not f.logits:
            skipped.append(Skipped("logits", f"{path} was made without them"))
        return skipped

    def __enter__(self) -> TraceRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.trace.close()

    @property
    def info(self) -> EngineInfo:
        """The engine that made the trace."""
        f = self.trace.facts
        return EngineInfo(f.engine, f.options, f.n_threads, f.n_gpu_layers, f.build)

    @property
    def capabilities(self) -> Capabilities:
        """It shows values, and logits if they were stored."""
        f = self.trace.facts
        return Capabilities(
            pin=False, add=False, predicts=f.predicts, logits=f.logits, weights=False
        )

    def stated(self, plan: NormPlan, output_key: str) -> StatedNorm:
        """What the traced model's file said of a norm."""
        return self._stated[plan.key]

    def piece(self, token: int) -> str:
        """The text of a token id."""
        return self.trace.facts.pieces.get(str(token), "")

    def batches(self, tokens: Tokens, first: int) -> list[Batch]:
        """The batches that were traced: each has all tokens of the chunk."""
        found = []
        for b in self.trace.facts.batches:
            following = tokens[b.first_scored + 1 :][: b.n_scored]
            scored_from = first + b.first_scored
            found.append(Batch(tokens, 0, len(tokens), following, first, first, scored_from))
        return found

    def plan(self, chunk: Sequence[Batch]) -> None:
        """The graphs are in the file."""

    def begin_chunk(self) -> None:
        """Nothing is remembered."""

    def forward(self, k: int, batch: Batch, at: Sequence[int], on_activation: OnActivation) -> None:
        """Show what was traced; see :meth:`ggufnorm.engines.base.Runner.forward`."""
        chunk = batch.chunk_start // self.trace.facts.n_ctx
        for n, hook in enumerate(at):
            if not on_activation(n, TraceActivation(self.trace, k, hook, chunk)):
                return

    def logits(self, k: int, batch: Batch, positions: range) -> Array:
        """Stored logits, ``(positions, vocabulary)``."""
        chunk = batch.chunk_start // self.trace.facts.n_ctx
        return self.trace.logits(k, chunk, positions.step)
