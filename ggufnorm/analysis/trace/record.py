"""Records a run of any engine: what the file says of itself, and the chunks."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggufnorm.analysis.trace.parts import joined
from ggufnorm.core.drift import ModelFacts
from ggufnorm.core.model import Skipped
from ggufnorm.core.progress import Progress, size
from ggufnorm.core.tokens import token_rows
from ggufnorm.core.trace import BatchFacts, NetworkFacts, StopFacts, TraceFacts, TraceType
from ggufnorm.engines.base import Batch, Graph, HookPoint, Runner, Tokens, tokens_of
from ggufnorm.engines.llama.runner import LlamaRunner
from ggufnorm.engines.llama.stretch import Layers
from ggufnorm.engines.trace import layout
from ggufnorm.engines.trace.reader import Trace
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import InputError, TooLargeError
from ggufnorm.runs.identity import identify
from ggufnorm.runs.lockstep import Replica
from ggufnorm.runs.loop import ONCE, Loop, Policy
from ggufnorm.runs.probes.trace import TraceWriter
from ggufnorm.runs.session import Session, chunk_batches, count_chunks
from ggufnorm.runs.values import norm_facts


@dataclass(frozen=True)
class Recording:
    """What a trace is to hold, and where.

    Attributes:
        out: what messages call the file.
        unfinished: the file to fill.
        n_ctx: tokens of a chunk; each chunk starts afresh, its second half is scored.
        chunks: run at most so many; None for the whole text.
        logits: whether to store the logits of the scored positions.
        dtype: how to store all other values.
        budget: bytes that the file may take; evenly spaced tokens are chosen to keep it.
        ask_above: bytes that it may not exceed where there is no budget.
        policy: how long the run lasts.
        layers: the first and the last layer to run; None for all.
        part: trace of the layers before, which goes into the file; None where there are none.
    """

    out: str
    unfinished: str
    n_ctx: int
    chunks: int | None
    logits: bool
    dtype: TraceType
    budget: int | None
    ask_above: int | None = None
    policy: Policy = ONCE
    layers: Layers | None = None
    part: str | None = None


@dataclass(frozen=True)
class Source:
    """What is traced.

    Attributes:
        model: its files.
        tokens: of the text.
        text: where they came from.
    """

    model: ModelFacts
    tokens: Tokens
    text: str


def plan_chunks(runner: Runner, source: Source, what: Recording) -> int:
    """Learn the runner's graphs on the first chunk; how many chunks there are.

    Raises:
        TextError: there are fewer tokens than one chunk takes.
    """
    n_chunks = count_chunks(len(source.tokens), what.n_ctx, what.chunks)
    runner.plan(chunk_batches(runner, source.tokens, 0, what.n_ctx))
    return n_chunks


def record(
    runner: Runner,
    network: NetworkFacts,
    source: Source,
    what: Recording,
    n_chunks: int,
    channel: Channel,
    part: Trace | None = None,
) -> TraceFacts | None:
    """Run a planned model chunk by chunk and write down what its hook points show.

    Args:
        runner: after :func:`plan_chunks`.
        network: what another trace must share to be compared.
        source: what is traced.
        what: what the trace is to hold.
        n_chunks: of :func:`plan_chunks`.
        channel: for progress and cancellation.
        part: trace of the layers before, which goes into the file.

    Returns:
        What the trace says of itself; None if the run ended before the trace was complete.

    Raises:
        InputError: the trace cannot be written, does not fit on the disk, or not even a few
            tokens of it fit into the budget.
        EngineError: the engine fails.
    """
    facts = _describe(runner, network, source, what, n_chunks)
    facts = facts if part is None else joined(part.facts, facts)
    facts = facts if what.budget is None else layout.thinned(facts, what.budget)
    _announce(facts, what, channel)
    try:
        with TraceWriter(Path(what.unfinished), facts) as writer:
            session = Session([Replica(runner)], [writer], source.tokens, what.n_ctx)
            job = identify(runner.info, facts=facts, tokens=source.tokens)
            loop = Loop(channel, what.policy, job, {"trace": writer}, what.n_ctx)
            for i in loop.units(n_chunks):
                writer.write_tokens(i, source.tokens[i * what.n_ctx : (i + 1) * what.n_ctx])
                if part is not None:
                    writer.copy(part, i)
                session.chunk(i)
            if loop.cut:
                return None
            writer.finish()
    except OSError as error:
        raise InputError(
            f"cannot write {what.out}: {error.strerror}: give another folder, or a --budget"
        ) from None
    return facts


def _announce(facts: TraceFacts, what: Recording, channel: Channel) -> None:
    """Say how large the file will be, or that there is no room for it.

    Raises:
        InputError: there is none.
        TooLargeError: it is larger than was agreed to.
    """
    f, n = facts, layout.file_size(facts)
    free = shutil.disk_usage(Path(what.unfinished).parent).free
    if n > free:
        raise InputError(
            f"{what.out} takes {n / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there: give"
            " another folder, a --budget, or fewer --chunks"
        )
    if what.ask_above is not None and what.budget is None and n > what.ask_above:
        raise TooLargeError(
            f"{what.out} would take {size(n)} of {size(free)} that are free: give"
            " a --budget (500MB), fewer --chunks, or --yes"
        )
    which = "every token" if f.stride == 1 else f"1 of {f.stride} tokens"
    hooks = sum(len(b.stops) for b in f.batches)
    kept = f"{hooks} operations{' and the logits' if f.logits else ''}"
    text = f"{what.out} takes {n / 1e6:,.1f} MB: {which} of {f.n_chunks} chunks at {kept}"
    channel.emit(Progress(text, note=True))


# -- what the file says of itself ----------------------------------------------------------------


def _describe(
    runner: Runner, network: NetworkFacts, source: Source, what: Recording, n_chunks: int
) -> TraceFacts:
    """All facts, with every token kept."""
    tokens, info, can = source.tokens[: n_chunks * what.n_ctx], runner.info, runner.capabilities
    n_run = _layers_run(what.layers, runner)
    logits = can.logits and what.logits and n_run is None
    skipped: dict[Skipped, None] = dict.fromkeys(s for g in runner.graphs for s in g.skipped)
    batches = chunk_batches(runner, tokens, 0, what.n_ctx)
    return TraceFacts(
        model=source.model,
        network=network,
        engine=info.engine,
        options=info.options,
        n_threads=info.n_threads,
        n_gpu_layers=info.n_gpu_layers,
        text=source.text,
        n_text_tokens=len(source.tokens),
        n_ctx=what.n_ctx,
        n_chunks=n_chunks,
        start=runner.start,
        stride=1,
        dtype=what.dtype,
        n_vocab=runner.n_vocab,
        predicts=can.predicts,
        logits=logits,
        batches=tuple(
            _batch(runner, graph, batch, logits)
            for graph, batch in zip(runner.graphs, batches, strict=True)
        ),
        skipped=tuple(skipped),
        pieces=_pieces(runner, tokens),
        build=info.build,
        layers=n_run,
    )


def _layers_run(layers: Layers | None, runner: Runner) -> int | None:
    """How many of the first layers a trace covers; None for all."""
    ends_early = isinstance(runner, LlamaRunner) and runner.ends_early
    return layers[1] + 1 if layers is not None and ends_early else None


def _pieces(runner: Runner, tokens: Tokens) -> dict[str, str]:
    pieces = {str(i): runner.piece(i) for i in np.unique(tokens).tolist()}
    return pieces if any(pieces.values()) else {}


def _batch(runner: Runner, graph: Graph, batch: Batch, logits: bool) -> BatchFacts:
    # Without logits, what is as wide as they are is left out either.
    wide = () if logits or not runner.capabilities.logits else (layout.LOGITS,)
    hooks = [h for h in graph.hooks if not h.key.startswith(wide)]
    keys = {h.index: h.key for h in hooks}
    n_scored = len(batch.following) if logits else 0
    return BatchFacts(
        first_scored=batch.scored_from - batch.chunk_start if n_scored else 0,
        n_scored=n_scored,
        stops=tuple(_hook(runner, graph, h, batch) for h in hooks),
        norms=tuple(
            norm_facts(runner, n, keys[n.input], keys[n.output])
            for n in graph.norms
            if n.input in keys and n.output in keys
        ),
    )


def _hook(runner: Runner, graph: Graph, hook: HookPoint, batch: Batch) -> StopFacts:
    """A hook point, all tokens kept."""
    ne = graph.nodes[hook.index].shape
    shape = (*(1,) * (4 - len(ne)), *ne[::-1])
    n_tokens, first = tokens_of(shape, batch)
    n_rows, channels = token_rows(np.broadcast_to(np.float32(0), shape), n_tokens).shape
    return StopFacts(
        key=hook.key,
        op=hook.op,
        role=hook.role,
        tensor=hook.tensor,
        dtype=runner.dtypes.get(hook.tensor) if hook.tensor else None,
        layer=hook.layer,
        shape=ne,
        first=batch.first - batch.chunk_start + first,
        n_tokens=n_tokens,
        rows=n_rows // n_tokens,
        channels=channels,
    )
