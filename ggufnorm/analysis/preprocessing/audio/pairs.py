"""Two pipelines' spectrograms, value by value."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ggufnorm.analysis.preprocessing.audio.look import Listener, Seen
from ggufnorm.core.audio_report import AudioComparison
from ggufnorm.core.log_mel import Array
from ggufnorm.core.log_mel_mistakes import expected_again
from ggufnorm.core.tolerances import SAME_FORMULA


def compare(a: Seen, b: Seen, listener: Listener) -> AudioComparison:
    """How far ``b`` is from ``a``, and how far when both are scaled as expected."""
    names = a.pipeline.name, b.pipeline.name
    if len(a.values) != len(b.values):
        why = f"{len(a.values)} and {len(b.values)} mel bins"
        return AudioComparison(*names, None, why, None)
    n = listener.comparable(a.values.shape[1], b.values.shape[1])
    x, y = (seen.values[:, :n].astype(np.float64) for seen in (a, b))
    rel_l2, residual = _distance(x, y), None
    if a.scale is not None and b.scale is not None and rel_l2 is not None:
        residual = _distance(*(expected_again(s.scale, v) for s, v in ((a, x), (b, y)) if s.scale))
    why = "; ".join(_differences(a, b, rel_l2, (x, y)))
    return AudioComparison(*names, rel_l2, why, residual)


def _distance(a: Array, b: Array) -> float | None:
    """Relative L2 distance, None if it is not finite."""
    with np.errstate(all="ignore"):
        distance = float(np.linalg.norm(b - a) / np.linalg.norm(a))
    return distance if np.isfinite(distance) else None


def _differences(
    a: Seen, b: Seen, rel_l2: float | None, values: tuple[Array, Array]
) -> Iterator[str]:
    if rel_l2 is None:
        yield "they cannot be compared: values are not finite, or there are none"
        return
    lengths = [seen.values.shape[1] for seen in (a, b)]
    if lengths[0] != lengths[1]:
        yield f"{a.pipeline.name} feeds {lengths[0]} frames, {b.pipeline.name} {lengths[1]}"
    if rel_l2 <= SAME_FORMULA:
        yield "the same values"
        return
    for seen in (a, b):
        if seen.pipeline.mistakes:
            yield f"{seen.pipeline.name}: {seen.pipeline.normalization}"
    if a.scale is None or b.scale is None:
        yield _affine(*values)
    elif not (a.pipeline.mistakes or b.pipeline.mistakes):
        yield "their samples, windows or filters differ"


def _affine(a: Array, b: Array) -> str:
    """The multiple of one and the number added that come nearest to the other."""
    dx, dy = a - a.mean(), b - b.mean()
    gain = float((dx * dy).sum() / max(float((dx**2).sum()), 1e-300))
    offset = float(b.mean() - gain * a.mean())
    rest = _distance(b, gain * a + offset)
    left = "nothing" if rest is None else f"{rest:.3g}"
    return f"{gain:.4g} times the first and {offset:.4g} leave {left} of it"
