"""Audits as SARIF, for code scanning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ggufnorm.analysis.audit.rules import BY_ID
from ggufnorm.core.audit import AuditReport, AuditSet, Finding, Severity
from ggufnorm.core.plain import to_plain
from ggufnorm.report.formatting import printable
from ggufnorm.report.views.audit import mend_words
from ggufnorm.version import __version__

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}
"""A severity in SARIF's words."""


def to_sarif(result: AuditReport | AuditSet) -> str:
    """A log of SARIF 2.1.0, for code scanning; one run, a result per finding."""
    models = (result,) if isinstance(result, AuditReport) else result.models
    used = [r for r in BY_ID.values() if any(f.rule == r.id for m in models for f in _all(m))]
    driver = {
        "name": "ggufnorm",
        "version": __version__,
        "rules": [
            {
                "id": r.id,
                "name": r.name,
                "shortDescription": {"text": r.summary},
                "help": {"text": " ".join(r.sections["What to do"].split())},
                "defaultConfiguration": {"level": _LEVELS[r.severity]},
            }
            for r in used
        ],
    }
    numbers = {r.id: i for i, r in enumerate(used)}
    failed = result.failed if isinstance(result, AuditSet) else ()
    invocation = {
        "executionSuccessful": not failed,
        "toolExecutionNotifications": [
            {"level": "error", "message": {"text": printable(f"{s.what}: {s.reason}")}}
            for s in failed
        ],
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "results": [_sarif(m, f, numbers) for m in models for f in _all(m)],
    }
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _all(report: AuditReport) -> Iterator[Finding]:
    yield from report.findings
    yield from (i.finding for i in report.ignored)


def _sarif(report: AuditReport, finding: Finding, numbers: dict[str, int]) -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": _uri(report.path)}}
    }
    if finding.tensor is not None:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.tensor, "kind": "member"}]
    found: dict[str, Any] = {
        "ruleId": finding.rule,
        **({"ruleIndex": numbers[finding.rule]} if finding.rule in numbers else {}),
        "level": _LEVELS[finding.severity],
        "message": {"text": printable(finding.message)},
        "locations": [location],
        "properties": {"layer": finding.layer, "evidence": to_plain(finding.evidence)},
    }
    if finding.mend is not None:
        found["properties"]["mend"] = to_plain(finding.mend)
        found["message"]["text"] += f" ({printable(mend_words(finding.mend))})"
    reasons = [i.reason for i in report.ignored if i.finding is finding]
    if reasons:
        found["suppressions"] = [{"kind": "external", "justification": reasons[0]}]
    return found


def _uri(path: str) -> str:
    if "://" in path:
        return quote(path, safe="/:@%?=&+,;~")
    if path.startswith("/"):
        return Path(path).as_uri()
    return quote(path, safe="/")
