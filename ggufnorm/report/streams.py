"""Results of thousands of models as they come: JSON Lines, and Parquet.

A line is a document (:mod:`ggufnorm.report.document`) without line ends. A model that could not
be read has a line ``{"schema": "ggufnorm/not-read", "version": 1, "path", "reason"}``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufnorm.analysis.audit.rules import BY_ID
from ggufnorm.core.audit import AuditReport, AuditSet, PassedOver
from ggufnorm.core.model import Skipped
from ggufnorm.core.result import Result
from ggufnorm.errors import InputError, MissingPackageError
from ggufnorm.formats.output import replacing
from ggufnorm.report.document import VERSION, document, from_line

if TYPE_CHECKING:
    from pyarrow import Schema

NOT_READ = "ggufnorm/not-read"
PASSED_OVER = "ggufnorm/passed-over"
"""The schemas of lines of what has no report."""

_ROWS = 500
"""Models in a row group of a Parquet file."""

Item = AuditReport | Skipped
Write = Callable[[Item], None]


def require_stream(fmt: str, output: Path | None) -> None:
    """Make sure that a stream can be written.

    Raises:
        InputError: Parquet has to be a file.
        MissingPackageError: pyarrow is not installed.
    """
    if fmt != "parquet":
        return
    if output is None:
        raise InputError("Parquet goes to a file: give -o FILE.parquet")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingPackageError("Parquet needs pyarrow: pip install 'ggufnorm[fleet]'") from None


@contextmanager
def stream(fmt: str, output: Path | None) -> Iterator[Write]:
    """Somewhere to write one model after the other.

    Args:
        fmt: one of :data:`ggufnorm.report.formats.STREAMS`.
        output: a file that appears when it is complete; None for standard output, where each
            line appears at once.

    Raises:
        OutputError: the file cannot be written.
    """
    if output is None:
        yield lambda item: _print(line(item))
        return
    with replacing(output) as unfinished:
        if fmt == "jsonl":
            with unfinished.open("w", encoding="utf-8", newline="\n") as file:
                yield lambda item: _write(file, line(item))
        else:
            with _parquet(unfinished) as write:
                yield write


def line(item: Item) -> str:
    """A model as a line of JSON."""
    if isinstance(item, AuditReport):
        plain = document(item)
    else:
        schema = PASSED_OVER if isinstance(item, PassedOver) else NOT_READ
        plain = {"schema": schema, "version": VERSION, "path": item.what, "reason": item.reason}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"


def items_of(result: AuditReport | AuditSet) -> Iterator[Item]:
    """What a stream of a result that is already there holds."""
    if isinstance(result, AuditReport):
        yield result
        return
    yield from result.models
    yield from result.failed
    yield from (PassedOver(s.what, s.reason) for s in result.passed_over)


def save_stream(result: Result, fmt: str, path: Path) -> None:
    """Write audits that are already there.

    Raises:
        InputError: the result is of another kind.
        OutputError: the file cannot be written.
        MissingPackageError: pyarrow is needed and not installed.
    """
    if not isinstance(result, (AuditReport, AuditSet)):
        raise InputError(f"no {fmt} of a {type(result).__name__}: use .json, .md, .html or .csv")
    require_stream(fmt, path)
    with stream(fmt, path) as write:
        for item in items_of(result):
            write(item)


def read_lines(lines: Iterable[str], name: str) -> AuditSet:
    """The inverse of :func:`line`, for all lines of a file.

    Raises:
        InputError: a line is no such document.
    """
    models: list[AuditReport] = []
    failed: list[Skipped] = []
    passed_over: list[Skipped] = []
    for number, text in enumerate(lines, 1):
        found = from_line(text, f"{name}, line {number}", (NOT_READ, PASSED_OVER))
        if isinstance(found, AuditReport):
            models.append(found)
        elif isinstance(found, dict):
            where = failed if found["schema"] == NOT_READ else passed_over
            where.append(Skipped(str(found.get("path")), str(found.get("reason"))))
        else:
            raise InputError(f"{name}, line {number}: it holds no audit")
    return AuditSet(tuple(models), tuple(failed), tuple(passed_over))


def _print(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()


def _write(file: Any, text: str) -> None:
    file.write(text)


# -- Parquet -----------------------------------------------------------------------------


def _schema() -> Schema:
    import pyarrow as pa

    finding = pa.struct(
        [
            ("rule", pa.string()),
            ("name", pa.string()),
            ("severity", pa.string()),
            ("tensor", pa.string()),
            ("layer", pa.int32()),
            ("message", pa.string()),
            ("evidence", pa.string()),
        ]
    )
    return pa.schema(
        [
            ("path", pa.string()),
            ("architecture", pa.string()),
            ("name", pa.string()),
            ("n_bytes", pa.int64()),
            ("file_type", pa.string()),
            ("quantized_by", pa.string()),
            ("size_label", pa.string()),
            ("base_model", pa.string()),
            ("has_imatrix", pa.bool_()),
            ("n_norms", pa.int32()),
            ("errors", pa.int32()),
            ("warnings", pa.int32()),
            ("infos", pa.int32()),
            ("findings", pa.list_(finding)),
            ("rules_run", pa.list_(pa.string())),
            ("not_read", pa.string()),
            ("passed_over", pa.string()),
        ]
    )


def row(item: Item) -> dict[str, Any]:
    """A model as a row of the Parquet file; ``evidence`` is JSON."""
    if isinstance(item, Skipped):
        why = "passed_over" if isinstance(item, PassedOver) else "not_read"
        return {"path": item.what, why: item.reason}
    made, summary = item.provenance, item.summary
    return {
        "path": item.path,
        "architecture": item.architecture,
        "name": item.name,
        "n_bytes": made and made.n_bytes,
        "file_type": made and made.file_type,
        "quantized_by": made and made.quantized_by,
        "size_label": made and made.size_label,
        "base_model": made and made.base_model,
        "has_imatrix": made and made.has_imatrix,
        "n_norms": summary.n_norms,
        "errors": summary.errors,
        "warnings": summary.warnings,
        "infos": summary.infos,
        "findings": [
            {
                "rule": f.rule,
                "name": BY_ID[f.rule].name if f.rule in BY_ID else None,
                "severity": f.severity,
                "tensor": f.tensor,
                "layer": f.layer,
                "message": f.message,
                "evidence": json.dumps(f.evidence, ensure_ascii=False, default=str),
            }
            for f in item.findings
        ],
        "rules_run": list(summary.rules_run),
    }


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:

        def write(item: Item) -> None:
            rows.append(row(item))
            if len(rows) == _ROWS:
                flush()

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            rows.clear()

        yield write
        if rows:
            flush()
