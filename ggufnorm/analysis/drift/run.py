"""``drift``: check both files, run them in a child process, return the report."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from ggufnorm.analysis.inspection import model_facts
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.engine import GpuLayers
from ggufnorm.core.progress import OnProgress, no_progress
from ggufnorm.engines.llama.library import CHOICE
from ggufnorm.errors import InputError
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.output import refuse_inputs
from ggufnorm.runs.checks import check_same_network, require_extent
from ggufnorm.runs.corpus import make_corpus
from ggufnorm.runs.execute import execute
from ggufnorm.runs.loop import Policy
from ggufnorm.runs.options import ON_CPU, PLAIN, SideOptions, is_plain
from ggufnorm.runs.placement import Side, settle
from ggufnorm.runs.watch import WATCHES, Watch
from ggufnorm.samples import text_to_run
from ggufnorm.version import __version__


def drift(
    ref: str | os.PathLike[str],
    quant: str | os.PathLike[str],
    *,
    images: Sequence[str | os.PathLike[str]] = (),
    sounds: Sequence[str | os.PathLike[str]] = (),
    text: str | None = None,
    text_name: str = "given text",
    n_ctx: int = 512,
    chunks: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: GpuLayers | None = None,
    options: SideOptions = PLAIN,
    options_ref: SideOptions = PLAIN,
    floor: bool = False,
    watch: Watch = "all",
    local: bool = True,
    recompute_rows: int = 8,
    resume: str | os.PathLike[str] | None = None,
    save_every: float = 5.0,
    budget: float | None = None,
    check_memory: bool = True,
    on_progress: OnProgress = no_progress,
) -> DriftReport:
    """Run two versions of a model on one text and measure where they part.

    Args:
        ref: location of the model that is right by definition; it must be on this machine
            (:mod:`ggufnorm.formats.location`).
        quant: location of the model under test; the same network. May be the same file, to
            measure what other options do.
        images: of image encoders (mmproj files): pictures to run; none for a generated one.
            Text and options are not used then.
        sounds: of audio encoders: WAV files to run, in the place of pictures.
        text: what to run; None for the bundled text.
        text_name: how the report calls it.
        n_ctx: tokens of a chunk; each chunk starts afresh, its second half is scored.
        chunks: run at most so many; None for the whole text.
        n_threads: CPU threads; None for all.
        n_gpu_layers: layers to put on a GPU that llama.cpp was built for.
        options: how the model under test is run.
        options_ref: how the reference is run.
        floor: also run the reference against itself: the engine's own noise.
        watch: where to look: ``all`` operations, the inputs and results of ``norms``, the
            ``residual`` stream, or ``none`` of it: predictions alone.
        local: run a third replica, pinned to the reference's values, whose errors are each
            operation's own. With ``watch="none"`` there is none.
        recompute_rows: tokens of each batch for which norms are recomputed in NumPy where values
            lie on a GPU or another machine; in this computer's memory it is all of them.
        resume: a file in which progress is kept; if it holds some, the run goes on there.
        save_every: seconds between two saves of that file; after the last chunk and after a
            Ctrl-C it is saved in any case.
        budget: seconds after which no further chunk begins; None for no limit.
        check_memory: refuse models that do not fit into the memory that is free.
        on_progress: called as the run goes on.

    Raises:
        InputError: a file cannot be opened, is not GGUF or is not on this machine; or there
            are images or sounds and the models are no encoders.
        MismatchError: the files are not two versions of one network.
        TextError: the text is empty or shorter than one chunk.
        EngineMissingError: llama-cpp-python is not installed.
        EngineError: llama.cpp fails or crashes, or the models do not fit into memory.
        ValueError: ``n_ctx`` or ``chunks`` is out of range, ``recompute_rows`` too, or there is no
            such ``watch``.

    A Ctrl-C ends the run after the current chunk and returns what was measured so far.
    """
    require_extent(n_ctx, chunks, budget)
    if watch not in WATCHES:
        raise ValueError(f"watch is one of {', '.join(WATCHES)}, not {watch!r}")
    if recompute_rows < 1:
        raise ValueError(f"recompute_rows must be at least 1, not {recompute_rows}")
    local = local and watch != "none"
    resume = None if resume is None else os.fspath(resume)
    policy = Policy(resume, save_every, budget, time.time())
    text, text_name = text_to_run(text, text_name)
    with open_model(local_path(ref)) as a, open_model(local_path(quant)) as b:
        check_same_network(a, b)
        if a.architecture == "clip":
            from ggufnorm.analysis.drift.encoders import drift_encoders

            if watch != "all" or not local:
                raise InputError(f"{a.path} is an encoder, which is always watched whole")
            if n_gpu_layers or not (is_plain(options) and is_plain(options_ref)):
                raise InputError(f"{a.path}: {ON_CPU}")
            return drift_encoders(
                (a, b),
                images,
                sounds,
                n_threads=n_threads,
                policy=policy,
                check_memory=check_memory,
                on_progress=on_progress,
            )
        if images or sounds:
            what, option = ("image", "--image") if images else ("audio", "--sound")
            raise InputError(f"{a.path} is no {what} encoder: {option} goes with mmproj files")
        facts = [model_facts(file) for file in (a, b)]
        if resume is not None:
            refuse_inputs(resume, [s.path for file in (a, b) for s in file.shards])
        engine_ref, engine = settle(
            (
                Side(a, _named(options_ref).engine(n_ctx, n_threads, n_gpu_layers), 1 + floor),
                Side(b, _named(options).engine(n_ctx, n_threads, n_gpu_layers), 1 + local),
            ),
            sums=True,
            check_memory=check_memory,
            on_progress=on_progress,
        )
    from ggufnorm.analysis.drift.task import DriftJob, run_drift

    job = DriftJob(
        version=__version__,
        reference=facts[0],
        quant=facts[1],
        corpus=make_corpus(text, text_name, [fact.path for fact in facts]),
        chunks=chunks,
        options_ref=engine_ref,
        options=engine,
        floor=floor,
        watch=watch,
        local=local,
        recompute_rows=recompute_rows,
        policy=policy,
    )
    return execute(run_drift, job, on_progress, resume)


def _named(side: SideOptions) -> SideOptions:
    """A side whose build is named, where one is named for this process."""
    return replace(side, llama_cpp=side.llama_cpp or os.environ.get(CHOICE))
