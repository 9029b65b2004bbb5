"""The view of an attribution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ggufnorm.core.attribution import ADDITIVE, AttributionReport, Restoration, Share
from ggufnorm.core.severity import FEW_POSITIONS
from ggufnorm.report.formatting import (
    bar,
    counted,
    layer,
    layer_text,
    number,
    numeric,
    percent,
    share,
)
from ggufnorm.report.view import (
    Column,
    Columns,
    Figure,
    Report,
    Section,
    Sentence,
    Table,
    facts,
    table,
)
from ggufnorm.report.views.common import (
    command,
    engine_facts,
    model_facts,
    option_facts,
    sentences,
    skipped_section,
)

_MOST_SHARES = 20
_MOST_UNMEASURED = 5


def attribution_view(report: AttributionReport) -> tuple[Report, ...]:
    """Which tensors the loss comes from, the costliest first."""
    costliest = max(report.shares, key=lambda s: s.kld or 0.0, default=None)
    return (
        Report(
            f"{Path(report.quant.path).name} against {Path(report.reference.path).name}",
            subject=report.quant.path,
            headline=_headline(report, costliest),
            status="warning" if limits(report) else "neutral",
            figures=tuple(_figures(report, costliest)),
            verdict=(Sentence(report.verdict),),
            next_step=_next_step(report),
            facts=Section("How it was run", table=facts("run", _run_facts(report)), folded=True),
            sections=(
                Section(
                    "Layers, all their tensors together",
                    table=_share_table("layers", report.layers),
                    folded=True,
                ),
                Section(
                    "Shares of the KL divergence, the costliest first",
                    charts=("shares",),
                    table=_share_table("shares", report.shares, _MOST_SHARES),
                ),
                _unmeasured(report),
                Section(
                    "What is left if a norm's input is made the reference's"
                    " (what lies behind it costs)",
                    charts=("restorations",),
                    table=_restoration_table(report.restorations),
                ),
                skipped_section(report.skipped),
            ),
        ),
    )


def limits(report: AttributionReport) -> list[str]:
    """What the shares do not rest on, because it was not run or not measured."""
    run = report.run
    found = []
    if report.interrupted:
        found.append("the run was interrupted")
    if run.n_chunks < run.n_chunks_planned:
        found.append(f"only {run.n_chunks} of {run.n_chunks_planned} chunks were run")
    if report.n_tokens < FEW_POSITIONS:
        found.append(f"only {counted(report.n_tokens, 'scored position')}")
    return found


def _headline(report: AttributionReport, costliest: Share | None) -> str:
    unseen = "; ".join(limits(report))
    said = _answer(report, costliest)
    return f"{unseen[0].upper()}{unseen[1:]}. {said}" if unseen else said


def _answer(report: AttributionReport, costliest: Share | None) -> str:
    if report.total_kld is None:
        return "Nothing was measured: no position has finite logits"
    if costliest is None and report.unmeasured:
        return "No tensor's share was measured"
    if costliest is None:
        return "No tensor differs: there is nothing to attribute"
    if not costliest.share:
        return "Nothing costs anything"
    what = costliest.tensor or costliest.role or f"layer {layer_text(costliest.layer)}"
    return f"{what} costs {percent(costliest.share)} of the loss"


def _next_step(report: AttributionReport) -> str:
    if report.total_kld is None:
        return f"{command('drift', report.reference.path, report.quant.path)} finds the first NaN"
    if limits(report) or (report.unmeasured and not report.shares):
        return "give it more time (--budget), or more text (-f FILE)"
    if not report.shares:
        return ""
    spent = command("recipe", report.reference.path, report.quant.path, "--max-size", "+3%")
    return f"{spent} spends bytes where they gain most"


def _figures(report: AttributionReport, costliest: Share | None) -> Iterator[Figure]:
    total = f"{number(report.total_kld)} ± {number(report.total_kld_se, 2)} nats"
    yield Figure("KL divergence", total, f"mean of {counted(report.n_tokens, 'position')}")
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


def _run_facts(report: AttributionReport) -> Iterator[tuple[str, str]]:
    run = report.run
    taken = ""
    if report.cost is not None:
        speed = f"{report.cost.tokens_per_second:,.0f} tokens/s"
        taken = f" in {report.cost.seconds:.1f} s, {speed}"
    yield from model_facts("reference", report.reference)
    yield from model_facts("quant", report.quant)
    yield "text", f"{run.text}, {counted(run.n_text_tokens, 'token')}"
    yield (
        "run",
        f"{run.n_chunks} of {run.n_chunks_planned} chunks of {run.n_ctx} tokens{taken}"
        f" ({run.engine}, {counted(run.n_threads, 'thread')})",
    )
    yield from engine_facts(run.engine_ref, run.engine_quant)
    yield from option_facts(run.reference, run.quant)


def _share_table(name: str, shares: Sequence[Share], most: int | None = None) -> Table:
    top = max((s.share or 0.0 for s in shares), default=0.0)
    columns: Columns[Share] = (
        Column(
            "Tensor",
            lambda s: s.tensor or f"{len(s.tensors)} × {s.role or 'tensors'}",
            left=True,
            least=25,
        ),
        Column("Layer", lambda s: layer(s.layer), priority=2),
        Column("Type", lambda s: s.dtype or "mixed", left=True),
        Column("KL", lambda s: numeric(s.kld)),
        Column("±", lambda s: numeric(s.kld_se, 2), priority=4),
        Column("Share", lambda s: share(s.share)),
        Column("per MB", lambda s: numeric(s.kld_per_mb), priority=3),
        Column("Own", lambda s: numeric(s.local_rel_l2)),
        Column("Bar", lambda s: bar(s.share, top), left=True, priority=1),
    )
    return table(name, columns, shares, most=most)


def _unmeasured(report: AttributionReport) -> Section:
    about = ""
    if report.unmeasured_share is not None:
        about = f", about {percent(report.unmeasured_share)} together"
    return Section(
        f"Not measured by themselves: {counted(len(report.unmeasured), 'tensor')}{about}",
        sentences=sentences(*(f"{t.tensor}: {t.reason}" for t in report.unmeasured)),
        most=_MOST_UNMEASURED,
        folded=True,
    )


def _restoration_table(restorations: Sequence[Restoration]) -> Table:
    top = max(1.0, *(r.share or 0.0 for r in restorations), 0.0)
    columns: Columns[Restoration] = (
        Column("Layer", lambda r: layer(r.layer)),
        Column("Norm", lambda r: r.role, left=True),
        Column("KL", lambda r: numeric(r.kld)),
        Column("±", lambda r: numeric(r.kld_se, 2), priority=2),
        Column("Left", lambda r: share(r.share)),
        Column("Bar", lambda r: bar(r.share, top), left=True, priority=1),
    )
    return table("restorations", columns, restorations)
