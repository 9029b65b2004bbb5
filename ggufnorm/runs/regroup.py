"""A side that cuts its chunks into other batches (``-ub``): its values in the other side's batches.

Its own batches run first, as far as the other's batch reaches, and their values are kept until they
have been shown. Tokens are told from other axes by what the planned graphs of both cuts differ in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ggufnorm.core.rows import Rows
from ggufnorm.engines.base import (
    Activation,
    Array,
    Batch,
    Capabilities,
    EngineInfo,
    Graph,
    NormPlan,
    OnActivation,
    Runner,
    StatedNorm,
    Tokens,
    rows_of,
)

_AXES = 4
Shape = tuple[int, ...]
Place = tuple[int, str]
"""A batch's number and a hook point's key."""


@dataclass(frozen=True)
class Piece:
    """Part of one own batch's value: which tokens of it."""

    k: int
    start: int
    stop: int


class Kept:
    """A value that was computed before; see :class:`~ggufnorm.engines.base.Activation`."""

    def __init__(self, value: Array, batch: Batch) -> None:
        self.value, self._batch = value, batch

    def rows(self, stride: int = 1) -> Rows:
        """Its rows, of every ``stride``-th token."""
        return rows_of(self.value, self._batch).subsample(self._batch.chunk_start, stride)

    def replace(self, values: Array) -> None:
        """What was computed stays."""


class Regrouped:
    """A runner as if it ran another's batches; see :class:`~ggufnorm.engines.base.Runner`.

    Args:
        runner: that is shown; planned on its own batches.
        like: whose batches it is shown in; planned.
        tokens: of the text.
        n_ctx: tokens of a chunk.
    """

    def __init__(self, runner: Runner, like: Runner, tokens: Tokens, n_ctx: int) -> None:
        self.runner, self.path = runner, runner.path
        self.dtypes, self.n_vocab, self.start = runner.dtypes, runner.n_vocab, runner.start
        self._tokens, self._n_ctx = tokens, n_ctx
        self._theirs = like.batches(tokens[:n_ctx], 0)
        self._axes: dict[str, int] = {}
        self._pieces: dict[Place, list[Piece]] = {}
        self._values: dict[Place, Array] = {}
        self._logits: dict[int, Array] = {}
        self._done = 0
        self._mine = runner.batches(tokens[:n_ctx], 0)
        self.graphs = [self._graph(j, graph, like.graphs) for j, graph in enumerate(like.graphs)]
        self._last_use = {(p.k, key): j for (j, key), ps in self._pieces.items() for p in ps}

    # -- what is where, the same in every chunk -------------------------------------------

    def _graph(self, j: int, theirs: Graph, all_theirs: Sequence[Graph]) -> Graph:
        """The other's graph with the hook points whose values can be had."""
        hooks = []
        for hook in theirs.hooks:
            if hook.key not in self._axes:
                axis = self._axis_of(hook.key, all_theirs)
                if axis is None:
                    continue
                self._axes[hook.key] = axis
            pieces = self._covering(j, hook.key, _shape(theirs, hook.key))
            if pieces is not None:
                self._pieces[j, hook.key] = pieces
                hooks.append(hook)
        return replace(theirs, hooks=tuple(hooks), norms=self._norms(theirs))

    def _axis_of(self, key: str, theirs: Sequence[Graph]) -> int | None:
        """Which of ggml's axes counts tokens; None where that cannot be told."""
        for j, other in enumerate(theirs):
            for k, own in enumerate(self.runner.graphs):
                a, b = _shape(own, key), _shape(other, key)
                differing = [axis for axis in range(_AXES) if a and b and a[axis] != b[axis]]
                if len(differing) == 1 and differing[0] > 0:
                    (axis,) = differing
                    mine, their = self._mine[k], self._theirs[j]
                    if _span(mine, a[axis]) and _span(their, b[axis]):
                        return axis
        return None

    def _covering(self, j: int, key: str, shape: Shape) -> list[Piece] | None:
        """The own values that make up the other's; None where some are missing."""
        wanted = _span(self._theirs[j], shape[self._axes[key]])
        if wanted is None:
            return None
        pieces, at = [], wanted.start
        for k, graph in enumerate(self.runner.graphs):
            own = _shape(graph, key)
            span = _span(self._mine[k], own[self._axes[key]]) if own else None
            if span is not None and span.start <= at < span.stop and at < wanted.stop:
                stop = min(span.stop, wanted.stop)
                pieces.append(Piece(k, at - span.start, stop - span.start))
                at = stop
        return pieces if at >= wanted.stop else None

    def _norms(self, theirs: Graph) -> tuple[NormPlan, ...]:
        """The own norms, in the other graph's numbers."""
        at = {node.key: node.index for node in theirs.nodes}
        found = {}
        for graph in self.runner.graphs:
            for plan in graph.norms:
                keys = [graph.nodes[i].key for i in (plan.input, plan.norm, plan.output)]
                if all(key in at for key in keys):
                    x, norm, out = (at[key] for key in keys)
                    found[plan.key] = replace(plan, input=x, norm=norm, output=out)
        return tuple(found[plan.key] for plan in theirs.norms if plan.key in found)

    # -- a run ----------------------------------------------------------------------------

    def begin_chunk(self) -> None:
        """Forget all tokens."""
        self.runner.begin_chunk()
        self._values.clear()
        self._logits.clear()
        self._done = 0

    def forward(self, k: int, batch: Batch, at: Sequence[int], on_activation: OnActivation) -> None:
        """Run own batches as far as this one reaches, and show it from them."""
        self._run(batch)
        nodes = self.graphs[k].nodes
        for n, index in enumerate(at):
            key = nodes[index].key
            if not on_activation(n, Kept(self._value(k, key), batch)):
                return
        self._values = {p: v for p, v in self._values.items() if self._last_use[p] > k}

    def _run(self, batch: Batch) -> None:
        end = batch.first + len(batch.tokens)
        chunk = self._tokens[batch.chunk_start : batch.chunk_start + self._n_ctx]
        own = self.runner.batches(chunk, batch.chunk_start)
        while self._done < len(own) and own[self._done].first < end:
            self._run_own(self._done, own[self._done])
            self._done += 1

    def _run_own(self, k: int, own: Batch) -> None:
        hooks = [h for h in self.runner.graphs[k].hooks if (k, h.key) in self._last_use]

        def keep(n: int, value: Activation) -> bool:
            key = hooks[n].key
            axis = _AXES - 1 - self._axes[key]
            self._values[k, key] = np.moveaxis(value.value, axis, 0).copy()
            return True

        self.runner.forward(k, own, [hook.index for hook in hooks], keep)
        if own.n_outputs and self.capabilities.logits:
            positions = range(own.scored_from, own.scored_from + own.n_outputs)
            rows = self.runner.logits(k, own, positions)
            self._logits |= {p: row.copy() for p, row in zip(positions, rows, strict=True)}

    def _value(self, k: int, key: str) -> Array:
        if not self._pieces[k, key]:  # no token of this batch gives an output
            return np.empty(_shape(self.graphs[k], key)[::-1], np.float32)
        parts = [self._values[p.k, key][p.start : p.stop] for p in self._pieces[k, key]]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.ascontiguousarray(np.moveaxis(whole, 0, _AXES - 1 - self._axes[key]))

    def logits(self, k: int, batch: Batch, positions: range) -> Array:
        """Logits, ``(positions, vocabulary)``."""
        return np.stack([self._logits[position] for position in positions])

    # -- as the runner says ---------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        """Which engine, and how it runs the model."""
        return self.runner.info

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        return self.runner.capabilities

    def stated(self, plan: NormPlan, output_key: str) -> StatedNorm:
        """What the file says of a norm."""
        return self.runner.stated(plan, output_key)

    def piece(self, token: int) -> str:
        """The text of a token id."""
        return self.runner.piece(token)

    def batches(self, tokens: Tokens, first: int) -> list[Batch]:
        """Its own cut."""
        return self.runner.batches(tokens, first)

    def plan(self, chunk: Sequence[Batch]) -> None:
        """It is planned."""


def _shape(graph: Graph, key: str) -> Shape:
    """Ggml's ``ne`` at a hook point; empty where the graph has none of that key."""
    for hook in graph.hooks:
        if hook.key == key:
            found = graph.nodes[hook.index].shape
            return (*found, *[1] * (_AXES - len(found)))
    return ()


def _span(batch: Batch, n: int) -> range | None:
    """Which of the chunk's tokens an axis of that length counts; None where it counts others.

    After the last layer's attention only the rows that give logits are left.
    """
    end = batch.position + len(batch.tokens)
    return range(end - n, end) if n in (len(batch.tokens), batch.n_outputs) else None
