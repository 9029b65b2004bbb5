"""Which normalization turns one array into another?

A norm is known by what goes in and what comes out. :func:`best_formula` tries the
formulae that implementations really have, right ones and the usual mistakes, and says
which one explains a result best, and how well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.model import NormKind
from ggufnorm.core.tolerances import AMBIGUOUS, FLOAT32_ROUNDING

Array = NDArray[np.float64]

Divisor = Literal["standard", "outside", "squared", "root", "unbiased", "no-root", "under-root"]
"""What a centred or plain row is divided by, with its mean square or variance ``v``, its
``n`` channels and ``e`` for epsilon:

- ``standard``: ``sqrt(v + e)``; an L2 norm's ``max(sqrt(n v), e)``;
- ``outside``: ``sqrt(v) + e``;
- ``squared``: ``sqrt(v + e²)``, ``root``: ``sqrt(v + sqrt(e))``: an epsilon meant for the
  other one;
- ``unbiased``: ``sqrt(v n / (n - 1) + e)``, the default of ``torch.var``;
- ``no-root``: ``v + e``;
- ``under-root``: an L2 norm's ``sqrt(n v + e)``, Transformers' formula.
"""

EPSILONS = (1e-5, 1e-6, 1e-12, 1e-8, 0.0)
"""Epsilons that models have, the most frequent first."""
OFFSETS = (0.0, 1.0, -1.0, 2.0)
"""Offsets that converters and implementations put on a weight."""
MOST_GROUPS = 64


_DIVISORS: dict[NormKind, tuple[Divisor, ...]] = {
    "rms": ("standard", "outside", "squared", "root", "unbiased", "no-root"),
    "layer": ("standard", "outside", "squared", "root", "unbiased", "no-root"),
    "l2": ("standard", "under-root"),
    "group": ("standard",),
}
_NAMES: dict[NormKind, str] = {
    "rms": "RMSNorm",
    "layer": "LayerNorm",
    "l2": "L2 norm",
    "group": "GroupNorm",
}
_SHOWN: dict[Divisor, str] = {
    "standard": "",
    "outside": " added outside the root",
    "squared": " squared",
    "root": ", its root taken",
    "unbiased": " and the variance of n - 1",
    "no-root": " and no root",
    "under-root": " under the root",
}


@dataclass(frozen=True)
class Formula:
    """A normalization: ``y = normalized(x) · (weight + offset) + bias``.

    Attributes:
        kind: RMSNorm, LayerNorm, GroupNorm or L2 norm.
        epsilon: where ``divisor`` says; units as in :mod:`ggufnorm.core.norms`.
        groups: of a GroupNorm, else None.
        divisor: how epsilon and the mean square make up the divisor.
        offset: added to the weight; 0 without one.
        weight: whether the weight is multiplied.
        bias: whether the bias is added.
    """

    kind: NormKind
    epsilon: float
    groups: int | None = None
    divisor: Divisor = "standard"
    offset: float = 0.0
    weight: bool = True
    bias: bool = True

    @classmethod
    def stated(cls, kind: NormKind, epsilon: float | None, groups: int | None = None) -> Formula:
        """The formula that plain data state; None for an infinite epsilon, as JSON has none."""
        return cls(kind, math.inf if epsilon is None else epsilon, groups)

    def __str__(self) -> str:
        """In words, for example ``RMSNorm with epsilon 1e-06, weight + 1``."""
        groups = f" of {self.groups} groups" if self.kind == "group" else ""
        text = f"{_NAMES[self.kind]}{groups} with epsilon {self.epsilon:.4g}{_SHOWN[self.divisor]}"
        if self.offset:
            text += f", weight {'+' if self.offset > 0 else '-'} {abs(self.offset):g}"
        if not self.weight:
            text += ", without the weight"
        if not self.bias:
            text += ", without the bias"
        return text

    def apply(
        self, x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None
    ) -> Array:
        """The formula's result, float64.

        Args:
            x: ``(…, channels)``; for a GroupNorm one row is one sample.
            weight: broadcasts against ``x``; None for none.
            bias: broadcasts against ``x``; None for none.
        """
        wide = np.asarray(x, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            y = _normalized(self, wide)
            if weight is not None and self.weight:
                y = y * (np.asarray(weight, np.float64) + self.offset)
            if bias is not None and self.bias:
                y = y + np.asarray(bias, np.float64)
        return y

    def recompute(
        self, x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """As :meth:`apply`, rounded once to float32; what is too large becomes infinite.

        Raises:
            ValueError: weight or bias do not broadcast to the shape of ``x``.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            y = self.apply(x, weight, bias).astype(np.float32)
        if y.shape != np.shape(x):
            raise ValueError(f"weight or bias do not fit x of shape {np.shape(x)}")
        return y


@dataclass(frozen=True)
class Fit:
    """How well a formula explains a result.

    Attributes:
        formula: the formula.
        residual: relative L2 distance of its result from the one observed.
    """

    formula: Formula
    residual: float


def best_formula(
    x: ArrayLike,
    y: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    expected: Formula,
) -> Fit:
    """Find the formula that made ``y`` of ``x``.

    Tried are RMSNorm, LayerNorm, L2 norm and GroupNorm of 2 to 64 groups; the epsilon
    expected, those of :data:`EPSILONS` and the one that ``y`` itself implies; the mistakes
    of :data:`Divisor`; :data:`OFFSETS` on the weight; and leaving out weight or bias. Of
    those that are as good as the best, the one that departs least from ``expected``.

    Args:
        x: what went in, ``(rows, channels)``; a few rows are enough.
        y: what came out, the same shape; rows that are not finite are passed over.
        weight: broadcasts against ``x``; None for none.
        bias: broadcasts against ``x``; None for none.
        expected: what it should have been.

    Raises:
        ValueError: the shapes differ, or no row is finite and not all zero.
    """
    trial = _Trial.of(x, y, weight, bias)
    fits = [Fit(f, trial.residual(f)) for f in trial.candidates(expected)]
    best = min(fit.residual for fit in fits)
    good = [fit for fit in fits if fit.residual <= max(FLOAT32_ROUNDING, AMBIGUOUS * best)]
    return min(good, key=lambda fit: _departures(fit.formula, expected))


@dataclass(frozen=True)
class _Trial:
    """Finite rows of ``x``, ``y``, weight and bias, the last two ``(rows, channels)`` too."""

    x: Array
    y: Array
    weight: Array | None
    bias: Array | None

    @classmethod
    def of(
        cls, x: ArrayLike, y: ArrayLike, weight: ArrayLike | None, bias: ArrayLike | None
    ) -> _Trial:
        rows, out = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if rows.shape != out.shape or rows.ndim != 2:
            raise ValueError(f"x {rows.shape} and y {out.shape} must be rows of one shape")
        good = np.isfinite(rows).all(axis=1) & np.isfinite(out).all(axis=1)
        if not out[good].any():
            raise ValueError("no row of y is finite and not all zero")
        w, b = (
            None if v is None else np.broadcast_to(np.asarray(v, np.float64), rows.shape)[good]
            for v in (weight, bias)
        )
        return cls(rows[good], out[good], w, b)

    def residual(self, formula: Formula) -> float:
        return relative_l2(self.y, formula.apply(self.x, self.weight, self.bias))

    def candidates(self, expected: Formula) -> Iterator[Formula]:
        yield expected
        epsilons = dict.fromkeys((expected.epsilon, *EPSILONS))
        for affine in self.affine():
            for kind, groups in self.kinds(expected):
                for divisor, epsilon in product(_DIVISORS[kind], epsilons):
                    yield replace(
                        affine, kind=kind, groups=groups, divisor=divisor, epsilon=epsilon
                    )
                implied = self.implied_epsilon(replace(affine, kind=kind, groups=groups))
                if implied is not None:
                    yield replace(affine, kind=kind, groups=groups, epsilon=implied)

    def affine(self) -> Iterator[Formula]:
        """All that can be done with weight and bias."""
        weights: Iterable[tuple[bool, float]] = ((True, 0.0),)
        if self.weight is not None:
            weights = ((False, 0.0), *((True, offset) for offset in OFFSETS))
        for (with_weight, offset), with_bias in product(
            weights, (True, False) if self.bias is not None else (True,)
        ):
            yield Formula("rms", 0.0, None, "standard", offset, with_weight, with_bias)

    def kinds(self, expected: Formula) -> Iterator[tuple[NormKind, int | None]]:
        yield from (("rms", None), ("layer", None), ("l2", None))
        n = self.x.shape[1]
        counts = [g for g in range(2, MOST_GROUPS + 1) if n % g == 0 and n > g]
        # Any number of groups is possible if the file says so: ggml's last is shorter.
        counts += [expected.groups] if expected.groups and expected.groups not in counts else []
        yield from (("group", g) for g in counts)

    def implied_epsilon(self, formula: Formula) -> float | None:
        """The epsilon with which an RMSNorm or a LayerNorm has the size of ``y``."""
        if formula.kind not in ("rms", "layer"):
            return None
        target = self.y if self.bias is None or not formula.bias else self.y - self.bias
        rows = _centred(formula, self.x)
        scaled = rows
        if self.weight is not None and formula.weight:
            scaled = rows * (self.weight + formula.offset)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            factor = (scaled * target).sum(axis=1) / (scaled * scaled).sum(axis=1)
            implied = 1 / factor**2 - (rows * rows).mean(axis=1)
            size = np.abs((rows * rows).mean(axis=1))
        # The smaller the row, the better it tells its epsilon.
        if not np.isfinite(implied).any():
            return None
        found = float(implied[np.argmin(np.where(np.isfinite(implied), size, np.inf))])
        return found if found > 0 else None


def _centred(formula: Formula, x: Array) -> Array:
    return x - x.mean(axis=-1, keepdims=True) if formula.kind in ("layer", "group") else x


def _normalized(formula: Formula, x: Array) -> Array:
    if formula.kind == "group":
        run = -(-x.shape[-1] // (formula.groups or 1))
        layer = replace(formula, kind="layer", groups=None)
        runs = [_normalized(layer, x[..., i : i + run]) for i in range(0, x.shape[-1], run)]
        return np.concatenate(runs, axis=-1)
    rows = _centred(formula, x)
    return np.asarray(rows / _divisor(formula, rows))


def _divisor(formula: Formula, rows: Array) -> Array:
    e, n = formula.epsilon, rows.shape[-1]
    v = np.mean(rows * rows, axis=-1, keepdims=True)
    if formula.kind == "l2":
        squares = n * v
        if formula.divisor == "under-root":
            return np.asarray(np.sqrt(squares + e))
        return np.asarray(np.maximum(np.sqrt(squares), e))
    made: dict[Divisor, Array] = {
        "standard": np.sqrt(v + e),
        "outside": np.sqrt(v) + e,
        "squared": np.sqrt(v + e * e),
        "root": np.sqrt(v + np.sqrt(max(0.0, e))),
        "unbiased": np.sqrt(v * n / max(1, n - 1) + e),
        "no-root": v + e,
    }
    return made[formula.divisor]


def _departures(formula: Formula, expected: Formula) -> tuple[int, int]:
    """How many things are not as expected, and how unusual the epsilon is."""
    n = sum(
        (
            formula.kind != expected.kind,
            formula.groups != expected.groups,
            formula.divisor != expected.divisor,
            formula.epsilon != expected.epsilon,
            formula.offset != expected.offset,
            formula.weight != expected.weight,
            formula.bias != expected.bias,
        )
    )
    usual = (expected.epsilon, *EPSILONS)
    return n, usual.index(formula.epsilon) if formula.epsilon in usual else len(usual)
