"""Two pipelines, value by value: what is the normalization's part of their difference?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ggufnorm.analysis.preprocessing.image.look import Seen, Values
from ggufnorm.core.pixel_report import PixelComparison
from ggufnorm.core.tolerances import SAME_FORMULA, SAME_LEVELS


def compare(a: Seen, b: Seen) -> PixelComparison:
    """How far ``b`` is from ``a``, and how far when it is normalized as ``a`` is."""
    names = a.fed.name, b.fed.name
    if a.values.shape != b.values.shape:
        sizes = " and ".join(f"{w}×{h}" for h, w, _c in (a.values.shape, b.values.shape))
        why = f"their pictures are of different sizes: {sizes}"
        return PixelComparison(*names, None, why, None, None)
    rel_l2 = _distance(a.values, b.values)
    residual = largest = None
    if a.affine is not None and b.affine is not None and rel_l2 is not None:
        levels = b.affine.undo(b.values)
        residual = _distance(a.values, a.affine.apply(levels))
        largest = float(np.abs(a.affine.undo(a.values) - levels).max())
    why = "; ".join(_differences(a, b, rel_l2, largest))
    return PixelComparison(*names, rel_l2, why, residual, largest)


def _distance(a: Values, b: Values) -> float | None:
    """Relative L2 distance, None if it is not finite."""
    size = float(np.linalg.norm(a.astype(np.float64)))
    error = float(np.linalg.norm(b.astype(np.float64) - a))
    return error / size if size and np.isfinite(error / size) else None


def _differences(a: Seen, b: Seen, rel_l2: float | None, largest: float | None) -> Iterator[str]:
    if rel_l2 is None:
        yield "they cannot be compared: values are not finite, or all zero"
        return
    if rel_l2 <= SAME_FORMULA:
        yield "the same values"
        return
    for seen in (a, b):
        if seen.pipeline.mistakes:
            yield f"{seen.fed.name}: {seen.pipeline.normalization}"
    ways = [seen.pipeline.picture for seen in (a, b)]
    if largest is not None and largest < SAME_LEVELS:
        yield f"their pictures differ by {largest:.1g} levels of 255 at most"
    elif ways[0] != ways[1] and all(ways):
        yield f"the picture is {ways[0]} in {a.fed.name}, {ways[1]} in {b.fed.name}"
    else:
        yield "their pictures are resized, cropped or padded in different ways"
