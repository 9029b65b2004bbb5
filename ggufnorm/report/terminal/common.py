"""What all text reports share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ggufnorm.core.feed import FeedFinding
from ggufnorm.core.model import Skipped
from ggufnorm.report.text import layer_cell as layer_cell
from ggufnorm.report.text import model_line as model_line
from ggufnorm.report.text import printable

_MOST_SKIPPED = 10
_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}


def new_table(*columns: str, left: Iterable[str] = ()) -> Table:
    """A table without edges; the columns that are not ``left`` are aligned to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def fitted_table(
    rows: Sequence[Mapping[str, str]],
    width: int,
    *,
    left: Iterable[str],
    dropped_first: Sequence[str],
    marked: Sequence[bool] = (),
) -> Table:
    """A table for ``width`` columns; its first column is cut if nothing else helps.

    Args:
        rows: cells by the columns' titles, the same titles in each.
        width: to keep to.
        left: columns that are aligned to the left.
        dropped_first: columns that go, in this order, until the rest fits.
        marked: which rows are out of line.
    """
    widths = {c: max(len(c), *(len(row[c]) for row in rows)) for c in rows[0]}
    first, *others = widths

    def room() -> int:
        return width - sum(_GAP + widths[c] for c in others)

    for column in dropped_first:
        if room() >= min(widths[first], _NARROW):
            break
        others.remove(column)
    table = new_table(first, *others, left=left)
    table.columns[0].overflow, table.columns[0].max_width = "ellipsis", max(1, room())
    for i, row in enumerate(rows):
        style = "bold red" if i < len(marked) and marked[i] else ""
        table.add_row(*cells(row[c] for c in (first, *others)), style=style)
    return table


_GAP = 2
"""Spaces between two columns."""
_NARROW = 25
"""A name is not cut to less than this before columns go: ``blk.31.ffn_gate_exps.weight``."""


def cells(row: Iterable[str | Text]) -> list[RenderableType]:
    """A row's cells, none of them read as markup or able to steer a terminal."""
    return [cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row]


def skipped_lines(skipped: Sequence[Skipped]) -> Iterable[Text]:
    """What was not looked at, and why."""
    if not skipped:
        return
    yield Text(f"\nSkipped: {len(skipped)}", style="bold")
    for s in skipped[:_MOST_SKIPPED]:
        yield Text(f"  {printable(s.what)}: {printable(s.reason)}")
    if len(skipped) > _MOST_SKIPPED:
        yield Text(f"  … and {len(skipped) - _MOST_SKIPPED} more (see --format json)")


def finding_parts(findings: Iterable[FeedFinding]) -> Iterable[RenderableType]:
    """What is to be known about pipelines."""
    for finding in findings:
        yield ""
        heading = printable(f"{finding.severity} {finding.name}")
        yield Text(heading, style=_STYLES[finding.severity])
        yield Padding(Text(printable(finding.message)), (0, 0, 0, 2))
