"""Is a norm of an engine the source's, and if not, why, and where does it start?

Each norm is judged by itself first: what the source's norm makes of the *engine's* input is
what the engine should have given, whatever happened upstream. Where that agrees and the input
does not, the mistake lies between the norms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.crosscheck.join import Pair
from ggufnorm.core.formula import Formula
from ggufnorm.core.frameworks import (
    AppliedNorm,
    Cause,
    FirstWrong,
    SiteComparison,
    SiteStatus,
    WrongOperation,
)
from ggufnorm.core.metrics import difference, relative_l2
from ggufnorm.core.observed import (
    Array,
    ObservedNorm,
    applied_formula,
)
from ggufnorm.core.rounding import WEIGHT_ROUNDING
from ggufnorm.core.tolerances import (
    JUMP,
    NORM_RESULT,
    SAME_DOWNSTREAM,
    SAME_EPSILON,
    STRETCH_OF_MATRICES,
)
from ggufnorm.core.transforms import Explanation, Kind, Transform, explain, orders

LOGITS = "logits"
"""In the place of a site's key, where the norms are right and the predictions are not."""
_USUAL_OFFSETS = (1.0, -1.0, 2.0, -2.0)
_PRECISION = frozenset({"rounding"})


@dataclass(frozen=True)
class Judge:
    """Judges the sites of one engine.

    Attributes:
        source: what the source is called in messages.
        engine: what the engine is called.
        rounding: of the engine's matrices.
        weights: of the source's norms by the site's key, as they are applied.
        moved: how far that rounding moves a norm's input in the source itself, relative L2 by
            the site's key; empty where it was not measured.
    """

    source: str
    engine: str
    rounding: float
    weights: Mapping[str, Array]
    moved: Mapping[str, float] = field(default_factory=dict)

    def sites(self, pairs: Sequence[Pair]) -> tuple[SiteComparison, ...]:
        """All sites, in the engine's order."""
        found: list[SiteComparison] = []
        for pair in pairs:
            site = self._site(pair)
            found.append(replace(site, status=self._status(site, found)))
        return tuple(found)

    def _site(self, pair: Pair) -> SiteComparison:
        s, e = pair.source, pair.engine
        local = relative_l2(_source_result(s, e.x), e.y)
        allowed = max(NORM_RESULT, WEIGHT_ROUNDING.get(e.dtype or "", 0.0))
        causes = sorted(self._causes(pair, allowed), key=lambda c: -_size(c))
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
        )

    def _status(self, site: SiteComparison, before: Sequence[SiteComparison]) -> SiteStatus:
        if site.local is None or site.local > site.allowed:
            return "mistake"
        if self._jumps(site, before):
            return "before"
        real = any(c.kind not in _PRECISION for c in site.causes)
        if real:
            return "harmless"
        if any(s.status in ("mistake", "before") for s in before):
            return "upstream"
        into, out = (d.rel_l2 or 0.0 for d in (site.input, site.output))
        return "agrees" if max(into, out) <= SAME_DOWNSTREAM else "precision"

    def _jumps(self, site: SiteComparison, before: Sequence[SiteComparison]) -> bool:
        """Whether something wrong lies between a site's input and the sites before."""
        return site.input.rel_l2 is None or site.input.rel_l2 > self.explained(before, site.key)

    def explained(self, before: Sequence[SiteComparison], key: str | None = None) -> float:
        """The largest relative L2 distance that rounding explains behind some sites.

        Args:
            before: the sites.
            key: of the site whose input is looked at; None for another value.
        """
        seen = [d.rel_l2 or 0.0 for s in before for d in (s.input, s.output)]
        rounding = max(self.rounding, self.moved.get(key or "", 0.0))
        return max(SAME_DOWNSTREAM, STRETCH_OF_MATRICES * rounding, JUMP * max(seen, default=0.0))

    # -- why -----------------------------------------------------------------------------------

    def _causes(self, pair: Pair, allowed: float) -> Iterator[Cause]:
        s, e = pair.source, pair.engine
        if not (np.isfinite(e.y).all() or not np.isfinite(e.x).all()):
            yield Cause("non-finite", "its result holds NaN or infinity, its input does not", None)
        yield from self._formula_causes(s, e)
        yield from self._weight_causes(pair)
        yield from self._bias_causes(s, e)
        residual = e.residual()
        if residual > max(NORM_RESULT, allowed) and np.isfinite(e.y).all():
            yield self._kernel(e, residual)

    def _formula_causes(self, s: ObservedNorm, e: ObservedNorm) -> Iterator[Cause]:
        a, b = s.formula, e.formula

        def share(formula: Formula) -> float | None:
            return _share(s, e.x, formula, s.weight, s.bias)

        if (a.kind, a.groups) != (b.kind, b.groups):
            kind = replace(a, kind=b.kind, groups=b.groups, divisor="standard")
            message = f"{self.engine} runs {_plain(b)}, {self.source} {_plain(a)}"
            yield Cause("kind" if a.kind != b.kind else "groups", message, share(kind))
        if abs(a.epsilon - b.epsilon) > SAME_EPSILON * max(a.epsilon, b.epsilon):
            message = f"its epsilon is {b.epsilon:.4g}, in {self.source} {a.epsilon:.4g}"
            yield Cause("epsilon", message, share(replace(a, epsilon=b.epsilon)))
        if a.kind == b.kind and a.divisor != b.divisor:
            message = f"{self.engine} runs {b}, {self.source} {a}"
            yield Cause("formula", message, share(replace(a, divisor=b.divisor)))

    def _weight_causes(self, pair: Pair) -> Iterator[Cause]:
        s, e = pair.source, pair.engine
        ours, theirs = e.effective_weight, s.effective_weight
        if ours is None and theirs is None:
            return
        if ours is None or theirs is None:
            message = f"it has {'no' if ours is None else 'a'} weight, in {self.source} it has " + (
                "one" if ours is None else "none"
            )
            yield Cause("weight", message, _share(s, e.x, _bare(s.formula), ours, s.bias))
            return
        others = {k: v for k, v in self.weights.items() if k != pair.key and v.size == ours.size}
        flat = np.broadcast_to(ours, theirs.shape) if ours.size < theirs.size else ours
        raw = s.weight if s.weight is not None else theirs
        found = explain(flat, raw, Transform(offset=s.formula.offset), others=others)
        if found.kind in ("equal", "half"):
            return
        maybe_rounded = found.kind in ("partial", "values", "affine")
        if maybe_rounded and e.dtype is not None and e.dtype in WEIGHT_ROUNDING:
            found = _roughly(flat, theirs, others, e.dtype) or found
        share = _share(s, e.x, _bare(s.formula), ours, s.bias)
        message = f"its weight {found.message}".replace("the conversion adds", "it should be plus")
        yield Cause(found.kind, message, share, found.other)

    def _bias_causes(self, s: ObservedNorm, e: ObservedNorm) -> Iterator[Cause]:
        if s.bias is None and e.bias is None:
            return
        if s.bias is None or e.bias is None:
            message = f"it has {'no' if e.bias is None else 'a'} bias, in {self.source} it has " + (
                "one" if e.bias is None else "none"
            )
        else:
            found = explain(e.bias, s.bias, Transform())
            if found.kind in ("equal", "half", "rounding") or _is_rounded(s.bias, e.bias, e.dtype):
                return
            message = f"its bias {found.message}"
        share = _share(s, e.x, replace(s.formula, bias=True), s.weight, e.bias)
        yield Cause("bias", message, share)

    def _kernel(self, e: ObservedNorm, residual: float) -> Cause:
        formula, error = applied_formula(e.x, e.y, e.weight, e.bias, e.formula)
        if error < 0.1 * residual:
            message = f"{self.engine} computes {formula}, where the file says {e.formula}"
            return Cause("formula", message, residual)
        message = f"{self.engine} computes something else than {e.formula} (off by {residual:.3g})"
        return Cause("formula", message, residual)


def _is_rounded(expected: Array, found: Array, dtype: str | None) -> bool:
    """Whether values are others but for the rounding of a norm's type."""
    if expected.size != found.size:
        return False
    return relative_l2(expected.reshape(-1), found.reshape(-1)) <= WEIGHT_ROUNDING.get(
        dtype or "", 0.0
    )


def _roughly(
    found: Array, expected: Array, others: Mapping[str, Array], dtype: str
) -> Explanation | None:
    """What explains a weight but for the rounding of its type: that alone, or the best that does.

    A fitted factor always comes a little closer than the source's own values.
    """
    if _is_rounded(expected, found, dtype):
        return Explanation("rounding", f"is the source's, rounded to {dtype}")
    f, e = found.reshape(-1).astype(np.float64), expected.reshape(-1).astype(np.float64)
    factor = float(f @ e / (e @ e)) if e.any() else 1.0
    tried: list[tuple[float, Explanation]] = []

    def attempt(kind: Kind, message: str, values: NDArray[np.floating], of: str | None) -> None:
        if values.size == f.size:
            error = relative_l2(f, values.reshape(-1))
            tried.append((error, Explanation(kind, f"{message}, rounded to {dtype}", {}, of)))

    for k in _USUAL_OFFSETS:
        attempt("offset", f"is the source's plus {k:g}", e + k, None)
    for order, values in orders(expected.reshape(-1)):
        attempt("permutation", f"has the right values in another order ({order})", values, None)
    for name, values in others.items():
        attempt("elsewhere", f"holds the values of {name}", values, name)
    attempt("scale", f"is {factor:.3g} times the source's", factor * e, None)
    good = [t for t in tried if t[0] <= WEIGHT_ROUNDING[dtype]]
    return min(good, key=lambda t: t[0])[1] if good and f.any() else None


def first_wrong(
    sites: Sequence[SiteComparison], engine: str, logits_off: float | None = None
) -> FirstWrong | None:
    """The first site that is wrong by itself, or that something wrong arrives at.

    Args:
        sites: in the engine's order.
        engine: what the engine is called.
        logits_off: relative L2 distance of the logits where rounding does not explain it.
    """
    for i, site in enumerate(sites):
        if site.status not in ("mistake", "before"):
            continue
        good = [s for s in sites[:i] if s.status in ("agrees", "precision", "harmless")]
        after = good[-1].key if good else None
        real = tuple(c for c in site.causes if c.kind not in _PRECISION)
        if site.status == "mistake":
            reason = (
                _why(real)
                or f"its result is off by {_number(site.local)}, and nothing tried explains it"
            )
            return FirstWrong(
                site.key, site.layer, "norm", after, reason, tuple(c.kind for c in real)
            )
        where = f"after {after}" if after else "before the first norm"
        reason = (
            f"what reaches it is off by {_number(site.input.rel_l2)}, and the norm itself is right:"
            f" {engine} does something else {where}"
        )
        return FirstWrong(site.key, site.layer, "before", after, reason, ())
    if logits_off is None:
        return None
    reason = f"they are off by {_number(logits_off)}, and the last norm is right"
    after = sites[-1].key if sites else None
    return FirstWrong(LOGITS, None, "before", after, reason, ())


def _why(causes: Sequence[Cause]) -> str:
    """The causes that show, or else all."""
    most = max((_size(c) for c in causes), default=0.0)
    return "; ".join(c.message for c in causes if _size(c) >= 0.01 * most)


def verdict(sites: Sequence[SiteComparison], wrong: FirstWrong | None, rounding: float) -> str:
    """All of it in a sentence or two; empty without sites, if nothing is wrong."""
    n = f"{len(sites)} norms" if len(sites) > 1 else "1 norm"
    if wrong is not None:
        where = f" (layer {wrong.layer})" if wrong.layer is not None else ""
        others = sum(s.status == "mistake" for s in sites) - (wrong.where == "norm")
        more = f" {others} more of {n} are wrong by themselves." if others else ""
        return f"First wrong at {wrong.key}{where}: {wrong.reason}.{more}"
    if not sites:
        return ""
    worst = max(sites, key=lambda s: s.output.rel_l2 or 0.0)
    size = f"{_number(worst.output.rel_l2)} at {worst.key}"
    harmless = [s for s in sites if s.status == "harmless"]
    beside = ""
    if harmless:
        causes = [c for c in harmless[0].causes if c.kind not in _PRECISION]
        beside = (
            f" Not as in the source, though it does not show here: {_why(causes)}"
            f" ({harmless[0].key}{f' and {len(harmless) - 1} more' if len(harmless) > 1 else ''})."
        )
    if (
        all(s.status in ("agrees", "harmless") for s in sites)
        and (worst.output.rel_l2 or 0) <= SAME_DOWNSTREAM
    ):
        return f"All {n} agree within float32 rounding: the largest difference is {size}.{beside}"
    start = f"a rounding of {_number(rounding)}" if rounding else "float32 rounding"
    return f"No mistake: differences grow gradually from {start}; the largest is {size}.{beside}"


def with_operation(wrong: FirstWrong, operation: WrongOperation | None, engine: str) -> FirstWrong:
    """The finding with the operation that it comes from."""
    if operation is None:
        return wrong
    of = f" of {operation.tensor}" if operation.tensor else ""
    reason = (
        f"{engine} goes wrong on the way to it, in {operation.name} ({operation.op}{of}):"
        f" {operation.reason}"
    )
    return replace(wrong, reason=reason, operation=operation)


def _number(value: float | None) -> str:
    return "NaN or infinity" if value is None else f"{value:.3g}"


def _size(cause: Cause) -> float:
    return np.inf if cause.share is None else cause.share


def _source_result(s: ObservedNorm, x: Array) -> Array:
    return s.formula.recompute(x, s.weight, s.bias)


def _share(
    s: ObservedNorm, x: Array, formula: Formula, weight: Array | None, bias: Array | None
) -> float | None:
    """What another formula, weight or bias alone does to the source's result."""
    try:
        found = relative_l2(_source_result(s, x), formula.recompute(x, weight, bias))
    except ValueError:
        return None
    return found if np.isfinite(found) else None


def _bare(formula: Formula) -> Formula:
    return replace(formula, offset=0.0, weight=True)


def _plain(formula: Formula) -> str:
    return str(formula).partition(" with epsilon")[0]


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
