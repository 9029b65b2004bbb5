"""Reports as GitHub-flavoured Markdown, for a pull request or a model card."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence

from ggufnorm.report.formatting import printable
from ggufnorm.report.view import Cell, Figure, Report, Section, Sentence, Table

_MOST_ROWS = 200
"""Of a folded table: GitHub takes comments of 65,536 characters."""


def to_markdown(reports: Sequence[Report]) -> str:
    """One part per report: the answer, then its tables."""
    return "\n".join("\n".join(_report(report)) + "\n" for report in reports)


def _report(report: Report) -> Iterator[str]:
    yield f"## {escape(report.title)}"
    if report.headline:
        yield from ("", f"**{escape(report.headline)}**")
    for s in report.verdict:
        yield from ("", escape(s.text))
    if report.figures:
        yield from ("", *_figures(report.figures))
    if report.next_step:
        yield from ("", f"Next: {escape(report.next_step)}")
    for section in report.shown:
        yield from _section(section)
    if report.facts is not None:
        yield from _section(report.facts)


def _figures(figures: Sequence[Figure]) -> Iterator[str]:
    yield _line(("", "Value", "Note"))
    yield _line(("---", "---", "---"))
    for f in figures:
        yield _line(map(escape, (f.label, f.value, f.note)))


def _section(section: Section) -> Iterator[str]:
    if section.folded:
        yield from ("", f"<details><summary>{html.escape(printable(section.title))}</summary>")
    elif section.title:
        yield from ("", f"### {escape(section.title)}")
    yield from _sentences(section.sentences)
    if section.code:
        yield from ("", *_fenced(section.code))
    if section.table is not None and section.table.rows:
        yield from ("", *_table(section.table, _MOST_ROWS if section.folded else None))
        yield from _sentences(section.table.notes)
    for topic in section.topics:
        yield from ("", f"<details><summary>{html.escape(printable(topic.title))}</summary>")
        yield from (*_sentences(topic.sentences), "", "</details>")
    if section.folded:
        yield from ("", "</details>")


def table_lines(table: Table) -> Iterator[str]:
    """A table and its footnotes alone."""
    yield from _table(table, None)
    yield from _sentences(table.notes)


def _sentences(sentences: Sequence[Sentence]) -> Iterator[str]:
    if sentences:
        yield ""
    for s in sentences:
        label = f"**{escape(s.label)}** " if s.label else ""
        yield f"- {label}{escape(s.text)}"


def _fenced(lines: tuple[str, ...]) -> Iterator[str]:
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (fence, *map(printable, lines), fence)


def _table(table: Table, limit: int | None) -> Iterator[str]:
    most = limit if table.most is None else table.most
    yield _line(escape(c.title) for c in table.columns)
    yield _line("---" if c.left else "--:" for c in table.columns)
    for row, status in zip(table.rows[:most], table.statuses, strict=False):
        bold = status == "error"
        yield _line(f"**{c}**" if c and bold else c for c in map(_cell, row))
    if most is not None and len(table.rows) > most:
        yield from ("", f"… and {len(table.rows) - most} more")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    if cell.before:
        return f"{escape(cell.before)}<b>{escape(cell.text)}</b>"
    return escape(cell.text)


def escape(text: str) -> str:
    """Text without Markdown or control characters: tensor names are full of underscores."""
    return re.sub(r"([\\`*_\[\]<>|&#~])", r"\\\1", printable(text))
