"""``drift`` of two versions of an encoder (mmproj) on pictures or sounds, in mtmd."""

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
from ggufnorm.core.model import Skipped
from ggufnorm.core.plain import to_plain
from ggufnorm.core.progress import OnProgress, Progress
from ggufnorm.engines.base import EngineInfo
from ggufnorm.engines.images import read_picture
from ggufnorm.engines.llama.encoder import EncoderRunner
from ggufnorm.engines.llama.mtmd import MakeBitmap
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.engines.llama.sound import sound_bitmap
from ggufnorm.engines.llama.vision import picture_bitmap
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import InputError, MismatchError
from ggufnorm.formats.location import open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.wav import read_sound
from ggufnorm.runs.checks import require_memory
from ggufnorm.runs.execute import execute
from ggufnorm.runs.identity import Identity, identify
from ggufnorm.runs.lockstep import Replica
from ggufnorm.runs.loop import Loop, Policy
from ggufnorm.runs.probes.drift import FREE, PINNED, REFERENCE, DriftSums
from ggufnorm.runs.probes.logits import LogitSums
from ggufnorm.runs.session import Session
from ggufnorm.samples import DEFAULT_RATE, default_picture, default_sound
from ggufnorm.version import __version__

_NO_TOKENS = np.empty(0, np.int32)
_OPTIONS = EngineOptions(n_ctx=0, n_threads=0)
"""Encoders are run in one way only."""


@dataclass(frozen=True)
class EncoderJob:
    """What the child runs.

    Attributes:
        reference: the encoder that is right by definition.
        quant: the one under test.
        names: of what is run.
        pictures: levels, ``(height, width, 3)`` each.
        sounds: samples of one channel each, in the place of pictures.
        rate: of their samples, in Hz.
        n_threads: CPU threads; None for all.
        policy: how long the run lasts.
    """

    reference: ModelFacts
    quant: ModelFacts
    names: tuple[str, ...]
    pictures: tuple[NDArray[np.uint8], ...]
    sounds: tuple[NDArray[np.float32], ...]
    rate: int
    n_threads: int | None
    policy: Policy

    def identity(self, *engines: EngineInfo) -> Identity:
        """All but the policy, and the engines that run it."""
        return identify(*engines, version=__version__, **to_plain(self, leave_out=("policy",)))

    @property
    def n_inputs(self) -> int:
        """How many pictures or sounds there are."""
        return len(self.pictures) or len(self.sounds)

    def bitmap(self, path: str, i: int) -> MakeBitmap:
        """How mtmd takes one of them."""
        if self.pictures:
            return picture_bitmap(path, np.ascontiguousarray(self.pictures[i], np.uint8))
        return sound_bitmap(path, np.ascontiguousarray(self.sounds[i], np.float32), self.rate)


def drift_encoders(
    files: tuple[ModelFile, ModelFile],
    images: Sequence[str | os.PathLike[str]],
    sounds: Sequence[str | os.PathLike[str]] = (),
    *,
    n_threads: int | None,
    policy: Policy,
    check_memory: bool,
    on_progress: OnProgress,
) -> DriftReport:
    """Run two versions of an encoder on pictures or sounds and measure where they part.

    Args:
        files: the encoder that is right by definition, and the one under test.
        images: files of pictures; if there are neither these nor sounds, a generated picture,
            or a generated sound where the files have no encoder of pictures.
        sounds: WAV files, for encoders of sounds.
        n_threads: CPU threads; None for all.
        policy: how long the run lasts.
        check_memory: refuse files that do not fit into the memory that is free.
        on_progress: called as the run goes on.

    Raises:
        InputError: a picture or a sound cannot be read, there are both, or a file holds no
            such encoder.
        MismatchError: the files are not two versions of one encoder.
        EngineMissingError: llama-cpp-python is not installed, or lacks mtmd.
        EngineError: llama.cpp fails or crashes.
    """
    _require_same_encoder(*files)
    if check_memory:
        require_memory(list(files), 0, 3)
    inputs = _inputs(images, sounds, has_vision=_has_vision(files[0]))
    job = EncoderJob(
        reference=model_facts(files[0]),
        quant=model_facts(files[1]),
        names=inputs.names,
        pictures=inputs.pictures,
        sounds=inputs.sounds,
        rate=inputs.rate,
        n_threads=n_threads,
        policy=policy,
    )
    return execute(run_encoders, job, on_progress, policy.resume)


def _has_vision(file: ModelFile) -> bool:
    """Whether a file has an encoder of pictures; old ones do not say so."""
    sounds = file.metadata.get("clip.has_audio_encoder") is True
    return file.metadata.get("clip.has_vision_encoder", not sounds) is True


@dataclass(frozen=True)
class _Inputs:
    """What is run: pictures, or sounds of one rate. See :class:`EncoderJob`."""

    names: tuple[str, ...]
    pictures: tuple[NDArray[np.uint8], ...] = ()
    sounds: tuple[NDArray[np.float32], ...] = ()
    rate: int = 0


def _inputs(
    images: Sequence[str | os.PathLike[str]],
    sounds: Sequence[str | os.PathLike[str]],
    *,
    has_vision: bool,
) -> _Inputs:
    if images and sounds:
        raise InputError("give pictures or sounds: each has an encoder of its own")
    names = tuple(os.fspath(path) for path in (*images, *sounds))
    if sounds:
        read = [read_sound(sound) for sound in sounds]
        rates = {sound.rate for sound in read}
        if len(rates) > 1:
            raise InputError(f"the sounds have {len(rates)} rates: give them one, the encoder's")
        samples = tuple(s.channels.mean(axis=0).astype(np.float32) for s in read)
        return _Inputs(names, sounds=samples, rate=rates.pop())
    if images:
        return _Inputs(names, tuple(read_picture(image).levels for image in images))
    if has_vision:
        return _Inputs(("generated picture",), (default_picture(),))
    return _Inputs(("generated sound",), sounds=(default_sound(),), rate=DEFAULT_RATE)


def _require_same_encoder(reference: ModelFile, quant: ModelFile) -> None:
    for name, tensor in reference.tensors.items():
        other = quant.tensors.get(name)
        if other is not None and other.shape != tensor.shape:
            raise MismatchError(
                f"{quant.path} is not a version of {reference.path}: {name} is"
                f" {other.shape} and not {tensor.shape}"
            )


def run_encoders(job: EncoderJob, channel: Channel) -> DriftReport:
    """Run all inputs, or as many as there is time for, and report."""
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
            loop = Loop(channel, job.policy, identity, {"drift": sums}, job.n_inputs)
            for i in loop.units(job.n_inputs):
                if i:
                    loaded.close()
                    session, sums = _session(job, i, files, loaded, sums)
                session.chunk(0)
            return _report(job, session, sums, files, loop)


def _session(
    job: EncoderJob,
    i: int,
    files: dict[int, ModelFile],
    loaded: ExitStack,
    sums: DriftSums | None,
) -> tuple[Session, DriftSums]:
    """The encoders with an input of theirs, planned, and the sums that go on observing."""
    runners = [
        loaded.enter_context(
            EncoderRunner(files[side], job.bitmap(files[side].path, i), None, job.n_threads)
        )
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
    job: EncoderJob, session: Session, sums: DriftSums, files: dict[int, ModelFile], loop: Loop
) -> DriftReport:
    hooks = session.matches[0].hooks
    return drift_report(
        (job.reference, job.quant),
        session,
        sums,
        LogitSums([FREE]),
        files,
        Text(", ".join(job.names), _NO_TOKENS, 0, 0, job.n_inputs),
        loop,
        partial(_judge, files, sums),
        skipped=_unheard(job, files[REFERENCE]),
        output=hooks[-1].key if hooks else None,
    )


def _unheard(job: EncoderJob, file: ModelFile) -> list[Skipped]:
    """The other encoder, of a file with two."""
    senses = ("clip.has_vision_encoder", "clip.has_audio_encoder")
    if not all(file.metadata.get(key) is True for key in senses):
        return []
    what, option = ("sounds", "--sound") if job.pictures else ("pictures", "--image")
    return [Skipped("encoders", f"that of {what} was not run (give {option})")]


def _judge(
    files: dict[int, ModelFile],
    sums: DriftSums,
    norms: Sequence[NormDrift],
    operations: Sequence[OperationDrift],
    logits: LogitStatistics | None,
) -> tuple[Culprit | None, str]:
    sides = Sides(_OPTIONS, _OPTIONS)
    return judge(norms, operations, logits, gather_evidence(files, sides, sums, operations))
