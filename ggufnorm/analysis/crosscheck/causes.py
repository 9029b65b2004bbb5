"""Why a norm of an engine is not the source's: its formula, its weight, its bias, its kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.crosscheck.join import Pair
from ggufnorm.core.formula import Formula
from ggufnorm.core.frameworks import Cause
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.observed import Array, ObservedNorm, applied_formula
from ggufnorm.core.rounding import WEIGHT_ROUNDING
from ggufnorm.core.tolerances import NORM_RESULT, SAME_EPSILON
from ggufnorm.core.transforms import Explanation, Kind, Transform, explain, orders

_USUAL_OFFSETS = (1.0, -1.0, 2.0, -2.0)


@dataclass(frozen=True)
class CauseFinder:
    """Finds the causes at the sites of one engine.

    Attributes:
        source: what the source is called in messages.
        engine: what the engine is called.
        weights: of the source's norms by the site's key, as they are applied.
    """

    source: str
    engine: str
    weights: Mapping[str, Array]

    def causes(self, pair: Pair, allowed: float) -> Iterator[Cause]:
        """What the engine's norm has not as the source has it.

        Args:
            pair: the norm on both sides.
            allowed: most of its own relative L2 error that rounding explains.
        """
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
            yield self._epsilon(a.epsilon, b.epsilon, share(replace(a, epsilon=b.epsilon)))
        if a.kind == b.kind and a.divisor != b.divisor:
            message = f"{self.engine} runs {b}, {self.source} {a}"
            yield Cause("formula", message, share(replace(a, divisor=b.divisor)))

    def _epsilon(self, theirs: float, ours: float, share: float | None) -> Cause:
        message = f"its epsilon is {ours:.4g}, in {self.source} {theirs:.4g}"
        half = float(np.float16(theirs))
        if theirs and abs(half - ours) <= SAME_EPSILON * ours:
            if not ours:
                smallest = float(np.finfo(np.float16).smallest_subnormal)
                why = f"which half precision rounds to 0 (its smallest number is {smallest:.1g})"
                return Cause("epsilon", f"{message}, {why}", share)
            return Cause("rounding", f"{message}, rounded to half precision", share)
        return Cause("epsilon", message, share)

    def _weight_causes(self, pair: Pair) -> Iterator[Cause]:
        s, e = pair.source, pair.engine
        ours, theirs = e.effective_weight, s.effective_weight
        if ours is None and theirs is None:
            return
        if ours is None or theirs is None:
            only = theirs if ours is None else ours
            if only is not None and (only == 1).all():
                return  # the same, written out
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
            only = s.bias if e.bias is None else e.bias
            if only is not None and not only.any():
                return
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


def _share(
    s: ObservedNorm, x: Array, formula: Formula, weight: Array | None, bias: Array | None
) -> float | None:
    """What another formula, weight or bias alone does to the source's result."""
    try:
        found = relative_l2(s.recompute(x), formula.recompute(x, weight, bias))
    except ValueError:
        return None
    return found if np.isfinite(found) else None


def _bare(formula: Formula) -> Formula:
    return replace(formula, offset=0.0, weight=True)


def _plain(formula: Formula) -> str:
    return str(formula).partition(" with epsilon")[0]
