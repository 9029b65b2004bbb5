"""The text of a comparison of pixels."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from ggufnorm.core.pixel_report import PixelReport
from ggufnorm.report.pixels import (
    PAIR_COLUMNS,
    PAIR_LEFT,
    PIPELINE_COLUMNS,
    PIPELINE_LEFT,
    done_line,
    expected_line,
    model_line,
    pair_rows,
    pipeline_rows,
)
from ggufnorm.report.terminal.common import cells, finding_parts, new_table
from ggufnorm.report.text import printable


def pixel_parts(report: PixelReport) -> Iterable[RenderableType]:
    """The parts of the text, from top to bottom."""
    yield Text(f"expected  {expected_line(report.expected)}")
    yield Text("\nWhat each pipeline feeds", style="bold")
    table = new_table(*PIPELINE_COLUMNS, left=PIPELINE_LEFT)
    for p in report.pipelines:
        for row in pipeline_rows(p):
            table.add_row(*cells(row))
    yield table
    for p in report.pipelines:
        yield Padding(Text(done_line(p)), (0, 0, 0, 2))
    line = model_line(report)
    if line:
        yield Padding(Text(line), (0, 0, 0, 2))
    if report.comparisons:
        yield Text("\nDifferences (Rest: when both are normalized alike)", style="bold")
        pairs = new_table(*PAIR_COLUMNS, left=PAIR_LEFT)
        pairs.columns[3].no_wrap = False
        for row in pair_rows(report):
            pairs.add_row(*cells(row))
        yield pairs
    yield from finding_parts(report.findings)
    yield ""
    wrong = any(f.severity == "error" for f in report.findings)
    yield Text(printable(report.verdict), style="bold red" if wrong else "bold")
