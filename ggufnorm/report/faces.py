"""The faces of a result, and files of them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from ggufnorm.core.audit import AuditReport, AuditSet
from ggufnorm.core.model import Inspection, InspectionSet
from ggufnorm.core.result import Result
from ggufnorm.errors import InputError, MissingPackageError
from ggufnorm.formats.files import read_regular
from ggufnorm.formats.replace import replacing
from ggufnorm.report.document import MAX_BYTES, from_json, to_json

SUFFIXES = {
    ".json": "json",
    ".txt": "text",
    ".md": "markdown",
    ".html": "html",
    ".csv": "csv",
    ".sarif": "sarif",
}
"""A file's suffix to the face that it stands for."""

_HTML_PACKAGES = ("jinja2", "vl_convert")


def require(face: str) -> None:
    """Make sure that a face can be made, before the work that it is to show.

    Raises:
        MissingPackageError: a package that it needs is not installed.
    """
    if face != "html":
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


def render(result: Result, face: str) -> str:
    """A result as a file or a pipe gets it.

    Args:
        result: to be shown.
        face: a value of :data:`SUFFIXES` or ``github``; ``csv`` is for inspections only,
            ``sarif`` and ``github`` for audits.

    Raises:
        InputError: there is no such face of this result.
        MissingPackageError: a package that the face needs is not installed.
    """
    if face == "json":
        return to_json(result)
    if face == "markdown":
        from ggufnorm.report.markdown import to_markdown

        return to_markdown(result)
    if face == "html":
        require(face)
        from ggufnorm.report.html import to_html

        return to_html(result)
    if face == "csv" and isinstance(result, (Inspection, InspectionSet)):
        from ggufnorm.report.csv import to_csv

        return to_csv(result)
    if face in ("sarif", "github") and isinstance(result, (AuditReport, AuditSet)):
        from ggufnorm.report.audit import to_github, to_sarif

        return to_sarif(result) if face == "sarif" else to_github(result)
    if face != "text":
        raise InputError(f"no {face} of a {type(result).__name__}: use .json, .md or .html")
    from ggufnorm.report import terminal

    return terminal.render(result)


def save(result: Result, path: str | os.PathLike[str]) -> None:
    """Write a result to a file that appears only when it is complete.

    Args:
        result: to be written.
        path: its suffix decides the format: .json, .txt, .md, .html, .csv (inspections),
            .sarif (audits).

    Raises:
        InputError: the suffix stands for no format of this result, or the file cannot be
            written.
        MissingPackageError: a package that the format needs is not installed.
    """
    face = SUFFIXES.get(Path(path).suffix.lower())
    if face is None:
        raise InputError(f"cannot write {path}: its suffix is none of {', '.join(SUFFIXES)}")
    write(render(result, face), path)


def write(text: str, path: str | os.PathLike[str]) -> None:
    """Write a text to a file that appears only when it is complete.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as unfinished:
        try:
            unfinished.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None


def load(path: str | os.PathLike[str]) -> Result:
    """Read a result that was saved as JSON.

    Raises:
        InputError: the file cannot be read, is not a document of ggufnorm's, is damaged,
            or is newer than this version of ggufnorm.
    """
    try:
        text = read_regular(path, MAX_BYTES).decode()
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a ggufnorm document: no UTF-8 at {error.start}") from None
    return from_json(text, str(path))
