"""Where results go: ``--format`` and ``-o``, shared by all commands."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ggufnorm.core.result import Result
from ggufnorm.report.faces import SUFFIXES, render, require, write

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


def emit(result: Result, fmt: str, output: Path | None) -> None:
    """Print a result, or write it to a file that appears only when it is complete.

    Raises:
        InputError: the file cannot be written.
    """
    if output is not None:
        write(render(result, fmt), output)
    elif fmt == "text" and sys.stdout.isatty():
        click.echo(_for_terminal(result), nl=False)
    else:
        click.echo(render(result, fmt), nl=False)


def _for_terminal(result: Result) -> str:
    from ggufnorm.report import terminal

    color = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    columns = shutil.get_terminal_size((terminal.WIDTH, 24)).columns
    return terminal.render(result, width=columns, color=color)
