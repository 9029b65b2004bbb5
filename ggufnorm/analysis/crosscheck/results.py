"""All results of two ONNX graphs, one beside the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ggufnorm.core.frameworks import FirstWrong, OutputDifference
from ggufnorm.core.metrics import difference
from ggufnorm.core.model import Skipped
from ggufnorm.core.observed import ModelOutput, ObservedRun
from ggufnorm.core.tolerances import SAME_DOWNSTREAM


def compare_outputs(source: ObservedRun, engine: ObservedRun) -> tuple[OutputDifference, ...]:
    """Each result of the source and the engine's of its name, or else of its place."""
    ours = {o.name: o for o in engine.outputs}
    pairs = {s.name: ours.pop(s.name) for s in source.outputs if s.name in ours}
    rest = [s for s in source.outputs if s.name not in pairs]
    if len(rest) == len(ours):
        pairs |= {s.name: e for s, e in zip(rest, ours.values(), strict=True)}
    return tuple(_compared(s, pairs[s.name]) for s in source.outputs if s.name in pairs)


def _compared(source: ModelOutput, engine: ModelOutput) -> OutputDifference:
    found = OutputDifference(source.name, engine.name, None)
    a, b = source.value, engine.value
    if a.size != b.size:
        shapes = ("×".join(map(str, v.shape)) or "one number" for v in (b, a))
        reason = "it is {}, in the source {}".format(*shapes)
        unstable = source.unstable or engine.unstable
        return replace(found, reason=reason, unstable=unstable, is_another=unstable is None)
    if not a.size:
        return replace(found, reason="it is empty")
    unstable = source.unstable or engine.unstable
    return replace(found, difference=difference(a, b.reshape(a.shape)), unstable=unstable)


def are_the_same(outputs: Sequence[OutputDifference], tolerance: float) -> bool:
    """Whether all results were compared, and are the source's."""
    found = [o.difference for o in outputs]
    return bool(found) and all(
        d is not None and d.non_finite_rows == 0 and d.rel_l2 is not None and d.rel_l2 <= tolerance
        for d in found
    )


def first_wrong_output(
    outputs: Sequence[OutputDifference], explained: float, after: str | None
) -> FirstWrong | None:
    """The first result that rounding does not explain.

    Args:
        outputs: in the order of the source's graph.
        explained: largest relative L2 distance that rounding explains.
        after: the last site or layer that is right.
    """
    for o in outputs:
        if o.difference is None and o.reason and o.is_another:
            return FirstWrong(o.engine, None, "output", after, o.reason, ())
        if o.difference is None or not o.tells:
            continue
        off = o.difference.rel_l2
        # Another pooling is another whatever its size.
        if off is not None and off <= (SAME_DOWNSTREAM if o.reason else explained):
            continue
        size = "NaN or infinity" if off is None else f"off by {off:.3g}"
        reason = f"it is {size}" + (f": {o.reason}" if o.reason else "")
        if after is not None and not o.reason:
            reason += f", and all that was compared up to {after} is right"
        return FirstWrong(o.engine, None, "output", after, reason, ())
    return None


def not_compared(outputs: Sequence[OutputDifference]) -> tuple[Skipped, ...]:
    """The results that were not, and why."""
    return tuple(
        Skipped(o.engine, o.reason or f"rounding may turn over its {o.unstable}")
        for o in outputs
        if not o.tells and not o.is_another
    )
