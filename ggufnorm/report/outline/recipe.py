"""The outline of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ggufnorm.core.recipe import RecipeReport, Trial
from ggufnorm.report.outline.parts import Figure, Outline, Section, Table, skipped_section
from ggufnorm.report.text import (
    command_lines,
    counted,
    layer_cell,
    model_line,
    number,
    plus_minus,
)


def recipe_outline(report: RecipeReport) -> Outline:
    """Which types, what they are worth, and how to get them."""
    return Outline(
        f"A recipe for {Path(report.reference.path).name}",
        headline=f"{report.bytes / 1e6:,.2f} MB at {number(report.predicted_kld)} nats",
        verdict=report.verdict,
        figures=tuple(_figures(report)),
        sections=(
            _trials(report),
            Section("For llama-quantize", code=tuple(command_lines(report))),
            *_changes(report),
            *skipped_section(tuple(f"{s.what}: {s.reason}" for s in report.skipped)),
            _facts(report),
        ),
    )


def _figures(report: RecipeReport) -> Iterator[Figure]:
    yield Figure("Predicted", f"{number(report.predicted_kld)} nats", "mean KL divergence")
    if report.measured is not None:
        value = plus_minus(report.measured.kld, report.measured.kld_se, 5)
        yield Figure("Measured", f"{value} nats", f"{report.n_tokens:,} positions")
    changed = sum(c.dtype != c.dtype_quant for c in report.choices)
    yield Figure("Tensors of another type", f"{changed} of {len(report.choices)}")


def _trials(report: RecipeReport) -> Section:
    predicted = Trial("recipe, predicted", report.bytes, report.predicted_kld, None)
    rows = tuple(
        {
            "File": t.name,
            "MB": f"{t.bytes / 1e6:,.2f}",
            "KL divergence": number(t.kld),
            "±": number(t.kld_se, 2),
        }
        for t in (report.measured_quant, predicted, report.measured, *report.uniform)
        if t is not None
    )
    return Section("Files", charts=("trials",), table=Table(rows, left=("File",)))


def _changes(report: RecipeReport) -> Iterator[Section]:
    changed = [c for c in report.choices if c.dtype != c.dtype_quant]
    changed.sort(key=lambda c: c.bytes_quant - c.bytes)
    rows = tuple(
        {
            "Layer": layer_cell(c.layer),
            "Tensor": c.tensor,
            "Type": f"{c.dtype_quant}→{c.dtype}",
            "Bytes": f"{c.bytes - c.bytes_quant:+,}",
            "Cost": number(c.kld),
        }
        for c in changed
    )
    if rows:
        title = f"{counted(len(rows), 'tensor')} of another type"
        yield Section(title, table=Table(rows, left=("Tensor", "Type")), folded=True)


def _facts(report: RecipeReport) -> Section:
    rows = (
        ("Reference", model_line(report.reference)),
        ("To be bettered", model_line(report.quant)),
        ("Shares measured in", ", ".join(report.anchors)),
        ("Importance matrix", report.imatrix or "none"),
    )
    table = Table(tuple({"": a, "Facts": b} for a, b in rows), left=("", "Facts"))
    return Section("Facts", table=table, folded=True)
