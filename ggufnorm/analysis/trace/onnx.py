"""``trace`` of an ONNX file: ONNX Runtime runs it, and what its norms show is written down."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ggufnorm.analysis.trace.compare import compare_runs
from ggufnorm.analysis.trace.hf import files_facts, write_trace
from ggufnorm.analysis.trace.ids import ids_run
from ggufnorm.analysis.trace.record import Source
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.progress import OnProgress, Progress, no_progress
from ggufnorm.core.trace import TraceFacts, TraceType
from ggufnorm.engines.base import Tokens
from ggufnorm.engines.observed import ObservedRunner
from ggufnorm.engines.onnx.session import OnnxSession
from ggufnorm.engines.tokenizer import Tokenizer
from ggufnorm.engines.trace.reader import Trace
from ggufnorm.engines.trace.runner import TraceRunner
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import InputError, MismatchError
from ggufnorm.formats.forms import parse
from ggufnorm.runs.checks import require_extent, require_same_network
from ggufnorm.runs.loop import Policy
from ggufnorm.runs.session import chunk_batches
from ggufnorm.samples import text_to_run

_ANY_CHUNKS = 4
"""Chunks of random ids, where the plan does not say how many."""


def trace_onnx(
    location: str,
    out: str | os.PathLike[str],
    *,
    text: str | None = None,
    text_name: str = "given text",
    ids: Tokens | None = None,
    n_ctx: int = 512,
    chunks: int | None = None,
    n_threads: int | None = None,
    logits: bool = True,
    dtype: TraceType = "f32",
    budget: int | None = None,
    ask_above: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    on_progress: OnProgress = no_progress,
) -> TraceFacts:
    """Run an ONNX file in ONNX Runtime and write down its norms and logits.

    Args:
        location: path of a model that takes token ids.
        out: the trace to write; it appears only when it is complete.
        text: what to run, by the tokenizer in the model's folder or in the one above; None
            for the bundled text, or without a tokenizer for random ids, the same each time.
        text_name: how a report calls it, or the ids.
        ids: token ids to run in the place of a text; no tokenizer is needed.
        n_ctx: tokens of a chunk; each chunk starts afresh, its second half is scored.
        chunks: run at most so many; None for the whole text, or four.
        n_threads: CPU threads; None leaves ONNX Runtime's choice.
        logits: whether to store the logits of the scored positions.
        dtype: how to store all other values.
        budget: bytes that the file may take; evenly spaced tokens are chosen to keep it.
        ask_above: refuse a file of more bytes, if there is no budget; None for any size.
        resume: a file in which progress is kept; if it holds some, the run goes on there.
        on_progress: called as the run goes on.

    Returns:
        What the trace says of itself.

    Raises:
        EngineMissingError: onnx or onnxruntime is not installed, or there is a tokenizer and
            transformers is not.
        InputError: the file is not ONNX, has no norm, takes no tokens or fixes their number,
            there is a text and no tokenizer, or the trace cannot be written.
        TextError: the text is empty or shorter than one chunk.
        EngineError: ONNX Runtime does not take the model or fails.
        ValueError: ``n_ctx`` or ``chunks`` is out of range.
    """
    require_extent(n_ctx, chunks)
    session = _open(location, n_threads)
    path = Path(location)
    tokenizer = Tokenizer.beside(path)
    if ids is None:
        n_random = n_ctx * (chunks or _ANY_CHUNKS)
        ids, text_name = _ids(session, tokenizer, text, text_name, n_random)
    source = Source(files_facts(path, session.model.files(), "onnx"), ids, text_name)
    runner = _runner(session, tokenizer, path, n_threads)
    return write_trace(
        runner, source, out, n_ctx, chunks, logits, dtype, budget, ask_above, resume, on_progress
    )


def _open(location: str, n_threads: int | None) -> OnnxSession:
    session = OnnxSession(location, n_threads=n_threads)
    if not session.norms:
        raise InputError(f"{location}: the graph has no norm")
    if not session.takes_tokens:
        raise InputError(
            f"{location}: it takes no token ids, and a trace is of tokens: use compare"
        )
    return session


def _runner(
    session: OnnxSession, tokenizer: Tokenizer | None, path: Path, n_threads: int | None
) -> ObservedRunner:
    return ObservedRunner(
        os.fspath(path),
        session.run,
        architecture="onnx",
        n_threads=n_threads or os.cpu_count() or 1,
        tokenizer=tokenizer,
        n_vocab=lambda: session.n_vocab,
    )


def _ids(
    session: OnnxSession,
    tokenizer: Tokenizer | None,
    text: str | None,
    text_name: str,
    n_random: int,
) -> tuple[Tokens, str]:
    """Ids, and where they came from."""
    if tokenizer is not None:
        text, text_name = text_to_run(text, text_name)
        return tokenizer.ids(text), text_name
    if text is not None:
        raise InputError(f"{session.model.path}: no tokenizer beside it to run a text: give --ids")
    ids = np.random.default_rng(0).integers(0, session.n_vocab, n_random)
    return ids.astype(np.int32), "random token ids"


def compare_with_onnx(
    ref: str,
    quant: str,
    *,
    n_threads: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    budget: float | None = None,
    on_progress: OnProgress = no_progress,
) -> DriftReport:
    """Compare a trace with an ONNX file, which is run on the trace's own tokens.

    Args:
        ref: the side that is right by definition: the trace or the model.
        quant: the other one.
        n_threads: CPU threads for the model; None leaves ONNX Runtime's choice.
        resume: a file in which progress is kept; if it holds some, the run goes on there.
        budget: seconds after which no further chunk begins; None for no limit.
        on_progress: called as the run goes on.

    Raises:
        InputError: a file cannot be opened, or the trace is none.
        MismatchError: they are not runs of one network.
        EngineMissingError: onnx or onnxruntime is not installed.
        EngineError: ONNX Runtime fails.
    """
    is_model = [parse(location).kind == "onnx" for location in (ref, quant)]
    model, trace = (ref, quant) if is_model[0] else (quant, ref)
    with Trace(trace) as t:
        f, path = t.facts, Path(model)
        on_progress(Progress(f"running {path}", 0, f.n_chunks))
        session = _open(model, n_threads)
        runner = _runner(session, Tokenizer.beside(path), path, n_threads)
        runner.plan(chunk_batches(runner, ids_run(t), 0, f.n_ctx))
        sides = [(runner.network(), os.fspath(path)), (f.network, t.path)]
        (a, a_is), (b, b_is) = sides if is_model[0] else reversed(sides)
        require_same_network(a, b, a_is, b_is)
        if len(f.batches) != 1 or f.n_vocab != runner.n_vocab:
            raise MismatchError(f"{model} cannot be compared with {trace}: it is another model")
        facts = files_facts(path, session.model.files(), "onnx")
        mine, theirs = (runner, facts), (TraceRunner(t), f.model)
        policy = Policy(None if resume is None else os.fspath(resume), budget=budget)
        both = (mine, theirs) if is_model[0] else (theirs, mine)
        return compare_runs(both, {}, t, runner, Channel(on_progress), policy)
