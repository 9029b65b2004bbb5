"""Tokens that get other experts than in the source because their scores are tied.

Rounding moves the scores of a router. Where two experts' scores are nearer than that, the token
may get either one, and what comes of it differs by as much as the experts do: no mistake, and
nothing that a comparison can judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.changes import EXPERTS_USED
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.operations import Array, Match, Segment


@dataclass(frozen=True)
class Ties:
    """Tokens with other experts, where that is all that is wrong.

    Attributes:
        n_tokens: how many.
        margin: the furthest that the source's scores of the two experts are apart.
        rounding: the furthest that a score of these tokens is from the source's.
    """

    n_tokens: int
    margin: float
    rounding: float

    def __str__(self) -> str:
        times = "once" if self.n_tokens == 1 else f"{self.n_tokens} times"
        return (
            f"{times} a token got others, whose scores are tied with the source's choice: they are"
            f" {self.margin:.2g} apart at most, and rounding moves scores by {self.rounding:.2g}"
        )

    def with_more(self, other: Ties | None) -> Ties:
        """Of two stretches together."""
        if other is None:
            return self
        return Ties(
            self.n_tokens + other.n_tokens,
            max(self.margin, other.margin),
            max(self.rounding, other.rounding),
        )


def ties(segment: Segment, matches: Sequence[Match | None]) -> Ties | None:
    """Tokens with other experts than in the source, where all others end as they should.

    Two scores that differ by more than rounding moved both are not tied.

    Args:
        segment: what was computed.
        matches: of each of the engine's operations, in the source.
    """
    n_used = int(max((n for k, n in segment.numbers.items() if k in EXPERTS_USED), default=0))
    ours = segment.engine[-1].value if segment.engine else None
    theirs = segment.source[-1].value if segment.goal is None else segment.goal
    if not n_used or ours is None or theirs is None or ours.size != theirs.size:
        return None
    found = [
        one
        for operation in segment.engine
        if operation.op in ("ARGSORT", "TOP_K")
        for i in operation.inputs
        if (one := _other_choice(segment, i, matches[i], n_used)) is not None
    ]
    other = np.logical_or.reduce([tokens for tokens, _, _ in found], axis=0)
    if not found or other.all():
        return None
    rows, expected = (v.reshape(segment.n_tokens, -1)[~other] for v in (ours, theirs))
    margin, rounding = max(m for _, m, _ in found), max(r for _, _, r in found)
    if margin > 2 * rounding or relative_l2(expected, rows) > segment.tolerance:
        return None
    return Ties(int(other.sum()), margin, rounding)


def _other_choice(
    segment: Segment, index: int, match: Match | None, n_used: int
) -> tuple[NDArray[np.bool_], float, float] | None:
    """Which tokens choose other experts, how far the scores are apart, and from the source's."""
    ours = segment.engine[index].value
    theirs = None if match is None else segment.source[match.index].value
    if ours is None or theirs is None or ours.size != theirs.size:
        return None
    rows, expected = (v.reshape(segment.n_tokens, -1).astype(np.float64) for v in (ours, theirs))
    chosen, right = (_chosen(v, n_used) for v in (rows, expected))
    other = (chosen != right).any(axis=1)
    if not other.any():
        return None
    lost = np.where(right & ~chosen, expected, -np.inf).max(axis=1)[other]
    taken = np.where(chosen & ~right, expected, np.inf).min(axis=1)[other]
    rounding = float(np.abs(rows - expected)[other].max())
    return other, float((lost - taken).max()), rounding


def _chosen(scores: Array | NDArray[np.float64], n_used: int) -> NDArray[np.bool_]:
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, np.argsort(-scores, axis=1, kind="stable")[:, :n_used], True, axis=1)
    return chosen
