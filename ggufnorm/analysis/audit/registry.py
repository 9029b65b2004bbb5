"""What a rule is. A family's module lists its rules in a tuple; nothing registers itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.audit import Finding, Severity
from ggufnorm.core.mend import Mend
from ggufnorm.core.model import NormSite

SECTIONS = ("What it does", "Why it matters", "What to do", "Example")
"""Headings that every rule's docstring has, in this order."""

_HEADING = re.compile(rf"^({'|'.join(SECTIONS)}):$", re.MULTILINE)


class NotApplicableError(Exception):
    """A rule cannot be checked, or not all of it; the message says why."""


@dataclass(frozen=True)
class Problem:
    """What a rule's function yields: a finding without the rule's own facts.

    Attributes:
        message: one sentence: what is wrong, with its figures.
        tensor: the tensor that it is about, None for the file as a whole.
        layer: block number, None outside the blocks.
        evidence: the figures, by name, as JSON values.
        severity: None for the rule's own.
        mend: what would make it right; None where that is not known.
    """

    message: str
    tensor: str | None = None
    layer: int | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    severity: Severity | None = None
    mend: Mend | None = None


Check = Callable[[Subject], Iterator[Problem]]


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        id: stable: a letter for the family and three digits.
        name: the same in words, ``like-this``.
        severity: of its findings, where one does not say otherwise.
        check: yields what is wrong; may raise :class:`NotApplicableError`, also after it has
            yielded something.
    """

    id: str
    name: str
    severity: Severity
    check: Check

    @property
    def summary(self) -> str:
        """One sentence: what is wrong where the rule speaks up."""
        return _docstring(self.check).partition("\n")[0]

    @property
    def sections(self) -> dict[str, str]:
        """The docstring's text by :data:`SECTIONS`."""
        _, *parts = _HEADING.split(_docstring(self.check))
        return {
            heading: inspect.cleandoc(text.strip("\n"))
            for heading, text in zip(parts[::2], parts[1::2], strict=True)
        }

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """What the rule has to say.

        Raises:
            NotApplicableError: it cannot be checked, or not all of it.
        """
        for p in self.check(subject):
            severity = p.severity or self.severity
            mend = None if severity == "info" else p.mend  # nothing is wrong
            yield Finding(self.id, severity, p.tensor, p.layer, p.message, p.evidence, mend)


def rule(rule_id: str, name: str, severity: Severity) -> Callable[[Check], Rule]:
    """Make a rule of a function; the module must still list it."""
    return lambda check: Rule(rule_id, name, severity, check)


def at(site: NormSite, message: str, **evidence: Any) -> Problem:
    """A problem of a norm, or of its weight."""
    return Problem(message, site.tensor, site.layer, evidence)


def _docstring(check: Check) -> str:
    return inspect.getdoc(check) or ""
