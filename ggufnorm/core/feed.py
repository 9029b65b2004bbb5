"""What is said of the pipelines that feed a model, whatever they feed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ggufnorm.core.audit import SEVERITIES, Severity


@dataclass(frozen=True)
class FeedFinding:
    """Something to know about a pipeline.

    Attributes:
        severity: ``error`` for a mistake that the model suffers from, ``warning`` for inputs
            that differ or cannot be told.
        name: of what was found, for scripts.
        pipeline: its name, None if it is about a file.
        message: one sentence.
    """

    severity: Severity
    name: str
    pipeline: str | None
    message: str


class Feeder(Protocol):
    """A pipeline whose input was looked at."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def normalization(self) -> str:
        """What it did, in words."""

    @property
    def mistakes(self) -> tuple[str, ...]:
        """Names of what is not as expected."""

    @property
    def told(self) -> bool:
        """Whether its values could tell what it did."""


def gravest_first(findings: Iterable[FeedFinding]) -> tuple[FeedFinding, ...]:
    """Findings by their severity, otherwise in their order."""
    return tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))


def in_a_sentence(pipelines: Sequence[Feeder], findings: Sequence[FeedFinding], fed: str) -> str:
    """All of it in one sentence.

    Args:
        pipelines: at least one.
        findings: on them.
        fed: what they feed: ``pixels``.
    """
    errors = dict.fromkeys(_where(f) for f in findings if f.severity == "error")
    if errors:
        return f"Not as expected: {', '.join(errors)}"
    if not findings and len(pipelines) == 1:
        (only,) = pipelines
        return f"{only.name}: {only.normalization}"
    told = [p.name for p in pipelines if p.told and not p.mistakes]
    parts = [f"{_listed(told)}: normalized as expected"] if told else []
    if not findings:
        parts.append(f"all feed the same {fed}")
    return "; ".join([*parts, *dict.fromkeys(_where(f) for f in findings)])


def _where(finding: FeedFinding) -> str:
    return f"{finding.pipeline} ({finding.name})" if finding.pipeline else finding.name


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
