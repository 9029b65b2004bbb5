"""An attribution as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ggufnorm.core.attribution import AttributionReport, Restoration, Share, Unmeasured
from ggufnorm.report.terminal.common import (
    cells,
    fitted_table,
    model_line,
    new_table,
    skipped_lines,
)
from ggufnorm.report.text import number, percent, printable, restoration_row, share_row

_MOST_SHARES = 20
_MOST_UNMEASURED = 5
_BAR = 12
_BAR_TITLE = ""


def attribution_parts(report: AttributionReport, width: int) -> Iterable[RenderableType]:
    """The parts of the text, from top to bottom."""
    yield _facts(report)
    if report.layers:
        yield Text("\nLayers, all their tensors together", style="bold")
        yield _share_table(report.layers, width)
    if report.shares:
        yield Text("\nShares of the KL divergence, the costliest first", style="bold")
        yield _share_table(report.shares[:_MOST_SHARES], width)
        if len(report.shares) > _MOST_SHARES:
            yield Text(f"… and {len(report.shares) - _MOST_SHARES} more (see --format json)")
    yield from _unmeasured(report.unmeasured, report.unmeasured_share)
    yield from _restorations(report.restorations)
    yield from skipped_lines(report.skipped)
    yield ""
    yield Text(printable(report.verdict), style="bold")


def _facts(report: AttributionReport) -> Table:
    run = report.run
    grid = Table.grid(padding=(0, 2, 0, 0))
    taken = ""
    if report.cost is not None:
        cost = report.cost
        taken = f" in {cost.seconds:.1f} s, {cost.tokens_per_second:,.0f} tokens/s"
    total = f"mean {number(report.total_kld)} ± {number(report.total_kld_se)} nats"
    for row in (
        ("reference", model_line(report.reference)),
        ("quant", model_line(report.quant)),
        ("text", f"{printable(run.text)}, {run.n_text_tokens:,} tokens"),
        (
            "run",
            f"{run.n_chunks} of {run.n_chunks_planned} chunks of {run.n_ctx} tokens{taken}"
            f" ({run.engine}, {run.n_threads} threads)",
        ),
        ("KL divergence", f"{total} at {report.n_tokens:,} positions"),
    ):
        grid.add_row(*cells(row))
    return grid


def _share_table(shares: Sequence[Share], width: int) -> Table:
    most = max((s.share or 0.0 for s in shares), default=0.0)
    rows = []
    for s in shares:
        row = share_row(s)
        named = {"Tensor": row.pop("Tensor"), "Layer": row.pop("Layer")}
        rows.append({**named, **row, _BAR_TITLE: _bar(s.share, most)})
    left = ("Tensor", "Type", _BAR_TITLE)
    return fitted_table(rows, width, left=left, dropped_first=("±", "per MB", "Layer", _BAR_TITLE))


def _bar(share: float | None, most: float) -> str:
    return "█" * round(_BAR * share / most) if share and most > 0 else ""


def _unmeasured(tensors: Sequence[Unmeasured], share: float | None) -> Iterable[Text]:
    if not tensors:
        return
    about = "" if share is None else f", about {percent(share)} together"
    yield Text(f"\nNot measured by themselves: {len(tensors)} tensors{about}", style="bold")
    for t in tensors[:_MOST_UNMEASURED]:
        yield Text(f"  {printable(t.tensor)}: {printable(t.reason)}")
    if len(tensors) > _MOST_UNMEASURED:
        yield Text(f"  … and {len(tensors) - _MOST_UNMEASURED} more (see --format json)")


def _restorations(restorations: Sequence[Restoration]) -> Iterable[RenderableType]:
    if not restorations:
        return
    yield Text(
        "\nWhat is left if a norm's input is made the reference's (what lies behind it costs)",
        style="bold",
    )
    table = new_table("Layer", "Norm", "KL", "±", "Left", "", left=("Norm", ""))
    most = max(1.0, *(r.share or 0.0 for r in restorations))
    for r in restorations:
        table.add_row(*cells([*restoration_row(r).values(), _bar(r.share, most)]))
    yield table
