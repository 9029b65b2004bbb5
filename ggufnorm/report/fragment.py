"""Results as a fragment of HTML for a notebook: no scripts, no style of its own."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from ggufnorm.core.result import Result
from ggufnorm.report.outline import outlines
from ggufnorm.report.outline.parts import Cell, Excerpt, Outline, Reference, Section, Table
from ggufnorm.report.text import printable

_MOST_ROWS = 100


def to_fragment(result: Result) -> str:
    """The answer, its figures and the tables; what may be hidden is folded."""
    return "".join(part for o in outlines(result) for part in _part(o))


def _part(outline: Outline) -> Iterator[str]:
    yield f"<h3>{_text(outline.title)}</h3>"
    if outline.headline:
        yield f"<p><b>{_text(outline.headline)}.</b> {_text(outline.verdict)}</p>"
    if outline.figures:
        rows = tuple({"": f.label, "Value": f.value, "Note": f.note} for f in outline.figures)
        yield from _table(Table(rows, left=("", "Value", "Note")))
    for section in outline.sections:
        yield from _section(section)


def _section(section: Section) -> Iterator[str]:
    if section.folded:
        yield f"<details><summary>{_text(section.title)}</summary>"
    elif section.title:
        yield f"<h4>{_text(section.title)}</h4>"
    yield from (f"<p>{_text(line)}</p>" for line in section.lines)
    if section.code:
        yield f"<pre>{_text_lines(section.code)}</pre>"
    if section.table is not None:
        yield from _table(section.table)
    if section.folded:
        yield "</details>"


def _table(table: Table) -> Iterator[str]:
    columns = list(table.rows[0])
    align = ["left" if c in table.left else "right" for c in columns]
    yield "<table><thead><tr>"
    for column, side in zip(columns, align, strict=True):
        yield f'<th style="text-align: {side}">{_text(column)}</th>'
    yield "</tr></thead><tbody>"
    for i, row in enumerate(table.rows[:_MOST_ROWS]):
        yield "<tr>"
        for column, side in zip(columns, align, strict=True):
            cell = _cell(row[column])
            cell = f"<b>{cell}</b>" if i in table.marked else cell
            yield f'<td style="text-align: {side}">{cell}</td>'
        yield "</tr>"
    yield "</tbody></table>"
    if len(table.rows) > _MOST_ROWS:
        yield f"<p>… and {len(table.rows) - _MOST_ROWS} more</p>"


def _cell(cell: Cell) -> str:
    if isinstance(cell, Excerpt):
        return f"{_text(cell.before)}<mark>{_text(cell.token)}</mark>"
    return _text(cell.text if isinstance(cell, Reference) else cell)


def _text_lines(lines: tuple[str, ...]) -> str:
    return "\n".join(map(_text, lines))


def _text(text: str) -> str:
    return escape(printable(text))
