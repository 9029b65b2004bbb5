"""Where drift enters, and what to do: a few sentences about two ONNX files."""

from __future__ import annotations

from collections.abc import Sequence

from ggufnorm.analysis.drift.onnx.culprits import (
    FLOAT_OPERATION,
    LOSSY,
    MOST_OF_IT,
    Reshaped,
    find_culprit,
    is_integer,
)
from ggufnorm.core.drift import Culprit
from ggufnorm.core.onnx_drift import OnnxOperation, OutputDrift, Remedy, Scheme
from ggufnorm.core.rounding import HALF_ULP, MATRIX_ROUNDING
from ggufnorm.core.tolerances import (
    OPERATION_PEER_RATIO,
    SAME_DOWNSTREAM,
)

_MUCH_TOGETHER = 0.25
"""Share of operations that are compared together with others from which that is said."""


def judge(
    scheme: Scheme,
    operations: Sequence[OnnxOperation],
    reshaped: Sequence[Reshaped],
    outputs: Sequence[OutputDrift],
    remedies: Sequence[Remedy],
) -> tuple[Culprit | None, str]:
    """Name the one operation that is out of line, and say where drift enters and what to do.

    Args:
        scheme: how the file under test was made.
        operations: in graph order.
        reshaped: paired results of other shapes.
        outputs: all float outputs.
        remedies: the best first.
    """
    main = next((o for o in outputs if o.main), None)
    culprit = find_culprit(operations, reshaped, main, remedies)
    if culprit is not None:
        at = f" (layer {culprit.layer})" if culprit.layer is not None else ""
        start = f"Drift enters at {culprit.node}{at}: {culprit.reason}."
    else:
        start = _gradual(scheme, operations, main)
    return culprit, " ".join(
        [
            start,
            *_help(culprit, main, remedies),
            *_about_outputs(outputs),
            *_about_runtime(outputs),
            *_about_saturation(operations),
            *_about_coverage(operations, outputs),
        ]
    )


def needs_help(main: OutputDrift) -> bool:
    """Whether the output's error is more than half precision leaves."""
    d = main.difference
    return d.rel_l2 is None or d.non_finite_rows > 0 or d.rel_l2 > HALF_ULP["BF16"]


# -- sentences -------------------------------------------------------------------------------


def _gradual(scheme: Scheme, operations: Sequence[OnnxOperation], main: OutputDrift | None) -> str:
    lossy = [o for o in operations if (o.local.rel_l2 or 0.0) > LOSSY]
    end = None if main is None else main.difference.rel_l2
    if not lossy and (end is None or end <= SAME_DOWNSTREAM):
        exact = all(o.cumulative.rel_l2 == 0 for o in operations)
        return (
            "No drift: the two files compute the same."
            if exact
            else "No drift beyond rounding: every operation gives the reference's result."
        )
    small = end is not None and end <= MATRIX_ROUNDING["INT8"]
    if not lossy and small and any(map(is_integer, operations)):
        return (
            "No drift beyond rounding: every operation gives the reference's result. Where values"
            f" become integers a last bit turns steps over: the output differs by {end:.3g}."
        )
    if not lossy:
        return (
            "No operation that was compared adds more than rounding, and yet the output is off:"
            " what differs is among the operations without a partner."
        )
    worst = max(lossy, key=lambda o: (o.share or 0.0, o.local.rel_l2 or 0.0))
    portion = f" ({100 * min(worst.share or 0.0, 1):.0f} % of the output's error)"
    share = "" if worst.share is None else portion
    kind = " in half precision" if scheme == "half" else ""
    return (
        f"Drift enters gradually{kind}, at {len(lossy)} of {len(operations)} operations; the"
        f" largest share is {worst.node}'s{share}, and none is out of line."
    )


def _help(
    culprit: Culprit | None, main: OutputDrift | None, remedies: Sequence[Remedy]
) -> list[str]:
    """The settings that mend at least half, the cheapest first, with what they cost."""
    now = None if main is None else main.difference
    node = None if culprit is None else culprit.node
    about = [r for r in remedies if r.rel_l2 is not None and (node is None or node in r.nodes)]
    if now is None or now.rel_l2 is None or now.non_finite_rows:
        single = [r for r in about if r.nodes == (node,)] or about
        return [f"Measured: {_tried(r)}." for r in single[:1]]
    good = [r for r in about if (r.rel_l2 or 0.0) ** 2 < MOST_OF_IT * now.rel_l2**2]
    good.sort(key=lambda r: (r.bytes, r.rel_l2))
    # A larger file that mends no more than one named before is worth a word only where it is
    # the culprit alone that is left out.
    told: list[Remedy] = []
    for r in good:
        best = min((t.rel_l2 or 0.0 for t in told), default=float("inf"))
        if (r.rel_l2 or 0.0) < best or r.nodes == (node,):
            told.append(r)
    if not told:
        return []
    before = f"{_distance(now.cosine, now.rel_l2)} becomes"
    return [f"Measured: {before} {', or '.join(map(_tried, told[:_MOST_TOLD]))}."]


_MOST_TOLD = 2


def _tried(r: Remedy) -> str:
    distance = None if r.cosine_distance is None else 1 - r.cosine_distance
    more = f" ({r.bytes / 1e6:+.2f} MB)" if r.bytes else ""
    return f"{_value(distance, r.rel_l2)} with {r.setting}{more}"


def _distance(cosine: float | None, rel_l2: float | None) -> str:
    what = "relative L2" if cosine is None else "the cosine distance"
    return f"{what} of {_value(cosine, rel_l2)}"


def _value(cosine: float | None, rel_l2: float | None) -> str:
    return f"{rel_l2 or 0:.3g}" if cosine is None else f"{max(0.0, 1 - cosine):.3g}"


def _about_outputs(outputs: Sequence[OutputDrift]) -> list[str]:
    bad = [o.name for o in outputs if o.difference.non_finite_rows]
    return [f"Outputs with NaN or infinity: {', '.join(bad)}."] if bad else []


def _about_saturation(operations: Sequence[OnnxOperation]) -> list[str]:
    """Products that are worse on processors without VNNI."""
    worse = [
        o
        for o in operations
        if (o.saturated or 0.0) > max(OPERATION_PEER_RATIO * (o.local.rel_l2 or 0.0), _SATURATED)
    ]
    if not worse:
        return []
    worst = max(worse, key=lambda o: o.saturated or 0.0)
    return [
        f"On x86 without VNNI {len(worse)} products of 8 bits saturate, {worst.node} by"
        f" {worst.saturated:.3g} (relative L2): reduce_range=True for those machines."
    ]


_SATURATED = 2 * MATRIX_ROUNDING["INT8"]


def _about_coverage(
    operations: Sequence[OnnxOperation], outputs: Sequence[OutputDrift]
) -> list[str]:
    """What was not compared by itself."""
    found = []
    together = [name for o in operations for name in o.together]
    if len(together) > _MUCH_TOGETHER * (len(together) + len(operations)):
        found.append(
            f"{len(together)} operations of the reference have no result of their own in the file"
            " under test, and were compared together with others."
        )
    if not outputs:
        found.append("No output was compared: none has a partner.")
    return found


def _about_runtime(outputs: Sequence[OutputDrift]) -> list[str]:
    """What ONNX Runtime's optimizations make of the file under test."""
    for o in outputs:
        if not o.main or o.optimized is None:
            continue
        plain, fast = o.difference.rel_l2, o.optimized.rel_l2
        if plain is None or fast is None:
            continue
        if fast > max(OPERATION_PEER_RATIO * plain, FLOAT_OPERATION):
            return [
                f"With ONNX Runtime's optimizations the output is off by {fast:.3g} where the"
                f" graph itself is by {plain:.3g}: its kernels on this machine are to blame"
                " (8-bit products may saturate without VNNI: reduce_range=True)."
            ]
    return []
