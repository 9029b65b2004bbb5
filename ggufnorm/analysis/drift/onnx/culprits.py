"""What is out of line in an ONNX file.

One culprit at most, looked for in this order:

1. a result of another shape than the reference's;
2. the first NaN or infinity that an operation makes of finite input;
3. an operation without integers that is off by more than its type rounds: another attribute,
   another constant, inputs in another order. Where most matrices are, it is another checkpoint;
4. an operation in integers that is off by more than a fresh quantization in the same scheme: a
   scale, a zero point or a weight is wrong, or calibration saw other inputs;
5. an operation that makes most of the output's error, although its peers in the same scheme make
   little, where a setting that was tried mends at least half. The scheme is at fault, not the file.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ggufnorm.core.drift import Culprit
from ggufnorm.core.onnx_drift import OnnxOperation, OutputDrift, Remedy
from ggufnorm.core.rounding import MATRIX_ROUNDING
from ggufnorm.core.tolerances import (
    JUMP,
    OPERATION_PEER_RATIO,
    SAME_DOWNSTREAM,
    WEIGHT_RATIO,
)
from ggufnorm.engines.onnx.norms import find_layer

LOSSY = 1e-5
"""Own error above which an operation adds more than float32 rounds."""


FLOAT_OPERATION = 1e-3
"""Own error of a float32 operation that no kernel explains: GELU by tanh is off by less."""


HALF_OPERATION = 2.0**-5
"""The same in half precision: 64 roundings; sums of many halves leave up to 30."""


MOST_OF_IT = 0.5
"""Share of the output's error from which one operation makes most of it."""


_RANGE_RATIO = 3.0
"""A stored range loses so many times what the input's own range would: it is another input's."""


_OTHER_SAMPLE = 2 * MATRIX_ROUNDING["INT8"]
"""Own error up to which stored scales are the usual ones of another sample of inputs."""


LEAST_SHARE = 0.05
"""Share of the output's error below which a scale does no harm."""


_SHOWN = 0.03
"""Part of a matrix's error that its result shows at least, or the matrix was misread. A wrong zero
point shows little where the input's mean is zero (0.08 was seen)."""
_OTHER_CHECKPOINT = 0.5
"""Share of the matrices from which it is another checkpoint."""


@dataclass(frozen=True)
class Reshaped:
    """A result of another shape.

    Attributes:
        node: the reference's.
        layer: block number, None outside the blocks.
        ref: its shape there.
        quant: in the file under test.
    """

    node: str
    layer: int | None
    ref: tuple[int, ...]
    quant: tuple[int, ...]


def _other_shape(reshaped: Sequence[Reshaped]) -> Culprit | None:
    for r in reshaped:
        shapes = ["×".join(map(str, shape)) or "a scalar" for shape in (r.quant, r.ref)]
        reason = f"its result is {shapes[0]}, the reference's {shapes[1]}"
        return Culprit(None, r.node, r.layer, reason)
    return None


def _non_finite(operations: Sequence[OnnxOperation]) -> Culprit | None:
    for o in operations:
        if o.local.non_finite_rows:
            reason = "it makes NaN or infinity of the reference's finite input"
            if "FLOAT16" in o.dtype:
                reason += ": half precision ends at 65504"
            return Culprit(None, o.node, o.layer, reason + _changed(o))
    for o in operations:
        if o.cumulative.non_finite_rows:
            reason = "the first NaN or infinity of the file's own run appears here"
            return Culprit(None, o.node, o.layer, reason)
    return None


def is_integer(o: OnnxOperation) -> bool:
    """Whether integers take part."""
    return "INT" in o.dtype or o.dtype.endswith(("input rounded", "integers"))


def _limit(o: OnnxOperation) -> float:
    if is_integer(o):
        return _OTHER_SAMPLE
    return HALF_OPERATION if "FLOAT16" in (o.dtype, o.dtype_ref) else FLOAT_OPERATION


def _wrong_operation(operations: Sequence[OnnxOperation]) -> Culprit | None:
    plain = [o for o in operations if not is_integer(o)]
    wrong = [
        o
        for o in operations
        if (o.change or not is_integer(o)) and (o.local.rel_l2 or 0.0) > _limit(o)
    ]
    if not wrong:
        return None
    worst = max(wrong, key=lambda o: (o.share or 0.0, o.local.rel_l2 or 0.0))
    first = wrong[0]
    products = [o for o in plain if o.op in _PRODUCTS]
    off = [o for o in wrong if o.op in _PRODUCTS]
    if len(off) > 1 and len(off) >= _OTHER_CHECKPOINT * len(products):
        return Culprit(
            None,
            first.node,
            first.layer,
            f"the files are not two versions of the same weights: {len(off)} of {len(products)}"
            " operations with a matrix differ, though neither side is in integers",
        )
    integers = "" if is_integer(worst) else ", and no integers take part"
    node, beside = worst.node, f"{_with(worst)}{_changed(worst)}{_others(len(wrong) - 1)}"
    alone = _only_suspect(wrong, [o for o in operations if o not in wrong])
    if alone not in (None, worst.node):
        node, beside = str(alone), _changed(worst)
    found = find_layer(node)
    return Culprit(
        None,
        node,
        int(found[1]) if found else worst.layer,
        f"given the reference's input its result is off by {worst.local.rel_l2:.3g} (relative"
        f" L2{'' if node == worst.node else f', seen at {worst.node}'}){integers}{beside}",
    )


def _only_suspect(wrong: Sequence[OnnxOperation], right: Sequence[OnnxOperation]) -> str | None:
    """The one operation that has a part in all wrong results, and in no right one."""
    sets = [{o.node, *o.together} for o in wrong]
    common = set.intersection(*sets).difference(*({o.node, *o.together} for o in right))
    return next(iter(common)) if len(common) == 1 else None


_MOST_NAMED = 2


def _with(o: OnnxOperation) -> str:
    """What else may be at fault, because it is compared together with an operation."""
    if not o.together:
        return ""
    more = f" and {len(o.together) - _MOST_NAMED} more" if len(o.together) > _MOST_NAMED else ""
    return f" (compared together with {', '.join(o.together[:_MOST_NAMED])}{more})"


def _others(n: int) -> str:
    return "" if n < 1 else "; so is one other" if n == 1 else f"; so are {n} others"


_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Gather")


def _changed(o: OnnxOperation) -> str:
    return f": {o.change}" if o.change else ""


def _damaged(operations: Sequence[OnnxOperation]) -> Culprit | None:
    """The operation that is furthest beyond what its scheme costs."""
    found = []
    for o in operations:
        reason = damage(o)
        if reason is not None:
            found.append((o.local.rel_l2 or 0.0, o, reason))
    if not found:
        return None
    _error, o, reason = max(found, key=lambda f: (f[1].share or 0.0, f[0]))
    return Culprit(None, o.node, o.layer, reason + _others(len(found) - 1))


def damage(o: OnnxOperation) -> str | None:
    """What is wrong with the integers or the scales, None if nothing is."""
    own = f"given the reference's input it is off by {o.local.rel_l2 or 0:.3g} (relative L2)"
    error, expected = o.weight_error, o.weight_expected
    shown = (o.local.rel_l2 or 0.0) > _SHOWN * (error or 0.0)
    if shown and _is_off(error, expected, WEIGHT_RATIO, SAME_DOWNSTREAM):
        return (
            f"{own}: its matrix is off by {error:.3g} where {o.dtype} costs {expected:.3g}:"
            " scale, zero point or integers are wrong"
        )
    if (o.local.rel_l2 or 0.0) <= _OTHER_SAMPLE or (o.share or 0.0) < LEAST_SHARE:
        return None  # two samples of inputs differ by as much, or it does no harm
    error, expected = o.input_error, o.input_expected
    name = f" {o.input_value}" if o.input_value else ""
    if _is_off(error, expected, _RANGE_RATIO):
        return (
            f"{own}: its input{name}, rounded by the stored scale, is off by {error:.3g} where the"
            f" range of these inputs costs {expected:.3g}: the scale is wrong, or calibration"
            " saw other inputs"
        )
    if _is_off(o.local.rel_l2, o.expected, OPERATION_PEER_RATIO):
        return f"{own} where a fresh quantization in the same scheme costs {o.expected:.3g}"
    return None


def _is_off(error: float | None, expected: float | None, ratio: float, least: float = 0.0) -> bool:
    return error is not None and expected is not None and error > max(ratio * expected, least)


def _concentrated(
    operations: Sequence[OnnxOperation], main: OutputDrift | None, remedies: Sequence[Remedy]
) -> Culprit | None:
    """A few operations that make most of the output's error, and that settings mend."""
    total = None if main is None else main.difference.rel_l2
    if main is None or total is None or total <= MATRIX_ROUNDING["INT8"]:
        return None
    errors = [e for o in operations if (e := o.local.rel_l2 or 0.0) > LOSSY]
    usual = statistics.median(errors) if errors else 0.0
    group = _out_of_line(operations, usual)
    share = sum(o.share or 0.0 for o in group)
    if share < MOST_OF_IT:
        return None
    nodes = {o.node for o in group}
    mends = [r.rel_l2 for r in remedies if nodes & {*r.nodes} and r.rel_l2 is not None]
    if min(mends, default=total) ** 2 > MOST_OF_IT * total * total:
        return None
    worst = group[0]
    others = [o.node for o in group[1:]]
    beside = f" with {_listed(others)}" if others else " alone"
    return Culprit(
        None,
        worst.node,
        worst.layer,
        f"it{beside} makes {100 * min(share, 1):.0f} % of the error of {main.name}."
        f" Given the reference's input it is off by {worst.local.rel_l2:.3g}, the usual operation"
        f" by {usual:.3g} (relative L2, {worst.dtype}){_outliers(worst)}",
    )


def _out_of_line(operations: Sequence[OnnxOperation], usual: float) -> list[OnnxOperation]:
    """Few that cost much: off by more than others, or the only one that matters."""
    ranked = sorted(operations, key=lambda o: -(o.share or 0.0))
    costly = [o for o in ranked if (o.share or 0.0) >= LEAST_SHARE]
    far = [o for o in costly if (o.local.rel_l2 or 0.0) >= OPERATION_PEER_RATIO * usual]
    if costly and (len(ranked) < 2 or (costly[0].share or 0) > JUMP * (ranked[1].share or 0)):
        return costly[:1]
    return far[:MOST_CULPRITS]


MOST_CULPRITS = 4
"""Operations that are named as making most of an error: more are no few."""


def _outliers(o: OnnxOperation) -> str:
    if not o.outliers:
        return ""
    parts = []
    for of, where in _CHANNELS.items():
        channels = [str(c.channel) for c in o.outliers if c.of == of]
        if channels:
            noun = "channel" if len(channels) == 1 else "channels"
            parts.append(f"{where.format(noun)} {', '.join(channels)}")
    shared = ", and all share one scale" if "per tensor" in o.dtype else ""
    return (
        f": {_listed(parts)} reach up to {o.outliers[0].ratio:.0f} times the usual"
        f" magnitude{shared}"
    )


def _listed(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


_CHANNELS = {
    "input": "the matrix's input {}",
    "output": "the matrix's output {}",
    "activation": "the input's {}",
}


def find_culprit(
    operations: Sequence[OnnxOperation],
    reshaped: Sequence[Reshaped],
    main: OutputDrift | None,
    remedies: Sequence[Remedy],
) -> Culprit | None:
    """The one operation that is out of line, None if none is."""
    return (
        _other_shape(reshaped)
        or _non_finite(operations)
        or _wrong_operation(operations)
        or _damaged(operations)
        or _concentrated(operations, main, remedies)
    )
