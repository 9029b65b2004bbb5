"""Audits as a GitHub workflow's annotations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ggufnorm.core.audit import AuditReport, AuditSet, Finding, Severity
from ggufnorm.report.formatting import printable
from ggufnorm.report.views.audit import mend_words, rule_title

_COMMANDS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "notice"}
"""A severity in GitHub's words."""


def to_github(result: AuditReport | AuditSet) -> str:
    """Workflow commands that GitHub shows as annotations: a line for each rule and file.

    GitHub shows ten annotations of a step: what a rule finds in many tensors of a file is one, with
    the first finding in full, and so is what it finds in several files in the same words.
    """
    models = (result,) if isinstance(result, AuditReport) else result.models
    lines = [_annotation(*found) for found in _folded(models)]
    failed = result.failed if isinstance(result, AuditSet) else ()
    lines += [f"::error file={_property(s.what)}::{_data(s.reason)}" for s in failed]
    return "".join(f"{line}\n" for line in lines)


_MOST_NAMED = 5


def _folded(
    models: Sequence[AuditReport],
) -> Iterator[tuple[str, list[Finding], list[str]]]:
    """The first file, the findings of one rule in it, and the other files with the same."""
    found: dict[tuple[object, ...], tuple[str, list[Finding], list[str]]] = {}
    for model in models:
        by_rule: dict[tuple[str, Severity], list[Finding]] = {}
        for finding in model.findings:
            by_rule.setdefault((finding.rule, finding.severity), []).append(finding)
        for findings in by_rule.values():
            said = tuple((f.rule, f.severity, f.tensor, f.message) for f in findings)
            _, _, others = found.setdefault(said, (model.path, findings, []))
            if found[said][1] is not findings:
                others.append(model.path)
    yield from found.values()


def _annotation(path: str, findings: Sequence[Finding], others: Sequence[str]) -> str:
    first = findings[0]
    title = printable(rule_title(first.rule))
    place = f"file={_property(path)},title={_property(title)}"
    mend = f" ({mend_words(first.mend)})" if first.mend else ""
    names = list(dict.fromkeys(f.tensor for f in findings[1:] if f.tensor))
    more = f" And {len(findings) - 1} more{_list(names, ': ')}" if len(findings) > 1 else ""
    also = f" The same in {len(others)} other file{'s'[: len(others) > 1]}{_list(others, ': ')}"
    text = first.message + mend + more + (also if others else "")
    return f"::{_COMMANDS[first.severity]} {place}::{_data(text)}"


def _list(names: Sequence[str], before: str) -> str:
    """The first names of a list; how many there are was said."""
    if not names:
        return ""
    return before + ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")


def _data(text: str) -> str:
    """As actions/toolkit's escapeData (packages/core/src/command.ts)."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """As actions/toolkit's escapeProperty."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
