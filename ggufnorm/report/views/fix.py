"""The view of a file that was mended."""

from __future__ import annotations

from pathlib import Path

from ggufnorm.core.audit import Finding
from ggufnorm.core.fix import FixReport, Left
from ggufnorm.report.formatting import counted
from ggufnorm.report.view import Cell, Column, Columns, Report, Section, Sentence, Status, table
from ggufnorm.report.views.audit import audit_view, rule_title, topics
from ggufnorm.report.views.common import severity_status


def fix_view(result: FixReport) -> tuple[Report, ...]:
    """What was changed and what could not be, then the audit of what there is now."""
    status: Status = "ok"
    if result.left:
        worst = {left.finding.severity for left in result.left}
        status = "error" if "error" in worst else "warning"
    report = Report(
        f"{Path(result.path).name}: {counted(len(result.mended), 'change')}",
        subject=result.path,
        headline=_headline(result),
        status=status,
        verdict=(Sentence(_written(result), status),),
        sections=(
            Section(
                f"Changed: {len(result.mended)}",
                table=table("mended", _MENDED, result.mended),
            ),
            Section(
                f"Not mended: {len(result.left)}",
                table=table("left", _LEFT, result.left),
                topics=tuple(topics([left.finding for left in result.left])),
            ),
        ),
    )
    return (report, *audit_view(result.audit))


def _headline(result: FixReport) -> str:
    if not result.mended and not result.left:
        return "There was nothing to mend"
    left = f", {counted(len(result.left), 'finding')} not mended" if result.left else ""
    return f"{counted(len(result.mended), 'change')}{left}"


def _written(result: FixReport) -> str:
    return "No file was written" if result.output is None else f"{result.output} was written"


_MENDED: Columns[Finding] = (
    Column("Rule", lambda f: rule_title(f.rule), left=True),
    Column("Change", lambda f: f.mend.action if f.mend else "", left=True, prose=True),
    Column("Found", lambda f: f.message, left=True, priority=1, prose=True),
)

_LEFT: Columns[Left] = (
    Column(
        "Severity",
        lambda left: Cell(left.finding.severity, status=severity_status(left.finding.severity)),
        left=True,
    ),
    Column("Rule", lambda left: rule_title(left.finding.rule), left=True),
    Column("Finding", lambda left: left.finding.message, left=True, prose=True),
    Column("Not mended because", lambda left: left.reason, left=True),
)
