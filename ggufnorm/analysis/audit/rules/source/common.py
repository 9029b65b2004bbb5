"""What the rules of the family have in common."""

from __future__ import annotations

from collections.abc import Iterator

from ggufnorm.analysis.audit.matching import Match, Matches
from ggufnorm.analysis.audit.registry import NotApplicableError, Problem
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.mend import Mend, MendKind, undo
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
    return Problem(message, match.tensor, match.site.layer, evidence, mend=_mend(match))


_UNDONE: dict[Kind, tuple[MendKind, str]] = {
    "offset": ("offset", "undo the offset in {}"),
    "scale": ("scale", "undo the scale of {}"),
    "affine": ("scale", "undo scale and offset of {}"),
    "permutation": ("permutation", "put {} in order"),
    "bytes": ("byte-order", "turn round the bytes of {}"),
    "elsewhere": ("swap", "give {} its own values"),
    "rounding": ("rounding", "give {} its full precision"),
    "size": ("values", "give {} its size and values"),
    "partial": ("values", "give {} its values"),
    "values": ("values", "give {} its values"),
}


def _mend(match: Match) -> Mend | None:
    """All of them by the source's values: what was done to a file's may have lost bits."""
    undone = _UNDONE.get(match.explanation.kind)
    if undone is None:
        return None
    kind, action = undone
    return undo(kind, match.tensor, f"{action.format(match.tensor)}, by the source")
