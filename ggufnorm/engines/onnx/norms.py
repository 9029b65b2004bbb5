"""The norms of an ONNX graph: single operations, and what exporters write in their place.

Operations and the defaults of their attributes: ONNX's ``docs/Operators.md`` and ONNX
Runtime's ``docs/ContribOperators.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.floats import shortest_float32
from ggufnorm.core.formula import Divisor
from ggufnorm.core.model import NormKind, Skipped
from ggufnorm.engines.onnx.model import OnnxModel, attribute
from ggufnorm.errors import InputError

Array = NDArray[np.float32]

DECOMPOSED = "decomposed"
_NUMBER = re.compile(r"(?:^|[._/])(\d{1,4})(?=[._/])")
_BLOCK = re.compile(
    r"(?:^|[._/])(?:layers?|blocks?|h|resblocks|stages?)[._/](\d{1,4})(?=[._/])", re.IGNORECASE
)


def find_layer(name: str) -> re.Match[str] | None:
    """A block's number in names such as ``model.layers.3.norm`` and ``/blocks.3/norm``.

    A number behind the word for a block counts before others: ``model.0.auto_model`` is a
    part of a pipeline, and no layer.
    """
    return _BLOCK.search(name) or _NUMBER.search(name)


def takes_own_statistics(model: OnnxModel, node: Any) -> bool:
    """Whether a BatchNormalization takes mean and variance of its input.

    That is what ``training_mode`` of 1 means, and what versions before 7 do if ``is_test``
    is 0 (ONNX's ``docs/Changelog.md``). So does one whose statistics the graph computes.
    """
    if node.op_type != "BatchNormalization":
        return False
    if lacks_statistics(model, node):
        return True
    opset = max(
        (o.version for o in model.proto.opset_import if o.domain in ("", "ai.onnx")), default=0
    )
    return bool(attribute(node, "training_mode", 0)) or (
        opset < 7 and not attribute(node, "is_test", 0)
    )


def lacks_statistics(model: OnnxModel, node: Any) -> bool:
    """Whether a BatchNormalization is given a mean and a variance that the file does not hold.

    Exporters compute them of its input where it was trained without running statistics.
    """
    return any(model.constant(name) is None for name in node.input[3:5])


def own_statistics(model: OnnxModel, node: Any) -> str:
    """Why a batch norm takes statistics of its input, in words that follow its name."""
    why = "training_mode is 1, as exported without eval()"
    if lacks_statistics(model, node):
        why = "it has no running statistics (track_running_stats=False)"
    return f"takes mean and variance of its own input: {why}"


@dataclass(frozen=True)
class OnnxNorm:
    """One norm of a graph.

    Attributes:
        op: the operation, or ``decomposed``.
        kind: the formula; None for a BatchNormalization, whose statistics are fixed.
        epsilon: as the graph has it.
        divisor: how epsilon and the mean square make up the divisor.
        groups: of a group norm; None where each channel is one.
        axis: from which on the channels are; -1 for the last alone.
        node: index of the node that computes the result.
        x: name of the value that goes in; None where the operation adds it up itself and
            shows it at ``sum_output``.
        sum_output: which of the node's outputs is what goes in.
        y: name of the result.
        weight: name of the stored weight, None for none.
        bias: name of the stored bias, None for none.
        offset: that the graph adds to the stored weight.
        weight_value: name of the value that the norm multiplies with, None for none.
        bias_value: name of the value that it adds, None for none.
    """

    op: str
    kind: NormKind | None
    epsilon: float
    divisor: Divisor
    groups: int | None
    axis: int
    node: int
    x: str | None
    sum_output: int | None
    y: str
    weight: str | None
    bias: str | None
    offset: float
    weight_value: str | None
    bias_value: str | None


@dataclass(frozen=True)
class _Op:
    """A single operation: where its inputs are, and what it stands for."""

    kind: NormKind | None
    epsilon: float
    x: int | None = 0
    weight: int = 1
    bias: int | None = 2
    sum_output: int | None = None


# Inputs by number; a sum of several inputs is an output that has to be asked for.
_OPS: dict[str, _Op] = {
    "LayerNormalization": _Op("layer", 1e-5),
    "SimplifiedLayerNormalization": _Op("rms", 1e-5, bias=None),
    "RMSNormalization": _Op("rms", 1e-5, bias=None),
    "SkipLayerNormalization": _Op("layer", 1e-12, None, 2, 3, sum_output=3),
    "SkipSimplifiedLayerNormalization": _Op("rms", 1e-12, None, 2, None, sum_output=3),
    "EmbedLayerNormalization": _Op("layer", 1e-12, None, 5, 6, sum_output=2),
    "GroupNormalization": _Op("group", 1e-5),
    "InstanceNormalization": _Op("group", 1e-5),
    "BatchNormalization": _Op(None, 1e-5),
    "LpNormalization": _Op("l2", 0.0, weight=-1, bias=None),
}


def find_norms(model: OnnxModel) -> tuple[tuple[OnnxNorm, ...], tuple[Skipped, ...]]:
    """Every norm of a graph, in the order of its nodes, and what looks like one and is none.

    Raises:
        InputError: a node lacks an input, or a weight cannot be read.
    """
    try:
        return _find(model)
    except IndexError:
        raise InputError(f"{model.path}: a node of its graph lacks an input") from None


def _find(model: OnnxModel) -> tuple[tuple[OnnxNorm, ...], tuple[Skipped, ...]]:
    index = {id(n): i for i, n in enumerate(model.nodes)}
    found = [_single(model, n, i) for i, n in enumerate(model.nodes) if n.op_type in _OPS]
    skipped = []
    for node in model.nodes:
        if node.op_type == "ReduceMean":
            norm = _decomposed(model, node, index)
            if isinstance(norm, OnnxNorm):
                found.append(norm)
            elif norm is not None:
                skipped.append(norm)
    unique = {n.y: n for n in found}
    return tuple(sorted(unique.values(), key=lambda n: n.node)), tuple(skipped)


def _single(model: OnnxModel, node: Any, index: int) -> OnnxNorm:
    op = _OPS[node.op_type]

    def name(i: int | None) -> str | None:
        return node.input[i] if i is not None and 0 <= i < len(node.input) else None

    groups = None
    if op.kind == "group" and node.op_type != "InstanceNormalization":
        groups = int(attribute(node, "num_groups", 1))
    weight, bias = name(op.weight) or None, name(op.bias) or None
    return OnnxNorm(
        op=node.op_type,
        kind=op.kind,
        epsilon=_epsilon(attribute(node, "epsilon", op.epsilon)),
        divisor="standard",
        groups=groups,
        axis=int(attribute(node, "axis", -1)),
        node=index,
        x=name(op.x),
        sum_output=op.sum_output,
        y=node.output[0],
        **_stored(model, weight, bias),
    )


def _stored(model: OnnxModel, weight: str | None, bias: str | None) -> dict[str, Any]:
    source = None if weight is None else model.source(weight)
    return {
        "weight": source,
        "bias": None if bias is None else model.source(bias),
        "offset": _offset(model, weight, source),
        "weight_value": weight,
        "bias_value": bias,
    }


def _offset(model: OnnxModel, weight: str | None, source: str | None) -> float:
    """What the graph adds to a stored weight before it multiplies with it."""
    if weight is None or source is None or weight == source:
        return 0.0
    whole, raw = model.constant(weight), model.constant(source)
    if whole is None or raw is None or whole.size != raw.size or raw.dtype.kind != "f":
        return 0.0
    difference = np.unique(np.round(whole.ravel().astype(np.float64) - raw.ravel(), 5))
    return float(difference[0]) if difference.size == 1 else 0.0


def _epsilon(value: float) -> float:
    return shortest_float32(value) or 0.0


def site_name(norm: OnnxNorm, model: OnnxModel) -> str:
    """What a norm is called: by its weight, unless an exporter has only numbered that."""
    name = plain_name(norm.weight)
    return name or model.nodes[norm.node].name or norm.y


def plain_name(name: str | None) -> str | None:
    """A weight's name, None where it says nothing."""
    if name is None or name.startswith("onnx::") or "val_" in name or name.isdecimal():
        return None
    return name.removesuffix("_quantized")


# -- what exporters write --------------------------------------------------------------------


def _decomposed(model: OnnxModel, mean: Any, index: dict[int, int]) -> OnnxNorm | Skipped | None:
    """The norm whose mean of squares a node computes; None if it computes another mean."""
    rows = _squared(model, mean.input[0])
    if rows is None or _axes(model, mean) > 1:
        return None
    divisor = _divisor(model, mean.output[0])
    if divisor is None:
        return Skipped(mean.name or mean.output[0], "a mean of squares with no root behind it")
    epsilon, how, root, inverse = divisor
    quotient = _quotient(model, root, inverse)
    if quotient is None:
        return Skipped(mean.name or mean.output[0], "a root of a mean of squares, no quotient")
    last, numerator = quotient
    kind, x = _kind(model, rows)
    if _through(model, numerator) != _through(model, rows) and _kind(model, numerator) != (kind, x):
        return Skipped(mean.name or mean.output[0], "its rows are divided by the root of others")
    last, weight = _with(model, last, "Mul")
    last, bias = _with(model, last, "Add")
    return OnnxNorm(
        op=DECOMPOSED,
        kind=kind,
        epsilon=_epsilon(epsilon),
        divisor=how,
        groups=None,
        axis=-1,
        node=index[id(last)],
        x=x,
        sum_output=None,
        y=last.output[0],
        **_stored(model, weight, bias),
    )


def _axes(model: OnnxModel, mean: Any) -> int:
    """Over how many axes a mean is taken; an attribute before opset 18, an input since."""
    given = [a for a in mean.attribute if a.name == "axes"]
    if given:
        return len(given[0].ints)
    found = model.constant(mean.input[1]) if len(mean.input) > 1 else None
    return 1 if found is None else int(found.size)


def _through(model: OnnxModel, value: str) -> str:
    """The value before casts."""
    node = model.producers.get(value)
    while node is not None and node.op_type in ("Cast", "Identity"):
        value = node.input[0]
        node = model.producers.get(value)
    return value


def _after(model: OnnxModel, value: str) -> Iterator[Any]:
    """The nodes that take a value, seen through casts."""
    for node in model.consumers.get(value, ()):
        if node.op_type in ("Cast", "Identity"):
            yield from _after(model, node.output[0])
        else:
            yield node


def _scalar(model: OnnxModel, value: str) -> float | None:
    found = model.constant(value)
    return float(found.reshape(-1)[0]) if found is not None and found.size == 1 else None


def _other(model: OnnxModel, node: Any, value: str) -> str:
    """The second operand of a node of two."""
    same = _through(model, node.input[0]) == _through(model, value)
    return str(node.input[1] if same else node.input[0])


def _squared(model: OnnxModel, value: str) -> str | None:
    """Of ``d²`` the name of ``d``."""
    node = model.producers.get(_through(model, value))
    if node is None:
        return None
    if node.op_type == "Pow" and _scalar(model, node.input[1]) == 2:
        return str(node.input[0])
    if node.op_type == "Mul" and node.input[0] == node.input[1]:
        return str(node.input[0])
    return None


def _kind(model: OnnxModel, rows: str) -> tuple[NormKind, str]:
    """LayerNorm where the mean was taken off; and the name of what goes in."""
    node = model.producers.get(_through(model, rows))
    if node is not None and node.op_type == "Sub":
        mean = model.producers.get(_through(model, node.input[1]))
        if mean is not None and mean.op_type == "ReduceMean":
            x = _through(model, mean.input[0])
            if x == _through(model, node.input[0]):
                return "layer", x
    return "rms", _through(model, rows)


def _divisor(model: OnnxModel, mean: str) -> tuple[float, Divisor, Any, bool] | None:
    """Epsilon, how it is used, the last node of the divisor, and whether it is inverted."""
    epsilon, how, root, last = 0.0, "standard", None, None
    steps = _steps_of_divisor(model, mean)
    for node, number in steps:
        last = node
        if node.op_type == "Add":
            epsilon, how = number, "standard" if root is None else "outside"
        else:
            root = node
            if number < 0:
                return epsilon, "standard", node, True
    if root is None or last is None:
        return None
    return epsilon, "outside" if how == "outside" else "standard", last, False


def _steps_of_divisor(model: OnnxModel, mean: str) -> list[tuple[Any, float]]:
    """From a mean of squares on, epsilon and the root in their order, each once."""
    found: list[tuple[Any, float]] = []
    value = mean
    while (step := _next_of_divisor(model, value)) is not None:
        if any((n.op_type == "Add") == (step[0].op_type == "Add") for n, _ in found):
            break
        found.append(step)
        value = step[0].output[0]
    return found


def _next_of_divisor(model: OnnxModel, value: str) -> tuple[Any, float] | None:
    """An addition of epsilon, or a root with its exponent."""
    for node in _after(model, value):
        if node.op_type == "Sqrt":
            return node, 0.5
        if node.op_type == "Add":
            number = _scalar(model, _other(model, node, value))
            if number is not None:
                return node, number
        if node.op_type == "Pow":
            number = _scalar(model, node.input[1])
            if number in (0.5, -0.5):
                return node, number
    return None


def _quotient(model: OnnxModel, root: Any, inverse: bool) -> tuple[Any, str] | None:
    """The node that divides by the root, and what it divides."""
    value = root.output[0]
    for node in _after(model, value):
        if node.op_type == "Reciprocal" and not inverse:
            return _quotient(model, node, inverse=True)
        if node.op_type == "Div" and not inverse:
            if _scalar(model, node.input[0]) == 1:
                return _quotient(model, node, inverse=True)
            return node, str(node.input[0])
        if node.op_type == "Mul" and inverse:
            return node, _other(model, node, value)
    return None


def _with(model: OnnxModel, node: Any, op: str) -> tuple[Any, str | None]:
    """The node behind that multiplies with, or adds, something stored."""
    users = list(_after(model, node.output[0]))
    for user in users:
        if user.op_type == op:
            other = _other(model, user, node.output[0])
            if model.constant(other) is not None:
                return user, other
    return node, None
