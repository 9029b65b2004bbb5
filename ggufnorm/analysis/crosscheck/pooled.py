"""What llama.cpp makes one embedding or score of: a text alone, and in a batch of several."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ggufnorm.analysis.crosscheck.llama import RunJob, Tokens
from ggufnorm.core.observed import Array
from ggufnorm.engines import worker
from ggufnorm.engines.base import Batch
from ggufnorm.engines.llama.session import LlamaContext, LlamaModel
from ggufnorm.engines.worker import Channel
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.options import RunSettings

POOLING = ("none", "mean", "cls", "last", "rank")
"""``enum llama_pooling_type`` in ``llama.h``."""
RANK = POOLING.index("rank")


@dataclass(frozen=True)
class OutputJob:
    """A text to be made one embedding or score of.

    Attributes:
        run: the model and its tokens.
        pooling: number in :data:`POOLING`.
        n_values: of the result; of each token without pooling.
        n_short: tokens of a shorter text, the first ones, that is run alone and beside the
            whole; None for none.
    """

    run: RunJob
    pooling: int
    n_values: int
    n_short: int | None


@dataclass(frozen=True)
class Output:
    """What came of it; None where llama.cpp gives nothing.

    Attributes:
        value: of the text, as llama-server has it: by ``llama_decode``.
        encoded: of an encoder alone, by ``llama_encode``; None of other models.
        alone: of the shorter text.
        batched: of the shorter text, behind the whole one in one batch.
    """

    value: Array | None
    encoded: Array | None = None
    alone: Array | None = None
    batched: Array | None = None


def run_output(
    file: ModelFile,
    tokens: Tokens,
    pooling: int,
    n_values: int,
    how: RunSettings,
    n_short: int | None = None,
) -> Output:
    """Run a text as llama-server runs it for an embedding or a score.

    Args:
        file: the model, on this machine.
        tokens: ids.
        pooling: number in :data:`POOLING`.
        n_values: of the result; of each token without pooling.
        how: it is run.
        n_short: tokens of a shorter text, the first ones, to run alone and beside the whole.

    Raises:
        EngineError: llama.cpp fails or crashes.
    """
    options = how.engine(len(tokens))
    job = RunJob(os.fspath(file.path), options, None, tokens)
    return worker.call(observe_output, OutputJob(job, pooling, n_values, n_short))


def observe_output(job: OutputJob, _channel: Channel) -> Output:
    """The child's part of :func:`run_output`."""
    tokens = job.run.tokens
    assert tokens is not None
    with LlamaModel(job.run.model, job.run.options) as model:
        if model.n_result(scores=job.pooling == RANK) != job.n_values:
            return Output(None)
        value = _of_text(model, job, tokens)
        encoded = _of_text(model, job, tokens, encode=True) if model.encodes_only else None
        if job.n_short is None or not job.pooling:
            return Output(value, encoded)
        short = tokens[: job.n_short]
        alone = _of_text(model, job, short)
        with LlamaContext(model, job.run.options, None, 2, job.pooling) as context:
            context.decode_texts([tokens, short])
            return Output(value, encoded, alone, context.pooled(job.n_values, 1))


def _of_text(
    model: LlamaModel, job: OutputJob, tokens: Tokens, *, encode: bool = False
) -> Array | None:
    with LlamaContext(model, job.run.options, None, pooling=job.pooling) as context:
        context.decode(Batch(tokens, 0, len(tokens), tokens[:0], 0, 0, 0, encode=encode))
        if job.pooling:
            return context.pooled(job.n_values)
        return context.embeddings(len(tokens), job.n_values)
