"""What the rules of the family have in common."""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.analysis.audit.matching import Match, Matches
from ggufnorm.analysis.audit.registry import NotApplicableError, Problem
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.transforms import Kind
from ggufnorm.formats.hf import Source


def source_of(subject: Subject) -> Source:
    """The checkpoint.

    Raises:
        NotApplicableError: it was not given.
    """
    if subject.source is None:
        raise NotApplicableError("no source was given (--source)")
    return subject.source


def compared(subject: Subject) -> Matches:
    """The norms beside the checkpoint's.

    Raises:
        NotApplicableError: there is nothing to compare.
    """
    source_of(subject)
    if subject.matches.problem:
        raise NotApplicableError(subject.matches.problem)
    return subject.matches


def same_checkpoint(subject: Subject) -> Matches:
    """The same, if the file was made of this checkpoint.

    Raises:
        NotApplicableError: it was made of another, or there is nothing to compare.
    """
    matches = compared(subject)
    if matches.different:
        raise NotApplicableError("the source is another checkpoint (S101)")
    return matches


def of_kind(matches: Matches, *kinds: Kind) -> Iterator[Match]:
    """Weights, not biases, that are explained in one of these ways."""
    return (m for m in matches.found if m.explanation.kind in kinds and not m.is_bias)


def explained(subject: Subject, *kinds: Kind) -> Iterator[Problem]:
    """What there is to say of them.

    Raises:
        NotApplicableError: see :func:`same_checkpoint`.
    """
    for match in of_kind(same_checkpoint(subject), *kinds):
        yield problem(match, f"{match.tensor} {match.explanation.message}")


def problem(match: Match, message: str, **more: int) -> Problem:
    """A problem of one weight or bias, with what explains its values as evidence."""
    evidence = {
        "sources": list(match.origin.sources),
        "source_dtype": match.source_dtype,
        **match.explanation.evidence,
        **more,
    }
    return Problem(message, match.tensor, match.site.layer, evidence)
