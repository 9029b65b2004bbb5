"""The outline of an audit."""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.analysis.audit.rules import BY_ID
from ggufnorm.core.audit import AuditReport, AuditSet, Finding
from ggufnorm.report.audit import audit_title, not_run_lines, outcome, rule_title
from ggufnorm.report.outline.parts import (
    Cell,
    Figure,
    Outline,
    Reference,
    Section,
    Table,
    unread_outline,
)
from ggufnorm.report.text import counted


def audit_outline(report: AuditReport) -> Outline:
    """How grave it is, then every finding and what to do about it."""
    s = report.summary
    return Outline(
        audit_title(report),
        headline=_headline(report),
        verdict=outcome(report),
        mood="wrong" if s.errors else "neutral" if s.warnings else "sound",
        figures=(
            Figure("Errors", str(s.errors), "the model computes something else, or does not run"),
            Figure("Warnings", str(s.warnings), "it probably does"),
            Figure("Notes", str(s.infos), "nothing is wrong"),
        ),
        sections=(
            *_findings(report.findings),
            *_rules(report.findings),
            *_accepted(report),
            *_not_run(report),
        ),
    )


def audit_set_outlines(result: AuditSet) -> tuple[Outline, ...]:
    """Each model, then those that could not be read."""
    return (*map(audit_outline, result.models), *unread_outline(result.failed))


def _headline(report: AuditReport) -> str:
    s = report.summary
    if not (s.errors or s.warnings):
        return "Nothing is wrong"
    return f"{counted(s.errors, 'error')}, {counted(s.warnings, 'warning')}"


def _findings(findings: tuple[Finding, ...]) -> Iterator[Section]:
    rows = tuple(map(_row, findings))
    if rows:
        left = ("Severity", "Rule", "Tensor", "Finding")
        yield Section("Findings", table=Table(rows, left))


def _row(f: Finding) -> dict[str, Cell]:
    title = rule_title(f.rule)
    return {
        "Severity": f.severity,
        "Rule": Reference(title, f.rule) if f.rule in BY_ID else title,
        "Tensor": f.tensor or "",
        "Layer": "" if f.layer is None else str(f.layer),
        "Finding": f.message,
    }


def _rules(findings: tuple[Finding, ...]) -> Iterator[Section]:
    """The pages of the rules that found something."""
    for rule in dict.fromkeys(f.rule for f in findings if f.rule in BY_ID):
        pages = BY_ID[rule].sections.items()
        lines = (
            f"{heading}: {' '.join(text.replace('``', '').split())}" for heading, text in pages
        )
        yield Section(rule_title(rule), tuple(lines), folded=True, anchor=rule)


def _accepted(report: AuditReport) -> Iterator[Section]:
    rows = tuple(_row(i.finding) | {"Accepted because": i.reason} for i in report.ignored)
    if rows:
        left = ("Severity", "Rule", "Tensor", "Finding", "Accepted because")
        yield Section(f"Accepted: {len(rows)}", table=Table(rows, left), folded=True)


def _not_run(report: AuditReport) -> Iterator[Section]:
    lines = tuple(not_run_lines(report.not_run))
    if lines:
        yield Section(f"Rules not run: {len(report.not_run)}", lines, folded=True)
