"""What is asked of an attribution."""

from __future__ import annotations

from dataclasses import dataclass

from ggufnorm.core.attribution import By
from ggufnorm.core.drift import ModelFacts
from ggufnorm.core.plain import to_plain
from ggufnorm.engines.base import EngineInfo
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.runs.corpus import Corpus
from ggufnorm.runs.identity import Identity, identify
from ggufnorm.runs.loop import Policy


@dataclass(frozen=True)
class Wanted:
    """Which figures; see :func:`ggufnorm.attribute`.

    Attributes:
        shares: whether to measure shares, or the total and local errors alone.
    """

    by: By = "tensor"
    rest: float = 0.05
    norms: bool = True
    shares: bool = True


@dataclass(frozen=True)
class AttributionJob:
    """What the child runs.

    Attributes:
        side_by_side: most copies of a chunk to run at once.
    """

    reference: ModelFacts
    quant: ModelFacts
    by: By
    rest: float
    norms: bool
    shares: bool
    corpus: Corpus
    chunks: int | None
    options: EngineOptions
    side_by_side: int
    policy: Policy

    def identity(self, *engines: EngineInfo) -> Identity:
        """All but the policy, and the engines that run it."""
        return identify(*engines, **to_plain(self, leave_out=("policy",)))
