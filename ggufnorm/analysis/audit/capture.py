"""Runs one model on one short text, for the rules that need a run."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass

from ggufnorm.core.capture import Capture
from ggufnorm.engines import worker
from ggufnorm.engines.llama.runner import LlamaRunner
from ggufnorm.engines.llama.session import EngineOptions, LlamaModel
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import EngineError, RefusedError
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.lockstep import Replica
from ggufnorm.runs.options import RunSettings, is_plain
from ggufnorm.runs.placement import Side, misplaced, settle
from ggufnorm.runs.probes.norms import NormCaptures
from ggufnorm.runs.session import Session
from ggufnorm.samples import default_text

N_TOKENS = 128
"""Length of the text, where the model's context is not shorter."""
_LETTERS = 64
"""Letters of the text to a token, more than enough."""


@dataclass(frozen=True)
class CaptureJob:
    """A model to run once.

    Attributes:
        model: path of the file that is run.
        file: path of the file that says what its norms are.
    """

    model: str
    file: str
    text: str
    options: EngineOptions


def capture(
    location: str | os.PathLike[str],
    *,
    text: str | None = None,
    n_tokens: int = N_TOKENS,
    how: RunSettings | None = None,
) -> Capture:
    """Run a model once and note what its norms do.

    Args:
        location: of the model; it must be on this machine
            (:mod:`ggufnorm.formats.location`).
        text: what to run; None for the bundled text.
        n_tokens: of the text, fewer where the model's context is shorter.
        how: it is run; None for the CPU with all threads.

    Raises:
        InputError: the model cannot be opened, or is not on this machine.
        RefusedError: a device that it is to be put on is not there, or is not used.
        EngineMissingError: llama-cpp-python is not installed.
        MemoryLimitError: the model does not fit into the memory.
        EngineError: llama.cpp does not load the model, or fails or crashes with it.
    """
    path = local_path(location)
    with open_model(path) as file:
        n_ctx = min(
            n_tokens, file.metadata.integer(f"{file.architecture}.context_length") or n_tokens
        )
        how = how or RunSettings()
        (options,) = settle([Side(file, how.engine(n_ctx), 1)], check_memory=how.check_memory)
    name, text = os.fspath(path), (text or default_text())[: _LETTERS * n_ctx]
    found = worker.call(run_capture, CaptureJob(name, name, text, options))
    if (wrong := misplaced(found.build)) is not None:
        raise RefusedError(wrong)
    return found


def require_placement(file: ModelFile, how: RunSettings) -> None:
    """Refuse devices that a build does not have, before a rule needs the run.

    Raises:
        ConfigError: an override's pattern is no regular expression.
        RefusedError: a device is not there, or an override matches no tensor.
        EngineError: the build does not load, or a server of ``--rpc`` does not answer.
    """
    if not is_plain(how.side) and file.architecture != "clip":
        settle([Side(file, how.engine(N_TOKENS), 1)], check_memory=False)


def run_capture(job: CaptureJob, _channel: Channel) -> Capture:
    """The child's part of :func:`capture`."""
    with ExitStack() as stack:
        file = stack.enter_context(open_model(job.file))
        model = stack.enter_context(LlamaModel(job.model, job.options))
        runner = stack.enter_context(LlamaRunner(model, job.options, file))
        tokens = model.tokenize(job.text)[: job.options.n_ctx]
        if len(tokens) == 0:
            raise EngineError(f"{file.path}: llama.cpp cuts the text into no tokens")
        runner.plan(runner.batches(tokens, 0))
        norms = NormCaptures(runner.graphs, file)
        Session([Replica(runner)], [norms], tokens, len(tokens)).chunk(0)
        return norms.result(len(tokens), runner.info)
