"""The outline of an attribution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ggufnorm.core.attribution import ADDITIVE, AttributionReport, Restoration, Share
from ggufnorm.report.outline.parts import Figure, Outline, Section, Table, skipped_section
from ggufnorm.report.text import (
    counted,
    layer_cell,
    model_line,
    number,
    percent,
    restoration_row,
    share_row,
)

_MOST_SHARES = 30


def attribution_outline(report: AttributionReport) -> Outline:
    """What the loss comes from, the costliest first."""
    costliest = max(report.shares, key=lambda s: s.kld or 0.0, default=None)
    return Outline(
        f"{Path(report.quant.path).name} against {Path(report.reference.path).name}",
        headline=_headline(costliest),
        verdict=report.verdict,
        figures=tuple(_figures(report, costliest)),
        sections=(
            *_shares(report),
            *_restorations(report.restorations),
            *_layers(report.layers),
            *_unmeasured(report),
            *skipped_section(tuple(f"{s.what}: {s.reason}" for s in report.skipped)),
            _facts(report),
        ),
    )


def _headline(costliest: Share | None) -> str:
    if costliest is None or not costliest.share:
        return "Nothing costs anything"
    what = costliest.tensor or costliest.role or f"layer {layer_cell(costliest.layer)}"
    return f"{what} costs {percent(costliest.share)} of the loss"


def _figures(report: AttributionReport, costliest: Share | None) -> Iterator[Figure]:
    error = number(report.total_kld_se, 2)
    total = f"{number(report.total_kld)} ± {error} nats"
    yield Figure("KL divergence", total, f"mean of {report.n_tokens:,} positions")
    if costliest is not None:
        yield Figure("Costliest", percent(costliest.share), costliest.tensor or "")
    low, high = ADDITIVE
    yield Figure(
        "Sum of shares", percent(report.sum_of_shares), f"errors add up from {low} to {high}"
    )
    if report.unmeasured:
        yield Figure(
            "Not measured",
            counted(len(report.unmeasured), "tensor"),
            f"about {percent(report.unmeasured_share)} together",
        )


def _shares(report: AttributionReport) -> Iterator[Section]:
    if report.shares:
        said = f"The costliest of {counted(len(report.shares), 'share')}."
        rows = tuple(map(share_row, report.shares[:_MOST_SHARES]))
        yield Section("Shares", (said,), ("shares",), Table(rows, left=("Tensor", "Type")))


def _layers(layers: Sequence[Share]) -> Iterator[Section]:
    if layers:
        table = Table(tuple(map(share_row, layers)), left=("Tensor", "Type"))
        yield Section("Layers, all their tensors together", table=table, folded=True)


def _restorations(restorations: Sequence[Restoration]) -> Iterator[Section]:
    if restorations:
        said = "What is left of the loss if a norm's input is made the reference's."
        table = Table(tuple(map(restoration_row, restorations)), left=("Norm",))
        yield Section("Where it becomes harmful", (said,), ("restorations",), table)


def _unmeasured(report: AttributionReport) -> Iterator[Section]:
    if report.unmeasured:
        lines = tuple(f"{t.tensor}: {t.reason}" for t in report.unmeasured)
        title = f"Not measured by themselves: {counted(len(lines), 'tensor')}"
        yield Section(title, lines, folded=True)


def _facts(report: AttributionReport) -> Section:
    run = report.run
    rows = (
        ("Reference", model_line(report.reference)),
        ("Under test", model_line(report.quant)),
        ("Text", f"{run.text}, {run.n_text_tokens:,} tokens"),
        ("Run", f"{run.n_chunks} of {run.n_chunks_planned} chunks of {run.n_ctx} tokens"),
        ("Engine", f"{run.engine}, {run.n_threads} threads"),
    )
    table = Table(tuple({"": a, "Run": b} for a, b in rows), left=("", "Run"))
    return Section("The run", table=table, folded=True)
