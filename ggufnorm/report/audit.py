"""Words that faces of an audit share; audits as SARIF and as a GitHub workflow's annotations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ggufnorm.analysis.audit.rules import BY_ID
from ggufnorm.core.audit import AuditReport, AuditSet, Finding, NotRun, Severity
from ggufnorm.core.plain import to_plain
from ggufnorm.report.text import counted, printable
from ggufnorm.version import __version__

_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}
"""A severity in SARIF's words."""
_COMMANDS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "notice"}
"""A severity in GitHub's words."""


def audit_title(report: AuditReport) -> str:
    """What the file is, in one line."""
    facts = [report.architecture or "unknown architecture"]
    facts += [report.name] if report.name else []
    facts.append(counted(report.summary.n_norms, "norm"))
    return printable(f"{Path(report.path).name}: {', '.join(facts)}")


def outcome(report: AuditReport) -> str:
    """How the audit went, in one line."""
    s = report.summary
    found = [counted(s.errors, "error"), counted(s.warnings, "warning"), counted(s.infos, "info")]
    accepted = [f"{s.ignored} accepted"] if s.ignored else []
    rules = f"{counted(len(s.rules_run), 'rule')} run, {len(report.not_run)} not run"
    return printable(f"{Path(report.path).name}: {', '.join(found + accepted)} ({rules})")


def not_run_lines(not_run: Iterable[NotRun]) -> Iterator[str]:
    """Why rules were not run, each reason once, with the rules."""
    reasons: dict[str, list[str]] = {}
    for n in not_run:
        reasons.setdefault(n.reason, []).append(n.rule)
    for reason, rules in reasons.items():
        yield f"{', '.join(_in_families(rules))}: {reason}"


def _in_families(rules: list[str]) -> Iterator[str]:
    """Ids, those of a family that was not run at all as ``S``."""
    for letter in dict.fromkeys(rule[:1] for rule in rules):
        these = [r for r in rules if r[:1] == letter]
        family = [r for r in BY_ID if r[:1] == letter]
        yield from ([f"{letter}*"] if these == family else these)


def rule_title(rule: str) -> str:
    """A rule's id and name; of a later release's rule, which a document may hold, its id."""
    return f"{rule} {BY_ID[rule].name}" if rule in BY_ID else printable(rule)


def first_sentence(text: str) -> str:
    """Of a rule's section, on one line, without the marks of literals."""
    line = " ".join(text.replace("``", "").split())
    head, stop, _ = line.partition(". ")
    return head + stop.strip()


def _models(result: AuditReport | AuditSet) -> tuple[AuditReport, ...]:
    return (result,) if isinstance(result, AuditReport) else result.models


# -- SARIF -------------------------------------------------------------------------------


def to_sarif(result: AuditReport | AuditSet) -> str:
    """A log of SARIF 2.1.0, for code scanning; one run, a result per finding."""
    models = _models(result)
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
    log = {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
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


# -- GitHub ------------------------------------------------------------------------------


def to_github(result: AuditReport | AuditSet) -> str:
    """Workflow commands, one line per finding, that GitHub shows as annotations."""
    lines = [_annotation(m, f) for m in _models(result) for f in m.findings]
    failed = result.failed if isinstance(result, AuditSet) else ()
    lines += [f"::error file={_property(s.what)}::{_data(s.reason)}" for s in failed]
    return "".join(f"{line}\n" for line in lines)


def _annotation(report: AuditReport, finding: Finding) -> str:
    title = rule_title(finding.rule)
    place = f"file={_property(report.path)},title={_property(title)}"
    return f"::{_COMMANDS[finding.severity]} {place}::{_data(finding.message)}"


def _data(text: str) -> str:
    """As actions/toolkit's escapeData (packages/core/src/command.ts), of what is printable."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """As actions/toolkit's escapeProperty."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
