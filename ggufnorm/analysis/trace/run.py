"""``trace`` and ``compare``: check the files, run a child process, return what was found."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ggufnorm.analysis.drift.run import (
    Progress,
    SideOptions,
    network_facts,
    progress_of,
    require_extent,
    require_memory,
    require_same_network,
)
from ggufnorm.analysis.inspection import model_facts
from ggufnorm.analysis.trace.reader import Trace
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.core.trace import TraceFacts, TraceType
from ggufnorm.engines.child import run_in_child
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.engines.llama.tokens import text_of_job
from ggufnorm.errors import InputError
from ggufnorm.formats.files import open_regular
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.replace import replacing
from ggufnorm.samples import text_to_run

_PLAIN = SideOptions()


def trace(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    text: str | None = None,
    text_name: str = "given text",
    n_ctx: int = 512,
    chunks: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    options: SideOptions = _PLAIN,
    logits: bool = True,
    dtype: TraceType = "f32",
    budget: int | None = None,
    check_memory: bool = True,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> TraceFacts:
    """Run a model on a text and write down what every watched operation gives.

    Args:
        model: location of the model; it must be on this machine
            (:mod:`ggufnorm.formats.location`).
        out: the trace to write, a safetensors file; it appears only when it is complete.
        text: what to run; None for the bundled text.
        text_name: how a report calls it.
        n_ctx: tokens of a chunk; each chunk starts afresh, its second half is scored.
        chunks: run at most so many; None for the whole text.
        n_threads: CPU threads; None for all.
        n_gpu_layers: layers to put on a GPU that llama.cpp was built for.
        options: how the model is run.
        logits: whether to store the logits of the scored positions.
        dtype: how to store all other values.
        budget: bytes that the file may take; evenly spaced tokens are chosen to keep it.
        check_memory: refuse a model that does not fit into the memory that is free.
        on_progress: called as the run goes on; before it, with a note of what the file takes.

    Returns:
        What the trace says of itself.

    Raises:
        InputError: the model cannot be opened or is not GGUF, the trace cannot be written,
            does not fit on the disk, or not even a few tokens of it fit into the budget.
        TextError: the text is empty or shorter than one chunk.
        EngineMissingError: llama-cpp-python is not installed.
        EngineError: llama.cpp fails or crashes, or the model does not fit into memory.
        KeyboardInterrupt: after a Ctrl-C; no trace is left.
        ValueError: ``n_ctx`` or ``chunks`` is out of range.
    """
    require_extent(n_ctx, chunks)
    text, text_name = text_to_run(text, text_name)
    path = local_path(model)
    with open_model(path) as file:
        facts = model_facts(file)
        if check_memory:
            require_memory([file], n_ctx, 1)
    if Path(out).exists() and Path(out).samefile(path):
        raise InputError(f"{out} is the model itself: give another file for the trace (-o)")
    from ggufnorm.analysis.trace.record import record

    with replacing(out) as unfinished:
        job = {
            "model": to_plain(facts),
            **text_of_job(text, [facts.path]),
            "text_name": text_name,
            "chunks": chunks,
            "options": _engine_options(n_ctx, n_threads, n_gpu_layers, options),
            "logits": logits,
            "dtype": dtype,
            "budget": budget,
            "out": os.fspath(out),
            "unfinished": os.fspath(unfinished),
        }
        result = run_in_child(
            record, job, lambda message: on_progress(progress_of(message)), heeds_stop=True
        )
        if result["facts"] is None:
            raise KeyboardInterrupt
    return from_plain(TraceFacts, result["facts"])


def compare(
    ref: str | os.PathLike[str],
    quant: str | os.PathLike[str],
    *,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    options: SideOptions = _PLAIN,
    check_memory: bool = True,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> DriftReport:
    """Compare two traces, or a trace with a model that is run on the trace's own tokens.

    The report is :func:`~ggufnorm.analysis.drift.run.drift`'s, without local errors: a trace
    tells what came out of an operation, not what it does to another's input.

    Args:
        ref: the side that is right by definition: a trace or a model's location.
        quant: the side under test: a trace or a model's location. One of the two is a trace.
        n_threads: CPU threads for the model; None for all.
        n_gpu_layers: layers of the model to put on a GPU that llama.cpp was built for.
        options: how the model is run.
        check_memory: refuse a model that does not fit into the memory that is free.
        on_progress: called as the run goes on.

    Raises:
        InputError: a file cannot be opened, or is neither a model nor a trace.
        MismatchError: they are not runs of one network on the same tokens.
        EngineMissingError: a model is to be run, and llama-cpp-python is not installed.
        EngineError: llama.cpp fails or crashes, or the model does not fit into memory.

    A Ctrl-C ends a model's run after the current chunk and returns what was compared so far.
    """
    paths = [local_path(ref), local_path(quant)]
    models = [_is_gguf(path) for path in paths]
    if all(models):
        raise InputError(f"{ref} and {quant} are both models: use drift")
    if not any(models):
        return _compare_traces(paths[0], paths[1], on_progress)
    model, trace_path = paths if models[0] else reversed(paths)
    with Trace(trace_path) as t, open_model(model) as file:
        sides = [(network_facts(file), file.path), (t.facts.network, t.path)]
        (a, a_is), (b, b_is) = sides if models[0] else reversed(sides)
        require_same_network(a, b, a_is, b_is)
        facts, n_ctx = model_facts(file), t.facts.n_ctx
        if check_memory:
            require_memory([file], n_ctx, 1)
    job = {
        "trace": os.fspath(trace_path),
        "model": to_plain(facts),
        "model_is_reference": models[0],
        "options": _engine_options(n_ctx, n_threads, n_gpu_layers, options),
    }
    from ggufnorm.analysis.trace.replay import compare_with_model

    result = run_in_child(
        compare_with_model, job, lambda message: on_progress(progress_of(message)), heeds_stop=True
    )
    return from_plain(DriftReport, result)


def _compare_traces(ref: Path, quant: Path, on_progress: Callable[[Progress], None]) -> DriftReport:
    from ggufnorm.analysis.trace.replay import compare_traces

    with Trace(ref) as a, Trace(quant) as b:
        total, n_ctx = a.facts.n_chunks, a.facts.n_ctx

        def show(done: int, seconds: float) -> None:
            speed = done * n_ctx / max(seconds, 1e-9)
            on_progress(Progress("comparing", done, total, speed, seconds / done * (total - done)))

        return compare_traces(a, b, show)


def is_model(location: str | os.PathLike[str]) -> bool:
    """Whether a location is a model's, and not a trace's: by its first four bytes.

    Raises:
        InputError: it cannot be opened or is not on this machine.
    """
    return _is_gguf(local_path(location))


def _is_gguf(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from None


def _engine_options(
    n_ctx: int, n_threads: int | None, n_gpu_layers: int, side: SideOptions
) -> dict[str, object]:
    threads = n_threads or os.cpu_count() or 1
    plain: dict[str, object] = to_plain(
        EngineOptions(n_ctx, threads, n_gpu_layers, **to_plain(side))
    )
    return plain
