"""The child's part of ``drift``: run both models in lockstep, and report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from ggufnorm.analysis.drift.causes import Sides
from ggufnorm.analysis.drift.circumstances import SMALL, Circumstances, Look
from ggufnorm.analysis.drift.evidence import gather_evidence
from ggufnorm.analysis.drift.kernels import (
    Engines,
    circumstances_of,
    engines_of,
    first_beyond,
    judge_engines,
    kernel_errors,
)
from ggufnorm.analysis.drift.replicas import Replicas, load_apart, load_together, share_graphs
from ggufnorm.analysis.drift.report import Text, drift_report
from ggufnorm.analysis.drift.verdict import judge
from ggufnorm.core.drift import Culprit, DriftReport, ModelFacts, NormDrift, OperationDrift
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.plain import to_plain
from ggufnorm.core.progress import Progress
from ggufnorm.engines.base import EngineInfo, Runner
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.engines.worker import Channel
from ggufnorm.formats.location import open_model
from ggufnorm.runs.corpus import Corpus
from ggufnorm.runs.identity import Identity, identify
from ggufnorm.runs.lockstep import Replica
from ggufnorm.runs.loop import Loop, Policy
from ggufnorm.runs.placement import warn_of_placement
from ggufnorm.runs.probes.drift import FLOOR, FREE, PINNED, REFERENCE, DriftSums
from ggufnorm.runs.probes.logits import LogitSums
from ggufnorm.runs.regroup import Regrouped
from ggufnorm.runs.session import Session, chunk_batches, count_chunks


@dataclass(frozen=True)
class DriftJob:
    """What :func:`ggufnorm.drift` asks of its child; see its arguments."""

    version: str
    reference: ModelFacts
    quant: ModelFacts
    corpus: Corpus
    chunks: int | None
    options_ref: EngineOptions
    options: EngineOptions
    floor: bool
    policy: Policy

    def identity(self, *engines: EngineInfo) -> Identity:
        """All but the policy, and the engines that run it."""
        return identify(*engines, **to_plain(self, leave_out=("policy",)))


def run_drift(job: DriftJob, channel: Channel) -> DriftReport:
    """Run all chunks, or as many as there is time for, and report."""
    with ExitStack() as stack:
        return _Drift(job, stack, channel).execute()


class _Drift:
    """One drift run: loaded, walked, reported."""

    def __init__(self, job: DriftJob, stack: ExitStack, channel: Channel) -> None:
        self.job, self.channel = job, channel
        self.files = {
            REFERENCE: stack.enter_context(open_model(job.reference.path)),
            FREE: stack.enter_context(open_model(job.quant.path)),
        }
        self.n_ctx = job.options.n_ctx
        loaded = self._load(stack)
        self.tokens, self.loaded = loaded.tokens, loaded.runners
        self.runners: Sequence[Runner] = self.loaded  # as they are shown to probes
        self.n_chunks = count_chunks(len(self.tokens), self.n_ctx, job.chunks)
        self.looks: list[Look] = []
        self._plan()
        self.session = self._session()

    def _load(self, stack: ExitStack) -> Replicas:
        files = self.files[REFERENCE], self.files[FREE]
        options = self.job.options_ref, self.job.options
        load = load_together if options[0].llama_cpp == options[1].llama_cpp else load_apart
        return load(stack, files, options, self.job.corpus, self.job.floor, self.channel.emit)

    def _plan(self) -> None:
        self.channel.emit(Progress("learning the graphs"))
        for runner in self.loaded[:PINNED]:
            runner.plan(chunk_batches(runner, self.tokens, 0, self.n_ctx))
            warn_of_placement(runner.info, self.channel.emit)
        share_graphs(self.loaded[FREE], self.loaded[PINNED])
        for runner in self.loaded[FLOOR:]:
            share_graphs(self.loaded[REFERENCE], runner)
        if self.job.options_ref.n_ubatch != self.job.options.n_ubatch:
            self._regroup()

    def _regroup(self) -> None:
        """Show the reference in the other side's batches, where these are others."""
        cuts = [chunk_batches(r, self.tokens, 0, self.n_ctx) for r in self.loaded[:PINNED]]
        if [len(b.tokens) for b in cuts[REFERENCE]] != [len(b.tokens) for b in cuts[FREE]]:
            like = self.loaded[FREE]
            self.runners = [
                r if i in (FREE, PINNED) else Regrouped(r, like, self.tokens, self.n_ctx)
                for i, r in enumerate(self.loaded)
            ]

    def _session(self) -> Session:
        graphs = [self.runners[side].graphs for side in (REFERENCE, FREE)]
        self.sums = DriftSums(list(zip(*graphs, strict=True)), self.files)
        self.logits = LogitSums([FREE, *range(FLOOR, len(self.runners))])
        replicas = [Replica(r, pinned=i == PINNED) for i, r in enumerate(self.runners)]
        probes, cutter = [self.sums, self.logits], self.runners[FREE]
        return Session(replicas, probes, self.tokens, self.n_ctx, cutter)

    def execute(self) -> DriftReport:
        """Run the chunks and report."""
        keeps = {"drift": self.sums, "logits": self.logits}
        loop = Loop(self.channel, self.job.policy, self._identity(), keeps, self.n_ctx)
        for i in loop.units(self.n_chunks):
            self.session.chunk(i)
        report = drift_report(
            (self.job.reference, self.job.quant),
            self.session,
            self.sums,
            self.logits,
            self.files,
            Text(self.job.corpus.name, self.tokens, len(self.tokens), self.n_ctx, self.n_chunks),
            loop,
            self._judge,
        )
        if self._other_engines() is None:
            return report
        return replace(
            report,
            kernels=kernel_errors(report.operations),
            circumstances=circumstances_of(self.looks),
        )

    def _identity(self) -> Identity:
        return self.job.identity(*(runner.info for runner in self.loaded[: FREE + 1]))

    def _other_engines(self) -> Engines | None:
        """Both engines, where one file runs in two and nothing but kernels can differ."""
        if self.job.reference.fingerprint != self.job.quant.fingerprint:
            return None
        return engines_of(*(runner.info for runner in self.loaded[: FREE + 1]))

    def _judge(
        self,
        norms: Sequence[NormDrift],
        operations: Sequence[OperationDrift],
        logits: LogitStatistics | None,
    ) -> tuple[Culprit | None, str]:
        engines = self._other_engines()
        if engines is not None:
            graphs = self.runners[REFERENCE].graphs
            self._look_closer(operations)
            return judge_engines(operations, logits, engines, graphs, self.looks)
        sides = Sides(self.job.options_ref, self.job.options)
        evidence = gather_evidence(self.files, sides, self.sums, operations)
        return judge(norms, operations, logits, evidence)

    def _look_closer(self, operations: Sequence[OperationDrift]) -> None:
        """Run some tokens in other batches, and with each operation by itself."""
        if self.channel.cancel.is_set():
            return
        closer = Circumstances(self.loaded, self.files, self.tokens, self.n_ctx)
        first = chunk_batches(self.loaded[FREE], self.tokens, 0, self.n_ctx)
        own = max(len(batch.tokens) for batch in first)
        for size in (own, *(size for size in SMALL if size < own)):
            self.channel.emit(Progress(f"running batches of {size}"))
            self.looks.append(closer.look(size, alone=False))
        is_wrong = [first_beyond(operations), *(first_beyond(k.operations) for k in self.looks)]
        sizes = [own, *(look.batch for look in self.looks)]
        at = next((n for n, found in zip(sizes, is_wrong, strict=True) if found), own)
        self.channel.emit(Progress("running each operation by itself"))
        self.looks.append(closer.look(at, alone=True))
