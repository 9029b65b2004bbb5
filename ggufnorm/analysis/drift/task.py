"""The child's part of ``drift``: run both models in lockstep, and report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from ggufnorm.analysis.drift.causes import Sides
from ggufnorm.analysis.drift.circumstances import SMALL, Circumstances, Look
from ggufnorm.analysis.drift.cumulative import judge_cumulative
from ggufnorm.analysis.drift.evidence import gather_evidence
from ggufnorm.analysis.drift.kernels import (
    Engines,
    circumstances_of,
    engines_of,
    first_beyond,
    judge_engines,
    kernel_errors,
)
from ggufnorm.analysis.drift.partial import judge_predictions, judge_stretches, left_out
from ggufnorm.analysis.drift.replicas import (
    Replicas,
    Wanted,
    load_apart,
    load_together,
    share_graphs,
)
from ggufnorm.analysis.drift.report import Text, drift_report
from ggufnorm.analysis.drift.verdict import judge
from ggufnorm.core.drift import Culprit, DriftReport, ModelFacts, NormDrift, OperationDrift
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.plain import to_plain
from ggufnorm.core.progress import Progress
from ggufnorm.engines.base import EngineInfo, Runner
from ggufnorm.engines.llama.remote import RemoteRunner
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.engines.worker import Channel
from ggufnorm.formats.location import open_model
from ggufnorm.runs.corpus import Corpus
from ggufnorm.runs.identity import Identity, identify
from ggufnorm.runs.lockstep import Lockstep, Replica, Unwatched
from ggufnorm.runs.loop import Loop, Policy
from ggufnorm.runs.placement import warn_of_placement
from ggufnorm.runs.probes.drift import FLOOR, FREE, PINNED, REFERENCE, DriftSums
from ggufnorm.runs.probes.logits import LogitSums
from ggufnorm.runs.regroup import Regrouped
from ggufnorm.runs.session import Session, chunk_batches, count_chunks
from ggufnorm.runs.watch import Watch, given_its_input, nodes_of


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
    watch: Watch
    local: bool
    recompute_rows: int
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
        wanted = Wanted(pinned=self.job.local, floor=self.job.floor)
        return load(stack, files, options, self.job.corpus, wanted, self.channel.emit)

    @property
    def _n_sides(self) -> int:
        """Replicas before those of the floor."""
        return FLOOR if self.job.local else PINNED

    @property
    def _is_unwatched(self) -> bool:
        return self.job.watch == "none"

    def _plan(self) -> None:
        """Learn the graphs; where nobody watches, only another process has to be told to."""
        same_batches = self.job.options_ref.n_ubatch == self.job.options.n_ubatch
        is_here = not any(isinstance(r, RemoteRunner) for r in self.loaded)
        if self._is_unwatched and same_batches and is_here:
            return
        self.channel.emit(Progress("learning the graphs"))
        for runner in self.loaded[:PINNED]:
            runner.plan(chunk_batches(runner, self.tokens, 0, self.n_ctx))
        self._warn_of_placement()
        for runner in self.loaded[PINNED : self._n_sides]:
            share_graphs(self.loaded[FREE], runner)
        for runner in self.loaded[self._n_sides :]:
            share_graphs(self.loaded[REFERENCE], runner)
        if not same_batches:
            self._regroup()

    def _regroup(self) -> None:
        """Show the reference in the other side's batches, where these are others."""
        cuts = [chunk_batches(r, self.tokens, 0, self.n_ctx) for r in self.loaded[:PINNED]]
        if [len(b.tokens) for b in cuts[REFERENCE]] != [len(b.tokens) for b in cuts[FREE]]:
            like = self.loaded[FREE]
            self.runners = [
                r if FREE <= i < self._n_sides else Regrouped(r, like, self.tokens, self.n_ctx)
                for i, r in enumerate(self.loaded)
            ]

    def _warn_of_placement(self) -> None:
        for runner in self.loaded[:PINNED]:
            warn_of_placement(runner.info, self.channel.emit)

    def _session(self) -> Session:
        watch = self.job.watch
        graphs = [self.runners[side].graphs for side in (REFERENCE, FREE)]
        if watch in ("residual", "none"):  # norms are not looked at
            graphs = [[replace(g, norms=()) for g in of_side] for of_side in graphs]
        self.sums = DriftSums(
            list(zip(*graphs, strict=True)),
            self.files,
            n_sides=self._n_sides,
            n_threads=self.job.options.n_threads,
            recompute_rows=self.job.recompute_rows,
        )
        others = [FREE, *range(self._n_sides, len(self.runners))]
        self.logits = LogitSums(others)
        replicas = [
            Replica(r, pinned=self.job.local and i == PINNED) for i, r in enumerate(self.runners)
        ]
        lockstep = (
            Unwatched(replicas) if self._is_unwatched else Lockstep(replicas, nodes_of(watch))
        )
        probes = [self.logits] if self._is_unwatched else [self.sums, self.logits]
        cutter = self.runners[FREE]
        return Session(replicas, probes, self.tokens, self.n_ctx, cutter, lockstep)

    def execute(self) -> DriftReport:
        """Run the chunks and report."""
        keeps = {"drift": self.sums, "logits": self.logits}
        loop = Loop(self.channel, self.job.policy, self._identity(), keeps, self.n_ctx)
        for i in loop.units(self.n_chunks):
            self.session.chunk(i)
            if self._is_unwatched and loop.done == loop.begun:
                self._warn_of_placement()
        report = drift_report(
            (self.job.reference, self.job.quant),
            self.session,
            self.sums,
            self.logits,
            self.files,
            Text(self.job.corpus.name, self.tokens, len(self.tokens), self.n_ctx, self.n_chunks),
            loop,
            self._judge if self._is_whole else self._judge_partly,
            left_out(self.job.watch, local=self.job.local),
        )
        if not self._is_whole or self._other_engines() is None:
            return report
        return replace(
            report,
            kernels=kernel_errors(report.operations),
            circumstances=circumstances_of(self.looks),
        )

    @property
    def _is_whole(self) -> bool:
        """Whether every operation was given the reference's input."""
        return self.job.watch == "all" and self.job.local

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

    def _judge_partly(
        self,
        norms: Sequence[NormDrift],
        operations: Sequence[OperationDrift],
        logits: LogitStatistics | None,
    ) -> tuple[Culprit | None, str]:
        if self._is_unwatched:
            return None, judge_predictions(logits)
        if not self.job.local:
            return judge_cumulative(norms, operations, logits, teller="a run without --no-local")
        graph = self.runners[REFERENCE].graphs[-1]
        pinned = given_its_input(graph)
        given = {graph.nodes[n.output].key for n in graph.norms if n.key in pinned}
        bad_ref = [key for key, total in self.sums.hooks.items() if total.bad_ref]
        return judge_stretches(norms, operations, logits, given, bad_ref)

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
