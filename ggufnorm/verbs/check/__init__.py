"""``check``: the cheapest steps first, until a suspect is found guilty."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ggufnorm.core.check import INTERRUPTED, SUSPECTS, CheckReport, CheckStep
from ggufnorm.core.engine import GpuLayers
from ggufnorm.core.progress import Progress
from ggufnorm.errors import GGUFError, GgufnormError, InputError
from ggufnorm.formats.files import read_text
from ggufnorm.formats.forms import AnyLocation
from ggufnorm.verbs.check.case import Case, RunOptions, open_case
from ggufnorm.verbs.check.given import Evidence, sort_evidence
from ggufnorm.verbs.check.suspects import Judgement, answer, next_command, weigh

if TYPE_CHECKING:
    from ggufnorm.runs.options import SideOptions

OnProgress = Callable[[Progress], None]

_NO_ENCODER = "no encoder was given"
INTERRUPTED_CODE = 130
"""Of a command that a Ctrl-C ended."""
FOUND = "a culprit was found before; --all goes on"


def check(
    *locations: AnyLocation,
    source: AnyLocation | None = None,
    ref: AnyLocation | None = None,
    text: str | None = None,
    text_name: str = "given text",
    n_ctx: int = 512,
    chunks: int | None = 4,
    n_threads: int | None = None,
    n_gpu_layers: GpuLayers | None = None,
    options: SideOptions | None = None,
    check_memory: bool = True,
    go_on: bool = False,
    on_progress: OnProgress = lambda _progress: None,
) -> CheckReport:
    """Find out who is to blame for a model that answers badly.

    Runs the cheapest steps first: the file's digest, the file by itself, the file beside its
    source, its norms in llama.cpp beside NumPy, a run beside Transformers, the cache types
    beside f16, and a better quant beside it. Stops at the first suspect that is guilty beyond
    doubt.

    Args:
        locations: a GGUF model and, in any order, all that may help: the checkpoint that it was
            converted from, a better quant of it, its encoder (mmproj), a text, a picture.
        source: the checkpoint, where it is not among ``locations``.
        ref: the better quant, likewise.
        text: to run; None for the bundled text, or the text among ``locations``.
        text_name: what reports call it.
        n_ctx: tokens of a chunk.
        chunks: to run at most; None for the whole text.
        n_threads: CPU threads; None for all.
        n_gpu_layers: layers on a GPU that llama.cpp was built for.
        options: those that the model is usually run with, above all its cache types.
        check_memory: refuse models that do not fit into the memory that is free.
        go_on: whether to run all steps, whatever is found.
        on_progress: called as steps begin, with what each takes, and as they go on.

    Returns:
        Each suspect with what is known of it; what could not be examined says so.

    Raises:
        InputError: there is no model, the model or the source cannot be opened, or something
            is of a kind that another command takes.
    """
    from ggufnorm.runs.options import ON_CPU, PLAIN, is_plain

    evidence = sort_evidence(locations, source=source, reference=ref)
    run = RunOptions(
        text, text_name, n_ctx, chunks, n_threads, n_gpu_layers, options or PLAIN, check_memory
    )
    if run.text is None and evidence.text is not None:
        run = replace(run, text=read_text(evidence.text), text_name=evidence.text)
    try:
        case = open_case(evidence, run)
    except GGUFError as error:
        return _unreadable(evidence, error)
    if case.is_encoder and not (is_plain(run.side) and not n_gpu_layers):
        raise InputError(f"{case.evidence.model}: {ON_CPU}")
    return _checked(case, go_on, on_progress)


def _checked(case: Case, go_on: bool, on_progress: OnProgress) -> CheckReport:
    from ggufnorm.verbs.check.steps import STEPS

    said: list[Judgement] = []
    done: list[CheckStep] = []
    interrupted = False
    for step in STEPS:
        guilty = any(j.state == "guilty" for j in said)
        lacks = step.lacks(case)
        why, do = lacks or ((FOUND, "--all") if guilty and not go_on else ("", ""))
        if interrupted:
            why, do = INTERRUPTED, ""
        if not why:
            on_progress(Progress(f"{step.name}: {step.cost(case)}", note=True))
            try:
                said.extend(step.run(case, _notes_only(on_progress)))
            except KeyboardInterrupt:
                why, interrupted = INTERRUPTED, True
            except GgufnormError as error:
                why = str(error)
        if why:
            said.extend(Judgement(name, "not examined", why, do) for name in step.clears)
        done.append(CheckStep(step.name, step.command(case), why))
    return _report(case, said, done)


def _notes_only(on_progress: OnProgress) -> OnProgress:
    """Notes and warnings of a step; bars of several would each end at another length."""

    def show(progress: Progress) -> None:
        if progress.note or progress.warning:
            on_progress(progress)

    return show


def _report(case: Case, said: list[Judgement], done: list[CheckStep]) -> CheckReport:
    suspects = weigh([*said, *_unspoken(case, said)])
    told, do = answer(suspects)
    guilty = any(s.state == "guilty" for s in suspects)
    if not guilty:
        told = " ".join([told, *(f"Note: {j.note}." for j in said if j.note)])
    interrupted = any(step.skipped == INTERRUPTED for step in done)
    return CheckReport(
        path=case.evidence.model,
        architecture=case.architecture,
        name=case.name,
        types=case.types,
        given=case.evidence.given,
        answer=told,
        next_step=do,
        suspects=suspects,
        steps=tuple(done),
        next_command=next_command(
            suspects, said, shlex.quote(case.evidence.model), case.fix_command
        ),
        exit_code=INTERRUPTED_CODE if interrupted else int(guilty),
    )


def _unspoken(case: Case, said: list[Judgement]) -> Iterator[Judgement]:
    """A word on each suspect of which no step spoke."""
    silent = set(SUSPECTS) - {j.suspect for j in said}
    for name in silent:
        why, do = "nothing that was given tells of it", ""
        if name == "preprocessing" and not case.is_encoder:
            why = "its encoder is a file of its own" if case.evidence.encoder else _NO_ENCODER
            do = "if it takes pictures or sounds: ggufnorm check MMPROJ FOLDER"
        yield Judgement(name, "not examined", why, do)


def _unreadable(evidence: Evidence, error: GGUFError) -> CheckReport:
    """The report of a file that is not well-formed: nothing else can be examined."""
    said = [Judgement("download", "guilty", str(error), "download it again, or convert again")]
    said += [Judgement(name, "not examined", "the file cannot be read") for name in SUSPECTS[1:]]
    suspects = weigh(said)
    told, do = answer(suspects)
    steps = (CheckStep("read the header", f"ggufnorm inspect {os.fspath(evidence.model)}"),)
    command = "" if "://" not in evidence.model else f"ggufnorm check {shlex.quote(evidence.model)}"
    return CheckReport(
        path=evidence.model,
        architecture="",
        name=None,
        types="",
        answer=told,
        next_step=do,
        next_command=command,
        exit_code=1,
        suspects=suspects,
        given=evidence.given,
        steps=steps,
    )
