"""Where results go: ``--format`` and ``-o``, shared by all commands."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ggufnorm.core.audit import AuditReport, AuditSet
from ggufnorm.core.frameworks import FrameworksReport
from ggufnorm.core.model import Inspection, InspectionSet
from ggufnorm.errors import InputError
from ggufnorm.report.document import Result, to_json

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("text", "json")
"""What every command can write."""

_SUFFIXES = {".json": "json", ".txt": "text", ".md": "markdown", ".csv": "csv", ".sarif": "sarif"}


def output_options(*formats: str) -> Callable[[F], F]:
    """Add ``--format`` and ``-o/--output`` to a command that can write these formats."""
    suffixes = [s for s, fmt in _SUFFIXES.items() if fmt in formats]

    def add(command: F) -> F:
        command = click.option(
            "-o",
            "--output",
            type=click.Path(dir_okay=False, path_type=Path),
            help=f"Write to this file; {', '.join(suffixes)} decides the format.",
        )(command)
        return click.option(
            "--format",
            "fmt",
            type=click.Choice(formats),
            help="What to write.  [default: by the suffix of -o, else text]",
        )(command)

    return add


def choose_format(fmt: str | None, output: Path | None, formats: Sequence[str] = FORMATS) -> str:
    """The format asked for, or else the one that the file's suffix stands for.

    Raises:
        click.UsageError: the suffix stands for none of ``formats``.
    """
    if fmt:
        return fmt
    if output is None:
        return "text"
    known = _SUFFIXES.get(output.suffix.lower())
    if known is None or known not in formats:
        raise click.UsageError(
            f"cannot tell the format of {output} from its suffix: give --format {'|'.join(formats)}"
        )
    return known


def emit(result: Result, fmt: str, output: Path | None) -> None:
    """Print a result, or write it to a file that appears only when it is complete.

    Raises:
        InputError: the file cannot be written.
    """
    if output is None:
        click.echo(_render(result, fmt, sys.stdout.isatty()), nl=False)
        return
    text = _render(result, fmt, on_terminal=False)
    try:
        handle, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
        unfinished = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            unfinished.chmod(0o666 & ~_umask())
            unfinished.replace(output)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from None


def _render(result: Result, fmt: str, on_terminal: bool) -> str:
    if fmt == "json":
        return to_json(result)
    if fmt != "text" and isinstance(result, (AuditReport, AuditSet)):
        return _render_audit(result, fmt)
    if fmt == "markdown" and isinstance(result, (Inspection, InspectionSet)):
        from ggufnorm.report.markdown import to_markdown

        return to_markdown(result)
    if fmt == "markdown" and isinstance(result, FrameworksReport):
        from ggufnorm.report import frameworks

        return frameworks.to_markdown(result)
    if fmt == "csv" and isinstance(result, (Inspection, InspectionSet)):
        from ggufnorm.report.csv import to_csv

        return to_csv(result)
    from ggufnorm.report.terminal import WIDTH, render

    if not on_terminal:
        return render(result)
    color = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return render(result, width=shutil.get_terminal_size((WIDTH, 24)).columns, color=color)


def _render_audit(result: AuditReport | AuditSet, fmt: str) -> str:
    from ggufnorm.report.audit import to_github, to_markdown, to_sarif

    return {"markdown": to_markdown, "sarif": to_sarif, "github": to_github}[fmt](result)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
