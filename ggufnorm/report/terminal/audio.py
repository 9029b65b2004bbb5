"""The text of a comparison of spectrograms."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from ggufnorm.core.audio_report import AudioReport
from ggufnorm.report.audio import (
    PAIR_COLUMNS,
    PAIR_LEFT,
    PIPELINE_COLUMNS,
    PIPELINE_LEFT,
    done_line,
    expected_line,
    pair_rows,
    pipeline_rows,
    sound_line,
)
from ggufnorm.report.terminal.common import cells, finding_parts, new_table
from ggufnorm.report.text import printable


def audio_parts(report: AudioReport) -> Iterable[RenderableType]:
    """The parts of the text, from top to bottom."""
    yield Text(f"sound     {sound_line(report)}")
    yield Text(f"expected  {expected_line(report)}")
    yield Text("\nWhat each pipeline feeds", style="bold")
    table = new_table(*PIPELINE_COLUMNS, left=PIPELINE_LEFT)
    for row in pipeline_rows(report):
        table.add_row(*cells(row))
    yield table
    for p in report.pipelines:
        yield Padding(Text(done_line(p)), (0, 0, 0, 2))
    if report.comparisons:
        yield Text("\nDifferences (Rest: when both are scaled alike)", style="bold")
        pairs = new_table(*PAIR_COLUMNS, left=PAIR_LEFT)
        pairs.columns[3].no_wrap = False
        for row in pair_rows(report):
            pairs.add_row(*cells(row))
        yield pairs
    yield from finding_parts(report.findings)
    yield ""
    wrong = any(f.severity == "error" for f in report.findings)
    yield Text(printable(report.verdict), style="bold red" if wrong else "bold")
