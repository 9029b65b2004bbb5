"""What was mended in a file, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from ggufnorm.core.audit import AuditReport, Finding
from ggufnorm.core.result import Result


@dataclass(frozen=True)
class Left:
    """A finding that was not mended, and why."""

    finding: Finding
    reason: str


@dataclass(frozen=True)
class FixReport(Result):
    """One model, mended as far as the right values are known.

    Attributes:
        path: the file, which is as it was.
        output: the corrected copy, of a split model its first shard; None if there was nothing
            to mend, so that none was written.
        mended: the findings that were mended, each with its mend.
        left: those that were not, informations aside.
        audit: of the copy, by all rules; where there is none, of the file, by the rules selected.
    """

    path: str
    output: str | None
    mended: tuple[Finding, ...]
    left: tuple[Left, ...]
    audit: AuditReport
