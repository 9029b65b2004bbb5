"""A comparison across frameworks as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from ggufnorm.core.frameworks import EngineComparison, FrameworksReport, SiteStatus
from ggufnorm.report.frameworks import (
    FOLD_COLUMNS,
    FOLD_LEFT,
    LEFT,
    NARROW,
    OPERATION_COLUMNS,
    OPERATION_LEFT,
    fold_row,
    followed,
    frameworks_title,
    notes,
    operation_row,
    site_row,
)
from ggufnorm.report.terminal.common import cells, new_table, skipped_lines
from ggufnorm.report.terminal.drift import logit_table
from ggufnorm.report.text import printable

_STYLES: dict[SiteStatus, str] = {
    "mistake": "bold red",
    "before": "bold red",
    "harmless": "yellow",
    "upstream": "dim",
}
_MOST_OPERATIONS = 8
"""Operations shown: the wrong one and those before."""
_MOST_NOTES = 12
"""Lines beside the table that are told before they are counted."""


def frameworks_parts(report: FrameworksReport) -> Iterable[RenderableType]:
    """The parts of the text, from top to bottom."""
    yield Text(frameworks_title(report), style="bold")
    for comparison in report.comparisons:
        yield ""
        yield from _engine_parts(comparison)


def _operations(comparison: EngineComparison) -> Iterator[RenderableType]:
    operations = followed(comparison)[-_MOST_OPERATIONS:]
    if not operations:
        return
    yield ""
    yield Text("Operations up to the first wrong one", style="bold")
    table = new_table(*OPERATION_COLUMNS[:-1], left=OPERATION_LEFT)
    for operation in operations:
        style = "bold red" if operation.status == "wrong" else ""
        table.add_row(*cells(operation_row(operation)[:-1]), style=style)
    yield table


def _engine_parts(comparison: EngineComparison) -> Iterator[RenderableType]:
    style = "bold red" if comparison.first_wrong else "bold"
    yield Text(printable(comparison.verdict), style=style)
    yield from _tables(comparison)
    told = list(notes(comparison))
    if told:
        yield ""
    for line in told[:_MOST_NOTES]:
        yield Padding(Text(line), (0, 0, 0, 2))
    if len(told) > _MOST_NOTES:
        yield Text(f"  … and {len(told) - _MOST_NOTES} more (see --format json)")
    if comparison.logits is not None:
        yield Text(f"\nPredictions at {comparison.logits.n_tokens:,} positions", style="bold")
        yield logit_table(comparison.logits)
    yield from skipped_lines(comparison.skipped)


def _tables(comparison: EngineComparison) -> Iterator[RenderableType]:
    if comparison.sites:
        table = new_table(*NARROW, left=LEFT)
        for site in comparison.sites:
            row = site_row(site)[: len(NARROW)]
            table.add_row(*cells(row), style=_STYLES.get(site.status, ""))
        yield from ("", table)
    yield from _operations(comparison)
    if comparison.folds:
        table = new_table(*FOLD_COLUMNS, left=FOLD_LEFT)
        for fold in comparison.folds:
            style = "bold red" if fold.status == "mistake" else ""
            table.add_row(*cells(fold_row(fold)), style=style)
        yield from ("", table)
