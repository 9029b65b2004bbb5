"""``quants``: check the files, run them in a child process, rank them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from ggufnorm.analysis.diff.order import coarser
from ggufnorm.analysis.inspection import model_facts
from ggufnorm.analysis.quants.chats import read_chats, rendered_chats
from ggufnorm.analysis.quants.passages import Passages
from ggufnorm.analysis.quants.task import Measured, QuantsJob, run_quants
from ggufnorm.analysis.quants.text import TextJob, cut_text
from ggufnorm.analysis.quants.verdict import verdict
from ggufnorm.core.drift import ModelFacts, RunFacts
from ggufnorm.core.engine import GpuLayers
from ggufnorm.core.model import Skipped, TypesInside
from ggufnorm.core.progress import OnProgress, Progress, no_progress, size
from ggufnorm.core.quants import Candidate, QuantFile, QuantsReport, rank
from ggufnorm.core.severity import FEW_POSITIONS
from ggufnorm.engines import worker
from ggufnorm.engines.chat import CHAT_TEMPLATE
from ggufnorm.engines.llama.library import CHOICE
from ggufnorm.errors import GgufnormError, InputError
from ggufnorm.formats.file_type import types_inside
from ggufnorm.formats.location import local_path, open_model
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.output import refuse_inputs
from ggufnorm.runs.checks import (
    MIN_CTX,
    check_same_network,
    free_memory,
    memory_needed,
    require_extent,
    vocabulary_size,
)
from ggufnorm.runs.execute import execute
from ggufnorm.runs.loop import Policy
from ggufnorm.runs.options import PLAIN, SideOptions
from ggufnorm.runs.placement import Side, settle
from ggufnorm.samples import text_to_run

_LOGITS_SHARE = 0.25
"""Of the free memory, for the reference's logits where the files do not fit together."""
_MOST_LOGITS = 4 << 30

Location = str | os.PathLike[str]


def quants(
    ref: Location,
    files: Sequence[Location],
    *,
    text: str | None = None,
    text_name: str = "given text",
    chat: str | os.PathLike[str] | None = None,
    n_ctx: int = 512,
    chunks: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: GpuLayers | None = None,
    options: SideOptions = PLAIN,
    resume: str | os.PathLike[str] | None = None,
    save_every: float = 5.0,
    budget: float | None = None,
    check_memory: bool = True,
    on_progress: OnProgress = no_progress,
) -> QuantsReport:
    """Measure several quantizations beside one reference, which is decoded once.

    Args:
        ref: location of the model that is right by definition; it must be on this machine
            (:mod:`ggufnorm.formats.location`).
        files: locations of the files under test. The reference among them is passed over, and
            so is a file that is given twice; one that cannot be measured is reported.
        text: what to run; None for the bundled text.
        text_name: how the report calls it.
        chat: instead of a text, a file of chats: a JSON object a line, with ``messages``. They
            are rendered with the reference's own template, and the assistant's tokens are
            scored.
        n_ctx: tokens of a chunk, of which the second half is scored; most tokens of a chat.
        chunks: run at most so many chunks or chats; None for all.
        n_threads: CPU threads; None for all.
        n_gpu_layers: layers to put on devices: a number, ``auto`` or ``all``.
        options: how all files are run.
        resume: a file in which progress is kept; if it holds some, the run goes on there.
        save_every: seconds between two saves of that file.
        budget: seconds after which nothing further begins; None for no limit.
        check_memory: refuse models that do not fit into the memory that is free.
        on_progress: called as the run goes on; before it, with a note of what it takes.

    Raises:
        InputError: no file can be measured beside the reference, or the chats cannot be read
            or rendered.
        TextError: the text is empty or shorter than one chunk.
        EngineMissingError: llama-cpp-python is not installed.
        EngineError: llama.cpp fails or crashes, or a model does not fit into memory.
        ValueError: ``n_ctx`` or ``chunks`` is out of range.

    A Ctrl-C ends the run after the current passage and returns what all files were measured on.
    """
    require_extent(n_ctx, chunks, budget)
    policy = Policy(None if resume is None else os.fspath(resume), save_every, budget)
    build = options.llama_cpp or os.environ.get(CHOICE)
    with ExitStack() as stack:
        reference = stack.enter_context(open_model(local_path(ref)))
        models, failed = _open(reference, files, stack)
        if resume is not None:
            refuse_inputs(resume, [s.path for m in (reference, *models) for s in m.shards])
        job = _text_job(reference, models, text, text_name, chat, n_ctx, chunks, build)
        cut = worker.call(cut_text, job, on_progress)
        lost = {s.what for s in cut.failed}
        models = [m for m in models if m.path not in lost]
        failed += cut.failed
        if not models:
            raise InputError(failed[0].reason)
        all_models = (reference, *models)
        known = [(model_facts(m), types_inside(m)) for m in all_models]
        notes = [*_finer_than(reference, models), *cut.notes]
        notes += _other_templates(all_models) if chat is not None else []
        asked = replace(options, llama_cpp=build).engine(
            max(MIN_CTX, cut.passages.longest), n_threads, n_gpu_layers
        )
        largest = max(all_models, key=lambda m: m.size)
        (engine,) = settle((Side(largest, asked, 1),), check_memory=check_memory)
        together, block = _plan(all_models, cut.passages, on_progress)
    measured = execute(
        run_quants,
        QuantsJob(
            models=tuple(facts for facts, _ in known),
            passages=cut.passages,
            options=engine,
            together=together,
            block=block,
            policy=policy,
        ),
        on_progress,
        policy.resume,
    )
    return _report(known, measured, cut.passages, failed, notes)


def _open(
    reference: ModelFile, files: Sequence[Location], stack: ExitStack
) -> tuple[list[ModelFile], list[Skipped]]:
    """The files that can be measured, each once, the largest first; and why others cannot.

    Raises:
        InputError: none can.
    """
    found: dict[str, ModelFile] = {}
    failed: list[Skipped] = []
    seen = {os.path.realpath(reference.path)}
    for location in files:
        try:
            file = stack.enter_context(open_model(local_path(location)))
            if os.path.realpath(file.path) in seen:
                continue
            check_same_network(reference, file)
        except GgufnormError as error:
            failed.append(Skipped(os.fspath(location), str(error)))
            continue
        seen.add(os.path.realpath(file.path))
        found[file.path] = file
    if not found:
        raise InputError(failed[0].reason if failed else "no file beside the reference was given")
    return sorted(found.values(), key=lambda f: -f.size), failed


def _text_job(
    reference: ModelFile,
    models: Sequence[ModelFile],
    text: str | None,
    text_name: str,
    chat: Location | None,
    n_ctx: int,
    chunks: int | None,
    build: str | None,
) -> TextJob:
    paths = tuple(m.path for m in (reference, *models))
    if chat is None:
        text, text_name = text_to_run(text, text_name)
        return TextJob(paths, text_name, text, (), n_ctx, chunks, build)
    name = os.fspath(chat)
    chats = read_chats(chat)
    turns = rendered_chats(reference, chats if chunks is None else chats[:chunks], name)
    return TextJob(paths, name, None, turns, n_ctx, None, build)


def _other_templates(models: Sequence[ModelFile]) -> Iterator[Skipped]:
    """Files whose own chat template is not the reference's, by which all chats were rendered."""
    wanted, *others = (m.metadata.text(CHAT_TEMPLATE) for m in models)
    for model, template in zip(models[1:], others, strict=True):
        if template is None:
            yield Skipped(model.path, "it has no chat template; the reference's was used")
        elif template != wanted:
            yield Skipped(model.path, "its chat template is another; the reference's was used")


def _finer_than(reference: ModelFile, models: Sequence[ModelFile]) -> Iterator[Skipped]:
    """Files that are finer than the reference: beside it they look worse than they are."""
    for model in models:
        found = coarser(reference, model)
        if found is not None:
            reason = f"finer than the reference ({found.dtype} against {found.dtype_ref})"
            yield Skipped(model.path, f"{reason}: give the finest file as the reference")


def _plan(
    models: Sequence[ModelFile], passages: Passages, on_progress: OnProgress
) -> tuple[bool, int]:
    """Whether all models fit together, and else how many passages' logits are kept at once."""
    n_ctx = passages.longest
    together = sum(memory_needed([m], n_ctx, 1) for m in models)
    free = free_memory()
    largest = max(models, key=lambda m: m.size)
    logits = 4 * max(1, passages.longest) * max(1, vocabulary_size(models[0]))
    if together <= free:
        how, block, need = "all loaded at once", 1, together
    else:
        block = max(1, int(min(_MOST_LOGITS, _LOGITS_SHARE * free) // logits))
        need = memory_needed([largest], n_ctx, 1) + min(block, len(passages)) * logits
        how = "one after the other"
    text = (
        f"{len(models) - 1} beside the reference, {how}: about"
        f" {size(need)} of {size(free)} of free memory, nothing on disk"
    )
    on_progress(Progress(text, note=True))
    return together <= free, block


def _report(
    known: Sequence[tuple[ModelFacts, TypesInside]],
    measured: Measured,
    passages: Passages,
    failed: Sequence[Skipped],
    notes: Sequence[Skipped],
) -> QuantsReport:
    logits = [None, *measured.logits]
    files = [
        QuantFile(facts, types, found, speed, "frontier", ())
        for (facts, types), found, speed in zip(known, logits, measured.speeds, strict=True)
    ]
    reference, *under_test = files
    most = max(s.n_tokens for s in measured.logits)
    candidates = [
        Candidate(f.model.path, f.model.n_bytes, s.mean_kld, s.non_finite_tokens > measured.n_bad)
        for f, s in zip(under_test, measured.logits, strict=True)
    ]
    ranking = rank(candidates, measured.contrasts, most >= FEW_POSITIONS and not measured.n_bad)
    ranked = tuple(
        replace(
            f,
            standing=ranking.standings[f.model.path],
            beaten_by=ranking.beaten_by.get(f.model.path, ()),
        )
        for f in under_test
    )
    side = measured.side
    return QuantsReport(
        reference=reference,
        n_bad_reference=measured.n_bad,
        files=ranked,
        best=ranking.best,
        contrasts=measured.contrasts,
        verdict=verdict(ranked, ranking.best, measured.contrasts, measured.n_bad),
        run=RunFacts(
            engine=measured.engine,
            text=passages.name,
            n_text_tokens=passages.n_text_tokens,
            n_ctx=passages.longest,
            n_chunks=measured.n_passages,
            n_chunks_planned=len(passages),
            n_threads=measured.n_threads,
            n_gpu_layers=measured.build.n_gpu_layers,
            reference=side,
            quant=side,
            cut=measured.cut,
            engine_ref=measured.build,
            engine_quant=measured.build,
        ),
        scored="text" if passages.targets is None else "assistant",
        failed=tuple(failed),
        notes=tuple(notes),
        cost=measured.cost,
    )
