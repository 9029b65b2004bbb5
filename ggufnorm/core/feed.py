"""What is said of the pipelines that feed a model, whatever they feed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ggufnorm.core.audit import Severity

TransformT = TypeVar("TransformT", covariant=True)


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


def is_refuted(findings: Iterable[FeedFinding]) -> bool:
    """Whether a pipeline is wrong, or does not show that it is right: the command exits with 1."""
    return any(f.severity == "error" or f.name == "not-told" for f in findings)


@dataclass(frozen=True)
class Explanation(Generic[TransformT]):
    """How a pipeline's values came about.

    Attributes:
        mistakes: names of what is not as expected; empty if nothing is known to be wrong.
        text: what was done, in words.
        transform: what made the values of levels or energies, None if it is not identified.
        residual: relative L2 distance of its result from the values, around their means; None
            where there is nothing to compute it of.
        identified: whether the values show what was done.
    """

    mistakes: tuple[str, ...]
    text: str
    transform: TransformT | None
    residual: float | None
    identified: bool = True

    # Old names, for one release.

    @property
    def told(self) -> bool:
        """As :attr:`identified`."""
        return self.identified

    @property
    def affine(self) -> TransformT | None:
        """As :attr:`transform`, of pixels."""
        return self.transform

    @property
    def scale(self) -> TransformT | None:
        """As :attr:`transform`, of spectrograms."""
        return self.transform
