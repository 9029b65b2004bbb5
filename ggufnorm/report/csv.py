"""A table of a result as comma-separated values: numbers in full, no cell left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from ggufnorm.core.result import Result
from ggufnorm.errors import InputError
from ggufnorm.report.formatting import printable
from ggufnorm.report.kinds import kind_of
from ggufnorm.report.view import Cell, Report, Table

_NONE = "–"


def to_csv(result: Result, name: str | None = None) -> str:
    """One table of a result.

    Of a set of several models the rows of all follow each other, each with its file.

    Args:
        result: that has the table.
        name: of the table; by default the main one of the kind.

    Raises:
        InputError: there is no such table.
    """
    kind = kind_of(result)
    reports = kind.tables(result)
    wanted = name or kind.main
    found = [(report, t) for report in reports for t in report.tables if t.name == wanted]
    if not found and name is not None:
        names = dict.fromkeys(t.name for report in reports for t in report.tables)
        raise InputError(f"no table {name!r} in this {type(result).__name__}: {', '.join(names)}")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    several = len(reports) > 1 and any(report.subject for report, _ in found)
    writer.writerows(_lines(found, several=several))
    return out.getvalue()


def _lines(found: list[tuple[Report, Table]], several: bool) -> Iterator[tuple[object, ...]]:
    for i, (report, table) in enumerate(found):
        if table.export is not None:
            yield from () if i else (table.export.header,)
            yield from table.export.rows
            continue
        subject = (printable(report.subject),) if several else ()
        if not i:
            yield (*(("File",) if several else ()), *(c.title for c in table.columns))
        for row in table.rows:
            yield (*subject, *map(_value, row))


def _value(cell: Cell) -> object:
    if cell.value is not None:
        return cell.value
    return "" if cell.text == _NONE else printable(cell.before + cell.text)
