"""What is said of the result that people use."""

from __future__ import annotations

from dataclasses import dataclass

from ggufnorm.core.frameworks import EngineDifference, PaddingComparison
from ggufnorm.core.model import Skipped

EMBEDDING, SCORE, STATES = "pooled embedding", "score", "token embeddings"


@dataclass(frozen=True)
class OutputComparison:
    """A file's embedding or score beside the source's.

    Attributes:
        what: it is.
        off: relative L2 distance, of a score relative to the terms that it is the sum of; None
            where it was not compared or is not finite.
        reason: why it is another, empty where none is known.
        is_wrong: whether it is another whatever the size, by what the file states.
        skipped: why it was not compared; None if it was.
        left: what the source does behind it and llama.cpp does not.
        known: known differences of the engines.
        padding: the same in a batch of several texts; None where that was not compared.
    """

    what: str
    off: float | None
    reason: str = ""
    is_wrong: bool = False
    skipped: Skipped | None = None
    left: tuple[Skipped, ...] = ()
    known: tuple[EngineDifference, ...] = ()
    padding: PaddingComparison | None = None


def skipped(what: str, why: str) -> OutputComparison:
    """A result that was not compared."""
    return OutputComparison(what, None, skipped=Skipped(what, why))
