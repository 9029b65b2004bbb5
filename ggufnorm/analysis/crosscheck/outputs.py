"""The result that people use, where it is no prediction: a pooled embedding or a score."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ggufnorm.analysis.crosscheck.llama import RunJob, Tokens
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import Array, SourceOutput
from ggufnorm.engines import worker
from ggufnorm.engines.base import Batch
from ggufnorm.engines.llama.session import LlamaContext, LlamaModel
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import EngineError
from ggufnorm.formats.dequantize import read_tensor
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.options import EXACT, on_servers

EMBEDDING, SCORE, STATES = "pooled embedding", "score", "token embeddings"
POOLING = ("none", "mean", "cls", "last", "rank")
"""``enum llama_pooling_type`` in ``llama.h``."""
_RANK = POOLING.index("rank")


@dataclass(frozen=True)
class OutputJob:
    """A text to be made one embedding or score of.

    Attributes:
        run: the model and its tokens.
        pooling: number in :data:`POOLING`.
        n_values: of the result; of each token without pooling.
    """

    run: RunJob
    pooling: int
    n_values: int


@dataclass(frozen=True)
class Output:
    """What came of it; None where llama.cpp gives nothing."""

    value: Array | None


@dataclass(frozen=True)
class OutputComparison:
    """A file's embedding or score beside the source's.

    Attributes:
        what: it is.
        off: relative L2 distance, of a score relative to the terms that it is the sum of; None
            where it was not compared or is not finite.
        reason: why it is another, empty where none is known.
        is_wrong: whether it is another whatever the size, by what the file states.
        skipped: why it was not compared; None if it was.
    """

    what: str
    off: float | None
    reason: str = ""
    is_wrong: bool = False
    skipped: Skipped | None = None


def compare_output(
    source: SourceOutput, location: str, tokens: Tokens, n_threads: int | None, *, predicts: bool
) -> OutputComparison | None:
    """The file's embedding or score beside the source's; None where both only predict.

    Args:
        source: what the checkpoint gives.
        location: of the GGUF file.
        tokens: ids.
        n_threads: CPU threads; None for all.
        predicts: whether both sides give logits.

    Raises:
        EngineError: llama.cpp fails or crashes.
    """
    with open_model(local_path(location)) as file:
        stated = file.metadata.integer(f"{file.architecture}.pooling_type")
        if source.classifier is not None:
            return _compare_score(source, file, tokens, n_threads)
        if source.pooling is None and not stated:
            return None if predicts else _compare_states(source, file, tokens, n_threads)
        return _compare_pooled(source, file, stated, tokens, n_threads)


def _run(
    file: ModelFile, tokens: Tokens, pooling: int, n_values: int, n_threads: int | None
) -> Array | None:
    options = on_servers(EXACT).engine(len(tokens), n_threads)
    job = RunJob(os.fspath(file.path), options, None, tokens)
    return worker.call(observe_output, OutputJob(job, pooling, n_values)).value


def observe_output(job: OutputJob, _channel: Channel) -> Output:
    """The child's part of :func:`compare_output`."""
    tokens = job.run.tokens
    assert tokens is not None
    with (
        LlamaModel(job.run.model, job.run.options) as model,
        LlamaContext(model, job.run.options, None, pooling=job.pooling) as context,
    ):
        if model.n_result(scores=job.pooling == _RANK) != job.n_values:
            return Output(None)
        context.decode(Batch(tokens, 0, len(tokens), tokens[:0], 0, 0, 0))
        if job.pooling:
            return Output(context.pooled(job.n_values))
        return Output(context.embeddings(len(tokens), job.n_values))


# -- one embedding --------------------------------------------------------------------------


def pool(states: Array, mode: str) -> Array | None:
    """One embedding of the states of all tokens; None in a way that is not known."""
    ways = {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1],
            "max": states.max(axis=0)}  # fmt: skip
    return ways.get(mode)


def _compare_pooled(
    source: SourceOutput,
    file: ModelFile,
    stated: int | None,
    tokens: Tokens,
    n_threads: int | None,
) -> OutputComparison:
    key = f"{file.architecture}.pooling_type"
    ours = POOLING[stated] if stated is not None and 0 <= stated < len(POOLING) else "none"
    mode = source.pooling or ours
    if source.pooling is not None and ours == "none":
        reason = f"the source pools by {mode} (1_Pooling/config.json), and the file states no {key}"
        return OutputComparison(EMBEDDING, None, f"{reason}: llama.cpp does not pool", True)
    theirs = None if source.states is None else pool(source.states, mode)
    if theirs is None or ours == "rank":
        return _skipped(EMBEDDING, f"pooling by {mode} is not computed here")
    if source.modules:
        return _skipped(EMBEDDING, f"the source runs {', '.join(source.modules)} behind it")
    value = _run(file, tokens, POOLING.index(ours), len(theirs), n_threads)
    if value is None:
        return _skipped(EMBEDDING, "llama.cpp gives none")
    off = relative_l2(theirs, value)
    if ours == mode:
        return OutputComparison(EMBEDDING, off)
    reason = f"the file pools by {ours} ({key} {stated}), the source by {mode}"
    mend = (
        f" (1_Pooling/config.json): it should be {POOLING.index(mode)}" if mode in POOLING else ""
    )
    return OutputComparison(EMBEDDING, off, reason + mend, True)


def _compare_states(
    source: SourceOutput, file: ModelFile, tokens: Tokens, n_threads: int | None
) -> OutputComparison:
    """What leaves the last layer, where neither side says how it is pooled."""
    states = source.states
    if states is None:
        return _skipped(STATES, "Transformers shows none")
    value = _run(file, tokens, 0, states.shape[1], n_threads)
    if value is None:
        return _skipped(STATES, "llama.cpp gives none")
    return OutputComparison(STATES, relative_l2(states, value))


def _skipped(what: str, why: str) -> OutputComparison:
    return OutputComparison(what, None, skipped=Skipped(what, why))


# -- a score ---------------------------------------------------------------------------------


def _compare_score(
    source: SourceOutput, file: ModelFile, tokens: Tokens, n_threads: int | None
) -> OutputComparison:
    if source.score is None:
        return _skipped(SCORE, f"Transformers does not load {source.classifier}")
    if not any(name in file.tensors for name in ("cls.output.weight", "cls.weight")):
        return _skipped(
            SCORE, f"the file has no cls.output.weight, the source is {source.classifier}"
        )
    try:
        value = _run(file, tokens, _RANK, len(source.score), n_threads)
    except EngineError as error:
        return _skipped(SCORE, str(error))
    if value is None:
        return _skipped(SCORE, "llama.cpp gives none")
    # A score near zero is the difference of large terms, and rounding is relative to those.
    n = len(source.score)
    last = [w for w in source.head.values() if w.ndim == 2 and len(w) == n]
    terms = [float(np.linalg.norm(w) * np.sqrt(w.shape[1] / n)) for w in last]
    size = max(float(np.linalg.norm(source.score)), *terms, 0.0)
    off = float(np.linalg.norm(source.score - value)) / size if size else 0.0
    lost = _lost(source.head, file)
    numbers = f"{_shown(source.score)} in the source, {_shown(value)} in llama.cpp"
    names = f"; {', '.join(lost)} of the source became nothing in the file" if lost else ""
    return OutputComparison(SCORE, off if np.isfinite(off) else None, numbers + names)


def _shown(values: Array) -> str:
    return ", ".join(f"{v:.4g}" for v in values[:4].tolist())


def _lost(head: Mapping[str, Array], file: ModelFile) -> list[str]:
    """Weights behind the network that are in no tensor of the file's head."""
    ours = []
    for name in file.tensors:
        if name.startswith("cls."):
            ours.append(np.squeeze(read_tensor(file, name)))
    return [
        name
        for name, values in head.items()
        if not any(_is_same(np.squeeze(values), other) for other in ours)
    ]


def _is_same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and relative_l2(a, b) < 0.1
