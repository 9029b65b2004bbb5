"""Follows one value of an ONNX graph forward, as a sum of products (:mod:`.algebra`).

Operations: ONNX's ``docs/Operators.md``.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ggufnorm.engines.onnx.algebra import (
    INVERSE,
    ONE,
    ROOT,
    SQUARE,
    N,
    Sum,
    X,
)
from ggufnorm.engines.onnx.model import OnnxModel, integers

Axes = tuple[int, ...]

SPATIAL: Axes = (2, 1 << 20)
"""In the place of axes: all behind the second."""
ALL_BUT_BATCH: Axes = (1, 1 << 20)

_SAME = ("Cast", "CastLike", "Identity", "Dropout")
_RESHAPED = ("Expand", "Flatten", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze")
"""Of a mean or a root they change no value; of the value itself they make another space."""
_CLAMPED = ("Abs", "Clip", "Max", "Relu")
_MOST_STEPS = 160
_COUNTED = ("Cast", "Gather", "Mul", "ReduceProd", "Shape", "Size", "Slice", "Squeeze", "Unsqueeze")
"""Operations between a shape and the number of values that a mean is taken of."""


@dataclass
class Walk:
    """The values that are made of one value.

    Attributes:
        model: the graph.
        base: name of the value.
        anchor: output of the operation that takes the root; its divisor is told from others'.
        axes: over which its means are taken; None before the first mean.
        sums: by the name of a value.
        divided: what the root was taken of; None before it was.
        outside: what is added to the root.
        least: what the root is at least.
        takes: by the name of a value, the node that made it.
    """

    model: OnnxModel
    base: str
    anchor: str
    axes: Axes | None = None
    sums: dict[str, Sum] = field(default_factory=dict)
    divided: Sum | None = None
    outside: float = 0.0
    least: float = 0.0

    def run(self, start: Sum | None = None) -> None:
        """Follow the value forward.

        Args:
            start: what the value is; None for itself.
        """
        index = self.model.index
        self.sums[self.base] = start or Sum.of(X, space=self.base)
        waiting = [index[id(n)] for n in self.model.consumers.get(self.base, ())]
        heapq.heapify(waiting)
        done = set[int]()
        while waiting and len(done) < _MOST_STEPS:
            i = heapq.heappop(waiting)
            if i in done:
                continue
            done.add(i)
            node = self.model.nodes[i]
            found = self._of(node)
            if found is not None and node.output[0] not in self.sums:
                self.sums[node.output[0]] = found
                for user in self.model.consumers.get(node.output[0], ()):
                    heapq.heappush(waiting, index[id(user)])

    def _value(self, name: str) -> Sum | None:
        if name in self.sums:
            return self.sums[name]
        constant = self.model.small_constant(name)
        if constant is not None and constant.dtype.kind in "fiu":
            if constant.size == 1:
                return Sum.of(ONE, float(constant.reshape(-1)[0]))
            wide = sum(d > 1 for d in constant.shape)
            # More than a value for each channel is no weight of a norm.
            return Sum({(ONE, (name,)): 1.0}) if wide <= max(1, len(self.axes or ())) else None
        return Sum.of(N) if self._is_count(name) else None

    def _is_count(self, name: str, depth: int = 6) -> bool:
        """Whether a number is made of a shape: of how many values a mean is taken, it may be."""
        node = self.model.producers.get(name)
        if node is None or depth == 0 or node.op_type not in _COUNTED:
            return False
        if node.op_type in ("Shape", "Size"):
            return True
        return self._is_count(node.input[0], depth - 1)

    def _of(self, node: Any) -> Sum | None:
        op = node.op_type
        if op in _SAME:
            return self._value(node.input[0])
        if op in _RESHAPED:
            return self._reshaped(node)
        if op in _REDUCED:
            return self._reduced(node)
        if op in _CLAMPED:
            return self._clamped(node)
        if op in ("Einsum", "MatMul", "Gemm"):
            return self._product(node)
        found = [self._value(name) for name in node.input if name]
        if not found or any(v is None for v in found):
            return None
        values = [v for v in found if v is not None]
        if op in ("Add", "Sum", "Sub"):
            return self._added(values, -1.0 if op == "Sub" else 1.0)
        if op == "Mul" and len(values) > 1:
            return values[0].times(values[1])
        if op == "Neg":
            return values[0].scaled(-1.0)
        if op == "Div" and len(values) > 1:
            return self._quotient(node, *values)
        if op == "Reciprocal":
            return self._quotient(node, Sum.of(ONE), values[0])
        if op in ("Sqrt", "Rsqrt"):
            return self._root(node, values[0], 0.5 if op == "Sqrt" else -0.5)
        if op == "Pow" and len(values) > 1:
            return self._power(node, values[0], values[1].number)
        return None

    def _reshaped(self, node: Any) -> Sum | None:
        value = self._value(node.input[0])
        if value is None or not value.has_x:
            return value
        # A weight of channels broadcasts otherwise once the axes are others.
        if value.has_names or node.op_type in ("Expand", "Tile", "Transpose"):
            return None
        return Sum(value.terms, node.output[0])

    def _added(self, values: list[Sum], sign: float) -> Sum | None:
        total: Sum | None = values[0]
        for other in values[1:]:
            total = None if total is None else total.plus(other, sign)
        return total

    # -- means ---------------------------------------------------------------------------------

    def _reduced(self, node: Any) -> Sum | None:
        value = self._value(node.input[0])
        if value is None or not value.has_x or value.space != self.base:
            return None
        squared, summed, root = _REDUCED[node.op_type]
        if squared:
            value = value.times(value)
        mean = None if value is None else value.mean()
        if mean is None or not self._over(axes_of(self.model, node)):
            return None
        total = mean.times(Sum.of(N)) if summed else mean
        if not root or total is None:
            return total
        return self._root(node, total, 0.5)

    def _over(self, axes: Axes | None) -> bool:
        """Whether these are the axes of all means."""
        if axes is None or (self.axes is not None and axes != self.axes):
            return False
        self.axes = axes
        return True

    def _product(self, node: Any) -> Sum | None:
        """A sum of squares as ``Einsum``, or a mean as a product with a column of 1/n."""
        value = self.sums.get(node.input[0])
        if value is None or value.space != self.base or len(node.input) < 2:
            return None
        if node.op_type == "Einsum":
            left, _, right = _equation(node).replace(" ", "").partition("->")
            a, _, b = left.partition(",")
            if a == b and node.input[0] == node.input[1] and a[:-1] == right and self._over((-1,)):
                square = value.times(value)
                mean = None if square is None else square.mean()
                return None if mean is None else mean.times(Sum.of(N))
            return None
        column = self.model.small_constant(node.input[1])
        if node.op_type == "Gemm" or column is None or column.ndim != 2 or column.shape[1] != 1:
            return None
        factor = float(column.reshape(-1)[0])
        mean = value.mean()
        if mean is None or (column != column.reshape(-1)[0]).any() or not self._over((-1,)):
            return None
        return mean.scaled(factor * column.size)

    # -- the divisor ---------------------------------------------------------------------------

    def _clamped(self, node: Any) -> Sum | None:
        """A variance kept from being negative, or a root kept from being zero."""
        value = next((v for n in node.input if (v := self.sums.get(n)) is not None), None)
        if value is None or value.has_x:
            return None
        if value.only(ROOT) is not None:
            limits = [self._value(n) for n in node.input if n and n not in self.sums]
            numbers = [n for v in limits[:1] if v is not None and (n := v.number) is not None]
            attribute = [a.f for a in node.attribute if a.name == "min"]
            self.least = max([*numbers, *attribute, 0.0])
        return value

    def _power(self, node: Any, value: Sum, exponent: float | None) -> Sum | None:
        if exponent == 2:
            return value.times(value)
        if exponent in (0.5, -0.5):
            return self._root(node, value, exponent)
        if exponent == -1:
            return self._quotient(node, Sum.of(ONE), value)
        return None

    def _root(self, node: Any, value: Sum, exponent: float) -> Sum | None:
        if value.only(SQUARE) is not None and exponent == 0.5:
            return Sum.of(INVERSE)
        if not self._is_divisor(value) or node.output[0] != self.anchor:
            return None
        self.divided = value
        return Sum.of(ROOT if exponent > 0 else INVERSE)

    def _quotient(self, node: Any, numerator: Sum, divisor: Sum) -> Sum | None:
        number = divisor.number
        if number is not None:
            return numerator.scaled(1 / number) if number else None
        if divisor.only(N) is not None:
            return numerator.times(Sum({(ONE._replace(n=-1), ()): 1.0}))
        factor = divisor.terms.get((ROOT, ()))
        if factor is not None:
            rest = divisor.plus(Sum.of(ROOT), -factor)
            outside = None if rest is None else rest.number
            if outside is None:
                return None
            self.outside = outside / factor
            return numerator.times(Sum.of(INVERSE, 1 / factor))
        if self._is_divisor(divisor) and node.output[0] == self.anchor:
            self.divided = divisor
            return numerator.times(Sum.of(SQUARE))
        names = [names for powers, names in divisor.terms if powers == ONE]
        if len(divisor.terms) == len(names) == 1 and len(names[0]) == 1:
            (scale,) = divisor.terms.values()
            return numerator.times(Sum({(ONE, (f"/{names[0][0]}",)): 1 / scale}))
        return None

    @staticmethod
    def _is_divisor(value: Sum) -> bool:
        return not value.has_x and not value.has_names and any(p.m2 for p, _names in value.terms)


_REDUCED = {
    "ReduceMean": (False, False, False),
    "ReduceSum": (False, True, False),
    "ReduceSumSquare": (True, True, False),
    "ReduceL2": (True, True, True),
    "GlobalAveragePool": (False, False, False),
}
"""Of each operation whether it squares, whether it sums, and whether it takes the root."""


def axes_of(model: OnnxModel, node: Any) -> Axes | None:
    """Over which axes a node reduces; an attribute, or an input in later versions."""
    if node.op_type == "GlobalAveragePool":
        return SPATIAL
    given = integers(node, "axes")
    if given:
        return given
    found = model.small_constant(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    return None if found is None else tuple(int(a) for a in found.reshape(-1))


def _equation(node: Any) -> str:
    return next(
        (a.s.decode("utf-8", "replace") for a in node.attribute if a.name == "equation"), ""
    )


def reductions_before(model: OnnxModel, value: str, depth: int = 12) -> Iterator[Any]:
    """The nodes whose means or sums a value is made of, the nearest first."""
    seen, level = {value}, [value]
    for _ in range(depth):
        behind = []
        for name in level:
            node = model.producers.get(name)
            if node is None:
                continue
            if node.op_type in _REDUCED or node.op_type in ("Einsum", "MatMul"):
                yield node
            behind += [n for n in node.input if n and n not in seen]
            seen.update(node.input)
        level = behind
