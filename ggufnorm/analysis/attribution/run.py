"""``attribute``: check both files, run them in a child process, return what was found."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from ggufnorm.analysis.attribution.job import AttributionJob, Wanted
from ggufnorm.analysis.attribution.patch import most_side_by_side
from ggufnorm.analysis.diff.order import require_finer
from ggufnorm.analysis.inspection import model_facts
from ggufnorm.core.attribution import AttributionReport, By
from ggufnorm.core.engine import GpuLayers
from ggufnorm.core.progress import OnProgress, no_progress
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.errors import MemoryLimitError
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.checks import check_same_network, network_facts, require_extent
from ggufnorm.runs.corpus import make_corpus
from ggufnorm.runs.execute import execute
from ggufnorm.runs.loop import ONCE, Policy
from ggufnorm.runs.options import PLAIN, SideOptions
from ggufnorm.runs.placement import Side, settle
from ggufnorm.samples import text_to_run


def attribute(
    ref: str | os.PathLike[str],
    quant: str | os.PathLike[str],
    *,
    by: By = "tensor",
    rest: float = 0.05,
    budget: float = 600.0,
    norms: bool = True,
    text: str | None = None,
    text_name: str = "given text",
    n_ctx: int = 512,
    chunks: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: GpuLayers | None = None,
    options: SideOptions = PLAIN,
    resume: str | os.PathLike[str] | None = None,
    save_every: float = 5.0,
    check_memory: bool = True,
    on_progress: OnProgress = no_progress,
) -> AttributionReport:
    """Tell which tensors a quantized model's KL divergence comes from.

    The reference runs again and again, each time with what one tensor of the model under
    test makes of the reference's own values put in; the KL divergence at the output is that
    tensor's. First the tensors of each layer are put in together, then one by one those of
    the costly layers.

    Args:
        ref: location of the model that is right by definition; it must be on this machine
            (:mod:`ggufnorm.formats.location`).
        quant: location of the model under test; the same network.
        by: what to list; ``layer`` and ``role`` need no second round.
        rest: leave single tensors unmeasured in the layers that together make at most this
            share of what all layers cost, 0 to 1.
        budget: seconds; fewer chunks and fewer tensors are measured to keep to it. One
            chunk of the free run is always measured.
        norms: also run the model under test with the input of each norm restored.
        text: what to run; None for the bundled text.
        text_name: how the report calls it.
        n_ctx: tokens of a chunk; each chunk starts afresh, its second half is scored.
        chunks: run at most so many; None for the whole text.
        n_threads: CPU threads; None for all.
        n_gpu_layers: layers to put on a GPU that llama.cpp was built for.
        options: how both models are run.
        resume: a file in which progress is kept; if it holds some, the run goes on there.
        save_every: seconds between two saves of that file.
        check_memory: refuse models that do not fit into the memory that is free.
        on_progress: called as the run goes on; before it, with a note of what it takes.

    Raises:
        InputError: a file cannot be opened, is not GGUF, is not on this machine, or the
            model predicts no tokens.
        MismatchError: the files are not two versions of one network.
        TextError: the text is empty or shorter than one chunk.
        EngineMissingError: llama-cpp-python is not installed.
        EngineError: llama.cpp fails or crashes, or the models do not fit into memory.
        ValueError: an argument is out of range.

    A Ctrl-C ends the run after the current decode and returns what was measured so far.
    """
    return run_job(
        ref,
        quant,
        Wanted(by, rest, norms),
        budget,
        text=text,
        text_name=text_name,
        n_ctx=n_ctx,
        chunks=chunks,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        options=options,
        check_memory=check_memory,
        policy=Policy(None if resume is None else os.fspath(resume), save_every),
        on_progress=on_progress,
        tells=True,
    )


def run_job(
    ref: str | os.PathLike[str],
    quant: str | os.PathLike[str],
    wanted: Wanted,
    budget: float,
    *,
    text: str | None,
    text_name: str,
    n_ctx: int,
    chunks: int | None,
    n_threads: int | None,
    n_gpu_layers: GpuLayers | None,
    options: SideOptions,
    check_memory: bool,
    on_progress: OnProgress,
    policy: Policy = ONCE,
    tells: bool = False,
) -> AttributionReport:
    """:func:`attribute`, with what is ``wanted`` and a ``policy`` without its budget.

    ``tells`` says whether the memory that it takes is told before.
    """
    begun = time.time()
    check_arguments(n_ctx, chunks, wanted.rest, budget)
    text, text_name = text_to_run(text, text_name)
    with open_model(local_path(ref)) as a, open_model(local_path(quant)) as b:
        check_same_network(a, b)
        require_finer("attribute", a, b)
        facts = [model_facts(file) for file in (a, b)]
        n_seq = most_side_by_side(n_ctx, network_facts(a).n_vocab)
        asked = options.engine(n_ctx, n_threads, n_gpu_layers)
        tell = on_progress if tells else no_progress
        n_seq, engine = _that_fit((a, b), asked, n_seq, check_memory, tell)
    from ggufnorm.analysis.attribution.task import run_attribution

    job = AttributionJob(
        reference=facts[0],
        quant=facts[1],
        by=wanted.by,
        rest=wanted.rest,
        norms=wanted.norms,
        shares=wanted.shares,
        corpus=make_corpus(text, text_name, [fact.path for fact in facts]),
        chunks=chunks,
        options=engine,
        side_by_side=n_seq,
        policy=replace(policy, budget=budget, begun=begun),
    )
    return execute(run_attribution, job, on_progress, policy.resume)


def check_arguments(n_ctx: int, chunks: int | None, rest: float, budget: float) -> None:
    """Refuse what is out of range.

    Raises:
        ValueError: an argument is.
    """
    require_extent(n_ctx, chunks, budget)
    if not 0 <= rest <= 1:
        raise ValueError(f"rest must be from 0 to 1, not {rest}")


def _that_fit(
    files: tuple[ModelFile, ModelFile],
    options: EngineOptions,
    n_seq: int,
    check_memory: bool,
    on_progress: OnProgress,
) -> tuple[int, EngineOptions]:
    """How many runs at once fit into the memory that is free, and how they run.

    Raises:
        EngineError: not even one fits, or a device is not there.
    """
    while True:
        sides = [Side(file, options, 1 + n_seq) for file in files]
        try:
            return n_seq, settle(sides, check_memory=check_memory, on_progress=on_progress)[0]
        except MemoryLimitError:
            if n_seq == 1:
                raise
            n_seq //= 2
