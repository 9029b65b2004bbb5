"""Which columns of a table fit a width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len

from ggufnorm.report.formatting import printable
from ggufnorm.report.view import Cell, Column, Table

_GAPS = (2, 1)
"""Spaces between columns: as many as leave room for all of them."""
_PROSE = 30
"""Characters to which a column of sentences may be narrowed."""
_FEWEST = 4
"""Characters that are left of a cell where nothing else helps."""


@dataclass(frozen=True)
class Fitted:
    """A table's columns in a width.

    Attributes:
        columns: widths by the numbers of the columns that are shown.
        gap: spaces between two of them.
        left_out: the columns that are not.
    """

    columns: dict[int, int]
    gap: int
    left_out: tuple[Column[Any], ...]

    @property
    def width(self) -> int:
        """Of the whole table."""
        return sum(self.columns.values()) + self.gap * (len(self.columns) - 1)


def fitted(table: Table, most: int, width: int | None) -> Fitted:
    """The columns that fit.

    Those of the lowest rank go first, until what is left fits with names and sentences
    narrowed as far as they may be. Columns without any text are not shown at all.

    Args:
        table: at least one row.
        most: rows that are shown.
        width: to keep to, None for all that the columns take.
    """
    natural = {
        i: max(cell_len(printable(column.short or column.title)), *map(cell_width, cells))
        for i, column in enumerate(table.columns)
        for cells in [[row[i] for row in table.rows[:most]]]
        if any(cell.text for cell in cells)
    }
    if width is None:
        return Fitted(natural, _GAPS[0], ())
    least = {i: _least(table.columns[i], natural[i]) for i in natural}
    shown = list(natural)

    def room(widths: dict[int, int], gap: int) -> int:
        return width - sum(widths[i] + gap for i in shown) + gap

    while room(least, _GAPS[-1]) < 0:
        ranked = [i for i in shown if table.columns[i].priority]
        if not ranked:
            break
        shown.remove(max(ranked, key=lambda i: table.columns[i].priority))
    gap = next((g for g in _GAPS if room(natural, g) >= 0), _GAPS[-1])
    widths = {i: natural[i] for i in shown}
    _narrow(widths, least, -room(widths, gap))
    if room(widths, gap) < 0:
        floor = {i: _FEWEST if table.columns[i].left else natural[i] for i in shown}
        _narrow(widths, floor, -room(widths, gap))
    left_out = tuple(table.columns[i] for i in natural if i not in shown)
    return Fitted(widths, gap, left_out)


def _least(column: Column[Any], natural: int) -> int:
    least = _PROSE if column.prose else column.least
    return min(natural, least) if least else natural


def cell_width(cell: Cell) -> int:
    """Characters that a cell takes; a token stands in brackets and quotes."""
    if cell.before:
        return cell_len(printable(cell.before)) + cell_len(printable(cell.text)) + len("“[]”")
    return cell_len(printable(cell.text))


def _narrow(widths: dict[int, int], least: dict[int, int], excess: int) -> None:
    """Take what is too much off the widest columns, one character at a time."""
    while excess > 0:
        i = max((i for i in widths if widths[i] > least[i]), key=lambda i: widths[i], default=None)
        if i is None:
            return
        widths[i] -= 1
        excess -= 1
