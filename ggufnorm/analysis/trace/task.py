"""The children's parts of ``trace`` and of ``compare`` with a model."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from ggufnorm.analysis.trace.compare import compare_runs
from ggufnorm.analysis.trace.parts import entering, require_part
from ggufnorm.analysis.trace.record import Recording, Source, plan_chunks, record
from ggufnorm.core.drift import DriftReport, ModelFacts
from ggufnorm.core.progress import Progress
from ggufnorm.core.trace import TraceFacts
from ggufnorm.engines.llama.runner import LlamaRunner
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel
from ggufnorm.engines.trace.reader import Trace
from ggufnorm.engines.trace.runner import TraceRunner
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import MismatchError
from ggufnorm.formats.location import open_model
from ggufnorm.runs.checks import network_facts
from ggufnorm.runs.corpus import Corpus
from ggufnorm.runs.loop import Policy
from ggufnorm.runs.placement import warn_of_placement
from ggufnorm.runs.session import chunk_batches


@dataclass(frozen=True)
class TraceJob:
    """What :func:`ggufnorm.trace` asks of its child."""

    model: ModelFacts
    corpus: Corpus
    options: EngineOptions
    what: Recording


@dataclass(frozen=True)
class Traced:
    """What the trace says of itself; None if the run ended early and there is none."""

    facts: TraceFacts | None


def run_trace(job: TraceJob, channel: Channel) -> Traced:
    """Run the model and write its trace."""
    with ExitStack() as stack:
        file = stack.enter_context(open_model(job.model.path))
        channel.emit(Progress("loading the model"))
        model = stack.enter_context(LlamaModel(file.path, job.options))
        source = Source(job.model, job.corpus.encode(model), job.corpus.name)
        runner = stack.enter_context(LlamaRunner(model, job.options, file))
        channel.emit(Progress("learning the graph"))
        part = None if job.what.part is None else stack.enter_context(Trace(job.what.part))
        if job.what.layers is not None:
            enter = None if part is None else entering(part, runner)
            runner.restrict(job.what.layers, enter)
        n_chunks = plan_chunks(runner, source, job.what)
        if part is not None and job.what.layers is not None:
            n_ctx, layers = job.what.n_ctx, job.what.layers
            require_part(part, job.model, source.tokens, n_ctx, n_chunks, layers)
        warn_of_placement(runner.info, channel.emit)
        network = network_facts(file)
        return Traced(record(runner, network, source, job.what, n_chunks, channel, part))


@dataclass(frozen=True)
class BesideJob:
    """What :func:`ggufnorm.compare` asks of its child: a model to be run beside a trace."""

    trace: str
    model: ModelFacts
    model_is_reference: bool
    options: EngineOptions
    policy: Policy


def run_beside(job: BesideJob, channel: Channel) -> DriftReport:
    """Run the model on the trace's own tokens, and compare."""
    with ExitStack() as stack:
        trace = stack.enter_context(Trace(job.trace))
        file = stack.enter_context(open_model(job.model.path))
        channel.emit(Progress("loading the model"))
        model = stack.enter_context(LlamaModel(file.path, job.options))
        runner = stack.enter_context(LlamaRunner(model, job.options, file))
        _require_same_start(runner, trace)
        if trace.facts.layers is not None:
            runner.restrict((0, trace.facts.layers - 1))
        channel.emit(Progress("learning the graph"))
        runner.plan(chunk_batches(runner, trace.tokens, 0, trace.facts.n_ctx))
        warn_of_placement(runner.info, channel.emit)
        if len(runner.graphs) != len(trace.graphs):
            raise MismatchError(
                f"{file.path} takes {len(runner.graphs)} decodes for a chunk, and"
                f" {trace.path} took {len(trace.graphs)}"
            )
        mine, theirs = (runner, job.model), (TraceRunner(trace), trace.facts.model)
        sides = (mine, theirs) if job.model_is_reference else (theirs, mine)
        files = {0 if job.model_is_reference else 1: file}
        return compare_runs(sides, files, trace, runner, channel, job.policy)


def _require_same_start(runner: LlamaRunner, trace: Trace) -> None:
    f = trace.facts
    start = f"{runner.path} cannot be compared with {trace.path}:"
    if runner.n_vocab != f.n_vocab:
        raise MismatchError(f"{start} it gives {runner.n_vocab} logits and not {f.n_vocab}")
    if runner.start != f.start:
        raise MismatchError(
            f"{start} it starts a chunk with the token {runner.start} and not {f.start}"
        )
