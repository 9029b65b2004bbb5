"""One model of many: what crosses to whoever audits it, and what comes back."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from ggufnorm.analysis.audit.ignores import Ignore
from ggufnorm.analysis.audit.run import AuditOptions, Location, audit_opened, choose_rules
from ggufnorm.analysis.audit.source.tensors import Progress
from ggufnorm.core.audit import AuditReport, Severity
from ggufnorm.core.plain import from_plain, to_plain
from ggufnorm.errors import GGUFError, GgufnormError, InputError
from ggufnorm.formats.location import identity_of
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.options import RunSettings

_MOST = 200
"""Characters of an unexpected error: it may quote the file."""


@dataclass(frozen=True)
class Options:
    """:class:`~ggufnorm.analysis.audit.run.AuditOptions` in plain types.

    Attributes:
        source: see there; so are the others.
    """

    source: str | None
    run: bool
    full: bool
    select: tuple[str, ...]
    ignore: tuple[str, ...]
    accepted: tuple[Ignore, ...]
    severities: dict[str, Severity]
    manifest: str | None
    how: RunSettings | None

    def of_audit(self) -> AuditOptions:
        """The options themselves."""
        return AuditOptions(
            self.source,
            self.run,
            self.full,
            self.select,
            self.ignore,
            self.accepted,
            self.severities,
            self.manifest,
            self.how,
        )


@dataclass(frozen=True)
class Outcome:
    """What became of one model.

    Attributes:
        report: what the rules found; None where the model could not be read.
        failed: why not.
        is_lasting: whether the same file would give the same outcome.
        identity: of the content that was looked at; None where it has none
            (:func:`ggufnorm.formats.location.identity_of`).
    """

    report: AuditReport | None
    failed: str | None = None
    is_lasting: bool = True
    identity: str | None = None

    def result(self) -> AuditReport | InputError:
        """The report, or the error."""
        return self.report if self.report is not None else InputError(self.failed or "")


def outcome_of(
    location: Location,
    options: AuditOptions,
    step: Callable[[], None] = lambda: None,
    tell: Progress = lambda _phase, _done, _total: None,
    *,
    alone: bool = False,
) -> Outcome:
    """Audit one model; whatever its file does, the others are not in its way.

    Args:
        location: of the model.
        options: what to check.
        step: called after each rule.
        tell: is called as a long comparison goes on.
        alone: whether there are no others, and an unexpected error is raised.

    Raises:
        ConfigError: a selector is the beginning of no rule's id.
    """
    identities: list[str | None] = []

    def opened(file: ModelFile) -> None:
        identities.append(identity_of(file))

    rules = choose_rules(options.select, options.ignore)
    try:
        report = audit_opened(location, options, rules, step, tell, opened)
    except InputError as error:
        return Outcome(None, str(error), isinstance(error, GGUFError))
    except (GgufnormError, CancelledError):
        raise
    except Exception as error:
        if alone:
            raise
        return Outcome(None, f"{os.fspath(location)}: {_unexpected(error)}", is_lasting=False)
    return Outcome(report, identity=identities[0] if identities else None)


def plain_outcome_of(location: str, options: Any) -> Any:
    """:func:`outcome_of` in plain data, for another process or machine."""
    return to_plain(outcome_of(location, from_plain(Options, options).of_audit()))


def outcome_from(plain: Any) -> Outcome:
    """The inverse of what :func:`plain_outcome_of` gives."""
    return from_plain(Outcome, plain)


def serve(read: Callable[[], Any], write: Callable[[Any], None], _argument: str) -> None:
    """A child's part: answer each ``{"location", "options"}`` with its plain outcome."""
    while (question := read()) is not None:
        write(plain_outcome_of(question["location"], question["options"]))


def _unexpected(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "checking it takes more memory than there is"
    text = (str(error).splitlines() or [""])[0][:_MOST]
    return f"it could not be checked ({type(error).__name__}: {text}): please report this"
