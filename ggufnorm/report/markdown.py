"""Results as GitHub-flavoured Markdown, for a pull request or a model card."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator

from ggufnorm.core.result import Result
from ggufnorm.report.outline import outlines
from ggufnorm.report.outline.parts import Cell, Excerpt, Outline, Reference, Section, Table
from ggufnorm.report.text import printable

_MOST_FOLDED_ROWS = 200
"""GitHub takes comments of 65,536 characters."""


def to_markdown(result: Result) -> str:
    """One part per model: its tables, and what is to be said of them."""
    return "\n".join("\n".join(_part(o)) + "\n" for o in outlines(result))


def _part(outline: Outline) -> Iterator[str]:
    yield f"## {escape(outline.title)}"
    if outline.headline:
        yield from ("", f"**{escape(outline.headline)}**")
    if outline.verdict:
        yield from ("", escape(outline.verdict))
    if outline.figures:
        rows = tuple({"": f.label, "Value": f.value, "Note": f.note} for f in outline.figures)
        yield from ("", *_table(Table(rows, left=("", "Value", "Note"))))
    for section in outline.sections:
        yield from _section(section)


def _section(section: Section) -> Iterator[str]:
    if section.folded:
        yield from ("", f"<details><summary>{html.escape(section.title)}</summary>")
    elif section.title:
        yield from ("", f"### {escape(section.title)}")
    if section.lines:
        yield from ("", *(f"- {escape(line)}" for line in section.lines))
    if section.code:
        yield from ("", *_fenced(section.code))
    if section.table is not None:
        yield from ("", *_table(section.table, _MOST_FOLDED_ROWS if section.folded else None))
    if section.folded:
        yield from ("", "</details>")


def _fenced(lines: tuple[str, ...]) -> Iterator[str]:
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (fence, *map(printable, lines), fence)


def _table(table: Table, most: int | None = None) -> Iterator[str]:
    columns = list(table.rows[0])
    yield _line(map(escape, columns))
    yield _line("---" if c in table.left else "--:" for c in columns)
    for i, row in enumerate(table.rows[:most]):
        cells = [_cell(row[c]) for c in columns]
        yield _line(f"**{c}**" if c and i in table.marked else c for c in cells)
    if most is not None and len(table.rows) > most:
        yield from ("", f"… and {len(table.rows) - most} more")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    if isinstance(cell, Excerpt):
        before, token = (escape(_on_one_line(t)) for t in (cell.before, cell.token))
        return f"{before}<b>{token}</b>"
    return escape(cell.text if isinstance(cell, Reference) else cell)


def _on_one_line(text: str) -> str:
    return text.replace("\n", "⏎")


def escape(text: str) -> str:
    """Text without Markdown or control characters: tensor names are full of underscores."""
    return re.sub(r"([\\`*_\[\]<>|&#~])", r"\\\1", printable(text))
