"""A recipe as text: what to give llama-quantize, and what it is worth."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ggufnorm.core.recipe import RecipeReport, Trial
from ggufnorm.report.terminal.common import (
    cells,
    layer_cell,
    model_line,
    new_table,
    skipped_lines,
)
from ggufnorm.report.text import command_lines, number, printable

_MOST_CHANGES = 20


def recipe_parts(report: RecipeReport) -> Iterable[RenderableType]:
    """The parts of the text, from top to bottom."""
    yield _facts(report)
    yield from _changes(report)
    yield Text("\nFor llama-quantize", style="bold")
    for line in command_lines(report):
        yield Text(line, no_wrap=True, overflow="ignore")
    yield Text("\nFiles", style="bold")
    yield _trials(report)
    yield from skipped_lines(report.skipped)
    yield ""
    yield Text(printable(report.verdict), style="bold")


def _facts(report: RecipeReport) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    if report.max_bytes is not None:
        wanted = f"the least KL divergence in {report.max_bytes / 1e6:,.2f} MB"
    else:
        wanted = f"the smallest file of {number(report.target_kld)} nats"
    for row in (
        ("reference", model_line(report.reference)),
        ("quant", model_line(report.quant)),
        ("wanted", wanted),
        ("shares", f"measured in {', '.join(report.anchors)}, scaled to other types"),
        ("imatrix", printable(report.imatrix or "none")),
    ):
        grid.add_row(*cells(row))
    return grid


def _changes(report: RecipeReport) -> Iterable[RenderableType]:
    changed = [c for c in report.choices if c.dtype != c.dtype_quant]
    changed.sort(key=lambda c: c.bytes_quant - c.bytes)
    yield Text(f"\n{len(changed)} of {len(report.choices)} tensors get another type", style="bold")
    if not changed:
        return
    table = new_table("Layer", "Tensor", "Type", "Bytes", "Cost", left=("Tensor", "Type"))
    for c in changed[:_MOST_CHANGES]:
        row = [
            layer_cell(c.layer),
            printable(c.tensor),
            f"{c.dtype_quant}→{c.dtype}",
            f"{c.bytes - c.bytes_quant:+,}",
            number(c.kld),
        ]
        table.add_row(*cells(row))
    yield table
    if len(changed) > _MOST_CHANGES:
        yield Text(f"… and {len(changed) - _MOST_CHANGES} more (see --format json)")


def _trials(report: RecipeReport) -> Table:
    table = new_table("File", "MB", "KL", "±", left=("File",))
    predicted = Trial("recipe, predicted", report.bytes, report.predicted_kld, None)
    for t in (report.measured_quant, predicted, report.measured, *report.uniform):
        if t is not None:
            row = [printable(t.name), f"{t.bytes / 1e6:,.2f}", number(t.kld), number(t.kld_se, 2)]
            table.add_row(*cells(row))
    return table
