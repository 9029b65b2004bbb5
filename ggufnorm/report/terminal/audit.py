"""An audit as text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ggufnorm.analysis.audit.rules import BY_ID
from ggufnorm.core.audit import AuditReport, AuditSet, Finding, NotRun, Severity
from ggufnorm.report.audit import audit_title, first_sentence, not_run_lines, outcome, rule_title
from ggufnorm.report.terminal.common import skipped_lines
from ggufnorm.report.text import printable

_STYLES: dict[Severity, str] = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}
_MOST_FINDINGS = 8
"""Findings of one rule that are listed before they are counted."""


def audit_parts(report: AuditReport, told: Collection[NotRun] = ()) -> Iterable[RenderableType]:
    """The parts of the text, from top to bottom; of what was not run, what is not yet told."""
    yield Text(audit_title(report), style="bold")
    for _, findings in groupby(report.findings, key=lambda f: (f.severity, f.rule)):
        yield ""
        yield from _rule_parts(list(findings))
    if report.ignored:
        yield Text(f"\nAccepted: {len(report.ignored)}", style="bold")
        for ignored in report.ignored:
            line = f"{ignored.finding.rule} {ignored.finding.message} ({ignored.reason})"
            yield Padding(Text(printable(line)), (0, 0, 0, 2))
    yield from _not_run_parts([n for n in report.not_run if n not in told])
    yield ""
    yield Text(outcome(report), style="bold")


def audit_set_parts(result: AuditSet) -> Iterable[RenderableType]:
    """Each model, what holds for all of them, then one line for each."""
    common = [
        n
        for n in (result.models[0].not_run if len(result.models) > 1 else ())
        if all(n in report.not_run for report in result.models)
    ]
    for report in result.models:
        yield from audit_parts(report, common)
        yield ""
    yield from _not_run_parts(common, "in any of the models")
    yield from skipped_lines(result.failed)
    yield Text("\nSummary", style="bold")
    for report in result.models:
        yield Text(outcome(report))


def _rule_parts(findings: Sequence[Finding]) -> Iterator[RenderableType]:
    """What one rule has to say."""
    first, rule = findings[0], BY_ID.get(findings[0].rule)
    name, _, words = rule_title(first.rule).partition(" ")
    yield Text.assemble((f"{first.severity} {name}", _STYLES[first.severity]), f" {words}")
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True, width=6)
    grid.add_column(overflow="fold")
    for i, finding in enumerate(findings[:_MOST_FINDINGS]):
        grid.add_row(Text("" if i else "  what"), Text(printable(finding.message)))
    if len(findings) > _MOST_FINDINGS:
        more = len(findings) - _MOST_FINDINGS
        grid.add_row("", Text(f"… and {more} more (see --format json)"))
    for label, section in (("  why", "Why it matters"), ("  do", "What to do")):
        if rule is not None:
            grid.add_row(Text(label), Text(first_sentence(rule.sections[section])))
    yield grid


def _not_run_parts(not_run: Collection[NotRun], where: str = "") -> Iterator[RenderableType]:
    if not_run:
        yield Text(f"\nNot run {where}".rstrip() + f": {len(not_run)}", style="bold")
    for line in not_run_lines(not_run):
        yield Padding(Text(printable(line)), (0, 0, 0, 2))
