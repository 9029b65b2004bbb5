"""The view of a table of suspects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ggufnorm.core.check import FIXABLE, CheckReport, State, Suspect
from ggufnorm.report.view import (
    Cell,
    Column,
    Columns,
    Report,
    Section,
    Sentence,
    Status,
    facts,
    table,
)

_STATUS: dict[State, Status] = {
    "guilty": "error",
    "probable": "warning",
    "cleared": "ok",
    "partly": "neutral",
    "not examined": "neutral",
}

_WORDS: dict[State, str] = {
    "guilty": "guilty",
    "probable": "probably guilty",
    "cleared": "cleared",
    "partly": "examined in part",
    "not examined": "not examined",
}


def check_view(report: CheckReport) -> tuple[Report, ...]:
    """Who is guilty and what to do, then all suspects."""
    status = _status(report)
    return (
        Report(
            _title(report),
            subject=report.path,
            headline=_headline(report),
            status=status,
            verdict=(Sentence(_verdict(report), status),),
            next_step=_next(report),
            facts=Section("What was examined", table=facts("given", _given(report)), folded=True),
            sections=(
                Section("Suspects", table=table("suspects", _SUSPECTS, report.suspects,
                                                status=lambda s: _STATUS[s.state])),
                Section(
                    "More evidence",
                    sentences=tuple(
                        Sentence(text, label=s.name) for s in report.suspects for text in s.evidence
                    ),
                    most=10,
                ),
            ),
        ),
    )  # fmt: skip


def _title(report: CheckReport) -> str:
    what = [report.architecture or "unreadable", *([report.types] if report.types else [])]
    return f"{Path(report.path).name}: {', '.join(what)}"


def _status(report: CheckReport) -> Status:
    if report.guilty:
        return _STATUS[report.guilty[0].state]
    return "ok" if all(s.state == "cleared" for s in report.suspects) else "neutral"


def _headline(report: CheckReport) -> str:
    if not report.guilty:
        n = sum(s.state == "cleared" for s in report.suspects)
        return f"{_NOBODY}; {n} of {len(report.suspects)} suspects are cleared"
    first = report.guilty[0]
    return f"{_WORDS[first.state].capitalize()}: {first.name}"


def _verdict(report: CheckReport) -> str:
    """The answer without the words that the headline has."""
    said = report.answer
    for words in (f"{_headline(report)}: ", f"{_NOBODY}. "):
        said = said.removeprefix(words)
    return said[:1].upper() + said[1:] if not report.guilty else said


def _next(report: CheckReport) -> str:
    """What to do, with the command line in the place of its pattern."""
    command = report.next_command
    if command.startswith("ggufnorm fix "):
        return report.next_step.replace(f"({FIXABLE})", f"({command})", 1)
    pattern, _, _ = report.next_step.rpartition("ggufnorm check ")
    if pattern and command.startswith("ggufnorm check "):
        return pattern + command
    return report.next_step


_NOBODY = "Nobody is found guilty"


def _given(report: CheckReport) -> Iterator[tuple[str, str]]:
    for given in report.given:
        yield given.role, given.location
    for step in report.steps:
        yield (
            ("left out", f"{step.name}: {step.skipped}") if step.skipped else ("run", step.command)
        )


_SUSPECTS: Columns[Suspect] = (
    Column("Suspect", lambda s: s.name, left=True),
    Column("State", lambda s: Cell(_WORDS[s.state], status=_STATUS[s.state]), left=True),
    Column("Why", lambda s: s.sentence, left=True, prose=True),
    Column("What to do", lambda s: s.do, left=True, priority=1, prose=True),
    Column("Command", lambda s: s.command, left=True, priority=2),
)
