"""``trace`` and ``compare``: check the files, run a child process, return the result."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ggufnorm.analysis.inspection import model_facts
from ggufnorm.analysis.trace.parts import require_layers
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.engine import GpuLayers
from ggufnorm.core.progress import OnProgress, no_progress
from ggufnorm.core.trace import TraceFacts, TraceType
from ggufnorm.engines.llama.stretch import Layers
from ggufnorm.engines.trace.reader import Trace
from ggufnorm.engines.worker import Channel
from ggufnorm.errors import ConfigError, InputError
from ggufnorm.formats.files import open_regular
from ggufnorm.formats.forms import parse
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.output import move_to, replacing, require_writable
from ggufnorm.runs.checks import (
    MIN_CTX,
    network_facts,
    require_extent,
    require_same_network,
)
from ggufnorm.runs.corpus import make_corpus
from ggufnorm.runs.execute import execute
from ggufnorm.runs.loop import Policy
from ggufnorm.runs.options import PLAIN, SideOptions
from ggufnorm.runs.placement import Side, keeping_others_here, settle
from ggufnorm.samples import text_to_run


def trace(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    text: str | None = None,
    text_name: str = "given text",
    n_ctx: int = 512,
    chunks: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: GpuLayers | None = None,
    options: SideOptions = PLAIN,
    logits: bool = True,
    dtype: TraceType = "f32",
    budget: int | None = None,
    ask_above: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    save_every: float = 5.0,
    layers: Layers | None = None,
    after: str | os.PathLike[str] | None = None,
    check_memory: bool = True,
    on_progress: OnProgress = no_progress,
) -> TraceFacts:
    """Run a model on a text and save what every observed operation computes.

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
        ask_above: refuse a file of more bytes, if there is no budget; None for any size.
        resume: a file in which progress is kept; if it holds some, the run goes on there. The
            values so far lie beside it, in a file of the trace's size.
        save_every: seconds between two saves of that file.
        layers: the first and the last layer to run; None for all. The weights of the others are
            not touched.
        after: the trace of the layers before, from whose last value the first one starts; it goes
            into ``out``, which then has all layers up to the last one.
        check_memory: refuse a model that does not fit into the memory that is free.
        on_progress: called as the run goes on; before it, with a note of what the file takes.

    Returns:
        What the trace says of itself.

    Raises:
        InputError: the model cannot be opened or is not GGUF, the trace cannot be written,
            does not fit on the disk, or not even a few tokens of it fit into the budget.
        TooLargeError: it takes more than ``ask_above``.
        TextError: the text is empty or shorter than one chunk.
        EngineMissingError: llama-cpp-python is not installed.
        EngineError: llama.cpp fails or crashes, or the model does not fit into memory.
        KeyboardInterrupt: after a Ctrl-C; no trace is left, but for what ``resume`` keeps.
        ValueError: ``n_ctx`` or ``chunks`` is out of range.
    """
    require_extent(n_ctx, chunks)
    text, text_name = text_to_run(text, text_name)
    path = local_path(model)
    with open_model(path) as file:
        facts = model_facts(file)
        if layers is not None:
            n_layers = network_facts(file).n_layers or 0
            require_layers(layers, n_layers, has_part=after is not None)
        elif after is not None:
            raise ConfigError("--after goes with --layers")
        side = Side(file, options.engine(n_ctx, n_threads, n_gpu_layers), 1, layers)
        (engine,) = settle(
            (keeping_others_here(side),),
            check_memory=check_memory,
            on_progress=on_progress,
            disk=f"on disk {os.fspath(out)}",
        )
        inputs = [shard.path for shard in file.shards]
        require_writable(out, [*inputs, *([] if after is None else [os.fspath(after)])])
    from ggufnorm.analysis.trace.record import Recording
    from ggufnorm.analysis.trace.task import TraceJob, run_trace

    policy = Policy(None if resume is None else os.fspath(resume), save_every)
    with unfinished_trace(out, policy.resume) as unfinished:
        job = TraceJob(
            model=facts,
            corpus=make_corpus(text, text_name, [facts.path]),
            options=engine,
            what=Recording(
                out=os.fspath(out),
                unfinished=os.fspath(unfinished),
                n_ctx=n_ctx,
                chunks=chunks,
                logits=logits,
                dtype=dtype,
                budget=budget,
                ask_above=ask_above,
                policy=policy,
                layers=layers,
                part=None if after is None else os.fspath(after),
            ),
        )
        found = execute(run_trace, job, on_progress, policy.resume).facts
        if found is None:
            raise KeyboardInterrupt
    return found


@contextmanager
def unfinished_trace(out: str | os.PathLike[str], resume: str | None) -> Iterator[Path]:
    """The file to fill: it takes the place of ``out`` when it is complete.

    Args:
        out: the trace to write.
        resume: the file in which progress is kept; the values lie beside it, and stay after an
            error. None: nothing stays.

    Raises:
        InputError: a folder cannot be written.
    """
    if resume is None:
        with replacing(out) as unfinished:
            yield unfinished
        return
    values = Path(f"{resume}.values")
    yield values
    move_to(values, out)
    Path(resume).unlink(missing_ok=True)


def compare(
    ref: str | os.PathLike[str],
    quant: str | os.PathLike[str],
    *,
    n_threads: int | None = None,
    n_gpu_layers: GpuLayers | None = None,
    options: SideOptions = PLAIN,
    resume: str | os.PathLike[str] | None = None,
    save_every: float = 5.0,
    budget: float | None = None,
    check_memory: bool = True,
    on_progress: OnProgress = no_progress,
) -> DriftReport:
    """Compare two traces, or a trace with a model that is run on the trace's own tokens.

    The report is :func:`ggufnorm.drift`'s, without local errors: a trace
    tells what came out of an operation, not what it does to another's input.

    Args:
        ref: the side that is right by definition: a trace or a model's location.
        quant: the side under test: a trace or a model's location. One of the two is a trace.
        n_threads: CPU threads for the model; None for all.
        n_gpu_layers: layers of the model to put on a GPU that llama.cpp was built for.
        options: how the model is run.
        resume: a file in which progress is kept; if it holds some, the run goes on there.
        save_every: seconds between two saves of that file.
        budget: seconds after which no further chunk begins; None for no limit.
        check_memory: refuse a model that does not fit into the memory that is free.
        on_progress: called as the run goes on.

    Raises:
        InputError: a file cannot be opened, or is neither a model nor a trace.
        MismatchError: they are not runs of one network on the same tokens.
        EngineMissingError: a model is to be run, and llama-cpp-python is not installed.
        EngineError: llama.cpp fails or crashes, or the model does not fit into memory.

    A Ctrl-C ends a model's run after the current chunk and returns what was compared so far.
    """
    require_extent(MIN_CTX, None, budget)
    paths = [local_path(ref), local_path(quant)]
    models = [_is_model(path) for path in paths]
    if all(models):
        raise InputError(f"{ref} and {quant} are both models: use drift")
    policy = Policy(None if resume is None else os.fspath(resume), save_every, budget)
    if not any(models):
        from ggufnorm.analysis.trace.compare import compare_traces

        with Trace(paths[0]) as a, Trace(paths[1]) as b:
            return compare_traces(a, b, Channel(on_progress), policy)
    model, trace_path = paths if models[0] else reversed(paths)
    with Trace(trace_path) as t, open_model(model) as file:
        sides = [(network_facts(file), file.path), (t.facts.network, t.path)]
        (a_facts, a_is), (b_facts, b_is) = sides if models[0] else reversed(sides)
        require_same_network(a_facts, b_facts, a_is, b_is)
        facts, n_ctx = model_facts(file), t.facts.n_ctx
        side = Side(file, options.engine(n_ctx, n_threads, n_gpu_layers), 1)
        (engine,) = settle((side,), check_memory=check_memory, on_progress=on_progress)
    from ggufnorm.analysis.trace.task import BesideJob, run_beside

    job = BesideJob(
        trace=os.fspath(trace_path),
        model=facts,
        model_is_reference=models[0],
        options=engine,
        policy=policy,
    )
    return execute(run_beside, job, on_progress, policy.resume)


def _is_model(path: Path) -> bool:
    """Whether a file is a model; if not, it is a trace or turns out to be none.

    Raises:
        InputError: it cannot be opened.
    """
    try:
        open_regular(path).close()
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from None
    return parse(path).kind in ("gguf", "mmproj")
