"""``recipe``: choose a type for each tensor, quantize, and measure what came of it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from ggufnorm.analysis.attribution.choice import Work
from ggufnorm.analysis.attribution.run import check_arguments, run_job
from ggufnorm.analysis.diff.order import quantized, require_finer
from ggufnorm.analysis.inspection import model_facts
from ggufnorm.core.engine import GpuLayers
from ggufnorm.core.progress import OnProgress, no_progress, size
from ggufnorm.core.recipe import (
    RecipeReport,
)
from ggufnorm.engines.llama.devices import as_words
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.errors import InputError
from ggufnorm.formats.imatrix import read_imatrix
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.output import replacing, require_writable, temporary_folder, work_folder
from ggufnorm.runs.checks import check_same_network
from ggufnorm.runs.corpus import make_corpus
from ggufnorm.runs.devices import known_engine
from ggufnorm.runs.execute import execute
from ggufnorm.runs.identity import identify
from ggufnorm.runs.journal import Journal
from ggufnorm.runs.loop import ONCE, Policy
from ggufnorm.runs.options import PLAIN, SideOptions
from ggufnorm.runs.placement import Side, settle
from ggufnorm.samples import text_to_run
from ggufnorm.version import __version__

TYPES = ("Q2_K", "Q3_K", "IQ3_S", "Q4_K", "IQ4_XS", "Q5_K", "Q6_K", "Q8_0")
"""Types that are tried unless others are asked for: none of them needs an importance matrix."""

AUTO = "auto"
"""Instead of an importance matrix's path: compute one."""


def recipe(
    ref: str | os.PathLike[str],
    quant: str | os.PathLike[str],
    *,
    max_bytes: int | None = None,
    max_growth: float | None = None,
    target_kld: float | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    save_imatrix: str | os.PathLike[str] | None = None,
    types: Sequence[str] = TYPES,
    apply: str | os.PathLike[str] | None = None,
    budget: float = 600.0,
    resume: str | os.PathLike[str] | None = None,
    text: str | None = None,
    text_name: str = "given text",
    n_ctx: int = 512,
    chunks: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: GpuLayers | None = None,
    options: SideOptions = PLAIN,
    check_memory: bool = True,
    on_progress: OnProgress = no_progress,
) -> RecipeReport:
    """Choose a type for each tensor, so that a file of some size computes what it can.

    The reference is quantized to each type as a whole, and run in step with itself: that
    gives each tensor's local error in that type. At two types around the wanted size every
    tensor's share of the KL divergence is measured as well; at the others it is scaled from
    there. Shares are taken to add up.

    Args:
        ref: location of the F32, F16 or BF16 model to quantize, on this machine.
        quant: location of a quantization of it, to be bettered.
        max_bytes: limit on the file's size. One of this, ``max_growth`` and ``target_kld``.
        max_growth: limit relative to the size of ``quant``: 0.03 for 3 % more.
        target_kld: find the smallest file with this KL divergence at most, nats a token.
        imatrix: an importance matrix (GGUF or legacy), or ``"auto"`` to compute one from the
            text.
        save_imatrix: where to write the one that was computed, for llama-quantize.
        types: ggml's names of the types to try.
        apply: a file to write the quantized model to; it appears when it was measured.
        budget: seconds for the measurement of shares, in each of two types.
        resume: a file in which the results of finished measurements are kept; if it holds some,
            they are not made again. The importance matrix is kept beside it.
        text: what to run; None for the bundled text.
        text_name: how messages call it.
        n_ctx: tokens of a chunk; each chunk starts afresh, its second half is scored.
        chunks: run at most so many; None for the whole text.
        n_threads: CPU threads; None for all.
        n_gpu_layers: layers to put on a GPU that llama.cpp was built for.
        options: how the models are run.
        check_memory: refuse models that do not fit into the memory that is free.
        on_progress: called as the work goes on.

    Raises:
        InputError: a file cannot be opened, or what is wanted cannot be reached.
        OutputError: a file cannot be written or is an input itself.
        MismatchError: the files are not two versions of one network.
        TextError: the text is empty or shorter than one chunk.
        EngineMissingError: llama-cpp-python is not installed.
        EngineError: llama.cpp fails, or refuses every type. If that happens in the making of
            ``apply``, the error's ``result`` is the report without it.
        KeyboardInterrupt: after a Ctrl-C; nothing is left.
        ValueError: an argument is out of range.
    """
    wanted = [w for w in (max_bytes, max_growth, target_kld) if w is not None]
    if len(wanted) != 1:
        raise ValueError("give one of max_bytes, max_growth and target_kld")
    if (target_kld is not None and target_kld <= 0) or (max_growth or 0) <= -1:
        raise ValueError("target_kld must be above 0, and max_growth above -1")
    check_arguments(n_ctx, chunks, 0.0, budget)
    tensor_types = known_types(types)
    text, text_name = text_to_run(text, text_name)
    run = partial(
        run_job,
        text=text,
        text_name=text_name,
        n_ctx=n_ctx,
        chunks=chunks,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        options=options,
        check_memory=check_memory,
    )
    with ExitStack() as stack:
        reference = stack.enter_context(open_model(local_path(ref)))
        under_test = stack.enter_context(open_model(local_path(quant)))
        check_same_network(reference, under_test)
        _require_floats(reference, under_test)
        inputs = [s.path for file in (reference, under_test) for s in file.shards]
        inputs += [os.fspath(imatrix)] if imatrix not in (None, AUTO) else []
        for out in (apply, save_imatrix, resume):
            if out is not None:
                require_writable(out, inputs)
        folder = stack.enter_context(_workplace(reference, apply))
        copies = f"on disk up to {size(reference.size)} in {folder.parent}"
        most = Side(reference, options.engine(n_ctx, n_threads, n_gpu_layers), 4)
        settle((most,), check_memory=False, on_progress=on_progress, disk=copies)
        if imatrix == AUTO:
            side = Side(reference, options.engine(n_ctx, n_threads, n_gpu_layers), 1)
            (engine,) = settle((side,), check_memory=check_memory)
            computed = save_imatrix or folder / "imatrix.gguf"
            policy = ONCE if resume is None else Policy(f"{os.fspath(resume)}.imatrix")
            _collect(reference, computed, text, text_name, chunks, engine, policy, on_progress)
            if save_imatrix is not None:
                with replacing(save_imatrix) as unfinished:
                    shutil.copyfile(computed, unfinished)
        matrix = computed if imatrix == AUTO else imatrix
        importance = read_imatrix(matrix) if matrix else None
        if max_growth is not None:
            max_bytes = int(under_test.size * (1 + max_growth))
        known = known_engine(options.engine(n_ctx, n_threads, n_gpu_layers))
        job = identify(
            build=known.build,
            devices=[as_words(device) for device in known.devices if device.kind != "CPU"],
            version=__version__,
            files=[model_facts(file) for file in (reference, under_test)],
            text=text,
            importance=importance,
            types=tensor_types,
            run=[n_ctx, chunks, n_threads, n_gpu_layers, budget],
            options=options,
            wanted=[max_bytes, target_kld],
        )
        work = Work(
            reference=reference,
            under_test=under_test,
            folder=folder,
            run=run,
            chunks=chunks,
            budget=budget,
            importance=importance,
            n_threads=n_threads,
            on_progress=on_progress,
            journal=Journal(None if resume is None else os.fspath(resume), job, on_progress),
        )
        named = save_imatrix or imatrix
        imatrix_name = None if named is None else os.fspath(named)
        return work.execute(tensor_types, max_bytes, target_kld, apply, imatrix_name)


def known_types(types: Sequence[str]) -> tuple[str, ...]:
    """Ggml's names of types, each once.

    Raises:
        ValueError: there is no such type.
    """
    from ggufnorm.formats.gguf_constants import GGMLQuantizationType

    names = tuple(dict.fromkeys(t.upper() for t in types))
    for name in names:
        if name not in GGMLQuantizationType.__members__:
            raise ValueError(f"there is no type named {name}")
    if not names:
        raise ValueError("there must be a type to try")
    return names


def _require_floats(reference: ModelFile, quant: ModelFile) -> None:
    """llama-quantize refuses a file that is quantized already."""
    require_finer("recipe", reference, quant)
    types = quantized(reference)
    if types is not None:
        raise InputError(
            f"{reference.path} is quantized ({types}), and the reference of a recipe is not:"
            f" use ggufnorm recipe F16.gguf {shlex.quote(quant.path)}"
        )


@contextmanager
def _workplace(reference: ModelFile, apply: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A folder for quantized copies: beside the file to be written, or the system's.

    Raises:
        InputError: it cannot be made, or the disk is too full for two copies.
    """
    beside = None if apply is None else work_folder(apply)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder(beside))
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise InputError(f"cannot write to {beside or 'TMPDIR'}: {error.strerror}") from None
        if free < reference.size:
            raise InputError(
                f"quantized copies of {reference.path} may take {reference.size / 1e9:.1f} GB"
                f" in {folder.parent}, and {free / 1e9:.1f} GB are free: set TMPDIR"
            )
        yield folder


def _collect(
    reference: ModelFile,
    out: str | os.PathLike[str],
    text: str,
    text_name: str,
    chunks: int | None,
    engine: EngineOptions,
    policy: Policy,
    on_progress: OnProgress,
) -> None:
    """Compute an importance matrix in a child process."""
    from ggufnorm.analysis.attribution.importance import ImportanceJob, collect_importance

    path = reference.path
    corpus = make_corpus(text, text_name, [path])
    job = ImportanceJob(os.fspath(out), path, corpus, chunks, engine, policy)
    if not execute(collect_importance, job, on_progress, policy.resume):
        raise KeyboardInterrupt
