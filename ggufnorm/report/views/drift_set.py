"""The view of several drift reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ggufnorm.core.drift import DriftReport, DriftSet
from ggufnorm.report.formatting import bars, counted, megabytes, numeric
from ggufnorm.report.view import Cell, Column, Columns, Report, Section, Sentence, Status, table
from ggufnorm.report.views.drift import headline, largest_errors, limits, next_step, status
from ggufnorm.report.views.predictions import QUOTED_KLD


def drift_set_view(result: DriftSet) -> tuple[Report, ...]:
    """The models under test side by side, then what each report says."""
    reports = result.reports
    wrong = sum(r.culprit is not None for r in reports)
    found = {status(r) for r in reports}
    worst: Status = "error" if "error" in found else "warning" if "warning" in found else "ok"
    return (
        Report(
            f"{counted(len(reports), 'model')} under test, side by side",
            headline=f"{_unseen(reports)}{wrong or 'None'} of {len(reports)} out of line"
            f"{_best_and_worst(reports)}",
            status=worst,
            verdict=tuple(_verdict(result)),
            sections=(
                Section(
                    "",
                    charts=("depths",),
                    table=table("reports", _REPORTS, reports, status=_status),
                ),
            ),
        ),
        *map(_model, reports),
    )


def _best_and_worst(reports: Sequence[DriftReport]) -> str:
    """Which predict most and least like the reference, where all were asked the same."""
    found = {
        _name(r): r.logits.mean_kld for r in reports if r.logits and r.logits.mean_kld is not None
    }
    same = len(
        {(r.reference.fingerprint, r.run.text, r.run.n_ctx, r.run.n_chunks) for r in reports}
    )
    if len(found) < max(2, len(reports)) or same > 1:
        return ""
    best, worst = min(found, key=lambda n: found[n]), max(found, key=lambda n: found[n])
    return f"; best {best} (KL divergence {found[best]:.3g}), worst {worst} ({found[worst]:.3g})"


def _unseen(reports: Sequence[DriftReport]) -> str:
    n = sum(bool(limits(r)) for r in reports)
    return f"{n} of {len(reports)} were not compared in full. " if n else ""


def _model(report: DriftReport) -> Report:
    """What one of the reports says."""
    answer = status(report)
    return Report(
        _name(report),
        subject=report.quant.path,
        headline=headline(report),
        status=answer,
        verdict=(Sentence(report.verdict, answer),),
        next_step=next_step(report),
        sections=(largest_errors(report, charts=False),),
    )


def _status(report: DriftReport) -> Status:
    return "error" if report.culprit is not None else "neutral"


def _name(report: DriftReport) -> str:
    return Path(report.quant.path).name


def _verdict(result: DriftSet) -> Iterator[Sentence]:
    reports = result.reports
    yield Sentence(f"Usual mean KL divergences, {QUOTED_KLD}.")
    if len({r.reference.fingerprint for r in reports}) > 1:
        yield Sentence(
            "The references differ: figures of different references do not compare.", "warning"
        )
    if len({(r.run.text, r.run.n_ctx, r.run.n_chunks) for r in reports}) > 1:
        yield Sentence(
            "The runs differ in text, context or chunks: figures compare only roughly.", "warning"
        )


def _same_top(report: DriftReport) -> Cell:
    value = report.logits.same_top1 if report.logits else None
    return Cell("–" if value is None else f"{value:.2%}", value)


def _perplexity(report: DriftReport) -> Cell:
    value = report.logits.ppl_ratio if report.logits else None
    return Cell("–" if value is None else f"× {value:.4f}", value)


def _culprit(report: DriftReport) -> str:
    culprit = report.culprit
    return "none" if culprit is None else culprit.tensor or culprit.node


_REPORTS: Columns[DriftReport] = (
    Column("Model", _name, left=True, least=25),
    Column("Size", lambda r: Cell(f"{megabytes(r.quant.n_bytes)} MB", r.quant.n_bytes), priority=4),
    Column("KL divergence", lambda r: numeric(r.logits.mean_kld if r.logits else None)),
    Column("Same top", _same_top),
    Column("Perplexity", _perplexity, priority=1),
    Column(
        "Own",
        lambda r: numeric(max((o.local.rel_l2 or 0.0 for o in r.operations), default=None)),
        priority=3,
    ),
    Column(
        "Drift",
        lambda r: numeric(r.localisation.layers[-1].rel_l2 if r.localisation.layers else None),
    ),
    Column(
        "By layer",
        lambda r: bars([at.rel_l2 for at in r.localisation.layers], 16),
        left=True,
        priority=2,
    ),
    Column("Culprit", _culprit, left=True),
)
