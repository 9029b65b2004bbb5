"""How far the logits of two runs are apart, a few positions at a time: vocabularies are large."""

from __future__ import annotations

import math

import numpy as np

from ggufnorm.core.metrics import relative_l2
from ggufnorm.core.observed import Array

_BLOCK = 1 << 22
"""Logits that are widened to float64 at a time."""


def logits_off(source: Array | None, engine: Array | None) -> float | None:
    """Relative L2 distance of the logits that both have.

    Args:
        source: the source's, ``(tokens, vocabulary)``; None without.
        engine: the engine's; checkpoints pad their vocabulary, and converters take that off.

    Returns:
        As :func:`~ggufnorm.core.metrics.relative_l2`; None where one has none, or for other
        tokens.
    """
    if source is None or engine is None or len(source) != len(engine):
        return None
    n = min(source.shape[1], engine.shape[1])
    a, b = source[:, :n], engine[:, :n]
    step = max(1, _BLOCK // max(1, n))
    if len(a) <= step:
        return relative_l2(a, b)
    error = size = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for block in (slice(i, i + step) for i in range(0, len(a), step)):
            wide = a[block].astype(np.float64)
            size += float(np.linalg.norm(wide)) ** 2
            error += float(np.linalg.norm(b[block] - wide)) ** 2
    if math.isnan(error) or not math.isfinite(size) or not size:
        return 0.0 if np.array_equal(a, b) else math.inf
    return math.sqrt(error / size)
