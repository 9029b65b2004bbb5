"""The formats of a result, and files of them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ggufnorm.errors import InputError, MissingPackageError
from ggufnorm.formats.files import read_regular
from ggufnorm.formats.output import write_text

if TYPE_CHECKING:
    from ggufnorm.core.result import Result

SUFFIXES = {
    ".json": "json",
    ".txt": "text",
    ".md": "markdown",
    ".html": "html",
    ".csv": "csv",
    ".sarif": "sarif",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}
"""A file's suffix to the format that it stands for."""

STREAMS = ("jsonl", "parquet")
"""Formats of audits that are written model by model, so that memory stays flat."""

_HTML_PACKAGES = ("jinja2", "vl_convert")


def require(fmt: str) -> None:
    """Make sure that a format can be made, before the work whose result it is to show.

    Raises:
        MissingPackageError: a package that it needs is not installed.
    """
    if fmt != "html":
        return
    missing = [name for name in _HTML_PACKAGES if not _is_installed(name)]
    if missing:
        raise MissingPackageError(
            f"an HTML report needs other packages ({', '.join(missing)}):"
            " pip install 'ggufnorm[html]'"
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # sys.modules holds None in its place
        return False


def render(
    result: Result,
    fmt: str = "text",
    *,
    width: int | None = None,
    color: bool = False,
    wide: bool = False,
    verbose: bool = False,
    table: str | None = None,
) -> str:
    """A result in a format.

    Args:
        result: to be shown.
        fmt: a value of :data:`SUFFIXES` or ``github``; ``sarif`` and ``github`` are for
            audits only.
        width: of text: columns to keep to; by default 100.
        color: of text: whether to colour with ANSI escapes.
        wide: of text: whether to show all rows and columns, however wide tables become.
        verbose: of text: whether to show all rows, in the columns that fit.
        table: of CSV: name of the table; by default the main one.

    Raises:
        InputError: there is no such format of this result, or no such table in it.
        MissingPackageError: a package that the format needs is not installed.
    """
    from ggufnorm.report.kinds import kind_of

    kind = kind_of(result)
    if fmt == "json":
        from ggufnorm.report.document import to_json

        return to_json(result)
    if fmt == "csv":
        from ggufnorm.report.csv import to_csv

        return to_csv(result, table)
    if fmt == "markdown":
        from ggufnorm.report.markdown import to_markdown

        return to_markdown(kind.view(result))
    if fmt == "html":
        require(fmt)
        from ggufnorm.report.html.page import to_html

        return to_html(kind.view(result), kind.charts(result))
    if fmt == "text":
        from ggufnorm.report.text import WIDTH, to_text

        return to_text(
            kind.view(result), width=width or WIDTH, color=color, wide=wide, verbose=verbose
        )
    return _of_an_audit(result, fmt)


def _of_an_audit(result: Result, fmt: str) -> str:
    from ggufnorm.core.audit import AuditReport, AuditSet
    from ggufnorm.report.github import to_github
    from ggufnorm.report.sarif import to_sarif

    if not isinstance(result, (AuditReport, AuditSet)):
        raise InputError(f"no {fmt} of a {type(result).__name__}: use .json, .md, .html or .csv")
    return to_sarif(result) if fmt == "sarif" else to_github(result)


def save(result: Result, path: str | os.PathLike[str]) -> None:
    """Write a result to a file that appears only when it is complete.

    Args:
        result: to be written.
        path: its suffix decides the format: .json, .txt, .md, .html, .csv (its main table),
            .sarif, .jsonl, .parquet (audits).

    Raises:
        InputError: the suffix stands for no format of this result.
        OutputError: the file cannot be written.
        MissingPackageError: a package that the format needs is not installed.
    """
    fmt = SUFFIXES.get(Path(path).suffix.lower())
    if fmt is None:
        raise InputError(f"cannot write {path}: its suffix is none of {', '.join(SUFFIXES)}")
    from ggufnorm.report.streams import save_stream

    if fmt in STREAMS:
        save_stream(result, fmt, Path(path))
    else:
        write_text(render(result, fmt), path)


def load(path: str | os.PathLike[str]) -> Result:
    """Read a result that was saved as JSON, or audits that were saved as JSON Lines.

    Raises:
        InputError: the file cannot be read, is not a document of ggufnorm's, is damaged,
            or is newer than this version of ggufnorm.
    """
    from ggufnorm.report.document import MAX_BYTES, from_json

    is_stream = SUFFIXES.get(Path(path).suffix.lower()) == "jsonl"
    try:
        text = read_regular(path, MAX_BYTES).decode()
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a ggufnorm document: no UTF-8 at {error.start}") from None

    if is_stream:
        from ggufnorm.report.streams import read_lines

        return read_lines(text.splitlines(), str(path))
    return from_json(text, str(path))
