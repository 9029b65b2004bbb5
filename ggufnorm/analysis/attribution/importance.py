"""The child's part of ``--imatrix auto``: run the reference and write its importance matrix."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

from ggufnorm.core.plain import to_plain
from ggufnorm.core.progress import Progress
from ggufnorm.engines.base import Batch, Tokens
from ggufnorm.engines.llama.runner import LlamaRunner
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel
from ggufnorm.engines.worker import Channel
from ggufnorm.formats.imatrix import write_imatrix
from ggufnorm.formats.location import open_model
from ggufnorm.runs.corpus import Corpus
from ggufnorm.runs.identity import identify
from ggufnorm.runs.lockstep import Replica
from ggufnorm.runs.loop import ONCE, Loop, Policy
from ggufnorm.runs.placement import warn_of_placement
from ggufnorm.runs.probes.importance import ImportanceSums
from ggufnorm.runs.session import Session, chunk_batches, count_chunks


@dataclass(frozen=True)
class ImportanceJob:
    """A model and a text; ``out`` is the file to write."""

    out: str
    model: str
    corpus: Corpus
    chunks: int | None
    options: EngineOptions
    policy: Policy = ONCE


class _Whole(LlamaRunner):
    """Every token gives an output, so that every token passes through the last layer, too."""

    def batches(self, tokens: Tokens, first: int) -> list[Batch]:
        return [replace(b, n_outputs=len(b.tokens)) for b in super().batches(tokens, first)]


def collect_importance(job: ImportanceJob, channel: Channel) -> bool:
    """Write the importance matrix; False if the run ended early, and nothing was written."""
    with ExitStack() as stack:
        file = stack.enter_context(open_model(job.model))
        model = stack.enter_context(LlamaModel(file.path, job.options))
        runner = stack.enter_context(_Whole(model, job.options, file))
        tokens, n_ctx = job.corpus.encode(model), job.options.n_ctx
        n_chunks = count_chunks(len(tokens), n_ctx, job.chunks)
        channel.emit(Progress("computing the importance matrix"))
        runner.plan(chunk_batches(runner, tokens, 0, n_ctx))
        warn_of_placement(runner.info, channel.emit)
        sums = ImportanceSums()
        session = Session([Replica(runner)], [sums], tokens, n_ctx)
        decisive = to_plain(job, leave_out=("policy", "out"))
        identity = identify(runner.info, **decisive)
        loop = Loop(channel, job.policy, identity, {"importance": sums}, n_ctx)
        for i in loop.units(n_chunks, "computing the importance matrix"):
            session.chunk(i)
        if loop.cut:
            return False
        name = job.corpus.name
        write_imatrix(job.out, sums.result(), text_name=name, n_chunks=n_chunks, n_ctx=n_ctx)
        return True
