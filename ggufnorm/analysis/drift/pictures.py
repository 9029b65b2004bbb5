"""``drift`` of two versions of an image encoder (mmproj), on pictures, in mtmd."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.causes import Sides
from ggufnorm.analysis.drift.evidence import gather_evidence
from ggufnorm.analysis.drift.report import Text, drift_report
from ggufnorm.analysis.drift.verdict import judge
from ggufnorm.analysis.inspection import model_facts
from ggufnorm.core.drift import Culprit, DriftReport, ModelFacts, NormDrift, OperationDrift
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.plain import to_plain
from ggufnorm.core.progress import OnProgress, Progress
from ggufnorm.engines.base import EngineInfo
from ggufnorm.engines.images import read_picture
from ggufnorm.engines.llama.encoder import EncoderRunner
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import MismatchError
from ggufnorm.formats.location import open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.checks import require_memory
from ggufnorm.runs.execute import execute
from ggufnorm.runs.identity import Identity, identify
from ggufnorm.runs.lockstep import Replica
from ggufnorm.runs.loop import Loop, Policy
from ggufnorm.runs.probes.drift import FREE, PINNED, REFERENCE, DriftSums
from ggufnorm.runs.probes.logits import LogitSums
from ggufnorm.runs.session import Session
from ggufnorm.samples import default_picture
from ggufnorm.version import __version__

_NO_TOKENS = np.empty(0, np.int32)
_OPTIONS = EngineOptions(n_ctx=0, n_threads=0)
"""Encoders are run in one way only."""


@dataclass(frozen=True)
class PictureJob:
    """What the child runs."""

    reference: ModelFacts
    quant: ModelFacts
    names: tuple[str, ...]
    pictures: tuple[NDArray[np.uint8], ...]
    n_threads: int | None
    policy: Policy

    def identity(self, *engines: EngineInfo) -> Identity:
        """All but the policy, and the engines that run it."""
        return identify(*engines, version=__version__, **to_plain(self, leave_out=("policy",)))


def drift_pictures(
    files: tuple[ModelFile, ModelFile],
    images: Sequence[str | os.PathLike[str]],
    *,
    n_threads: int | None,
    policy: Policy,
    check_memory: bool,
    on_progress: OnProgress,
) -> DriftReport:
    """Run two versions of an image encoder on pictures and measure where they part.

    Args:
        files: the encoder that is right by definition, and the one under test.
        images: files of pictures; a generated picture if there are none.
        n_threads: CPU threads; None for all.
        policy: how long the run lasts.
        check_memory: refuse files that do not fit into the memory that is free.
        on_progress: called as the run goes on.

    Raises:
        InputError: a picture cannot be read, or a file holds no image encoder.
        MismatchError: the files are not two versions of one encoder.
        EngineMissingError: llama-cpp-python is not installed, or lacks mtmd.
        EngineError: llama.cpp fails or crashes.
    """
    _require_same_encoder(*files)
    if check_memory:
        require_memory(list(files), 0, 3)
    names = [os.fspath(image) for image in images]
    job = PictureJob(
        reference=model_facts(files[0]),
        quant=model_facts(files[1]),
        names=tuple(names) or ("generated picture",),
        pictures=tuple(read_picture(image).levels for image in images) or (default_picture(),),
        n_threads=n_threads,
        policy=policy,
    )
    return execute(run_pictures, job, on_progress, policy.resume)


def _require_same_encoder(reference: ModelFile, quant: ModelFile) -> None:
    for name, tensor in reference.tensors.items():
        other = quant.tensors.get(name)
        if other is not None and other.shape != tensor.shape:
            raise MismatchError(
                f"{quant.path} is not a version of {reference.path}: {name} is"
                f" {other.shape} and not {tensor.shape}"
            )


def run_pictures(job: PictureJob, channel: Channel) -> DriftReport:
    """Run all pictures, or as many as there is time for, and report."""
    channel.emit(Progress("loading the encoders"))
    with ExitStack() as stack:
        files = {
            side: stack.enter_context(open_model(facts.path))
            for side, facts in ((REFERENCE, job.reference), (FREE, job.quant))
        }
        sums: DriftSums | None = None
        with ExitStack() as loaded:
            session, sums = _session(job, 0, files, loaded, None)
            identity = job.identity(*(r.info for r in session.runners[: FREE + 1]))
            loop = Loop(channel, job.policy, identity, {"drift": sums}, len(job.pictures))
            for i in loop.units(len(job.pictures)):
                if i:
                    loaded.close()
                    session, sums = _session(job, i, files, loaded, sums)
                session.chunk(0)
            return _report(job, session, sums, files, loop)


def _session(
    job: PictureJob,
    i: int,
    files: dict[int, ModelFile],
    loaded: ExitStack,
    sums: DriftSums | None,
) -> tuple[Session, DriftSums]:
    """The encoders with a picture of theirs, planned, and the sums that go on observing."""
    picture = np.ascontiguousarray(job.pictures[i], np.uint8)
    runners = [
        loaded.enter_context(EncoderRunner(files[side], picture, None, job.n_threads))
        for side in (REFERENCE, FREE, FREE)
    ]
    for runner in runners:
        runner.plan(runner.batches(_NO_TOKENS, 0))
    if sums is None:
        graphs = zip(runners[REFERENCE].graphs, runners[FREE].graphs, strict=True)
        sums = DriftSums(list(graphs), files)
    replicas = [Replica(r, pinned=k == PINNED) for k, r in enumerate(runners)]
    return Session(replicas, [sums], _NO_TOKENS, 0), sums


def _report(
    job: PictureJob, session: Session, sums: DriftSums, files: dict[int, ModelFile], loop: Loop
) -> DriftReport:
    hooks = session.matches[0].hooks
    return drift_report(
        (job.reference, job.quant),
        session,
        sums,
        LogitSums([FREE]),
        files,
        Text(", ".join(job.names), _NO_TOKENS, 0, 0, len(job.pictures)),
        loop,
        partial(_judge, files, sums),
        output=hooks[-1].key if hooks else None,
    )


def _judge(
    files: dict[int, ModelFile],
    sums: DriftSums,
    norms: Sequence[NormDrift],
    operations: Sequence[OperationDrift],
    logits: LogitStatistics | None,
) -> tuple[Culprit | None, str]:
    sides = Sides(_OPTIONS, _OPTIONS)
    return judge(norms, operations, logits, gather_evidence(files, sides, sums, operations))
