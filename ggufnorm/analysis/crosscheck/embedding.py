"""The embedding that an ONNX model makes, beside the one that a checkpoint says it makes."""

from __future__ import annotations

import numpy as np

from ggufnorm.analysis.crosscheck.output import EMBEDDING, STATES, OutputComparison, skipped
from ggufnorm.analysis.crosscheck.outputs import pool
from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.observed import Array, SourceOutput
from ggufnorm.core.tolerances import SAME_DOWNSTREAM
from ggufnorm.engines.onnx.tail import Tail, recognize_tail
from ggufnorm.errors import EngineError

Tokens = np.ndarray


def compare_embedding(
    source: SourceOutput, location: str, result: Array | None, tokens: Tokens
) -> OutputComparison | None:
    """An ONNX model's embedding beside the source's; None where the source says of none.

    Args:
        source: what the checkpoint gives, and how it pools that (``1_Pooling/config.json``).
        location: of the ONNX file.
        result: its first result for these tokens; None without one.
        tokens: ids.
    """
    mode = source.pooling
    if mode is None or source.states is None:
        return None
    theirs = pool(source.states, mode)
    behind = [*source.modules, *map(str, source.dense)]
    if theirs is None or behind:
        why = f"pooling by {mode}" if theirs is None else f"{', '.join(behind)} behind it"
        return skipped(EMBEDDING, f"{why} is not computed here")
    try:
        tail = recognize_tail(location, tokens)
    except EngineError as error:
        return skipped(EMBEDDING, str(error))
    if tail is None:
        return skipped(EMBEDDING, f"{location} takes no padding to tell its pooling by")
    if tail.pooling == "none":  # as usual: what runs it pools
        if result is None or result.size != source.states.size:
            return skipped(EMBEDDING, "it gives states of another size")
        off = relative_l2(source.states, result.reshape(source.states.shape))
        return OutputComparison(STATES, off)
    reason = _reason(source, tail, mode)
    if result is None or result.size != theirs.size:
        return OutputComparison(EMBEDDING, None, reason, bool(reason))
    # Its length is told by itself.
    made = result.reshape(-1)
    distance: float | None = relative_l2(_unit(theirs), _unit(made))
    if reason and distance is not None and distance <= SAME_DOWNSTREAM:
        distance = None  # in another text it shows, or in the length
    return OutputComparison(EMBEDDING, distance, reason, bool(reason))


def _reason(source: SourceOutput, tail: Tail, mode: str) -> str:
    said = []
    if tail.pooling is not None and tail.pooling != mode:
        said.append(f"the file pools by {tail.pooling}, the source by {mode}"
                    " (1_Pooling/config.json)")  # fmt: skip
    if source.normalizes is not None and source.normalizes != tail.l2:
        has = ("has no", "has a") if tail.l2 else ("has a", "has no")
        state = "is" if tail.l2 else "is not"
        said.append(f"its result {state} L2-normalized, and modules.json {has[0]} Normalize")
    return "; ".join(said)


def _unit(values: Array) -> Array:
    return values / max(float(np.linalg.norm(values)), 1e-12)
