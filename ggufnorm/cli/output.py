"""Where results go: ``--format`` and ``-o``, shared by all commands."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ggufnorm.core.result import Result
from ggufnorm.formats.output import require_writable, write_text
from ggufnorm.report.faces import SUFFIXES, render, require

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("text", "json", "markdown", "html")
"""What every command can write."""


def output_options(*formats: str) -> Callable[[F], F]:
    """Add ``--format`` and ``-o/--output`` to a command that can write these formats."""
    suffixes = [s for s, fmt in SUFFIXES.items() if fmt in formats]

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
        MissingPackageError: a package that the format needs is not installed.
    """
    chosen = fmt or _by_suffix(output, formats)
    require(chosen)
    return chosen


def _by_suffix(output: Path | None, formats: Sequence[str]) -> str:
    if output is None:
        return "text"
    known = SUFFIXES.get(output.suffix.lower())
    if known is None or known not in formats:
        raise click.UsageError(
            f"cannot tell the format of {output} from its suffix: give --format {'|'.join(formats)}"
        )
    return known


def require_outputs(
    *outputs: str | os.PathLike[str] | None,
    reading: Iterable[str | os.PathLike[str] | None] = (),
) -> None:
    """Make sure that files can be written, before the work that they are for.

    Args:
        outputs: files to be written, None for those that were not asked for; no two the same.
        reading: locations of all that the command reads, which no output may be.

    Raises:
        OutputError: one cannot be written, or is read.
    """
    wanted = [output for output in outputs if output is not None]
    if not wanted:
        return
    from ggufnorm.cli.inputs import files_of

    taken = list(files_of(reading))
    for output in wanted:
        require_writable(output, taken)
        taken.append(Path(output))


def emit(result: Result, fmt: str, output: Path | None) -> None:
    """Print a result, or write it to a file that appears only when it is complete.

    What cannot be written is printed, as JSON in the place of HTML.

    Raises:
        OutputError: the file cannot be written.
    """
    if output is None:
        _print(result, fmt)
        return
    try:
        write_text(render(result, fmt), output)
    except Exception:
        _print(result, "json" if fmt == "html" else fmt)
        raise


def _print(result: Result, fmt: str) -> None:
    if fmt == "text" and sys.stdout.isatty():
        click.echo(_for_terminal(result), nl=False)
    elif fmt == "text":
        click.echo(render(result, fmt), nl=False)
    else:  # JSON is UTF-8 whatever a terminal's encoding is, and HTML says that it is
        click.echo(render(result, fmt).encode("utf-8", "backslashreplace"), nl=False)


def _for_terminal(result: Result) -> str:
    from ggufnorm.report import terminal

    color = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    columns = shutil.get_terminal_size((terminal.WIDTH, 24)).columns
    return terminal.render(result, width=columns, color=color)
