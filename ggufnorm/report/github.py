"""Audits as a GitHub workflow's annotations."""

from __future__ import annotations

from ggufnorm.core.audit import AuditReport, AuditSet, Finding, Severity
from ggufnorm.report.formatting import printable
from ggufnorm.report.views.audit import mend_words, rule_title

_COMMANDS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "notice"}
"""A severity in GitHub's words."""


def to_github(result: AuditReport | AuditSet) -> str:
    """Workflow commands, one line per finding, that GitHub shows as annotations."""
    models = (result,) if isinstance(result, AuditReport) else result.models
    lines = [_annotation(m, f) for m in models for f in m.findings]
    failed = result.failed if isinstance(result, AuditSet) else ()
    lines += [f"::error file={_property(s.what)}::{_data(s.reason)}" for s in failed]
    return "".join(f"{line}\n" for line in lines)


def _annotation(report: AuditReport, finding: Finding) -> str:
    title = printable(rule_title(finding.rule))
    place = f"file={_property(report.path)},title={_property(title)}"
    mend = f" ({mend_words(finding.mend)})" if finding.mend else ""
    return f"::{_COMMANDS[finding.severity]} {place}::{_data(finding.message + mend)}"


def _data(text: str) -> str:
    """As actions/toolkit's escapeData (packages/core/src/command.ts)."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """As actions/toolkit's escapeProperty."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
