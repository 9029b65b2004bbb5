"""Where results go: ``--format``, ``-o``, ``-v``, ``--wide``, ``--table``, for all commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ggufnorm.core.printable import printable
from ggufnorm.formats.output import require_writable, write_text
from ggufnorm.report.formats import SUFFIXES, render, require

if TYPE_CHECKING:
    from ggufnorm.core.result import Result

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("text", "json", "markdown", "html", "csv")
"""What every command can write."""

_META = "ggufnorm.output"
_MOST_TOLD = 8
"""Lines of the answer that are told beside a file."""


def output_options(*formats: str) -> Callable[[F], F]:
    """Add ``--format``, ``-o``, ``-v``, ``--wide`` and ``--table`` to a command.

    The command is given ``fmt`` and ``output``; :func:`emit` reads the others from click's
    context.

    Args:
        formats: that it can write.
    """
    suffixes = [s for s, fmt in SUFFIXES.items() if fmt in formats]

    def add(command: F) -> F:
        command = click.option(
            "--table",
            metavar="NAME",
            expose_value=False,
            callback=_remember,
            help="Table to write as CSV.  [default: the main one]",
        )(command)
        command = click.option(
            "--wide",
            is_flag=True,
            expose_value=False,
            callback=_remember,
            help="Show all rows and columns of text, however wide.",
        )(command)
        command = click.option(
            "-v",
            "--verbose",
            is_flag=True,
            expose_value=False,
            callback=_remember,
            help="Show all rows of text, those that say nothing too.",
        )(command)
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


def _remember(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    ctx.meta.setdefault(_META, {})[option.name] = value


def chosen_table() -> str | None:
    """The table that was asked for."""
    name: str | None = _asked_for().get("table")
    return name


def _asked_for() -> dict[str, Any]:
    context = click.get_current_context(silent=True)
    return {} if context is None else context.meta.get(_META, {})


def choose_format(fmt: str | None, output: Path | None, formats: Sequence[str] = FORMATS) -> str:
    """The format asked for, or else the one that the file's suffix stands for.

    Raises:
        click.UsageError: the suffix stands for none of ``formats``, or the format does not go
            with the options.
        MissingPackageError: a package that the format needs is not installed.
    """
    chosen = fmt or _by_suffix(output, formats)
    if chosen_table() is not None and chosen != "csv":
        raise click.UsageError("--table goes with --format csv")
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

    With a file, the answer goes to standard error, and where the rest was written. What
    cannot be written is printed, as JSON in the place of HTML.

    Raises:
        OutputError: the file cannot be written.
        InputError: the result has no such table.
    """
    asked = _asked_for()
    options = {
        "wide": asked.get("wide", False),
        "verbose": asked.get("verbose", False),
        "table": asked.get("table"),
    }
    if output is None:
        _print(result, fmt, options)
        return
    try:
        write_text(render(result, fmt, **options), output)
    except Exception:
        _print(result, "json" if fmt == "html" else fmt, options)
        raise
    _tell(result, output)


def _tell(result: Result, output: Path) -> None:
    """The answer in a few lines, and the file that has the whole of it."""
    from ggufnorm.report.kinds import reports_of
    from ggufnorm.report.text import answer_lines

    reports = reports_of(result)
    lines = [line for r in reports for line in answer_lines(r)[: None if len(reports) == 1 else 1]]
    for line in lines[:_MOST_TOLD]:
        click.echo(line, err=True)
    if len(lines) > _MOST_TOLD:
        click.echo(f"and {len(lines) - _MOST_TOLD} more", err=True)
    click.echo(f"written to {printable(str(output))}", err=True)


def _print(result: Result, fmt: str, options: dict[str, Any]) -> None:
    if fmt != "text":  # JSON is UTF-8 whatever a terminal's encoding is, and HTML says that it is
        text = render(result, fmt, **options)
        click.echo(text.encode("utf-8", "backslashreplace"), nl=False)
        return
    if sys.stdout.isatty():
        from shutil import get_terminal_size

        options["color"] = "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        options["width"] = get_terminal_size((100, 24)).columns
    click.echo(render(result, fmt, **options), nl=False)
