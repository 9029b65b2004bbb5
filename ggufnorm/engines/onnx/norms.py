"""The norms of an ONNX graph: single operations, and what exporters write in their place.

Operations and the defaults of their attributes: ONNX's ``docs/Operators.md`` and ONNX
Runtime's ``docs/ContribOperators.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufnorm.core.floats import shortest_float32
from ggufnorm.core.formula import Divisor
from ggufnorm.core.model import NormKind, Skipped
from ggufnorm.engines.onnx.evaluate import SPATIAL
from ggufnorm.engines.onnx.model import OnnxModel, attribute
from ggufnorm.engines.onnx.spelled import (
    Spelled,
    behind,
    bias_behind,
    centred,
    spelled_norms,
    through,
)
from ggufnorm.errors import InputError

Array = NDArray[np.float32]

DECOMPOSED = "decomposed"
_NUMBER = re.compile(r"(?:^|[._/])(\d{1,4})(?=[._/])")
_BLOCK = re.compile(
    r"(?:^|[._/])(?:layers?|(?:(?:en|de)coder)?blocks?|h|resblocks|stages?)[._/]{1,3}(\d{1,4})(?=[._/])",
    re.IGNORECASE,
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
        spelled: how it is made up, where it is several operations.
        mean_axis: over which an operation before takes the mean off; None where none does.
        perm: in which order the axes of what goes in are put first; None for none.
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
    spelled: Spelled | None = None
    mean_axis: int | None = None
    perm: tuple[int, ...] | None = None

    @property
    def over_batch(self) -> bool:
        """Whether its means go over several samples, as those of a batch norm in training."""
        axes = self.spelled.axes if self.spelled else ()
        return len(axes) > 1 and 0 in axes


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
    single = [_single(model, n, i) for i, n in enumerate(model.nodes) if n.op_type in _OPS]
    found = [_with_affine(model, norm) for norm in single]
    spelled = [_spelled(model, index[id(node)], s) for node, s in spelled_norms(model)]
    unique = {n.y: n for n in [*spelled, *found]}
    rows = {s.rows for n in spelled if (s := n.spelled) is not None}
    skipped = tuple(_rootless(model, rows))
    return tuple(sorted(unique.values(), key=lambda n: n.node)), skipped


def _rootless(model: OnnxModel, known: set[str]) -> Iterator[Skipped]:
    """Means of squares that no norm was found of."""
    for node in model.nodes:
        if node.op_type != "ReduceMean":
            continue
        square = model.producers.get(through(model, node.input[0]))
        if square is None or square.op_type not in ("Mul", "Pow"):
            continue
        value, *other = (through(model, name) for name in square.input)
        two = model.constant(square.input[1])
        if not (other == [value] or (two is not None and two.size == 1 and float(two) == 2)):
            continue
        made = model.producers.get(value)
        centred = (
            through(model, made.input[0]) if made is not None and made.op_type == "Sub" else value
        )
        if not known & {value, centred}:
            name = node.name or node.output[0]
            yield Skipped(name, "a mean of squares with no root behind it that divides its rows")


def _spelled(model: OnnxModel, index: int, s: Spelled) -> OnnxNorm:
    n = _n_values(model, s)
    scale = s.scale * (n**s.power if n else 1.0) or 1.0
    divisor, kind = s.divisor, s.kind
    unbiased = n and n > 1 and abs(scale - n / (n - 1)) < UNBIASED * scale
    if unbiased and divisor == "standard" and s.kind in ("rms", "layer"):
        scale, divisor = 1.0, "unbiased"
    if not n and s.power:  # told when it runs
        scale = 1.0
    grouped = s.is_grouped or _is_of_images(s)
    return OnnxNorm(
        op=DECOMPOSED,
        kind="group" if grouped and kind == "layer" else kind,
        epsilon=_epsilon(s.epsilon / (scale**0.5 if divisor == "outside" else scale)),
        divisor=divisor,
        groups=None,
        axis=-1,
        node=index,
        x=s.x,
        sum_output=None,
        y=s.y,
        **_stored(model, s.weight, s.bias),
        spelled=s,
    )


UNBIASED = 1e-6
"""Relative difference up to which a factor is ``n / (n - 1)``."""


def _is_of_images(s: Spelled) -> bool:
    """Whether its means go over height and width alone, one for each channel."""
    return s.axes in (SPATIAL, (2, 3), (-2, -1), (2, 3, 4))


def _n_values(model: OnnxModel, s: Spelled) -> int:
    """Of how many values a mean is taken; 0 where the graph does not show it."""
    if s.is_grouped or len(s.axes) > 1:
        return 0
    for name in (s.weight, s.bias):
        values = None if name is None else model.small_constant(name)
        if values is not None and values.size > 1:
            return int(values.size)
    return 0


def _with_affine(model: OnnxModel, norm: OnnxNorm) -> OnnxNorm:
    """A norm of one operation with the weight and the bias that stand behind it instead."""
    if norm.kind is None or norm.x is None:
        return norm
    found = centred(model, norm.x) if norm.kind == "rms" and norm.axis == -1 else None
    if found is not None:  # an RMSNorm of what the mean was taken off is a LayerNorm
        moved = replace(norm, kind="layer", x=found.x, perm=found.perm, mean_axis=found.axis)
        return _with_bias(model, moved)
    if not _is_bare(model, norm):
        return norm
    after = behind(model, norm.x, norm.y, norm.kind)
    if after is None:
        return norm
    y, affine, x = after
    if affine.factor != 1 or affine.bias_factor != 1:
        return norm
    values = model.small_constant(affine.weight or "")
    groups = norm.groups
    if norm.kind == "group" and x != norm.x:
        groups = _groups(model, norm.x)
        if groups is None:
            return norm
    elif norm.kind != "group" and (x != norm.x or values is None):
        return norm
    return replace(
        norm, x=x, y=y, groups=groups,
        **_stored(model, affine.weight, affine.bias),
    )  # fmt: skip


def _with_bias(model: OnnxModel, norm: OnnxNorm) -> OnnxNorm:
    found = None if norm.bias_value else bias_behind(model, norm.y)
    if found is None:
        return norm
    y, bias = found
    stored = _stored(model, norm.weight_value, bias)
    return replace(norm, y=y, **stored)


def _groups(model: OnnxModel, x: str) -> int | None:
    """Into how many groups a ``Reshape`` cuts the channels."""
    node = model.producers.get(x)
    shape = None if node is None or len(node.input) < 2 else model.small_constant(node.input[1])
    flat = [] if shape is None else shape.reshape(-1).tolist()
    return int(flat[1]) if len(flat) == 3 and flat[1] > 0 else None


def _is_bare(model: OnnxModel, norm: OnnxNorm) -> bool:
    """Whether its weight is 1 and its bias 0, or it has none."""
    for name, value in ((norm.weight_value, 1), (norm.bias_value, 0)):
        if name is not None:
            found = model.small_constant(name)
            if found is None or (found != value).any():
                return False
    return True


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
