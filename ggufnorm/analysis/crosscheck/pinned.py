"""A run of llama.cpp that gets the source's values at the input of every norm.

What the operations between two norms do to *the source's own* input is their own error: no
difference from further up hides it, and none adds to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ggufnorm.analysis.crosscheck.join import Pair
from ggufnorm.analysis.crosscheck.llama import RunJob, Tokens, planned
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.observed import Array, by_token
from ggufnorm.engines import worker
from ggufnorm.engines.base import Activation, Batch, Graph, NormPlan, Runner
from ggufnorm.engines.worker import Channel
from ggufnorm.formats.location import local_path
from ggufnorm.runs.options import RunSettings


@dataclass(frozen=True)
class PinnedJob:
    """A model to run once, pinned.

    Attributes:
        run: the model and its tokens.
        values: the source's input of each norm, ``(tokens, heads, channels)`` by the norm's key.
    """

    run: RunJob
    values: dict[str, Array]


@dataclass(frozen=True)
class PinnedRun:
    """What llama.cpp computed of the source's values.

    Attributes:
        inputs: what it would have gone on with at each norm, by the norm's key, as
            :attr:`PinnedJob.values` has it.
        logits: ``(tokens, vocabulary)``; None of an embedding model.
    """

    inputs: dict[str, Array]
    logits: Array | None


@dataclass(frozen=True)
class OwnErrors:
    """What an engine's operations make of the source's input by themselves.

    Attributes:
        sites: relative L2 distance of each norm's input by the site's key, infinite where
            it is not finite.
        logits: the same of the logits; None without.
    """

    sites: Mapping[str, float]
    logits: float | None


def own_errors(
    location: str,
    tokens: Tokens,
    pairs: Sequence[Pair],
    logits: Array | None,
    how: RunSettings,
) -> OwnErrors:
    """Run a model on the source's values; see :func:`observe_pinned`.

    Args:
        location: of a GGUF model on this machine.
        tokens: ids.
        pairs: the norms of both.
        logits: the source's; None without.
        how: it is run.

    Raises:
        EngineError: llama.cpp fails or crashes.
    """
    options = how.engine(len(tokens))
    job = RunJob(os.fspath(local_path(location)), options, None, tokens)
    run = worker.call(observe_pinned, PinnedJob(job, source_inputs(pairs)))
    return OwnErrors(
        {p.key: relative_l2(p.source.x, run.inputs[p.key]) for p in pairs if p.key in run.inputs},
        _logits_off(logits, run.logits),
    )


def source_inputs(pairs: Sequence[Pair]) -> dict[str, Array]:
    """The source's input of each norm where it is finite, by the site's key."""
    return {p.key: p.source.x for p in pairs if np.isfinite(p.source.x).all()}


def _logits_off(source: Array | None, engine: Array | None) -> float | None:
    if source is None or engine is None or len(source) != len(engine):
        return None
    n = min(source.shape[1], engine.shape[1])
    return relative_l2(source[:, :n], engine[:, :n])


def observe_pinned(job: PinnedJob, _channel: Channel) -> PinnedRun:
    """The child's part of :func:`own_errors`."""
    with planned(job.run) as run:
        seen: dict[int, dict[int, Array]] = {}

        def keep(part: int, index: int, value: Activation) -> None:
            seen.setdefault(part, {})[index] = value.value.copy()

        pins = [pins_of(graph, job.values, run.n_rows) for graph, _ in run.parts]
        run_pinned(run.runner, run.batches, pins, [list(p) for p in pins], keep)
        inputs = {
            norm.key: by_token(seen[k][norm.input], run.n_rows, job.values[norm.key].shape[-1])
            for k, (graph, _) in enumerate(run.parts)
            for norm in first_runs(graph)
            if norm.key in job.values and norm.input in seen.get(k, {})
        }
        return PinnedRun(inputs, run.logits())


def first_runs(graph: Graph) -> Iterator[NormPlan]:
    """Each norm where it is run first: in Gemma 3n's AltUp a block runs one twice."""
    seen: set[str] = set()
    for norm in graph.norms:
        if norm.key not in seen:
            seen.add(norm.key)
            yield norm


def pins_of(graph: Graph, values: Mapping[str, Array], n_tokens: int) -> dict[int, Array]:
    """What to put into which node, laid out as the node is, by the node's index.

    Args:
        graph: of a batch.
        values: ``(tokens, heads, channels)`` by the norm's key.
        n_tokens: of the batch.
    """
    pins: dict[int, Array] = {}
    for norm in first_runs(graph):
        if norm.key in values and norm.input not in pins:
            shape = (*reversed(graph.nodes[norm.input].shape),)
            laid_out = _laid_out(values[norm.key], shape, n_tokens)
            if laid_out is not None:
                pins[norm.input] = laid_out
    return dict(sorted(pins.items()))


def _laid_out(values: Array, shape: tuple[int, ...], n_tokens: int) -> Array | None:
    """The inverse of :func:`~ggufnorm.core.observed.by_token`; None where there is none."""
    whole = (*[1] * (4 - len(shape)), *shape)
    if values.size != np.prod(whole):
        return None
    axes = whole[:-1] if whole[-1] == values.shape[-1] else whole
    if n_tokens not in axes:
        return np.ascontiguousarray(values.reshape(whole))
    at = axes.index(n_tokens)
    moved = values.reshape(n_tokens, *whole[:at], *whole[at + 1 :])
    return np.ascontiguousarray(np.moveaxis(moved, 0, at))


def run_pinned(
    runner: Runner,
    batches: Sequence[Batch],
    pins: Sequence[Mapping[int, Array]],
    at: Sequence[Sequence[int]],
    on_value: Callable[[int, int, Activation], None],
) -> None:
    """Run a planned model's batches with some nodes' values replaced.

    Args:
        runner: planned.
        batches: as planned.
        pins: of each batch, by node, laid out as the node is.
        at: of each batch, the nodes to look at.
        on_value: called with each of those, the batch's number first, and with its own value,
            before it is replaced.
    """
    runner.begin_chunk()
    for part, batch in enumerate(batches):
        every = sorted({*pins[part], *at[part]})

        def meet(k: int, value: Activation, part: int = part, every: list[int] = every) -> bool:
            if every[k] in at[part]:
                on_value(part, every[k], value)
            if every[k] in pins[part]:
                value.replace(pins[part][every[k]])
            return True

        runner.forward(part, batch, every, meet)
