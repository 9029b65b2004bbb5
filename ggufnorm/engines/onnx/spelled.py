"""Norms that a graph has as several operations, found by what these compute.

Every root is looked at: of what is it taken (:mod:`.evaluate`), and which value is divided by it?
Running decides: a norm counts if NumPy's recompute agrees with what the graph gives
(:meth:`.session.OnnxSession.run`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ggufnorm.core.formula import Divisor
from ggufnorm.core.model import NormKind
from ggufnorm.engines.onnx.algebra import INVERSE, M2, MU, ONE, SQUARE, Powers, Sum, X
from ggufnorm.engines.onnx.evaluate import Axes, Walk, reductions_before
from ggufnorm.engines.onnx.model import OnnxModel, integers

_CASTS = ("Cast", "Identity")
_SAME = 1e-4
"""Relative difference up to which two factors of one formula are one."""


@dataclass(frozen=True)
class Spelled:
    """A norm of several operations.

    Attributes:
        kind: the formula.
        epsilon: as it is added.
        divisor: where.
        axes: over which its means are taken, as the graph has them.
        rows: name of the value whose means are taken.
        x: name of what goes in, of the shape of the result: before it is cut into groups.
        y: name of the result.
        weight: name of the value that it multiplies with, None for none.
        bias: name of the value that it adds, None for none.
        factor: that the weight is multiplied with.
        bias_factor: that the bias is multiplied with.
        scale: factor of the mean of squares below the root.
        power: of the number of values, by which it is multiplied too.
    """

    kind: NormKind
    epsilon: float
    divisor: Divisor
    axes: Axes
    rows: str
    x: str
    y: str
    weight: str | None
    bias: str | None
    factor: float = 1.0
    bias_factor: float = 1.0
    scale: float = 1.0
    power: int = 0

    @property
    def is_grouped(self) -> bool:
        """Whether what goes in is cut into groups first."""
        return self.x != self.rows


@dataclass(frozen=True)
class _Divided:
    """``factor · nᵖ · (m2 - mu²) + epsilon``, or without the mean.

    Attributes:
        factor: of it.
        power: of the number of values.
        centred: whether the mean is taken off.
        epsilon: that is added.
        n: number of values that makes it a variance; None where any does.
    """

    factor: float
    power: int
    centred: bool
    epsilon: float
    n: float | None


_ROOTS = ("Sqrt", "Rsqrt", "Pow", "ReduceL2")
_QUOTIENTS = ("Div", "Reciprocal")


def spelled_norms(model: OnnxModel) -> Iterator[tuple[Any, Spelled]]:
    """Every norm that a graph has as several operations, with the node of its result."""
    done = set[str]()
    for ops in (_ROOTS, _QUOTIENTS):  # a divisor without a root, if it is none of a root's
        for node in model.nodes:
            if node.op_type not in ops or model.constant(node.output[0], 2) is not None:
                continue
            found = _of_anchor(model, node)
            if found is not None and found.y not in done:
                done.add(found.y)
                yield model.producers[found.y], found


def _of_anchor(model: OnnxModel, anchor: Any) -> Spelled | None:
    name = anchor.output[0]
    for base in dict.fromkeys(_bases(model, anchor)):
        walk = Walk(model, base, name)
        walk.run()
        if walk.divided is not None and walk.axes is not None:
            found = _result(walk)
            if found is not None:
                return found
    return None


def _bases(model: OnnxModel, anchor: Any) -> Iterator[str]:
    """Values whose means the anchor may be made of, the plainest first."""
    start = anchor.input[-1] if anchor.op_type == "Div" else anchor.input[0]
    nodes = list(reductions_before(model, start, 10))
    if anchor.op_type == "ReduceL2":
        nodes.insert(0, anchor)
    for reduction in nodes[:6]:
        value = through(model, reduction.input[0])
        node = model.producers.get(value)
        if node is not None and node.op_type in ("Mul", "Pow", "Abs"):
            value = through(model, node.input[0])
            node = model.producers.get(value)
        if node is not None and node.op_type == "Sub":
            yield through(model, node.input[0])
        yield value


def through(model: OnnxModel, value: str) -> str:
    """The value before casts."""
    node = model.producers.get(value)
    while node is not None and node.op_type in _CASTS:
        value = node.input[0]
        node = model.producers.get(value)
    return value


def _divided(value: Sum) -> _Divided | None:
    squares = {p.n: f for (p, _n), f in value.terms.items() if p._replace(n=0) == M2}
    means = {p.n: f for (p, _n), f in value.terms.items() if p._replace(n=0) == MU._replace(mu=2)}
    epsilon = value.terms.get((ONE, ()), 0.0)
    n_terms = len(squares) + len(means) + ((ONE, ()) in value.terms)
    if len(squares) != 1 or n_terms != len(value.terms):
        return None
    ((power, factor),) = squares.items()
    if factor <= 0:
        return None
    if not means:
        return _Divided(factor, power, False, epsilon, None)
    if set(means) == {power} and abs(means[power] + factor) <= _SAME * factor:
        return _Divided(factor, power, True, epsilon, None)
    # A mean that is written as a sum times 1/n tells n.
    for n in _counts({**means, power: factor}):
        total, less = factor * n**power, sum(f * n**p for p, f in means.items())
        if abs(total + less) <= _SAME * total:
            return _Divided(total, 0, True, epsilon, n)
    return None


def _counts(factors: dict[int, float]) -> Iterator[float]:
    for power, factor in factors.items():
        if power:
            for part in (1.0, 2.0):
                yield (abs(factor) / part) ** (-1 / power)


def _result(walk: Walk) -> Spelled | None:
    """The last value of a walk that is the normalized one, weighed and shifted."""
    assert walk.divided is not None
    assert walk.axes is not None
    divided = _divided(walk.divided)
    if divided is None:
        return None
    best: tuple[str, _Affine] | None = None
    for name, value in walk.sums.items():
        affine = _affine(value, divided)
        if affine is not None and (best is None or affine.says_more_than(best[1])):
            best = name, affine
    if best is None:
        return None
    y, affine = best
    kind: NormKind = "layer" if divided.centred else "rms"
    divisor: Divisor = "outside" if walk.outside else "standard"
    epsilon = walk.outside or divided.epsilon
    if affine.powers == SQUARE:
        divisor = "no-root"
    if not divided.centred and divided.power == 1 and abs(divided.factor - 1) <= _SAME:
        kind, divisor = "l2", "under-root" if epsilon else "standard"
        epsilon = epsilon or walk.least
    return Spelled(
        kind=kind,
        epsilon=epsilon,
        divisor=divisor,
        axes=walk.axes,
        rows=walk.base,
        x=_outer(walk, y),
        y=y,
        weight=affine.weight,
        bias=affine.bias,
        factor=affine.factor,
        bias_factor=affine.bias_factor,
        scale=1.0 if kind == "l2" else divided.factor,
        power=0 if kind == "l2" else divided.power,
    )


def _outer(walk: Walk, y: str) -> str:
    """What goes in, of the shape of the result."""
    space = walk.sums[y].space
    if space in (None, walk.base):
        return walk.base
    made = walk.model.producers.get(walk.base)
    reshaped = made is not None and made.op_type in ("Reshape", "Flatten")
    return str(made.input[0]) if made is not None and reshaped else walk.base


@dataclass(frozen=True)
class _Affine:
    """``factor · weight · (x - mu) · inverse + bias_factor · bias``."""

    powers: Powers
    factor: float
    weight: str | None
    bias_factor: float
    bias: str | None

    def says_more_than(self, other: _Affine) -> bool:
        """Whether it is a later stage of the norm: with a weight, then with a bias.

        A number behind the weight is none of the norm's: a query is scaled so.
        """
        mine, theirs = ((a.weight is not None) + (a.bias is not None) for a in (self, other))
        return mine > theirs


def _affine(value: Sum, divided: _Divided) -> _Affine | None:
    weighed: dict[tuple[Powers, tuple[str, ...]], float] = {}
    shifts: list[tuple[str | None, float]] = []
    for (p, names), f in value.terms.items():
        if any(name.startswith("/") for name in names):
            return None
        if p == ONE and len(names) <= 1:
            shifts.append((names[0] if names else None, f))
        elif len(names) <= 1:
            factor = f * divided.n**p.n if divided.n and p.n else f
            key = (p._replace(n=0) if divided.n else p, names)
            weighed[key] = weighed.get(key, 0.0) + factor
        else:
            return None
    found = _factor(weighed, centred=divided.centred)
    if found is None or len(shifts) > 1 or (shifts and shifts[0][0] is None):
        return None
    powers, weight, factor = found
    bias, bias_factor = shifts[0] if shifts else (None, 1.0)
    return _Affine(powers, factor, weight, bias_factor, bias)


def _factor(
    weighed: dict[tuple[Powers, tuple[str, ...]], float], *, centred: bool
) -> tuple[Powers, str | None, float] | None:
    """What ``x · inverse``, less its mean, is multiplied with."""
    for inverse in (INVERSE, SQUARE):
        plain = X._replace(inverse=inverse.inverse, square=inverse.square)
        mean = plain._replace(x=0, mu=1)
        for (p, names), f in weighed.items():
            if p != plain:
                continue
            less = weighed.get((mean, names), 0.0)
            whole = len(weighed) == 1 + centred
            if whole and (not centred or abs(less + f) <= _SAME * abs(f)):
                return inverse, names[0] if names else None, f
    return None


@dataclass(frozen=True)
class Centred:
    """A value less its own mean.

    Attributes:
        x: name of the value.
        perm: in which order its axes are put afterwards; None for none.
        axis: over which the mean is taken, of those axes where they are reordered.
    """

    x: str
    perm: tuple[int, ...] | None
    axis: int


def centred(model: OnnxModel, value: str) -> Centred | None:
    """What a value is made of, if it is that less its own mean over one axis."""
    node, perm = model.producers.get(through(model, value)), None
    if node is not None and node.op_type == "Transpose":
        perm = integers(node, "perm") or None
        node = model.producers.get(through(model, node.input[0]))
    if node is None or node.op_type != "Sub":
        return None
    base = through(model, node.input[0])
    walk = Walk(model, base, "")
    walk.run()
    found = walk.sums.get(node.output[0])
    if found is None or found.terms.get((X, ())) != 1 or walk.axes is None or len(walk.axes) != 1:
        return None
    less = [f for (p, _names), f in found.terms.items() if p == MU]
    alone = less == [-1.0] and len(found.terms) == len(less) + 1
    (axis,) = walk.axes
    if not alone or (perm is not None and axis not in perm):
        return None
    return Centred(base, perm, axis if perm is None else perm.index(axis))


def bias_behind(model: OnnxModel, y: str) -> tuple[str, str] | None:
    """The sum of a norm's result and a constant of channels, and that constant."""
    for node in model.consumers.get(y, ()):
        if node.op_type == "Add":
            other = node.input[1] if node.input[0] == y else node.input[0]
            constant = model.small_constant(other)
            if constant is not None and constant.size > 1 and max(constant.shape) == constant.size:
                return str(node.output[0]), str(other)
    return None


def behind(model: OnnxModel, x: str, y: str, kind: NormKind) -> tuple[str, _Affine, str] | None:
    """A weight and a bias behind a single operation that has none.

    Args:
        model: the graph.
        x: what goes into the operation.
        y: its result.
        kind: of it.

    Returns:
        The result behind weight and bias, these, and what goes in, of the shape of that result;
        None where there are none.
    """
    walk = Walk(model, y, "")
    centred = kind in ("layer", "group")
    start = Sum.of(X._replace(inverse=1), space=y)
    less = start.plus(Sum.of(MU._replace(inverse=1)), -1.0) if centred else start
    walk.run(less)
    divided = _Divided(1.0, 0, centred, 0.0, None)
    best: tuple[str, _Affine] | None = None
    for name, value in walk.sums.items():
        affine = _affine(value, divided)
        if affine is None or name == y or affine.weight is None:
            continue
        if best is None or affine.says_more_than(best[1]):
            best = name, affine
    if best is None:
        return None
    space = walk.sums[best[0]].space
    made = model.producers.get(x)
    if space == y:
        return (*best, x)
    if made is None or made.op_type not in ("Reshape", "Flatten"):
        return None
    return (*best, str(made.input[0]))
