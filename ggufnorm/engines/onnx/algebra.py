"""What a graph computes of one value, as a sum of products: the algebra that norms are made of.

Exporters write a norm in many ways: a variance as the mean of ``(x - mean)²`` or as
``E[x²] - E[x]²``, a mean as a sum times ``1/n``, a quotient as a product with a reciprocal root,
the weight before or after it, the bias less ``mean · root · weight``. As sums of products of few
symbols all of these are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Powers(NamedTuple):
    """Exponents of a product's symbols.

    Attributes:
        x: the value itself.
        mu: its mean over some axes.
        m2: the mean of its squares.
        root: the root of the divisor's square.
        inverse: one over that root.
        square: one over the root's square: a divisor without a root.
        n: how many values a mean is taken of.
    """

    x: int = 0
    mu: int = 0
    m2: int = 0
    root: int = 0
    inverse: int = 0
    square: int = 0
    n: int = 0


ONE = Powers()
X, MU, M2 = Powers(x=1), Powers(mu=1), Powers(m2=1)
ROOT, INVERSE, SQUARE, N = Powers(root=1), Powers(inverse=1), Powers(square=1), Powers(n=1)

Term = tuple[Powers, tuple[str, ...]]
"""Symbols, and names of constants that hold a value for each channel, ``/name`` for a divisor."""

_MOST_TERMS = 12
_MOST_POWER = 2


@dataclass(frozen=True)
class Sum:
    """A sum of terms, each with its factor.

    Attributes:
        terms: factors by term.
        space: which reshaping of the value it is in; None where the value itself is not in it.
    """

    terms: Mapping[Term, float]
    space: str | None = None

    @classmethod
    def of(cls, powers: Powers, factor: float = 1.0, space: str | None = None) -> Sum:
        """One term without constants of channels."""
        return cls({(powers, ()): factor}, space)

    @cached_property
    def has_x(self) -> bool:
        """Whether the value itself is in it."""
        return any(powers.x for powers, _names in self.terms)

    @cached_property
    def has_names(self) -> bool:
        """Whether a constant of channels is in it."""
        return any(names for _powers, names in self.terms)

    @property
    def number(self) -> float | None:
        """The sum, where it is a number."""
        if not self.terms:
            return 0.0
        (term, factor), *rest = self.terms.items()
        return factor if term == (ONE, ()) and not rest else None

    def only(self, powers: Powers) -> float | None:
        """The factor of one product, where the sum is that alone."""
        found = self.terms.get((powers, ()))
        return found if found is not None and len(self.terms) == 1 else None

    def plus(self, other: Sum, sign: float = 1.0) -> Sum | None:
        """The sum of two; None where they are not in one space or have too many terms."""
        added = [*self.terms.items(), *((t, sign * f) for t, f in other.terms.items())]
        return _joined(added, self, other)

    def times(self, other: Sum) -> Sum | None:
        """The product of two; None where they are not in one space or have too many terms."""
        added: list[tuple[Term, float]] = []
        for (a, names), f in self.terms.items():
            for (b, more), g in other.terms.items():
                powers = Powers(*(i + k for i, k in zip(a, b, strict=True)))
                added.append(((powers, tuple(sorted((*names, *more)))), f * g))
        return _joined(added, self, other)

    def scaled(self, factor: float) -> Sum:
        """The same times a number."""
        return Sum({t: factor * f for t, f in self.terms.items()}, self.space)

    def mean(self) -> Sum | None:
        """Its mean over the axes; None where that is no mean of the value or its squares."""
        if self.has_names:
            return None
        added: list[tuple[Term, float]] = []
        for (p, _names), factor in self.terms.items():
            if p.x > _MOST_POWER:
                return None
            powers = p._replace(x=0, mu=p.mu + (p.x == 1), m2=p.m2 + (p.x == _MOST_POWER))
            added.append(((powers, ()), factor))
        return _joined(added)


def _is_high(powers: Powers) -> bool:
    return max(powers[:-1]) > _MOST_POWER or powers.n > 2 * _MOST_POWER


def _joined(added: Iterable[tuple[Term, float]], *parts: Sum) -> Sum | None:
    terms: dict[Term, float] = {}
    largest: dict[Term, float] = {}
    for term, factor in added:
        terms[term] = terms.get(term, 0.0) + factor
        largest[term] = max(largest.get(term, 0.0), abs(factor))
    # What two roundings of one constant leave of a difference is nothing.
    kept = {t: f for t, f in terms.items() if abs(f) > 1e-9 * largest[t]}
    if len(kept) > _MOST_TERMS or any(_is_high(p) for p, _names in kept):
        return None
    spaces = {p.space for p in parts if p.has_x}
    if len(spaces) > 1:
        return None
    return Sum(kept, next(iter(spaces), None))
