"""The view of an audit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from ggufnorm.analysis.audit.rules import BY_ID
from ggufnorm.core.audit import AuditReport, AuditSet, Finding, Ignored, NotRun
from ggufnorm.core.mend import Mend
from ggufnorm.report.formatting import counted
from ggufnorm.report.view import (
    Cell,
    Column,
    Columns,
    Report,
    Section,
    Sentence,
    Status,
    Topic,
    table,
)
from ggufnorm.report.views.audit_fleet import glance
from ggufnorm.report.views.common import (
    command,
    ran_section,
    sentences,
    severity_status,
    skipped_section,
)

_MOST_MODELS = 50
"""Models that are told of one by one; of more, those without a finding are counted."""

_MOST_FINDINGS = 8
"""Findings of one rule that are listed before they are counted."""


def audit_view(report: AuditReport) -> tuple[Report, ...]:
    """Every finding and what to do about it."""
    return (_report(report),)


def audit_set_view(result: AuditSet) -> tuple[Report, ...]:
    """A line for each model and what holds for all of them, then each model.

    Of many models those with findings alone are told of one by one.
    """
    return _set_view(result, _MOST_MODELS)


def audit_set_tables(result: AuditSet) -> tuple[Report, ...]:
    """The same, of all models."""
    return _set_view(result, len(result.models))


def _set_view(result: AuditSet, most: int) -> tuple[Report, ...]:
    models = result.models
    common = [
        n
        for n in (models[0].not_run if len(models) > 1 else ())
        if all(n in report.not_run for report in models)
    ]
    found = {_status(model) for model in models}
    told = models if len(models) <= most else tuple(m for m in models if _is_bad(m))
    untold = len(models) - len(told)
    worst: Status = next((s for s in _STATUSES if s in found), "ok")
    summary = Report(
        "Summary",
        headline=_headline_of_all(result),
        status="error" if result.failed else worst,
        verdict=(
            *(Sentence(_outcome(m), _status(m)) for m in told[:most]),
            *sentences(*_left_out(len(told) - most, untold)),
        ),
        sections=(
            *glance(models),
            _not_run(common, "in any of the models"),
            skipped_section(result.failed),
            Section(
                f"Passed over: {len(result.passed_over)}",
                sentences=sentences(*(s.reason for s in result.passed_over)),
            ),
        ),
    )
    return (summary, *(_report(model, common) for model in told[:most]))


def _is_bad(report: AuditReport) -> bool:
    return _status(report) != "ok"


def _left_out(more: int, untold: int) -> Iterator[str]:
    """Models of a large set that are only counted."""
    if more > 0:
        yield f"{counted(more, 'more model')} with findings: CSV, JSON Lines and Parquet have all"
    if untold:
        yield f"{counted(untold, 'model')} without an error or a warning"


def _headline_of_all(result: AuditSet) -> str:
    """What was not read first, then what was found in the rest."""
    n, lost = len(result.models), len(result.failed)
    errors, warnings = (
        sum(getattr(m.summary, kind) for m in result.models) for kind in ("errors", "warnings")
    )
    said = f"{counted(errors, 'error')} and {counted(warnings, 'warning')} in {counted(n, 'model')}"
    found = [(m.summary.errors, m.summary.warnings) for m in result.models]
    if n > 1 and max(found) > min(found):
        said += f", most in {Path(result.models[found.index(max(found))].path).name}"
    return f"{lost} of {n + lost} models were not read; {said}" if lost else said


_STATUSES: tuple[Status, ...] = ("error", "warning", "neutral", "ok")


def _report(report: AuditReport, told: Collection[NotRun] = ()) -> Report:
    """One model; ``told`` are the rules whose reason for not being run is told elsewhere."""
    return Report(
        _title(report),
        subject=report.path,
        headline=_headline(report),
        status=_status(report),
        verdict=(Sentence(_outcome(report), _status(report)),),
        next_step=_next_step(report),
        facts=ran_section(report.engine),
        sections=(
            Section(
                "Findings",
                table=table(
                    "findings",
                    _columns(report.findings),
                    report.findings,
                    most=_MOST_FINDINGS,
                    layout="records",
                ),
                topics=tuple(topics(report.findings)),
            ),
            Section(
                f"Accepted: {len(report.ignored)}",
                table=table("accepted", _ACCEPTED, report.ignored, layout="records"),
                folded=True,
            ),
            _not_run([n for n in report.not_run if n not in told]),
        ),
    )


def _title(report: AuditReport) -> str:
    facts = [report.architecture or "unknown architecture"]
    facts += [report.name] if report.name else []
    facts.append(counted(report.summary.n_norms, "norm"))
    return f"{Path(report.path).name}: {', '.join(facts)}"


def _headline(report: AuditReport) -> str:
    s = report.summary
    if not s.rules_run:
        return "Nothing was looked at: no rule was run"
    if not (s.errors or s.warnings):
        unseen = f"; {len(report.not_run)} were not run" if report.not_run else ""
        said = f"Nothing is wrong in what {counted(len(s.rules_run), 'rule')} looked at{unseen}"
        left = _not_compared(report)
        return f"{said}; {left}" if left else said
    return f"{counted(s.errors, 'error')}, {counted(s.warnings, 'warning')}"


def _status(report: AuditReport) -> Status:
    s = report.summary
    if s.errors or s.warnings or not s.rules_run:
        return "error" if s.errors else "warning"
    return "neutral" if "T" in _unseen_families(report) or _not_compared(report) else "ok"


def _unseen_families(report: AuditReport) -> set[str]:
    """Families of rules of which none was run."""
    return {n.rule[:1] for n in report.not_run} - {r[:1] for r in report.summary.rules_run}


def _next_step(report: AuditReport) -> str:
    """What would mend a finding, or look further."""
    found = [f for f in report.findings if f.severity in ("error", "warning")]
    if any(f.mend for f in found):
        more = " with the same --source" if any(r[:1] in "STK" for r in _rules(found)) else ""
        mended = command("fix", report.path, "-o", "mended.gguf")
        return f"{mended}{more} shows what it would change"
    if found:
        return "convert again, or accept the finding (.ggufnorm-ignore.toml)"
    if _unseen_families(report) >= {"T", "C"}:
        return "--source FOLDER compares every tensor with the checkpoint, --run looks at a run"
    return ""


def _rules(findings: Iterable[Finding]) -> list[str]:
    return [f.rule for f in findings]


def _outcome(report: AuditReport) -> str:
    """How the audit went, in one line."""
    s = report.summary
    found = [counted(s.errors, "error"), counted(s.warnings, "warning"), counted(s.infos, "info")]
    accepted = [f"{s.ignored} accepted"] if s.ignored else []
    rules = f"{counted(len(s.rules_run), 'rule')} run, {len(report.not_run)} not run"
    unseen = _not_compared(report)
    more = f"; {unseen}" if unseen else ""
    return f"{Path(report.path).name}: {', '.join(found + accepted)} ({rules}){more}"


def _not_compared(report: AuditReport) -> str | None:
    """What of the file was not compared with its source, and why; None if all of it was."""
    evidence = next((f.evidence for f in report.findings if f.rule == "T104"), None)
    if evidence is None:
        return None
    n, total = evidence.get("n_not_compared", 0), evidence.get("n_tensors", 0)
    rest = evidence.get("not_compared")
    if not n or not rest:  # also of a report that was saved before these were kept
        return None
    return f"{n} of {counted(total, 'tensor')} not compared: {rest[0][1]}"


# -- findings ----------------------------------------------------------------------------


def rule_title(rule: str) -> str:
    """A rule's id and name; of a later release's rule, which a document may hold, its id."""
    return f"{rule} {BY_ID[rule].name}" if rule in BY_ID else rule


def mend_words(mend: Mend) -> str:
    """What would make a finding right, and llama.cpp's option where one suffices."""
    option = f", or run with {mend.override_kv}" if mend.override_kv else ""
    return f"mend: {mend.action}{option}"


_FINDINGS: Columns[Finding] = (
    Column("Severity", lambda f: Cell(f.severity, status=severity_status(f.severity)), left=True),
    Column(
        "Rule",
        lambda f: Cell(rule_title(f.rule), anchor=f.rule if f.rule in BY_ID else ""),
        left=True,
    ),
    Column("Tensor", lambda f: f.tensor or "", left=True, priority=1),
    Column("Layer", lambda f: "" if f.layer is None else Cell(str(f.layer), f.layer), priority=2),
    Column("Finding", lambda f: f.message, left=True, prose=True),
)

_MENDS: Columns[Finding] = (
    Column("Mend", lambda f: f.mend.action if f.mend else "", left=True, priority=3),
    Column(
        "llama.cpp option",
        lambda f: (f.mend and f.mend.override_kv) or "",
        left=True,
        priority=4,
    ),
)
"""Shown where something can be mended."""


def _columns(findings: Iterable[Finding]) -> Columns[Finding]:
    return (*_FINDINGS, *_MENDS) if any(f.mend for f in findings) else _FINDINGS


def _of_finding(column: Column[Finding]) -> Column[Ignored]:
    return Column(
        column.title,
        lambda ignored: column.cell(ignored.finding),
        left=column.left,
        priority=column.priority,
        prose=column.prose,
    )


_ACCEPTED: Columns[Ignored] = (
    *map(_of_finding, _FINDINGS),
    Column("Accepted because", lambda i: i.reason, left=True),
)


def topics(findings: Sequence[Finding]) -> Iterator[Topic]:
    """Why the rules that found something matter, and what to do."""
    for rule in dict.fromkeys(f.rule for f in findings if f.rule in BY_ID):
        sections = BY_ID[rule].sections
        said = (
            Sentence(_plain(sections[heading]), label=label)
            for label, heading in (("why", "Why it matters"), ("do", "What to do"))
        )
        yield Topic(rule_title(rule), tuple(said), rule)


def _plain(text: str) -> str:
    """A rule's section on one line, without the marks of literals."""
    return " ".join(text.replace("``", "").split())


# -- rules that were not run -------------------------------------------------------------


def _not_run(not_run: Sequence[NotRun], where: str = "") -> Section:
    title = f"Not run {where}".rstrip() + f": {len(not_run)}"
    return Section(title, sentences=sentences(*_reasons(not_run)), folded=True)


def _reasons(not_run: Iterable[NotRun]) -> Iterator[str]:
    """Why rules were not run, each reason once, with the rules."""
    reasons: dict[str, list[str]] = {}
    for n in not_run:
        reasons.setdefault(n.reason, []).append(n.rule)
    for reason, rules in reasons.items():
        yield f"{', '.join(_in_families(rules))}: {reason}"


def _in_families(rules: list[str]) -> Iterator[str]:
    """Ids, those of a family that was not run at all as ``S*``."""
    for letter in dict.fromkeys(rule[:1] for rule in rules):
        these = [r for r in rules if r[:1] == letter]
        family = [r for r in BY_ID if r[:1] == letter]
        yield from ([f"{letter}*"] if these == family else these)
