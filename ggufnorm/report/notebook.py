"""Reports as a fragment of HTML for a notebook: no scripts, no style of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from ggufnorm.report.formatting import printable
from ggufnorm.report.view import MARKS, Cell, Figure, Report, Section, Sentence, Status, Table

if TYPE_CHECKING:
    from ggufnorm.core.result import Result

_MOST_ROWS = 100

_COLORS: Mapping[Status, str] = {
    "ok": "; color: #0f8a63", "warning": "; color: #b07400", "error": "; color: #d1433a",
}  # fmt: skip
"""Of words whose status matters, to be read on white and on black."""


def to_fragment(result: Result) -> str:
    """The answer, its figures and the tables; what may be hidden is folded."""
    from ggufnorm.report.kinds import reports_of

    return "".join(part for report in reports_of(result) for part in _report(report))


def _report(report: Report) -> Iterator[str]:
    yield f"<h3>{_text(report.title)}</h3>"
    if report.headline:
        mark = MARKS.get(report.status, "")
        yield f"<p{_style(report.status)}><b>{mark}{_text(report.headline)}</b></p>"
    yield from _sentences(report.verdict)
    if report.figures:
        yield from _figures(report.figures)
    if report.next_step:
        yield f"<p>Next: {_text(report.next_step)}</p>"
    for section in report.shown:
        yield from _section(section)
    if report.facts is not None:
        yield from _section(report.facts)


def _figures(figures: Sequence[Figure]) -> Iterator[str]:
    yield "<table><tbody>"
    for f in figures:
        cells = "".join(
            f'<td style="text-align: left">{_text(part)}</td>'
            for part in (f.label, f.value, f.note)
        )
        yield f"<tr>{cells}</tr>"
    yield "</tbody></table>"


def _section(section: Section) -> Iterator[str]:
    if section.folded:
        yield f"<details><summary>{_text(section.title)}</summary>"
    elif section.title:
        yield f"<h4>{_text(section.title)}</h4>"
    yield from _sentences(section.sentences)
    if section.code:
        yield f"<pre>{chr(10).join(map(_text, section.code))}</pre>"
    if section.table is not None and section.table.rows:
        yield from _table(section.table)
        yield from _sentences(section.table.notes)
    for topic in section.topics:
        yield f"<details><summary>{_text(topic.title)}</summary>"
        yield from (*_sentences(topic.sentences), "</details>")
    if section.folded:
        yield "</details>"


def _sentences(sentences: Sequence[Sentence]) -> Iterator[str]:
    for s in sentences:
        label = f"<b>{_text(s.label)}</b> " if s.label else ""
        yield f"<p{_style(s.status)}>{label}{_text(s.text)}</p>"


def _table(table: Table) -> Iterator[str]:
    sides = ["left" if c.left else "right" for c in table.columns]
    yield '<div style="overflow-x: auto"><table><thead><tr>'
    for column, side in zip(table.columns, sides, strict=True):
        yield f'<th style="text-align: {side}">{_text(column.title)}</th>'
    yield "</tr></thead><tbody>"
    most = _MOST_ROWS if table.most is None else table.most
    for row, status in zip(table.rows[:most], table.statuses, strict=False):
        yield "<tr>"
        for cell, side in zip(row, sides, strict=True):
            shown = f"<b>{_cell(cell)}</b>" if status == "error" else _cell(cell)
            color = _COLORS.get(status if cell.status == "neutral" else cell.status, "")
            yield f'<td style="text-align: {side}{color}">{shown}</td>'
        yield "</tr>"
    yield "</tbody></table></div>"
    if len(table.rows) > most:
        yield f"<p>… and {len(table.rows) - most} more</p>"


def _style(status: Status) -> str:
    color = _COLORS.get(status, "").removeprefix("; ")
    return f' style="{color}"' if color else ""


def _cell(cell: Cell) -> str:
    if cell.before:
        return f"{_text(cell.before)}<mark>{_text(cell.text)}</mark>"
    return _text(cell.text)


def _text(text: str) -> str:
    return escape(printable(text))
