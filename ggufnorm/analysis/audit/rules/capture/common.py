"""What the rules of a run have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ggufnorm.analysis.audit.registry import NotApplicableError, Problem
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.capture import Capture, NormCapture
from ggufnorm.core.model import NormSite
from ggufnorm.errors import EngineError, EngineMissingError, MemoryLimitError


def outcome_of(subject: Subject) -> Capture | EngineError:
    """What the run showed, or how llama.cpp failed on this model.

    Raises:
        NotApplicableError: there was no run, for a reason that is not the model's.
    """
    if subject.architecture == "clip":
        raise NotApplicableError("an encoder's file (mmproj) is not run by itself")
    if subject.run is None:
        raise NotApplicableError("the model was not run (--run)")
    outcome = subject.outcome
    if isinstance(outcome, Capture):
        return outcome
    if isinstance(outcome, EngineError) and not isinstance(
        outcome, (EngineMissingError, MemoryLimitError)
    ):
        return outcome
    raise NotApplicableError(str(outcome))


def capture_of(subject: Subject) -> Capture:
    """What the run showed.

    Raises:
        NotApplicableError: there was no run, or llama.cpp failed.
    """
    outcome = outcome_of(subject)
    if isinstance(outcome, Capture):
        return outcome
    raise NotApplicableError("llama.cpp cannot run the model (C101)")


def pairs(subject: Subject) -> Iterator[tuple[NormSite, NormCapture]]:
    """Norms of the file with what became of them in the graph.

    Raises:
        NotApplicableError: see :func:`capture_of`.
    """
    capture = capture_of(subject)
    by_tensor = {site.tensor: site for site in subject.sites if site.tensor is not None}
    by_place = {(s.layer, s.role): s for s in subject.sites if s.tensor is None}
    for norm in capture.norms:
        site = by_tensor.get(norm.tensor or "") or by_place.get((norm.layer, norm.role))
        if site is not None and site.tensor == norm.tensor:
            yield site, norm


def of_norm(norm: NormCapture, message: str, evidence: dict[str, Any]) -> Problem:
    """A problem of a norm."""
    return Problem(message, norm.tensor, norm.layer, evidence)


def of_norms(norms: list[NormCapture], message: str, evidence: dict[str, Any]) -> Problem:
    """A problem that several norms share, told at the first."""
    named = [n.tensor or n.node for n in norms]
    first = norms[0]
    return Problem(message, first.tensor, first.layer, {**evidence, "norms": named})
