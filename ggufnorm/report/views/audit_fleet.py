"""Many audits at a glance: by architecture, by publisher, by rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ggufnorm.analysis.audit.rules import BY_ID
from ggufnorm.core.audit import SEVERITIES, AuditReport, Severity
from ggufnorm.report.view import Cell, Column, Columns, Section, Status, table
from ggufnorm.report.views.common import severity_status

FEW = 8
"""Models that are all told of one by one, without tables of what they share."""

_RULES = 12
_GROUPS = 20
"""Rows that a format of little room shows."""


@dataclass(frozen=True)
class _Group:
    name: str
    models: tuple[AuditReport, ...]

    def count(self, severity: Severity) -> int:
        """Models with a finding of that severity."""
        return sum(any(f.severity == severity for f in m.findings) for m in self.models)

    @property
    def n_norms(self) -> int:
        return sum(m.summary.n_norms for m in self.models)


@dataclass(frozen=True)
class _Rule:
    id: str
    severity: Severity
    models: tuple[AuditReport, ...]


def glance(models: tuple[AuditReport, ...]) -> tuple[Section, ...]:
    """What many models share; nothing of a few."""
    if len(models) <= FEW:
        return ()
    publishers = _grouped(models, lambda m: (m.provenance and m.provenance.quantized_by) or "")
    return (
        Section("Rules", table=table("rules", _RULE_COLUMNS, _rules(models), most=_RULES,
                                     status=lambda r: severity_status(r.severity))),
        _groups("Architectures", "architectures", _grouped(models, lambda m: m.architecture)),
        *((_groups("Publishers", "publishers", publishers),) if len(publishers) > 1 else ()),
    )  # fmt: skip


def _groups(title: str, name: str, groups: list[_Group]) -> Section:
    return Section(title, table=table(name, _GROUP_COLUMNS, groups, most=_GROUPS, status=_status))


def _grouped(models: Iterable[AuditReport], key: Callable[[AuditReport], str]) -> list[_Group]:
    found: dict[str, list[AuditReport]] = {}
    for model in models:
        found.setdefault(key(model) or "not said", []).append(model)
    groups = [_Group(name, tuple(members)) for name, members in found.items()]
    return sorted(groups, key=lambda g: (-g.count("error"), -g.count("warning"), g.name))


def _rules(models: Iterable[AuditReport]) -> list[_Rule]:
    found: dict[tuple[str, Severity], dict[str, AuditReport]] = {}
    for model in models:
        for f in model.findings:
            found.setdefault((f.rule, f.severity), {})[model.path] = model
    rules = [_Rule(rule, severity, tuple(m.values())) for (rule, severity), m in found.items()]
    return sorted(rules, key=lambda r: (SEVERITIES.index(r.severity), -len(r.models), r.id))


def _status(group: _Group) -> Status:
    return "error" if group.count("error") else "warning" if group.count("warning") else "ok"


def _number(n: int) -> Cell:
    return Cell(f"{n:,}", n)


_GROUP_COLUMNS: Columns[_Group] = (
    Column("Name", lambda g: g.name, left=True),
    Column("Models", lambda g: _number(len(g.models))),
    Column("with errors", lambda g: _number(g.count("error"))),
    Column("with warnings", lambda g: _number(g.count("warning"))),
    Column("Norms", lambda g: _number(g.n_norms), priority=1),
)

_RULE_COLUMNS: Columns[_Rule] = (
    Column("Severity", lambda r: Cell(r.severity, status=severity_status(r.severity)), left=True),
    Column("Rule", lambda r: f"{r.id} {BY_ID[r.id].name}" if r.id in BY_ID else r.id, left=True),
    Column("Models", lambda r: _number(len(r.models))),
    Column("First of them", lambda r: r.models[0].path, left=True, priority=1, least=24),
)
