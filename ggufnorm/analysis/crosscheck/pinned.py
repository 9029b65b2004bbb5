"""A run of llama.cpp that gets the source's values at the input of every norm.

What the operations between two norms do to *the source's own* input is their own error: no
difference from further up hides it, and none adds to it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.crosscheck.join import Pair
from ggufnorm.analysis.crosscheck.llama import RunJob, Tokens, planned
from ggufnorm.analysis.crosscheck.logits import logits_off
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.observed import Array, ObservedRun, by_token
from ggufnorm.engines import worker
from ggufnorm.engines.base import Activation, Batch, Graph, NormPlan, Runner
from ggufnorm.engines.row_file import Place, RowFile
from ggufnorm.engines.worker import Channel
from ggufnorm.formats.location import local_path
from ggufnorm.runs.options import RunSettings


@dataclass(frozen=True)
class PinnedJob:
    """A model to run once, pinned.

    Attributes:
        run: the model and its tokens.
        rows: name of the file that holds the source's rows.
        inputs: the source's input of each norm, ``(tokens, heads, channels)`` by the norm's key.
        logits: the source's, ``(tokens, vocabulary)``; None without.
    """

    run: RunJob
    rows: str
    inputs: dict[str, Place]
    logits: Place | None


@dataclass(frozen=True)
class PinnedRun:
    """How far what llama.cpp computed of the source's values is from the source's.

    Attributes:
        sites: relative L2 distance of what it would have gone on with at each norm, one number
            by the norm's key; an array because infinity crosses in arrays alone.
        logits: the same of the logits; None of an embedding model.
    """

    sites: dict[str, NDArray[np.float64]]
    logits: NDArray[np.float64] | None


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
    source: ObservedRun,
    how: RunSettings,
) -> OwnErrors:
    """Run a model on the source's values; see :func:`observe_pinned`.

    Args:
        location: of a GGUF model on this machine.
        tokens: ids.
        pairs: the norms of both.
        source: the source's run.
        how: it is run.

    Raises:
        EngineError: llama.cpp fails or crashes.
    """
    options = how.engine(len(tokens))
    job = RunJob(os.fspath(local_path(location)), options, None, tokens)
    rows = RowFile()
    inputs = source_inputs(pairs, rows)
    logits = None if (found := source.logits) is None else rows.put(found)
    del found  # the child's turn: what it needs is in the file
    pinned = PinnedJob(job, rows.name, inputs, logits)
    run = worker.call(observe_pinned, pinned, descriptors=rows.descriptors)
    return OwnErrors(
        {p.key: float(run.sites[p.key]) for p in pairs if p.key in run.sites},
        None if run.logits is None else float(run.logits),
    )


def source_inputs(pairs: Sequence[Pair], rows: RowFile) -> dict[str, Place]:
    """Write the source's input of each norm to a file where it is finite; by the site's key."""
    found = {}
    for pair in pairs:
        x = pair.source.x
        if np.isfinite(x).all():
            found[pair.key] = rows.put(x)
    return found


def observe_pinned(job: PinnedJob, _channel: Channel) -> PinnedRun:
    """The child's part of :func:`own_errors`."""
    rows = RowFile(job.rows)
    with planned(job.run) as run:
        sites: dict[str, NDArray[np.float64]] = {}

        def measure(part: int, index: int, value: Activation) -> None:
            for norm in first_runs(run.runner.graphs[part]):
                if norm.input == index and norm.key in job.inputs:
                    source = rows.get(job.inputs[norm.key])
                    own = by_token(value.value, run.n_rows, source.shape[-1])
                    sites[norm.key] = np.array(relative_l2(source, own))

        pins = [pins_of(graph, rows, job.inputs, run.n_rows) for graph, _ in run.parts]
        run_pinned(run.runner, run.batches, pins, [list(p) for p in pins], measure)
        theirs = None if job.logits is None else rows.get(job.logits)
        off = logits_off(theirs, run.logits())
        return PinnedRun(sites, None if off is None else np.array(off))


def first_runs(graph: Graph) -> Iterator[NormPlan]:
    """Each norm where it is run first: in Gemma 3n's AltUp a block runs one twice."""
    seen: set[str] = set()
    for norm in graph.norms:
        if norm.key not in seen:
            seen.add(norm.key)
            yield norm


@dataclass(frozen=True)
class Pin:
    """What to put into a node, read anew at each call.

    Attributes:
        rows: the file that holds it.
        place: there, ``(tokens, heads, channels)``.
        shape: of the node, ``(ne[3], ne[2], ne[1], ne[0])``.
        n_tokens: of the batch.
    """

    rows: RowFile
    place: Place
    shape: tuple[int, ...]
    n_tokens: int

    def __call__(self) -> Array:
        """The values, laid out as the node is."""
        return _laid_out(self.rows.get(self.place), self.shape, self.n_tokens)


def pins_of(
    graph: Graph, rows: RowFile, inputs: Mapping[str, Place], n_tokens: int
) -> dict[int, Pin]:
    """What to put into which node, by the node's index.

    Args:
        graph: of a batch.
        rows: the file that holds it.
        inputs: ``(tokens, heads, channels)`` there, by the norm's key.
        n_tokens: of the batch.
    """
    pins: dict[int, Pin] = {}
    for norm in first_runs(graph):
        place = inputs.get(norm.key)
        if place is not None and norm.input not in pins:
            shape = (*reversed(graph.nodes[norm.input].shape),)
            whole = (*[1] * (4 - len(shape)), *shape)
            if math.prod(place.shape) == math.prod(whole):
                pins[norm.input] = Pin(rows, place, whole, n_tokens)
    return dict(sorted(pins.items()))


def _laid_out(values: Array, whole: tuple[int, ...], n_tokens: int) -> Array:
    """The inverse of :func:`~ggufnorm.core.observed.by_token`."""
    axes = whole[:-1] if whole[-1] == values.shape[-1] else whole
    if n_tokens not in axes:
        return np.ascontiguousarray(values.reshape(whole))
    at = axes.index(n_tokens)
    moved = values.reshape(n_tokens, *whole[:at], *whole[at + 1 :])
    return np.ascontiguousarray(np.moveaxis(moved, 0, at))


def run_pinned(
    runner: Runner,
    batches: Sequence[Batch],
    pins: Sequence[Mapping[int, Pin]],
    at: Sequence[Sequence[int]],
    on_value: Callable[[int, int, Activation], None],
) -> None:
    """Run a planned model's batches with some nodes' values replaced.

    Args:
        runner: planned.
        batches: as planned.
        pins: of each batch, by node.
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
                value.replace(pins[part][every[k]]())
            return True

        runner.forward(part, batch, every, meet)
