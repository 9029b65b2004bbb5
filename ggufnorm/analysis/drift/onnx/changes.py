"""What differs in the graph of an operation: attributes, constants, the order of inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.drift.onnx.hooks import Hook, Sides
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.tolerances import FLOAT32_ROUNDING, SAME_EPSILON
from ggufnorm.engines.onnx.model import OnnxModel, plain_attributes

_MOST_EPSILON = 0.2


def graph_change(sides: Sides, hook: Hook) -> str:
    """Another attribute, another constant, or inputs in another order; empty for none."""
    found = [
        *_attributes(hook.nodes, hook.nodes_ref),
        *_epsilons(sides, hook),
        *([] if hook.is_quantized else _constants(sides, hook)),
        *_order(sides, hook),
    ]
    return "; ".join(dict.fromkeys(found))


def _attributes(nodes: Sequence[Any], nodes_ref: Sequence[Any]) -> Iterator[str]:
    for op in dict.fromkeys(n.op_type for n in nodes):
        mine, theirs = ([n for n in side if n.op_type == op] for side in (nodes, nodes_ref))
        if len(mine) != len(theirs):
            continue
        for a, b in zip(mine, theirs, strict=True):
            x, y = plain_attributes(a), plain_attributes(b)
            for name in sorted(x.keys() & y.keys() - _NO_MATTER):
                if not _same(x[name], y[name]):
                    yield f"{name} of {op} is {_text(x[name])}, the reference's {_text(y[name])}"


_NO_MATTER = {"allowzero", "stash_type"}
"""Attributes that change no result in graphs that exporters write."""


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=SAME_EPSILON)
    return bool(a == b)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _epsilons(sides: Sides, hook: Hook) -> Iterator[str]:
    """The epsilon of an operation beside that of another one, or beside a number that is added."""
    both = (sides.quant, hook.nodes), (sides.ref, hook.nodes_ref)
    mine, theirs = (
        list(_stated_epsilons(nodes)) or list(_small_addends(model, nodes)) for model, nodes in both
    )
    if len(mine) != 1 or len(theirs) != 1 or mine[0][0] == theirs[0][0]:
        return
    if not math.isclose(mine[0][1], theirs[0][1], rel_tol=SAME_EPSILON):
        yield f"epsilon of {mine[0][0]} is {mine[0][1]:.3g}, the reference's {theirs[0][1]:.3g}"


def _stated_epsilons(nodes: Sequence[Any]) -> Iterator[tuple[str, float]]:
    for node in nodes:
        yield from ((node.op_type, a.f) for a in node.attribute if a.name == "epsilon")


def _small_addends(model: OnnxModel, nodes: Sequence[Any]) -> Iterator[tuple[str, float]]:
    """Numbers that are added, small enough for an epsilon."""
    for node in nodes:
        for name in node.input if node.op_type == "Add" else ():
            value = model.constant(name)
            if value is not None and value.size == 1:
                number = float(value.reshape(-1)[0])
                if 0 < number <= _MOST_EPSILON:
                    yield node.op_type, number


def _constants(sides: Sides, hook: Hook) -> Iterator[str]:
    """Constants of the same name, or the same place, with other values."""
    mine = list(_read(sides.quant, hook.nodes))
    theirs = dict(_read(sides.ref, hook.nodes_ref))
    others = list(theirs.items())
    for i, (name, value) in enumerate(mine):
        expected = theirs.get(name)
        if expected is None and len(mine) == len(others):
            expected = others[i][1]
        if expected is None or expected.shape != value.shape or value.dtype.kind not in "fiu":
            continue
        error = relative_l2(expected.astype(np.float64), value.astype(np.float64))
        if error > FLOAT32_ROUNDING * (1 if value.dtype != np.float16 else 1e4):
            what = f"{name} is {value.reshape(-1)[0]:.4g}, the reference's"
            if value.size == 1:
                yield f"{what} {expected.reshape(-1)[0]:.4g}"
            else:
                yield f"{name} is off by {error:.3g} (relative L2)"


def _read(model: OnnxModel, nodes: Sequence[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    for node in nodes:
        for name in node.input:
            value = model.constant(name) if name else None
            if value is not None:
                yield name, value


def _order(sides: Sides, hook: Hook) -> Iterator[str]:
    if len(hook.nodes) != 1 or len(hook.nodes_ref) != 1:
        return
    mine = [sides.grafts[n].ref if n in sides.grafts else n for n in hook.nodes[0].input]
    theirs = list(hook.nodes_ref[0].input)
    if mine != theirs and sorted(mine) == sorted(theirs):
        yield f"{hook.nodes[0].op_type} takes its inputs in another order"
