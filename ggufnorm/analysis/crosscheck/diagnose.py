"""Is a norm of an engine the source's, and if not, where does it start?

Each norm is diagnosed by itself first: what the source's norm makes of the *engine's* input is
what the engine should have given, whatever happened upstream. Where that agrees and the input
does not, the mistake lies between the norms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ggufnorm.analysis.crosscheck.causes import CauseFinder
from ggufnorm.analysis.crosscheck.join import Pair
from ggufnorm.core.frameworks import AppliedNorm, SiteComparison, SiteStatus
from ggufnorm.core.metrics import difference, relative_l2
from ggufnorm.core.observed import Array, ObservedNorm
from ggufnorm.core.rounding import HALF_ULP, WEIGHT_ROUNDING
from ggufnorm.core.tolerances import (
    COST_OF_ACTIVATIONS,
    FLOAT32_ROUNDING,
    JUMP,
    NORM_RESULT,
    OPERATION_OF_TYPE,
    SAME_DOWNSTREAM,
    STRETCH_OF_COST,
    STRETCH_OF_MATRICES,
    summing,
)


@dataclass(frozen=True)
class Diagnoser:
    """Diagnoses the sites of one engine.

    Attributes:
        source: what the source is called in messages.
        engine: what the engine is called.
        rounding: of the engine's matrices.
        kernels: rounding of the engine's kernels by themselves.
        weights: of the source's norms by the site's key, as they are applied.
        moved: how far that rounding moves a norm's input in the source itself, relative L2 by
            the site's key; empty where it was not measured.
        limits: most that the types of the engine's matrices explain of a norm's input, likewise.
        own: what the operations before each norm make of the source's values by themselves,
            relative L2 by the site's key; empty where it was not measured.
        own_limits: most of that which the types explain, likewise.
    """

    source: str
    engine: str
    rounding: float
    weights: Mapping[str, Array]
    moved: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    own: Mapping[str, float] = field(default_factory=dict)
    own_limits: Mapping[str, float] = field(default_factory=dict)
    kernels: float = HALF_ULP["F16"]

    def sites(self, pairs: Sequence[Pair]) -> tuple[SiteComparison, ...]:
        """All sites, in the engine's order."""
        found: list[SiteComparison] = []
        for pair in pairs:
            site = self._site(pair)
            found.append(replace(site, status=self._status(site, found)))
        return tuple(found)

    def _site(self, pair: Pair) -> SiteComparison:
        pair = replace(pair, source=pair.source.loaded(), engine=pair.engine.loaded())
        s, e = pair.source, pair.engine
        local = relative_l2(s.recompute(e.x), e.y)
        of_types = WEIGHT_ROUNDING.get(e.dtype or "", 0.0) + e.rounding
        allowed = max(NORM_RESULT, of_types, _summing(e))
        if max(relative_l2(s.x, e.x), relative_l2(s.y, e.y)) <= FLOAT32_ROUNDING:
            # What both kernels' rounding makes of it is no mistake of one.
            allowed = max(allowed, 2 * s.residual())
        finder = CauseFinder(self.source, self.engine, self.weights)
        causes = sorted(finder.causes(pair, allowed), key=lambda c: -c.size)
        own = self.own.get(pair.key)
        return SiteComparison(
            key=pair.key,
            layer=e.layer,
            role=e.role,
            source=_applied(s),
            engine=_applied(e),
            input=difference(s.x, e.x),
            output=difference(s.y, e.y),
            local=local if np.isfinite(local) else None,
            allowed=allowed,
            status="agrees",
            causes=tuple(causes),
            before=own if own is not None and np.isfinite(own) else None,
            before_allowed=None if own is None else self.own_allowed(pair.key),
        )

    @property
    def of_operation(self) -> float:
        """Relative L2 distance up to which results between two norms are the same."""
        is_quantized = self.rounding > HALF_ULP["BF16"]
        if is_quantized:
            return OPERATION_OF_TYPE * self.rounding + COST_OF_ACTIVATIONS / 2
        return max(SAME_DOWNSTREAM, STRETCH_OF_MATRICES * self.rounding)

    def own_allowed(self, key: str) -> float:
        """Most of the own error of the operations before a norm that rounding explains.

        Args:
            key: of the norm's site.
        """
        return self.own_limits.get(key, max(SAME_DOWNSTREAM, STRETCH_OF_MATRICES * self.rounding))

    def _status(self, site: SiteComparison, before: Sequence[SiteComparison]) -> SiteStatus:
        is_finite = site.input.non_finite_rows == 0
        if is_finite and (site.local is None or site.local > site.allowed):
            return "mistake"
        if self._jumps(site, before):
            return "before"
        if any(c.is_mistake for c in site.causes):
            return "harmless"
        if any(s.status in ("mistake", "before") for s in before):
            return "upstream"
        into, out = (d.rel_l2 or 0.0 for d in (site.input, site.output))
        return "agrees" if max(into, out) <= SAME_DOWNSTREAM else "precision"

    def _jumps(self, site: SiteComparison, before: Sequence[SiteComparison]) -> bool:
        """Whether something wrong lies between a site's input and the sites before."""
        own = self.own.get(site.key)
        if own is not None:
            return own > self.own_allowed(site.key)
        off = site.input.rel_l2
        if off is None or off > self.explained(before, site.key):
            return True
        started = any(s.status in ("mistake", "before") for s in before)
        return not started and off > self.limits.get(site.key, np.inf)

    def explained(self, before: Sequence[SiteComparison], key: str | None = None) -> float:
        """The largest relative L2 distance that rounding explains behind some sites.

        Args:
            before: the sites.
            key: of the site whose input is looked at; None for another value.
        """
        seen = [d.rel_l2 or 0.0 for s in before for d in (s.input, s.output)]
        rounding = max(self.rounding, self.moved.get(key or "", 0.0))
        return max(SAME_DOWNSTREAM, STRETCH_OF_MATRICES * rounding, JUMP * max(seen, default=0.0))


def _summing(norm: ObservedNorm) -> float:
    """What the sums of a float32 kernel cost a norm, by the size and the mean of its rows."""
    groups = norm.formula.groups or 1
    n = norm.x.shape[-1] // groups
    if norm.formula.kind in ("rms", "l2") or n < 1:
        return summing(n, 0.0)
    runs = norm.x.reshape(-1, norm.x.shape[-1])[:, : n * groups].reshape(-1, n)
    with np.errstate(all="ignore"):
        means = runs.mean(axis=1, dtype=np.float64)
        squares = np.einsum("ri,ri->r", runs, runs, dtype=np.float64) / n
        ratio = float(np.sqrt((means**2).sum() / (squares - means**2).sum()))
    return summing(n, ratio if np.isfinite(ratio) else 0.0)


def with_cost(
    diagnoser: Diagnoser, costs: Mapping[str, float], own: Mapping[str, float]
) -> Diagnoser:
    """The diagnoser, given what the types of the engine's matrices were measured to cost.

    Args:
        diagnoser: without.
        costs: relative L2 distance of a norm's input in the source with its own matrices stored
            so, by the site's key.
        own: the same with each norm given the source's own input.
    """
    limits = {k: STRETCH_OF_COST * c + COST_OF_ACTIVATIONS for k, c in costs.items()}
    # What is explained is in multiples of a rounding.
    moved = {k: STRETCH_OF_COST * c / STRETCH_OF_MATRICES for k, c in costs.items()}
    quantized = diagnoser.rounding > HALF_ULP["BF16"]
    # llama.cpp reads GELU from a table of half precision, whatever the file's types.
    least = STRETCH_OF_MATRICES * diagnoser.kernels
    return replace(
        diagnoser,
        moved=moved,
        limits=limits if quantized else {},
        own_limits={k: max(least, STRETCH_OF_COST * c) for k, c in own.items()},
    )


def _applied(norm: ObservedNorm) -> AppliedNorm:
    residual = norm.residual()
    return AppliedNorm(
        name=norm.name,
        kind=norm.formula.kind,
        formula=str(norm.formula),
        epsilon=norm.formula.epsilon,
        epsilon_stated=norm.epsilon_stated,
        offset=norm.formula.offset,
        residual=residual if np.isfinite(residual) else None,
    )
