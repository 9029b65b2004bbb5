"""Reports as text for a terminal. With ``fitting`` the only room that knows rich."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from ggufnorm.report.fitting import Fitted, fitted
from ggufnorm.report.formatting import BLOCKS, printable
from ggufnorm.report.view import Cell, Figure, Report, Section, Sentence, Status, Table

_MOST_FIGURES = 4
"""In the short answer: what drift does to predictions."""

WIDTH = 100
"""Columns when the output is not a terminal."""

_STYLES: dict[Status, str] = {
    "ok": "green",
    "warning": "yellow",
    "error": "bold red",
    "neutral": "",
}
_ANSWERS: dict[Status, str] = {
    "ok": "bold green",
    "warning": "bold yellow",
    "error": "bold red",
    "neutral": "bold",
}
_BARS = frozenset(f"{BLOCKS}·")


def to_text(
    reports: Sequence[Report],
    *,
    width: int = WIDTH,
    color: bool = False,
    wide: bool = False,
    verbose: bool = False,
) -> str:
    """Reports as text, one after the other.

    Args:
        reports: what to show.
        width: columns to keep to.
        color: whether to colour with ANSI escapes.
        wide: whether to show all rows and columns, however wide tables become.
        verbose: whether to show all rows, in the columns that fit.
    """
    out = io.StringIO()
    page = _Page(width, wide, verbose or wide)
    parts = [part for i, report in enumerate(reports) for part in (*_gap(i), *page.report(report))]
    console = Console(
        file=out,
        width=max(width, page.widest),
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        emoji=False,
        markup=False,
    )
    for part in parts:
        own = isinstance(part, Grid) and part.box is not None
        console.print(part, width=None if own else width)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def _gap(i: int) -> tuple[str, ...]:
    return ("",) if i else ()


class _Page:
    """Reports in a width.

    Args:
        width: columns to keep to.
        wide: whether tables may be wider.
        whole: whether all their rows are shown.
    """

    def __init__(self, width: int, wide: bool, whole: bool) -> None:
        self._width = width
        self._wide = wide
        self._whole = whole
        self.widest = 0

    def report(self, report: Report) -> Iterator[RenderableType]:
        """The answer, how it came about, and what leads to it."""
        yield Text(printable(report.title), style="bold")
        yield from _answer(report)
        if report.facts is not None and report.facts.table is not None:
            yield ""
        if report.facts is not None and report.facts.table is not None:
            yield _labelled((row[0].text, row[1].text, "") for row in report.facts.table.rows)
        for section in report.shown:
            yield ""
            yield from self._section(section)

    def _section(self, section: Section) -> Iterator[RenderableType]:
        if section.title:
            yield Text(printable(section.title), style="bold")
        said = section.sentences if self._whole else section.sentences[: section.most]
        yield from _sentences(said, indent=2 if section.title and not section.table else 0)
        yield from self._more(len(section.sentences) - len(said), indent=2)
        for line in section.code:
            yield Text(printable(line), no_wrap=True, overflow="ignore")
        if section.table is not None and section.table.rows:
            yield from self._table(section.table, section)
            if section.table.notes:
                yield ""
                yield from _sentences(section.table.notes)

    def _table(self, table: Table, section: Section) -> Iterator[RenderableType]:
        if table.layout == "facts":
            yield _labelled((row[0].text, row[1].text, "") for row in table.rows)
        elif table.layout == "records" and not self._wide:
            yield from self._records(table, section)
        else:
            yield from self._grid(table)
            for topic in section.topics:
                yield ""
                yield Text(printable(topic.title), style="bold")
                yield Padding(_labelled(_triples(topic.sentences)), (0, 0, 0, 2))

    def _grid(self, table: Table) -> Iterator[RenderableType]:
        told = table if self._whole else _without_quiet(table)
        n_quiet = len(table.rows) - len(told.rows)
        if told.rows:
            yield from self._rows(told)
        if n_quiet:
            yield Text(f"{n_quiet} {table.quiet_words} (-v shows them)")

    def _rows(self, table: Table) -> Iterator[RenderableType]:
        most = len(table.rows) if self._whole or table.most is None else table.most
        fit = fitted(table, most, None if self._wide else self._width)
        self.widest = max(self.widest, fit.width)
        yield _drawn(table, most, fit)
        yield from self._more(len(table.rows) - most)
        if fit.left_out:
            names = ", ".join(c.title for c in fit.left_out)
            yield Text(f"columns left out at this width: {names} (--wide shows all)", style="dim")

    def _records(self, table: Table, section: Section) -> Iterator[RenderableType]:
        prose = next(i for i, c in enumerate(table.columns) if c.prose)
        topics = {topic.title: topic for topic in section.topics}
        groups = groupby(table.rows, key=lambda row: (row[0].text, row[1].text))
        for n, ((first, second), found) in enumerate(groups):
            yield from _gap(n)
            rows = list(found)
            style = _ANSWERS[rows[0][0].status]
            name, _, words = printable(second).partition(" ")
            yield Text.assemble((f"{printable(first)} {name}", style), f" {words}")
            shown = rows if self._whole else rows[: table.most]
            lines = [("" if i else "what", _record(table, row, prose), "") for i, row in
                     enumerate(shown)]  # fmt: skip
            if len(rows) > len(shown):
                lines.append(("", f"and {len(rows) - len(shown)} more (--wide shows all)", ""))
            if second in topics:
                lines += _triples(topics[second].sentences)
            yield Padding(_labelled(lines, gap=1, least=4), (0, 0, 0, 2))

    def _more(self, n: int, indent: int = 0) -> Iterator[RenderableType]:
        if n > 0:
            yield Text(f"{' ' * indent}and {n} more (--wide shows all)")


def _record(table: Table, row: Sequence[Cell], prose: int) -> str:
    """The sentence of a row, with what other cells add to it."""
    said = row[prose].text
    more = [
        cell.text if column.left else f"{column.title.lower()} {cell.text}"
        for i, (column, cell) in enumerate(zip(table.columns, row, strict=True))
        if i > 1 and i != prose and cell.text and cell.text not in said
    ]
    return f"{said} ({', '.join(more)})" if more else said


# -- sentences ---------------------------------------------------------------------------

_Triple = tuple[str, str, str]
"""A label, a text and its style."""


def _sentences(sentences: Sequence[Sentence], indent: int = 0) -> Iterator[RenderableType]:
    """Those with labels in a column of their own."""
    if any(s.label for s in sentences):
        yield _labelled(_triples(sentences))
        return
    for s in sentences:
        yield Padding(Text(printable(s.text), style=_STYLES[s.status]), (0, 0, 0, indent))


def _triples(sentences: Iterable[Sentence]) -> list[_Triple]:
    return [(s.label, s.text, _STYLES[s.status]) for s in sentences]


def _labelled(rows: Iterable[_Triple], *, gap: int = 2, least: int = 0) -> Grid:
    grid = Grid.grid(padding=(0, gap, 0, 0))
    grid.add_column(no_wrap=True, min_width=least)
    grid.add_column(overflow="fold")
    for label, text, style in rows:
        grid.add_row(Text(printable(label)), Text(printable(text), style=style))
    return grid


def _answer(report: Report) -> Iterator[RenderableType]:
    if report.headline:
        yield Text(printable(report.headline), style=_ANSWERS[report.status])
    if report.figures:
        yield _figures(report.figures)
    if report.verdict and (report.headline or report.figures):
        yield ""
    styles = _ANSWERS if report.headline else _STYLES
    for s in report.verdict:
        yield Text(printable(s.text), style=styles[s.status])
    if report.next_step:
        yield Text(f"Next: {printable(report.next_step)}")


def answer_lines(report: Report) -> tuple[str, ...]:
    """The answer where there is little room: headline, figures and next step, a line each."""
    said = report.headline or next((s.text for s in report.verdict), "")
    figures = ", ".join(f"{f.label} {f.value}" for f in report.figures[:_MOST_FIGURES])
    step = f"Next: {report.next_step}" if report.next_step else ""
    return tuple(printable(line) for line in (f"{report.title}: {said}", figures, step) if line)


def _without_quiet(table: Table) -> Table:
    if not any(table.quiet):
        return table
    kept = [i for i, quiet in enumerate(table.quiet) if not quiet]
    return replace(
        table,
        rows=tuple(table.rows[i] for i in kept),
        statuses=tuple(table.statuses[i] for i in kept),
        quiet=(),
    )


def _figures(figures: Sequence[Figure]) -> Grid:
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, overflow="fold")
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for f in figures:
        grid.add_row(*(Text(printable(part)) for part in (f.label, f.value, f.note)))
    return grid


# -- tables ------------------------------------------------------------------------------


def _drawn(table: Table, most: int, fit: Fitted) -> Grid:
    """A table without edges, in the columns that fit."""
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=(0, fit.gap - 1, 0, 0), show_edge=False)
    for i, width in fit.columns.items():
        column = table.columns[i]
        grid.add_column(
            printable(column.short or column.title),
            justify="left" if column.left else "right",
            no_wrap=not column.prose,
            overflow="fold" if column.prose else "ellipsis",
            width=width,
        )
    for row, status in zip(table.rows[:most], table.statuses, strict=False):
        cells = [_cell(row[i], width) for i, width in fit.columns.items()]
        grid.add_row(*cells, style=_STYLES[status])
    return grid


def _cell(cell: Cell, width: int) -> Text:
    if cell.before:
        before, token = printable(cell.before), printable(cell.text)
        room = max(0, width - cell_len(token) - len("“[]”"))
        return Text.assemble(f"“{before[-room:] if room else ''}[", (token, "bold"), "]”")
    text = printable(cell.text)
    return Text(text, style="cyan" if text and _BARS.issuperset(text) else _STYLES[cell.status])
