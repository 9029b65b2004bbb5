"""Start a long job in a child process."""

from __future__ import annotations

from pathlib import Path

from ggufnorm.core.progress import OnProgress, Progress
from ggufnorm.engines import worker
from ggufnorm.engines.worker import Job, Result, Task
from ggufnorm.errors import EngineError
from ggufnorm.formats.output import sweep


def execute(
    task: Task[Job, Result], job: Job, on_progress: OnProgress, resume: str | None = None
) -> Result:
    """Run a task that ends early, with what it has, at the first Ctrl-C.

    Args:
        task: of a module's top.
        job: its argument.
        on_progress: called as the run goes on.
        resume: the file in which it keeps its progress.

    Raises:
        EngineError: the engine died; the message says how much was done and how to go on.
    """
    latest = Progress("")

    def show(progress: Progress) -> None:
        nonlocal latest
        latest = progress if progress.done else latest
        on_progress(progress)

    try:
        return worker.call(task, job, show, cancellable=True)
    except EngineError as error:
        if latest.done == 0:
            raise
        remains = f"{error}; {latest.done} of {latest.total} chunks were done"
        if resume is None:
            remains += ": with --resume FILE a run goes on where it ended"
        else:
            remains += f": the same command goes on from {resume}"
        raise type(error)(remains, error.log) from None
    finally:
        if resume is not None:  # a child that was ended may have been writing it
            sweep(Path(resume).resolve().parent)
