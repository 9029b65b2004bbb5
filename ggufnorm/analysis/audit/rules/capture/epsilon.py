"""Whether epsilon matters to the hidden states that one run of the model shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

from ggufnorm.analysis.audit.config import same_float32, text_epsilon
from ggufnorm.analysis.audit.registry import Problem, Rule, rule
from ggufnorm.analysis.audit.rules.capture.common import capture_of, of_norm, pairs
from ggufnorm.analysis.audit.subject import Subject
from ggufnorm.core.capture import NormCapture, Spread
from ggufnorm.core.formula import EPSILONS
from ggufnorm.core.rounding import HALF_ULP

_COUNTS = 0.01
"""Share of a row's mean square from which epsilon contributes to the result."""


@rule("C501", "epsilon-counts", "info")
def epsilon_counts(subject: Subject) -> Iterator[Problem]:
    """Epsilon contributes to the result of some norms.

    What it does:
        Compares epsilon with the mean square (LayerNorm: the variance) of every hidden
        state that is normalized, and tells where it is more than 1 % of the smallest.

    Why it matters:
        There, and only there, a wrong epsilon changes what the model computes.

    What to do:
        Make sure that the epsilon is the source's (``--source``).

    Example:
        ``epsilon 1e-05 counts at 1 of 13 norms, most at blk.0.attn_norm.weight: 0.012 times
        the smallest row's mean square 0.00084, 0.0078 times the median``
    """
    groups: dict[float, list[_Place]] = defaultdict(list)
    for place in _places(capture_of(subject).norms):
        groups[place.epsilon].append(place)
    for epsilon, places in groups.items():
        counting = [p for p in places if p.share > _COUNTS]
        if not counting:
            continue
        most = max(counting, key=lambda p: p.share)
        norm, spread = most.norm, most.spread
        what = "mean square" if norm.kind == "rms" else "variance"
        message = (
            f"epsilon {epsilon:g} counts at {len(counting)} of {len(places)} norms, most at"
            f" {norm.tensor or norm.node}: {most.share:.2g} times the smallest row's {what}"
            f" {spread.smallest:.3g}, {epsilon / spread.median:.2g} times the median"
        )
        evidence: dict[str, Any] = {
            "epsilon": epsilon,
            "share": most.share,
            "smallest": spread.smallest,
            "median": spread.median,
            "token": spread.token,
            "norms": [p.norm.tensor or p.norm.node for p in counting],
        }
        yield of_norm(norm, message, evidence)


@rule("C502", "epsilon-irrelevant", "info")
def epsilon_irrelevant(subject: Subject) -> Iterator[Problem]:
    """Epsilon is not the right one, but changes nothing here.

    What it does:
        Takes the source's epsilon or, without a source, the usual ones, where the model
        runs with another number, and computes how much the results would change at the
        smallest hidden state of this text. Speaks up if that is less than half precision
        rounds, 0.05 %.

    Why it matters:
        It tells whether a wrong epsilon must be repaired at once.

    What to do:
        Set the key right when the file is next written.

    Example:
        ``epsilon is 1e-06, config.json has rms_norm_eps 1e-05: no result of 11 norms changes
        by more than 3.1e-05``
    """
    groups: dict[tuple[float, str], list[tuple[float, _Place]]] = defaultdict(list)
    # What llama.cpp has in its code is not for the file to set right.
    norms = [norm for site, norm in pairs(subject) if site.epsilon_key is not None]
    for place in _places(norms):
        for what, other in _other_epsilons(subject, place):
            groups[place.epsilon, what].append((place.change(other), place))
    for (epsilon, what), changes in groups.items():
        change, most = max(changes, key=lambda x: x[0])
        if change < HALF_ULP["F16"]:
            message = (
                f"epsilon is {epsilon:g}, {what}: no result of {len(changes)} norms changes by"
                f" more than {change:.2g}"
            )
            evidence = {"epsilon": epsilon, "change": change, "n_norms": len(changes)}
            yield of_norm(most.norm, message, evidence)


RULES: tuple[Rule, ...] = (epsilon_counts, epsilon_irrelevant)


@dataclass(frozen=True)
class _Place:
    """A norm whose epsilon is added to something that was seen."""

    norm: NormCapture
    epsilon: float
    spread: Spread

    @property
    def share(self) -> float:
        """Epsilon over the smallest row's mean square."""
        return self.epsilon / self.spread.smallest

    def change(self, other: float) -> float:
        """How much the smallest row's result changes with another epsilon, relatively."""
        v = self.spread.smallest
        return abs(sqrt((v + self.epsilon) / (v + other)) - 1)


def _places(norms: Iterable[NormCapture]) -> Iterator[_Place]:
    for norm in norms:
        if norm.epsilon is not None and norm.spread is not None:
            yield _Place(norm, norm.epsilon, norm.spread)


def _other_epsilons(subject: Subject, place: _Place) -> Iterator[tuple[str, float]]:
    """Epsilons that the norm should have instead, and who says so."""
    norm = place.norm
    if subject.source is not None:
        known = text_epsilon(subject.source.config, norm.kind, norm.layer)
        if known is not None and not same_float32(known[1], place.epsilon):
            yield f"config.json has {known[0]} {known[1]:g}", known[1]
    elif not any(same_float32(place.epsilon, usual) for usual in EPSILONS if usual):
        yield "1e-05 and 1e-06 are usual", max(1e-5, 1e-6, key=place.change)
