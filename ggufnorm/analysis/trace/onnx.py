"""``trace`` of an ONNX file: ONNX Runtime runs it, and what its norms show is written down."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.run import Progress, require_extent
from ggufnorm.analysis.trace.ids import ids_run
from ggufnorm.analysis.trace.observed import Observed, Plan, files_facts, write_trace
from ggufnorm.analysis.trace.reader import Trace
from ggufnorm.analysis.trace.replay import compare_traces
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.trace import TraceFacts, TraceType
from ggufnorm.engines.onnx.session import OnnxSession
from ggufnorm.engines.tokenizer import Tokenizer
from ggufnorm.errors import InputError
from ggufnorm.formats.forms import parse
from ggufnorm.samples import text_to_run

Tokens = NDArray[np.int32]

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
    on_progress: Callable[[Progress], None] = lambda _progress: None,
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
    plan = Plan(n_ctx, chunks, logits, dtype, budget)
    session = OnnxSession(location, n_threads=n_threads)
    if not session.norms:
        raise InputError(f"{location}: the graph has no norm")
    if not session.takes_tokens:
        raise InputError(
            f"{location}: it takes no token ids, and a trace is of tokens: use compare"
        )
    path = Path(location)
    tokenizer = Tokenizer.beside(path)
    if ids is None:
        ids, text_name = _ids(session, tokenizer, text, text_name, plan)
    observed = Observed(
        path=path,
        model=files_facts(path, session.model.files(), "onnx"),
        architecture="onnx",
        n_vocab=lambda: session.n_vocab,
        n_threads=n_threads or os.cpu_count() or 1,
        tokenizer=tokenizer,
        run=session.run,
    )
    return write_trace(observed, ids, text_name, out, plan, on_progress)


def _ids(
    session: OnnxSession, tokenizer: Tokenizer | None, text: str | None, text_name: str, plan: Plan
) -> tuple[Tokens, str]:
    """Ids, and where they came from."""
    if tokenizer is not None:
        text, text_name = text_to_run(text, text_name)
        return tokenizer.ids(text), text_name
    if text is not None:
        raise InputError(f"{session.model.path}: no tokenizer beside it to run a text: give --ids")
    n = plan.n_ctx * (plan.chunks or _ANY_CHUNKS)
    ids = np.random.default_rng(0).integers(0, session.n_vocab, n)
    return ids.astype(np.int32), "random token ids"


def compare_with_onnx(
    ref: str,
    quant: str,
    *,
    n_threads: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> DriftReport:
    """Compare a trace with an ONNX file, which is run on the trace's own tokens.

    Args:
        ref: the side that is right by definition: the trace or the model.
        quant: the other one.
        n_threads: CPU threads for the model; None leaves ONNX Runtime's choice.
        on_progress: called as the run goes on.

    Raises:
        InputError: a file cannot be opened, or the trace is none.
        MismatchError: they are not runs of one network.
        EngineMissingError: onnx or onnxruntime is not installed.
        EngineError: ONNX Runtime fails.
    """
    is_model = [parse(location).kind == "onnx" for location in (ref, quant)]
    model, trace = (ref, quant) if is_model[0] else (quant, ref)
    with tempfile.TemporaryDirectory() as folder, Trace(trace) as t:
        own, f = Path(folder) / "run.safetensors", t.facts
        trace_onnx(
            model,
            own,
            text_name=f.text,
            ids=ids_run(t),
            n_ctx=f.n_ctx,
            n_threads=n_threads,
            logits=f.logits,
            on_progress=on_progress,
        )
        with Trace(own) as run:
            a, b = (run, t) if is_model[0] else (t, run)
            return compare_traces(a, b, lambda _done, _seconds: None)
